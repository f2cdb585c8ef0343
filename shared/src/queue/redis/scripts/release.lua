-- ARGV: job, number, token.
local job, number = ARGV[1], ARGV[2]
local task, f = held_task(job, number, ARGV[3])
if not task then
  return f
end
task.attempts = math.max(task.attempts - 1, 0)
move(job, f, number, task, 'P', NOW)
return { 'ok' }
