-- char_lstm.lua - an LSTM reads a text character by character, says the next one, and writes on.
--
-- Teaches: long short-term memory (Hochreiter and Schmidhuber 1997) by truncated backpropagation through time: a state
-- goes from chunk to chunk, its gradient does not (Graves 2013, arXiv 1308.0850, section 2.1); clipping by the norm
-- (Pascanu et al. 2013). Bits a character beside n-grams of every order up to 5, interpolated (Witten and Bell 1991).
-- Run:  ./perilune run recipes/nets/char_lstm.lua    under a minute of one core; --text FILE reads another text,
--       --forget makes every chunk begin without a memory, --cell gru has another cell
-- Departs from the paper: one layer and no peepholes; a short text, so that it is done in minutes.
local peri = require "perilune"
local nn, optim, sched, recipe = peri.nn, peri.optim, peri.sched, require "perilune.recipe"

local cfg = peri.flags(recipe.with_flags {
  text       = { "tinyshakespeare.txt.gz", "plain or gzipped, of bytes" },
  characters = { 400000, "of it, from the beginning; 0 = all; the last tenth is for the test", range = "[0, inf)" },
  steps      = { 1500, "updates", range = "[1, inf)", budget = true },
  batch      = { 32, "places of the text that are read at once", range = "[1, inf)" },
  length     = { 64, "characters of a chunk", range = "[1, inf)" },
  cell       = { "lstm", "of the memory", choices = { "lstm", "gru" } },
  hidden     = { 256, "width of the memory", range = "[1, inf)" },
  layers     = { 1, "one above the other", range = "[1, inf)" },
  embed      = { 32, "numbers of a character", range = "[1, inf)" },
  dropout    = { 0.0, "of what the memory gives", range = "[0, 1)" },
  forget     = { false, "begin every chunk with an empty memory" },
  lr         = { 5e-3, "peak learning rate", range = "(0, inf)" },
  clip       = { 1.0, "norm of all gradients", range = "(0, inf)" },
  order      = { 5, "of the longest n-gram", range = "[1, 16]" },
  eval       = { 20000, "characters of the test that are read", range = "[100, inf)" },
  eval_every = { 100, "updates between two evaluations", range = "[1, inf)" },
  sample     = { 300, "characters that it writes at the end", range = "[0, inf)" },
})

-- Data: bytes, counted from 0 in the order of their values.
local parts = {}
for line in assert(peri.files.lines(recipe.find(cfg.text, "a text: --text FILE"))) do parts[#parts + 1] = line end
local text = table.concat(parts, "\n")
if cfg.characters > 0 then text = text:sub(1, cfg.characters) end
local split = #text * 9 // 10
local train, test = text:sub(1, split), text:sub(split + 1, split + cfg.eval)
assert(#train // cfg.batch > cfg.length, "the text is too short: --batch, --length")
local alphabet, id_of = {}, {}
for byte = 0, 255 do
  local c = string.char(byte)
  if text:find(c, 1, true) then alphabet[#alphabet + 1], id_of[byte] = c, #alphabet end
end
local function ids(s)
  local list = {}
  for i = 1, #s do list[i] = id_of[s:byte(i)] end
  return peri.tensor(list, "i64")
end

-- Model.
local Net = nn.class("Net", function (self, size)
  self.embed = nn.Embedding(size, cfg.embed, { std = 0.1 })
  self.memory = nn[cfg.cell:upper()](cfg.embed, cfg.hidden, { layers = cfg.layers })
  self.drop, self.out = nn.Dropout(cfg.dropout), nn.Linear(cfg.hidden, size)
end)
function Net:forward(x, state) -- (B, T) -> (B, T, size)
  local y, after = self.memory(self.embed(x), state)
  return self.out(self.drop(y)), after
end
local net = Net(#alphabet)
local opt = optim.Adam(net, { lr = cfg.lr })
local rate = sched.warmup(cfg.steps // 20, sched.cosine { from = cfg.lr, to = cfg.lr / 50,
  steps = cfg.steps - cfg.steps // 20 })

-- Where it reads: each row a part of the text, from its beginning to its end and again.
local columns = (#train - 1) // cfg.batch
local rows = peri.keep(ids(train):narrow(1, 1, columns * cfg.batch):reshape { cfg.batch, columns })
local reader = { at = 0, state = net.memory:initial(cfg.batch) }
function reader:state_dict()
  return cfg.cell == "gru" and { h = self.state } or { h = self.state[1], c = self.state[2] }, { at = self.at }
end
function reader:load_state_dict(t, plain) self.at, self.state = plain.at, t.c and { t.h, t.c } or t.h end

local run = recipe.start { name = "char_lstm", flags = cfg, total = cfg.steps, columns = { "bits", "test_bits" } }
run:track("net", net):track("optimizer", opt):track("reader", reader)
run:restore()
local ngrams = peri.text.ngrams(train, { order = cfg.order }):bits(test) -- the baseline

local function test_bits() -- in rows of 500 characters, each from an empty memory
  local _ <close> = peri.no_grad()
  local width = math.min(500, #test - 1)
  local count = (#test - 1) // width
  local whole = ids(test)
  local x = whole:narrow(1, 1, count * width):reshape { count, width }
  local y = whole:narrow(1, 2, count * width)
  return net:eval()(x):flatten(1, 2):cross_entropy(y):item() / math.log(2)
end
-- Loop.
for step in run:steps() do
  if reader.at + cfg.length + 1 > columns then reader.at, reader.state = 0, net.memory:initial(cfg.batch) end
  local x, y = rows:narrow(2, reader.at + 1, cfg.length), rows:narrow(2, reader.at + 2, cfg.length)
  local logits, after = net:train()(x, not cfg.forget and reader.state or nil)
  local loss = logits:flatten(1, 2):cross_entropy(y:flatten())
  loss:backward()
  opt:step { lr = rate(step), clip = cfg.clip }:zero_grad()
  local function held(t) return peri.keep(t:detach()) end
  reader.at = reader.at + cfg.length
  reader.state = cfg.cell == "gru" and held(after) or { held(after[1]), held(after[2]) }
  local row = { bits = loss:item() / math.log(2), grad_norm = opt.grad_norm, lr = opt.lr }
  if step % cfg.eval_every == 0 or step == cfg.steps then row.test_bits = test_bits() end
  run:log(step, row)
end

local written, state, last = {}, nil, ids "\n"
for i = 1, cfg.sample do
  local _ <close> = peri.no_grad()
  local logits
  logits, state = net:eval()(last:reshape { 1, 1 }, state)
  last = (logits:reshape { 1, -1 } / 0.7):categorical()
  written[i] = alphabet[last:item() + 1]
end
run:sample(cfg.steps, { text = table.concat(written) }, table.concat(written))
run:plot("curves.svg", { { "bits", "test_bits", ylabel = "bits a character" }, "grad_norm" })
local list = {}
for n, bits in ipairs(ngrams) do list[n] = ("%d: %.3f"):format(n, bits) end
run:scores("bits_below_ngrams", math.min(table.unpack(ngrams)) - run:last "test_bits") -- perilune compare
run:text("%s: %.3f bits a character of the test; n-grams of %s", cfg.cell, run:last "test_bits",
  table.concat(list, ", "))
run:finish()
