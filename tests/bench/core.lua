-- core.lua - `perilune bench core`: the figures of the core beside its peers' in one interleaved
-- run. Every repetition runs a calibration (multiply-add and stream rate), ours and each peer, so a
-- noisy minute hits all of them; what is printed are medians of the repetitions and of their ratios.
--   --reps N (7)   --only WORD (part of a row's name)   --peers FOLDER (virtual environment)
-- Peers: torch and JAX from a virtual environment (tests/bench/peers/install.sh makes it), else
-- Debian's python3-torch; OpenBLAS when libopenblas0 is there. What is missing is said.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local gpt = dofile(here .. "/gpt.lua")

local measure = dofile(here .. "/peers/measure.lua")

local opts = measure.flags(arg, { reps = 7, only = "", peers = measure.home })
local median, timed, loop, exists = measure.median, measure.timed, measure.loop, peri.files.exists
local probe = measure.probe(here)
local peers, missing = measure.peers(here, opts.peers, { "torch", "jax" })
peers.compile = peers.torch -- torch.compile, in the same process

-- ---- rows ------------------------------------------------------------------------------------

local threads = peri.threads()
local rows = {}

-- o: ours() -> seconds; ask = { peer = { command ... } }; blas = { m, k, n, trans }; flops and bytes
-- of one call; per = units of one call (tokens), unit; must = required ratio to the best peer.
local function row(name, o)
  o.name = name
  if name:find(opts.only, 1, true) then rows[#rows + 1] = o end
end

local function gemm_row(m, k, n, trans, must)
  row(("gemm %dx%dx%d%s"):format(m, k, n, trans == 1 and " NT" or ""), {
    ours = function () return probe:ask("gemm", m, k, n, trans) end, blas = { m, k, n, trans },
    ask = { torch = { trans == 1 and "linear" or "mm", m, k, n } }, flops = 2 * m * k * n, must = must,
  })
end

for _, n in ipairs { 16, 32 } do gemm_row(n, n, n, 0) end
for _, n in ipairs { 64, 128 } do gemm_row(n, n, n, 0, 1.3) end
for _, n in ipairs { 256, 512, 1024, 2048 } do gemm_row(n, n, n, 0, 1.0) end
for _, s in ipairs { { 1, 128, 128 }, { 1, 768, 768 }, { 4, 128, 128 }, { 4, 768, 768 }, { 4, 768, 3072 }, { 16, 768, 768 },
  { 64, 128, 512 }, { 64, 768, 768 }, { 64, 2048, 2048 }, { 256, 128, 512 }, { 256, 768, 3072 }, { 2048, 128, 128 },
  { 2048, 128, 512 }, { 2048, 768, 768 }, { 2048, 2048, 2048 } } do
  gemm_row(s[1], s[2], s[3], 1, s[1] == 1 and 4 or s[1] == 4 and 2 or (s[1] <= 64 or s[2] == 128) and 1.3 or 1.0)
end

local function matrix() return peri.randn { 1024, 1024 } end
local function elementwise(name, fn, must, command)
  local x
  row(name .. " 1M", {
    ours = function () x = x or peri.keep(matrix()); return loop(function () fn(x):release() end) end,
    ask = { torch = { "unary", command or name } }, bytes = 8 << 20, must = must,
  })
end
elementwise("exp", function (x) return x:exp() end, 2)
elementwise("tanh", function (x) return x:tanh() end, 4)
elementwise("gelu", function (x) return x:gelu "tanh" end, 2.5)
elementwise("softmax", function (x) return x:softmax() end, 1.1)
elementwise("layer_norm", function (x) return x:layer_norm() end, 1.2)

do
  local logits, target
  row("cross_entropy fwd+bwd 256x50257", {
    ours = function ()
      logits = logits or peri.keep(peri.randn { 256, 50257 }):requires_grad_()
      target = target or peri.keep(peri.randint(0, 50257, { 256 }))
      return loop(function ()
        local scope <close> = peri.scope()
        local _ = scope
        logits:zero_grad()
        logits:cross_entropy(target):backward()
      end)
    end,
    ask = { torch = { "cross_entropy" } }, bytes = 256 * 50257 * 4 * 3, must = 9,
  })
  local p, g, m, v
  row("adamw 10M", {
    ours = function ()
      if not p then
        p, g = { peri.keep(peri.randn { 10000000 }) }, { peri.keep(peri.randn { 10000000 }) }
        m, v = { peri.keep(peri.zeros { 10000000 }) }, { peri.keep(peri.zeros { 10000000 }) }
      end
      return loop(function () peri.adamw_(p, g, m, v, { lr = 1e-4, step = 1 }) end)
    end,
    ask = { torch = { "adamw" } }, bytes = 28 * 10000000, must = 1,
    done = function () p, g, m, v = nil, nil, nil, nil end,
  })
  local a, b
  local function small() a, b = a or peri.keep(peri.randn { 8 }), b or peri.keep(peri.randn { 8 }) end
  row("new tensor: add of 8", {
    ours = function () small(); return loop(function () for _ = 1, 1000 do local _ = a + b end end) / 1000 end,
    ask = { torch = { "add8" } }, limit = 0.3e-6,
  })
  row("in place: add_ of 8", {
    ours = function () small(); return loop(function () for _ = 1, 1000 do a:add_(b) end end) / 1000 end,
    ask = {}, limit = 0.15e-6,
  })
end

local models = {
  demo = { layers = 4, dim = 128, heads = 4, vocab = 32, context = 64, batch = 64, time = 64, flops = 21.4e9, must = 1.55 },
  gpt2 = { layers = 12, dim = 768, heads = 12, vocab = 50257, context = 1024, batch = 4, time = 64, flops = 191.6e9,
    tied = true, must = 1.3 },
}

local function trainer(which)
  local o = models[which]
  local model, ids, m, v, step = nil, nil, {}, {}, 0
  local function start()
    model = gpt.new(o)
    ids = peri.keep(peri.randint(0, o.vocab, { o.batch, o.time + 1 }))
    for i, p in ipairs(model.list) do m[i], v[i] = peri.zeros_like(p), peri.zeros_like(p) end
  end
  local function once()
    local scope <close> = peri.scope()
    local _ = scope
    model:loss(ids:narrow(2, 1, o.time), ids:narrow(2, 2, o.time)):backward()
    local grads = {}
    for i, p in ipairs(model.list) do grads[i] = p.grad end
    step = step + 1
    peri.adamw_(model.list, grads, m, v, { lr = 1e-4, step = step })
    for _, p in ipairs(model.list) do p.grad = nil end
  end
  return {
    ours = function ()
      if not model then start(); once(); once() end
      return timed(once)
    end,
    ask = { torch = { "train", which }, compile = { "train_compiled", which }, jax = { "train", which } },
    flops = o.flops, per = o.batch * o.time, unit = "tok/s",
    must = o.must,
    done = function ()
      model, ids, m, v = nil, nil, {}, {}
      collectgarbage()
      for _, p in pairs(peers) do p:ask "forget" end
    end,
  }
end

local function generation(batch, must)
  local model
  return {
    ours = function ()
      model = model or gpt.new(models.demo)
      return loop(function () model:generate(batch, 64) end, 0.005)
    end,
    ask = { torch = { "generate", batch, 64 }, jax = { "generate", batch, 64 } }, per = batch * 64, unit = "tok/s", must = must,
  }
end

row("demo GPT step", trainer "demo")
row("demo GPT generate B=64", generation(64, 3))
row("demo GPT generate B=1", generation(1, 1))
row("GPT-2 124M step", trainer "gpt2")

-- ---- run -------------------------------------------------------------------------------------

local info = peri.info()
print(("processor  %s, %d threads, kernels %s"):format(info.processor or "?", threads, info.simd))
for _, name in ipairs { "torch", "jax" } do
  if peers[name] then print("peer       " .. peers[name].version) end
end
for _, name in ipairs(missing) do print("peer       no " .. name .. ": run tests/bench/peers/install.sh") end
print(("%-32s %11s %9s %8s %8s  %-28s %s"):format("median of " .. opts.reps, "time", "rate", "of FMA", "of DRAM", "peers (times slower)", "must"))

local function seconds(t)
  if t < 1e-6 then return ("%.0f ns"):format(t * 1e9) end
  if t < 1e-3 then return ("%.2f us"):format(t * 1e6) end
  return ("%.3f ms"):format(t * 1e3)
end

for _, r in ipairs(rows) do
  local ours, fma, stream, ratio, note = {}, {}, {}, {}, {}
  local function peer(name, t, why)
    if not t then note[name] = why return end
    ratio[name] = ratio[name] or {}
    table.insert(ratio[name], t / ours[#ours])
  end
  for rep = 1, opts.reps do
    probe:ask("sleep", 250) -- the peers' idle threads spin that long after their work
    local f, s = probe:ask("fma", threads), probe:ask("stream", threads)
    local t = r.ours()
    ours[rep] = t
    if r.flops then fma[rep] = r.flops / t / 1e9 / f end
    if r.bytes then stream[rep] = r.bytes / t / 1e9 / s end
    if r.blas then peer("blas", probe:ask("blas", table.unpack(r.blas))) end
    for name, command in pairs(r.ask) do
      if peers[name] then peer(name, peers[name]:ask(table.unpack(command))) end
    end
  end
  if r.done then r.done() end
  local t, list, best = median(ours), {}, nil
  for _, name in ipairs { "blas", "torch", "compile", "jax" } do
    if ratio[name] then
      local m = median(ratio[name])
      list[#list + 1] = ("%s %.2f"):format(name, m)
      best = best and math.min(best, m) or m
    elseif note[name] then list[#list + 1] = name .. " -" end
  end
  local rate = r.per and ("%.0f %s"):format(r.per / t, r.unit) or r.flops and ("%.0f GF/s"):format(r.flops / t / 1e9)
    or r.bytes and ("%.1f GB/s"):format(r.bytes / t / 1e9) or ""
  local verdict = ""
  if r.limit then verdict = ("<= %s %s"):format(seconds(r.limit), t <= r.limit and "met" or "MISSED")
  elseif r.must and best then verdict = (">= %.2f %s"):format(r.must, best >= r.must and "met" or "MISSED") end
  print(("%-32s %11s %9s %8s %8s  %-28s %s"):format(r.name, seconds(t), rate,
    #fma > 0 and ("%.0f %%"):format(100 * median(fma)) or "", #stream > 0 and ("%.0f %%"):format(100 * median(stream)) or "",
    table.concat(list, ", "), verdict))
end

-- Start-up, size and memory of the program itself.
local exe = (os.getenv "PERILUNE_BUILD" or here .. "/../../build") .. "/perilune"
if ("start-up"):find(opts.only, 1, true) and exists(exe) then
  local script = os.tmpname()
  local f = assert(io.open(script, "w"))
  f:write [[local peri = require "perilune"
local _ = peri.ones { 2 } + 1
local rss
for line in io.lines "/proc/self/status" do rss = rss or line:match "^VmRSS:%s*(%d+)" end
io.write(rss)]]
  f:close()
  local t, rss = {}, nil
  for rep = 1, opts.reps do
    t[rep] = timed(function ()
      local p = assert(io.popen(exe .. " run " .. script))
      rss = tonumber(p:read "a")
      p:close()
    end)
  end
  os.remove(script)
  local file = assert(io.open(exe, "rb"))
  local size = file:seek "end"
  file:close()
  print(("start-up to the first op %s (<= 10 ms), %.1f MB resident (<= 10 MB), program %.2f MB unstripped"):format(
    seconds(median(t)), rss / 1024, size / 2 ^ 20))
end
