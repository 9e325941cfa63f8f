-- conv.lua - `perilune bench conv`: convolutions, forward and backward (bias included), beside PyTorch in one
-- interleaved run; medians of the repetitions and of their ratios.
--   --reps N (7)   --only WORD (part of a row's name)   --peers FOLDER (virtual environment)
-- The nets that agents see pixels with: those of DQN (Mnih et al. 2015; its first layer needs no gradient for its
-- input), one for MinAtar's boards; a convolution over rows, a depthwise one.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local measure = dofile(here .. "/peers/measure.lua")

local opts = measure.flags(arg, { reps = 7, only = "", peers = measure.home })
local probe = measure.probe(here)
local peers, missing = measure.peers(here, opts.peers, { "torch" })

-- Layers: { in, out, kernel, stride, padding, groups }, with ReLU between; x: its shape; inner: x has a gradient, too.
local nature = { { 4, 32, 8, 4 }, { 32, 64, 4, 2 }, { 64, 64, 3, 1 } }
local rows = {
  { "DQN, batch 32", { 32, 4, 84, 84 }, nature, must = 1.2 },
  { "DQN, batch 256", { 256, 4, 84, 84 }, nature, must = 1.2 },
  { "DQN layer 1, batch 32", { 32, 4, 84, 84 }, { nature[1] } },
  { "DQN layer 2, batch 32", { 32, 32, 20, 20 }, { nature[2] }, inner = true },
  { "DQN layer 3, batch 32", { 32, 64, 9, 9 }, { nature[3] }, inner = true },
  { "MinAtar, batch 64", { 64, 4, 10, 10 }, { { 4, 16, 3, 1 } }, must = 1.2 },
  { "1d, 64 x 32 x 128", { 64, 32, 128 }, { { 32, 64, 5, 1, 2 } }, inner = true, must = 1.2 },
  { "depthwise, 32 x 64 x 32 x 32", { 32, 64, 32, 32 }, { { 64, 64, 3, 1, 1, 64 } }, inner = true, must = 1.2 },
}

-- A step of ours, and the words that ask a peer for the same.
local function step_of(row)
  local shape, layers = row[2], row[3]
  local dims = #shape - 2
  local make = dims == 1 and peri.nn.Conv1d or peri.nn.Conv2d
  local list, words = {}, { "conv", row.inner and 1 or 0, dims, table.concat(shape, " ") }
  for i, l in ipairs(layers) do
    if i > 1 then list[#list + 1] = peri.nn.ReLU() end
    list[#list + 1] = make(l[1], l[2], l[3], { stride = l[4], padding = l[5] or 0, groups = l[6] or 1 })
    for k = 1, 6 do words[#words + 1] = l[k] or ({ [5] = 0, [6] = 1 })[k] end
  end
  local net = peri.nn.Sequential(table.unpack(list))
  local x = peri.keep(peri.randn(shape))
  if row.inner then x:requires_grad_() end
  local g = peri.keep(peri.randn(net(x).shape))
  return function ()
    local scope <close> = peri.scope()
    local _ = scope
    net:zero_grad()
    x:zero_grad()
    net(x):backward(g)
  end, words
end

-- Floating-point operations of a step: three products, two where x has no gradient.
local function flops_of(row)
  local shape, total = table.move(row[2], 1, #row[2], 1, {}), 0
  for i, l in ipairs(row[3]) do
    local n = shape[1] * l[2] * l[1] // (l[6] or 1)
    for d = 3, #shape do
      shape[d] = (shape[d] + 2 * (l[5] or 0) - l[3]) // l[4] + 1
      n = n * shape[d] * l[3]
    end
    total = total + 2 * n * ((i > 1 or row.inner) and 3 or 2)
  end
  return total
end

local info = peri.info()
print(("processor  %s, %d threads, kernels %s"):format(info.processor or "?", peri.threads(), info.simd))
print(peers.torch and "peer       " .. peers.torch.version
  or ("peer       no %s: run tests/bench/peers/install.sh"):format(table.concat(missing, ", ")))
print(("%-30s %10s %10s %7s  %-12s %s"):format("median of " .. opts.reps, "time", "rate", "of FMA", "torch, times", "must"))
for _, row in ipairs(rows) do
  if row[1]:find(opts.only, 1, true) then
    local step, words = step_of(row)
    local ours, fma, ratio, flops = {}, {}, {}, flops_of(row)
    for rep = 1, opts.reps do
      probe:ask("sleep", 250) -- the peer's idle threads spin that long after their work
      local f = probe:ask("fma", peri.threads())
      ours[rep] = measure.loop(step)
      fma[rep] = flops / ours[rep] / 1e9 / f
      local t = peers.torch and peers.torch:ask(table.unpack(words))
      if t then ratio[#ratio + 1] = t / ours[rep] end
    end
    local t, r = measure.median(ours), measure.median(ratio)
    print(("%-30s %7.3f ms %5.0f GF/s %5.0f %%  %-12s %s"):format(row[1], t * 1e3, flops / t / 1e9,
      100 * measure.median(fma), r and ("%.2f"):format(r) or "-",
      row.must and r and (">= %.1f %s"):format(row.must, r >= row.must and "met" or "MISSED") or ""))
  end
end
