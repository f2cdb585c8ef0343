-- ARGV: job. Answers with its counters in the order of JobCounters.
local job = ARGV[1]
if not job_known(job) then
  return { 'unknown' }
end
local values = call('HMGET', key('job', job), 'P', 'L', 'D', 'C', 'X', 'N',
  'files_packed', 'files_failed', 'source_bytes', 'stored_bytes',
  'p_files_packed', 'p_files_failed', 'p_source_bytes', 'p_stored_bytes')
for i = 1, #values do
  values[i] = values[i] or '0'
end
return { 'ok', values }
