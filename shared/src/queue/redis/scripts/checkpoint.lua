-- ARGV: job, number, token, lease in ms, checkpoint ('a b c d TEXT') or nothing to drop it.
local job, number = ARGV[1], ARGV[2]
local task, f = held_task(job, number, ARGV[3])
if not task then
  return f
end
set_checkpoint(job, f, number, ARGV[5])
if ARGV[5] then
  task.attempts = 0
  save_task(job, number, task)
  call('ZADD', ns .. ':leases', int(NOW + tonumber(ARGV[4])), job .. '/' .. number)
end
return { 'ok', f.hold == 'P' and 2 or 1 }
