-- ARGV: name, holder.
local lock = key('lock', ARGV[1])
local holder = string.match(call('GET', lock) or '', '^%d+ %d+ (.*)$')
if holder == ARGV[2] then
  call('DEL', lock)
end
return { 'ok' }
