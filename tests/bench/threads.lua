-- threads.lua - what workers, channels and shared tensors cost: perilune bench threads. Medians of 7.
local peri = require "perilune"

local function median(fn)
  local t = {}
  for i = 1, 7 do t[i] = fn() end
  table.sort(t)
  return t[4]
end

local function timed(n, fn)
  return median(function()
    local t0 = peri.time()
    for _ = 1, n do fn() end
    return (peri.time() - t0) / n
  end)
end

local function row(what, seconds, unit)
  local scale = unit == "us" and 1e6 or 1e3
  print(("%-52s %9.3f %s"):format(what, seconds * scale, unit))
end

local x, y = peri.ones { 4 }, peri.ones { 4 }
local shared, other = peri.ones({ 4 }):share(), peri.ones({ 4 }):share "racing"
row("an op that makes a tensor", timed(200000, function() local _ = x + y end), "us")
row("the same of shared tensors", timed(200000, function() local _ = shared + other end), "us")
row("an op in place", timed(200000, function() x:add_(y) end), "us")
row("the same into racing memory", timed(200000, function() other:add_(y) end), "us")

local c = peri.channel(4)
local function through(value)
  return timed(50000, function()
    c:send(value)
    c:receive()
  end)
end
row("send and receive in one state, a number", through(1), "us")
row("a table of 8 values", through { 1, 2, 3, 4, "five", true, a = 1, b = 2 }, "us")
row("a tensor that is shared already", through(shared), "us")
row("a new tensor, shared by it", timed(50000, function()
  c:send(peri.ones { 4 })
  c:receive()
end), "us")
local big = peri.ones { 1 << 22 }
row("a tensor of 16 MB", through(big), "us")

local there, back = peri.channel(1), peri.channel(1)
local echo = peri.worker(function(from, to) for _, v in from:each() do to:send(v) end end, there, back)
row("round trip to a worker and back, a number", timed(5000, function()
  there:send(1)
  back:receive()
end), "us")
row("the same with a tensor", timed(5000, function()
  there:send(shared)
  back:receive()
end), "us")
there:close()
echo:result()

local many = peri.channel(1024)
local n = 200000
local feeder = function(to, count) for i = 1, count do to:send(i) end end
local rate = median(function()
  local t0 = peri.time()
  local w = peri.worker(feeder, many, n)
  for _ = 1, n do many:receive() end
  w:join()
  return (peri.time() - t0) / n
end)
row("one message of a stream through 1,024 places", rate, "us")

row("start a worker, run nothing, end it", timed(20, function() peri.worker(function() end):result() end), "ms")
