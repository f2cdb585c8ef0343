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
-- Score in `order`: the task's number in the band of its state, so that every state can be counted and walked. A number
-- has ten digits, so the band is the digit in front of them.
local BAND = 10000000000
local LAST = 4294967295
local BANDS = { P = 0, L = 1, D = 2, C = 3, X = 4, N = 5 }
local LAST_OPEN = LAST + 2 * BAND
local INDEX = { P = ':waiting', L = ':leases', D = ':delayed' }
local TOTALS = { 'files_packed', 'files_failed', 'source_bytes', 'stored_bytes' }
local PROGRESS = { 'p_files_packed', 'p_files_failed', 'p_source_bytes', 'p_stored_bytes' }
local SUMS = ns .. ':sums'
local woken = false

local function int(number)
  return string.format('%.0f', number)
end

local function key(name, job)
  return ns .. ':' .. name .. ':' .. job
end

local function place_in_order(number, state)
  return int(tonumber(number) + BANDS[state] * BAND)
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

-- What the scripts ask of a job, read once per script and kept up to date. `hold` is '', 'P' (paused) or 'N' (cancelled);
-- 'F' is a job that is being forgotten, which nobody knows any more. `cap` is 0 or the most leases at a time. `walked` is
-- up to which number a walk is counting (see walk.lua).
local jobs = {}

-- The job; otherwise nil and the answer that says why not.
local function job_of(job)
  local f = jobs[job]
  if f then
    return f
  end
  local v = call('HMGET', key('job', job), 'priority', 'weight', 'start', 'hold', 'cap', 'walk', 'P', 'L')
  if not v[1] or v[4] == 'F' then
    return nil, { 'unknown' }
  end
  f = {
    priority = v[1],
    weight = tonumber(v[2]) or 0,
    start = tonumber(v[3]),
    hold = v[4] or '',
    cap = tonumber(v[5] or '0'),
    walked = v[6] and tonumber(string.match(v[6], '^(-?%d+) ')),
    P = tonumber(v[7] or '0'),
    L = tonumber(v[8] or '0'),
  }
  if not (tonumber(v[1]) and f.weight >= 1 and f.start and f.start >= 0 and f.start < 1e300 and f.cap and f.P and f.L)
    or not (f.hold == '' or f.hold == 'P' or f.hold == 'N')
  then
    return nil, { 'invalid', 'job ' .. job .. ' holds values this version cannot read' }
  end
  jobs[job] = f
  return f
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

-- The task when `token` is that of its present lease, and its job; otherwise nil and the answer that says why not.
local function held_task(job, number, token)
  local f, refusal = job_of(job)
  if not f then
    return nil, refusal
  end
  local task, broken = load_task(job, number)
  if broken then
    return nil, unreadable(job, number)
  end
  if not task or task.token ~= token or token == '0' then
    return nil, { 'stale' }
  end
  if task.state == 'N' or (task.state == 'L' and f.hold == 'N') then
    return nil, { 'cancelled' }
  end
  if task.state ~= 'L' then
    return nil, { 'stale' }
  end
  return task, f
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

local function virtual_time(priority)
  return tonumber(call('HGET', ns .. ':virtual', priority)) or 0
end

local function set_start(job, f, start)
  f.start = start
  call('HSET', key('job', job), 'start', string.format('%.17g', start))
end

-- The job stands in the order of service where its start tag says.
local function stand(job, f)
  call('ZADD', key('ready', f.priority), string.format('%.17g', f.start), job)
  call('ZADD', ns .. ':priorities', -tonumber(f.priority), f.priority)
end

local function is_ready(f)
  return f.hold == '' and f.P > 0 and (f.cap == 0 or f.L < f.cap)
end

local function stands(job, f)
  return call('ZSCORE', key('ready', f.priority), job) and true or false
end

-- Puts a job into the order of service or takes it out, as its tasks, its hold and its cap say. One that comes back
-- starts at the virtual time or where it left off, whichever is later.
local function place(job, f)
  if f.stands == nil then
    f.stands = stands(job, f)
  end
  if is_ready(f) == f.stands then
    return
  end
  f.stands = not f.stands
  if f.stands then
    set_start(job, f, math.max(f.start, virtual_time(f.priority)))
    stand(job, f)
    wake()
  else
    leave_order(job, f.priority)
  end
end

-- Changes a sum of a job by what a task adds to it, also in the count of a walk that has passed the task.
local function add_sum(job, f, number, name, by)
  if by ~= 0 then
    call('HINCRBY', key('job', job), name, int(by))
    if f.walked and tonumber(number) <= f.walked then
      call('HINCRBY', key('walk', job), name, int(by))
    end
  end
end

local function four(text, separator)
  local number = '(%d+)' .. separator
  local a, b, c, d = string.match(text, '^' .. number .. number .. number .. '(%d+)')
  return { tonumber(a) or 0, tonumber(b) or 0, tonumber(c) or 0, tonumber(d) or 0 }
end

local function change_sums(job, f, number, names, more, less)
  for i = 1, 4 do
    add_sum(job, f, number, names[i], more[i] - less[i])
  end
end

-- Changes what is kept for all jobs together: X dead tasks, P pending tasks of paused jobs, W waiting bytes. Should that be
-- no number, it begins anew instead of standing in everybody's way; the auditor finds it.
local function add_to_all(name, by)
  local answer = redis.pcall('HINCRBY', SUMS, name, by)
  if type(answer) == 'table' and answer.err then
    call('HSET', SUMS, name, 0)
  end
end

-- Source bytes that wait, of the job and of all jobs.
local function add_waiting(job, f, number, by)
  add_sum(job, f, number, 'W', by)
  if by ~= 0 then
    add_to_all('W', int(by))
  end
end

local NOTHING = { 0, 0, 0, 0 }

-- Replaces an open task's checkpoint ('a b c d TEXT', or nil for none) and what it adds to its job.
local function set_checkpoint(job, f, number, text)
  local hash = key('checkpoints', job)
  local old = call('HGET', hash, number)
  change_sums(job, f, number, PROGRESS, text and four(text, ' ') or NOTHING, old and four(old, ' ') or NOTHING)
  if text then
    call('HSET', hash, number, text)
  elseif old then
    call('HDEL', hash, number)
  end
end

local function count_held(worker, by)
  if call('HINCRBY', ns .. ':held', worker, by) <= 0 then
    call('HDEL', ns .. ':held', worker)
  end
end

-- The one place where a task changes its state. `at` is the time that orders the state's index, `tail` what the task
-- value ends with. What should wait again in a cancelled job is cancelled instead. A task that ends keeps its
-- checkpoint, which no longer counts as progress. Counters go first: should one of them be no number, nothing has moved.
local function move(job, f, number, task, state, at, tail)
  tail = tail or ''
  if f.hold == 'N' and (state == 'P' or state == 'D') then
    state, at, tail = 'N', 0, ''
  end
  local from, from_tail, record = task.state, task.tail, key('job', job)
  if from ~= state then
    if from then
      f[from] = call('HINCRBY', record, from, -1)
    end
    f[state] = call('HINCRBY', record, state, 1)
    local waited, waits = from == 'P' or from == 'D', state == 'P' or state == 'D'
    if waited ~= waits then
      add_waiting(job, f, number, waits and task.bytes or -task.bytes)
    end
    if f.hold == 'P' and (from == 'P' or state == 'P') then
      add_to_all('P', state == 'P' and 1 or -1)
    end
    if from == 'X' or state == 'X' then
      add_to_all('X', state == 'X' and 1 or -1)
    end
    if INDEX[from] and not INDEX[state] then
      local checkpoint = call('HGET', key('checkpoints', job), number)
      if checkpoint then
        change_sums(job, f, number, PROGRESS, NOTHING, four(checkpoint, ' '))
      end
    end
    if INDEX[from] then
      call('ZREM', ns .. INDEX[from], job .. '/' .. number)
    end
    call('ZADD', key('order', job), place_in_order(number, state), number)
    if from == 'L' then
      count_held(from_tail, -1)
    elseif state == 'L' then
      count_held(tail, 1)
    end
  end
  if INDEX[state] then
    call('ZADD', ns .. INDEX[state], int(at), job .. '/' .. number)
  end
  task.state, task.tail = state, tail
  save_task(job, number, task)
  if state == 'D' then
    wake()
  end
  place(job, f)
end

-- Ends a task. Its totals replace those it had, so they are counted once. Its upload is done with.
local function finish(job, f, number, task, state, totals)
  local had = (task.state == 'C' or task.state == 'X') and four(task.tail, ',') or NOTHING
  if INDEX[task.state] then
    set_checkpoint(job, f, number, nil)
  else
    call('HDEL', key('checkpoints', job), number)
  end
  change_sums(job, f, number, TOTALS, four(totals, ','), had)
  move(job, f, number, task, state, 0, totals)
  if state == 'C' then
    call('HDEL', key('messages', job), number)
    call('HDEL', key('histories', job), number)
  end
end

-- Adds an attempt that ended badly to a leased task's history: lines of 'AT TOKEN WORKER MESSAGE', the last five.
local function remember(job, number, task, message)
  local hash = key('histories', job)
  local line = int(NOW) .. ' ' .. task.token .. ' ' .. task.tail .. ' ' .. message
  local lines = call('HGET', hash, number)
  if lines then
    local _, breaks = string.gsub(lines, '\n', '')
    if breaks >= 4 then
      lines = string.match(lines, '^[^\n]*\n(.*)$')
    end
    line = lines .. '\n' .. line
  end
  call('HSET', hash, number, line)
end

-- Gives a task up with a message. It keeps no totals: nobody has counted its files yet.
local function die(job, f, number, task, message)
  call('HSET', key('messages', job), number, message)
  move(job, f, number, task, 'X', 0)
end

-- Removes a task that cannot be read, or is none, from every index; reconciliation adds it again.
local function drop_broken(job, number)
  call('HDEL', key('tasks', job), number)
  call('ZREM', key('order', job), number)
  for _, index in pairs(INDEX) do
    call('ZREM', ns .. index, job .. '/' .. number)
  end
end

-- The first entries of an index whose time has come, as { job, number, entry }. An entry that names no task is removed.
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

-- The task an index entry stands for and its job; nil, and the entry is removed, when the two disagree.
local function indexed_task(entry, state)
  local f, refusal = job_of(entry[1])
  local task = load_task(entry[1], entry[2])
  if f and task and task.state == state then
    return task, f
  end
  call('ZREM', ns .. INDEX[state], entry[3])
  if f and not task then
    drop_broken(entry[1], entry[2])
  elseif task and task.state == 'L' and state == 'L' and refusal[1] == 'unknown' then
    -- Its job is being forgotten: its holder is told so, and the cleaning finds it gone.
    drop_broken(entry[1], entry[2])
    count_held(task.tail, -1)
  end
  return nil
end

local function revive(limit)
  local revived = 0
  for _, entry in ipairs(due(':delayed', limit)) do
    local task, f = indexed_task(entry, 'D')
    if task then
      move(entry[1], f, entry[2], task, 'P', NOW)
      if task.state == 'P' then
        revived = revived + 1
      end
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
    call('HDEL', ns .. ':running', unpack(gone))
  end
end

-- A worker is alive. `info` is 'SLOTS NAME'.
local function see_worker(worker, info, lease)
  prune_workers(lease)
  call('ZADD', ns .. ':workers', NOW, worker)
  call('HSET', ns .. ':worker', worker, info)
end
