-- ARGV: worker, its info, lease in ms, most tasks to show with it, then job, number, token and bytes done of each lease
-- it believes it holds. Answers 0 lost, 1 held, 2 to be handed back, 3 cancelled for each.
local lease = tonumber(ARGV[3])
see_worker(ARGV[1], ARGV[2], lease)
local answers, running = {}, {}
for i = 5, #ARGV, 4 do
  local id = ARGV[i] .. '/' .. ARGV[i + 1]
  local task, f = held_task(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  local answer = 0
  if task then
    call('ZADD', ns .. ':leases', int(NOW + lease), id)
    answer = f.hold == 'P' and 2 or 1
    if #running < tonumber(ARGV[4]) then
      running[#running + 1] = id .. ' ' .. ARGV[i + 2] .. ' ' .. ARGV[i + 3]
    end
  elseif f[1] == 'cancelled' then
    answer = 3
  end
  answers[#answers + 1] = answer
end
if #running > 0 then
  call('HSET', ns .. ':running', ARGV[1], table.concat(running, '\n'))
else
  call('HDEL', ns .. ':running', ARGV[1])
end
return { 'ok', answers }
