-- ARGV: lease in ms. Answers with { worker, idle ms, 'SLOTS NAME', leases }.
local found = {}
local seen = call('ZRANGEBYSCORE', ns .. ':workers', '(' .. int(NOW - 2 * tonumber(ARGV[1])), '+inf', 'WITHSCORES')
for i = 1, #seen, 2 do
  found[#found + 1] = {
    seen[i],
    int(math.max(NOW - tonumber(seen[i + 1]), 0)),
    call('HGET', ns .. ':worker', seen[i]),
    call('HGET', ns .. ':held', seen[i]) or '0',
  }
end
return { 'ok', found }
