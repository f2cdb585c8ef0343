-- Milliseconds until a claim may succeed: 0 now, -1 not known.
if call('ZCARD', ns .. ':priorities') > 0 then
  return { 'ok', 0 }
end
local first = call('ZRANGE', ns .. ':delayed', 0, 0, 'WITHSCORES')[2]
if not first then
  return { 'ok', -1 }
end
return { 'ok', math.max(tonumber(first) - NOW, 0) }
