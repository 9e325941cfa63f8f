-- Memory of post-training steps, counted in bytes of tensors: weights, optimizer and activations are all there is. The
-- model is small but for its vocabulary, so that one tensor of [tokens, vocabulary] would be many times that.
local lu = require "luaunit"
local peri = require "perilune"
local models, optim = require "perilune.models", require "perilune.optim"
local peft, rl, text = require "perilune.peft", require "perilune.rl", require "perilune.text"

local D <const>, F <const>, HEADS <const>, KV <const> = 32, 64, 4, 2
local PROMPTS <const>, GROUP <const>, NEW <const> = 4, 8, 24

local tok = text.chars("0123456789+=", { separator = true })

local function build(vocab, layers)
  peri.seed(3)
  return models.llama.new({ architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = vocab,
    hidden_size = D, intermediate_size = F, num_hidden_layers = layers, num_attention_heads = HEADS,
    num_key_value_heads = KV, rms_norm_eps = 1e-6, tie_word_embeddings = true, eos_token_id = tok.eos }, { std = 0.08 })
end

local function bytes_of(list)
  local n = 0
  for _, p in ipairs(list) do n = n + p:numel() * 4 end
  return n
end

-- The largest number of bytes that fn holds beyond those that are there before.
local function peak(fn)
  collectgarbage()
  collectgarbage()
  peri.reset_peak()
  local before = peri.memory().live
  do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    fn()
  end
  return peri.memory().peak - before
end

local rows = {}
for i = 1, PROMPTS do rows[i] = { prompt = ("%d+%d="):format(i * 13 % 90 + 10, i * 29 % 90 + 10) } end

local function sample(model, new)
  return rl.rollout(model, tok, rows, function (_, _, tokens) return tokens[1] % 3 + tokens[2] % 2 end,
    { group = GROUP, max_new_tokens = new or NEW, stop = {} })
end

-- The two ways to learn from a batch: whole sequences, or prompts that are read once for their group.
local ways = {
  sequences = function (model, batch, advantage, weight, how)
    for part in rl.parts(rl.with_signal(batch, advantage, weight), PROMPTS * GROUP) do
      local logp = model:token_logprobs(part.sequences, part.from)
      rl.clipped(logp, part.logprobs, part.advantage, part.weight, how):backward()
    end
  end,
  shared = function (model, batch, advantage, weight, how)
    for group in rl.groups(batch, advantage, weight) do
      local prompt = rl.shared_prompt(model, group.prompt)
      for part in group:parts(GROUP) do
        local logp = rl.completion_logprobs(model, prompt, part.completions)
        rl.clipped(logp, part.logprobs, part.advantage, part.weight, how):backward()
      end
      prompt:backward()
    end
  end,
}

local function learn(model, opt, batch, way)
  local advantage, weight = rl.advantages(batch)
  ways[way](model, batch, advantage, weight, { tokens = weight:sum():item() })
  opt:step { clip = 1 }:zero_grad()
end

-- What is trained: all of the model, or an adapter on it.
local trained = {
  whole = function (model) return model, 0 end,
  lora = function (model)
    local adapter = peft.lora(model, { r = 4, alpha = 8 })
    return adapter, 4
  end,
}

-- Bytes that a pass over so many tokens keeps for its backward pass: of each block the stream and its norm, twice;
-- q, k, v before and after their rotation; what attention gives, and its product; gate, up, their product, and the
-- product of that. An adapter keeps the product with its first matrix, and its sum, of every layer.
local function activations(tokens, layers, rank)
  local kv = KV * D // HEADS
  local sizes = 4 * D + 2 * (D + 2 * kv) + 2 * D + 3 * F + D
  local adapter = rank > 0 and 7 * rank + 2 * (D + 2 * kv) + 2 * 2 * F + 2 * 2 * D or 0
  return tokens * (layers * (sizes + adapter) + 4 * D) * 4
end

TestPostMemory = {}

function TestPostMemory.test_a_step_is_weights_optimizer_and_activations()
  local vocab, layers = 20000, 4
  for what, make in pairs(trained) do
    for way in pairs(ways) do
      local model = build(vocab, layers)
      local learner, rank = make(model)
      local opt = optim.AdamW(learner:parameters(), { lr = 1e-3 })
      local own, batch = bytes_of(learner:parameters()), nil
      local tokens = PROMPTS * GROUP * (NEW + 6)
      local sampling = peak(function () batch = sample(model) end)
      local cache = tokens * layers * 2 * (KV * D // HEADS) * 4
      local logits = PROMPTS * GROUP * vocab * 4 -- of one position, which is sampled from
      lu.assertTrue(sampling <= 2 * cache + 3 * logits, ("%s, %s: sampling holds %d bytes"):format(what, way, sampling))
      local scope <close> = peri.scope() -- luacheck: ignore 211
      batch = sample(model)
      local used = peak(function () learn(model, opt, batch, way) end)
      local once = way == "shared" and tokens / PROMPTS or tokens -- in one pass: a group, or all of them
      local bound = 3 * own + 1.1 * activations(once, layers, rank) -- gradient, two moments
      lu.assertTrue(used <= bound, ("%s, %s: learning holds %d bytes, more than %d"):format(what, way, used, bound))
      lu.assertTrue(used * 3 < tokens * vocab * 4, "as much as a third of the logits")
    end
  end
end

-- Gradients of a batch's loss, by name.
local function gradients(learner, model, batch, way)
  local advantage, weight = rl.advantages(batch)
  ways[way](model, batch, advantage, weight, { tokens = weight:sum():item() })
  local out = {}
  for i, p in ipairs(learner:parameters()) do out[i], p.grad = p.grad and p.grad:clone(), nil end
  return out
end

-- Each block is computed again in the backward pass: the bytes that grow with tokens are those of one block and of the
-- stream, and no gradient changes by a bit.
function TestPostMemory.test_checkpointing_halves_what_learning_holds_and_changes_no_bit()
  for what, make in pairs(trained) do
    for way in pairs(ways) do
      local model = build(500, 16)
      local learner = make(model)
      for _, p in ipairs(learner:parameters()) do -- an adapter starts at 0
        p:detach():add_(peri.randn(p.shape):mul(0.05))
      end
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local batch, found, used = sample(model), {}, {}
      for i, on in ipairs { false, true } do
        model:checkpointing(on)
        used[i] = peak(function () found[i] = peri.keep(gradients(learner, model, batch, way)) end)
      end
      local own = 2 * bytes_of(learner:parameters()) -- gradients, and their copies
      lu.assertTrue(used[2] - own <= 0.5 * (used[1] - own), ("%s, %s: %d, %d"):format(what, way, used[1], used[2]))
      local n = 0
      for k, grad in ipairs(found[1]) do
        n = n + (grad:abs():max():item() > 0 and 1 or 0)
        lu.assertTrue(found[2][k]:eq(grad):all():item(), k)
      end
      lu.assertTrue(n > 8)
    end
  end
end

-- What twice as many tokens cost does not depend on the vocabulary.
function TestPostMemory.test_no_memory_per_token_grows_with_the_vocabulary()
  for way in pairs(ways) do
    local growth = {}
    for i, vocab in ipairs { 10000, 40000 } do
      local model, used = build(vocab, 2), {}
      local adapter = trained.lora(model)
      for k, new in ipairs { NEW, 2 * NEW } do
        local scope <close> = peri.scope() -- luacheck: ignore 211
        local batch = sample(model, new)
        used[k] = peak(function () gradients(adapter, model, batch, way) end)
      end
      growth[i] = used[2] - used[1]
    end
    local logits = (way == "shared" and 1 or PROMPTS) * GROUP * NEW * 30000 * 4 -- more of them, were they held
    lu.assertTrue(math.abs(growth[2] - growth[1]) < logits / 20, ("%s: %d, %d"):format(way, growth[1], growth[2]))
  end
end

-- Steps of longer and shorter answers leave no tensor behind, and what the pool keeps for reuse is no more than was in
-- use at once.
function TestPostMemory.test_steps_of_all_lengths_leave_nothing_behind()
  for way in pairs(ways) do
    local model = build(2000, 4)
    local adapter = trained.lora(model)
    local opt = optim.AdamW(adapter:parameters(), { lr = 1e-3 })
    local live, reserved = {}, {}
    peri.trim()
    peri.reset_peak()
    for i, new in ipairs { 48, 5, 33, 12, 48, 7, 41, 24, 48, 48 } do
      do
        local scope <close> = peri.scope() -- luacheck: ignore 211
        learn(model, opt, sample(model, new), way)
      end
      collectgarbage()
      collectgarbage()
      live[i], reserved[i] = peri.memory().live, peri.memory().reserved
    end
    for i = 3, #live do lu.assertEquals(live[i], live[2], way) end
    local most, last = 2 * peri.memory().peak + 64 * 2 ^ 20, reserved[#reserved]
    lu.assertTrue(last <= most, ("%s: %d of %d bytes"):format(way, last, most))
  end
end

-- The reference of an adapter is the model with it off: what it says of a batch needs no second model.
function TestPostMemory.test_a_reference_without_the_adapter_is_no_second_model()
  local model = build(20000, 2)
  local adapter = trained.lora(model)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local batch = sample(model)
  local function logps()
    local _ <close> = peri.no_grad()
    return (model:token_logprobs(batch.sequences, batch.from))
  end
  local plain = peak(logps)
  local without = peak(function () adapter:disabled(logps) end)
  lu.assertTrue(without <= plain, ("%d and %d bytes"):format(without, plain))
end

os.exit(lu.LuaUnit.run())
