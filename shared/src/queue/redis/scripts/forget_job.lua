-- ARGV: job.
local job = ARGV[1]
if not job_known(job) then
  return { 'ok' }
end
local fields = call('HMGET', key('job', job), 'priority', 'X')
for _, number in ipairs(call('HKEYS', key('tasks', job))) do
  local task = load_task(job, number)
  if task and task.state == 'L' and call('HINCRBY', ns .. ':held', task.tail, -1) <= 0 then
    call('HDEL', ns .. ':held', task.tail)
  end
  for state, index in pairs(INDEX) do
    if not task or task.state == state then
      call('ZREM', ns .. index, job .. '/' .. number)
    end
  end
end
if fields[1] then
  leave_order(job, fields[1])
end
call('DECRBY', ns .. ':dead', fields[2] or '0')
call('ZREM', ns .. ':jobs', job)
call('UNLINK', key('job', job), key('tasks', job), key('order', job), key('checkpoints', job), key('messages', job))
return { 'ok' }
