local oldest = call('ZRANGE', ns .. ':waiting', 0, 0, 'WITHSCORES')[2]
local age = 0
if oldest then
  age = math.max(NOW - tonumber(oldest), 0)
end
local sums = call('HMGET', SUMS, 'X', 'P', 'W')
return { 'ok', {
  int(call('ZCARD', ns .. ':waiting')),
  int(call('ZCARD', ns .. ':delayed')),
  int(call('ZCARD', ns .. ':leases')),
  sums[1] or '0',
  int(age),
  int(call('ZCARD', ns .. ':jobs')),
  sums[2] or '0',
  sums[3] or '0',
} }
