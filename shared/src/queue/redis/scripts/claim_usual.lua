-- The usual claim in one straight line, in front of the general one: one task is wanted, no retry is due, and the job to
-- serve has further tasks, no cap and no audit under way. It is most of what a busy queue does. Whatever is not as usual,
-- or cannot be read, is left to the general script, before anything was written.
do
  local call, ns, worker = redis.call, KEYS[1], ARGV[1]
  local now_us = read_now_us()
  local now = math.floor(now_us / 1000)
  local priority = ARGV[4] == '1'
    and #call('ZRANGEBYSCORE', ns .. ':delayed', '-inf', now, 'LIMIT', 0, 1) == 0
    and call('ZRANGE', ns .. ':priorities', 0, 0)[1]
  local ready = priority and ns .. ':ready:' .. priority
  local job = ready and call('ZRANGE', ready, 0, 0)[1]
  local record = job and ns .. ':job:' .. job
  local v = record and call('HMGET', record, 'priority', 'weight', 'start', 'hold', 'cap', 'walk', 'P', 'L', 'W')
  if v and v[1] == priority and (v[4] or '') == '' and (v[5] or '0') == '0' and not v[6] then
    local weight, start = tonumber(v[2]), tonumber(v[3])
    local pending, leased, waiting = tonumber(v[7]), tonumber(v[8] or '0'), tonumber(v[9] or '0')
    local number = pending and pending > 1 and call('ZRANGE', ns .. ':order:' .. job, 0, 0)[1]
    local value = number and call('HGET', ns .. ':tasks:' .. job, number)
    local size, token, attempts
    if value then
      size, token, attempts = string.match(value, '^P:(%d+):(%d+):(%d+):$')
    end
    local last = size and tonumber(call('GET', ns .. ':token') or '0')
    if last and #size < 16 and #token < 17 and #attempts < 10 and weight and weight >= 1 and start and start >= 0
      and start < 1e300
      and leased and waiting and waiting < 9007199254740992 and waiting >= tonumber(size)
      and math.max(last + 1, now_us) < 9007199254740992
    then
      local id, bytes = job .. '/' .. number, tonumber(size)
      local after = start + math.max(bytes, 1) / weight
      local checkpoint = token ~= '0' and call('HGET', ns .. ':checkpoints:' .. job, number)
      token = string.format('%.0f', math.max(last + 1, now_us))
      attempts = string.format('%.0f', attempts + 1)
      -- First what may be no number, as then nothing has changed yet.
      call('HINCRBY', ns .. ':held', worker, 1)
      call('HSET', record, 'start', after, 'P', pending - 1, 'L', leased + 1, 'W', waiting - bytes)
      -- Should that be no number, it begins anew; the auditor finds it.
      if bytes > 0 and type(redis.pcall('HINCRBY', ns .. ':sums', 'W', '-' .. size)) == 'table' then
        call('HSET', ns .. ':sums', 'W', 0)
      end
      call('SET', ns .. ':token', token)
      call('HSET', ns .. ':virtual', priority, v[3])
      call('ZADD', ready, after, job)
      call('ZREM', ns .. ':waiting', id)
      call('ZADD', ns .. ':leases', now + tonumber(ARGV[3]), id)
      call('ZADD', ns .. ':order:' .. job, 8589934592 + number, number)
      call('HSET', ns .. ':tasks:' .. job, number, 'L:' .. size .. ':' .. token .. ':' .. attempts .. ':' .. worker)
      if call('ZADD', ns .. ':workers', now, worker) == 1 then
        call('HSET', ns .. ':worker', worker, ARGV[2])
      end
      return { 'ok', { { id, token, attempts, checkpoint } } }
    end
  end
end

