-- Log-probabilities of the distribution that was drawn from: of rollouts and of training passes, equal to the bit under
-- every truncation, penalty, bias and constraint; right against the definition; with the right gradient.
local lu = require "luaunit"
local peri = require "perilune"
local models, peft, rl = require "perilune.models", require "perilune.peft", require "perilune.rl"

local TINY = "tests/data/hf_tiny/"

local settings = {
  { top_k = 3 }, { top_p = 0.7 }, { min_p = 0.2 }, { top_k = 20, top_p = 0.8, min_p = 0.05 },
  { repetition_penalty = 1.3 }, { frequency_penalty = 0.5, presence_penalty = 0.3 }, { logit_bias = { [5] = 2, [7] = -3 } },
  { min_new_tokens = 3, stop = { 3, 9, 11 } }, { top_p = 0.6, repetition_penalty = 1.2, temperature = 0.7 },
  { top_k = 5, frequency_penalty = 1, logit_bias = { [2] = 1 }, min_new_tokens = 2, stop = { 3, 9 }, temperature = 1.4 },
}

local function prompts()
  local ids = assert(peri.safetensors.load(TINY .. "llama/io.safetensors")).input_ids:narrow(2, 1, 5):narrow(1, 1, 2)
  local mask = peri.ones({ 2, 5 }, "bool")
  mask:set(2, 1, false)
  return ids, mask
end

local function generate(model, more)
  local ids, mask = prompts()
  local how = { mask = mask, samples = 3, max_new_tokens = 7, stop = { 3 }, sampling = "renormalised" }
  for k, v in pairs(more) do how[k] = v end
  peri.seed(2)
  return model:generate(ids, how), ids:size(2) + 1
end

TestSupport = {}

function TestSupport.test_training_recomputes_what_was_drawn_from_to_the_bit()
  for _, name in ipairs { "llama", "gemma2", "gpt2", "deepseek_v3" } do
    local model = assert(models.load(TINY .. name))
    if name == "llama" then peft.lora(model, { r = 2 }) end
    for n, how in ipairs(settings) do
      local out, from = generate(model, how)
      lu.assertNotNil(out.support, n)
      local logp, entropy = model:token_logprobs(out.batch, from, { temperature = how.temperature, support = out.support })
      lu.assertEquals(logp:detach():mul(out.mask):bytes(), out.logprobs:mul(out.mask):bytes(), name .. " " .. n)
      lu.assertTrue(entropy:isfinite():all():item())
      local plain = model:token_logprobs(out.batch, from, { temperature = how.temperature })
      lu.assertTrue(plain:sub(logp):mul(out.mask):abs():max():item() > 1e-3, name .. " " .. n)
    end
  end
end

-- By the definition, from whole logits: log softmax over what is kept, for truncations that act alone.
function TestSupport.test_it_is_the_softmax_over_what_was_kept()
  local model = assert(models.load(TINY .. "llama"))
  for _, how in ipairs { { top_k = 4 }, { top_p = 0.5 }, { min_p = 0.3 } } do
    local out, from = generate(model, how)
    local logits = model:logits(model:forward(out.batch)):tolist()
    local tokens, got = out.tokens:tolist(), out.logprobs:tolist()
    for r = 1, #tokens do
      for t = 1, #tokens[r] do
        if not out.mask:at(r, t) then break end
        local x, order = logits[r][from + t - 2], {}
        local most = math.max(table.unpack(x))
        for i, v in ipairs(x) do order[i] = { math.exp(v - most), i - 1 } end
        table.sort(order, function (a, b) return a[1] > b[1] end)
        local total, before, mass, own = 0, 0, 0, nil
        for _, e in ipairs(order) do total = total + e[1] end
        for i, e in ipairs(order) do
          local keep = how.top_k and i <= how.top_k or how.top_p and before < how.top_p * total
            or how.min_p and e[1] >= how.min_p
          before = before + e[1]
          if keep then
            mass = mass + e[1]
            if e[2] == tokens[r][t] then own = e[1] end
          end
        end
        lu.assertAlmostEquals(got[r][t], math.log(own / mass), 1e-5)
      end
    end
  end
end

function TestSupport.test_constraints_are_part_of_it()
  local model = assert(models.load(TINY .. "llama"))
  local constraint = { start = function () return 1 end, advance = function (_, state) return state + 1 end,
    complete = function (_, state) return state > 4 end,
    forbidden = function (_, state, classes)
      local mask = peri.ones({ classes }, "bool")
      for k = 0, 2 do mask:set(4 + state + k, false) end
      return mask
    end }
  local out, from = generate(model, { constraint = constraint })
  local logp = model:token_logprobs(out.batch, from, { support = out.support })
  lu.assertEquals(logp:detach():mul(out.mask):bytes(), out.logprobs:mul(out.mask):bytes())
end

-- Central differences of the loss of a whole rollout in f64, with the support held fixed.
function TestSupport.test_the_gradient_is_that_of_the_renormalised_distribution()
  local model = assert(models.load(TINY .. "llama")):to "f64"
  for _, how in ipairs { { top_k = 6 }, { top_p = 0.7, repetition_penalty = 1.3, temperature = 0.8 } } do
    local out, from = generate(model, how)
    local weight = peri.rand(out.tokens.shape):to("f64"):mul(out.mask)
    local function loss()
      local logp, entropy = model:token_logprobs(out.batch, from, { temperature = how.temperature, support = out.support })
      return logp:mul(weight):sum():add(entropy:mul(weight):sum():mul(0.3))
    end
    for _, p in ipairs(model:parameters()) do p.grad = nil end
    loss():backward()
    for _, p in ipairs { model.norm.weight, model.layers[1].ff.down.weight, model.head:matrix() } do
      for k = 0, 3 do
        local i, h = k * 17 % p:numel(), 1e-6
        local flat, grad = p:detach():reshape { -1 }, p.grad:reshape { -1 }
        local was = flat:at(i + 1)
        flat:set(i + 1, was + h)
        local up = loss():item()
        flat:set(i + 1, was - h)
        local down = loss():item()
        flat:set(i + 1, was)
        lu.assertAlmostEquals((up - down) / (2 * h), grad:at(i + 1), 1e-6)
      end
    end
  end
end

-- The support of a batch goes along with its rows: selected, cut into slices, by length, with the prompt read once.
function TestSupport.test_it_goes_along_with_the_rows()
  local model = assert(models.load(TINY .. "llama"))
  local ids, mask = prompts()
  local fake = { eos = 3, pad = 0, decode = function () return "" end, batch = function () return ids, mask end }
  peri.seed(4)
  local batch = rl.rollout(model, fake, { { prompt = "a" }, { prompt = "b" } },
    function (_, _, tokens) return #tokens + tokens[1] % 5 end, { group = 4, max_new_tokens = 6, top_p = 0.8,
      repetition_penalty = 1.1, sampling = "renormalised" })
  local advantage, weight = rl.advantages(batch)
  local rows = rl.with_signal(batch, advantage, weight)
  for _, by_length in ipairs { false, true } do
    for part in rl.parts(rows, 3, { by_length = by_length }) do
      local logp = model:token_logprobs(part.sequences, part.from, { support = part.support })
      lu.assertEquals(logp:sub(part.logprobs):mul(part.weight):abs():max():item(), 0)
    end
  end
  local some = rl.join { rl.pick(batch, { 2 }), rl.pick(batch, { 1, 2 }) }
  local joined = model:token_logprobs(some.sequences, some.from, { support = some.support })
  lu.assertEquals(joined:sub(some.logprobs):mul(some.mask):abs():max():item(), 0)
  for group in rl.groups(batch, advantage, weight) do
    local prompt = rl.shared_prompt(model, group.prompt)
    for part in group:parts(2) do
      local logp = rl.completion_logprobs(model, prompt, part.completions, { support = part.support })
      lu.assertEquals(logp:sub(part.logprobs):mul(part.weight):abs():max():item(), 0)
    end
  end
end

function TestSupport.test_what_has_no_distribution_is_refused_by_name()
  local model = assert(models.load(TINY .. "llama"))
  for _, how in ipairs { { greedy = true }, { temperature = 0 } } do
    lu.assertErrorMsgContains("sampling is renormalised", generate, model, how)
  end
  lu.assertErrorMsgContains("so sampling has no place", generate, model, { num_beams = 2, samples = 1 })
  lu.assertErrorMsgContains('sampling is "half"', generate, model, { sampling = "half" })
  lu.assertNil((generate(model, { temperature = 0.5 })).support) -- nothing was cut: the same as full
end

-- The same tokens are drawn, and only what is told of them differs.
function TestSupport.test_the_draws_are_the_same()
  local model = assert(models.load(TINY .. "llama"))
  for n, how in ipairs(settings) do
    local one = generate(model, how)
    local other = {}
    for k, v in pairs(how) do other[k] = v end
    other.sampling = "full"
    lu.assertEquals(generate(model, other).tokens:tolist(), one.tokens:tolist(), n)
  end
end

os.exit(lu.LuaUnit.run())
