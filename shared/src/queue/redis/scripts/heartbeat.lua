-- ARGV: worker, its info, lease in ms, then job, number and token of each lease it believes it holds.
local lease = tonumber(ARGV[3])
see_worker(ARGV[1], ARGV[2], lease)
local held = {}
for i = 4, #ARGV, 3 do
  local task = held_task(ARGV[i], ARGV[i + 1], ARGV[i + 2])
  if task then
    call('ZADD', ns .. ':leases', int(NOW + lease), ARGV[i] .. '/' .. ARGV[i + 1])
  end
  held[#held + 1] = task and 1 or 0
end
return { 'ok', held }
