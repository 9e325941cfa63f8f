-- Networks of action values: what dueling, noise and distributions do to them, several at once, and as policy files.
local lu = require "luaunit"
local peri = require "perilune"
local nn, rl = peri.nn, peri.rl

TestQNetwork = {}

-- Every kind there is.
local kinds = {}
for _, dueling in ipairs { false, true } do
  for _, noisy in ipairs { false, true } do
    for _, atoms in ipairs { 1, 5 } do
      kinds[#kinds + 1] = { hidden = { 6, 7 }, dueling = dueling, noisy = noisy, atoms = atoms,
        low = atoms > 1 and -1 or nil, high = atoms > 1 and 3 or nil }
    end
  end
end

local function near(a, b, tolerance)
  lu.assertEquals(a.shape, b.shape)
  lu.assertTrue((a - b):abs():max():item() <= (tolerance or 1e-5))
end

function TestQNetwork.test_dueling_values_are_that_of_the_state_and_advantages_without_their_mean()
  local net = rl.QNetwork(4, 3, { hidden = { 8 }, dueling = true })
  local x = peri.randn { 5, 4 }
  local y = net.layers(x)
  lu.assertEquals(y.shape, { 5, 4 })
  near(net(x):mean(-1), y:select(2, 1)) -- the mean of the actions is the state's
  near(net(x):select(2, 3) - net(x):select(2, 1), y:select(2, 4) - y:select(2, 2))
end

function TestQNetwork.test_values_of_distributions_are_their_means()
  local net = rl.QNetwork(4, 2, { hidden = { 8 }, atoms = 3, low = -2, high = 2 })
  local x = peri.randn { 5, 4 }
  local p = net(x):softmax(-1)
  lu.assertEquals(p.shape, { 5, 2, 3 })
  near(net:values(x), p:select(3, 3) * 2 - p:select(3, 1) * 2)
end

function TestQNetwork.test_every_kind_is_a_policy_file_that_acts_as_it_does()
  local env = peri.env.make("CartPole-v1", { n = 6, seed = 1 })
  env:reset()
  local path = os.tmpname()
  for _, o in ipairs(kinds) do
    local net = rl.QNetwork(4, 2, o)
    rl.policy.save(path, { net = net:means(), head = "greedy", env = env }) -- which compares them, too
    local obs = peri.randn { 50, 4 }
    net:eval()
    lu.assertEquals(assert(rl.policy.load(path)):act(obs, { deterministic = true }):tolist(),
      net:values(obs):argmax(-1):tolist())
  end
  os.remove(path)
end

function TestQNetwork.test_several_networks_at_once_say_what_each_says_alone()
  for _, o in ipairs(kinds) do
    local many = nn.Copies(3, function () return rl.QNetwork(4, 2, o) end, { seeds = { 7, 8, 9 } })
    local x = peri.randn { 3, 5, 4 }
    many:eval()
    local all = many(x)
    for i = 1, 3 do
      local one = many:single(i)
      one:eval()
      near(all:select(1, i), one(x:select(1, i)))
    end
  end
end

-- Each network draws noise of its own, which moves all of its rows alike.
function TestQNetwork.test_noise_is_drawn_for_each_network()
  local many = nn.Copies(2, function () return rl.QNetwork(4, 3, { hidden = { 6 }, noisy = true }) end, { seeds = { 5, 5 } })
  local x = peri.randn({ 1, 1, 4 }):expand { 2, 4, 4 }:contiguous()
  many:train()
  local y = many(x)
  near(y:select(1, 1):select(1, 1), y:select(1, 1):select(1, 4), 1e-6)
  lu.assertTrue((y:select(1, 1) - y:select(1, 2)):abs():max():item() > 1e-3)
  lu.assertTrue((y - many(x)):abs():max():item() > 1e-3)
  y:sum():backward()
  for _, p in ipairs(many:parameters()) do lu.assertNotNil(p.grad) end
end

function TestQNetwork.test_wrong_options_are_named()
  for message, call in pairs {
    ["inputs is missing, expected an integer in [1, inf), or a space"] = function () rl.QNetwork(nil, 2) end,
    ["actions is 0, expected an integer in [1, inf)"] = function () rl.QNetwork(4, 0) end,
    ["inputs are Discrete(500), expected a Box of one dim"] = function () rl.QNetwork(peri.env.make("Taxi-v4").obs_space, 2) end,
    ["expected Discrete"] = function () rl.QNetwork(4, peri.env.make("Pendulum-v1").action_space) end,
    ["low is nil with 5 atoms, expected the return of an atom"] = function () rl.QNetwork(4, 2, { atoms = 5, high = 1 }) end,
    ["high is 1 with 1 atom, expected none"] = function () rl.QNetwork(4, 2, { high = 1 }) end,
    ["low 2 is not below high 1"] = function () rl.QNetwork(4, 2, { atoms = 5, low = 2, high = 1 }) end,
    ['unknown option "duelling"; did you mean "dueling"?'] = function () rl.QNetwork(4, 2, { duelling = true }) end,
  } do lu.assertErrorMsgContains(message, call) end
end

os.exit(lu.LuaUnit.run())
