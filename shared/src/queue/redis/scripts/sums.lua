-- What is kept for all jobs together, counted again from what is kept for each, in one step: takes as long as there are
-- jobs and leases. ARGV: '1' to put right what is wrong, most violations to name, most leases to look at.
-- Answers the violations and how many there were.
local fix = ARGV[1] == '1'
local found, wrong = {}, 0
local function violated(text)
  wrong = wrong + 1
  if #found < tonumber(ARGV[2]) then
    found[#found + 1] = text
  end
end

-- Added up by the server: its numbers are exact beyond 2^53.
local tally = ns .. ':tally'
call('DEL', tally)
local function count(name, text)
  if text and string.match(text, '^[1-9]%d*$') and #text <= 19 then
    redis.pcall('HINCRBY', tally, name, text)
  end
end
for _, job in ipairs(call('ZRANGE', ns .. ':jobs', 0, -1)) do
  local fields = call('HMGET', key('job', job), 'X', 'P', 'W', 'hold')
  count('X', fields[1])
  count('P', fields[4] == 'P' and fields[2])
  count('W', fields[3])
  local f = job_of(job)
  if f and is_ready(f) and not call('ZSCORE', ns .. ':priorities', f.priority) then
    violated('job ' .. job .. ' is ready, and its priority is not listed')
    if fix then
      call('ZADD', ns .. ':priorities', -tonumber(f.priority), f.priority)
    end
  end
end
for _, name in ipairs({ 'X', 'P', 'W' }) do
  local kept, counted = call('HGET', SUMS, name) or '0', call('HGET', tally, name) or '0'
  if kept ~= counted then
    violated(SUMS .. ': ' .. name .. ' is ' .. kept .. '; the jobs have ' .. counted)
    if fix then
      call('HSET', SUMS, name, counted)
    end
  end
end
call('DEL', tally)

for _, priority in ipairs(call('ZRANGE', ns .. ':priorities', 0, -1)) do
  local ready = key('ready', priority)
  for _, job in ipairs(call('ZRANGE', ready, 0, -1)) do
    local f = job_of(job)
    if not f or f.priority ~= priority or not is_ready(f) then
      violated('job ' .. job .. ' stands in ' .. ready .. ' and is not ready')
      if fix then
        call('ZREM', ready, job)
      end
    end
  end
  if call('EXISTS', ready) == 0 then
    violated('priority ' .. priority .. ' is listed and no job of it is ready')
    if fix then
      call('ZREM', ns .. ':priorities', priority)
    end
  end
end

if call('ZCARD', ns .. ':leases') <= tonumber(ARGV[3]) then
  local held = {}
  for _, id in ipairs(call('ZRANGE', ns .. ':leases', 0, -1)) do
    local job, number = string.match(id, '^([%x-]+)/(%d+)$')
    local task = job and load_task(job, number)
    if task and task.state == 'L' then
      held[task.tail] = (held[task.tail] or 0) + 1
    end
  end
  local kept = call('HGETALL', ns .. ':held')
  for i = 1, #kept, 2 do
    held[kept[i]] = (held[kept[i]] or 0) - (tonumber(kept[i + 1]) or 0)
  end
  for worker, missing in pairs(held) do
    if missing ~= 0 then
      violated('worker ' .. worker .. ': the leases it is said to hold and the tasks that name it differ by '
        .. int(missing))
      if fix then
        count_held(worker, int(missing))
      end
    end
  end
end
return { 'ok', found, wrong }
