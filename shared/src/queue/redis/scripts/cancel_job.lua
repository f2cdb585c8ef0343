-- ARGV: job, most tasks of this step. Answers how many are still open.
local job = ARGV[1]
local f, refusal = job_of(job)
if not f then
  return refusal
end
if f.hold ~= 'N' then
  if f.hold == 'P' then
    add_to_all('P', int(0 - f.P))
  end
  f.hold = 'N'
  call('HSET', key('job', job), 'hold', 'N')
  place(job, f)
end
local order = key('order', job)
if tonumber(ARGV[2]) > 0 then
  for _, number in ipairs(call('ZRANGEBYSCORE', order, 0, LAST_OPEN, 'LIMIT', 0, ARGV[2])) do
    local task = load_task(job, number)
    if not task then
      drop_broken(job, number)
    elseif INDEX[task.state] then
      move(job, f, number, task, 'N', 0)
    else
      call('ZADD', order, place_in_order(number, task.state), number)
    end
  end
end
return { 'ok', call('ZCOUNT', order, 0, LAST_OPEN) }
