-- ARGV: job, then number and bytes of each task.
local job = ARGV[1]
if not job_known(job) then
  return { 'unknown' }
end
local added = 0
for i = 2, #ARGV, 2 do
  local number = ARGV[i]
  if call('HEXISTS', key('tasks', job), number) == 0 then
    enter_state(job, number, { bytes = tonumber(ARGV[i + 1]), token = '0', attempts = 0 }, 'P', NOW)
    added = added + 1
  end
end
return { 'ok', added }
