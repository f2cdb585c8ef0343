-- ARGV: job. Answers with its counters in the order of JobCounters.
local job = ARGV[1]
local values = call('HMGET', key('job', job), 'P', 'L', 'D', 'C', 'X', 'N',
  'files_packed', 'files_failed', 'source_bytes', 'stored_bytes',
  'p_files_packed', 'p_files_failed', 'p_source_bytes', 'p_stored_bytes', 'priority', 'hold')
if not values[15] or values[16] == 'F' then
  return { 'unknown' }
end
local counters = {}
for i = 1, 14 do
  counters[i] = values[i] or '0'
end
return { 'ok', counters }
