-- ARGV: job, number, state 'C' or 'X', totals 'a,b,c,d'.
local job, number = ARGV[1], ARGV[2]
local f, refusal = job_of(job)
if not f then
  return refusal
end
local task, broken = load_task(job, number)
if broken then
  return unreadable(job, number)
end
finish(job, f, number, task or { bytes = 0, token = '0', attempts = 0, tail = '' }, ARGV[3], ARGV[4])
return { 'ok' }
