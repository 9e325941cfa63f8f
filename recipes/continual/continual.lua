-- continual.lua - domains that come one after the other: what a net forgets, and four ways not to.
--
-- Teaches: a net learns handwritten digits as they are, then turned by a quarter, mirrored, and with their pixels in
-- another order, and sees no picture of an earlier domain again (plain). Replay keeps some of each. Elastic weight
-- consolidation keeps none and holds the weights that earlier domains depend on (Kirkpatrick et al. 2017, 1612.00796,
-- eq. 3; the Fisher information by gradients of single samples). Adapters freeze the net behind the first domain and
-- give each later one a LoRA (2106.09685) that it is known by. Adaptive is replay whose two losses are weighed by their
-- uncertainty (Kendall et al. 2018, 1705.07115). The table is R: the accuracy on the domain of a column once that of
-- the row was learned (1706.08840), and what follows from it.
-- Run:  ./perilune run recipes/continual/continual.lua    5 seconds of one core; --arms plain,ewc; --strength 1000
-- Departs from the papers: a small net with one head for all domains.
local peri = require "perilune"
local nn, optim, loss, recipe = peri.nn, peri.optim, peri.loss, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  arms = { "plain,replay,adaptive,ewc,adapters", "what is compared" },
  domains = { "upright,turned,mirrored,scrambled", "in the order of learning" },
  train = { 1000, "pictures to learn from, the first; the others are the test", range = "[1, inf)" },
  epochs = { 20, "passes over each domain", range = "[1, inf)" }, batch = { 50, "of an update", range = "[1, inf)" },
  memory = { 50, "pictures of each domain that replay keeps", range = "[1, inf)" },
  strength = { 100, "lambda of EWC", range = "[0, inf)" }, rank = { 8, "of the adapters", range = "[1, inf)" },
  width = { 128, "of both layers", range = "[1, inf)" }, lr = { 1e-3, "adapters have 5 times it", range = "(0, inf)" },
})

-- Pictures as rows of mean 0 and deviation 1, as each domain shows them.
local x, y = assert(peri.data.idx(recipe.find("digits/images.idx3-ubyte.gz", "an IDX file"),
  recipe.find("digits/labels.idx1-ubyte.gz", "an IDX file")))
local N, pixels, fit = x:size(1), x:size(2) * x:size(3), x:narrow(1, 1, cfg.train):to "f32"
assert(cfg.train < N and math.max(cfg.memory, cfg.batch) <= cfg.train, "too few pictures: --train, --memory, --batch")
x = (x:to "f32" - fit:mean()) / fit:std()
local places = peri.rng(1):shuffle(peri.arange(0, pixels, 1, "i64"):tolist()) -- the same for all seeds
local views = { upright = x, turned = x:transpose(2, 3):flip(2), mirrored = x:flip(3),
  scrambled = x:flatten(2):index_select(peri.tensor(places, "i64"), 2) }
local names, seen, held = {}, {}, {}
for name in cfg.domains:gmatch "[^,]+" do
  local all = assert(views[name], "--domains: one that is not known"):reshape { N, pixels }:contiguous()
  names[#names + 1], seen[#seen + 1], held[#held + 1] = name, all:narrow(1, 1, cfg.train),
    all:narrow(1, cfg.train + 1, N - cfg.train)
end
local D, test_y = #names, y:narrow(1, cfg.train + 1, N - cfg.train)
local run = recipe.start { name = "continual", flags = cfg, total = D * cfg.epochs, columns = { "plain/loss" } }

-- Arms, which are one until the second domain.
local function several(n, fn)
  local list = {}
  for i = 1, n do list[i] = fn(i) end
  return list
end
local arms = {}
for name in cfg.arms:gmatch "[^,]+" do
  assert((",plain,replay,adaptive,ewc,adapters,"):find("," .. name .. ",", 1, true), "--arms: one that is not known")
  peri.seed(cfg.seed)
  local net = nn.MLP({ pixels, cfg.width, cfg.width, y:max():item() + 1 }, { activation = "relu" })
  local arm, learned = { name = name, net = net, rng = peri.rng(cfg.seed) }, { { params = net } }
  arm.balance = optim.task_weights { tasks = 2, rule = name == "adaptive" and "uncertainty" or "fixed" }
  local parts = { net = net, rng = arm.rng, balance = arm.balance }
  arm.nets = several(D, function (i) return name == "adapters" and i > 1 and net:copy() or net end) -- of each domain
  local function anchor() return { values = net:copy(), fisher = net:copy() } end
  arm.anchors = several(name == "ewc" and D - 1 or 0, anchor)
  for i, at in ipairs(arm.anchors) do parts["values" .. i], parts["fisher" .. i] = at.values, at.fisher end
  for i = 2, name == "adapters" and D or 1 do
    learned[i] = { params = peri.peft.lora(arm.nets[i], { r = cfg.rank }), lr_scale = 5 }
    parts["net" .. i], parts["adapter" .. i] = arm.nets[i], learned[i].params
  end
  arm.opt = optim.Adam(learned, { lr = cfg.lr })
  parts.optimizer, arms[#arms + 1] = arm.opt, arm
  for part, object in pairs(parts) do run:track(name .. "_" .. part, object) end
end

local function loss_on(arm, d, among) -- a batch of a domain, of its first pictures
  local at = peri.tensor(several(cfg.batch, function () return arm.rng:int(0, among - 1) end), "i64")
  return arm.nets[d](seen[d]:index_select(at, 1)):cross_entropy(y:index_select(at, 1))
end
local function update(arm, d)
  local _ <close>, new, w = peri.scope(), loss_on(arm, d, cfg.train), arm.balance.weights
  local total = new + loss.elastic(arm.net, table.move(arm.anchors, 1, d - 1, 1, {}), { weight = cfg.strength })
  if d > 1 and (arm.name == "replay" or arm.name == "adaptive") then
    local old = loss_on(arm, arm.rng:int(1, d - 1), cfg.memory)
    total = new * w[1] + old * w[2]
    arm.balance:update { new:item(), old:item() }
  end
  total:backward()
  arm.opt:step():zero_grad()
  return new:item() * cfg.batch / cfg.train
end
local function settle(arm, d) -- a domain is over: what is kept of it
  local anchor, is = arm.anchors[d], arm.net:state_dict()
  for i = 2, d == 1 and arm.name == "adapters" and D or 1 do arm.nets[i]:load_state_dict(is) end
  local F = anchor and anchor.values:load_state_dict(is) and loss.fisher_of_classes(arm.net, arm.net, { seen[d] })
  for k, p in ipairs(anchor and anchor.fisher:parameters() or {}) do peri.no_grad(p.copy_, p, F[k]) end
end

-- Loop: a pass of each arm over the domain that is on.
for step in run:steps() do
  local d, row = (step - 1) // cfg.epochs + 1, {}
  for _, arm in ipairs(arms) do
    local name <const> = arm.name .. "/loss"
    for _ = 1, cfg.train // cfg.batch do row[name] = (row[name] or 0) + update(arm, d) end
    if step % cfg.epochs == 0 then settle(arm, d) end
    for j = 1, step % cfg.epochs == 0 and D or 0 do -- a domain that is still to come has no adapter
      local logits = peri.no_grad(arm.nets[j <= d and j or 1], held[j])
      row[("%s/%s"):format(arm.name, names[j])] = logits:argmax(2):eq(test_y):to("f32"):mean():item()
    end
  end
  run:log(step, row)
end

local history, curves = run:history(), {}
for k, arm in ipairs(arms) do
  local R = {}
  for i = 1, D do
    R[i] = several(D, function (j) return history[("%s/%s"):format(arm.name, names[j])][i * cfg.epochs] end)
    run:text("%-9s %-10s %s", i == 1 and arm.name or "", names[i], ("%9.3f"):rep(D):format(table.unpack(R[i])))
  end
  local m = peri.tasks.metrics.continual(R)
  run:text("%20s average %s, backward transfer %.3f", "", run:scores(arm.name, m.average, 3), m.backward or 0)
  curves[k] = arm.name .. "/" .. names[1]
end
run:plot("curves.svg", { curves })
run:finish()
