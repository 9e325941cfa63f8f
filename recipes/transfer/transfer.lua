-- transfer.lua - a network that reads digits learns from a few pictures whether a digit is odd.
--
-- Teaches: transfer learning (Yosinski et al. 2014, 1411.1792): a network learns the ten digits; its two layers are
-- loaded into another with a new head, which learns odd and even from --few pictures of each digit, none of the first:
--   scratch  random weights, all of them learn     frozen   the loaded layers stay, the head learns
--   full     all of it learns at once              gradual  the head, then the upper layer, then the lower one (Howard
--                                                           and Ruder 2018, 1801.06146, section 3.3)
-- Each is measured on the pictures that neither learned from, after the same updates.
-- Run:  ./perilune run recipes/transfer/transfer.lua     seconds of one core; --few 20, --images FILE --labels FILE
--       --source shuffled: the first network learned labels without a meaning, and has nothing to bring
-- Departs from the papers: two layers of a perceptron, pictures of 8 x 8.
local peri = require "perilune"
local nn, optim, recipe, rl = peri.nn, peri.optim, peri.recipe, peri.rl

local cfg = peri.flags(recipe.with_flags {
  images = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  source   = { "true", "labels of the first network", choices = { "true", "shuffled" } },
  few      = { 3, "pictures of each digit to learn odd and even from", range = "[1, inf)" },
  sets     = { 5, "different draws of them, a network of each kind for each", range = "[2, inf)" },
  before   = { 1000, "updates of the first network", range = "[1, inf)" },
  updates  = { 200, "of each other network", range = "[4, inf)", budget = true },
  every    = { 40, "updates after which gradual unfreezes the next layer", range = "[1, inf)" },
  batch    = { 16, "pictures of an update", range = "[1, inf)" },
  width    = { 64, "of both layers", range = "[1, inf)" },
  lr       = { 2e-3, "learning rate", range = "[0, inf)" },
  log_every = { 20, "updates between rows of metrics", range = "[1, inf)" },
})
local kinds <const> = { "scratch", "frozen", "full", "gradual" }
local run = recipe.start { name = "transfer", flags = cfg, total = cfg.updates, columns = kinds }

-- Task.
local pictures, digits = peri.data.idx(recipe.find(cfg.images, "an IDX file"), recipe.find(cfg.labels, "an IDX file"))
pictures = peri.keep(assert(pictures, digits):to("f32"):reshape { pictures:size(1), -1 }:div(16))
local by_digit = {}
for digit = 0, 9 do by_digit[digit] = {} end
for i, digit in ipairs(digits:tolist()) do table.insert(by_digit[digit], i - 1) end
local function rows_of(places, odd) -- (n, pixels), (n) i64: digits, or whether they are odd
  local at = peri.tensor(places, "i64")
  local y = digits:index_select(at, 1)
  return peri.keep(pictures:index_select(at, 1)), peri.keep(odd and y:mod(2) or y)
end
local function half(digit) return #by_digit[digit] // 2 end -- the first are to learn to read from
local function loss_of(net, x, y)
  return function ()
    local at = peri.randint(0, x:size(1), { cfg.batch })
    return net(x:index_select(at, 1)):cross_entropy(y:index_select(at, 1))
  end
end
local function accuracy(net, x, y)
  local _ <close> = peri.no_grad()
  return net:eval()(x):argmax(2):eq(y):to("f32"):mean():item()
end

-- Model: two layers that may be loaded, and a head.
local Net = nn.class("Net", function (self, classes)
  self.lower, self.upper = nn.Linear(pictures:size(2), cfg.width), nn.Linear(cfg.width, cfg.width)
  self.head = nn.Linear(cfg.width, classes)
end)
function Net:forward(x) return self.head(self.upper(self.lower(x):relu()):relu()) end
local function adam(net) return optim.AdamW(net, { lr = cfg.lr, weight_decay = 0.01 }) end
local learned = recipe.cached("transfer", { images = cfg.images, labels = cfg.labels, source = cfg.source, lr = cfg.lr,
  before = cfg.before, batch = cfg.batch, width = cfg.width, seed = cfg.seed }, function (to)
  peri.seed(cfg.seed)
  local net, places = Net(10), {}
  for digit = 0, 9 do table.move(by_digit[digit], 1, half(digit), #places + 1, places) end
  local x, y = rows_of(places)
  if cfg.source == "shuffled" then y = y:index_select(peri.randperm(y:size(1)), 1) end
  local stepper = peri.algo.transfer.new { model = net, optimizer = adam(net), loss = loss_of(net, x, y),
    parts = { "." } }
  for _ = 1, cfg.before do stepper:step() end
  return peri.safetensors.save(to .. "/net.safetensors", net:state_dict())
end, cfg.runs)
local brought = assert(peri.safetensors.load(learned .. "/net.safetensors"))
for name in pairs(brought) do if name:find "^head" then brought[name] = nil end end

local parts = { scratch = { "." }, frozen = { "^head" }, full = { "." }, gradual = { "^head", "^upper", "^lower" } }
local learners, tests = {}, {}
for set = 1, cfg.sets do
  local rng, some, others = peri.rng(1000 * cfg.seed + set), {}, {}
  for digit = 0, 9 do
    local order = table.move(by_digit[digit], half(digit) + 1, #by_digit[digit], 1, {})
    rng:shuffle(order)
    table.move(order, 1, cfg.few, #some + 1, some)
    table.move(order, cfg.few + 1, #order, #others + 1, others)
  end
  local x, y = rows_of(some, true)
  tests[set] = { rows_of(others, true) }
  for _, kind in ipairs(kinds) do
    peri.seed(1000 * cfg.seed + set) -- heads begin alike
    local net = Net(2)
    if kind ~= "scratch" then net:load_state_dict(brought, { strict = false }) end
    local opt, name = adam(net), kind .. set
    local stepper = peri.algo.transfer.new { model = net, optimizer = opt, loss = loss_of(net, x, y),
      parts = parts[kind], every = kind == "gradual" and cfg.every or 0 }
    learners[#learners + 1] = { net = net, stepper = stepper, kind = kind, set = set }
    run:track("net_" .. name, net):track("optimizer_" .. name, opt):track("stepper_" .. name, stepper)
  end
end

-- Loop.
local function scores(kind)
  local list = {}
  for _, l in ipairs(learners) do
    if l.kind == kind then list[#list + 1] = accuracy(l.net, table.unpack(tests[l.set])) end
    l.net:train()
  end
  return list
end
for step in run:steps() do
  for _, learner in ipairs(learners) do learner.stepper:step() end
  if step % cfg.log_every == 0 or step == cfg.updates then
    local row = {}
    for _, kind in ipairs(kinds) do row[kind] = peri.tensor(scores(kind), "f64"):mean():item() end
    run:log(step, row)
  end
end
assert(peri.safetensors.save(run:path "net.safetensors", learners[#learners].net:state_dict())) -- gradual
run:plot("curves.svg", { kinds })
for _, kind in ipairs(kinds) do run:text("%-8s %s right of odd and even", kind, (rl.report(scores(kind)))) end
run:finish()
