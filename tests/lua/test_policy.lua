-- Policy files: what they do is what the network does, for every layer and head; evaluation apart from training.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local rl, nn = peri.rl, peri.nn

TestPolicy = {}

local path
scratch.each(TestPolicy, function(folder)
  path = folder .. "/policy.safetensors"
  peri.seed(1)
end)

local function cartpole(n) return peri.env.make("CartPole-v1", { n = n or 16, seed = 1 }) end

local function saved(net, head, env, more)
  local opts = { net = net, head = head, env = env }
  for k, v in pairs(more or {}) do opts[k] = v end
  rl.policy.save(path, opts)
  return assert(rl.policy.load(path))
end

-- An environment of the given spaces that is only looked at.
local function space_env(obs, action, rows)
  return { id = "Made-v0", obs_space = obs, action_space = action, obs = rows, rows = rows and rows:size(1),
           normalizers = function() return {} end }
end
local spaces = require "perilune.env.space"
local function box(n, low, high)
  return spaces.of { kind = "box", dtype = "f32", shape = { n }, low = low or -math.huge, high = high or math.huge }
end
local function discrete(n) return spaces.of { kind = "discrete", dtype = "i64", shape = {}, n = n, start = 0 } end

local layers = {
  Linear = function() return nn.Linear(6, 6) end,
  MLP = function() return nn.MLP { 6, 5, 6, activation = "tanh" } end,
  LayerNorm = function() return nn.LayerNorm(6) end,
  RMSNorm = function() return nn.RMSNorm(6) end,
  Dropout = function() return nn.Dropout(0.5) end,
  Identity = function() return nn.Identity() end,
  Flatten = function() return nn.Flatten() end,
  NoisyLinear = function() return nn.NoisyLinear(6, 6) end,
  LeakyReLU = function() return nn.LeakyReLU(0.3) end,
  ELU = function() return nn.ELU(0.7) end,
  GELU = function() return nn.GELU "tanh" end,
  Softplus = function() return nn.Softplus(2, 10) end,
}
for _, a in ipairs(peri.activations()) do
  if nn[a.layer] and a.name ~= "swiglu" then layers[a.layer] = layers[a.layer] or function() return nn[a.layer]() end end
end

function TestPolicy.test_every_layer_does_in_a_file_what_it_does_in_lua()
  local obs = peri.randn { 64, 6 }
  local env = space_env(box(6), box(6), obs)
  for name, make in pairs(layers) do
    local net = nn.Sequential(nn.Linear(6, 6, { activation = "silu" }), make(), nn.Linear(6, 6))
    local policy = saved(net, "gaussian", env, { log_std = peri.zeros { 6 } })
    net:eval()
    local there, here = policy:act(obs, { deterministic = true }), net(obs):detach()
    lu.assertTrue((there - here):abs():max():item() < 1e-6, name)
  end
end

function TestPolicy.test_a_class_says_its_own_part()
  local Dueling = nn.class("Dueling", function(self) self.value, self.advantage = nn.Linear(4, 1), nn.Linear(4, 2) end)
  function Dueling:forward(x)
    local a = self.advantage(x)
    return self.value(x) + a - a:mean(-1, true)
  end
  local env = cartpole()
  local net = nn.Sequential(nn.Linear(4, 4, { activation = "relu" }), Dueling())
  lu.assertErrorMsgContains("policy: net.1 (Dueling) cannot be put into a policy file", rl.policy.save, path,
    { net = net, head = "greedy", env = env })
  function Dueling:program(build, x)
    local a = build:module(self.advantage, x)
    local centred = build:op("sub", { a, build:op("mean", { a }, { dims = { -1 }, keep = true }) })
    return build:op("add", { build:module(self.value, x), centred })
  end
  local policy = saved(net, "greedy", env)
  local obs = peri.randn { 200, 4 }
  lu.assertEquals(policy:act(obs):tolist(), net(obs):argmax(-1):tolist())
  function Dueling:program(build, x) return build:module(self.advantage, x * 1) end -- luacheck: ignore 212
  lu.assertError(rl.policy.save, path, { net = net, head = "greedy", env = env })
end

function TestPolicy.test_a_program_that_acts_otherwise_is_refused()
  local Wrong = nn.class("Wrong", function(self) self.layer = nn.Linear(4, 2) end)
  function Wrong:forward(x) return self.layer(x) end
  function Wrong:program(build, x) return build:op("neg", { build:module(self.layer, x) }) end
  local env = cartpole()
  env:reset()
  lu.assertErrorMsgContains("acts otherwise than the network", rl.policy.save, path,
    { net = Wrong(), head = "categorical", env = env })
end

function TestPolicy.test_what_no_file_can_hold_is_named()
  local env = cartpole()
  lu.assertErrorMsgContains("net (Sequential) has a function as part 2", rl.policy.save, path,
    { net = nn.Sequential(nn.Linear(4, 2), function(x) return x end), head = "greedy", env = env })
  lu.assertErrorMsgContains("head", rl.policy.save, path, { net = nn.Linear(4, 2), head = "best", env = env })
  lu.assertErrorMsgContains("does not fit the action space", rl.policy.save, path,
    { net = nn.Linear(4, 2), head = "tanh", env = env })
  lu.assertErrorMsgContains("colour", rl.policy.save, path, { net = nn.Linear(4, 2), head = "greedy", env = env, colour = 1 })
  lu.assertErrorMsgContains("net is nn.Copies of 3 networks, and a file holds one: give it copies:single(i)", rl.policy.save,
    path, { net = nn.Copies(3, function () return nn.Linear(4, 2) end), head = "greedy", env = env })
  local policy, message = rl.policy.load(path .. ".none")
  lu.assertNil(policy)
  lu.assertStrContains(message, "cannot open")
  peri.safetensors.save(path, { x = peri.ones { 1 } })
  policy, message = rl.policy.load(path)
  lu.assertNil(policy)
  lu.assertStrContains(message, "no policy")
end

function TestPolicy.test_it_draws_by_its_probabilities()
  local env = space_env(box(1), discrete(3), peri.zeros { 1, 1 })
  local net = nn.Linear(1, 3)
  peri.no_grad(function () net.bias:copy_(peri.tensor({ 0.2, 0.5, 0.3 }, "f32"):log()) net.weight:fill_(0) end)
  local policy = saved(net, "categorical", env)
  local actions = policy:act(peri.zeros { 20000, 1 })
  for a, p in ipairs { 0.2, 0.5, 0.3 } do
    lu.assertAlmostEquals(actions:eq(a - 1):to "f32":mean():item(), p, 0.015)
  end
  local mask = peri.tensor { { 1, 0, 1 } }:ne(0):expand { 20000, 3 }:contiguous()
  actions = policy:act(peri.zeros { 20000, 1 }, { mask = mask })
  lu.assertAlmostEquals(actions:eq(0):to "f32":mean():item(), 0.4, 0.015)
  lu.assertEquals(actions:eq(1):any():item(), false)
end

function TestPolicy.test_a_gaussian_and_a_squashed_head_draw_with_their_deviation()
  local env = space_env(box(1), box(2, -100, 100), peri.zeros { 1, 1 })
  local net = nn.Linear(1, 2)
  peri.no_grad(function () net.bias:copy_(peri.tensor({ 1, -2 }, "f32")) net.weight:fill_(0) end)
  local policy = saved(net, "gaussian", env, { log_std = peri.tensor({ 0, -1 }, "f32") })
  local actions = policy:act(peri.zeros { 20000, 1 })
  local mean, std = actions:mean(1):tolist(), actions:std(1):tolist()
  lu.assertAlmostEquals(mean[1], 1, 0.03)
  lu.assertAlmostEquals(mean[2], -2, 0.03)
  lu.assertAlmostEquals(std[1], 1, 0.03)
  lu.assertAlmostEquals(std[2], math.exp(-1), 0.02)
  policy = saved(net, "squashed", env, { log_std = peri.tensor({ 0, -1 }, "f32") })
  local y = policy:act(peri.zeros { 20000, 1 }):div(100)
  actions = ((1 + y) / (1 - y)):log() / 2 -- atanh
  lu.assertAlmostEquals(actions:std(1):tolist()[1], 1, 0.05)
end

function TestPolicy.test_bounds_of_a_matrix_are_those_of_its_elements()
  local space = spaces.of { kind = "box", dtype = "f32", shape = { 2, 2 }, low = { { -1, -2 }, { -3, -math.huge } },
    high = { { 1, 2 }, { 3, 4 } } }
  local net = nn.Linear(1, 4)
  local policy = saved(net, "gaussian", space_env(box(1), space, peri.zeros { 1, 1 }), { log_std = peri.zeros { 4 } })
  lu.assertEquals(policy:act(peri.tensor({ 0 }, "f32"), { deterministic = true }).shape, { 2, 2 })
  peri.no_grad(function () net.bias:fill_(9) net.weight:fill_(0) end)
  policy = saved(net, "gaussian", space_env(box(1), space, peri.zeros { 1, 1 }), { log_std = peri.zeros { 4 } })
  lu.assertEquals(policy:act(peri.zeros { 1, 1 }, { deterministic = true }):tolist(), { { { 1, 2 }, { 3, 4 } } })
end

function TestPolicy.test_one_observation_gives_one_action()
  local policy = saved(nn.Linear(4, 2), "categorical", cartpole())
  local env = peri.env.make("CartPole-v1", { seed = 1 })
  local action = policy:act(env:reset(), { deterministic = true })
  lu.assertEquals(math.type(action), "integer")
  env:step(action)
  lu.assertErrorMsgContains("expected rows of f32 (4)", policy.act, policy, peri.ones { 3, 5 })
  lu.assertErrorMsgContains("expected rows of f32 (4)", policy.act, policy, peri.ones({ 3, 4 }, "f64"))
end

-- ---- evaluation ----

function TestPolicy.test_evaluation_plays_the_first_episodes_of_each_row()
  local env = cartpole(4)
  local function right() return peri.ones({ 4 }, "i64") end
  local all = rl.evaluate(env, right, { episodes = 10, seed = 5 })
  lu.assertEquals(#all.returns, 10)
  lu.assertEquals(all.returns, all.lengths)
  local want = {} -- one environment after the other
  for row = 1, 4 do
    local one, n = peri.env.make("CartPole-v1", { seed = 4 + row }), row <= 2 and 3 or 2
    for _ = 1, n do
      local steps, terminated = 0
      one:reset()
      repeat
        _, _, terminated = one:step(1)
        steps = steps + 1
      until terminated
      want[#want + 1] = steps
    end
  end
  lu.assertEquals(all.lengths, want)
  lu.assertEquals(rl.evaluate(env, right, { episodes = 10, seed = 5 }).returns, all.returns)
end

function TestPolicy.test_evaluation_leaves_training_where_it_was()
  local env, test = cartpole(2), cartpole(2)
  env:reset()
  local before = env.obs:tolist()
  rl.evaluate(test, function () return peri.zeros({ 2 }, "i64") end, { episodes = 3, seed = 1 })
  lu.assertEquals(env.obs:tolist(), before)
end

function TestPolicy.test_evaluation_says_when_episodes_do_not_end()
  local policy = function () return peri.zeros({ 2 }, "i64") end
  lu.assertErrorMsgContains("have not ended after 5 steps", rl.evaluate, cartpole(2), policy, { max_steps = 5 })
  lu.assertErrorMsgContains("make it with n", rl.evaluate, peri.env.make "CartPole-v1", policy)
end
