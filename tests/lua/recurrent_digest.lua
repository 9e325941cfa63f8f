-- recurrent_digest.lua - for test_recurrent.lua: a line of every result and gradient of LSTM and GRU layers at sizes
-- at which threads share rows or units, as text, so that runs with other numbers of threads can be compared.
local peri = require "perilune"

local function sum(t) -- of its bytes, FNV-1a over words
  local h = 0xcbf29ce484222325
  local bytes = t:contiguous():bytes()
  for i = 1, #bytes - 3, 4 do h = (h ~ string.unpack("<I4", bytes, i)) * 1099511628211 end
  return ("%016x"):format(h)
end

for _, kind in ipairs { "LSTM", "GRU" } do
  for _, s in ipairs { { 5, 1, 3, 300 }, { 13, 9, 6, 40 }, { 9, 5, 7, 250 }, { 64, 3, 8, 190 } } do
    local B, T, I, H = table.unpack(s)
    peri.seed(3)
    local net = peri.nn[kind](I, H, { bidirectional = true })
    local x = peri.randn({ B, T, I }):requires_grad_()
    local y, state = net(x, nil, { starts = peri.rand({ B, T }):lt(0.2), lengths = peri.randint(0, T + 1, { B }) })
    local last = type(state) == "table" and state[2] or state
    y:square():sum():add(last:square():sum()):backward()
    local what = ("%s %d %d %d %d"):format(kind, B, T, I, H)
    print(what, "y", sum(y))
    print(what, "state", sum(last))
    print(what, "x", sum(x.grad))
    for _, entry in ipairs(net:named_parameters()) do print(what, entry[1], sum(entry[2].grad)) end
  end
end
