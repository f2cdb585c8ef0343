-- ARGV: job, number, token, '1' when permanent, message, message for the history, most attempts, a roll of 32 bits,
-- backoff base and maximum in ms.
local job, number = ARGV[1], ARGV[2]
local task, f = held_task(job, number, ARGV[3])
if not task then
  return f
end
remember(job, number, task, ARGV[6])
if ARGV[4] == '1' or task.attempts >= tonumber(ARGV[7]) then
  die(job, f, number, task, ARGV[5])
  return { 'ok', 'dead' }
end
local doublings = math.min(math.max(task.attempts - 1, 0), 20)
local bound = math.min(tonumber(ARGV[9]) * 2 ^ doublings, tonumber(ARGV[10]))
local till = NOW + tonumber(ARGV[8]) % (bound + 1)
call('HSET', key('messages', job), number, ARGV[5])
move(job, f, number, task, 'D', till)
return { 'ok', int(till) }
