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
local numbers, sizes, seen = {}, {}, {}
for i = 3, #ARGV, 2 do
  if not seen[ARGV[i]] then
    seen[ARGV[i]] = true
    numbers[#numbers + 1], sizes[#sizes + 1] = ARGV[i], ARGV[i + 1]
  end
end
if #numbers == 0 then
  return { 'ok', 0 }
end
local known = call('HMGET', key('tasks', job), unpack(numbers))
local added, bytes = 0, 0
local tasks, order, index = {}, {}, {}
-- Sums that a double counts exactly; the server adds them up.
local function add_bytes()
  if bytes > 0 then
    call('HINCRBY', key('job', job), 'W', int(bytes))
    call('HINCRBY', SUMS, 'W', int(bytes))
    bytes = 0
  end
end
for i, number in ipairs(numbers) do
  if not known[i] then
    added = added + 1
    if f.hold == 'N' or f.walked then
      move(job, f, number, { bytes = tonumber(sizes[i]), token = '0', attempts = 0 }, 'P', NOW)
    else
      if bytes + sizes[i] > 9007199254740991 then
        add_bytes()
      end
      bytes = bytes + sizes[i]
      tasks[#tasks + 1], tasks[#tasks + 2] = number, 'P:' .. sizes[i] .. ':0:0:'
      order[#order + 1], order[#order + 2] = number, number
      index[#index + 1], index[#index + 2] = NOW, job .. '/' .. number
    end
  end
end
-- Tasks that enter in the usual way do so together; what `move` does for one is done for all. Counters go first.
if #tasks > 0 then
  local count = #tasks / 2
  f.P = call('HINCRBY', key('job', job), 'P', count)
  add_bytes()
  if f.hold == 'P' then
    call('HINCRBY', SUMS, 'P', count)
  end
  call('ZADD', key('order', job), unpack(order))
  call('ZADD', ns .. ':waiting', unpack(index))
  call('HSET', key('tasks', job), unpack(tasks))
  place(job, f)
end
return { 'ok', added }
