-- ARGV: job, first number, most tasks. Answers with { number, value, message } by number.
local job, from, limit = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
if not job_known(job) then
  return { 'unknown' }
end
-- `order` holds pending tasks in front and all others behind: two runs to merge.
local order = key('order', job)
local pending = call('ZRANGEBYSCORE', order, int(from), LAST, 'LIMIT', 0, limit)
local others = call('ZRANGEBYSCORE', order, int(from + BEHIND), int(LAST + BEHIND), 'LIMIT', 0, limit)
local found, p, o = {}, 1, 1
while #found < limit and (pending[p] or others[o]) do
  local number
  if not others[o] or (pending[p] and pending[p] < others[o]) then
    number = pending[p]
    p = p + 1
  else
    number = others[o]
    o = o + 1
  end
  found[#found + 1] =
    { number, call('HGET', key('tasks', job), number), call('HGET', key('messages', job), number) }
end
return { 'ok', found }
