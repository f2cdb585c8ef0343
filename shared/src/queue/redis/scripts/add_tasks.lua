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
local added, bytes = 0, 0
if f.hold == 'N' or f.walked then
  for i = 3, #ARGV, 2 do
    local number = ARGV[i]
    if call('HEXISTS', key('tasks', job), number) == 0 then
      move(job, f, number, { bytes = tonumber(ARGV[i + 1]), token = '0', attempts = 0 }, 'P', NOW)
      added = added + 1
    end
  end
  return { 'ok', added }
end

-- The usual case does what `move` does for each task, with one command for all of them.
local numbers, values, places, entries = {}, {}, {}, {}
for i = 3, #ARGV, 2 do
  numbers[#numbers + 1] = ARGV[i]
end
-- Fails before anything has changed, should it be no number.
call('HINCRBY', key('job', job), 'W', 0)
local known, since = #numbers > 0 and call('HMGET', key('tasks', job), unpack(numbers)), int(NOW)
for n, number in ipairs(numbers) do
  if not known[n] and not values[number] then
    local size = ARGV[2 * n + 2]
    added, values[number] = added + 1, true
    if bytes + size > 9007199254740991 then
      add_waiting(job, f, number, bytes)
      bytes = 0
    end
    bytes = bytes + size
    values[2 * added - 1], values[2 * added] = number, 'P:' .. size .. ':0:0:'
    -- The band of what is pending is the first.
    places[2 * added - 1], places[2 * added] = number, number
    entries[2 * added - 1], entries[2 * added] = since, job .. '/' .. number
  end
end
if added > 0 then
  add_waiting(job, f, 0, bytes)
  f.P = call('HINCRBY', key('job', job), 'P', added)
  if f.hold == 'P' then
    add_to_all('P', added)
  end
  call('HSET', key('tasks', job), unpack(values))
  call('ZADD', key('order', job), unpack(places))
  call('ZADD', ns .. ':waiting', unpack(entries))
  place(job, f)
end
return { 'ok', added }
