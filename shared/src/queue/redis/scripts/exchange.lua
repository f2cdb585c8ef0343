-- ARGV: worker, its info, lease in ms, most tasks beside those committed, most due retries to revive first, then what
-- is finished, by job: job, how many tasks, the four sums of their totals, and number, token and totals 'a,b,c,d' of
-- each, in the order of their numbers. Answers the leases, and { place, refusal, reason } of each finished task that
-- was refused.
local worker, lease, free = ARGV[1], tonumber(ARGV[3]), tonumber(ARGV[4])
local refused = {}
local place, i = 0, 6
while ARGV[i] do
  for at = i + 6, i + 3 + 3 * ARGV[i + 1], 3 do
    place = place + 1
    local refusal = commit(ARGV[i], ARGV[at], ARGV[at + 1], ARGV[at + 2])
    if refusal then
      refused[#refused + 1] = { place, refusal[1], refusal[2] or '' }
    else
      free = free + 1
    end
  end
  i = i + 6 + 3 * ARGV[i + 1]
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
