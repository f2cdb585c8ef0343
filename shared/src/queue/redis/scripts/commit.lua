-- ARGV: job, number, token, totals 'a,b,c,d'.
local job, number = ARGV[1], ARGV[2]
local task, refusal = held_task(job, number, ARGV[3])
if task then
  finish(job, number, task, 'C', ARGV[4])
  return { 'ok' }
end
-- The answer to this very commit may have been lost.
local done = load_task(job, number)
if done and done.state == 'C' and done.token == ARGV[3] then
  return { 'ok' }
end
return refusal
