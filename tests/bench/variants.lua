-- variants.lua - `perilune bench variants`: every policy gradient that has a paper's name (rl.presets) on one small
-- task, several seeds each, as the table of docs/benchmarks/post_training.md.
--   --seeds N (5)   --updates N (30)   --only WORD (part of a name)   --out FILE (a line for each run; those that are
--   there are not run again)   --lr X (1e-3)
-- The task: a word of four letters backwards. All begin from one model that was trained on words of which a letter is
-- wrong in three of ten, so that one sampled answer in four is right; an answer pays 1 when it is right and 0.1 when it
-- has four letters. An update is 16 words x 8 answers in two optimizer steps, gone over twice: three of its four steps are
-- off-policy, or clips would have nothing to do. What is counted is the share of right answers to 256 words that are
-- never trained on, one sampled answer each.
local peri = require "perilune"
local measure = dofile((arg[0]:match "^(.*)/[^/]*$" or ".") .. "/peers/measure.lua")
local rl, sft, grpo = peri.rl, peri.algo.sft, peri.algo.grpo

local opts = measure.flags(arg, { seeds = 5, updates = 30, only = "", out = "", lr = 1e-3 })
local LETTERS <const>, LENGTH <const>, WRONG <const> = "abcdefgh", 4, 0.3
local tok = peri.text.chars(LETTERS, { separator = true })

-- Every word, shuffled; the first 256 are held out.
local words = {}
for i = 0, math.tointeger((#LETTERS) ^ LENGTH) - 1 do
  local word = ""
  for _ = 1, LENGTH do
    local at = i % #LETTERS + 1
    word, i = word .. LETTERS:sub(at, at), i // #LETTERS -- luacheck: ignore 421
  end
  words[#words + 1] = { prompt = word, answer = word:reverse() }
end
peri.rng(0):shuffle(words)
local held_out, train = table.move(words, 1, 256, 1, {}), table.move(words, 257, #words, 1, {})

local reward = {
  { "right", function (row, text) return text == row.answer and 1 or 0 end },
  { "length", function (_, text) return #text == LENGTH and 1 or 0 end, 0.1 },
}

local settings = { task = "reverse", letters = LETTERS, length = LENGTH, wrong = WRONG, batches = 300, rows = 64, seed = 1,
  shape = { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = 64,
    intermediate_size = 172, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 2, rms_norm_eps = 1e-6,
    rope_theta = 10000, max_position_embeddings = 64, eos_token_id = tok.eos, pad_token_id = tok.pad } }

local base = peri.recipe.cached("reverse", settings, function (path)
  peri.seed(settings.seed)
  local model, rng = peri.models.llama.new(settings.shape, { std = 0.1 }), peri.rng(settings.seed)
  local opt = peri.optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 })
  for i in peri.steps(settings.batches) do
    local list = {}
    for k = 1, settings.rows do
      local row = rng:choice(train)
      local ids = tok:encode(row.answer)
      for at = 1, LENGTH do
        if rng:uniform() < WRONG then ids[at] = tok:encode(LETTERS)[rng:int(1, #LETTERS)] end
      end
      ids[#ids + 1] = tok.eos
      list[k] = sft.example(tok:encode_batch({ row.prompt })[1], ids)
    end
    sft.update(model, opt, list, { lr = 3e-3 * (1 - 0.9 * i / settings.batches), pad = tok.pad })
  end
  return model:save(path)
end)

local function right(model)
  local batch = rl.rollout(model, tok, held_out, reward, { max_new_tokens = LENGTH + 2 })
  return rl.pass(batch, { right = 1 }).pass_1
end

-- One run: shares of right answers before, in the middle and at the end, and the seconds of processor time.
local function try(name, seed)
  peri.seed(seed)
  local began, model = os.clock(), assert(peri.models.load(base))
  local stepper = grpo.new { preset = name, model = model, reference = assert(peri.models.load(base)), tokenizer = tok,
    rows = train, reward = reward, prompts = 16, group = 8, micro = 128, mini_batches = 2, iterations = 2, seed = seed,
    max_new_tokens = LENGTH + 2, schedule = peri.sched.warmup(5, peri.sched.constant(opts.lr)),
    optimizer = peri.optim.AdamW(model:parameters(), { betas = { 0.9, 0.95 }, weight_decay = 0 }) }
  local row = { preset = name, seed = seed, updates = opts.updates, lr = opts.lr, before = right(model) }
  for i = 1, opts.updates do
    local metrics = stepper:step()
    row.clipped = (row.clipped or 0) + (metrics["clip_ratio/region_mean"] or 0) / opts.updates
    if i == opts.updates // 3 then row.third = right(model) end
  end
  row["end"], row.seconds = right(model), os.clock() - began
  return row
end

local done, rows = {}, {}
local function key(row) return ("%s %d %d %g"):format(row.preset, row.seed, row.updates, row.lr) end
for line in opts.out ~= "" and peri.files.exists(opts.out) and assert(peri.files.lines(opts.out)) or function () end do
  local row = assert(peri.json.decode(line))
  done[key(row)] = row
end

local names = {}
for name in pairs(rl.presets) do if name:find(opts.only, 1, true) then names[#names + 1] = name end end
table.sort(names)
for seed = 1, opts.seeds do -- all variants of a seed before the next: a table that is cut short is still one
  for _, name in ipairs(names) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local row = done[key { preset = name, seed = seed, updates = opts.updates, lr = opts.lr }] or try(name, seed)
    if opts.out ~= "" and not done[key(row)] then assert(peri.files.append(opts.out, peri.json.encode(row) .. "\n")) end
    rows[name] = rows[name] or {}
    table.insert(rows[name], row)
    io.stderr:write(("%s seed %d: %.3f %.3f %.3f  %.1f s\n"):format(name, seed, row.before, row.third or 0 / 0, row["end"],
      row.seconds))
  end
end

local function column(list, field)
  local values = {}
  for i, row in ipairs(list) do values[i] = row[field] end
  return values
end

print(("right of %d held-out words after %d and %d updates; before %.3f"):format(#held_out, opts.updates // 3, opts.updates,
  rows[names[1]] and rows[names[1]][1].before or 0 / 0))
print "| preset | a third | end | clipped | CPU s |\n| --- | --- | --- | --- | --- |"
for _, name in ipairs(names) do
  local list, cells = rows[name], {}
  for _, field in ipairs { "third", "end" } do
    local _, n = rl.report(column(list, field))
    cells[#cells + 1] = ("%.3f [%.3f, %.3f]"):format(n.iqm, n.low, n.high)
  end
  local clipped, seconds = 0, 0
  for _, row in ipairs(list) do clipped, seconds = clipped + row.clipped / #list, seconds + row.seconds / #list end
  print(("| `%s` | %s | %s | %.3f | %.1f |"):format(name, cells[1], cells[2], clipped, seconds))
end
