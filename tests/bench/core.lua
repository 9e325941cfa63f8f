-- core.lua - `perilune bench core`: the figures of the core beside its peers' in one interleaved
-- run. Every repetition runs a calibration (multiply-add and stream rate), ours and each peer, so a
-- noisy minute hits all of them; what is printed are medians of the repetitions and of their ratios.
--   --reps N (7)   --only WORD (part of a row's name)   --peers FOLDER (virtual environment)
-- Peers: torch and JAX from a virtual environment (tests/bench/peers/install.sh makes it), else
-- Debian's python3-torch; OpenBLAS when libopenblas0 is there. What is missing is said.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local gpt = dofile(here .. "/gpt.lua")

local opts = { reps = 7, only = "", peers = os.getenv "PERILUNE_PEERS" or (os.getenv "HOME" .. "/.cache/perilune-peers") }
for i = 1, #arg, 2 do
  local key = arg[i]:match "^%-%-(%a+)$"
  if opts[key] == nil then error("unknown option " .. arg[i], 0) end
  opts[key] = key == "reps" and tonumber(arg[i + 1]) or arg[i + 1]
end

-- ---- servers: a program that answers each line with one line ----------------------------------

local Server = {}
Server.__index = Server

local function server(name, command)
  local fifo = os.tmpname()
  os.remove(fifo)
  assert(os.execute("mkfifo " .. fifo))
  local to = assert(io.popen(command .. " > " .. fifo .. " 2>/dev/null", "w"))
  local from = assert(io.open(fifo, "r"))
  os.remove(fifo)
  return setmetatable({ name = name, to = to, from = from }, Server)
end

function Server:ask(...)
  self.to:write(table.concat({ ... }, " "), "\n")
  self.to:flush()
  local line = self.from:read "l"
  if not line then return nil, "ended" end
  if line:find "^skip" then return nil, line:sub(6) end
  return tonumber(line) or line
end

local function exists(path)
  local f = io.open(path)
  if f then f:close() end
  return f ~= nil
end

local probe = server("probe", (os.getenv "PERILUNE_BUILD" or here .. "/../../build") .. "/tests/bench/probe")
local peers, missing = {}, {}
do
  local python = opts.peers .. "/bin/python"
  if exists(python) then
    peers.torch = server("torch", python .. " " .. here .. "/peers/torch_peer.py")
    peers.jax = server("jax", "JAX_PLATFORMS=cpu " .. python .. " " .. here .. "/peers/jax_peer.py")
  elseif exists "/usr/lib/python3/dist-packages/torch/__init__.py" then
    peers.torch = server("torch", "/usr/bin/python3 " .. here .. "/peers/torch_peer.py")
  end
  for _, name in ipairs { "torch", "jax" } do
    local p = peers[name]
    local version = p and p:ask "version"
    if type(version) == "string" then p.version = version else peers[name] = nil; missing[#missing + 1] = name end
  end
end
peers.compile = peers.torch -- torch.compile, in the same process

-- ---- statistics ------------------------------------------------------------------------------

local function median(t)
  local s = table.move(t, 1, #t, 1, {})
  table.sort(s)
  local n = #s
  if n == 0 then return nil end
  return n % 2 == 1 and s[n // 2 + 1] or (s[n // 2] + s[n // 2 + 1]) / 2
end

local function timed(fn)
  local t = peri.time()
  fn()
  return peri.time() - t
end

-- Seconds of one call, repeated until it takes long enough to be measured.
local function loop(fn, least)
  local n = 1
  while true do
    local t = timed(function () for _ = 1, n do fn() end end)
    if t > (least or 0.02) then return t / n end
    n = n * 2
  end
end

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
