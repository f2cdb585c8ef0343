-- The usual commit in one straight line, in front of the general one: the lease is the caller's, the task has no checkpoint,
-- and its job no cap, is not cancelled and under no audit. Whatever is not as usual, or cannot be read, is left to the
-- general script, before anything was written.
do
  local call, ns, job, number = redis.call, KEYS[1], ARGV[1], ARGV[2]
  local value = call('HGET', ns .. ':tasks:' .. job, number)
  local size, token, attempts, worker
  if value then
    size, token, attempts, worker = string.match(value, '^L:(%d+):(%d+):(%d+):([%w-]+)$')
  end
  local record = token == ARGV[3] and token ~= '0' and #size < 17 and #attempts < 11
    and call('HEXISTS', ns .. ':checkpoints:' .. job, number) == 0 and ns .. ':job:' .. job
  local v = record and call('HMGET', record, 'priority', 'hold', 'cap', 'walk', 'L', 'C',
    'files_packed', 'files_failed', 'source_bytes', 'stored_bytes')
  local hold = v and v[2] or ''
  if v and v[1] and (hold == '' or hold == 'P') and (v[3] or '0') == '0' and not v[4] then
    local packed, failed, source, stored = string.match(ARGV[4], '^(%d+),(%d+),(%d+),(%d+)$')
    local leased, committed = tonumber(v[5]), tonumber(v[6] or '0')
    local a, b = tonumber(v[7] or '0'), tonumber(v[8] or '0')
    local c, d = tonumber(v[9] or '0'), tonumber(v[10] or '0')
    if packed and leased and leased > 0 and committed and a and b and c and d then
      a, b, c, d = a + packed, b + failed, c + source, d + stored
      -- Doubles count exactly below 2^53.
      if math.max(a, b, c, d) < 9007199254740992 and math.min(a, b, c, d) >= 0 then
        -- First what may be no number, as then nothing has changed yet.
        if call('HINCRBY', ns .. ':held', worker, -1) <= 0 then
          call('HDEL', ns .. ':held', worker)
        end
        call('HSET', record, 'L', leased - 1, 'C', committed + 1, 'files_packed', a, 'files_failed', b,
          'source_bytes', c, 'stored_bytes', d)
        call('ZREM', ns .. ':leases', job .. '/' .. number)
        call('ZADD', ns .. ':order:' .. job, '3' .. number, number)
        call('HSET', ns .. ':tasks:' .. job, number, 'C:' .. size .. ':' .. token .. ':' .. attempts .. ':' .. ARGV[4])
        call('HDEL', ns .. ':messages:' .. job, number)
        call('HDEL', ns .. ':histories:' .. job, number)
        return { 'ok' }
      end
    end
  end
end

