local oldest = call('ZRANGE', ns .. ':waiting', 0, 0, 'WITHSCORES')[2]
local age = 0
if oldest then
  age = math.max(NOW - tonumber(oldest), 0)
end
return { 'ok', {
  int(call('ZCARD', ns .. ':waiting')),
  int(call('ZCARD', ns .. ':delayed')),
  int(call('ZCARD', ns .. ':leases')),
  call('GET', ns .. ':dead') or '0',
  int(age),
  int(call('ZCARD', ns .. ':jobs')),
} }
