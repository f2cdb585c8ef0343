-- ARGV: job, priority, weight, most leases at a time or 0. 'busy' while a job of that name is being forgotten.
local job = ARGV[1]
local record = key('job', job)
local fields = call('HMGET', record, 'priority', 'hold')
if fields[2] == 'F' then
  return { 'ok', 'busy' }
end
if not fields[1] then
  call('HSET', record, 'priority', ARGV[2], 'weight', ARGV[3], 'start', '0', 'cap', ARGV[4])
  call('ZADD', ns .. ':jobs', 0, job)
end
return { 'ok', 'known' }
