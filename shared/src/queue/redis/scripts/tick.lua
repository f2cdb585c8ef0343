-- ARGV: most tasks, most attempts, message of a task that died of its lease, lease in ms.
local limit, max_attempts = tonumber(ARGV[1]), tonumber(ARGV[2])
prune_workers(tonumber(ARGV[4]))
local expired, died = {}, {}
for _, entry in ipairs(due(':leases', limit)) do
  local task = indexed_task(entry, 'L')
  if task then
    local job, number = entry[1], entry[2]
    if task.attempts >= max_attempts then
      die(job, number, task, ARGV[3])
      died[#died + 1] = entry[3]
    else
      leave_state(job, number, task)
      enter_state(job, number, task, 'P', NOW)
      expired[#expired + 1] = entry[3]
    end
  end
end
return { 'ok', expired, died, revive(limit - #expired - #died) }
