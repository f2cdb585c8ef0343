-- The usual exchange, in front of the general one: every finished task is the worker's own, without a checkpoint;
-- no retry is due; no worker has vanished; the jobs have further tasks behind those that are claimed, no cap and no
-- audit under way. It is most of what a busy queue does. Everything is read first; whatever is not as usual, or cannot
-- be read, is left to the general script before anything was written. Then each key is written once for all tasks
-- together: a call of a command takes longer than what it does for one more task.
local function usual()
  local call, ns, worker = redis.call, KEYS[1], ARGV[1]
  local format, match, sub, max = string.format, string.match, string.sub, math.max
  local EXACT = 9007199254740992
  local now_us = read_now_us()
  local now = math.floor(now_us / 1000)
  local present = format('%d', now)
  -- Workers that vanished are forgotten first: this one, if it comes back, with what it once worked on.
  if #call('ZRANGEBYSCORE', ns .. ':workers', '-inf', format('%d', now - 2 * ARGV[3]), 'LIMIT', '0', '1') > 0 then
    return nil
  end
  local records, touched, count = {}, {}, 0

  -- What is asked of a job, and what this exchange makes of it: `values` and `places` are what will be written to its
  -- tasks and their order, `fill` is how many of each there are.
  local function record_of(job)
    local record = ns .. ':job:' .. job
    local v = call('HMGET', record, 'priority', 'weight', 'start', 'cap', 'hold', 'walk', 'P', 'L', 'W', 'C',
      'files_packed', 'files_failed', 'source_bytes', 'stored_bytes')
    local hold, weight, start = v[5] or '', tonumber(v[2]), tonumber(v[3])
    local P, L, W = tonumber(v[7] or '0'), tonumber(v[8] or '0'), tonumber(v[9] or '0')
    if not (v[1] and (hold == '' or hold == 'P') and (v[4] or '0') == '0' and not v[6])
      or not (weight and start and P and L and W)
      or not (weight >= 1 and start >= 0 and start < 1e300 and P >= 0 and L >= 0 and W >= 0 and W < EXACT)
    then
      return nil
    end
    local r = { key = record, job = job, tasks = ns .. ':tasks:' .. job, priority = v[1], hold = hold, weight = weight,
      start = start, P = P, L = L, W = W, totals = v, taken = 0, finished = 0, from = 0, numbers = false, found = false,
      remarks = false, values = {}, places = {}, fill = 0 }
    count = count + 1
    records[job], touched[count] = r, r
    return r
  end

  -- The finished tasks.
  local ended, freed, i = {}, 0, 6
  while ARGV[i] do
    local job, many = ARGV[i], tonumber(ARGV[i + 1])
    local r = record_of(job)
    if not r then
      return nil
    end
    local v, numbers, before = r.totals, {}, ''
    local a, b = (tonumber(v[11] or '0') or EXACT) + ARGV[i + 2], (tonumber(v[12] or '0') or EXACT) + ARGV[i + 3]
    local c, d = (tonumber(v[13] or '0') or EXACT) + ARGV[i + 4], (tonumber(v[14] or '0') or EXACT) + ARGV[i + 5]
    local done = (tonumber(v[10] or '0') or EXACT) + many
    -- Doubles count exactly below 2^53.
    if not (max(a, b, c, d, done) < EXACT and math.min(a, b, c, d, done) >= 0 and a + b + c + d >= 0 and r.L >= many) then
      return nil
    end
    for n = 1, many do
      local number = ARGV[i + 3 + 3 * n]
      -- One that is named twice.
      if number <= before then
        return nil
      end
      numbers[n], before = number, number
    end
    local found, hashes = call('HMGET', r.tasks, unpack(numbers)), ns .. ':checkpoints:' .. job
    -- Mostly a job has none of these.
    if call('EXISTS', hashes, ns .. ':messages:' .. job, ns .. ':histories:' .. job) > 0 then
      for _, checkpoint in ipairs(call('HMGET', hashes, unpack(numbers))) do
        if checkpoint then
          return nil
        end
      end
      r.remarks = numbers
    end
    local values, places, fill, at = r.values, r.places, 0, i + 6
    for n = 1, many do
      local number, size, token, attempts, tail = numbers[n], match(found[n] or '', '^L(:%d+:)(%d+)(:%d+:)()')
      if token ~= ARGV[at + 1] or token == '0' or #size > 18 or #attempts > 12 or sub(found[n], tail) ~= worker then
        return nil
      end
      values[fill + 1], values[fill + 2] = number, 'C' .. size .. token .. attempts .. ARGV[at + 2]
      places[fill + 1], places[fill + 2] = '3' .. number, number
      ended[freed + n] = job .. '/' .. number
      fill, at = fill + 2, at + 3
    end
    r.finished, r.fill, freed, i = many, fill, freed + many, at
    r.L, r.C, r.a, r.b, r.c, r.d = r.L - many, done, a, b, c, d
  end

  -- A retry that is due is revived also when nothing is claimed.
  if #call('ZRANGEBYSCORE', ns .. ':delayed', '-inf', present, 'LIMIT', '0', '1') > 0 then
    return nil
  end
  -- The tasks to claim.
  local want = tonumber(ARGV[4]) + freed
  local line, priority = {}, nil
  if want > 0 then
    priority = call('ZRANGE', ns .. ':priorities', '0', '0')[1]
    -- Further behind in the order of service nobody can be served now.
    line = priority and call('ZRANGE', ns .. ':ready:' .. priority, '0', want - 1, 'WITHSCORES') or line
    if priority and #line == 0 then
      return nil
    end
  end
  local jobs, leases, claimed, waited, bytes, last, virtual = #line / 2, {}, 0, {}, 0, 0, nil
  if jobs > 0 then
    last = max((tonumber(call('GET', ns .. ':token') or '0') or EXACT) + 1, now_us) - 1
    if last + want >= EXACT then
      return nil
    end
    for n = 1, jobs do
      line[n] = { job = line[2 * n - 1], start = tonumber(line[2 * n]), record = false }
    end
  end
  local fresh = ':1:' .. worker
  while jobs > 0 and claimed < want do
    local first = line[1]
    local r = first.record
    if not r then
      r = records[first.job] or record_of(first.job)
      if not r or r.priority ~= priority or r.hold ~= '' or r.start ~= first.start then
        return nil
      end
      first.record = r
    end
    local taken = r.taken
    local n = taken - r.from + 1
    local number = r.numbers and r.numbers[n]
    if not number then
      r.from, n = taken, 1
      r.numbers = call('ZRANGE', ns .. ':order:' .. r.job, taken, taken + max(1, math.ceil((want - claimed) / jobs)) - 1)
      r.found = #r.numbers > 0 and call('HMGET', r.tasks, unpack(r.numbers)) or {}
      number = r.numbers[1]
    end
    local size, token, attempts = match(r.found[n] or '', '^P:(%d+):(%d+):(%d+):$')
    -- A job whose last task is claimed leaves the order of service; that is for the general script.
    if not size or #size > 15 or #token > 16 or #attempts > 9 or r.P <= taken + 1 then
      return nil
    end
    local id, source, fill, checkpoint = r.job .. '/' .. number, tonumber(size), r.fill, false
    bytes, r.W, last, claimed = bytes + source, r.W - source, last + 1, claimed + 1
    if r.W < 0 or bytes >= EXACT then
      return nil
    end
    virtual = r.start
    local start = virtual + max(source, 1) / r.weight
    local granted, tail = format('%d', last), fresh
    if token ~= '0' then
      checkpoint = call('HGET', ns .. ':checkpoints:' .. r.job, number)
    end
    if attempts == '0' then
      attempts = '1'
    else
      attempts = format('%d', attempts + 1)
      tail = ':' .. attempts .. ':' .. worker
    end
    leases[claimed], waited[claimed] = { id, granted, attempts, checkpoint }, id
    r.values[fill + 1], r.values[fill + 2] = number, 'L:' .. size .. ':' .. granted .. tail
    r.places[fill + 1], r.places[fill + 2] = '1' .. number, number
    r.taken, r.fill, r.start, first.start = taken + 1, fill + 2, start, start
    -- It goes to where its next task stands in the order: by start, then by name.
    local place = 1
    while place < jobs do
      local behind = line[place + 1]
      if behind.start > start or (behind.start == start and behind.job > first.job) then
        break
      end
      line[place], place = behind, place + 1
    end
    line[place] = first
  end

  -- From here on it is written; first what may be no number, as then nothing has changed yet.
  if claimed ~= freed then
    if call('HINCRBY', ns .. ':held', worker, claimed - freed) <= 0 then
      call('HDEL', ns .. ':held', worker)
    end
  end
  local stands, standing = {}, 0
  for n = 1, count do
    local r = touched[n]
    local start = r.taken > 0 and format('%.17g', r.start)
    if start then
      stands[standing + 1], stands[standing + 2], standing = start, r.job, standing + 2
    end
    -- As text: a number would be written as a double, which takes four times as long.
    local P, L, W = format('%d', r.P - r.taken), format('%d', r.L + r.taken), format('%d', r.W)
    if r.finished == 0 then
      call('HSET', r.key, 'start', start, 'P', P, 'L', L, 'W', W)
    else
      local C, a, b = format('%d', r.C), format('%d', r.a), format('%d', r.b)
      local c, d = format('%d', r.c), format('%d', r.d)
      if start then
        call('HSET', r.key, 'start', start, 'P', P, 'L', L, 'W', W, 'C', C, 'files_packed', a, 'files_failed', b,
          'source_bytes', c, 'stored_bytes', d)
      else
        call('HSET', r.key, 'L', L, 'C', C, 'files_packed', a, 'files_failed', b, 'source_bytes', c, 'stored_bytes', d)
      end
    end
    if r.remarks then
      call('HDEL', ns .. ':messages:' .. r.job, unpack(r.remarks))
      call('HDEL', ns .. ':histories:' .. r.job, unpack(r.remarks))
    end
    call('HSET', r.tasks, unpack(r.values))
    call('ZADD', ns .. ':order:' .. r.job, unpack(r.places))
  end
  if freed > 0 then
    call('ZREM', ns .. ':leases', unpack(ended))
  end
  if claimed > 0 then
    -- Should that be no number, it begins anew; the auditor finds it.
    if bytes > 0 and type(redis.pcall('HINCRBY', ns .. ':sums', 'W', format('-%d', bytes))) == 'table' then
      call('HSET', ns .. ':sums', 'W', 0)
    end
    call('SET', ns .. ':token', format('%d', last))
    call('HSET', ns .. ':virtual', priority, format('%.17g', virtual))
    call('ZADD', ns .. ':ready:' .. priority, unpack(stands))
    call('ZREM', ns .. ':waiting', unpack(waited))
    local held, till = {}, format('%d', now + ARGV[3])
    for n = 1, claimed do
      held[2 * n - 1], held[2 * n] = till, waited[n]
    end
    call('ZADD', ns .. ':leases', unpack(held))
  end
  if call('ZADD', ns .. ':workers', present, worker) == 1 then
    call('HSET', ns .. ':worker', worker, ARGV[2])
  end
  return { 'ok', leases, {} }
end

local answer = usual()
if answer then
  return answer
end

