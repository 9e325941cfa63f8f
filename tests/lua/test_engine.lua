-- The engine of generation: for every policy and architecture it gives what a loop gives that knows no cache, no batch
-- and no other row; whatever rows enter, leave and move, the sampled log-probabilities are the trained ones, bit for
-- bit; one request's failure is its own.
local lu = require "luaunit"
local peri = require "perilune"
local batches = require "perilune.text.batch"
local constraint = require "perilune.decode.constraint"
local engines = require "perilune.decode.engine"
local lms = require "perilune.lm"
local models = require "perilune.models"
local rl = require "perilune.rl"
local sampler = require "perilune.decode.sampler"
local text = require "perilune.text"
local tiny = require "tiny"

local causal = { "llama", "llama31_rope", "qwen2", "qwen3", "mistral", "gemma2", "gpt2", "deepseek_v3" }
local prompts = { { 19, 34, 22 }, { 25, 40, 20, 35, 6, 47 }, { 7 }, { 9, 9, 33, 2, 51 } }

-- ---- the loop that knows nothing ----------------------------------------------------------------

-- Scores of what follows ids, by a forward pass over all of them. -- (1, V)
local function scores(model, ids)
  if model.encode then
    local input, decoded = peri.tensor { ids[1] }, table.move(ids, 2, #ids, 2, { model.settings.first })
    return model:logits(model:forward(input, { decoder_ids = peri.tensor { decoded } }):select(2, -1))
  end
  return model:logits(model:forward(peri.tensor { ids }):select(2, -1))
end

-- What a model reads behind an input or a prompt.
local function behind(model, prompt, tokens)
  if model.encode then return table.move(tokens, 1, #tokens, 2, { prompt }) end
  return table.move(tokens, 1, #tokens, #prompt + 1, table.move(prompt, 1, #prompt, 1, {}))
end

local function is_in(list, id)
  for _, v in ipairs(list or {}) do if v == id then return true end end
  return false
end

-- The logits that penalties and constraints leave, as their definitions say.
local function altered(x, o, prompt, tokens, state)
  local row = x:tolist()[1]
  local known, count = {}, {}
  for _, list in ipairs { prompt, tokens } do for _, id in ipairs(list) do known[id] = true end end
  for _, id in ipairs(tokens) do count[id] = (count[id] or 0) + 1 end
  for id in pairs(known) do
    local v, p = row[id + 1], o.repetition_penalty or 1
    row[id + 1] = v < 0 and v * p or v / p
  end
  for id, n in pairs(count) do
    row[id + 1] = row[id + 1] - n * (o.frequency_penalty or 0) - (o.presence_penalty or 0)
  end
  for id, bias in pairs(o.logit_bias or {}) do row[id + 1] = row[id + 1] + bias end
  for _, id in ipairs(#tokens < (o.min_new_tokens or 0) and o.stop or {}) do row[id + 1] = -math.huge end
  if state then
    for id, no in ipairs(o.constraint:forbidden(state, #row, o.stop):tolist()) do
      if no then row[id] = -math.huge end
    end
  end
  return peri.tensor({ row }, "f32")
end

-- One sequence. key: { seed, offset, block } of its first token.
local function naive(model, prompt, o, key)
  local _ <close> = peri.no_grad()
  local tokens, logprobs, state = {}, {}, o.constraint and o.constraint:start()
  for t = 1, o.max_new_tokens do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local x = scores(model, behind(model, prompt, tokens))
    local temperature = o.temperature or 1
    local greedy = o.greedy or temperature == 0
    local id = altered(x, o, model.encode and {} or prompt, tokens, state):sample { greedy = greedy,
      temperature = greedy and 1 or temperature, top_k = greedy and 0 or o.top_k, top_p = greedy and 1 or o.top_p,
      keys = not greedy and peri.tensor { { key[1], key[2] + t - 1, key[3] } } or nil }:item()
    tokens[t], logprobs[t] = id, x:div(greedy and 1 or temperature):log_softmax(-1):at(1, id + 1)
    if is_in(o.stop, id) then break end
    if state then
      state = o.constraint:advance(state, id)
      if o.constraint:complete(state) then break end
    end
  end
  return tokens, logprobs
end

-- Beam search with early_stopping = "never" and length_penalty 0: all that can be better is looked at.
local function naive_beams(model, prompt, o)
  local _ <close> = peri.no_grad()
  local beams, finished = { { tokens = {}, score = 0 } }, {}
  local function order(a, b) return a.score > b.score end
  for t = 1, o.max_new_tokens do
    local all = {}
    for _, beam in ipairs(beams) do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local row = scores(model, behind(model, prompt, beam.tokens)):log_softmax(-1):tolist()[1]
      for id, p in ipairs(row) do all[#all + 1] = { from = beam, id = id - 1, score = beam.score + p } end
    end
    table.sort(all, order)
    beams = {}
    for place, c in ipairs(all) do
      local tokens = table.move(c.from.tokens, 1, t - 1, 1, {})
      tokens[t] = c.id
      if is_in(o.stop, c.id) or t == o.max_new_tokens then
        if place <= o.num_beams then finished[#finished + 1] = { tokens = tokens, score = c.score } end
      elseif #beams < o.num_beams then beams[#beams + 1] = { tokens = tokens, score = c.score } end
      if #beams == o.num_beams or place > 4 * o.num_beams then break end
    end
    table.sort(finished, order)
    if #finished >= o.num_beams and (not beams[1] or beams[1].score <= finished[o.num_beams].score) then break end
  end
  return finished
end

-- ---- the law ------------------------------------------------------------------------------------

TestLaw = {}

-- A tokenizer of the vocabulary's ids, for constraints: id k is the text "k," .
local function numbers(n)
  return { size = n, decode = function (_, ids) return ids[1] .. "," end }
end

local policies = {
  greedy = { greedy = true },
  cold = { temperature = 0 },
  sampled = { seed = 5, temperature = 0.8 },
  drawn = { temperature = 1.3 }, -- from the generator
  truncated = { seed = 6, temperature = 1.2, top_k = 9, top_p = 0.9 },
  truncated_drawn = { temperature = 1.2, top_k = 9 },
  penalised = { greedy = true, repetition_penalty = 1.3, frequency_penalty = 0.4, presence_penalty = 0.2 },
  penalised_drawn = { repetition_penalty = 1.1, presence_penalty = 0.3 },
  biased = { seed = 2, logit_bias = { [5] = 3, [9] = 2.5, [40] = -8 } },
  long = { seed = 3, min_new_tokens = 5, logit_bias = { [9] = 6 } },
  pattern = { seed = 4, temperature = 2, constraint = "(1?[0-9],)*(7|33)," },
  list = { temperature = 3, constraint = { "12,", "12,13,14,", "5," } },
}

local STRIDE <const> = 0x9E3779B97F4A7C15

-- Every sequence of model:generate against the loop, with so many rows at once.
local function check(model, name, settings, samples, rows)
  local o = { max_new_tokens = 7, stop = { 9, 14, 33 }, pad = 1 }
  for k, v in pairs(settings) do o[k] = v end
  if type(o.constraint) == "string" then o.constraint = constraint.regex(o.constraint, numbers(61))
  elseif o.constraint then o.constraint = constraint.choices(o.constraint, numbers(61)) end
  local given = { rows = rows, samples = samples }
  for k, v in pairs(o) do given[k] = v end
  peri.seed(11)
  peri.rand { 3 }
  local before = peri.rng_state()
  local out = model:generate(batches.pad(prompts, { side = "left" }), given)
  local tokens, logprobs, mask, longest = out.tokens:tolist(), out.logprobs:tolist(), out.mask:tolist(), 0
  for r = 1, #prompts * samples do
    local key = o.seed and { o.seed + (r - 1) * STRIDE, 0, 1 << 63 } or { before.seed, before.offset, r - 1 }
    local want, want_logprobs = naive(model, prompts[(r - 1) // samples + 1], o, key)
    local label = ("%s, %s rows, sequence %d"):format(name, rows or "all", r)
    local got = {}
    for t, id in ipairs(tokens[r]) do
      lu.assertEquals(mask[r][t], t <= #want, label)
      if t <= #want then got[t] = id else lu.assertEquals({ id, logprobs[r][t] }, { 1, 0 }, label) end
    end
    lu.assertEquals(got, want, label)
    -- 1e-4: a pass over all against one with a cache, in f32
    for t, p in ipairs(want_logprobs) do lu.assertAlmostEquals(logprobs[r][t], p, 1e-4, label) end
    lu.assertEquals(out.reasons[r], is_in(o.stop, want[#want]) and "stop" or #want == 7 and not o.constraint and "length"
      or out.reasons[r], label)
    longest = math.max(longest, #want)
  end
  -- the generator moved on by a draw for each step, as if all rows had been drawn at once
  local chance = not (o.seed or o.greedy or o.temperature == 0)
  lu.assertEquals(peri.rng_state(), { seed = before.seed, offset = before.offset + (chance and longest or 0) }, name)
  if o.constraint then o.constraint.masks = {} end
end

for _, arch in ipairs(causal) do
  for name, settings in pairs(policies) do
    TestLaw[("test_%s_%s_equals_the_naive_loop"):format(arch, name)] = function ()
      local model = tiny.load(arch)
      for _, rows in ipairs { false, 3 } do check(model, name, settings, 2, rows or nil) end
      if arch == "llama" then
        for _, rows in ipairs { 1, 2, 5, 7 } do check(model, name, settings, 3, rows) end
      end
    end
  end
end

for _, arch in ipairs { "t5", "t5_gated" } do
  for _, name in ipairs { "greedy", "sampled", "drawn", "penalised", "biased" } do
    TestLaw[("test_%s_%s_equals_the_naive_loop"):format(arch, name)] = function ()
      local model = tiny.load(arch)
      for _, rows in ipairs { false, 1, 3, 4 } do check(model, name, policies[name], 2, rows or nil) end
    end
  end
end

for _, arch in ipairs { "llama", "qwen3", "mistral", "gemma2", "gpt2", "deepseek_v3", "t5", "t5_gated" } do
  TestLaw[("test_%s_beams_equal_the_naive_search"):format(arch)] = function ()
    local model = tiny.load(arch)
    local o = { num_beams = 3, num_return_sequences = 2, max_new_tokens = 6, stop = { 9, 14, 33, 46 }, pad = 1,
      length_penalty = 0, early_stopping = "never" }
    for _, rows in ipairs { 1, 4, 7, 12 } do -- as one prompt, two and all
      o.rows = rows
      local out = model:generate(batches.pad(prompts, { side = "left" }), o)
      local tokens, values, mask = out.tokens:tolist(), out.scores:tolist(), out.mask:to("i64"):sum(2):tolist()
      for p, prompt in ipairs(prompts) do
        local want = naive_beams(model, prompt, o)
        for k = 1, 2 do
          local r = 2 * (p - 1) + k
          lu.assertEquals(table.move(tokens[r], 1, mask[r], 1, {}), want[k].tokens, ("%d rows, %d"):format(rows, r))
          lu.assertAlmostEquals(values[r], want[k].score, 1e-4)
        end
      end
    end
  end
end

-- ---- bits ---------------------------------------------------------------------------------------

TestBits = {}

local function digits() return assert(models.load "tests/data/tiny_llama_digits") end

-- Prompts of many lengths for a vocabulary of digits, of which some are padded.
local function uneven(n)
  local rng, lists = peri.rng(4), {}
  for i = 1, n do
    lists[i] = {}
    for k = 1, rng:int(1, 11) do lists[i][k] = rng:int(4, 15) end
  end
  return batches.pad(lists, { side = "left" })
end

-- Late, early, moved and compacted: as many rows at once as there are kinds of trouble.
function TestBits.test_sampled_logprobs_are_the_training_logprobs_whatever_rows_come_and_go()
  local model, batch = digits(), uneven(20)
  local want
  for _, rows in ipairs { 60, 1, 2, 7, 16, 31, 59 } do
    peri.seed(8)
    local out = model:generate(batch, { samples = 3, max_new_tokens = 24, temperature = 0.9, stop = { 1, 7 }, rows = rows })
    local logp = peri.no_grad(function ()
      return (model:token_logprobs(out.batch, batch.ids:size(2) + 1, { temperature = 0.9 }))
    end)
    lu.assertEquals(logp:bytes(), out.logprobs:bytes(), rows .. " rows at once")
    local bits = out.tokens:bytes() .. out.logprobs:bytes() .. out.mask:bytes()
    want = want or bits
    lu.assertEquals(bits, want, rows .. " rows at once")
    local counts = out.mask:to("i64"):sum(2)
    lu.assertTrue(counts:min():item() < 4 and counts:max():item() > 12)
    local one = out.batch:rows(17, 1) -- alone
    logp = peri.no_grad(function () return (model:token_logprobs(one, batch.ids:size(2) + 1, { temperature = 0.9 })) end)
    lu.assertEquals(logp:bytes(), out.logprobs:narrow(1, 17, 1):bytes())
  end
end

-- model:generate with few and many rows at once: the same bits, and those of the training pass.
local function check_bits(arch, model, settings)
  local batch, want = batches.pad(prompts, { side = "left" }), nil
  for _, rows in ipairs { 12, 1, 5 } do
    local o = { samples = 3, max_new_tokens = 9, rows = rows, stop = { 9, 14, 33, 46 } }
    for k, v in pairs(settings or {}) do o[k] = v end
    peri.seed(1)
    local out, label = model:generate(batch, o), ("%s, %d rows"):format(arch, rows)
    local logp = peri.no_grad(function ()
      return (model:token_logprobs(out.batch, batch.ids:size(2) + 1, { temperature = o.temperature }))
    end)
    lu.assertEquals(logp:bytes(), out.logprobs:bytes(), label)
    want = want or out.tokens:bytes() .. out.logprobs:bytes()
    lu.assertEquals(out.tokens:bytes() .. out.logprobs:bytes(), want, label)
  end
end

function TestBits.test_also_on_every_architecture()
  for _, arch in ipairs(causal) do
    local model = tiny.load(arch)
    check_bits(arch, model)
    check_bits(arch, model, { temperature = 0.7, top_k = 20, seed = 3 })
  end
end

-- Log-probabilities are the model's own, whatever decides which token is drawn.
function TestBits.test_also_under_penalties_and_constraints()
  for _, arch in ipairs { "llama", "gemma2" } do
    local model = tiny.load(arch)
    for _, temperature in ipairs { 1, 0.7, 1.9 } do
      check_bits(arch, model, { temperature = temperature, repetition_penalty = 1.3, presence_penalty = 0.2 })
      check_bits(arch, model, { temperature = temperature, min_new_tokens = 4, logit_bias = { [9] = 2 } })
      local pattern = constraint.regex("([0-9]+,)+", numbers(61))
      check_bits(arch, model, { temperature = temperature, constraint = pattern })
      pattern.masks = {}
    end
  end
end

-- A learned prefix stands before each row's own keys, wherever the row begins; an adapter on the head changes scores.
function TestBits.test_also_under_adapters()
  local peft = require "perilune.peft"
  for _, arch in ipairs(causal) do
    local model = tiny.load(arch)
    local adapter = peft.prefix(model, { tokens = 3 })
    check_bits(arch, model)
    adapter:remove()
  end
  local model = tiny.load "llama"
  local adapter = peft.lora(model, { r = 2, targets = { "q_proj", "lm_head" } })
  peri.no_grad(function () for _, p in ipairs(adapter:parameters()) do p:add_(0.05) end end)
  check_bits("llama with an adapter on its head", model, { temperature = 0.8 })
end

-- What a program prints must be the same on every SIMD level's own threads, and the law holds on each of them.
local child = [[
  local peri = require "perilune"
  local batches = require "perilune.text.batch"
  local model = assert(peri.models.load "tests/data/tiny_llama_digits")
  local rng, lists = peri.rng(4), {}
  for i = 1, 9 do
    lists[i] = {}
    for k = 1, rng:int(1, 11) do lists[i][k] = rng:int(4, 15) end
  end
  local batch, sum = batches.pad(lists, { side = "left" }), 0
  for _, rows in ipairs { 27, 4, 13 } do
    peri.seed(8)
    local out = model:generate(batch, { samples = 3, max_new_tokens = 20, stop = { 1, 7 }, rows = rows })
    local logp = peri.no_grad(function () return (model:token_logprobs(out.batch, batch.ids:size(2) + 1)) end)
    assert(logp:bytes() == out.logprobs:bytes(), rows .. " rows: other log-probabilities")
    local bits = out.tokens:bytes() .. out.logprobs:bytes()
    for i = 1, #bits do sum = (sum * 31 + bits:byte(i)) & 0xFFFFFFFFFFFF end
    print(peri.info().simd, rows, sum)
    sum = 0
  end]]

function TestBits.test_also_on_every_simd_level_and_any_number_of_threads()
  local program = arg[-2]
  if not program then return lu.skip "needs the program's path" end
  local path = os.tmpname()
  assert(peri.files.write(path, child))
  for _, level in ipairs { "portable", "avx2", "avx512" } do
    local want
    for _, threads in ipairs { 1, 2 } do
      local pipe = io.popen(("PERI_SIMD=%s PERI_THREADS=%d '%s' run %s 2>&1"):format(level, threads, program, path))
      local said = pipe:read "a"
      lu.assertTrue(pipe:close(), said)
      local sums = {}
      for rows, sum in said:gmatch "(%d+)\t(%d+)\n" do sums[rows] = sum end
      lu.assertEquals({ sums["4"], sums["13"] }, { sums["27"], sums["27"] }, level)
      want = want or said
      lu.assertEquals(said, want, ("%s, %d threads"):format(level, threads))
    end
  end
  os.remove(path)
end

-- Requests of every kind in one engine: each gets what it gets alone.
function TestBits.test_policies_share_a_batch()
  local model = tiny.load "llama"
  local batch = batches.pad(prompts, { side = "left" })
  local o = { num_beams = 3, num_return_sequences = 1, samples = 1, max_new_tokens = 6, stop = { 9, 33 }, pad = 0,
    length_penalty = 1, early_stopping = false }
  for name, value in pairs(sampler.defaults) do
    if o[name] == nil and type(value) ~= "table" then o[name] = value end
  end
  local alone = model:generate(batch, { num_beams = 3, max_new_tokens = 6, stop = { 9, 33 } })
  local counts = alone.mask:to("i64"):sum(2):tolist()
  for _, rows in ipairs { 4, 9, 30 } do
    local engine <close> = engines.new(model, { rows = rows })
    local asked, want = {}, {}
    for i, ids in ipairs(prompts) do
      local how = { max_new_tokens = 5 + i, seed = i, temperature = i % 2 == 0 and 0 or 1, samples = 2, stop = { 9 },
        repetition_penalty = i == 3 and 1.2 or 1, top_logprobs = i == 4 and 2 or 0 }
      asked[i] = engine:submit(ids, how)
      want[i] = { naive(model, ids, how, { i, 0, 1 << 63 }) }
      if i == 2 then engine:step() end
    end
    local searches = engine:submit_batch(batch, o)
    engine:run()
    for i, request in ipairs(asked) do
      lu.assertEquals(request.sequences[1].tokens, want[i][1])
      lu.assertEquals(#request.sequences[1].logprobs, #want[i][2])
    end
    for p, request in ipairs(searches) do
      lu.assertEquals(request.sequences[1].row:best(1)[1].tokens,
        table.move(alone.tokens:tolist()[p], 1, counts[p], 1, {}))
    end
  end
end

function TestBits.test_a_prompt_is_read_once_for_all_its_samples()
  local model, batch = digits(), uneven(5)
  local forward, read, most = model.forward, 0, 0
  rawset(model, "forward", function (self, ids, ...)
    if ids:size(2) > 1 or ids:size(1) > 4 then read = read + ids:size(1) end -- some prompts have one token
    most = math.max(most, ids:size(2) == 1 and ids:size(1) or 0)
    return forward(self, ids, ...)
  end)
  local lists = batch:unpad()
  for b, list in ipairs(lists) do lists[b] = table.move(list, 1, #list, 2, { 4 }) end
  local want
  for _, rows in ipairs { 3, 1, 4 } do
    read, most = 0, 0
    peri.seed(6)
    local out = model:generate(batches.pad(lists, { side = "right" }), { samples = 7, max_new_tokens = 6, rows = rows,
      top_logprobs = 2, stop = { 1 } })
    lu.assertEquals(read, 5)
    lu.assertEquals(most, rows)
    for r, top in ipairs(out.top) do lu.assertEquals(#top, out.mask:narrow(1, r, 1):to("i64"):sum():item()) end
    local got = { out.tokens:tolist(), out.top, out.reasons }
    want = want or got
    lu.assertEquals(got, want)
  end
end

function TestBits.test_on_tokens_hears_each_token_once()
  local model, batch = digits(), uneven(6)
  for _, rows in ipairs { 12, 5, 1 } do
    local heard, draws = {}, 0
    local out = model:generate(batch, { samples = 2, max_new_tokens = 9, greedy = true, stop = { 7 }, rows = rows, pad = 2,
      on_tokens = function (i, ids, alive)
        draws = draws + 1
        lu.assertEquals(i, draws)
        for r, is_alive in ipairs(alive:tolist()) do
          heard[r] = heard[r] or {}
          if is_alive then table.insert(heard[r], ids:at(r)) else lu.assertEquals(ids:at(r), 2) end
        end
      end })
    for r, list in ipairs(out.tokens:tolist()) do
      for t = #list, #heard[r] + 1, -1 do
        lu.assertFalse(out.mask:at(r, t))
        list[t] = nil
      end
      lu.assertEquals(heard[r], list)
    end
  end
end

-- ---- rollouts -----------------------------------------------------------------------------------

TestRollouts = {}

local tok = text.chars("0123456789,:", { separator = true })
local config = { model_type = "llama", vocab_size = tok.size, hidden_size = 32, intermediate_size = 48,
  num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 64, rms_norm_eps = 1e-6 }
local asked = { { prompt = "1,2:9,4" }, { prompt = "1:9" }, { prompt = "3,1:9,2" }, { prompt = "4" } }

local function policy()
  peri.seed(2)
  return models.llama.new(config, { std = 0.1 })
end

function TestRollouts.test_a_rollout_is_the_same_however_many_run_at_once()
  local model, want = policy(), nil
  for _, rows in ipairs { 32, 3, 8, 20 } do
    peri.seed(5)
    local batch = rl.rollout(model, tok, asked, function (_, said) return #said end,
      { group = 8, max_new_tokens = 12, rows = rows })
    local got = { batch.tokens, batch.texts, batch.ended, batch.total, batch.start:tolist(), batch.ids:tolist(),
      batch.logprobs:bytes(), batch.mask:bytes(), batch.from }
    want = want or got
    lu.assertEquals(got, want)
    local logp = model:token_logprobs(batch.sequences, batch.from)
    lu.assertEquals(logp:detach():bytes(), batch.logprobs:bytes())
    local begins, counts = batch.sequences:bounds()
    for i, list in ipairs(batch.tokens) do
      lu.assertEquals(counts[i], batch.from - 1 - begins[i] + #list)
      lu.assertEquals(batch.ended[i], list[#list] == tok.eos)
    end
  end
end

-- The ids of a step are looked at once, to know who has ended; and read once, for the reward. Nothing is made of a
-- tensor's list again.
function TestRollouts.test_a_step_takes_no_tensor_to_tables_and_back()
  local model = policy()
  local made, read = 0, {}
  local tensor, tolist = peri.tensor, peri.zeros({ 1 }).tolist
  local longest
  local function step()
    local batch = rl.rollout(model, tok, asked, function (_, said, list)
      local steps = {}
      for i = 1, #list do steps[i] = i % 2 end
      return #said, steps
    end, { group = 8, max_new_tokens = 6 })
    longest = batch.mask:size(2)
    local advantage, weight = rl.advantages(batch)
    for part in rl.parts(rl.with_signal(batch, advantage, weight), 64) do
      local logp = model:token_logprobs(part.sequences, part.from)
      rl.clipped(logp, part.logprobs, part.advantage, part.weight, { tokens = 1, sequences = 1 }):backward()
    end
  end
  peri._method("tolist", function (t)
    local list = tolist(t)
    read[list] = true
    made = made + 1
    return list
  end)
  rawset(peri, "tensor", function (list, ...)
    lu.assertNil(read[list], "a list that was read from a tensor")
    return tensor(list, ...)
  end)
  local ok, message = pcall(step)
  peri._method("tolist", tolist)
  rawset(peri, "tensor", tensor)
  if not ok then error(message, 0) end
  lu.assertTrue(made <= longest + 2, ("%d reads in %d steps"):format(made, longest))
end

-- ---- one request's failure ----------------------------------------------------------------------

TestIsolation = {}

local function finished(request)
  local s = request.sequences[1]
  return table.concat(s.tokens, " ") .. " " .. s.reason
end

-- Two requests that go on beside one that fails; then the engine serves another one.
local function beside(fail, want)
  local model = tiny.load "llama"
  local o = { max_new_tokens = 9, greedy = true }
  local alone = engines.new(model)
  local a, b = alone:submit(prompts[1], o), alone:submit(prompts[2], o)
  alone:run()
  local engine <close> = engines.new(model, { rows = 3 })
  local c = engine:submit(prompts[1], o)
  local bad = fail(engine, model)
  local d = engine:submit(prompts[2], o)
  engine:run()
  lu.assertEquals({ finished(c), finished(d) }, { finished(a), finished(b) })
  lu.assertStrContains(tostring(bad.error), want)
  lu.assertEquals(bad.sequences[1].reason, "error")
  local again = engine:submit(prompts[1], o)
  engine:run()
  lu.assertEquals(finished(again), finished(a))
  lu.assertNil(engine.cache)
end

function TestIsolation.test_a_callback_that_raises_ends_its_request_alone()
  beside(function (engine)
    return engine:submit({ 5, 6 }, { max_new_tokens = 9, greedy = true, on_token = function (s)
      if #s.tokens == 3 then error "enough" end
    end })
  end, "enough")
end

function TestIsolation.test_a_constraint_that_cannot_go_on_ends_its_request_alone()
  beside(function (engine)
    local c = constraint.regex("1[0-9],x", numbers(61))
    return engine:submit({ 5, 6 }, { max_new_tokens = 9, seed = 1, constraint = c })
  end, "no token that goes on")
end

function TestIsolation.test_a_prompt_that_cannot_be_read_ends_its_request_alone()
  beside(function (engine, model)
    local forward = model.forward
    rawset(model, "forward", function (self, ids, ...)
      if ids:size(2) == 2 and ids:at(1, 1) == 60 then error "cannot read this" end
      return forward(self, ids, ...)
    end)
    return engine:submit({ 60, 6 }, { max_new_tokens = 9 })
  end, "cannot read this")
end

-- Rows that fail beside others, of a model that computes in another dtype.
function TestIsolation.test_also_in_f64()
  local model = tiny.load("llama"):to "f64"
  local engine <close> = engines.new(model, { rows = 3 })
  local o = { max_new_tokens = 5, greedy = true }
  local good = engine:submit(prompts[1], o)
  local bad = engine:submit({ 5 }, { max_new_tokens = 5, greedy = true, constraint = constraint.regex("x", numbers(61)) })
  local worse = engine:submit({ 6 }, { max_new_tokens = 5, greedy = true, logit_bias = { [3] = 1 },
    constraint = constraint.regex("y", numbers(61)) })
  local changed = engine:submit(prompts[2], { max_new_tokens = 5, greedy = true, repetition_penalty = 1.4,
    frequency_penalty = 0.3, logit_bias = { [4] = 2 } })
  engine:run()
  lu.assertEquals(good.sequences[1].tokens, naive(tiny.load "llama", prompts[1], o))
  lu.assertEquals(changed.sequences[1].tokens, naive(tiny.load "llama", prompts[2], changed.opts))
  lu.assertStrContains(bad.error, "no token that goes on")
  lu.assertStrContains(worse.error, "no token that goes on")
end

-- What all share fails once: those who run fail, those who wait go on.
function TestIsolation.test_a_step_that_fails_ends_what_runs_and_nothing_else()
  local model = tiny.load "llama"
  local forward, calls = model.forward, 0
  local engine <close> = engines.new(model, { rows = 2 })
  rawset(model, "forward", function (self, ids, ...)
    if ids:size(2) == 1 and ids:size(1) == 2 then
      calls = calls + 1
      if calls == 3 then error "no memory" end
    end
    return forward(self, ids, ...)
  end)
  local o, list = { max_new_tokens = 6, greedy = true }, {}
  for i = 1, 3 do list[i] = engine:submit(prompts[2], o) end
  engine:run()
  lu.assertStrContains(list[1].error, "no memory")
  lu.assertStrContains(list[2].error, "no memory")
  lu.assertEquals(list[3].sequences[1].reason, "length")
  lu.assertNil(engine.cache)
end

-- An interrupt at any op of any step: the engine goes on, and whoever is not hit gets the tokens it would have got.
function TestIsolation.test_interrupts_leave_the_engine_usable()
  local model = tiny.load "llama"
  local caches = require "perilune.nn.cache"
  local places = { { model, "forward" }, { model, "logits" }, { caches.Cache, "select_rows" },
    { caches.Cache, "append_rows" }, { caches.Cache, "reserve" }, { peri, "keep" } }
  local o = { max_new_tokens = 8, seed = 3, stop = { 9 } }
  local want = {}
  for i, ids in ipairs(prompts) do want[i] = naive(model, ids, o, { 3, 0, 1 << 63 }) end
  for _, place in ipairs(places) do
    local owner, name = place[1], place[2]
    local fn = owner[name]
    local before = rawget(owner, name)
    for at = 1, 14 do
      local engine <close> = engines.new(model, { rows = 3 })
      local calls, list, interrupts = 0, {}, 0
      rawset(owner, name, function (...)
        calls = calls + 1
        if calls == at then error("interrupted", 0) end
        return fn(...)
      end)
      for i, ids in ipairs(prompts) do
        list[i] = engine:submit(ids, o)
        list[i].heard = 0
      end
      local more = true
      while more do
        local ok, message = pcall(engine.step, engine)
        if ok then more = message
        else
          lu.assertStrContains(message, "interrupted")
          interrupts = interrupts + 1
        end
      end
      rawset(owner, name, before)
      for i, request in ipairs(list) do
        if request.error == nil then
          lu.assertEquals(request.sequences[1].tokens, want[i], ("%s, call %d, request %d"):format(name, at, i))
        else lu.assertStrContains(request.error, "interrupted") end
      end
      lu.assertTrue(interrupts <= 1)
      lu.assertNil(engine.cache)
      if name == "forward" or name == "logits" then
        for _, request in ipairs(list) do lu.assertNil(request.error) end
      end
    end
  end
end

function TestIsolation.test_an_interrupted_callback_ends_its_request_alone()
  local model = tiny.load "llama"
  local engine <close> = engines.new(model, { rows = 3 })
  local o = { max_new_tokens = 6, greedy = true }
  local a = engine:submit(prompts[1], o)
  local b = engine:submit(prompts[2], { max_new_tokens = 6, greedy = true, on_token = function (s)
    if #s.tokens == 2 then error("interrupted", 0) end
  end })
  local c = engine:submit(prompts[4], o)
  lu.assertErrorMsgContains("interrupted", engine.run, engine)
  engine:run()
  for i, request in pairs { [1] = a, [4] = c } do
    lu.assertEquals(request.sequences[1].tokens, naive(model, prompts[i], o))
  end
  lu.assertStrContains(b.error, "interrupted")
end

function TestIsolation.test_an_error_within_generate_gives_the_memory_back()
  local model = digits()
  local batch = uneven(4)
  local function live() return peri.memory().live end
  model:generate(batch, { max_new_tokens = 2, rows = 3 }) -- what is made once is made
  collectgarbage()
  collectgarbage()
  local before = live()
  for _, o in ipairs { { on_tokens = function (i) if i == 3 then error "mine" end end },
                       { constraint = constraint.regex("7x", numbers(16)) } } do
    o.max_new_tokens, o.rows, o.seed = 9, 3, 1
    lu.assertFalse(pcall(model.generate, model, batch, o))
    if o.constraint then o.constraint.masks = {} end
    collectgarbage()
    collectgarbage()
    lu.assertEquals(live(), before)
  end
end

-- lm:stream in a coroutine that nobody resumes: the collector ends the request, its row is free for the next one.
function TestIsolation.test_a_generator_that_is_given_up_frees_its_row()
  local lm = lms.new(digits(), text.chars("0123456789,:"), { rows = 1, prefix_cache_bytes = 0 })
  local heard = 0
  local function begin()
    local next_piece = coroutine.wrap(function ()
      for piece in lm:stream("3,5", { seed = 1, temperature = 1, max_new_tokens = 1000, ignore_stop = true,
        on_text = function () heard = heard + 1 end }) do coroutine.yield(piece) end
    end)
    next_piece()
    next_piece()
  end
  begin()
  lu.assertEquals(lm.scheduler.running, 1)
  local told = heard
  collectgarbage()
  collectgarbage()
  lu.assertEquals(lm.scheduler.running, 0)
  lu.assertNil(lm.scheduler.cache)
  local o = { seed = 2, temperature = 1, max_new_tokens = 9, ignore_stop = true }
  local said = lm:complete("3,5", o).text
  lu.assertEquals(heard, told)
  begin() -- given up while others run
  local other = lm:submit("1,2", o)
  collectgarbage()
  collectgarbage()
  lm:wait(other)
  lu.assertEquals(lm:complete("3,5", o).text, said)
  lu.assertEquals(#lm.live, 0)
end

os.exit(lu.LuaUnit.run())
