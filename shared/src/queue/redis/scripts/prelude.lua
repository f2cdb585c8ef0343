-- Put in front of every script. KEYS[1] is the hash tag of the namespace, '{ns}'; every key starts with it, so all of
-- them share one slot.
--
-- Task value: STATE:BYTES:TOKEN:ATTEMPTS:TAIL. STATE is P(ending), L(eased), D(elayed), C(ommitted), X (dead) or
-- N (cancelled). TAIL is the worker of a leased task and the totals `a,b,c,d` of a finished one.
-- Numbers are doubles: exact up to 2^53; tokens (microseconds since 1970) stay below it until the year 2255.
local call = redis.call
local ns = KEYS[1]
local NOW_US = read_now_us()
local NOW = math.floor(NOW_US / 1000)
-- Score in `order` of a task that is not pending: its number plus this, behind all 32-bit numbers.
local BEHIND = 8589934592
local LAST = 4294967295
local woken = false

local function int(number)
  return string.format('%.0f', number)
end

local function key(name, job)
  return ns .. ':' .. name .. ':' .. job
end

-- Tells everyone who waits for work to look again, once per script.
local function wake()
  if not woken then
    woken = true
    call('PUBLISH', ns .. ':wake', '')
  end
end

-- Grows with every call and never falls below the clock, so a server that lost its data still grows.
local function next_token()
  local token = math.max((tonumber(call('GET', ns .. ':token')) or 0) + 1, NOW_US)
  if not (token < 9007199254740992) then
    error('the token counter is not below 2^53; delete the key ' .. ns .. ':token')
  end
  token = int(token)
  call('SET', ns .. ':token', token)
  return token
end

local function job_known(job)
  return call('ZSCORE', ns .. ':jobs', job)
end

-- The task, or nil when there is none, or nil and true when it cannot be read.
local function load_task(job, number)
  local value = call('HGET', key('tasks', job), number)
  if not value then
    return nil
  end
  local state, bytes, token, attempts, tail = string.match(value, '^([PLDCXN]):(%d+):(%d+):(%d+):([%w,-]*)$')
  if not state or #bytes > 16 or #token > 16 or #attempts > 10 then
    return nil, true
  end
  return { state = state, bytes = tonumber(bytes), token = token, attempts = tonumber(attempts), tail = tail }
end

local function unreadable(job, number)
  return { 'invalid', 'task ' .. job .. '/' .. number .. ' holds a value this version cannot read' }
end

local function save_task(job, number, task)
  call('HSET', key('tasks', job), number,
    task.state .. ':' .. int(task.bytes) .. ':' .. task.token .. ':' .. int(task.attempts) .. ':' .. task.tail)
end

local function first_pending(job)
  return call('ZRANGEBYSCORE', key('order', job), 0, LAST, 'LIMIT', 0, 1)[1]
end

-- The job no longer stands in the order of service.
local function leave_order(job, priority)
  local ready = key('ready', priority)
  call('ZREM', ready, job)
  if call('EXISTS', ready) == 0 then
    call('ZREM', ns .. ':priorities', priority)
  end
end

-- The job has its first pending task: it starts at the virtual time or where it left off, whichever is later.
local function join_order(job)
  local fields = call('HMGET', key('job', job), 'priority', 'start')
  local priority = fields[1]
  local ready = key('ready', priority)
  if not call('ZSCORE', ready, job) then
    local virtual = tonumber(call('HGET', ns .. ':virtual', priority) or '0')
    call('ZADD', ready, string.format('%.17g', math.max(tonumber(fields[2]), virtual)), job)
    call('ZADD', ns .. ':priorities', -tonumber(priority), priority)
  end
end

local INDEX = { P = ':waiting', L = ':leases', D = ':delayed' }

-- Takes a task out of the index and the counters of its state.
local function leave_state(job, number, task)
  call('HINCRBY', key('job', job), task.state, -1)
  local index = INDEX[task.state]
  if index then
    call('ZREM', ns .. index, job .. '/' .. number)
  end
  if task.state == 'P' then
    call('ZADD', key('order', job), int(tonumber(number) + BEHIND), number)
    if not first_pending(job) then
      leave_order(job, call('HGET', key('job', job), 'priority'))
    end
  elseif task.state == 'L' then
    if call('HINCRBY', ns .. ':held', task.tail, -1) <= 0 then
      call('HDEL', ns .. ':held', task.tail)
    end
  elseif task.state == 'X' then
    call('DECR', ns .. ':dead')
  end
end

-- Puts a task into the index and the counters of a state and saves it. `at` is the time that orders the index, `tail`
-- what the task value ends with.
local function enter_state(job, number, task, state, at, tail)
  call('HINCRBY', key('job', job), state, 1)
  task.state = state
  task.tail = tail or ''
  local index = INDEX[state]
  if index then
    call('ZADD', ns .. index, int(at), job .. '/' .. number)
  end
  if state == 'P' then
    call('ZADD', key('order', job), number, number)
    join_order(job)
  else
    call('ZADD', key('order', job), int(tonumber(number) + BEHIND), number)
  end
  if state == 'L' then
    call('HINCRBY', ns .. ':held', task.tail, 1)
  elseif state == 'X' then
    call('INCR', ns .. ':dead')
  end
  if state == 'P' or state == 'D' then
    wake()
  end
  save_task(job, number, task)
end

local function four(text, separator)
  local number = '(%d+)' .. separator
  local a, b, c, d = string.match(text, '^' .. number .. number .. number .. '(%d+)')
  return { tonumber(a) or 0, tonumber(b) or 0, tonumber(c) or 0, tonumber(d) or 0 }
end

-- Adds `more` to four counters of a job and takes `less` away.
local function change_sums(job, names, more, less)
  for i = 1, 4 do
    if more[i] ~= less[i] then
      call('HINCRBY', key('job', job), names[i], int(more[i] - less[i]))
    end
  end
end

local TOTALS = { 'files_packed', 'files_failed', 'source_bytes', 'stored_bytes' }
local PROGRESS = { 'p_files_packed', 'p_files_failed', 'p_source_bytes', 'p_stored_bytes' }

-- Replaces a task's checkpoint ('a b c d TEXT', or nil for none) and what it adds to its job.
local function set_checkpoint(job, number, text)
  local hash = key('checkpoints', job)
  local old = call('HGET', hash, number)
  change_sums(job, PROGRESS, four(text or '', ' '), four(old or '', ' '))
  if text then
    call('HSET', hash, number, text)
  elseif old then
    call('HDEL', hash, number)
  end
end

-- Ends a task. Its totals replace those it had, so they are counted once.
local function finish(job, number, task, state, totals)
  local had = ''
  if task.state == 'C' or task.state == 'X' then
    had = task.tail
  end
  leave_state(job, number, task)
  change_sums(job, TOTALS, four(totals, ','), four(had, ','))
  enter_state(job, number, task, state, 0, totals)
  set_checkpoint(job, number, nil)
  if state == 'C' then
    call('HDEL', key('messages', job), number)
  end
end

-- Gives a task up with a message. It keeps no totals: nobody has counted its files yet.
local function die(job, number, task, message)
  leave_state(job, number, task)
  enter_state(job, number, task, 'X', 0, '')
  set_checkpoint(job, number, nil)
  call('HSET', key('messages', job), number, message)
end

-- The task when `token` is that of its present lease; otherwise nil and the answer that says why not.
local function held_task(job, number, token)
  if not job_known(job) then
    return nil, { 'unknown' }
  end
  local task, broken = load_task(job, number)
  if broken then
    return nil, unreadable(job, number)
  end
  if not task or task.state ~= 'L' or task.token ~= token then
    return nil, { 'stale' }
  end
  return task
end

-- Removes what cannot be read from every index; reconciliation adds the task again.
local function drop_broken(job, number)
  call('HDEL', key('tasks', job), number)
  call('ZREM', key('order', job), number)
  for _, index in pairs(INDEX) do
    call('ZREM', ns .. index, job .. '/' .. number)
  end
end

-- The first entries of an index whose time has come, as { job, number } pairs. An entry that names no task is removed.
local function due(index, limit)
  local found = {}
  if limit > 0 then
    for _, id in ipairs(call('ZRANGEBYSCORE', ns .. index, '-inf', NOW, 'LIMIT', 0, limit)) do
      local job, number = string.match(id, '^([%x-]+)/(%d+)$')
      if job then
        found[#found + 1] = { job, number, id }
      else
        call('ZREM', ns .. index, id)
      end
    end
  end
  return found
end

-- The task an index entry stands for; nil, and the entry is removed, when the two disagree.
local function indexed_task(entry, state)
  local task = job_known(entry[1]) and load_task(entry[1], entry[2])
  if task and task.state == state then
    return task
  end
  if task then
    call('ZREM', ns .. INDEX[state], entry[3])
  else
    drop_broken(entry[1], entry[2])
  end
  return nil
end

local function revive(limit)
  local revived = 0
  for _, entry in ipairs(due(':delayed', limit)) do
    local task = indexed_task(entry, 'D')
    if task then
      leave_state(entry[1], entry[2], task)
      enter_state(entry[1], entry[2], task, 'P', NOW)
      revived = revived + 1
    end
  end
  return revived
end

-- Forgets workers not heard of for two leases.
local function prune_workers(lease)
  local gone = call('ZRANGEBYSCORE', ns .. ':workers', '-inf', int(NOW - 2 * lease), 'LIMIT', 0, 100)
  if #gone > 0 then
    call('ZREM', ns .. ':workers', unpack(gone))
    call('HDEL', ns .. ':worker', unpack(gone))
  end
end

-- A worker is alive. `info` is 'SLOTS NAME'.
local function see_worker(worker, info, lease)
  prune_workers(lease)
  call('ZADD', ns .. ':workers', NOW, worker)
  call('HSET', ns .. ':worker', worker, info)
end
