-- cooperation.lua - a team that is paid together: who of it earned the reward?
--
-- Teaches: independent PPO (de Witt et al. 2020) and PPO whose critic sees what all see (--critic shared: MAPPO, Yu et
-- al. 2022), and three credits: none, every agent learns from the reward of the team; difference, from what that would
-- lack without the agent (Wolpert and Tumer 2002; env.metrics); coma, the advantage of Foerster et al. 2018, eq. 4:
-- Q(s, u) - sum over u' of pi(u' | o) Q(s, (u of the others, u')); counterfactual, its baseline and the return that
-- came in the place of Q(s, u), which no error of Q can bias. And that to each agent the world is not stationary:
-- `beside` is what a team earns whose first agent walks at random, while the others learn.
-- Run:  ./perilune run recipes/agents/cooperation.lua --seeds 10    half a minute of one core
-- Departs from the papers: agents share one network, told apart by their number; COMA's Q learns lambda-returns.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  credit    = { "none", "what an agent learns from", choices = { "none", "difference", "counterfactual", "coma" } },
  critic    = { "own", "what values are of", choices = { "own", "shared" } },
  seeds     = { 1, "teams that learn beside each other", range = "[1, inf)" },
  updates   = { 120, "of each team", range = "[1, inf)", budget = true },
  fields    = { 4, "that a team plays on at a time", range = "[1, inf)" },
  steps     = { 25, "of a rollout", range = "[1, inf)" },
  agents    = { 5, "of a team", range = "[2, 32]" },
  size      = { 5, "cells of a side", range = "[2, 64]" },
  apples    = { 2, "that are there at a time", range = "[1, 64]" },
  weight    = { 1, "agents that it takes to gather an apple", range = "[1, 32]" },
  sight     = { 3, "cells that an agent sees far", range = "[0, 64]" },
  hidden    = { 32, "width of both layers", range = "[1, inf)" },
  lr        = { 2e-3, "learning rate", range = "[0, inf)" },
  gamma     = { 0.95, "discount", range = "[0, 1]" },
  lam       = { 0.9, "of advantages", range = "[0, 1]" },
  ent_coef  = { 0.01, "of the entropy bonus", range = "[0, inf)" },
  q_passes  = { 4, "over a rollout, for the Q of counterfactual", range = "[1, inf)" },
  q_lr      = { 5e-3, "its learning rate", range = "[0, inf)" },
  eval      = { 8, "episodes of each evaluation and team", range = "[1, inf)" },
  log_every = { 20, "updates between two rows of metrics", range = "[1, inf)" },
})
local S, K, shared = cfg.seeds, cfg.agents, cfg.critic == "shared"
local function make(n, seed) -- what all see stands behind what an agent sees
  return peri.env.joint_obs(peri.env.make("Forage-v0", { n = n, seed = seed, agents = K, size = cfg.size,
    apples = cfg.apples, weight = cfg.weight, sight = cfg.sight }))
end
local run = recipe.start { name = "cooperation", flags = cfg, total = cfg.updates,
  columns = { "return", "eval", "beside", "explained_variance" } }
local env, test = make(S * cfg.fields, cfg.seed), make(S * cfg.eval)
local all, actions, H = env.obs_space.shape[1], env.action_space.n, cfg.hidden
local own = all // (K + 1)

-- Actors read what they see themselves, the critic that or all of it.
local Team = nn.class("Team", function (self)
  self.head = rl.head(env.action_space)
  self.actor = nn.MLP({ own, H, H, actions }, { activation = "tanh", init = "orthogonal", last_gain = 0.01 })
  self.critic = nn.MLP({ shared and all or own, H, H, 1 }, { activation = "tanh", init = "orthogonal", last_gain = 1 })
end)
function Team:policy(x) return self.head:dist(self.actor(x:narrow(-1, 1, own))) end
function Team:value(x) return self.critic(shared and x or x:narrow(-1, 1, own)):squeeze(-1) end
function Team:both(x) return self:policy(x), self:value(x) end
local function copies(make_one) return nn.Copies(S, make_one, { seeds = peri.arange(S):add(cfg.seed):tolist() }) end
local net = copies(function () return Team() end)
run:track("net", net)

local hooks = {}
if cfg.credit == "difference" then
  function hooks.reward(rollout) return rollout:get("metrics"):select(3, 1) end
elseif cfg.credit ~= "none" then
  -- Values of an agent's actions beside those that the others took.
  local q = copies(function ()
    return nn.MLP({ (shared and all or own) + K * actions, H, H, actions }, { activation = "tanh", init = "orthogonal",
      last_gain = 0.01 })
  end)
  local q_opt = optim.Adam(q:parameters(), { lr = cfg.q_lr })
  run:track("q", q):track("q_optimizer", q_opt)
  local others = peri.keep(peri.eye(K):eq(0):to("f32"):unsqueeze(3)) -- (K, K, 1): 0 where it is the agent itself
  local function apart(x) return rl.apart(x:transpose(1, 2), S):flatten(2, 3) end -- (steps, rows, ..) -> (S, n, ..)
  function hooks.advantage(rollout, _, returns)
    local obs, action = rollout:get "obs", rollout:get "action"
    local taken = action:one_hot(actions):reshape { -1, 1, K, actions } -- of each field and step
    local beside = taken:mul(others):reshape { obs.shape[1], obs.shape[2], K * actions }
    local x = apart(peri.cat({ shared and obs or obs:narrow(3, 1, own), beside }, 3))
    local u, goal = apart(action):unsqueeze(3), apart(returns)
    for i = 0, cfg.q_passes * cfg.fields - 1 do -- a field at a time
      local _ <close> = peri.enable_grad()
      local function part(t) return t:narrow(2, i % cfg.fields * K * cfg.steps + 1, K * cfg.steps) end
      q(part(x)):gather(part(u), 3):squeeze(3):sub(part(goal)):square():mean(2):sum():backward()
      q_opt:step({ clip = 0.5, copies = S }):zero_grad()
    end
    local values, probs = q(x), net.net:policy(apart(obs)).logits:softmax(-1)
    local found = (cfg.credit == "coma" and values:gather(u, 3):squeeze(3) or goal) - (values * probs):sum(3)
    return found:reshape({ S * cfg.fields * K, -1 }):transpose(1, 2)
  end
end
local opt = optim.Adam(net:parameters(), { lr = cfg.lr })
local agent = peri.algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, gamma = cfg.gamma,
  lam = cfg.lam, ent_coef = cfg.ent_coef, reward = hooks.reward, advantage = hooks.advantage,
  normalize = cfg.credit ~= "coma" } -- while Q knows nothing its differences are to stay small
run:track("optimizer", opt):track("agent", agent):track("env", env)

-- Apples that each team gathers in an episode; the first `idle` of its agents walk at random.
local function play(idle)
  local first = peri.arange(K):lt(idle):unsqueeze(1):expand({ test.rows // K, K }):reshape { test.rows }
  return rl.evaluate(test, function (obs)
    local action = agent:act(obs)
    return peri.where(first, peri.randint(0, actions, { test.rows }), action)
  end, { episodes = test.rows, seeds = S, seed = 1000000 }).of_seed
end
-- Loop.
local at_first = play(K)
run:restore()
for update in run:steps() do
  local m = agent:step()
  if update % cfg.log_every == 0 or update == cfg.updates then
    run:log(update, { ["return"] = m["return"], eval = rl.iqm(play(0)), beside = rl.iqm(play(1)),
      entropy = m.entropy, explained_variance = m.explained_variance })
  end
end
run:plot("curves.svg", { { "eval", "beside" }, "explained_variance", "entropy" })
run:text("credit %s, critic %s: apples of a team %s; with one that walks at random %s; all at random %s", cfg.credit,
  cfg.critic, rl.report(play(0)), rl.report(play(1)), rl.report(at_first))
run:finish()
