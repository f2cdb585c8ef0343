-- ARGV: job, most bytes that may wait in the queue, then number and bytes of each task.
local job = ARGV[1]
local f, refusal = job_of(job)
if not f then
  return refusal
end
local waiting = tonumber(call('HGET', SUMS, 'W') or '0')
for i = 3, #ARGV, 2 do
  waiting = waiting + tonumber(ARGV[i + 1])
end
if not (waiting <= tonumber(ARGV[2])) then
  return { 'invalid', 'the tasks that wait would have ' .. int(waiting) .. ' source bytes; expected at most 2^62' }
end
local added = 0
for i = 3, #ARGV, 2 do
  local number = ARGV[i]
  if call('HEXISTS', key('tasks', job), number) == 0 then
    move(job, f, number, { bytes = tonumber(ARGV[i + 1]), token = '0', attempts = 0 }, 'P', NOW)
    added = added + 1
  end
end
return { 'ok', added }
