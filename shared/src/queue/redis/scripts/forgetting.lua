-- Removes at most `limit` open tasks of a job that nobody knows any more from the indexes, and with the last of them all
-- that is left of the job. Returns how many are left.
local function forget_step(job, limit)
  local tasks, order = key('tasks', job), key('order', job)
  if limit > 0 then
    for _, number in ipairs(call('ZRANGEBYSCORE', order, 0, LAST_OPEN, 'LIMIT', 0, limit)) do
      local task = load_task(job, number)
      if task and task.state == 'L' then
        count_held(task.tail, -1)
      end
      drop_broken(job, number)
    end
  end
  local left = call('ZCOUNT', order, 0, LAST_OPEN)
  if left == 0 then
    call('UNLINK', key('job', job), tasks, order, key('checkpoints', job), key('messages', job), key('histories', job),
      key('walk', job))
    call('ZREM', ns .. ':forgotten', job)
    if call('EXISTS', ns .. ':jobs', ns .. ':forgotten') == 0 then
      -- Nothing remains to be fair about, nor to be counted.
      call('DEL', ns .. ':virtual', SUMS)
    end
  end
  return left
end
