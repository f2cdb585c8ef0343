-- ARGV: job, '1' to pause it, '0' to let it go on. A cancelled job stays cancelled.
local job, hold = ARGV[1], ARGV[2] == '1' and 'P' or ''
local f, refusal = job_of(job)
if not f then
  return refusal
end
if f.hold ~= 'N' and f.hold ~= hold then
  f.hold = hold
  call('HSET', key('job', job), 'hold', hold)
  add_to_all('P', int(hold == 'P' and f.P or 0 - f.P))
end
place(job, f)
return { 'ok' }
