-- maml_policy.lua - a policy that finds out where the goal is: one step of policy gradient on a few episodes, learned.
--
-- Teaches: MAML for policies (Finn et al. 2017, 1703.03400, algorithm 3). A grid has its goal in a cell that the policy
-- does not see; it plays some episodes, takes one step of policy gradient, and plays again; the return then is
-- maximised. The inner gradient is differentiated, and its usual form, log pi A, has the wrong derivative: it leaves
-- out that other weights would have played other episodes. pi / stop(pi) A has the right one (Rothfuss et al. 2018,
-- 1810.06784, section 4: low variance curvature; Foerster et al. 2018).
-- Run:  ./perilune run recipes/meta/maml_policy.lua    ten policies at once: a minute of one core.
--       --surrogate score; --method first; --method pretrained trains on all goals together, without a step
-- Departs from the paper: a grid in place of a plane, plain policy gradients outside in place of TRPO.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  method    = { "second", "of the outer gradient", choices = { "second", "first", "pretrained" } },
  surrogate = { "lvc", "of the inner gradient", choices = { "lvc", "score" } },
  seeds     = { 10, "policies that learn beside each other", range = "[1, inf)" },
  updates   = { 300, "outer steps", range = "[0, inf)", budget = true },
  goals     = { 10, "grids of an update and policy", range = "[1, inf)" },
  episodes  = { 10, "in each grid, before the step and behind it", range = "[2, inf)" },
  horizon   = { 16, "steps of an episode", range = "[1, inf)" },
  size      = { 5, "cells from the middle to each side", range = "[1, inf)" },
  inner_lr  = { 0.5, "size of the step", range = "[0, inf)" },
  lr        = { 1e-2, "learning rate of Adam", range = "[0, inf)" },
  gamma     = { 0.98, "discount", range = "[0, 1]" },
  hidden    = { 32, "width of both layers", range = "[1, inf)" },
  tests     = { 40, "grids of the evaluation", range = "[1, inf)" },
  log_every = { 20, "updates between rows of metrics", range = "[1, inf)" },
})
local S, E, H = cfg.seeds, cfg.episodes, cfg.horizon
local run = recipe.start { name = "maml_policy", flags = cfg, total = cfg.updates, columns = { "before", "after" } }

-- Policies: weights have a leading dim over seeds; in each of n grids of a seed they are weights of their own.
local net = nn.Copies(S, function () return nn.MLP { 2, cfg.hidden, cfg.hidden, 5, last_gain = 0.01 } end,
  { seeds = peri.arange(S):add(cfg.seed):tolist() })
local opt = optim.Adam(net:parameters(), { lr = cfg.lr })
run:track("net", net):track("optimizer", opt)

local function spread(n) -- (S, ...) -> (S * n, ...)
  local list = net:parameters()
  for i, p in ipairs(list) do
    local shape = { table.unpack(p.shape, 2) }
    list[i] = p:unsqueeze(2):expand({ S, n, table.unpack(shape) }):reshape { S * n, table.unpack(shape) }
  end
  return list
end

-- Grids: cells from -size to size, the start in the middle; a reward of -distance / size behind each of H steps.
local moves = peri.tensor({ { 0, 0 }, { 1, 0 }, { -1, 0 }, { 0, 1 }, { 0, -1 } }, "f32")
local function goals(n) return peri.randint(-cfg.size, cfg.size + 1, { n, 1, 2 }):to "f32" end

-- E episodes in each of n grids: obs (n, H, E, 2), action and advantage (n, H, E), total (n). Advantages are discounted
-- rewards from a step on, less the mean of the grid's other episodes there.
local function play(weights, goal)
  local _ <close> = peri.no_grad()
  local at, obs, action, reward, left = peri.zeros { #goal, E, 2 }, {}, {}, {}, {}
  nn.with_tensors(net, weights, function ()
    for t = 1, H do
      obs[t] = at / cfg.size
      action[t] = net(obs[t]):categorical():reshape { #goal, E }
      at = (at + moves:index_select(action[t]:reshape { -1 }, 1):reshape { #goal, E, 2 }):clamp(-cfg.size, cfg.size)
      reward[t] = (at - goal):abs():sum(-1) / -cfg.size
    end
  end)
  for t = H, 1, -1 do left[t] = reward[t] + (t < H and left[t + 1] * cfg.gamma or 0) end
  local returns, total = peri.stack(left, 2), peri.stack(reward, 2):sum(2):mean(-1)
  return { obs = peri.stack(obs, 2), action = peri.stack(action, 2), total = total,
    advantage = returns - (returns:sum(-1, true) - returns) / (E - 1) }
end

local function surrogate(b, form) -- of the policies that stand in net now; a sum over grids
  local logits = net(b.obs:reshape { #b.obs, H * E, 2 }):reshape { #b.obs, H, E, 5 }
  local logp = logits:log_softmax(-1):gather(b.action:unsqueeze(-1), -1):squeeze(-1)
  local weight = form == "lvc" and (logp - logp:detach()):exp() or logp
  return -(weight * b.advantage):sum() / (H * E)
end

local function adapted(weights, b, order)
  local function loss() return surrogate(b, cfg.surrogate) end
  return (optim.adapt(net, loss, { from = weights, lr = cfg.inner_lr, order = order }))
end

-- Evaluation: returns of each seed in the same grids, before and behind steps; and the most that there is.
local test = goals(S * cfg.tests)
local function score(steps)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local list, weights = {}, spread(cfg.tests)
  for k = 0, steps do
    local b = play(weights, test)
    list[k] = b.total:reshape({ S, cfg.tests }):mean(2):tolist()
    if k < steps then weights = adapted(weights, b, 0) end
  end
  return list
end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end
local most = 0
for t = 1, H do most = most - (test:abs():sum(-1) - t):relu():mean():item() / cfg.size end

-- Loop.
local first = score(1)
run:restore()
for update in run:steps() do
  local goal, weights = goals(S * cfg.goals), spread(cfg.goals)
  if cfg.method ~= "pretrained" then
    weights = adapted(weights, play(weights, goal), cfg.method == "second" and 2 or 1)
  end
  nn.with_tensors(net, weights, surrogate, play(weights, goal), "score"):backward()
  opt:step({ copies = S, clip = 1 }):zero_grad()
  if update % cfg.log_every == 0 or update == cfg.updates then
    local scores = score(1)
    run:log(update, { before = mean(scores[0]), after = mean(scores[1]) })
  end
end

local scores = score(3)
assert(peri.safetensors.save(run:path "net.safetensors", net:state_dict()))
run:plot("curves.svg", { { "before", "after" } })
run:text("return at first %.2f, behind a step %.2f; the most there is %.2f", mean(first[0]), mean(first[1]), most)
for k = 0, 3 do run:text("behind %d steps: return %s", k, (rl.report(scores[k]))) end
run:finish()
