-- The usual exchange, in front of the general one: every finished task is the worker's own, without a checkpoint; no retry is
-- due; the jobs have further tasks behind those that are claimed, no cap and no audit under way. It is most of what a busy
-- queue does. Everything is read first; whatever is not as usual, or cannot be read, is left to the general script before
-- anything was written. Then each key is written once for all tasks together: a call of a command takes longer than
-- what it does for one more task.
local function usual()
  local call, ns, worker = redis.call, KEYS[1], ARGV[1]
  local format, match, max = string.format, string.match, math.max
  local EXACT, LEASED, COMMITTED = 9007199254740992, 8589934592, 25769803776
  local now_us = read_now_us()
  local now = math.floor(now_us / 1000)
  local records, touched = {}, {}

  -- What is asked of a job, and what this exchange makes of it.
  local function record_of(job)
    local record = ns .. ':job:' .. job
    local v = call('HMGET', record, 'priority', 'weight', 'start', 'hold', 'cap', 'walk', 'P', 'L', 'W', 'C',
      'files_packed', 'files_failed', 'source_bytes', 'stored_bytes')
    local hold = v[4] or ''
    if not v[1] or not (hold == '' or hold == 'P') or (v[5] or '0') ~= '0' or v[6] then
      return nil
    end
    local r = { key = record, job = job, priority = v[1], hold = hold, finished = {}, taken = 0, read = 0,
      weight = tonumber(v[2]), start = tonumber(v[3]), P = tonumber(v[7] or '0'), L = tonumber(v[8] or '0'),
      W = tonumber(v[9] or '0'), C = tonumber(v[10] or '0'), a = tonumber(v[11] or '0'), b = tonumber(v[12] or '0'),
      c = tonumber(v[13] or '0'), d = tonumber(v[14] or '0'), values = {}, places = {} }
    if not (r.weight and r.start and r.P and r.L and r.W and r.C and r.a and r.b and r.c and r.d)
      or not (r.weight >= 1 and r.start >= 0 and r.start < 1e300 and r.P >= 0 and r.L >= 0 and r.W >= 0 and r.W < EXACT)
    then
      return nil
    end
    records[job], touched[#touched + 1] = r, r
    return r
  end

  -- The finished tasks.
  local ended, freed = {}, 0
  for i = 6, #ARGV, 4 do
    local r = records[ARGV[i]] or record_of(ARGV[i])
    if not r then
      return nil
    end
    r.finished[#r.finished + 1] = i
    freed = freed + 1
    ended[freed] = ARGV[i] .. '/' .. ARGV[i + 1]
  end
  for _, r in ipairs(touched) do
    local numbers, seen = {}, {}
    for n, i in ipairs(r.finished) do
      local number = ARGV[i + 1]
      if seen[number] then
        return nil
      end
      numbers[n], seen[number] = number, true
    end
    local found = call('HMGET', ns .. ':tasks:' .. r.job, unpack(numbers))
    -- Mostly a job has none of these.
    r.remarks = call('EXISTS', ns .. ':checkpoints:' .. r.job, ns .. ':messages:' .. r.job, ns .. ':histories:' .. r.job) > 0
      and numbers
    if r.remarks then
      for _, checkpoint in ipairs(call('HMGET', ns .. ':checkpoints:' .. r.job, unpack(numbers))) do
        if checkpoint then
          return nil
        end
      end
    end
    for n, i in ipairs(r.finished) do
      local size, token, attempts, holder = match(found[n] or '', '^L(:%d+:)(%d+)(:%d+:)([%w-]+)$')
      local packed, failed, source, stored = match(ARGV[i + 3], '^(%d+),(%d+),(%d+),(%d+)$')
      if token ~= ARGV[i + 2] or token == '0' or holder ~= worker or #size > 18 or #attempts > 12 or not packed then
        return nil
      end
      r.a, r.b, r.c, r.d = r.a + packed, r.b + failed, r.c + source, r.d + stored
      r.values[2 * n - 1], r.values[2 * n] = numbers[n], 'C' .. size .. token .. attempts .. ARGV[i + 3]
      r.places[2 * n - 1], r.places[2 * n] = format('%d', COMMITTED + numbers[n]), numbers[n]
    end
    r.L, r.C = r.L - #numbers, r.C + #numbers
    -- Doubles count exactly below 2^53.
    if not (max(r.a, r.b, r.c, r.d) < EXACT and math.min(r.a, r.b, r.c, r.d, r.L) >= 0) then
      return nil
    end
  end

  -- The tasks to claim.
  local want = tonumber(ARGV[4]) + freed
  local line, priority = {}, nil
  if want > 0 then
    if #call('ZRANGEBYSCORE', ns .. ':delayed', '-inf', now, 'LIMIT', 0, 1) > 0 then
      return nil
    end
    priority = call('ZRANGE', ns .. ':priorities', 0, 0)[1]
    -- Further behind in the order of service nobody can be served now.
    line = priority and call('ZRANGE', ns .. ':ready:' .. priority, 0, want - 1, 'WITHSCORES') or {}
    if priority and #line == 0 then
      return nil
    end
  end
  local jobs = #line / 2
  local leases, waited, until_ms, bytes, last, virtual = {}, {}, format('%d', now + ARGV[3]), 0, 0, nil
  if jobs > 0 then
    last = max((tonumber(call('GET', ns .. ':token') or '0') or EXACT) + 1, now_us) - 1
    if last + want >= EXACT then
      return nil
    end
    for n = 1, jobs do
      line[n] = { job = line[2 * n - 1], start = tonumber(line[2 * n]) }
    end
  end
  while jobs > 0 and #leases < want do
    local first = line[1]
    local r = first.record
    if not r then
      r = records[first.job] or record_of(first.job)
      if not r or r.priority ~= priority or r.hold ~= '' or r.start ~= first.start then
        return nil
      end
      first.record = r
    end
    local n = r.taken - r.read + 1
    if not r.numbers or not r.numbers[n] then
      local more = max(1, math.ceil((want - #leases) / jobs))
      r.read, n = r.taken, 1
      r.numbers = call('ZRANGE', ns .. ':order:' .. r.job, r.taken, r.taken + more - 1)
      r.found = #r.numbers > 0 and call('HMGET', ns .. ':tasks:' .. r.job, unpack(r.numbers))
    end
    local number = r.numbers[n]
    local size, token, attempts = match(number and r.found[n] or '', '^P:(%d+):(%d+):(%d+):$')
    -- A job whose last task is claimed leaves the order of service; that is for the general script.
    if not size or #size > 15 or #token > 16 or #attempts > 9 or r.P <= r.taken + 1 then
      return nil
    end
    local id, source = r.job .. '/' .. number, tonumber(size)
    bytes, r.W, r.taken, last = bytes + source, r.W - source, r.taken + 1, last + 1
    if r.W < 0 or bytes >= EXACT then
      return nil
    end
    virtual = r.start
    r.start = r.start + max(source, 1) / r.weight
    local checkpoint = token ~= '0' and call('HGET', ns .. ':checkpoints:' .. r.job, number)
    token, attempts = format('%d', last), format('%d', attempts + 1)
    leases[#leases + 1] = { id, token, attempts, checkpoint }
    waited[#leases] = id
    r.values[#r.values + 1] = number
    r.values[#r.values + 1] = 'L:' .. size .. ':' .. token .. ':' .. attempts .. ':' .. worker
    r.places[#r.places + 1] = format('%d', LEASED + number)
    r.places[#r.places + 1] = number
    -- It goes to where its next task stands in the order: by start, then by name.
    local place = 1
    while place < jobs do
      local behind = line[place + 1]
      if behind.start > r.start or (behind.start == r.start and behind.job > r.job) then
        break
      end
      line[place], place = behind, place + 1
    end
    line[place], first.start = first, r.start
  end

  -- From here on it is written; first what may be no number, as then nothing has changed yet.
  if #leases ~= freed then
    if call('HINCRBY', ns .. ':held', worker, #leases - freed) <= 0 then
      call('HDEL', ns .. ':held', worker)
    end
  end
  local stands = {}
  for _, r in ipairs(touched) do
    local start = r.taken > 0 and format('%.17g', r.start)
    if start then
      stands[#stands + 1], stands[#stands + 2] = start, r.job
    end
    if #r.finished == 0 then
      if start then
        call('HSET', r.key, 'start', start, 'P', r.P - r.taken, 'L', r.L + r.taken, 'W', r.W)
      end
    elseif start then
      call('HSET', r.key, 'start', start, 'P', r.P - r.taken, 'L', r.L + r.taken, 'W', r.W, 'C', r.C,
        'files_packed', r.a, 'files_failed', r.b, 'source_bytes', r.c, 'stored_bytes', r.d)
    else
      call('HSET', r.key, 'L', r.L, 'C', r.C, 'files_packed', r.a, 'files_failed', r.b, 'source_bytes', r.c,
        'stored_bytes', r.d)
    end
    if r.remarks then
      call('HDEL', ns .. ':messages:' .. r.job, unpack(r.remarks))
      call('HDEL', ns .. ':histories:' .. r.job, unpack(r.remarks))
    end
    if #r.values > 0 then
      call('HSET', ns .. ':tasks:' .. r.job, unpack(r.values))
      call('ZADD', ns .. ':order:' .. r.job, unpack(r.places))
    end
  end
  if freed > 0 then
    call('ZREM', ns .. ':leases', unpack(ended))
  end
  if #leases > 0 then
    -- Should that be no number, it begins anew; the auditor finds it.
    if bytes > 0 and type(redis.pcall('HINCRBY', ns .. ':sums', 'W', format('-%d', bytes))) == 'table' then
      call('HSET', ns .. ':sums', 'W', 0)
    end
    call('SET', ns .. ':token', format('%d', last))
    call('HSET', ns .. ':virtual', priority, format('%.17g', virtual))
    call('ZADD', ns .. ':ready:' .. priority, unpack(stands))
    call('ZREM', ns .. ':waiting', unpack(waited))
    local held = {}
    for n, id in ipairs(waited) do
      held[2 * n - 1], held[2 * n] = until_ms, id
    end
    call('ZADD', ns .. ':leases', unpack(held))
  end
  if call('ZADD', ns .. ':workers', now, worker) == 1 then
    call('HSET', ns .. ':worker', worker, ARGV[2])
  end
  return { 'ok', leases, {} }
end

local answer = usual()
if answer then
  return answer
end

