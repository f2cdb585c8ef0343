-- Up to `limit` task numbers of a job from `from` on, in their order: the bands of all states, merged.
local function numbers(job, from, limit)
  local order, runs, found = key('order', job), {}, {}
  if limit > 0 then
    for _, band in pairs(BANDS) do
      local run = call('ZRANGEBYSCORE', order, int(from + band * BAND), int(LAST + band * BAND), 'LIMIT', 0, limit)
      if #run > 0 then
        runs[#runs + 1] = { run, 1 }
      end
    end
  end
  while #found < limit do
    local first
    for _, run in ipairs(runs) do
      local number = run[1][run[2]]
      if number and (not first or number < first[1][first[2]]) then
        first = run
      end
    end
    if not first then
      break
    end
    found[#found + 1] = first[1][first[2]]
    first[2] = first[2] + 1
  end
  return found
end
