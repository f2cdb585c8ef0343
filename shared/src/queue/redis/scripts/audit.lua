-- ARGV: most violations to name. Reads everything in one step and changes nothing; other clients wait, for a time that
-- grows with the number of tasks.
local found = {}
local function violated(text)
  if #found < tonumber(ARGV[1]) then
    found[#found + 1] = text
  end
end

local sizes = { P = 0, L = 0, D = 0, X = 0 }
local held, ready = {}, 0

-- Checks one task against the indexes; adds what it counts to `sums`.
local function audit_task(job, number, counts, sums)
  local id = job .. '/' .. number
  local task = load_task(job, number)
  if not task then
    return violated('task ' .. id .. ' holds a value this version cannot read')
  end
  counts[task.state] = (counts[task.state] or 0) + 1
  if sizes[task.state] then
    sizes[task.state] = sizes[task.state] + 1
  end
  for state, index in pairs(INDEX) do
    local indexed = call('ZSCORE', ns .. index, id)
    if state == task.state and not indexed then
      violated('task ' .. id .. ' is ' .. state .. ' and missing in ' .. ns .. index)
    elseif state ~= task.state and indexed then
      violated('task ' .. id .. ' is ' .. task.state .. ' and also in ' .. ns .. index)
    end
  end
  local score = tonumber(call('ZSCORE', key('order', job), number))
  if score ~= tonumber(number) + (task.state == 'P' and 0 or BEHIND) then
    violated('task ' .. id .. ' is ' .. task.state .. ' and has a wrong place in ' .. key('order', job))
  end
  if task.state == 'L' then
    held[task.tail] = (held[task.tail] or 0) + 1
  elseif task.state == 'C' or task.state == 'X' then
    for i, value in ipairs(four(task.tail, ',')) do
      sums[TOTALS[i]] = (sums[TOTALS[i]] or 0) + value
    end
  end
  local checkpoint = call('HGET', key('checkpoints', job), number)
  if checkpoint then
    if not INDEX[task.state] then
      violated('task ' .. id .. ' is ' .. task.state .. ' and still has a checkpoint')
    end
    for i, value in ipairs(four(checkpoint, ' ')) do
      sums[PROGRESS[i]] = (sums[PROGRESS[i]] or 0) + value
    end
  end
end

local function audit_job(job)
  local counts, sums, tasks = {}, {}, 0
  for _, number in ipairs(call('HKEYS', key('tasks', job))) do
    tasks = tasks + 1
    audit_task(job, number, counts, sums)
  end
  if call('ZCARD', key('order', job)) ~= tasks then
    violated(key('order', job) .. ' has another number of entries than the job has tasks')
  end
  for _, group in ipairs({ { counts, { 'P', 'L', 'D', 'C', 'X', 'N' } }, { sums, TOTALS }, { sums, PROGRESS } }) do
    for _, name in ipairs(group[2]) do
      local kept = call('HGET', key('job', job), name) or '0'
      if kept ~= int(group[1][name] or 0) then
        violated('job ' .. job .. ': counter ' .. name .. ' is ' .. kept .. ', counting gives ' .. int(group[1][name] or 0))
      end
    end
  end
  local priority = call('HGET', key('job', job), 'priority') or '0'
  local stands = call('ZSCORE', key('ready', priority), job) and true or false
  if stands ~= ((counts.P or 0) > 0) then
    violated('job ' .. job .. ' has ' .. int(counts.P or 0) .. ' pending tasks and its place in the order says otherwise')
  end
  if stands then
    ready = ready + 1
  end
end

for _, job in ipairs(call('ZRANGE', ns .. ':jobs', 0, -1)) do
  audit_job(job)
end
for state, index in pairs(INDEX) do
  if call('ZCARD', ns .. index) ~= sizes[state] then
    violated(ns .. index .. ' has ' .. int(call('ZCARD', ns .. index)) .. ' entries; the tasks account for ' .. int(sizes[state]))
  end
end
if (call('GET', ns .. ':dead') or '0') ~= int(sizes.X) then
  violated(ns .. ':dead is ' .. call('GET', ns .. ':dead') .. '; the tasks account for ' .. int(sizes.X))
end
local places = 0
for _, priority in ipairs(call('ZRANGE', ns .. ':priorities', 0, -1)) do
  local size = call('ZCARD', key('ready', priority))
  if size == 0 then
    violated('priority ' .. priority .. ' is listed and no job of it is ready')
  end
  places = places + size
end
if places ~= ready then
  violated('the order of service has ' .. int(places) .. ' jobs; ' .. int(ready) .. ' have pending tasks')
end
local kept = call('HGETALL', ns .. ':held')
for i = 1, #kept, 2 do
  if kept[i + 1] ~= int(held[kept[i]] or 0) then
    violated('worker ' .. kept[i] .. ': ' .. kept[i + 1] .. ' leases counted, tasks name it ' .. int(held[kept[i]] or 0) .. ' times')
  end
  held[kept[i]] = nil
end
for worker in pairs(held) do
  violated('worker ' .. worker .. ' holds tasks and is not in ' .. ns .. ':held')
end
return { 'ok', found }
