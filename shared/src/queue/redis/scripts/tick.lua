-- ARGV: most tasks, most attempts, message of a task that died of its lease, lease in ms, the history's message.
local limit, max_attempts = tonumber(ARGV[1]), tonumber(ARGV[2])
prune_workers(tonumber(ARGV[4]))
local expired, died, late = {}, {}, due(':leases', limit)
for _, entry in ipairs(late) do
  local task, f = indexed_task(entry, 'L')
  if task then
    local job, number = entry[1], entry[2]
    if f.hold == 'N' then
      move(job, f, number, task, 'N', 0)
    else
      remember(job, number, task, ARGV[5])
      if task.attempts >= max_attempts then
        die(job, f, number, task, ARGV[3])
        died[#died + 1] = entry[3]
      else
        move(job, f, number, task, 'P', NOW)
        expired[#expired + 1] = entry[3]
      end
    end
  end
end
local revived = revive(limit - #late)
-- A process that began to forget a job may have ended before it was done.
local forgotten = call('ZRANGE', ns .. ':forgotten', 0, 0)[1]
if forgotten then
  forget_step(forgotten, math.min(limit, 100))
end
return { 'ok', expired, died, revived }
