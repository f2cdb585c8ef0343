-- ARGV: job, number, state 'C' or 'X', totals 'a,b,c,d'.
local job, number = ARGV[1], ARGV[2]
if not job_known(job) then
  return { 'unknown' }
end
local task, broken = load_task(job, number)
if broken then
  return unreadable(job, number)
end
if not task then
  task = { bytes = 0, token = '0', attempts = 0 }
  enter_state(job, number, task, ARGV[3], 0)
end
finish(job, number, task, ARGV[3], ARGV[4])
return { 'ok' }
