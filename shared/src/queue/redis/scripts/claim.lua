-- ARGV: worker, its info, lease in ms, most tasks, most due retries to revive first.
local worker, lease = ARGV[1], tonumber(ARGV[3])
see_worker(worker, ARGV[2], lease)
revive(tonumber(ARGV[5]))

-- The job to serve next with its place; nil when no job has pending tasks. Entries that mean nothing are removed.
local function next_job()
  while true do
    local priority = call('ZRANGE', ns .. ':priorities', 0, 0)[1]
    if not priority then
      return nil
    end
    local first = call('ZRANGE', key('ready', priority), 0, 0, 'WITHSCORES')
    local job = first[1]
    if not job then
      call('ZREM', ns .. ':priorities', priority)
    else
      local fields = call('HMGET', key('job', job), 'weight', 'P', 'L')
      local weight = tonumber(fields[1])
      if weight and weight > 0 and tonumber(fields[2]) and tonumber(fields[3] or '0') and first_pending(job) then
        return job, priority, tonumber(first[2]), weight
      end
      leave_order(job, priority)
    end
  end
end

local leases = {}
while #leases < tonumber(ARGV[4]) do
  local job, priority, start, weight = next_job()
  if not job then
    break
  end
  local number = first_pending(job)
  local task = load_task(job, number)
  if task and task.state == 'P' then
    local token = next_token()
    local after = string.format('%.17g', start + math.max(task.bytes, 1) / weight)
    call('HSET', ns .. ':virtual', priority, string.format('%.17g', start))
    call('HSET', key('job', job), 'start', after)
    call('ZADD', key('ready', priority), after, job)
    leave_state(job, number, task)
    task.token = token
    task.attempts = task.attempts + 1
    enter_state(job, number, task, 'L', NOW + lease, worker)
    leases[#leases + 1] =
      { job .. '/' .. number, token, int(task.attempts), call('HGET', key('checkpoints', job), number) }
  elseif task then
    call('ZADD', key('order', job), int(tonumber(number) + BEHIND), number)
  else
    call('HINCRBY', key('job', job), 'P', -1)
    drop_broken(job, number)
  end
end
return { 'ok', leases }
