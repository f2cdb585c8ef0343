-- One step of a walk over a job's task values in no order. ARGV: job, cursor, about how many. Tasks that are missing in
-- `order`, where all other walks look, are put there; what cannot be read is removed. Answers the next cursor and how
-- many were wrong.
local job, wrong = ARGV[1], 0
if not call('ZSCORE', ns .. ':jobs', job) then
  return { 'unknown' }
end
local page = call('HSCAN', key('tasks', job), ARGV[2], 'COUNT', ARGV[3])
for i = 1, #page[2], 2 do
  local number = page[2][i]
  local task = string.match(number, '^%d%d%d%d%d%d%d%d%d%d$') and load_task(job, number)
  if not task then
    drop_broken(job, number)
    wrong = wrong + 1
  elseif not call('ZSCORE', key('order', job), number) then
    call('ZADD', key('order', job), place_in_order(number, task.state), number)
    wrong = wrong + 1
  end
end
return { 'ok', page[1], wrong }
