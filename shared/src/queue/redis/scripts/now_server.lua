-- The time of every script: the server's own, never a client's. Microseconds since 1970.
local function read_now_us()
  local time = redis.call('TIME')
  return time[1] * 1000000 + time[2]
end
