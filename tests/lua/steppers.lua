-- steppers.lua - one small job for each stepper of peri.algo, for the laws that hold of all of them: the probe, micro-batches,
-- resuming. A new stepper gets a line here; a name may have a dash and a variant behind it.
local peri = require "perilune"
local optim = require "perilune.optim"
local text = require "perilune.text"

local M = {}

local tok = text.chars("0123456789,:", { separator = true })

--- A tiny model with random weights.
--- @param name string?  of a stepper: those of rewards have a scorer
function M.model(seed, name)
  if seed then peri.seed(seed) end
  local model = require("perilune.models.llama").new({ model_type = "llama", vocab_size = tok.size, hidden_size = 32,
    intermediate_size = 48, num_hidden_layers = 2, num_attention_heads = 2, max_position_embeddings = 64,
    rms_norm_eps = 1e-6 }, { std = 0.1 })
  return name and (name:find "^reward_model" or name:find "^prm") and peri.models.scorer(model, { std = 0.5 }) or model
end

local function sevens(_, completion) return select(2, completion:gsub("7", "")) / 4 end

local prompts, examples = {}, {}
for i = 0, 9 do prompts[i + 1] = { prompt = ("%d:%d"):format(i, 9 - i):sub(1, 1 + i % 3) } end
for i = 1, 9 do
  local e = { ids = {}, mask = {} }
  for k = 1, 4 + i * 5 % 7 do e.ids[k], e.mask[k] = (i * 7 + k * 3) % 12, k > 2 and 1 or 0 end
  examples[i] = e
end

-- Answers that are better or worse, right or wrong, of steps that are.
local pairs_of, labels, steps = {}, {}, {}
for i = 1, 9 do
  local prompt, a, b = ("%d:"):format(i):rep(1 + i % 2), ("7"):rep(1 + i % 4), ("%d"):format(i % 5):rep(1 + i % 3)
  pairs_of[i] = { prompt = prompt, chosen = a, rejected = b }
  labels[i] = { prompt = prompt, completion = i % 3 == 0 and a or b, label = i % 3 == 0 }
  steps[i] = { prompt = prompt, completions = { a, b }, labels = { true, i % 2 == 0 } }
end

--- Rows or examples of two teachers, a and b.
function M.shared_out(list)
  local out = {}
  for i, row in ipairs(list) do
    out[i] = { domain = i % 3 == 1 and "a" or "b" }
    for k, v in pairs(row) do out[i][k] = v end
  end
  return out
end

M.tokenizer, M.prompts, M.examples, M.reward = tok, prompts, examples, sevens

-- Conversations: a turn that ends in a comma is answered with what it says of sevens.
local talk = { stop = { tok.eos, tok:encode ","[1] } }
function talk:reply(t)
  if t.ids[#t.ids] ~= self.stop[2] then return nil end
  t.calls, t.failed = (t.calls or 0) + 1, t.failed or 0
  return ("%d:"):format(select(2, t.text:gsub("7", "")) % 10)
end
M.environment = talk

local function sampled(more)
  return function ()
    local o = { tokenizer = tok, rows = prompts, reward = sevens, prompts = 4, group = 4, max_new_tokens = 5 }
    for k, v in pairs(more or {}) do o[k] = v end
    return o
  end
end

--- Options of each beside model and optimizer.
M.all = {
  grpo = sampled(),
  ["grpo-curriculum"] = function ()
    local o = sampled()()
    o.rows = require("perilune.rl").curriculum(prompts)
    return o
  end,
  ["grpo-everything"] = sampled { preset = "dapo", dynamic = true, mini_batches = 2, iterations = 2, beta = 0.05,
    reference = "copy", top_p = 0.9, entropy_target = 5, entropy_coef = 0.01, importance = {}, temperature = 1.2,
    reward = { { "sevens", sevens }, { "length", function (_, answer) return #answer end, 0.1 } } },
  ["grpo-talk"] = sampled { environment = talk, max_turns = 3, max_new_tokens = 10, min_new_tokens = 1 },
  ["grpo-talk_everything"] = sampled { environment = talk, max_turns = 3, max_turn_tokens = 4, max_new_tokens = 12,
    dynamic = true, mini_batches = 2, iterations = 2, beta = 0.05, reference = "copy", top_p = 0.9, importance = {},
    estimator = "opo", mask_truncated = true, repetition_penalty = 1.2, frequency_penalty = 0.3 },
  ["ppo-talk"] = sampled { critic = "own", kl_coef = 0.1, reference = "copy", epochs = 2, environment = talk,
    max_turns = 3, max_new_tokens = 10, missing_eos = 0.5 },
  ppo = sampled { critic = "own", kl_coef = 0.1, kl_target = 0.5, reference = "copy", mini_batches = 3, epochs = 2,
    missing_eos = 0.5, critic_warmup = 1 },
  ["ppo-head"] = sampled { critic = "head", kl_coef = 0, value_clip = math.huge, whiten_rewards = true, top_k = 6,
    entropy_coef = 0.01, epochs = 1 },
  sft = function () return { examples = examples, batch_size = 8 } end,
  dpo = function () return { tokenizer = tok, rows = pairs_of, batch_size = 8, label_smoothing = 0.1 } end,
  ["dpo-orpo"] = function () return { tokenizer = tok, rows = pairs_of, batch_size = 8, loss = "orpo" } end,
  ["dpo-kto"] = function () return { tokenizer = tok, rows = labels, batch_size = 8, loss = "kto" } end,
  reward_model = function () return { tokenizer = tok, rows = pairs_of, batch_size = 8, center = 0.1 } end,
  ["reward_model-outcome"] = function () return { tokenizer = tok, rows = labels, batch_size = 8 } end,
  distill = function () return { teacher = M.model(5), examples = examples, batch_size = 8, temperature = 2, hard = 0.3 } end,
  ["distill-own"] = function ()
    return { teacher = M.model(5), tokenizer = tok, rows = prompts, batch_size = 8, on_policy = 1, divergence = "reverse",
      max_new_tokens = 5 }
  end,
  ["distill-mixed"] = function ()
    return { teacher = M.model(5), tokenizer = tok, rows = prompts, batch_size = 8, on_policy = 0.5, sequence = true,
      divergence = "jsd", max_new_tokens = 5 }
  end,
  ["distill-sampled"] = function ()
    return { teacher = M.model(5), tokenizer = tok, rows = prompts, batch_size = 8, on_policy = 1, signal = "sampled",
      max_new_tokens = 5 }
  end,
  ["distill-teachers"] = function ()
    return { teachers = { a = M.model(5), b = M.model(6) }, examples = M.shared_out(examples), batch_size = 8,
      divergence = "reverse" }
  end,
  ["distill-teachers-own"] = function ()
    return { teachers = { a = M.model(5), b = M.model(6) }, tokenizer = tok, rows = M.shared_out(prompts), batch_size = 8,
      on_policy = 0.5, sequence = true, max_new_tokens = 5 }
  end,
  ["distill-teachers-sampled"] = function ()
    return { teachers = { a = M.model(5), b = M.model(6) }, tokenizer = tok, rows = M.shared_out(prompts), batch_size = 8,
      on_policy = 1, signal = "sampled", max_new_tokens = 5 }
  end,
  reject = sampled { keep = 2 },
  ["reject-random"] = sampled { keep = 3, by = "random_flat" },
  prm = function () return { tokenizer = tok, rows = steps, batch_size = 8, separator = "," } end,
  ["sft-packed"] = function () return { examples = examples, batch_size = 3, packing = true, max_length = 16 } end,
}

--- Options of algo.grpo for each of its presets.
--- @param preset string
function M.preset(preset)
  return sampled { preset = preset, reference = "copy",
    reward = { { "sevens", sevens }, { "length", function (_, answer) return #answer end, 0.1 } } }()
end

-- Those of samplers, which are not in M.all: they have tests of their own, in tests/lua/test_samplers.lua.
local sampling = { tokenizer = tok, rows = prompts, prompts = 4, group = 4, max_new_tokens = 5 }
local asynchronous = { grpo = sampling, ppo = { critic = "own", kl_coef = 0, epochs = 1 } }
for k, v in pairs(sampling) do asynchronous.ppo[k] = v end

--- Those that learn from environments or batches of one's own, or train no causal model: their laws are in tests of
--- their own.
M.elsewhere = { agent = "tests/lua/test_agent.lua", multi_task = "tests/lua/test_multi_task.lua",
  joint = "tests/lua/test_joint.lua", transfer = "tests/lua/test_transfer.lua" }

--- The names in order.
M.names = {}
for name in pairs(M.all) do M.names[#M.names + 1] = name end
table.sort(M.names)

--- A stepper by name, over a model and an optimizer or its own.
--- @param name string
--- @param more table?  more options
--- @return table stepper
--- @return table model
--- @return table others  name -> what else is to be tracked
function M.make(name, more)
  local model = more and more.model or M.model(3, name)
  local opts = { model = model }
  local preset = name:match "^preset%-(.+)"
  local with_samplers = asynchronous[name:match "^(.*)%-samplers$"]
  for _, set in ipairs { preset and M.preset(preset) or with_samplers or M.all[name](), more or {} } do
    for k, v in pairs(set) do opts[k] = v end
  end
  if opts.reference == "copy" then opts.reference = model:copy() end
  local others = {}
  if opts.critic == "own" then
    opts.critic = peri.models.scorer(model, { std = 0.1 })
    opts.critic_optimizer = optim.AdamW(opts.critic, { lr = 1e-2 })
    others = { critic = opts.critic, critic_optimizer = opts.critic_optimizer }
  elseif opts.critic == "head" then
    opts.critic = peri.nn.Linear(32, 1)
    opts.optimizer = optim.AdamW({ model, opts.critic }, { lr = 1e-2 })
    others = { critic = opts.critic }
  end
  opts.optimizer = opts.optimizer or optim.AdamW(model:parameters(), { lr = 1e-2 })
  return require("perilune.algo." .. (preset and "grpo" or name:match "^[^-]+")).new(opts), model, others
end

return M
