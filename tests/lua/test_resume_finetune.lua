-- The recipes that fine-tune a published model, killed at random moments and resumed: on a model of two
-- small layers with random weights, a vocabulary and a chat template made here.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local killed = require "killed"
local scratch = require "scratch"

local TEMPLATE = "{% for m in messages %}<|{{ m.role }}|>{% generation %}{{ m.content }}<|end|>{% endgeneration %}\n"
  .. "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"

local function sums(n)
  local list = {}
  for i = 1, n do
    local a, b = i * 7 % 10, i * 3 % 10
    list[i] = peri.json.encode { question = ("%d plus %d?"):format(a, b),
      answer = ("%d+%d=<<%d+%d=%d>>%d\n#### %d"):format(a, b, a, b, a + b, a + b, a + b) }
  end
  return table.concat(list, "\n") .. "\n"
end

-- A model folder and a file of rows. Weights are seeded, the same each time.
local function with_model(fn)
  local folder = scratch.path()
  local rows = sums(40)
  local tok = peri.tokenizer.train_bpe({ rows }, { vocab_size = 300,
    special_tokens = { "<|end|>", "<|user|>", "<|assistant|>" } })
  tok.chat_template = TEMPLATE
  peri.seed(5)
  local model = models.llama.new({ architectures = { "LlamaForCausalLM" }, model_type = "llama",
    vocab_size = tok.size, hidden_size = 32, intermediate_size = 64, num_hidden_layers = 2,
    num_attention_heads = 4, num_key_value_heads = 2, rms_norm_eps = 1e-6, eos_token_id = tok.eos }, { std = 0.1 })
  assert(model:save(folder))
  assert(tok:save(folder))
  assert(peri.files.write(folder .. "/rows.jsonl", rows))
  local ok, message = pcall(fn, ("--model %s --data %s/rows.jsonl --seed 3"):format(folder, folder))
  peri.files.remove_tree(folder)
  if not ok then error(message, 0) end
end

local FILES = { "adapter/adapter_model.safetensors", "adapter/adapter_config.json", "metrics.jsonl" }

TestResumeFinetune = {}

function TestResumeFinetune.test_lora_sft()
  with_model(function (flags)
    killed.assert_same("recipes/lora_sft.lua", flags .. " --steps 12 --length 128 --batch 1 --accumulate 2 --rank 4"
      .. " --held_out 4 --eval_every 5 --save_every 2", FILES, 4)
  end)
end

function TestResumeFinetune.test_grpo_gsm8k()
  with_model(function (flags)
    killed.assert_same("recipes/grpo_gsm8k.lua", flags .. " --updates 10 --prompts 2 --group 4 --micro 2 --tokens 12"
      .. " --rank 4 --held_out 4 --eval_every 4 --save_every 2 --format 0.3 --shots 1",
      { FILES[1], FILES[2], FILES[3], "samples.jsonl" }, 4)
  end)
end

function TestResumeFinetune.test_grpo_sums()
  with_model(function (flags)
    killed.assert_same("recipes/grpo_sums.lua", flags:gsub("%-%-data %S+ ", "") .. " --updates 10 --prompts 2 --group 4"
      .. " --micro 2 --tokens 6 --rank 4 --largest 5 --held_out 4 --eval_every 4 --save_every 2",
      { FILES[1], FILES[2], FILES[3], "samples.jsonl" }, 4)
  end)
end

os.exit(lu.LuaUnit.run())
