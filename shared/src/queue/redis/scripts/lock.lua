-- ARGV: name, holder, ttl in ms. The value is 'TOKEN UNTIL HOLDER'.
local lock = key('lock', ARGV[1])
local token, till, holder = string.match(call('GET', lock) or '', '^(%d+) (%d+) (.*)$')
if token and tonumber(till) > NOW then
  if holder ~= ARGV[2] then
    return { 'ok', false }
  end
else
  token = next_token()
end
local ttl = tonumber(ARGV[3])
-- The time in the value decides; the key's own end, a minute later, only keeps forgotten locks from piling up.
call('SET', lock, token .. ' ' .. int(NOW + ttl) .. ' ' .. ARGV[2], 'PX', int(ttl + 60000))
return { 'ok', token }
