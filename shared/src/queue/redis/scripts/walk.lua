-- One step of a walk over a job's tasks by number. ARGV: job, the walk's id or '' to begin, most tasks of this step, '1'
-- to put right what is wrong, most violations to name, lease in ms.
-- Answers 'more', 'done' or 'lost' (another walk began), the id, the violations, and how many there were.
--
-- Other scripts run between the steps. Each task is compared with the indexes in one step. What tasks add up to is
-- counted in a hash of the walk: whoever changes what a task behind the walk adds to its job changes that count, too
-- (add_sum), so in the end it must be equal to what the job has kept, however busy the job is.
local job, id, limit, fix = ARGV[1], ARGV[2], tonumber(ARGV[3]), ARGV[4] == '1'
local record, walk, order = key('job', job), key('walk', job), key('order', job)
local found, wrong = {}, 0
local function violated(text)
  wrong = wrong + 1
  if #found < tonumber(ARGV[5]) then
    found[#found + 1] = text
  end
end

local listed = call('ZSCORE', ns .. ':jobs', job)
if fix and listed then
  -- The share is put right by whoever knows it.
  for name, default in pairs({ priority = '0', weight = '1', start = '0', cap = '0', P = '0', L = '0' }) do
    local text = call('HGET', record, name)
    local kept = tonumber(text or (name == 'P' or name == 'L') and '0')
    local least = name == 'weight' and 1 or (name == 'start' or name == 'cap') and 0 or -9007199254740992
    if not (kept and kept >= least and kept < 1e300) then
      violated('job ' .. job .. ': ' .. name .. ' is no number it can be')
      call('HSET', record, name, default)
    end
  end
  local hold = call('HGET', record, 'hold')
  if hold and hold ~= '' and hold ~= 'P' and hold ~= 'N' then
    violated('job ' .. job .. ': its hold is none this version knows')
    call('HSET', record, 'hold', '')
  end
end
local f = job_of(job)
if not f then
  if listed then
    return { 'ok', 'done', id, { 'job ' .. job .. ' is listed, and its record is missing or cannot be read' }, 1 }
  end
  return { 'unknown' }
end

local walked = -1
if id == '' then
  id = int(call('HINCRBY', SUMS, 'walks', 1))
  call('DEL', walk)
else
  local upto, whose = string.match(call('HGET', record, 'walk') or '', '^(-?%d+) (%d+)$')
  if whose ~= id then
    return { 'ok', 'lost', id, found, wrong }
  end
  walked = tonumber(upto)
end

-- Sums of this step; moved to the walk's hash, whose numbers are exact beyond 2^53, before they are not.
local sums = {}
local function flush(name)
  if (sums[name] or 0) > 0 then
    call('HINCRBY', walk, name, int(sums[name]))
    sums[name] = 0
  end
end

local function count(names, values)
  for i, value in ipairs(values) do
    if (sums[names[i]] or 0) + value > 9007199254740991 then
      flush(names[i])
    end
    sums[names[i]] = (sums[names[i]] or 0) + value
  end
end

-- Compares one task with the indexes and counts what it adds to its job.
local function check(number)
  local name = 'task ' .. job .. '/' .. number
  local task = string.match(number, '^%d+$') and load_task(job, number)
  if not task then
    violated(name .. ' holds a value this version cannot read')
    if fix then
      drop_broken(job, number)
    end
    return
  end
  if call('ZSCORE', order, number) ~= place_in_order(number, task.state) then
    violated(name .. ' is ' .. task.state .. ' and has a wrong place in ' .. order)
    if fix then
      call('ZADD', order, place_in_order(number, task.state), number)
    end
  end
  for state, index in pairs(INDEX) do
    local indexed = call('ZSCORE', ns .. index, job .. '/' .. number)
    if state == task.state and not indexed then
      violated(name .. ' is ' .. state .. ' and missing in ' .. ns .. index)
      if fix then
        call('ZADD', ns .. index, int(NOW + (state == 'L' and tonumber(ARGV[6]) or 0)), job .. '/' .. number)
      end
    elseif state ~= task.state and indexed then
      violated(name .. ' is ' .. task.state .. ' and also in ' .. ns .. index)
      if fix then
        call('ZREM', ns .. index, job .. '/' .. number)
      end
    end
  end
  if task.state == 'P' or task.state == 'D' then
    count({ 'W' }, { task.bytes })
  elseif task.state == 'C' or task.state == 'X' then
    count(TOTALS, four(task.tail, ','))
  end
  local checkpoint = call('HGET', key('checkpoints', job), number)
  if checkpoint and INDEX[task.state] then
    count(PROGRESS, four(checkpoint, ' '))
  elseif checkpoint and task.state == 'C' then
    violated(name .. ' is committed and still has a checkpoint')
    if fix then
      call('HDEL', key('checkpoints', job), number)
    end
  end
end

local step = numbers(job, walked + 1, limit)
for _, number in ipairs(step) do
  check(number)
end
for name in pairs(sums) do
  flush(name)
end
if #step == limit then
  walked = tonumber(step[#step]) or walked
  call('HSET', record, 'walk', int(walked) .. ' ' .. id)
  call('EXPIRE', walk, 3600)
  return { 'ok', 'more', id, found, wrong }
end

local function compare(name, counted)
  local kept = call('HGET', record, name) or '0'
  if kept ~= counted then
    violated('job ' .. job .. ': ' .. name .. ' is ' .. kept .. ', counting gives ' .. counted)
    if fix then
      call('HSET', record, name, counted)
    end
  end
end

if call('HLEN', key('tasks', job)) ~= call('ZCARD', order) then
  violated(order .. ' has another number of entries than the job has tasks')
end
for state, band in pairs(BANDS) do
  compare(state, int(call('ZCOUNT', order, int(band * BAND), int(LAST + band * BAND))))
end
for _, names in ipairs({ { 'W' }, TOTALS, PROGRESS }) do
  for _, name in ipairs(names) do
    compare(name, call('HGET', walk, name) or '0')
  end
end
call('HDEL', record, 'walk')
call('DEL', walk)
if fix then
  jobs[job] = nil
  f = job_of(job)
end
f.stands = stands(job, f)
if f.stands ~= is_ready(f) then
  violated('job ' .. job .. ' has ' .. int(f.P) .. ' pending and ' .. int(f.L) .. ' leased tasks, its hold is "' .. f.hold
    .. '", and its place in the order of service says otherwise')
  if fix then
    place(job, f)
  end
end
return { 'ok', 'done', id, found, wrong }
