-- Folders of PEFT: what its adapters may say is done as PEFT does it (tests/data/peft_cases: its outputs), or
-- refused by name; nothing that changes the result is passed over.
local lu = require "luaunit"
local peri = require "perilune"
local config = require "perilune.peft.config"
local models = require "perilune.models"
local pattern = require "perilune.peft.pattern"
local peft = require "perilune.peft"
local scratch = require "scratch"

local CASES <const> = "tests/data/peft_cases/"

local function read(path) return assert(peri.json.decode(assert(peri.files.read(path)))) end

local tests = {}
local dir
scratch.each(tests, function (path) dir = path end)

local function load(name) return assert(models.load("tests/data/hf_tiny/" .. name)) end

local function output(model, name)
  local _ <close> = peri.no_grad()
  local ids = assert(peri.safetensors.load("tests/data/hf_tiny/" .. name .. "/io.safetensors")).input_ids
  local hidden = model:forward(ids)
  return model.kind == "encoder" and hidden or model:logits(hidden), ids
end

for case, name in pairs(read(CASES .. "manifest.json")) do
  tests["test_gives_what_peft_gives_" .. case] = function ()
    local model = load(name)
    local before = output(model, name)
    local adapter = assert(peft.load(model, CASES .. case))
    local want = assert(peri.safetensors.load(CASES .. case .. "/io.safetensors")).out
    local got, ids = output(model, name)
    local most = want:abs():max():item()
    lu.assertTrue(got:sub(want):abs():max():item() < 1e-5 * math.max(most, 1))
    if model.kind == "causal" then -- training reads the same model
      local logp = peri.no_grad(function () return (model:token_logprobs(ids, 2)) end)
      local time = ids:size(2)
      local scores = got:narrow(2, 1, time - 1):log_softmax(-1)
      local own = scores:gather(ids:narrow(2, 2, time - 1):unsqueeze(3), 3):squeeze(3)
      lu.assertTrue(logp:sub(own):abs():max():item() < 1e-5)
      local taken = model:generate(ids:narrow(2, 1, 4), { max_new_tokens = 1, greedy = true, stop = {} }).tokens
      lu.assertEquals(taken:tolist(), got:narrow(2, 4, 1):argmax(-1):tolist())
    end
    assert(adapter:save(dir))
    adapter:remove()
    lu.assertEquals(output(model, name):bytes(), before:bytes())
    local again = assert(peft.load(model, dir))
    lu.assertEquals(output(model, name):bytes(), got:bytes())
    again:remove()
  end
end

function tests.test_layers_are_chosen_by_pefts_rules()
  local data = read "tests/data/peft_choose.json"
  for _, case in ipairs(data.cases) do
    local wants, chosen = config.chooser(case.c), {}
    for _, name in ipairs(data.names) do if wants(name, "linear") then chosen[#chosen + 1] = name end end
    lu.assertEquals(chosen, { table.unpack(case.chosen) }, peri.json.encode(case.c))
  end
end

function tests.test_patterns_match_what_pythons_do()
  local data = read "tests/data/peft_patterns.json"
  for _, case in ipairs(data.cases) do
    local p, full, ends = pattern.compile(case.p), {}, {}
    for _, name in ipairs(data.names) do
      if p:fullmatch(name) then full[#full + 1] = name end
      if p:ends(name) then ends[#ends + 1] = name end
    end
    lu.assertEquals({ full, ends }, { { table.unpack(case.full) }, { table.unpack(case.ends) } }, case.p)
  end
  for _, text in ipairs(data.wrong) do lu.assertErrorMsgContains("regular expression", pattern.compile, text) end
  for text, takes in pairs { [".*(|a){1}"] = "q", ["(|a)+q"] = "aaq", ["q(?#c)*"] = "qqq", ["(?#c)q{,2}"] = "qq", ["[\\d-]+"] = "1-2" } do
    lu.assertTrue(pattern.compile(text):fullmatch(takes), text)
  end
  for text, why in pairs { ["q{1}{2}"] = "a repetition of a repetition", ["q+?*"] = "a repetition of a repetition",
      ["{2}"] = "nothing to repeat", ["\\Z*"] = "nothing to repeat", ["[\\d-z]"] = "a range from a class", ["q*+"] = "possessive" } do
    lu.assertErrorMsgContains(why, pattern.compile, text)
  end
  for text, why in pairs { ["(?<=a)b"] = "(?<= is not supported", ["(a)\\1"] = "back-reference", ["(?i)a"] = "(?i) is not" } do
    lu.assertErrorMsgContains(why, pattern.compile, text)
  end
  lu.assertErrorMsgContains("takes too long", function ()
    return pattern.compile("(a|a)*b"):fullmatch(("a"):rep(40))
  end)
end

-- ---- what is refused -----------------------------------------------------------------------------------

local plain = read(CASES .. "layers/adapter_config.json")

local function with(changes)
  local c = {}
  for k, v in pairs(plain) do c[k] = v end
  for k, v in pairs(changes) do c[k] = v end
  assert(peri.files.make_folder(dir))
  assert(peri.files.write(dir .. "/adapter_config.json", peri.json.encode(c)))
  assert(peri.files.write(dir .. "/adapter_model.safetensors", assert(peri.files.read(CASES .. "layers/adapter_model.safetensors"))))
  return peft.load(load "llama", dir)
end

local refused = {
  { { init_lora_weights = "pissa" }, "PiSSA changes the base model's weights" },
  { { init_lora_weights = "pissa_niter_16" }, "PiSSA" }, { { init_lora_weights = "olora" }, "OLoRA" },
  { { init_lora_weights = "loftq" }, "LoftQ" }, { { init_lora_weights = "corda" }, "CorDA" },
  { { init_lora_weights = "lora_ga" }, "LoRA-GA" }, { { init_lora_weights = "mica" }, '"mica", which is not known' },
  { { loftq_config = { loftq_bits = 4 } }, "LoftQ" }, { { corda_config = { corda_method = "ipm" } }, "CorDA" },
  { { use_dora = true }, "DoRA" }, { { lora_bias = true }, "a bias of lora_B" }, { { use_qalora = true }, "QALoRA" },
  { { megatron_config = { a = 1 } }, "Megatron" }, { { layer_replication = { { 0, 2 } } }, "layers that are repeated" },
  { { trainable_token_indices = { 1, 2 } }, "single rows of embeddings" }, { { target_parameters = { "a" } }, "target_parameters" },
  { { alora_invocation_tokens = { 1 } }, "activated LoRA" }, { { bias = "some" }, 'bias is "some"' },
  { { something_new = true }, "something_new is set, which is not known here" }, { { something_new = 3 }, "something_new" },
  { { r = 0 }, "r is 0" },
  { { r = "4" }, 'r is "4", expected an integer in [1, 16777216]' }, { { lora_alpha = "16" }, 'lora_alpha is "16"' },
  { { alpha_pattern = { q_proj = "x" } }, '"q_proj" of alpha_pattern is "x", expected a finite number' },
  { { alpha_pattern = "x" }, "expected an object" },
  { { rank_pattern = { q_proj = 2.5 } }, '"q_proj" of rank_pattern is 2.5' }, { { target_modules = { 1, 2 } }, "entry 1 of target_modules is 1" },
  { { target_modules = 3 }, "target_modules is 3, expected string" }, { { exclude_modules = 3 }, "exclude_modules" },
  { { modules_to_save = 3 }, "modules_to_save" }, { { layers_pattern = { 3 } }, "layers_pattern" }, { { use_rslora = 1 }, "use_rslora is 1" },
  { { layers_to_transform = { "0" } }, 'entry 1 of layers_to_transform is "0"' }, { { lora_dropout = 2 }, "lora_dropout is 2" },
  { { fan_in_fan_out = "x" }, "fan_in_fan_out" },
  { { init_lora_weights = 3 }, "init_lora_weights" }, { { peft_type = "VERA" }, 'peft_type "VERA" is not supported' },
  { { peft_type = "IA3" }, "IA3" }, { { peft_type = "ADALORA" }, "ADALORA" }, { { target_modules = { "nothing" } }, "means no layer" },
  { { target_modules = "(" }, "regular expression" }, { { alpha_pattern = { ["(?<=a)b"] = 1 } }, "(?<= is not supported" },
  { { r = 3 }, "wrong shape" }, { { layers_to_transform = { 0 } }, "missing" },
  { { target_modules = { "q_proj", "lm_head" } }, "missing lm_head.lora_A.weight" },
}

function tests.test_what_changes_the_result_and_is_not_done_is_refused_by_name()
  for _, case in ipairs(refused) do
    local adapter, message = with(case[1])
    lu.assertNil(adapter, case[2])
    lu.assertStrContains(message, case[2])
    lu.assertStrContains(message, dir)
    lu.assertNotStrContains(message, ".lua:")
  end
end

function tests.test_what_changes_nothing_is_taken()
  for _, c in ipairs { { init_lora_weights = "gaussian" }, { init_lora_weights = false }, { init_lora_weights = "eva", eva_config = { rho = 2 } },
      { use_dora = false }, { loftq_config = {} }, { something_new = false }, { something_new = peri.json.null }, { revision = "main" },
      { runtime_config = { ephemeral_gpu_offload = false } }, { megatron_core = "megatron.core" }, { fan_in_fan_out = true } } do
    local adapter, message = with(c)
    lu.assertNotNil(adapter, message)
  end
end

function tests.test_a_tensor_that_the_config_does_not_announce_is_unexpected()
  local tensors = assert(peri.safetensors.load(CASES .. "layers/adapter_model.safetensors"))
  local adapter = assert(with {})
  adapter:remove()
  for name, t in pairs { ["base_model.model.model.norm.weight"] = peri.ones { 32 },
      ["base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"] = peri.ones { 4, 32 },
      ["base_model.model.model.layers.1.self_attn.q_proj.lora_magnitude_vector"] = peri.ones { 32 } } do
    local more = {}
    for k, v in pairs(tensors) do more[k] = v end
    more[name] = t
    assert(peri.safetensors.save(dir .. "/adapter_model.safetensors", more))
    local model = load "llama"
    local before = output(model, "llama")
    local none, message = peft.load(model, dir)
    lu.assertNil(none)
    lu.assertStrContains(message, name:match "model%.model%.(.*)$")
    lu.assertEquals(output(model, "llama"):bytes(), before:bytes())
  end
end

function tests.test_a_head_and_a_table_of_embeddings_can_be_trained()
  for _, name in ipairs { "llama", "gpt2", "gemma2" } do
    local model = load(name)
    local before, ids = output(model, name)
    local embed = name == "gpt2" and "wte" or "embed_tokens"
    local adapter = peft.lora(model, { r = 2, targets = { "lm_head", embed } })
    lu.assertEquals(#adapter:parameters(), 4)
    lu.assertTrue(output(model, name):sub(before):abs():max():item() < 1e-5)
    local opt = peri.optim.AdamW(adapter, { lr = 0.05 })
    local first, last
    for _ = 1, 8 do
      local loss = model:token_logprobs(ids, 2):mean():neg()
      loss:backward()
      opt:step():zero_grad()
      first, last = first or loss:item(), loss:item()
    end
    lu.assertTrue(last < first - 0.1, name)
    lu.assertErrorMsgContains("only linear layers take an adapter into their weights", adapter.merge, adapter)
    assert(adapter:save(dir))
    local got = output(model, name)
    adapter:remove()
    lu.assertEquals(output(model, name):bytes(), before:bytes())
    assert(peft.load(model, dir))
    lu.assertEquals(output(model, name):bytes(), got:bytes())
  end
end

function tests.test_answers_under_an_adapter_on_embeddings_are_not_remembered_from_before()
  local model = load "llama"
  local tok = require("perilune.text").chars "abcdefghijklmnopqrstuvwxyz"
  local lm = peri.lm.new(model, tok)
  lm:complete("hello there", { max_new_tokens = 2 })
  local adapter = assert(peft.load(model, CASES .. "embed"))
  local got = lm:complete("hello there", { max_new_tokens = 4 })
  lu.assertEquals(got.cached_tokens, 0)
  lu.assertEquals(got.tokens, peri.lm.new(model, tok, { prefix_cache_bytes = 0 }):complete("hello there", { max_new_tokens = 4 }).tokens)
  adapter:remove()
end

return tests
