-- maml.lua - weights from which one step of training is enough: meta-learning on sinusoids.
--
-- Teaches: MAML (Finn et al. 2017, 1703.03400, section 5.1): the loss behind a step of gradient descent is minimised
-- over where the step begins, through the step, which takes second derivatives. First-order MAML (section 5.2) leaves
-- those out, Reptile (Nichol et al. 2018, 1803.02999) moves towards where several steps led, Meta-SGD (Li et al. 2017,
-- 1707.09835) learns the step sizes, too. Beside them a network that
-- was trained on all tasks together, and one that was not trained.
-- Run:  ./perilune run recipes/meta/maml.lua    ten networks at once: a minute and a half of one core.
--       --method first, --method reptile --inner 5
-- Departs from the paper: 8,000 updates at a rate that falls from 0.004, not 70,000 at 0.001; the pre-trained network
-- is also given the best of five step sizes.
local peri = require "perilune"
local nn, optim, rl, recipe = peri.nn, peri.optim, peri.rl, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  method     = { "second", "of the outer gradient", choices = { "second", "first", "reptile", "meta_sgd" } },
  seeds      = { 10, "networks that learn beside each other", range = "[1, inf)" },
  updates    = { 8000, "outer steps", range = "[0, inf)", budget = true },
  tasks      = { 25, "sinusoids of an update and network", range = "[1, inf)" },
  shots      = { 10, "points that a step is taken from, and as many behind it", range = "[1, inf)" },
  inner      = { 1, "steps on a task while training", range = "[1, inf)" },
  inner_lr   = { 0.01, "size of these steps", range = "[0, inf)" },
  lr         = { 4e-3, "learning rate of Adam, down to 0 along a line", range = "[0, inf)" },
  hidden     = { 40, "width of both layers", range = "[1, inf)" },
  tests      = { 100, "sinusoids of the evaluation", range = "[2, inf)" },
  log_every  = { 500, "updates between rows of metrics", range = "[1, inf)" },
})
local S, K, best, size = cfg.seeds, cfg.shots, nil, nil
local run = recipe.start { name = "maml", flags = cfg, total = cfg.updates,
  columns = { "before", "after", "pretrained_after" } }

-- Networks: parameters have a leading dim over seeds; a task is a network of its own that begins at its seed's weights.
local seeds = peri.arange(S):add(cfg.seed):tolist()
local shape = { 1, cfg.hidden, cfg.hidden, 1, activation = "relu", init = "uniform" }
local function network() return nn.Copies(S, function () return nn.MLP(shape) end, { seeds = seeds }) end
local net, pretrained, random, rates = network(), network(), network(), network() -- rates: those of meta_sgd
for _, p in ipairs(rates:parameters()) do peri.no_grad(p.fill_, p, cfg.inner_lr) end
local learned = { { params = net }, cfg.method == "meta_sgd" and { params = rates, lr_scale = 0.1 } or nil }
local opt, pre_opt = optim.Adam(learned, { lr = cfg.lr }), optim.Adam(pretrained:parameters(), { lr = cfg.lr })
run:track("net", net):track("rates", rates):track("optimizer", opt)
run:track("pretrained", pretrained):track("pre_optimizer", pre_opt)

local function spread(module, tasks) -- (S, ...) -> (S * tasks, ...)
  local list = module:parameters()
  for i, p in ipairs(list) do
    local one = { table.unpack(p.shape, 2) }
    list[i] = p:unsqueeze(2):expand({ S, tasks, table.unpack(one) }):reshape { S * tasks, table.unpack(one) }
  end
  return list
end

-- Tasks: amplitudes in [0.1, 5], phases in [0, pi]; points in [-5, 5].
local function sinusoids(n)
  return { amplitude = peri.rand { n, 1, 1 } * 4.9 + 0.1, phase = peri.rand { n, 1, 1 } * math.pi }
end
local function points(task, k)
  local x = peri.rand { #task.phase, k, 1 } * 10 - 5
  return x, task.amplitude * (x - task.phase):sin()
end
local function errors(module, x, y) return (module(x) - y):square():mean { 2, 3 } end -- of each task
local function adapted(module, x, y, tasks, steps, order, lr) -- tensors behind steps on each task
  lr = lr or module == net and cfg.method == "meta_sgd" and spread(rates, tasks) or cfg.inner_lr
  return (optim.adapt(module, function () return errors(module, x, y):sum() end,
    { from = spread(module, tasks), steps = steps, lr = lr, order = order }))
end

-- Evaluation: on the same sinusoids and points for all, drawn before anything else.
local test = sinusoids(S * cfg.tests)
local x1, y1 = points(test, K)
local x2, y2 = points(test, 100)
local function score(module, steps, lr) -- mean error of each seed at other points, behind steps on K points of a task
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local fast = adapted(module, x1, y1, cfg.tests, steps, 0, lr)
  local _ <close> = peri.no_grad()
  return nn.with_tensors(module, fast, errors, module, x2, y2):reshape({ S, cfg.tests }):mean(2):tolist()
end
local function mean(list) return peri.tensor(list, "f64"):mean():item() end
-- Loop.
run:restore()
for update in run:steps() do
  local task = sinusoids(S * cfg.tasks)
  local x, y = points(task, K)
  local new_x, new_y = points(task, K)
  local loss
  if cfg.method == "reptile" then -- towards where the steps led: the gradient is the way back
    local fast = adapted(net, x, y, cfg.tasks, cfg.inner, 0)
    for i, p in ipairs(net:parameters()) do
      local way = p:detach() - fast[i]:detach():reshape({ S, cfg.tasks, table.unpack(p.shape, 2) }):mean(2)
      local pull = (p * way):sum() / cfg.inner_lr
      loss = loss and loss + pull or pull
    end
  else
    local fast = adapted(net, x, y, cfg.tasks, cfg.inner, cfg.method == "first" and 1 or 2)
    loss = nn.with_tensors(net, fast, errors, net, new_x, new_y):sum() / cfg.tasks
  end
  loss:backward()
  local rate = cfg.lr * (1 - (update - 1) / cfg.updates)
  opt:step({ lr = rate, copies = S }):zero_grad()
  local all_x, all_y = peri.cat({ x, new_x }, 2), peri.cat({ y, new_y }, 2)
  errors(pretrained, all_x:reshape { S, -1, 1 }, all_y:reshape { S, -1, 1 }):sum():backward()
  pre_opt:step({ lr = rate, copies = S }):zero_grad()
  if update % cfg.log_every == 0 or update == cfg.updates then
    run:log(update, { before = mean(score(net, 0)), after = mean(score(net, 1)),
      pretrained_after = mean(score(pretrained, 1)) })
  end
end

for _, lr in ipairs { 0.001, 0.003, 0.01, 0.03, 0.1 } do
  local found = score(pretrained, 1, lr)
  if not best or mean(found) < mean(best) then best, size = found, lr end
end
assert(peri.safetensors.save(run:path "net.safetensors", net:state_dict()))
run:plot("curves.svg", { { "before", "after", "pretrained_after" } })
for _, steps in ipairs(cfg.method == "meta_sgd" and { 0, 1 } or { 0, 1, 5, 10 }) do -- more of its steps diverge
  run:text("squared error behind %2d steps: meta-learned %s; pre-trained %s; untrained %s", steps,
    (rl.report(score(net, steps))), (rl.report(score(pretrained, steps))), (rl.report(score(random, steps))))
end
run:text("behind one step %.3f of the pre-trained network's error, %.3f of it at its best step size %g",
  rl.iqm(score(net, 1)) / rl.iqm(score(pretrained, 1)), rl.iqm(score(net, 1)) / rl.iqm(best), size)
run:finish()
