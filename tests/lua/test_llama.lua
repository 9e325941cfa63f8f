-- Models of Llama's layout against what transformers stored: logits, every parameter gradient,
-- greedy continuations; and what this implementation promises about its own sampling.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local tiny = require "tiny"

local folder, load, relative = tiny.folder, tiny.load, tiny.relative
local names = { "llama", "llama31_rope", "qwen2", "qwen3", "mistral" }

TestLlama = {}

for _, name in ipairs(names) do
  TestLlama["test_logits_of_" .. name] = function ()
    local model, io = load(name)
    local logits = peri.no_grad(function () return model:logits(model:forward(io.input_ids)) end)
    -- 1e-5: both sides are f32 sums of at most 48 terms in another order
    lu.assertTrue(relative(logits, io.logits) < 1e-5, ("%s: %g"):format(name, relative(logits, io.logits)))
  end

  TestLlama["test_gradients_of_" .. name] = function ()
    local model, io = load(name)
    local ids = io.input_ids
    local time = ids:size(2)
    local logits = model:logits(model:forward(ids))
    local loss = logits:narrow(2, 1, time - 1):cross_entropy(ids:narrow(2, 2, time - 1))
    lu.assertAlmostEquals(loss:item(), io.loss:item(), 1e-5)
    loss:backward()
    local want = assert(peri.safetensors.load(folder .. name .. "/grads.safetensors"))
    local got, n = model:gradients(), 0
    for stored, g in pairs(want) do
      local key = stored:gsub("^grad%.", "")
      lu.assertNotNil(got[key], key)
      lu.assertTrue(relative(got[key], g) < 1e-4, ("%s %s: %g"):format(name, key, relative(got[key], g)))
      n = n + 1
    end
    lu.assertTrue(n > 20)
  end

  TestLlama["test_greedy_continuation_of_" .. name] = function ()
    local model, io = load(name)
    local want = io.greedy_from_first5
    local prompt = io.input_ids:narrow(1, 1, 1):narrow(2, 1, 5)
    local n = want:size(2) - 5
    local out = model:generate(prompt, { max_new_tokens = n, greedy = true })
    lu.assertEquals(peri.cat({ prompt, out.tokens }, 2):tolist(), want:tolist())
  end

  TestLlama["test_saved_" .. name .. "_reads_back_bit_equal"] = function ()
    tiny.reload((load(name)))
  end
end

function TestLlama.test_left_padding_changes_no_bit()
  local model, io = load "llama"
  local short, long = io.input_ids:narrow(1, 1, 1):narrow(2, 1, 5), io.input_ids:narrow(1, 2, 1):narrow(2, 1, 9)
  local padded = peri.cat({ peri.zeros({ 1, 4 }, "i64"), short }, 2)
  local ids = peri.cat({ padded, long }, 1)
  local mask = peri.cat({ peri.arange(9):ge(4):unsqueeze(1), peri.ones({ 1, 9 }, "bool") }, 1)
  local both = model:generate(ids, { max_new_tokens = 6, greedy = true, prompt_mask = mask })
  local alone = model:generate(short, { max_new_tokens = 6, greedy = true })
  lu.assertEquals(both.tokens:narrow(1, 1, 1):tolist(), alone.tokens:tolist())
  lu.assertEquals(both.logprobs:narrow(1, 1, 1):bytes(), alone.logprobs:bytes())
end

function TestLlama.test_sampled_logprobs_are_the_training_logprobs_bit_for_bit()
  local model = assert(models.load "tests/data/tiny_llama_digits")
  peri.seed(5)
  local prompt = peri.randint(4, 16, { 6, 8 })
  local out = model:generate(prompt, { samples = 5, max_new_tokens = 9, temperature = 0.7, stop = {} })
  local ids = peri.cat({ prompt:repeat_interleave(5, 1), out.tokens }, 2)
  local logp = model:token_logprobs(ids, 9, { temperature = 0.7 })
  lu.assertEquals(logp:bytes(), out.logprobs:bytes())
  lu.assertEquals(logp:sub(out.logprobs):exp():max():item(), 1)
  local one = model:token_logprobs(ids:narrow(1, 17, 1), 9, { temperature = 0.7 }) -- alone in its batch
  lu.assertEquals(one:bytes(), out.logprobs:narrow(1, 17, 1):bytes())
end

function TestLlama.test_generation_stops_at_the_models_own_end_unless_told_otherwise()
  local model = assert(models.load "tests/data/tiny_llama_digits")
  local eos = model.generation_config.eos_token_id
  peri.seed(5)
  local prompt = peri.randint(4, 16, { 16, 8 })
  local how = { max_new_tokens = 12, greedy = true }
  local own = model:generate(prompt, how)
  how.stop = eos
  local told = model:generate(prompt, how)
  lu.assertEquals(own.tokens:tolist(), told.tokens:tolist())
  lu.assertFalse(own.mask:all():item())
  how.stop = {}
  lu.assertTrue(model:generate(prompt, how).mask:all():item())
  model.generation_config = { eos_token_id = { 5, eos } }
  how.stop = nil
  local many = model:generate(prompt, how)
  how.stop = { 5, eos }
  lu.assertEquals(many.tokens:tolist(), model:generate(prompt, how).tokens:tolist())
  lu.assertErrorMsgContains("stop has x as its entry 1", model.generate, model, prompt, { stop = { "x" } })
end

function TestLlama.test_generation_stops_each_sequence_at_its_stop_token()
  local model = assert(models.load "tests/data/tiny_llama_digits")
  peri.seed(2)
  local out = model:generate(peri.randint(4, 16, { 8, 4 }), { samples = 4, max_new_tokens = 30, stop = { 1 }, pad = 2 })
  local tokens, mask, logp = out.tokens:tolist(), out.mask:tolist(), out.logprobs:tolist()
  local ended = 0
  for i, row in ipairs(tokens) do
    local over = false
    for t, id in ipairs(row) do
      lu.assertEquals(mask[i][t], not over)
      if over then
        lu.assertEquals(id, 2)
        lu.assertEquals(logp[i][t], 0)
      end
      if id == 1 and not over then over, ended = true, ended + 1 end
    end
  end
  lu.assertTrue(ended > 10)
end

function TestLlama.test_a_wrong_weight_is_named()
  local model = load "llama"
  local state = model:state_dict()
  state["model.norm.weight"], state.extra = peri.ones { 3 }, peri.ones { 1 }
  state["lm_head.weight"] = nil
  lu.assertErrorMsgContains("wrong shape: model.norm.weight has (3), expected (32)", model.load_state_dict, model, state)
  lu.assertErrorMsgContains("missing lm_head.weight", model.load_state_dict, model, state)
  lu.assertErrorMsgContains("unexpected extra", model.load_state_dict, model, state)
end

function TestLlama.test_a_missing_folder_is_no_error()
  local model, message = models.load "/no/such/folder"
  lu.assertNil(model)
  lu.assertStrContains(message, "/no/such/folder")
end

local vectors = assert(peri.json.decode(assert(peri.files.read "tests/data/rope.json")))

function TestLlama.test_rope_frequencies_equal_the_reference()
  local rope = require "perilune.nn.rope"
  local y = vectors.v3_yarn
  local got, scale = rope.frequencies(y.dim, { rope_parameters = { rope_type = "yarn", rope_theta = y.base, factor = y.factor,
    original_max_position_embeddings = y.orig, beta_fast = y.beta_fast, beta_slow = y.beta_slow } })
  for i, want in ipairs(y.inv_freq) do lu.assertAlmostEquals(got[i], want, 1e-12 + 1e-9 * want) end
  lu.assertAlmostEquals(scale, y.mscale, 1e-12)
  local l = vectors.llama31
  got = rope.frequencies(l.head_dim, { rope_parameters = { rope_type = "llama3", rope_theta = 500000, factor = 8,
    low_freq_factor = 1, high_freq_factor = 4, original_max_position_embeddings = 8192 } })
  for i, want in ipairs(l.inv_freq) do lu.assertAlmostEquals(got[i], want, 1e-12 + 1e-6 * want) end -- stored from f32
end

os.exit(lu.LuaUnit.run())
