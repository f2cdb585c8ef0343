-- ARGV: job, number, token, totals 'a,b,c,d'.
local job, number = ARGV[1], ARGV[2]
local task, f = held_task(job, number, ARGV[3])
if task then
  finish(job, f, number, task, 'C', ARGV[4])
  return { 'ok' }
end
-- The answer to this very commit may have been lost.
if f[1] == 'stale' then
  local done = load_task(job, number)
  if done and done.state == 'C' and done.token == ARGV[3] then
    return { 'ok' }
  end
end
return f
