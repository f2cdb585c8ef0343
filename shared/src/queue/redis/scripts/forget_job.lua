-- ARGV: job, most tasks of this step. From the first step on nobody knows the job. Answers how many open tasks are left.
local job = ARGV[1]
local record = key('job', job)
local f = call('HMGET', record, 'priority', 'hold', 'P', 'X', 'W')
if f[2] ~= 'F' then
  if not f[1] and not call('ZSCORE', ns .. ':jobs', job) then
    return { 'ok', 0 }
  end
  leave_order(job, f[1] or '0')
  call('HINCRBY', SUMS, 'X', int(-(tonumber(f[4]) or 0)))
  call('HINCRBY', SUMS, 'W', int(-(tonumber(f[5]) or 0)))
  if f[2] == 'P' then
    call('HINCRBY', SUMS, 'P', int(-(tonumber(f[3]) or 0)))
  end
  call('HSET', record, 'hold', 'F')
  call('ZREM', ns .. ':jobs', job)
  call('ZADD', ns .. ':forgotten', 0, job)
end
return { 'ok', forget_step(job, tonumber(ARGV[2])) }
