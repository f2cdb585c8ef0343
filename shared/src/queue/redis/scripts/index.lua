-- One step of a walk over the index of a state. ARGV: state, cursor, about how many, '1' to remove what stands for no
-- task, most violations to name. Answers the next cursor, the violations, and how many there were.
local state, fix = ARGV[1], ARGV[4] == '1'
local index = ns .. INDEX[state]
local found, wrong = {}, 0
local page = call('ZSCAN', index, ARGV[2], 'COUNT', ARGV[3])
for i = 1, #page[2], 2 do
  local id = page[2][i]
  local job, number = string.match(id, '^([%x-]+)/(%d+)$')
  -- A job that is being forgotten loses its entries step by step.
  if not job or call('HGET', key('job', job), 'hold') ~= 'F' then
    local task = job and job_of(job) and load_task(job, number)
    if not task or task.state ~= state then
      wrong = wrong + 1
      if #found < tonumber(ARGV[5]) then
        found[#found + 1] = index .. ' has an entry that stands for no task of that state: ' .. string.sub(id, 1, 100)
      end
      if fix then
        call('ZREM', index, id)
      end
    end
  end
end
return { 'ok', page[1], found, wrong }
