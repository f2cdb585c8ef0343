-- ARGV: job, priority, weight.
local job = ARGV[1]
if not job_known(job) then
  call('HSET', key('job', job), 'priority', ARGV[2], 'weight', ARGV[3], 'start', '0')
  call('ZADD', ns .. ':jobs', 0, job)
end
return { 'ok' }
