-- ARGV: job, most tasks of this step. From the first step on nobody knows the job. Answers how many open tasks are left.
local job = ARGV[1]
local record = key('job', job)
local f = call('HMGET', record, 'priority', 'hold', 'P', 'X', 'W')
if f[2] ~= 'F' then
  if not f[1] and not call('ZSCORE', ns .. ':jobs', job) then
    return { 'ok', 0 }
  end
  leave_order(job, f[1] or '0')
  local function take_away(name, text)
    -- As text: a double would not be exact beyond 2^53.
    if text and string.match(text, '^[1-9]%d*$') and #text <= 19 then
      add_to_all(name, '-' .. text)
    end
  end
  take_away('X', f[4])
  take_away('W', f[5])
  take_away('P', f[2] == 'P' and f[3])
  call('HSET', record, 'hold', 'F')
  call('ZREM', ns .. ':jobs', job)
  call('ZADD', ns .. ':forgotten', 0, job)
end
return { 'ok', forget_step(job, tonumber(ARGV[2])) }
