-- Commits a task for the holder of its token, or again. Returns nil, or the answer that says why not.
local function commit(job, number, token, totals)
  local task, f = held_task(job, number, token)
  if task then
    finish(job, f, number, task, 'C', totals)
    return nil
  end
  -- The answer to this very commit may have been lost.
  if f[1] == 'stale' then
    local done = load_task(job, number)
    if done and done.state == 'C' and done.token == token then
      return nil
    end
  end
  return f
end
