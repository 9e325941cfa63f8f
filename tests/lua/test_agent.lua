-- algo.agent: the numbers of recipes/classic/ppo.lua to the last digit, its hooks, what it refuses, resuming.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local killed = require "killed"
local scratch = require "scratch"

local nn, optim, rl, algo = peri.nn, peri.optim, peri.rl, peri.algo

TestAgent = {}

local STEPS <const>, ENVS <const> = 16, 4

-- The metrics of recipes/classic/ppo.lua with some flags.
local function rows_of_the_recipe(flags)
  local folder = scratch.folder()
  lu.assertTrue(os.execute(("%s run recipes/classic/ppo.lua --timesteps %d --envs %d --steps %d --hidden 8 --eval 2 "
    .. "--log_updates 1 --seed 3 %s --runs %s --run r >%s/log 2>&1"):format(child.program, 5 * ENVS * STEPS, ENVS, STEPS,
    flags, folder, folder)) == true, peri.files.read(folder .. "/log"))
  local list = {}
  for line in assert(peri.files.read(folder .. "/r/metrics.jsonl")):gmatch "[^\n]+" do list[#list + 1] = peri.json.decode(line) end
  peri.files.remove_tree(folder)
  return list
end

local function maker(env, more)
  local shape = { obs = env.obs_space, action = env.action_space, hidden = { 8, 8 } }
  for k, v in pairs(more or {}) do shape[k] = v end
  return function () return rl.ActorCritic(shape) end
end

-- An agent that is set up in the order of the recipe, so that the same numbers are drawn.
local function like_the_recipe(id, seeds, more, shape)
  peri.seed(3)
  local env = peri.env.make(id, { n = seeds * ENVS, seed = 3, copy = false })
  local test = peri.env.make(id, { n = seeds * 2, copy = false })
  local new = maker(env, shape)
  local net = seeds > 1 and nn.Copies(seeds, new, { seeds = peri.arange(seeds):add(3):tolist() }) or new()
  local o = { env = env, net = net, optimizer = optim.Adam(net:parameters(), { lr = 2.5e-4, eps = 1e-5 }), steps = STEPS,
    ent_coef = 0.01, clip_value = 0.2, schedule = function (update) return 2.5e-4 * (1 - (update - 1) / 5) end }
  for k, v in pairs(more or {}) do o[k] = v or nil end
  return algo.agent.new(o), test, o
end

function TestAgent.test_it_is_the_recipe_to_the_last_digit()
  for _, case in ipairs {
    { "", "CartPole-v1", 1 }, { "--seeds 3", "CartPole-v1", 3 },
    { "--env Taxi-v4 --shared", "Taxi-v4", 1, {}, { shared = true } },
    { "--seeds 2 --truncation ignore --lam 0.5 --clip_value 0 --epochs 2", "CartPole-v1", 2,
      { truncation = "ignore", lam = 0.5, clip_value = false, epochs = 2 } },
    { "--target_kl 1e-9 --max_norm 0", "CartPole-v1", 1, { target_kl = 1e-9, clip_norm = math.huge } } } do
    local flags, id, seeds, more, shape = table.unpack(case)
    local o = {}
    for k, v in pairs(more or {}) do o[k] = v end
    local agent, test = like_the_recipe(id, seeds, o, shape)
    agent:play(test, { episodes = 2, greedy = false, seed = 1000000 })
    local rows = rows_of_the_recipe(flags)
    lu.assertEquals(#rows, 5)
    for i, row in ipairs(rows) do
      local found = agent:step()
      found.eval = peri.tensor(agent:play(test, { episodes = 2, seed = 1000000 }).of_seed, "f64"):mean():item()
      for _, name in ipairs { "return", "eval", "approx_kl", "clip_fraction", "entropy", "value_loss", "explained_variance" } do
        local want = row[name] ~= peri.json.null and row[name] or nil
        if found[name] == found[name] then lu.assertEquals(found[name], want, ("%s, row %d: %s"):format(flags, i, name)) end
      end
      lu.assertEquals(found.env_steps, i * ENVS * STEPS)
    end
  end
end

local function agent_of(id, seeds, more, how)
  peri.seed(7)
  local env = how and how.env or peri.env.make(id, { n = seeds * ENVS, seed = 5 })
  local net = nn.Copies(seeds, maker(env), { seeds = peri.arange(seeds):add(1):tolist() })
  local o = { env = env, net = net, optimizer = optim.Adam(net:parameters(), { lr = 1e-2 }), steps = STEPS, epochs = 2 }
  for k, v in pairs(more or {}) do o[k] = v end
  return algo.agent.new(o), net
end

local function bytes(net)
  local list = {}
  for i, p in ipairs(net:parameters()) do list[i] = p:bytes() end
  return table.concat(list)
end

local kinds = { "CartPole-v1", "Pendulum-v1", "Taxi-v4", "FrozenLake-v1" } -- vectors, boxes, masks, numbered states

-- The hook reward is what is learned from: that of the environment gives the same weights, another one others.
function TestAgent.test_a_reward_that_is_the_environments_changes_nothing()
  for _, id in ipairs(kinds) do
    local found = {}
    for i, hook in ipairs { false, function (r) return r:get "reward" end, function (r) return r:get("reward") + 1 end } do
      local agent, net = agent_of(id, 2, { reward = hook or nil })
      local m
      for _ = 1, 2 do m = agent:step() end
      found[i] = { bytes(net), m }
      lu.assertEquals(m.true_reward ~= nil, hook ~= false)
    end
    lu.assertTrue(found[1][1] == found[2][1], id)
    lu.assertFalse(found[1][1] == found[3][1], id)
    lu.assertEquals(found[2][2].true_reward, found[1][2].reward)
    lu.assertEquals(found[2][2]["return"], found[1][2]["return"])
  end
end

function TestAgent.test_the_rollout_keeps_the_true_rewards_beside_those_learned_from()
  local agent = agent_of("Pendulum-v1", 2, { reward = function (r) return r:get("logp") * 2 end })
  local m = agent:step()
  local r = agent.rollout
  lu.assertTrue(r:get("reward"):sub(r:get("logp"):mul(2)):abs():max():item() == 0)
  lu.assertTrue(r:get("true_reward"):max():item() <= 0) -- Pendulum's
  lu.assertAlmostEquals(m.true_reward, r:get("true_reward"):mean():item(), 1e-6)
  lu.assertAlmostEquals(m.reward, r:get("reward"):mean():item(), 1e-6)
end

-- Advantages by brute force: the sum over the rest of the episode of (gamma lam)^k delta.
function TestAgent.test_advantages_are_those_of_the_rewards_of_the_hook()
  for _, lam in ipairs { 0, 0.6, 1 } do
    local agent
    agent = agent_of("CartPole-v1", 2, { lam = lam, gamma = 0.9, epochs = 1, env = peri.env.make("CartPole-v1",
      { n = 8, seed = 1, max_steps = 7 }), reward = function (r) return r:get("obs"):select(3, 1) end })
    agent:step()
    local r = {}
    for _, name in ipairs { "reward", "value", "terminated", "truncated", "advantage", "returns" } do
      r[name] = agent.rollout:get(name):tolist()
    end
    -- the values of what was learned before the step: of the same rollout, from its own fields
    local cut = 0
    for row = 1, 8 do
      for t = 1, STEPS - 1 do
        local ended = r.truncated[t][row] ~= false and r.truncated[t][row] ~= 0
        if not ended then
          local over = r.terminated[t][row] ~= false and r.terminated[t][row] ~= 0
          local delta = r.reward[t][row] + (over and 0 or 0.9 * r.value[t + 1][row]) - r.value[t][row]
          local want = delta + (over and 0 or 0.9 * lam * r.advantage[t + 1][row])
          lu.assertAlmostEquals(r.advantage[t][row], want, 1e-4)
        else cut = cut + 1 end
        lu.assertAlmostEquals(r.returns[t][row], r.advantage[t][row] + r.value[t][row], 1e-5)
      end
    end
    lu.assertTrue(cut > 0)
  end
end

function TestAgent.test_the_hook_of_advantages_says_what_is_learned()
  local seen
  local function hook(rollout, advantage, returns)
    seen = { rollout:get("reward").shape, advantage.shape, returns.shape }
    return advantage:mul(0), returns:add(1)
  end
  local agent, net = agent_of("CartPole-v1", 2, { advantage = hook, vf_coef = 0, normalize = false })
  local before = bytes(net)
  local m = agent:step()
  lu.assertEquals(seen, { { STEPS, 8 }, { STEPS, 8 }, { STEPS, 8 } })
  lu.assertTrue(before == bytes(net)) -- no advantage, no loss of values: no gradient
  lu.assertEquals(m.no_op, 1)
  lu.assertEquals(agent:step().no_op, 2)
  local r = agent.rollout
  lu.assertTrue(r:get("returns"):sub(r:get("value")):sub(1):abs():max():item() >= 0)
end

function TestAgent.test_hooks_may_learn_something_of_their_own()
  local layer = nn.Linear(4, 1)
  local opt = optim.Adam(layer:parameters(), { lr = 1e-2 })
  local function learn(rollout)
    local loss = layer(rollout:get "obs"):square():mean()
    loss:backward()
    opt:step():zero_grad()
    return rollout:get "reward"
  end
  local before, found = layer.weight:bytes(), {}
  for i, more in ipairs { { reward = learn, advantage = function (r, a) learn(r); return a end }, {} } do
    local agent, net = agent_of("CartPole-v1", 2, more)
    agent:step()
    found[i] = bytes(net)
  end
  lu.assertFalse(layer.weight:bytes() == before)
  lu.assertTrue(found[1] == found[2])
end

function TestAgent.test_what_hooks_give_is_looked_at()
  for name, bad in pairs { number = 3, ["(4)"] = peri.zeros { 4 }, ["(8, 16)"] = peri.zeros { 8, 16 }, ["nil"] = false,
    ["not finite"] = peri.full({ 16, 8 }, 0 / 0) } do
    for _, hook in ipairs { "reward", "advantage" } do
      local agent, net = agent_of("CartPole-v1", 2, { [hook] = function () return bad or nil end })
      local before = bytes(net)
      lu.assertErrorMsgContains(("agent: %s gave"):format(hook), agent.step, agent)
      lu.assertErrorMsgContains(name, agent.step, agent)
      lu.assertEquals({ agent.at, agent.seen, bytes(net) == before }, { 0, 0, true })
    end
  end
end

function TestAgent.test_options_that_do_not_fit_are_refused()
  local function bad(more, how) return select(2, pcall(agent_of, "CartPole-v1", 2, more, how)) end
  lu.assertStrContains(bad { seeds = 3 }, "agent: seeds is 3, the net has 2 learners")
  lu.assertStrContains(bad { minibatches = 65 }, "minibatches is 65, a rollout has 64 steps")
  lu.assertStrContains(bad { target_kl = 0.1 }, "target_kl ends the passes of one learner")
  lu.assertStrContains(bad { env = peri.env.make "CartPole-v1" }, "make it with n")
  lu.assertStrContains(bad { env = peri.env.make("CartPole-v1", { n = 3 }) }, "2 learners do not share 3 environments")
  local games = peri.env.make("TicTacToe-v0", { n = 3 }) -- 6 rows, and yet a game would have two learners
  lu.assertStrContains(bad { env = games }, "2 learners do not share 3 environments: make n a multiple of 2")
  lu.assertStrContains(bad { env = peri.env.make("CartPole-v1", { n = 2, autoreset = "next_step" }) }, 'expected "same_step"')
  lu.assertStrContains(bad { net = nn.MLP { 4, 2 } }, "expected rl.ActorCritic")
  lu.assertStrContains(bad { gama = 1 }, 'unknown option "gama"; did you mean "gamma"?')
  lu.assertStrContains(bad { lam = 2 }, "lam is 2, expected a number in [0, 1]")
end

-- Named numbers of each step are in the rollout.
function TestAgent.test_an_optimizer_over_another_network_is_an_error_that_names_it()
  local other = peri.optim.Adam(nn.Linear(2, 2), { lr = 0.1 })
  local agent = agent_of("CartPole-v1", 2, { optimizer = other })
  local ok, problem = pcall(agent.step, agent)
  lu.assertFalse(ok)
  lu.assertStrContains(problem, "no gradient reaches the parameters of optimizer")
end

function TestAgent.test_metrics_of_the_environment_are_kept()
  local env = peri.env.make({ obs = peri.env.box { low = -10, high = 10, shape = { 2 } }, action = peri.env.discrete(2), metrics = { "cost", "gain" },
    max_steps = 5, reset = function (s, obs) s.t = 0; obs[1], obs[2] = 0, 0 end,
    step = function (s, action, obs, _, _, metrics)
      s.t = s.t + 1
      obs[1], obs[2] = s.t / 10, action
      metrics.cost, metrics.gain = action, s.t
      return action, false, false
    end }, { n = 2 * ENVS, seed = 1 })
  local agent = agent_of(nil, 2, nil, { env = env })
  agent:step()
  local m = agent.rollout:get "metrics"
  lu.assertEquals(m.shape, { STEPS, 8, 2 })
  lu.assertEquals(m:select(3, 1):tolist(), agent.rollout:get("action"):to("f32"):tolist())
  lu.assertEquals(m:select(3, 2):select(2, 1):tolist(), { 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1 })
end

-- Observations that a wrapper scales are scaled where the policy is judged.
function TestAgent.test_play_scales_as_the_environment_does()
  local env = peri.env.normalize_obs(peri.env.make("Pendulum-v1", { n = 8, seed = 1 }), { clip = 3 })
  local agent = agent_of(nil, 2, nil, { env = env })
  agent:step()
  local seen = {}
  local real = agent.act
  function agent.act(self, obs, o)
    seen[#seen + 1] = obs:tolist()
    return real(self, obs, o)
  end
  local test = peri.env.make("Pendulum-v1", { n = 4 })
  local score = agent:play(test, { episodes = 2, seed = 9 })
  lu.assertEquals({ #score.of_seed, #score.returns }, { 2, 4 })
  local bare, n = peri.env.make("Pendulum-v1", { n = 4 }):reset { seed = 9 }, env:normalizers()[1]
  local want = ((bare - n.mean) / (n.var + n.epsilon):sqrt()):clamp(-3, 3):to "f32"
  lu.assertEquals(seen[1], want:tolist())
end

function TestAgent.test_it_learns()
  local agent = agent_of("CartPole-v1", 2, { steps = 64, epochs = 4 })
  local first = agent:step()["return"]
  for _ = 1, 30 do agent:step() end
  local last = agent:play(peri.env.make("CartPole-v1", { n = 20 }), { episodes = 10, seed = 1000 })
  for _, mean in ipairs(last.of_seed) do lu.assertTrue(mean > 3 * first, ("%g of %g"):format(mean, first)) end
end

function TestAgent.test_a_state_that_does_not_fit_changes_nothing()
  local agent = agent_of("CartPole-v1", 2)
  agent:step()
  local s = agent:state()
  lu.assertEquals(s, { at = 1, seen = ENVS * STEPS, idle = 0 })
  for message, bad in pairs { ["at is"] = { at = -1, seen = 0, idle = 0 }, ["seen is missing"] = { at = 1, idle = 0 },
    ["the state is a number"] = 3 } do
    lu.assertErrorMsgContains(message, agent.set_state, agent, bad)
    lu.assertEquals(agent:state(), s)
  end
end

for _, which in ipairs { "CartPole-v1", "Pendulum-v1 --scaled", "Taxi-v4" } do
  TestAgent["test_killed_and_resumed_it_ends_with_the_same_bytes_" .. which:gsub("%W", "_")] = function ()
    killed.assert_same("tests/lua/agent_recipe.lua", "--env " .. which .. " --updates 14 --save_every 1 --seed 5",
      { "metrics.jsonl", "net.safetensors" }, 3)
  end
end

os.exit(lu.LuaUnit.run())
