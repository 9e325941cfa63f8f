-- adversarial_text.lua - pushes on the embeddings of words: a classifier of texts learns from those without labels.
--
-- Teaches: adversarial and virtual adversarial training of texts (Miyato et al. 2017, 1605.07725). A word cannot be
-- moved by a little, its embedding can: along the gradient of the loss (eq. 2: pushed), or in the direction in which
-- the net's own answer changes most (eq. 3 and 4: virtual), which needs no label, so that texts without one teach, too.
-- Embeddings are scaled to mean 0 and variance 1, or a net would outgrow the push. A text is words, most of them common
-- to all topics and some of its topic's own; few texts have a label, so that most words of a topic are in none of them.
-- The ceiling is plain training with the labels of all.
-- Run:  ./perilune run recipes/continual/adversarial_text.lua    6 seconds of one core; --labels 50; --push 2
-- Departs from the paper: texts that are drawn; means of words through a hidden layer, no LSTM and no language model.
local peri = require "perilune"
local nn, optim, loss, recipe = peri.nn, peri.optim, peri.loss, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  arms    = { "plain,pushed,virtual,ceiling", "what is compared" },
  updates = { 1500, "of each arm", range = "[1, inf)", budget = true },
  topics  = { 4, "of texts", range = "[2, inf)" },
  labels  = { 5, "texts of each topic with a label", range = "[1, inf)" },
  texts   = { 2000, "without", range = "[1, inf)" },
  own     = { 0.3, "share of words that are the topic's own", range = "(0, 1]" },
  batch   = { 64, "texts of an update, with a label and without", range = "[1, inf)" },
  push    = { 5.0, "length of a push on the embeddings of a text", range = "[0, inf)" },
  weight  = { 1.0, "of the loss under a push", range = "[0, inf)" },
  dim     = { 32, "of an embedding", range = "[1, inf)" },
  hidden  = { 64, "width of the layer", range = "[1, inf)" },
  dropout = { 0.5, "of embeddings", range = "[0, 1)" },
  lr      = { 2e-3, "learning rate of Adam, down to 0 along a cosine", range = "(0, inf)" },
  every   = { 50, "updates between two measurements", range = "[1, inf)" },
})
local LENGTH <const>, COMMON <const>, OWN <const>, TEST <const> = 20, 200, 60, 1000
local run = recipe.start { name = "adversarial_text", flags = cfg, total = cfg.updates,
  columns = { "plain/accuracy", "pushed/accuracy", "virtual/accuracy" } }

-- Texts: the n-th word of a list is 1 / n as likely as the first (Zipf).
local size, draw = COMMON + cfg.topics * OWN, peri.rng(1) -- the same for all seeds and arms
local function word(first, count) return first + math.floor(count ^ draw:uniform()) - 1 end
local function drawn(n)
  local list = {}
  for i = 1, n do
    local topic, words = (i - 1) % cfg.topics, {}
    for k = 1, LENGTH do
      local own = draw:uniform() < cfg.own
      words[k] = own and word(COMMON + topic * OWN, OWN) or word(0, COMMON)
    end
    list[i] = { words = words, topic = topic }
  end
  return list
end
local labelled, free, test = drawn(cfg.labels * cfg.topics), drawn(cfg.texts), drawn(TEST)
local function batch_of(list) -- (B, LENGTH), (B)
  local words, topics = {}, {}
  for i, s in ipairs(list) do words[i], topics[i] = s.words, s.topic end
  return peri.tensor(words, "i64"), peri.tensor(topics, "i64")
end
local test_x, test_y = batch_of(test)

local Reader = nn.class("Reader", function (self)
  self.words, self.drop = nn.Embedding(size, cfg.dim, { std = 1 }), nn.Dropout(cfg.dropout)
  self.layer, self.out = nn.Linear(cfg.dim, cfg.hidden), nn.Linear(cfg.hidden, cfg.topics)
end)
function Reader:embed(x) -- (B, T) -> (B, T, D)
  local w = self.words.weight
  local mean = w:mean(1)
  return self.drop((self.words(x) - mean) / (w - mean):square():mean(1):add(1e-6):sqrt())
end
function Reader:forward(embedded) return self.out(self.layer(embedded:mean(2) * cfg.dim ^ 0.5):tanh()) end

local arms, ways = {}, { plain = true, pushed = true, virtual = true, ceiling = true }
for name in cfg.arms:gmatch "[^,]+" do
  assert(ways[name], "--arms: plain, pushed, virtual and ceiling are known")
  peri.seed(cfg.seed)
  local arm = { name = name, net = Reader(), rng = peri.rng(cfg.seed) }
  arm.opt, arms[#arms + 1] = optim.Adam(arm.net, { lr = cfg.lr }), arm
  run:track(name, arm.net):track(name .. "_optimizer", arm.opt):track(name .. "_rng", arm.rng)
end
local function update(arm, lr)
  local _ <close>, some, rest = peri.scope(), {}, {}
  local known = arm.name == "ceiling" and free or labelled
  for i = 1, cfg.batch do some[i], rest[i] = arm.rng:choice(known), arm.rng:choice(free) end
  local x, y = batch_of(some)
  local words = arm.net:embed(x)
  local value = arm.net(words):cross_entropy(y)
  if arm.name == "pushed" then
    local function each(at) return arm.net(at):cross_entropy(y, { reduction = "none" }) end
    local push = loss.fgsm(each, words:detach(), { eps = cfg.push, norm = "2" }) - words:detach()
    value = value + cfg.weight * each(words + push):mean()
  elseif arm.name == "virtual" then
    local all = peri.cat({ words, arm.net:embed((batch_of(rest))) }, 1)
    value = value + cfg.weight * loss.virtual_adversarial(arm.net, all, { eps = cfg.push })
  end
  value:backward()
  arm.opt:step { lr = lr }:zero_grad()
  return value:item()
end

local rate = peri.sched.cosine { from = cfg.lr, to = 0, steps = cfg.updates }
for step in run:steps() do
  local row = {}
  for _, arm in ipairs(arms) do
    row[arm.name .. "/loss"] = update(arm, rate(step))
    if step % cfg.every == 0 or step == cfg.updates then
      local net, _ <close> = arm.net:eval(), peri.no_grad()
      row[arm.name .. "/accuracy"] = net(net:embed(test_x)):argmax(2):eq(test_y):to("f32"):mean():item()
      net:train()
    end
  end
  run:log(step, row)
end
for _, arm in ipairs(arms) do
  local accuracy = run:last(arm.name .. "/accuracy")
  run:text("%-8s %.3f of %d texts", arm.name, accuracy, TEST)
  run:scores(arm.name, accuracy, 3)
end
run:plot("curves.svg", { { "plain/accuracy", "pushed/accuracy", "virtual/accuracy" } })
run:finish()
