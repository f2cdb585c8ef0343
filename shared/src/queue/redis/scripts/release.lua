-- ARGV: job, number, token.
local job, number = ARGV[1], ARGV[2]
local task, refusal = held_task(job, number, ARGV[3])
if not task then
  return refusal
end
task.attempts = math.max(task.attempts - 1, 0)
leave_state(job, number, task)
enter_state(job, number, task, 'P', NOW)
return { 'ok' }
