-- The time of every script under test: milliseconds in a key, so that both engines share one clock.
local function read_now_us()
  return (tonumber(redis.call('GET', KEYS[1] .. ':clock')) or 0) * 1000
end
