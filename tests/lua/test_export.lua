-- Policies as source: what the C and the Lua file do is what the policy does, for every op and head; names and files of
-- others are safe. C hosts are compiled where there is a compiler.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local emitted = require "perilune.rl.export.ops"
local spaces = require "perilune.env.space"
local rl, nn = peri.rl, peri.nn

TestExport = {}

local folder
scratch.each(TestExport, function (path)
  folder = path
  peri.seed(1)
end)

local compilers = {}
for _, name in ipairs { "gcc", "clang" } do
  if os.execute(("command -v %s >/dev/null 2>&1"):format(name)) then compilers[#compilers + 1] = name end
end

local function box(n, low, high, dtype)
  return spaces.of { kind = "box", dtype = dtype or "f32", shape = type(n) == "table" and n or { n },
    low = low or -math.huge, high = high or math.huge }
end
local function discrete(n, start) return spaces.of { kind = "discrete", dtype = "i64", shape = {}, n = n, start = start or 0 } end
local function env_of(obs, action)
  return { id = "Made-v0", obs_space = obs, action_space = action, obs = peri.zeros({ 1, table.unpack(obs.shape) }, obs.dtype),
    rows = 1, normalizers = function () return {} end }
end

-- A policy file whose network is what fn(build, x) says.
local function saved(name, fn, obs, action, head, more)
  local Made = nn.class("Made", function () end)
  function Made.program(_, build, x) return fn(build, x) end
  function Made.forward(_, x) return x end
  local path = ("%s/%s.safetensors"):format(folder, name)
  local opts = { net = Made(), head = head, env = env_of(obs, action) }
  for k, v in pairs(more or {}) do opts[k] = v end
  rl.policy.save(path, opts)
  return path
end

-- One whose numbers are its actions, and how many they are, which the first try says.
local function saved_values(name, fn)
  local function try(n) return pcall(saved, name, fn, box(6), box(n), "gaussian", { log_std = peri.zeros { n } }) end
  local ok, path = try(1)
  if ok then return path, 1 end
  local size = 1
  assert(tostring(path):find "came out as", path)
  for n in tostring(path):match "came out as f32 %(([%d, ]+)%)":gmatch "%d+" do size = size * tonumber(n) end
  ok, path = try(size)
  assert(ok, path)
  return path, size
end

local function export(path, to, opts)
  local about, message = rl.policy.export(path, folder .. "/" .. to, opts)
  return assert(about, message)
end

-- Values as C has them in a table.
local function c_list(t, float)
  local list = {}
  for i, v in ipairs(t:contiguous():reshape({ t:numel() }):tolist()) do
    list[i] = float and ("%a"):format(v) .. "F" or ("%d"):format(v)
  end
  return table.concat(list, ", ")
end

-- Compile main with the exported files and run it: its output. With `all`, by every compiler.
local function each_host(main, files, check, all)
  assert(peri.files.write(folder .. "/main.c", main))
  for _, cc in ipairs { table.unpack(compilers, 1, all and #compilers or 1) } do
    local status, text = child.shell(("cd %s && %s -std=c99 -Wall -Wextra -Werror -pedantic -O1 -o host main.c %s -lm && ./host")
      :format(folder, cc, table.concat(files, " ")))
    lu.assertEquals(status, 0, text)
    check(text)
  end
end

local function numbers(text)
  local list = {}
  for word in text:gmatch "%S+" do list[#list + 1] = tonumber(word) end
  return list
end

local function assert_close(there, here, what, tolerance)
  lu.assertEquals(#there, #here, what)
  for i, v in ipairs(here) do
    local w = there[i]
    if v == v or w == w then
      lu.assertTrue(v == w or math.abs(v - w) <= (tolerance or 2e-5) * (1 + math.abs(v)), ("%s: %s, not %s"):format(what, w, v))
    end
  end
end

-- ---- every op ----

local cases = {} -- op -> fn(build, x): a value of f32 from x (n, 6)
local function reals(name, attr, shift)
  cases[name] = function (build, x)
    if shift then x = build:op("add", { build:op("abs", { x }), peri.tensor(shift, "f32") }) end
    return build:op(name, { x }, attr)
  end
end
for name in ("neg abs sign exp expm1 square sin cos erf floor ceil round relu relu_squared tanh sigmoid silu gelu gelu_tanh"
  .. " quick_gelu mish elu leaky_relu softplus contiguous clone softmax log_softmax cumsum cumprod layer_norm rms_norm")
  :gmatch "%S+" do reals(name) end
for name in ("log log1p log2 sqrt rsqrt reciprocal"):gmatch "%S+" do reals(name, nil, 0.1) end
for name in ("isnan isinf isfinite logical_not"):gmatch "%S+" do
  cases[name] = function (build, x) return build:op("to", { build:op(name, { build:op("log", { x }) }) }, { dtype = "f32" }) end
end
reals("clamp", { min = -0.5, max = 0.25 })
local other = function () return peri.tensor({ { 0.5, -1, 2, -0.25, 3, 1 } }, "f32") end
for name in ("add sub mul div maximum minimum atan2 mod floordiv"):gmatch "%S+" do
  cases[name] = function (build, x) return build:op(name, { x, other() }) end
end
function cases.pow(build, x) return build:op("pow", { build:op("abs", { x }), peri.tensor(1.5, "f32") }) end
for name in ("eq ne lt le gt ge"):gmatch "%S+" do
  cases[name] = function (build, x)
    return build:op("to", { build:op(name, { build:op("round", { x }), peri.zeros { 1, 6 } }) }, { dtype = "f32" })
  end
end
for name in ("logical_and logical_or logical_xor"):gmatch "%S+" do
  cases[name] = function (build, x)
    local bits = peri.tensor({ 1, 0, 1, 0, 1, 0 }, "f32"):ne(0)
    return build:op("to", { build:op(name, { build:op("gt", { x, peri.zeros { 1 } }), bits }) }, { dtype = "f32" })
  end
end
function cases.where(build, x)
  return build:op("where", { build:op("gt", { x, peri.zeros { 1 } }), x, build:op("exp", { x }) })
end
function cases.masked_fill(build, x)
  return build:op("masked_fill", { x, build:op("gt", { x, peri.zeros { 1 } }) }, { value = 0.3 })
end
function cases.lerp(build, x) return build:op("lerp", { x, other(), build:op("sigmoid", { x }) }) end
cases["to"] = function (build, x)
  local whole = build:op("to", { build:op("mul", { x, peri.tensor(3, "f32") }) }, { dtype = "i64" })
  return build:op("to", { build:op("sub", { whole, peri.tensor(2, "i64") }) }, { dtype = "f32" })
end
for name in ("sum mean prod max min var std logsumexp norm"):gmatch "%S+" do
  cases[name] = function (build, x)
    local t = build:op("reshape", { x }, { shape = { -1, 2, 3 } })
    return build:op("add", { build:op(name, { t }, { dims = { 1 }, keep = true }),
      build:op(name, { t }, { dims = { -1 }, keep = true }) })
  end
end
for name in ("all any count_nonzero"):gmatch "%S+" do
  cases[name] = function (build, x)
    local t = build:op("reshape", { build:op("relu", { x }) }, { shape = { -1, 2, 3 } })
    return build:op("to", { build:op(name, { t }, { dims = { -1 } }) }, { dtype = "f32" })
  end
end
for name in ("argmax argmin"):gmatch "%S+" do
  cases[name] = function (build, x)
    return build:op("to", { build:op(name, { x }, { dim = -1, keep = true }) }, { dtype = "f32" })
  end
end
-- order
local function grid(build, x) return build:op("reshape", { x }, { shape = { -1, 2, 3 } }) end
local function on_grid(name, attr)
  cases[name] = function (build, x)
    local y = build:op(name, { grid(build, x) }, attr)
    return build:op("flatten", { build:op("exp", { y }) }, { first = 1 })
  end
end
on_grid("reshape", { shape = { -1, 3, 2 } })
on_grid("flatten", { first = 1 })
on_grid("transpose", { dim0 = 1, dim1 = 2 })
on_grid("permute", { dims = { 0, 2, 1 } })
on_grid("narrow", { dim = -1, start = 1, length = 2 })
on_grid("select", { dim = 1, index = 1 })
on_grid("unsqueeze", { dim = 1 })
on_grid("flip", { dims = { 2 } })
on_grid("diagonal", { k = 1 })
on_grid("pad", { pads = { 1, 2 }, value = 0.5 })
on_grid("tile", { counts = { 1, 2, 2 } })
on_grid("repeat_interleave", { n = 3, dim = 2 })
on_grid("roll", { shift = 1, dim = 2 })
on_grid("tril", { k = 0 })
on_grid("triu", { k = 1 })
on_grid("diag_embed", {})
function cases.squeeze(build, x)
  return build:op("squeeze", { build:op("unsqueeze", { build:op("exp", { x }) }, { dim = 1 }) }, { dim = 1 })
end
function cases.expand(build, x)
  local first = build:op("narrow", { x }, { dim = 1, start = 2, length = 1 })
  return build:op("exp", { build:op("expand", { first }, { shape = { -1, 4 } }) })
end
function cases.cat(build, x) return build:op("cat", { x, build:op("exp", { x }), x }, { dim = 1 }) end
function cases.stack(build, x)
  return build:op("flatten", { build:op("stack", { x, build:op("exp", { x }) }, { dim = 2 }) }, { first = 1 })
end
function cases.index_select(build, x)
  local part = build:op("index_select", { x, peri.tensor({ 5, 0, 3 }, "i64") }, { dim = -1 })
  local at = build:op("argmax", { x }, { dim = -1 })
  return build:op("add", { part, build:op("index_select", { peri.randn { 6, 3 }, at }, { dim = 0 }) })
end
function cases.gather(build, x)
  return build:op("gather", { x, build:op("argmax", { x }, { dim = -1, keep = true }) }, { dim = 1 })
end
function cases.embedding(build, x)
  return build:op("embedding", { peri.randn { 6, 4 }, build:op("argmax", { x }, { dim = -1 }) })
end
function cases.one_hot(build, x) return build:op("one_hot", { build:op("argmax", { x }, { dim = -1 }) }, { classes = 6 }) end
-- products
function cases.linear(build, x)
  local h = build:op("linear", { x, peri.randn { 5, 6 }, peri.randn { 5 } }, { act = "silu" })
  return build:op("linear", { h, peri.randn { 9, 5 }, false })
end
function cases.matmul(build, x)
  local t = grid(build, x)
  local square = build:op("matmul", { t, build:op("transpose", { t }, { dim0 = 1, dim1 = 2 }) })
  return build:op("flatten", { build:op("matmul", { square, peri.randn { 2, 5 } }) }, { first = 1 })
end
local function image(build, x, shape) -- (n, c, ...) out of 6 numbers
  local size = 1
  for _, s in ipairs(shape) do size = size * s end
  return build:op("reshape", { build:op("linear", { x, peri.randn { size, 6 }, false }) }, { shape = { -1, table.unpack(shape) } })
end
local function flattened(build, y) return build:op("flatten", { y }, { first = 1 }) end
function cases.conv2d(build, x)
  local y = build:op("conv2d", { image(build, x, { 4, 7, 6 }), peri.randn { 6, 2, 3, 2 }, peri.randn { 6 } },
    { stride = { 2, 1 }, padding = { 1, 0 }, dilation = { 1, 2 }, groups = 2 })
  return flattened(build, y)
end
function cases.conv1d(build, x)
  return flattened(build, build:op("conv1d", { image(build, x, { 3, 9 }), peri.randn { 4, 3, 3 }, false },
    { stride = { 2 }, padding = { 1 } }))
end
for name in ("max_pool2d avg_pool2d"):gmatch "%S+" do
  cases[name] = function (build, x)
    return flattened(build, build:op(name, { image(build, x, { 2, 6, 5 }) }, { kernel_size = { 3, 2 }, stride = { 2, 1 },
      padding = { 1, 0 } }))
  end
end
for name in ("max_pool1d avg_pool1d"):gmatch "%S+" do
  cases[name] = function (build, x)
    return flattened(build, build:op(name, { image(build, x, { 2, 9 }) }, { kernel_size = { 3 }, stride = { 2 }, padding = { 1 } }))
  end
end
function cases.group_norm(build, x)
  return flattened(build, build:op("group_norm", { image(build, x, { 4, 3, 2 }), peri.randn { 4 }, peri.randn { 4 } }, { groups = 2 }))
end
function cases.batch_norm(build, x)
  return flattened(build, build:op("batch_norm", { image(build, x, { 4, 3 }), peri.randn { 4 }, peri.rand { 4 } + 0.5,
    peri.randn { 4 }, peri.randn { 4 } }))
end
function cases.layer_norm(build, x) return build:op("layer_norm", { x, peri.randn { 6 }, peri.randn { 6 } }, { eps = 1e-3 }) end
function cases.rms_norm(build, x) return build:op("rms_norm", { x, peri.randn { 6 } }) end
for name in ("swiglu gated"):gmatch "%S+" do
  cases[name] = function (build, x) return build:op(name, { x }, name == "gated" and { act = "gelu" } or nil) end
end
function cases.silu_mul(build, x) return build:op("silu_mul", { x, build:op("exp", { x }) }) end
function cases.gated_mul(build, x) return build:op("gated_mul", { x, build:op("exp", { x }) }, { act = "sigmoid" }) end
function cases.dropout(build, x) return build:op("dropout", { build:op("exp", { x }) }, { p = 0.5, training = false }) end
for name, gates in pairs { lstm = 4, gru = 3 } do
  cases[name] = function (build, x)
    local state = {}
    for i = 1, gates - 2 do state[i] = build:remember { 5 } end
    local y = { build:op(name, { grid(build, x), peri.randn { gates * 5, 3 }, peri.randn { gates * 5, 5 },
      peri.randn { gates * 5 }, peri.randn { gates * 5 }, table.unpack(state) }, nil, gates - 1) }
    for i = 1, gates - 2 do build:keep(state[i], y[1 + i]) end
    return flattened(build, y[1])
  end
end
function TestExport.test_every_op_that_is_exported_has_a_case_here()
  local missing = {}
  for name in pairs(emitted.ops) do if not cases[name] then missing[#missing + 1] = name end end
  lu.assertEquals(missing, {})
  local ops = {}
  for _, op in ipairs(peri.ops()) do ops[op.name] = true end
  for name in pairs(cases) do lu.assertTrue(ops[name] and emitted.ops[name] ~= nil, name) end
end

-- All of them side by side in one policy, which is one file to compile. Two calls, so that a memory counts.
function TestExport.test_every_op_does_in_c_and_in_lua_what_it_does_in_the_policy()
  local calls = { peri.randn { 2, 6 }, peri.randn { 2, 6 } }
  local names, of = {}, {}
  for name in pairs(cases) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    local _, size = saved_values("one", cases[name])
    for _ = 1, size do of[#of + 1] = name end
  end
  local path, size = saved_values("all", function (build, x)
    local values = {}
    for i, name in ipairs(names) do values[i] = flattened(build, cases[name](build, x)) end
    while #values > 1 do
      local fewer = {}
      for i = 1, #values, 8 do
        fewer[#fewer + 1] = build:op("cat", { table.unpack(values, i, math.min(i + 7, #values)) }, { dim = 1 })
      end
      values = fewer
    end
    return values[1]
  end)
  lu.assertEquals(size, #of)
  local policy, want = assert(rl.policy.load(path)), {}
  for _, obs in ipairs(calls) do
    local action = policy:act(obs, { deterministic = true }):tolist()
    for i = 1, 2 do table.move(action[i], 1, size, #want + 1, want) end
  end
  local function same(there, language)
    lu.assertEquals(#there, #want)
    for i, v in ipairs(want) do
      assert_close({ there[i] }, { v }, ("%s in %s"):format(of[(i - 1) % size + 1], language))
    end
  end
  export(path, "all.lua")
  local agent, there = dofile(folder .. "/all.lua").new(), {}
  for _, obs in ipairs(calls) do
    for _, action in ipairs(assert(agent:act_rows(obs:tolist(), true))) do table.move(action, 1, size, #there + 1, there) end
  end
  same(there, "Lua")
  export(path, "all.c")
  each_host(([[
#include <stdio.h>
#include "all.h"
static const float obs[2][12] = { { %s }, { %s } };
static all_agent agent;
static all_memory memory[2];
static float action[2 * ALL_ACTION];
int main (void) {
  for (int call = 0; call < 2; call++) {
    if (all_act(&agent, memory, 2, obs[call], 1, action)) return 1;
    for (int i = 0; i < 2 * ALL_ACTION; i++) printf("%%.9g\n", (double)action[i]);
  }
  return 0;
}
]]):format(c_list(calls[1], true), c_list(calls[2], true)), { "all.c" }, function (text) same(numbers(text), "C") end, true)
end

-- ---- heads ----

local function draw_host(prefix, more)
  return ([[
#include <stdio.h>
#include "policy.h"
%s
static policy_agent agent;
int main (void) {
  %s action[3 * POLICY_ACTION];
  policy_seed(&agent, 11);
  for (int call = 0; call < 40; call++) {
    if (policy_act(&agent, %s3, obs + call %% 4 * 3 * POLICY_OBS, %s call %% 5 == 0, action)) return 1;
    for (int i = 0; i < 3 * POLICY_ACTION; i++) printf("%%.9g\n", (double)action[i]);
  }
  return 0;
}
]]):format(prefix, more.type or "int64_t", more.memory and "memory, " or "", more.mask and "mask," or "")
end

local heads = {
  categorical = { space = function () return discrete(5, 3) end, size = 5, mask = true },
  greedy = { space = function () return discrete(5, -2) end, size = 5, mask = true, more = { epsilon = 0.5 } },
  multi = { space = function () return spaces.of { kind = "multi_discrete", dtype = "i64", shape = { 2 }, nvec = { 2, 4 } } end,
    size = 6, mask = true, head = "categorical" },
  bernoulli = { space = function () return spaces.of { kind = "multi_binary", dtype = "u8", shape = { 4 } } end, size = 4,
    type = "uint8_t", mask_c = false },
  gaussian = { space = function () return box(2, { -1, 0 }, { 0.5, math.huge }) end, size = 2, type = "float", std = true },
  squashed = { space = function () return box(3, -2, { 1, 2, 3 }, "f64") end, size = 3, type = "double", std = true },
  tanh = { space = function () return box(2, -2, 3) end, size = 2, type = "float" },
  grid = { head = "tanh", space = function () return box({ 2, 2 }, { -1, -2, -3, 0 }, { 1, 1, 2, 8 }) end,
    size = 4, type = "float" },
}

for name, h in pairs(heads) do
  TestExport["test_the_head_" .. name .. "_draws_and_chooses_what_the_policy_does"] = function ()
    local head = h.head or (name == "multi" and "categorical") or name
    local obs_space = box(4)
    local env = env_of(obs_space, h.space())
    local net = nn.Sequential(nn.MLP { 4, 16, h.size, activation = "tanh" })
    local more = { net = net, head = head, env = env, log_std = h.std and peri.randn { h.size } * 0.3 or nil }
    for k, v in pairs(h.more or {}) do more[k] = v end
    local path = folder .. "/head.safetensors"
    rl.policy.save(path, more)
    local policy = assert(rl.policy.load(path))
    local obs, mask = peri.randn { 12, 4 }, nil
    if h.mask then
      mask = peri.tensor({ 1, 0, 1, 1, 1, 1, 1, 0, 0, 1, 0, 1, 1, 1, 1, 1, 1, 0 }, "u8"):narrow(1, 1, 3 * h.size)
        :reshape({ 3, h.size }):ne(0)
    end
    export(path, "policy.c")
    export(path, "policy.lua")
    peri.seed(11)
    local agent, want, there = dofile(folder .. "/policy.lua").new(11), {}, {}
    for call = 0, 39 do
      local part = obs:narrow(1, call % 4 * 3 + 1, 3):contiguous()
      local best = call % 5 == 0
      local action = policy:act(part, { deterministic = best, mask = mask })
      for _, v in ipairs(action:to("f64"):contiguous():reshape({ action:numel() }):tolist()) do want[#want + 1] = v end
      for _, a in ipairs(assert(agent:act_rows(part:tolist(), best, mask and mask:tolist()))) do
        for _, v in ipairs(type(a) == "table" and a or { a }) do there[#there + 1] = v end
      end
    end
    assert_close(there, want, "in Lua")
    local prefix = ("static const float obs[48] = { %s };"):format(c_list(obs, true))
    if mask then prefix = ("%s\nstatic const unsigned char mask[] = { %s };"):format(prefix, c_list(mask:to "u8")) end
    local all = name == "squashed" or name == "greedy"
    each_host(draw_host(prefix, h), { "policy.c" }, function (text) assert_close(numbers(text), want, "in C") end, all)
  end
end

function TestExport.test_a_policy_that_remembers_does_so_by_row_until_it_restarts()
  for _, memory in ipairs { "lstm", "gru" } do
    local env = peri.env.make("CartPole-v1", { n = 2, seed = 1 })
    env:reset()
    local net = rl.RecurrentActorCritic { obs = env.obs_space, action = env.action_space, hidden = 8, memory = memory }
    local path = folder .. "/r.safetensors"
    rl.policy.save(path, { net = net, head = "categorical", env = env })
    local policy = assert(rl.policy.load(path))
    export(path, "r.lua")
    local agent = dofile(folder .. "/r.lua").new(3)
    peri.seed(3)
    for i = 1, 12 do
      local obs = peri.rand { 2, 4 }
      local rng = peri.rng_state()
      if i == 7 then
        policy:restart(peri.tensor({ 1, 0 }, "u8"):ne(0))
        agent:restart(1)
      end
      lu.assertEquals(agent:act_rows(obs:tolist(), true), policy:act(obs, { deterministic = true }):tolist())
      peri.set_rng_state(rng)
    end
    agent:restart()
    policy:restart()
    local obs = peri.rand { 2, 4 }
    lu.assertEquals(agent:act_rows(obs:tolist(), true), policy:act(obs, { deterministic = true }):tolist())
  end
end

function TestExport.test_observations_of_every_space_and_normalised_ones_are_read()
  local function check(path, name, list)
    local policy = assert(rl.policy.load(path))
    export(path, name .. ".lua")
    local agent = dofile(("%s/%s.lua"):format(folder, name)).new()
    for _, obs in ipairs(list) do
      local given = peri.is_tensor(obs) and obs:tolist() or obs
      lu.assertEquals(agent:act(given, true), policy:act(obs, { deterministic = true }))
    end
  end
  local env = peri.env.make("FrozenLake-v1", { seed = 1 })
  local learner = rl.tabular(env, { seed = 1 })
  for s = 1, 16 do for a = 1, 4 do learner.q[s][a] = (s * 7 + a * a * 3) % 11 end end
  env:reset()
  local path = folder .. "/lake.safetensors"
  rl.policy.save(path, { net = learner:network(), head = "greedy", env = env })
  check(path, "lake", { 0, 5, 15 })
  local agent = dofile(folder .. "/lake.lua").new()
  local action, why = agent:act(16, true)
  lu.assertNil(action)
  lu.assertStrContains(why, "none of those that there are")
  lu.assertErrorMsgContains("1 numbers, not 2", agent.act, agent, { 1, 2 })
  export(path, "lake.c")
  each_host([[
#include <stdio.h>
#include "lake.h"
int main (void) {
  static lake_agent agent;
  const int64_t obs[3] = { 3, 16, -1 };
  int64_t action[2] = { 7, 7 };
  int status = lake_act(&agent, 2, obs, 0, 1, action);
  printf("%d %d %d ", status == LAKE_RANGE, agent.row, (int)action[1]);
  printf("%d", lake_act(&agent, 1, obs + 2, 0, 1, action));
  return 0;
}
]], { "lake.c" }, function (text) lu.assertEquals(numbers(text), { 1, 1, 7, 3 }) end)
  local wrapped = peri.env.normalize_obs(peri.env.make("CartPole-v1", { n = 3, seed = 2 }), { clip = 2 })
  wrapped:reset()
  for _ = 1, 30 do wrapped:step(wrapped:sample()) end
  path = folder .. "/scaled.safetensors"
  rl.policy.save(path, { net = nn.MLP { 4, 8, 2, activation = "tanh" }, head = "categorical", env = wrapped })
  local list = {}
  for i = 1, 40 do list[i] = peri.randn { 4 } * 3 end
  check(path, "scaled", list)
  local pixels = spaces.of { kind = "box", dtype = "u8", shape = { 1, 6, 6 }, low = 0, high = 255 }
  local made = env_of(pixels, discrete(3))
  local net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(32, 3))
  path = folder .. "/pixels.safetensors"
  rl.policy.save(path, { net = net, head = "categorical", env = made })
  check(path, "pixels", { peri.tensor({ 0 }, "u8"):expand({ 1, 6, 6 }):contiguous(), peri.randint(0, 255, { 1, 6, 6 }):to "u8" })
end

-- ---- what is refused ----

local function refused(name, fn, want)
  local path = saved_values(name, fn)
  for _, language in ipairs { "c", "lua" } do
    local about, message = rl.policy.export(path, ("%s/%s.%s"):format(folder, name, language))
    lu.assertNil(about)
    lu.assertStrContains(message, want)
    lu.assertFalse(peri.files.exists(("%s/%s.%s"):format(folder, name, language)))
  end
end

function TestExport.test_an_op_that_cannot_be_exported_is_named_and_nothing_is_written()
  refused("sort", function (build, x) return (build:op("sort", { x }, nil, 2)) end, "step 1: the op sort cannot be exported")
  refused("rand", function (build, x) return build:op("add", { x, build:op("rand_like", { x }) }) end, "rand_like")
  refused("norm", function (build, x) return build:op("norm", { x }, { p = 3, dims = { 1 }, keep = true }) end,
    "the op norm with p 3 cannot be exported")
  refused("drop", function (build, x) return build:op("dropout", { x }, { p = 0.5 }) end, "dropout")
end

function TestExport.test_rows_that_act_on_each_other_are_refused()
  refused("mean", function (build, x) return build:op("sub", { x, build:op("mean", { x }, { dims = { 0 }, keep = true }) }) end,
    "rows of a batch act on each other")
end

function TestExport.test_constants_are_computed_by_any_op()
  local path = saved_values("folded", function (build, x)
    local order = build:op("sort", { peri.tensor({ 3, 1, 2, 6, 5, 4 }, "f32") }, nil, 2)
    return build:op("mul", { x, order })
  end)
  export(path, "folded.lua")
  local agent = dofile(folder .. "/folded.lua").new()
  lu.assertEquals(agent:act({ 1, 1, 1, 1, 1, 1 }, true), { 1, 2, 3, 4, 5, 6 })
end

function TestExport.test_no_number_and_no_legal_action_are_said()
  local path = folder .. "/p.safetensors"
  rl.policy.save(path, { net = nn.Linear(4, 2), head = "categorical", env = env_of(box(4), discrete(2)) })
  export(path, "p.lua")
  export(path, "p.c")
  local agent = dofile(folder .. "/p.lua").new()
  local _, why = agent:act({ 0 / 0, 0, 0, 0 })
  lu.assertEquals(why, "the network gave NaN")
  _, why = agent:act({ 0, 0, 0, 0 }, true, { false, false })
  lu.assertEquals(why, "no action is legal")
  each_host([[
#include <math.h>
#include <stdio.h>
#include "p.h"
int main (void) {
  p_agent agent = { 0 };
  const float obs[8] = { 0, 0, 0, 0, NAN, 0, 0, 0 };
  const unsigned char none[2] = { 0, 0 };
  int64_t action[2] = { 9, 9 };
  printf("%d ", p_act(&agent, 2, obs, 0, 0, action) == P_NAN);
  printf("%d %d ", agent.row, (int)action[1]);
  printf("%d", p_act(&agent, 1, obs, none, 1, action) == P_ILLEGAL);
  return 0;
}
]], { "p.c" }, function (text) lu.assertEquals(numbers(text), { 1, 1, 9, 1 }) end)
end

-- Names and metadata of a file that somebody else made do not become code.
function TestExport.test_names_of_others_stay_within_comments()
  local evil = 'a"*/ int x; /* ]] \n#error\n-- '
  local path = folder .. "/evil.safetensors"
  peri.safetensors.save(path, { [evil] = peri.ones { 2, 4 } }, { ["perilune.policy"] = peri.json.encode {
    version = 1, environment = evil, observation = { kind = "box", dtype = "f32", shape = { 4 } },
    action = { kind = "discrete", n = 2 }, program = { { op = "linear", ["in"] = { "obs", evil }, out = { evil .. "y" } } },
    head = { kind = "categorical", ["in"] = { evil .. "y" } } } })
  export(path, "evil.c")
  export(path, "evil.lua")
  lu.assertEquals(dofile(folder .. "/evil.lua").new():act({ 1, 2, 3, 4 }, true), 0)
  each_host('#include "evil.h"\nint main (void) { return EVIL_OBS != 4; }\n', { "evil.c" }, function () end)
  for _, name in ipairs { "2x.c", "my policy.c", "a-b.c", "int.c", "x;y.c" } do export(path, name) end
  each_host('#include "2x.h"\n#include "my policy.h"\n#include "int.h"\nint main (void) { return P_2X_OBS + INT_OBS != 8; }\n',
    { "2x.c", "'my policy.c'", "int.c", "'x;y.c'" }, function () end)
  for _, name in ipairs { "", "2x", "a b", "x;y", ("x"):rep(61), "ü" } do
    lu.assertErrorMsgContains("letters, digits and _", rl.policy.export, path, folder .. "/n.c", { name = name })
  end
  lu.assertErrorMsgContains("ends in .c or .lua", rl.policy.export, path, folder .. "/n.py")
  local about, message = rl.policy.export(folder .. "/none.safetensors", folder .. "/n.c")
  lu.assertNil(about)
  lu.assertStrContains(message, "none.safetensors")
end

function TestExport.test_the_lua_file_runs_without_perilune_and_sets_no_global()
  local path = folder .. "/p.safetensors"
  rl.policy.save(path, { net = nn.MLP { 4, 8, 2, activation = "gelu" }, head = "categorical", env = env_of(box(4), discrete(2)) })
  export(path, "p.lua")
  local alone = setmetatable({ math = math, setmetatable = setmetatable, ipairs = ipairs, type = type, error = error }, {
    __index = function (_, key) error("reads the global " .. key) end, __newindex = function (_, key) error("sets " .. key) end })
  local agent = assert(loadfile(folder .. "/p.lua", "t", alone))().new(1)
  lu.assertEquals(math.type(agent:act { 1, 2, 3, 4 }), "integer")
  lu.assertEquals(#agent:values { 1, 2, 3, 4 }, 2)
end

-- In the Lua file what the caller gets wrong raises where it was called; what the numbers bring about is nil and why.
function TestExport.test_mistakes_raise_and_what_has_no_action_is_nil_and_a_message()
  local path = folder .. "/p.safetensors"
  rl.policy.save(path, { net = nn.Linear(4, 2), head = "categorical", env = env_of(box(4), discrete(2)) })
  export(path, "p.lua")
  local agent = dofile(folder .. "/p.lua").new(1)
  local here = debug.getinfo(1, "S").short_src
  for want, call in pairs {
    ["an observation has 4 numbers, not 3"] = function (f) return f { 1, 2, 3 } end,
    ["number 4 of the observation is a string"] = function (f) return f { 1, 2, 3, "4" } end,
    ["legal has 1 entries, expected 2"] = function (f) return f({ 1, 2, 3, 4 }, { true }) end,
  } do
    for name, f in pairs {
      act = function (obs, legal) local a = agent:act(obs, true, legal) return a end,
      act_rows = function (obs, legal) local a = agent:act_rows({ obs }, true, legal and { legal }) return a end,
      values = not want:find "legal" and function (obs) local a = agent:values(obs) return a end or nil,
    } do
      local ok, why = pcall(call, f)
      lu.assertFalse(ok, name)
      lu.assertStrContains(why, ("%s:%d: %s"):format(here, debug.getinfo(f, "S").linedefined, want))
    end
  end
  lu.assertEquals({ agent:act({ 1, 2, 3, 0 / 0 }) }, { nil, "the network gave NaN" })
  lu.assertEquals({ agent:act({ 1, 2, 3, 4 }, false, { false, false }) }, { nil, "no action is legal" })
  lu.assertEquals({ agent:act_rows({ { 1, 2, 3, 4 }, { 1, 2, 3, 0 / 0 } }) }, { nil, "the network gave NaN", 2 })
end

function TestExport.test_the_command_writes_both_and_asks_before_it_writes_over()
  local path = folder .. "/policy.safetensors"
  rl.policy.save(path, { net = nn.Linear(4, 2), head = "categorical", env = env_of(box(4), discrete(2)) })
  local function run(flags) return child.shell(("%s export %s"):format(child.program, flags)) end
  local status, text = run(("%s %s/a.c --name agent"):format(folder, folder))
  lu.assertEquals(status, 0, text)
  lu.assertStrContains(text, "head categorical, 10 parameters")
  lu.assertStrContains(assert(peri.files.read(folder .. "/a.h")), "int agent_act (agent_agent *a")
  status, text = run(("%s %s/a.c"):format(path, folder))
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "a.c: is there already (--force writes over it)")
  lu.assertEquals(run(("%s %s/a.c --force"):format(path, folder)), 0)
  for want, flags in pairs { ["ends in .c or .lua"] = path .. " x.py", ["cannot open"] = folder .. "/no " .. folder .. "/x.c" } do
    status, text = run(flags)
    lu.assertEquals(status, 1)
    lu.assertStrContains(text, want)
  end
  lu.assertEquals((run(path)), 2)
end

-- A frame of a game has room for it: a net of two layers of 64 within a tenth of a millisecond.
function TestExport.test_an_action_takes_less_than_a_millisecond()
  local path = folder .. "/p.safetensors"
  rl.policy.save(path, { net = nn.MLP { 8, 256, 256, 4, activation = "tanh" }, head = "categorical", env = env_of(box(8), discrete(4)) })
  export(path, "p.c")
  each_host([[
#include <stdio.h>
#include <time.h>
#include "p.h"
int main (void) {
  static p_agent agent;
  const float obs[8] = { 1, 2, 3, 4, 5, 6, 7, 8 };
  int64_t action;
  clock_t t = clock();
  for (int i = 0; i < 200; i++) p_act(&agent, 1, obs, 0, 0, &action);
  printf("%g", (double)(clock() - t) / CLOCKS_PER_SEC / 200 * 1e3);
  return 0;
}
]], { "p.c" }, function (text) lu.assertTrue(tonumber(text) < 1, text .. " ms") end)
end

os.exit(lu.LuaUnit.run())
