-- seq2seq.lua - an encoder and a decoder of Transformer blocks write a row of letters backwards.
--
-- Teaches: attention of a decoder to what an encoder made of the source (Vaswani et al. 2017, arXiv 1706.03762,
-- sections 3.1 and 3.2.3), teacher forcing, greedy decoding. Beside it learns a decoder without cross-attention, which
-- never sees the source: what answers look like, and not which one is right. Judged by exact answers to held-out rows.
-- Run:  ./perilune run recipes/nets/seq2seq.lua    seconds of one core; --longest 16 --layers 2 is harder
-- Departs from the paper: norms before attention and feed-forward, learned positions, one layer, no label smoothing.
local peri = require "perilune"
local nn, optim, sched, recipe = peri.nn, peri.optim, peri.sched, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  longest    = { 8, "letters of a row", range = "[3, 100]" },
  alphabet   = { 10, "different letters", range = "[2, 26]" },
  steps      = { 400, "updates", range = "[1, inf)", budget = true },
  batch      = { 64, "rows an update", range = "[1, inf)" },
  dim        = { 64, "of the streams", range = "[8, inf)" },
  heads      = { 4, "of each attention", range = "[1, inf)" },
  layers     = { 1, "of the encoder, and of the decoder", range = "[1, inf)" },
  dropout    = { 0.0, "of what attention and feed-forward add", range = "[0, 1)" },
  lr         = { 3e-3, "peak learning rate", range = "(0, inf)" },
  eval       = { 200, "held-out rows, never trained on", range = "[1, inf)" },
  eval_every = { 50, "updates between two evaluations", range = "[1, inf)" },
})

-- Task: rows of 1 to `longest` letters; ids are those of the letters behind padding, begin and end.
local PAD, BEGIN, END <const>, kinds = 0, 1, 2, cfg.alphabet + 3
local function draw(rng)
  local source = {}
  for i = 1, rng:int(1, cfg.longest) do source[i] = string.char(96 + rng:int(1, cfg.alphabet)) end
  return table.concat(source)
end
local function ids(text) return { text:byte(1, -1) } end
local function tensor(lists, other) -- letters, from 97, become ids from 3
  local t, mask = peri.data.pad(lists)
  return peri.where(mask, peri.where(t:gt(96), t - 94, t), other), mask
end
local function batch(rows) -- (B, Ts), whether there is something, (B, Ta) what is read, (B, Ta) what is to be said
  local from, read, say = {}, {}, {}
  for i, row in ipairs(rows) do
    from[i], read[i], say[i] = ids(row), ids(row:reverse()), ids(row:reverse())
    table.insert(from[i], END)
    table.insert(read[i], 1, BEGIN)
    table.insert(say[i], END)
  end
  local source, there = tensor(from, PAD)
  return source, there, (tensor(read, PAD)), (tensor(say, -100))
end
local held, of_held, others = {}, {}, peri.rng(0)
for _ = 1, 100 * cfg.eval do -- fewer where there are no more; the short ones are all trained on
  local row = draw(others)
  if #held < cfg.eval and #row > 2 and not of_held[row] then held[#held + 1], of_held[row] = row, true end
end
-- Model.
local D, most, drop = cfg.dim, cfg.longest + 1, { dropout = cfg.dropout }
local Layer = nn.class("Layer", function (self, cross) -- of the decoder
  self.norm1, self.attention = nn.LayerNorm(D), nn.MultiHeadAttention(D, cfg.heads, drop)
  if cross then self.norm2, self.cross = nn.LayerNorm(D), nn.CrossAttention(D, cfg.heads, drop) end
  self.norm3, self.ff = nn.LayerNorm(D), nn.FeedForward(D, 4 * D, drop)
end)
function Layer:forward(x, source, there)
  x = x + self.attention(self.norm1(x)) -- to what was said
  if self.cross then x = x + self.cross(self.norm2(x), source, { mask = there }) end
  return x + self.ff(self.norm3(x))
end
local Net = nn.class("Net", function (self, cross)
  self.letters, self.places = nn.Embedding(kinds, D, { std = 0.1 }), nn.Embedding(most, D, { std = 0.1 })
  self.encoder, self.decoder = {}, {}
  for i = 1, cfg.layers do
    self.encoder[i] = cross and nn.Block(D, cfg.heads, { causal = false, dropout = cfg.dropout }) or nil
    self.decoder[i] = Layer(cross)
  end
  self.norm, self.out = nn.LayerNorm(D), nn.Linear(D, kinds)
end)
function Net:embed(t) return self.letters(t) + self.places(peri.arange(0, t:size(2), 1, "i64")) end
function Net:encode(t, there) -- (B, Ts) -> (B, Ts, D)
  local x, mask = self:embed(t), there:reshape { t:size(1), 1, 1, t:size(2) }
  for _, block in ipairs(self.encoder) do x = block(x, { mask = mask }) end
  return x
end
function Net:forward(said, source, there) -- (B, Ta) -> (B, Ta, kinds)
  local x = self:embed(said)
  for _, layer in ipairs(self.decoder) do x = layer(x, source, there) end
  return self.out(self.norm(x))
end
local nets = nn.ModuleDict { blind = Net(false), cross = Net(true) }
local opt, rng = optim.AdamW(nets, { lr = cfg.lr, weight_decay = 0.01 }), peri.rng(cfg.seed)
local rate = sched.warmup(50, sched.cosine { from = cfg.lr, to = cfg.lr / 50, steps = math.max(cfg.steps - 50, 1) })
local columns = { "cross_exact", "blind_exact" }
local run = recipe.start { name = "seq2seq", flags = cfg, total = cfg.steps, columns = columns }
run:track("nets", nets):track("optimizer", opt):track("rng", rng)
local function exact(net) -- share of held-out rows whose greedy answer is right to the end
  local _ <close> = peri.no_grad()
  local from, there, _, say = batch(held)
  local source, said = net:eval():encode(from, there), peri.full({ #held, 1 }, BEGIN, "i64")
  for t = 1, say:size(2) do
    said = peri.cat({ said, net(said, source, there):select(2, t):argmax(-1, true) }, 2)
  end
  net:train()
  return said:narrow(2, 2, say:size(2)):eq(say):logical_or(say:lt(0)):all { 2 }:to "f32":mean():item()
end
for step in run:steps() do
  local rows, row, done = {}, {}, step % cfg.eval_every == 0 or step == cfg.steps
  while #rows < cfg.batch do
    local one = draw(rng)
    if not of_held[one] then rows[#rows + 1] = one end
  end
  local from, there, read, say = batch(rows)
  for _, name in ipairs { "cross", "blind" } do
    local net = nets[name]
    row[name .. "_loss"] = net(read, net:encode(from, there), there):flatten(1, 2):cross_entropy(say:flatten())
    row[name .. "_loss"]:backward()
    row[name .. "_exact"] = done and exact(net) or nil
  end
  opt:step { lr = rate(step), clip = 1 }:zero_grad()
  run:log(step, row)
end
run:plot("curves.svg", { columns, { "cross_loss", "blind_loss" } })
run:text("%d held-out rows, written backwards without a fault: %s; without cross-attention: %.3f", #held,
  run:scores("exact", (run:last "cross_exact")), run:last "blind_exact")
run:finish()
