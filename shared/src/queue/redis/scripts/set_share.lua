-- ARGV: job, priority, weight, most leases at a time or 0. What the job is ahead of the virtual time is service it had in
-- advance: it counts in the new priority, too, at the new weight, so that changing back and forth wins nothing.
local job, priority, weight = ARGV[1], ARGV[2], tonumber(ARGV[3])
local f, refusal = job_of(job)
if not f then
  return refusal
end
f.stands = stands(job, f)
if tonumber(priority) ~= tonumber(f.priority) or weight ~= f.weight then
  if f.stands then
    leave_order(job, f.priority)
  end
  local ahead = math.max(f.start - virtual_time(f.priority), 0) * f.weight / weight
  f.priority, f.weight = priority, weight
  set_start(job, f, virtual_time(priority) + ahead)
  if f.stands then
    stand(job, f)
  end
end
f.cap = tonumber(ARGV[4])
call('HSET', key('job', job), 'priority', priority, 'weight', ARGV[3], 'cap', ARGV[4])
place(job, f)
return { 'ok' }
