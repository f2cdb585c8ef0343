-- ARGV: worker, its info, lease in ms, most tasks beside those committed, most due retries to revive first, then job, number,
-- token and totals 'a,b,c,d' of each finished task. Answers the leases, and { place, refusal, reason } of each finished
-- task that was refused.
local worker, lease, free = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local refused = {}
for i = 6, #ARGV, 4 do
  local refusal = commit(ARGV[i], ARGV[i + 1], ARGV[i + 2], ARGV[i + 3])
  if refusal then
    refused[#refused + 1] = { (i - 2) / 4, refusal[1], refusal[2] or '' }
  else
    free = free + 1
  end
end
see_worker(worker, ARGV[2], lease)
revive(tonumber(ARGV[5]))

-- The job to serve next; nil when there is none. Entries that mean nothing are removed.
local function next_job()
  while true do
    local priority = call('ZRANGE', ns .. ':priorities', 0, 0)[1]
    if not priority then
      return nil
    end
    local job = call('ZRANGE', key('ready', priority), 0, 0)[1]
    if not job then
      call('ZREM', ns .. ':priorities', priority)
    else
      local f = job_of(job)
      local number = f and f.priority == priority and is_ready(f) and first_pending(job)
      if number then
        return job, f, number
      end
      leave_order(job, priority)
      if f and f.priority == priority then
        f.stands = false
      end
    end
  end
end

local leases = {}
while #leases < free do
  local job, f, number = next_job()
  if not job then
    break
  end
  local task = load_task(job, number)
  if task and task.state == 'P' then
    call('HSET', ns .. ':virtual', f.priority, string.format('%.17g', f.start))
    set_start(job, f, f.start + math.max(task.bytes, 1) / f.weight)
    f.stands = true
    stand(job, f)
    task.token = next_token()
    task.attempts = task.attempts + 1
    move(job, f, number, task, 'L', NOW + lease, worker)
    leases[#leases + 1] =
      { job .. '/' .. number, task.token, int(task.attempts), call('HGET', key('checkpoints', job), number) }
  elseif task then
    call('ZADD', key('order', job), place_in_order(number, task.state), number)
  else
    f.P = call('HINCRBY', key('job', job), 'P', -1)
    drop_broken(job, number)
  end
end
return { 'ok', leases, refused }
