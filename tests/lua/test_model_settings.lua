-- What a config or a file says of a model's mathematics counts or is refused by its name, for every architecture;
-- tied weights are found under either name; frequencies of GGUF files count as they stand.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local tiny = require "tiny"
local hf = require "perilune.weights.hf"
local settings = require "perilune.models.settings"
local models = require "perilune.models"
local convert = require "perilune.weights.convert"

local T, dir = {}, nil
local relative = tiny.relative

scratch.each(T, function(path) dir = path end)

local all = { "llama", "llama31_rope", "mistral", "qwen2", "qwen3", "gemma2", "gpt2", "deepseek_v3", "bert", "bert_mlm",
  "distilbert", "t5", "t5_gated" }

-- A folder with the weights of a tiny model, its config changed, its tensors renamed (to false: left out).
local function folder_of(name, change, rename)
  local folder = dir .. "/" .. name
  local config, tensors = hf.config(tiny.folder .. name), {}
  if change then change(config) end
  for key, t in pairs(assert(hf.tensors(tiny.folder .. name))) do
    local to = rename and rename[key]
    if to == nil then to = key end
    for _, one in ipairs(type(to) == "table" and to or { to or nil }) do tensors[one] = t end
  end
  assert(hf.save(folder, config, tensors))
  return folder
end

local function refuses(part, folder)
  local model, message = models.load(folder)
  lu.assertNil(model, part)
  lu.assertStrContains(message, part)
end

-- Whatever a key holds: a model that computes, or a message that is ours.
function T.test_values_of_other_types_are_refused_by_name()
  for _, name in ipairs(all) do
    for key in pairs(hf.config(tiny.folder .. name)) do
      for _, value in ipairs { "x", -1, 1.5, true, {} } do
        local what = ("%s: %s = %s"):format(name, key, peri.json.encode(value))
        local model, message = models.load(folder_of(name, function (c) c[key] = value end))
        if model then
          local ids = peri.tensor({ { 1, 2 } }, "i64")
          local ok, why = pcall(model.encode or model.forward, model, ids)
          lu.assertTrue(ok, ("%s: %s"):format(what, tostring(why)))
        else
          lu.assertNotStrContains(message, "attempt to", what)
          lu.assertNotStrContains(message, ".lua:", what)
        end
      end
    end
  end
  refuses('layer_norm_eps is "x", expected a number from 0 on', folder_of("bert", function (c) c.layer_norm_eps = "x" end))
  refuses("attention_dropout is 2, expected a number from 0 to 1", folder_of("llama", function (c) c.attention_dropout = 2 end))
  refuses("first_k_dense_replace is 1.5, expected an integer", folder_of("deepseek_v3", function (c)
    c.first_k_dense_replace = 1.5
  end))
end

-- Values that change nothing, and values that do.
local values = {
  quantization_config = { {}, { quant_method = "gptq", bits = 4 } }, pruned_heads = { {}, { ["0"] = { 1 } } },
  partial_rotary_factor = { 1.0, 0.5 }, add_cross_attention = { false, true }, is_decoder = { false, true },
  use_bidirectional_attention = { false, true }, attention_chunk_size = { false, 8192 },
  topk_method = { "noaux_tc", "greedy" },
  scoring_func = { "sigmoid", "softmax" }, moe_layer_freq = { 1, 2 },
  layer_types = { nil, { "full_attention", "linear_attention", "full_attention" } },
}

function T.test_every_setting_that_is_not_supported_is_refused_by_name()
  for _, name in ipairs(all) do
    local kind = hf.config(tiny.folder .. name).model_type
    for key, rule in pairs(settings.rules(kind)) do
      local pair = values[key]
      if key == "position_embedding_type" then
        local fits = rule[1] "absolute"
        pair = { fits and "absolute" or "rope", "relative_key" }
      end
      lu.assertNotNil(pair, key .. " has values in this test")
      if pair[1] ~= nil then
        local model, message = models.load(folder_of(name, function(c) c[key] = pair[1] end))
        lu.assertNotNil(model, ("%s %s: %s"):format(name, key, tostring(message)))
      end
      refuses(("%s: the setting %s = "):format(kind, key), folder_of(name, function(c) c[key] = pair[2] end))
    end
  end
end

function T.test_activations_and_scalings_that_are_not_known_are_refused_by_name()
  local act = { gpt2 = "activation_function", distilbert = "activation", t5 = "feed_forward_proj",
    t5_gated = "feed_forward_proj", gemma2 = "hidden_activation" }
  for _, name in ipairs(all) do
    local key = act[name] or "hidden_act"
    refuses(("the setting %s = "):format(key), folder_of(name, function(c) c[key] = "quick_sparkle" end))
    local rotary = not (name:find "bert" or name:find "t5" or name == "gpt2")
    if rotary then
      refuses('rope type "dynamic" of rope_scaling', folder_of(name, function(c)
        c.rope_parameters, c.rope_theta, c.rope_scaling = nil, 10000.0, { type = "dynamic", factor = 2.0 }
      end))
      refuses("the setting rope_scaling = ", folder_of(name, function(c)
        c.rope_parameters, c.rope_scaling = nil, "dynamic"
      end))
    end
  end
  refuses("the setting tie_word_embeddings = false", folder_of("bert_mlm", function(c) c.tie_word_embeddings = false end))
  assert(models.load(folder_of("bert", function(c) c.tie_word_embeddings = false end)), "there is no head")
  refuses('"longrope" with other factors for long texts', folder_of("llama", function(c)
    c.rope_parameters = { rope_type = "longrope", rope_theta = 10000.0, short_factor = { 1, 1, 1, 1 },
      long_factor = { 1, 1, 1, 2 }, original_max_position_embeddings = 16 }
  end))
  refuses("the setting layer_types has", folder_of("mistral", function(c)
    c.layer_types = { "full_attention", "sliding_attention" }
  end))
end

-- ---- tied weights --------------------------------------------------------------------------------

local function outputs(name, folder)
  local model = assert(models.load(folder))
  local io = assert(peri.safetensors.load(tiny.folder .. name .. "/io.safetensors"))
  local _ <close> = peri.no_grad()
  if name:find "^t5" then
    return model:logits(model:forward(io.input_ids, { mask = io.attention_mask, labels = io.labels })), io.logits
  end
  local hidden = model:forward(io.input_ids, name:find "bert" and { mask = io.attention_mask } or nil)
  if not io.logits then return hidden, io.last_hidden_state end
  return model:logits(hidden), io.logits
end

-- Names of what is tied, by model.
local function ties(name)
  if name == "gpt2" then return { "transformer.wte.weight", "lm_head.weight" } end
  if name == "bert_mlm" then return { "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight" } end
  if name == "bert" then return nil end
  if name == "distilbert" then return { "distilbert.embeddings.word_embeddings.weight", "vocab_projector.weight" } end
  if name:find "^t5" then
    return { "shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight" }
  end
  return { "model.embed_tokens.weight", "lm_head.weight" }
end

function T.test_tied_weights_are_found_under_either_name()
  local tried = 0
  for _, name in ipairs(all) do
    local names, have = ties(name), assert(hf.tensors(tiny.folder .. name))
    if names and not have[names[1]] then names[1] = names[1]:gsub("^distilbert%.", "") end
    local config = hf.config(tiny.folder .. name)
    local tied = config.tie_word_embeddings
    if tied == nil then tied = not have["lm_head.weight"] or name == "gpt2" or name == "gemma2" end
    if names and tied then
      local source
      for _, one in ipairs(names) do source = source or have[one] and one end
      local function with(list)
        local rename = {}
        for _, one in ipairs(names) do rename[one] = false end
        rename[source] = list
        return rename
      end
      for i, one in ipairs(names) do
        tried = tried + 1
        for _, rename in ipairs { with { one }, with(names) } do
          local got, want = outputs(name, folder_of(name, nil, rename))
          lu.assertTrue(relative(got, want) < 1e-5, ("%s as %s: %g"):format(name, one, relative(got, want)))
        end
        -- The same goes to GGUF and back.
        if name ~= "distilbert" and not (name:find "bert" and i > 1) then
          local report, message = convert.run { from = folder_of(name, nil, with { one }), to = dir .. "/m.gguf" }
          lu.assertNotNil(report, message)
          lu.assertNotNil(assert(peri.gguf.open(dir .. "/m.gguf")):tensor "token_embd.weight", name)
          for _, note in ipairs(report.notes) do lu.assertNotStrContains(note, one) end
        end
      end
    end
  end
  lu.assertTrue(tried >= 8, tostring(tried))
end

function T.test_a_config_that_is_silent_of_ties_goes_by_the_file()
  for _, name in ipairs { "llama31_rope", "qwen2", "gemma2", "deepseek_v3" } do
    local have, config = assert(hf.tensors(tiny.folder .. name)), hf.config(tiny.folder .. name)
    local one = have["model.embed_tokens.weight"] and "model.embed_tokens.weight" or "lm_head.weight"
    local function silent(c) c.tie_word_embeddings = nil end
    local folder = folder_of(name, silent, { ["lm_head.weight"] = false, [one] = { "model.embed_tokens.weight" } })
    lu.assertTrue(assert(models.load(folder)).settings.tied, name)
    if name ~= "gemma2" then -- tied unless the config says otherwise
      folder = folder_of(name, silent, { [one] = { "model.embed_tokens.weight", "lm_head.weight" } })
      lu.assertFalse(assert(models.load(folder)).settings.tied, name)
      refuses("lm_head.weight is missing", folder_of(name, function(c) c.tie_word_embeddings = false end,
        { ["lm_head.weight"] = false, [one] = { "model.embed_tokens.weight" } }))
    end
    if config.tie_word_embeddings then lu.assertNil(have["lm_head.weight"], "as transformers saves it") end
  end
  -- A head of its own under a model that has mostly none.
  local folder = folder_of("gemma2", function(c) c.tie_word_embeddings = false end,
    { ["model.embed_tokens.weight"] = { "model.embed_tokens.weight", "lm_head.weight" } })
  lu.assertTrue(relative(outputs("gemma2", folder)) < 1e-5)
end

-- ---- frequencies ---------------------------------------------------------------------------------

-- The GGUF file of a model, with other factors of the rotary frequencies.
local function with_factors(name, factors)
  local path = dir .. "/" .. name .. ".gguf"
  assert(convert.run { from = tiny.folder .. name, to = path })
  local file = assert(peri.gguf.open(path))
  local list, tensors = {}, {}
  for _, v in ipairs(file:keys()) do
    if v.key ~= "general.alignment" then list[#list + 1] = { key = v.key, type = v.type, value = (file:get(v.key)) } end
  end
  for _, t in ipairs(file:tensors()) do tensors[t.name] = assert(file:tensor(t.name)) end
  tensors["rope_freqs.weight"] = peri.tensor(factors, "f32")
  assert(peri.gguf.save(path, list, tensors))
  return path
end

function T.test_rope_freqs_count_as_they_stand_and_come_into_a_folder()
  local base = assert(models.load(tiny.folder .. "llama")).inv_freq:tolist()
  for _, factors in ipairs { { 1, 1, 1, 1 }, { 1, 2.5, 8, 8 }, { 1.5, 0.25, 3, 7 }, { 4, 3, 2, 1 }, { 1, 1, 8, 8 } } do
    local path = with_factors("llama", factors)
    peri.files.remove_tree(dir .. "/back")
    assert(convert.run { from = path, to = dir .. "/back" })
    for _, from in ipairs { path, dir .. "/back" } do
      local model = assert(models.load(from))
      for i, f in ipairs(model.inv_freq:tolist()) do
        lu.assertAlmostEquals(f / (base[i] / factors[i]), 1, 5e-7, ("%s, channel %d"):format(from, i))
      end
      lu.assertEquals(model.rope_scale, 1)
    end
    assert(convert.run { from = dir .. "/back", to = dir .. "/again.gguf" })
    local again = assert(peri.gguf.open(dir .. "/again.gguf")):tensor "rope_freqs.weight"
    for i, f in ipairs(again:tolist()) do lu.assertAlmostEquals(f / factors[i], 1, 5e-7) end
  end
  local model, message = models.load(with_factors("llama", { 1, 0, 1, 1 }))
  lu.assertNil(model)
  lu.assertStrContains(message, "rope_freqs.weight has the factor 0")
end

function T.test_llama3_scaling_keeps_its_name()
  assert(convert.run { from = tiny.folder .. "llama31_rope", to = dir .. "/m.gguf" })
  assert(convert.run { from = dir .. "/m.gguf", to = dir .. "/back" })
  lu.assertEquals(hf.config(dir .. "/back").rope_scaling.rope_type, "llama3")
end

-- ---- values of GGUF files ------------------------------------------------------------------------

function T.test_values_of_gguf_files_that_are_not_supported_are_refused_by_name()
  for key, v in pairs { ["attention.clamp_kqv"] = { "f32", 8.0 }, ["logit_scale"] = { "f32", 0.5 },
    ["attention.causal"] = { "bool", false }, ["rope.dimension_count"] = { "u32", 4 },
    ["use_parallel_residual"] = { "bool", true }, ["final_logit_softcapping"] = { "f32", 30.0 } } do
    local path = dir .. "/m.gguf"
    assert(convert.run { from = tiny.folder .. "llama", to = path })
    local file, list, tensors = assert(peri.gguf.open(path)), {}, {}
    for _, e in ipairs(file:keys()) do
      if e.key ~= "general.alignment" and e.key ~= "llama." .. key then
        list[#list + 1] = { key = e.key, type = e.type, value = (file:get(e.key)) }
      end
    end
    list[#list + 1] = { key = "llama." .. key, type = v[1], value = v[2] }
    for _, t in ipairs(file:tensors()) do tensors[t.name] = assert(file:tensor(t.name)) end
    assert(peri.gguf.save(path, list, tensors))
    refuses("the value llama." .. key, path)
  end
end

return T
