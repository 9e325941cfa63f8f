-- recurrent.lua - `perilune bench recurrent`: LSTM and GRU layers beside PyTorch's in one interleaved run. A step is
-- what a policy that acts pays: no gradients, a state in and out. A sequence is forward and backward, gradients of x and
-- of the weights. One layer, as many inputs as units. Medians of the repetitions and of their ratios.
--   --reps N (7)   --only WORD (part of a row's name)   --peers FOLDER (virtual environment)
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local measure = dofile(here .. "/peers/measure.lua")

local opts = measure.flags(arg, { reps = 7, only = "", peers = measure.home })
local probe = measure.probe(here)
local torch = measure.peers(here, opts.peers, { "torch" }).torch
local MUST <const> = 1.2

local function step(net, batch, _, hidden)
  local x = peri.keep(peri.randn { batch, 1, hidden })
  local state = net:initial(batch)
  for _, t in ipairs(type(state) == "table" and state or { state }) do peri.keep(t) end
  return function ()
    local _ <close> = peri.no_grad()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    net(x, state)
  end
end

local function train(net, batch, time, hidden)
  local x = peri.keep(peri.randn { batch, time, hidden }):requires_grad_()
  return function ()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    x:zero_grad()
    net:zero_grad()
    net(x):sum():backward()
  end
end

local info = peri.info()
print(("processor  %s, %d threads, kernels %s"):format(info.processor or "?", peri.threads(), info.simd))
print("peer       " .. (torch and torch.version or "no torch: run tests/bench/peers/install.sh"))
print(("%-34s %11s %9s  %s"):format("median of " .. opts.reps, "time", "of FMA", "torch (times slower)"))

local function row(kind, what, batch, time, hidden)
  local name = what == "act" and ("%s step B=%d H=%d"):format(kind, batch, hidden)
    or ("%s fwd+bwd B=%d T=%d H=%d"):format(kind, batch, time, hidden)
  if not name:find(opts.only, 1, true) then return end
  local net = peri.nn[kind:upper()](hidden, hidden)
  local once = (what == "act" and step or train)(net, batch, time, hidden)
  local flops = 4 * (kind == "lstm" and 4 or 3) * batch * time * hidden * hidden * (what == "act" and 1 or 3)
  local ours, fma, ratio = {}, {}, {}
  once()
  for rep = 1, opts.reps do
    probe:ask("sleep", 250) -- the peer's idle threads spin that long after their work
    local f = probe:ask("fma", peri.threads())
    ours[rep] = measure.loop(once)
    fma[rep] = flops / ours[rep] / 1e9 / f
    if torch then ratio[rep] = torch:ask("recurrent", kind, what, batch, time, hidden) / ours[rep] end
  end
  local t, r = measure.median(ours), measure.median(ratio)
  print(("%-34s %11s %7.0f %%  %s"):format(name, t < 1e-3 and ("%.1f us"):format(t * 1e6) or ("%.3f ms"):format(t * 1e3),
    100 * measure.median(fma), r and ("%.2f  >= %.1f %s"):format(r, MUST, r >= MUST and "met" or "MISSED") or "-"))
  if torch then torch:ask "forget" end
end

for _, kind in ipairs { "lstm", "gru" } do
  for _, hidden in ipairs { 64, 128, 512 } do
    for _, batch in ipairs { 8, 64 } do row(kind, "act", batch, 1, hidden) end
  end
  for _, hidden in ipairs { 64, 128, 512 } do
    for _, batch in ipairs { 8, 64 } do
      for _, time in ipairs { 32, 128 } do row(kind, "train", batch, time, hidden) end
    end
  end
end
