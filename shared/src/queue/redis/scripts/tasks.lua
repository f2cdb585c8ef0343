-- ARGV: job, first number, most tasks. Answers with { number, value, message, history, checkpoint } by number.
local job = ARGV[1]
local f, refusal = job_of(job)
if not f then
  return refusal
end
local found = {}
for _, number in ipairs(numbers(job, tonumber(ARGV[2]), tonumber(ARGV[3]))) do
  found[#found + 1] = {
    number,
    call('HGET', key('tasks', job), number),
    call('HGET', key('messages', job), number),
    call('HGET', key('histories', job), number),
    call('HGET', key('checkpoints', job), number),
  }
end
return { 'ok', found }
