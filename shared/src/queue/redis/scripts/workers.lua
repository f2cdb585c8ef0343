-- ARGV: lease in ms. Answers with { worker, idle ms, 'SLOTS NAME', leases, { task, bytes done, bytes, ... } }.
local found = {}
local seen = call('ZRANGEBYSCORE', ns .. ':workers', '(' .. int(NOW - 2 * tonumber(ARGV[1])), '+inf', 'WITHSCORES')
for i = 1, #seen, 2 do
  local tasks = {}
  for job, number, token, done in
    string.gmatch(call('HGET', ns .. ':running', seen[i]) or '', '([%x-]+)/(%d+) (%d+) (%d+)')
  do
    -- Named in its last heartbeat; shown while it is still held.
    local task = load_task(job, number)
    if task and task.state == 'L' and task.token == token then
      tasks[#tasks + 1] = job .. '/' .. number
      tasks[#tasks + 1] = done
      tasks[#tasks + 1] = int(task.bytes)
    end
  end
  found[#found + 1] = {
    seen[i],
    int(math.max(NOW - tonumber(seen[i + 1]), 0)),
    call('HGET', ns .. ':worker', seen[i]),
    call('HGET', ns .. ':held', seen[i]) or '0',
    tasks,
  }
end
return { 'ok', found }
