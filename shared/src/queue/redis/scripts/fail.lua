-- ARGV: job, number, token, '1' when permanent, message, most attempts, a roll of 32 bits, backoff base and maximum in ms.
local job, number = ARGV[1], ARGV[2]
local task, refusal = held_task(job, number, ARGV[3])
if not task then
  return refusal
end
if ARGV[4] == '1' or task.attempts >= tonumber(ARGV[6]) then
  die(job, number, task, ARGV[5])
  return { 'ok', 'dead' }
end
local doublings = math.min(math.max(task.attempts - 1, 0), 20)
local bound = math.min(tonumber(ARGV[8]) * 2 ^ doublings, tonumber(ARGV[9]))
local till = NOW + tonumber(ARGV[7]) % (bound + 1)
call('HSET', key('messages', job), number, ARGV[5])
leave_state(job, number, task)
enter_state(job, number, task, 'D', till)
return { 'ok', int(till) }
