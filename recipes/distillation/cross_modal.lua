-- cross_modal.lua - a reader of texts learns from a looker at pictures, and never sees a label.
--
-- Teaches: distillation across modalities (Gupta et al. 2016, arXiv 1507.00448): where one modality has labels and the
-- other has not, pairs of both carry over what the first one knows: a network that has learned 500 labelled pictures
-- says what the pictures of other pairs are, and a small BERT learns that from their texts, which describe them in
-- words ("blank faint dark pale , ..."). Arms, with as many updates:
--   soft      what the teacher says, softened    hints   and its hidden state, through a projection
--   hard      its first choice                   few     the labels of some texts, no teacher    truth   of all pairs
-- Run:  ./perilune run recipes/distillation/cross_modal.lua    half a minute of one core; --few 200; --images FILE
-- Departs from the paper: digits and descriptions in place of pictures and depth maps; both may be moved by a pixel.
local peri = require "perilune"
local nn, recipe, optim, loss = peri.nn, require "perilune.recipe", peri.optim, peri.loss

local cfg = peri.flags(recipe.with_flags {
  images   = { "digits/images.idx3-ubyte.gz", "an IDX file" }, labels = { "digits/labels.idx1-ubyte.gz", "theirs" },
  labelled = { 500, "pictures with labels, for the teacher", range = "[2, inf)" },
  pairs    = { 500, "pictures with texts and without labels, behind them; what is left tests", range = "[2, inf)" },
  few      = { 50, "texts of pairs with labels, for the arm few", range = "[1, inf)" },
  temperature = { 2.0, "of soft", range = "(0, inf)" }, hint = { 1.0, "weight of hints", range = "[0, inf)" },
  updates  = { 3000, "of the teacher, then of every reader", range = "[1, inf)", budget = true },
  batch    = { 32, "of an update", range = "[1, inf)" }, lr = { 2e-3, "peak learning rate", range = "(0, inf)" },
  eval_every = { 500, "updates between measurements" }, dim = { 32, "of the reader, times 16", range = "[16, inf)" },
})
local x, y = peri.data.idx(recipe.find(cfg.images, "an IDX file"), recipe.find(cfg.labels, "an IDX file"))
local all, H, W, classes = assert(x, y):size(1), x:size(2), x:size(3), y:max():item() + 1
local first = math.min(cfg.labelled, all - 2)
local known = first + math.min(cfg.pairs, all - first - 1) -- the last picture of a pair
local pixels = (x:to "f32" / x:max():item()):tolist()
-- A picture, moved by a pixel or not, as a list of numbers; and its text.
local words = { { "blank", "empty" }, { "faint", "pale" }, { "grey", "dim" }, { "dark", "black" } }
local tok = peri.text.words { "picture", ",", "blank", "empty", "faint", "pale", "grey", "dim", "dark", "black" }
local function moved(rng, i, far)
  local dy, dx, out = rng:int(-far, far), rng:int(-far, far), {}
  for h = 1, H do
    for w = 1, W do out[#out + 1] = (pixels[i][h + dy] or {})[w + dx] or 0 end
  end
  return out
end
local function describe(rng, picture) -- how dark each of four by four regions is
  local said = { "picture" }
  for r = 0, 15 do
    local top, left, sum, n = r // 4 * H // 4, r % 4 * W // 4, 0, 0
    for h = top, (r // 4 + 1) * H // 4 - 1 do
      for w = left + 1, (r % 4 + 1) * W // 4 do sum, n = sum + picture[h * W + w], n + 1 end
    end
    said[#said + 1] = words[sum < 0.05 * n and 1 or sum < 0.35 * n and 2 or sum < 0.65 * n and 3 or 4][rng:int(1, 2)]
    if r % 4 == 3 and r < 15 then said[#said + 1] = "," end
  end
  return tok:encode(table.concat(said, " "))
end
local function rows(rng, from, to, n, far) -- n pictures (n, H W), their texts (n, T), their labels (n)
  local pictures, texts, at = {}, {}, {}
  for k = 1, n do
    at[k] = from + (to and rng:int(0, to - from) or k - 1)
    pictures[k] = moved(rng, at[k], far)
    texts[k] = describe(rng, pictures[k])
  end
  return peri.tensor(pictures, "f32"), peri.tensor(texts, "i64"), y:index_select(peri.tensor(at, "i64") - 1, 1)
end
local Reader = nn.class("Reader", function (self)
  self.bert = peri.models.bert.new({ model_type = "bert", vocab_size = tok.size, hidden_size = cfg.dim,
    intermediate_size = 2 * cfg.dim, num_hidden_layers = 2, num_attention_heads = cfg.dim // 16,
    max_position_embeddings = 24, hidden_dropout_prob = 0, attention_probs_dropout_prob = 0 }, { std = 0.05 })
  self.pool, self.act, self.head = nn.Linear(cfg.dim, cfg.dim), nn.Tanh(), nn.Linear(cfg.dim, classes)
end)
function Reader:forward(ids) return self.head(self.act(self.pool(self.bert:forward(ids):select(2, 1)))) end
peri.seed(cfg.seed)
local teacher = nn.Sequential(nn.Linear(H * W, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, classes))
local run = recipe.start { name = "cross_modal", flags = cfg, total = 2 * cfg.updates,
  columns = { "teacher", "soft", "hints", "hard", "few", "truth" } }
local test_x, test_text, test_y = rows(peri.rng(0), known + 1, nil, all - known, 0)
local softened = { temperature = cfg.temperature }
local arms, rng = { { "soft" }, { "hints" }, { "hard" }, { "few" }, { "truth" } }, peri.rng(cfg.seed)
run:track("rng", rng)
local rate = peri.sched.warmup(20, peri.sched.cosine { from = cfg.lr, to = 0, steps = math.max(1, cfg.updates - 20) })
local function adam(name, net)
  local opt = optim.AdamW(net, { lr = cfg.lr, weight_decay = 0.01 })
  run:track(name, net):track(name .. "_adam", opt)
  return opt
end
local teacher_opt = adam("teacher", teacher)
for _, arm in ipairs(arms) do
  peri.seed(cfg.seed + 1) -- one reader's weights in every arm
  arm.net = Reader()
  arm.hints = arm[1] == "hints" and loss.Hints(arm.net, teacher, { pairs = { { "act", "3", weight = cfg.hint } },
    example = test_text, teacher_example = test_x, project = "always" }) or nil
  arm.opt = adam(arm[1], nn.ModuleList { arm.net, arm.hints })
end
local function accuracy(net, input) return peri.no_grad(net, input):argmax(2):eq(test_y):to "f32":mean():item() end
for step in run:steps() do
  local k, now = step - cfg.updates, {}
  local measured = step % cfg.eval_every == 0 or k == 0 or k == cfg.updates
  if k <= 0 then
    local pictures, _, label = rows(rng, 1, first, cfg.batch, 1)
    teacher(pictures):cross_entropy(label):backward()
    teacher_opt:step { lr = rate(step), clip = 1 }:zero_grad()
    now.teacher = measured and accuracy(teacher, test_x) or nil
  else
    local pictures, texts, label = rows(rng, first + 1, known, cfg.batch, 1)
    local _, some, theirs = rows(rng, first + 1, math.min(first + cfg.few, known), cfg.batch, 1)
    local says = peri.no_grad(teacher, pictures)
    local answers = { hard = says:argmax(2), few = theirs, truth = label }
    for _, arm in ipairs(arms) do
      local name = arm[1]
      local logits, wanted = arm.net(name == "few" and some or texts), answers[name]
      local value = wanted and logits:cross_entropy(wanted) or loss.distill(logits, says, softened)
      if arm.hints then value = value + arm.hints:loss() end
      value:backward()
      arm.opt:step { lr = rate(k), clip = 1 }:zero_grad()
      now[name] = measured and accuracy(arm.net, test_text) or nil
    end
  end
  if next(now) then run:log(step, now) end
end
local read = peri.no_grad(arms[1].net, test_text):argmax(2):tolist()
for i = 1, 3 do run:text("%s: %d, read as %d", tok:decode(test_text:tolist()[i]), test_y:tolist()[i], read[i]) end
for _, arm in ipairs(arms) do run:text("texts, %-6s %s", arm[1], run:scores(arm[1], accuracy(arm.net, test_text))) end
run:text("pictures, the teacher %s, of %d", run:scores("teacher", accuracy(teacher, test_x)), all - known)
run:plot("curves.svg", { { "soft", "hints", "hard", "few", "truth", ylabel = "right of the texts" } })
run:finish()
