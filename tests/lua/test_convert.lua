-- perilune convert and perilune info: what goes to GGUF and back is what it was, bit by bit; types are
-- chosen as llama.cpp chooses them.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local shared = require "shared"
local hf = require "perilune.weights.hf"
local convert = require "perilune.command.convert"
local info = require "perilune.command.info"
local export = require "perilune.weights.gguf.export"

local tests, dir = {}, nil
local tiny = "tests/data/hf_tiny/"

scratch.each(tests, function (path) dir = path end)

-- Run a command without its output; status, what it printed, what it said on stderr.
local function quiet(command, args)
  local out, err = {}, {}
  local real_print, real_out, real_err = print, io.stdout, io.stderr
  local function sink(list)
    return { write = function(_, ...) for _, s in ipairs { ... } do list[#list + 1] = s end end }
  end
  print = function(...) out[#out + 1] = table.concat({ ... }, "\t") .. "\n" end -- luacheck: ignore 121
  io.stdout, io.stderr = sink(out), sink(err) -- luacheck: ignore 122
  local ok, status = pcall(command, args)
  print, io.stdout, io.stderr = real_print, real_out, real_err -- luacheck: ignore 121 122
  if not ok then error(status, 0) end
  return status, table.concat(out), table.concat(err)
end

-- Compared as printed: what JSON and GGUF both keep.
local same_settings = { "model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
  "intermediate_size", "rms_norm_eps", "vocab_size", "tie_word_embeddings", "head_dim", "max_position_embeddings",
  "n_layer", "n_head", "n_embd", "layer_norm_epsilon", "kv_lora_rank", "q_lora_rank", "qk_nope_head_dim",
  "v_head_dim", "n_routed_experts", "num_experts_per_tok", "n_group", "topk_group", "routed_scaling_factor",
  "norm_topk_prob", "first_k_dense_replace", "d_model", "d_kv", "num_layers", "feed_forward_proj", "layer_norm_eps",
  "type_vocab_size", "attn_logit_softcapping", "final_logit_softcapping", "query_pre_attn_scalar" }

local function there_and_back(name, lost)
  local status, _, message = quiet(convert, { tiny .. name, dir .. "/m.gguf", "--type", "f32" })
  lu.assertEquals(status, 0, message)
  status, _, message = quiet(convert, { dir .. "/m.gguf", dir .. "/back" })
  lu.assertEquals(status, 0, message)
  local want, got = assert(hf.tensors(tiny .. name)), assert(hf.tensors(dir .. "/back"))
  local missing = {}
  for key, t in pairs(want) do
    local back = got[key]
    if not back then missing[#missing + 1] = key
    else lu.assertEquals(back:contiguous():bytes(), t:contiguous():bytes(), key) end
  end
  table.sort(missing)
  lu.assertEquals(missing, lost or {})
  local a, b = hf.config(tiny .. name), hf.config(dir .. "/back")
  for _, key in ipairs(same_settings) do
    if a[key] ~= nil and not (name == "mistral" and key == "model_type") then lu.assertEquals(b[key], a[key], key) end
  end
  return a, b
end

for _, name in ipairs { "llama", "mistral", "qwen2", "qwen3", "gpt2", "deepseek_v3", "t5" } do
  tests["test_" .. name .. "_comes_back_bit_by_bit"] = function() there_and_back(name) end
end

function tests.test_gemma2_comes_back()
  quiet(convert, { tiny .. "gemma2", dir .. "/m.gguf" })
  local want = assert(hf.tensors(tiny .. "gemma2"))
  local source = assert(require("perilune.weights.gguf.source").open(dir .. "/m.gguf"))
  for name, t in pairs(want) do -- norms lose a bit where 1 is added
    if name ~= "lm_head.weight" then
      lu.assertTrue((source:get(name):sub(t)):abs():max():item() <= (name:find "norm" and 1e-6 or 0), name)
    end
  end
end

function tests.test_bert_comes_back_without_its_pooler()
  there_and_back("bert", { "pooler.dense.bias", "pooler.dense.weight" })
end

function tests.test_llama3_scaling_comes_back_from_the_frequencies()
  local a, b = there_and_back "llama31_rope"
  local p, q = a.rope_parameters, b.rope_scaling
  lu.assertEquals(q.rope_type, "llama3")
  for _, key in ipairs { "factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings" } do
    lu.assertAlmostEquals(q[key], p[key], 1e-3, key)
  end
end

function tests.test_types_are_chosen_as_llama_cpp_does()
  local model = { layers = 30, tied = true }
  local function type_of(name, shape, dtype) return export.dtype(name, shape, dtype, model) end
  lu.assertEquals(type_of("blk.0.attn_norm.weight", { 576 }, "q4_0"), "f32")
  lu.assertEquals(type_of("blk.0.attn_q.weight", { 576, 576 }, "q4_0"), "q4_0")
  lu.assertEquals(type_of("token_embd.weight", { 49152, 576 }, "q4_0"), "q8_0") -- the output, rows of 576
  lu.assertEquals(type_of("token_embd.weight", { 49152, 1024 }, "q4_0"), "q6_K")
  lu.assertEquals(type_of("blk.0.attn_q.weight", { 576, 576 }, "q4_K"), "q5_0") -- 256 does not divide 576
  lu.assertEquals(type_of("blk.0.ffn_down.weight", { 576, 1536 }, "q4_K"), "q6_K")
  lu.assertEquals(type_of("blk.4.ffn_down.weight", { 576, 1536 }, "q4_K"), "q4_K")
  lu.assertEquals(type_of("blk.0.attn_q.weight", { 48, 48 }, "q8_0"), "f16")
  lu.assertEquals(type_of("blk.0.attn_q.weight", { 48, 48 }, "bf16"), "bf16")
  lu.assertEquals(type_of("blk.0.ffn_gate_inp.weight", { 8, 64 }, "f16"), "f32")
end

function tests.test_mistakes_have_a_status_and_a_message()
  local function says(part, status, ...)
    local got, out, err = quiet(convert, { ... })
    lu.assertEquals(got, status)
    lu.assertStrContains(out .. err, part)
  end
  says("usage: perilune convert", 0, "--help")
  says("expected FROM TO", 2, "x")
  says('unknown flag "x"; there are: ', 2, "a", "b", "--x")
  says('did you mean "force"', 2, "a", "b", "--froce")
  says('--shard_bytes: "x" is not an integer', 2, "a", "b", "--shard_bytes", "x")
  says('unknown type "q9"', 2, "a", "b", "--type", "q9")
  says("there is no such file", 1, dir .. "/none", dir .. "/a.gguf")
  says("model_type \"distilbert\" cannot be written as GGUF", 1, tiny .. "distilbert", dir .. "/a.gguf")
  says("a folder cannot hold q4_0 weights", 1, tiny .. "llama", dir .. "/b", "--type", "q4_0")
  local status, _, err = quiet(info, { dir .. "/none" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(err, "there is no such file")
end

function tests.test_nothing_is_overwritten_unless_that_is_asked_for()
  assert(peri.files.write(dir .. "/m.gguf", "mine"))
  local status, _, err = quiet(convert, { tiny .. "llama", dir .. "/m.gguf" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(err, "m.gguf exists; --force overwrites it")
  lu.assertEquals(peri.files.read(dir .. "/m.gguf"), "mine")
  lu.assertEquals((quiet(convert, { tiny .. "llama", dir .. "/m.gguf", "--force" })), 0)
  assert(peri.files.make_folder(dir .. "/f"))
  assert(peri.files.write(dir .. "/f/added_tokens.json", "{}"))
  status, _, err = quiet(convert, { dir .. "/m.gguf", dir .. "/f" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(err, "/f exists; --force overwrites it")
  lu.assertEquals((quiet(convert, { dir .. "/m.gguf", dir .. "/f", "--overwrite" })), 0)
  lu.assertFalse(peri.files.exists(dir .. "/f/added_tokens.json"), "of another tokenizer")
  assert(peri.files.make_folder(dir .. "/empty"))
  lu.assertEquals((quiet(convert, { dir .. "/m.gguf", dir .. "/empty" })), 0)
  for _, pair in ipairs { { dir .. "/f", dir .. "/f/" }, { dir .. "/m.gguf", dir .. "/m.gguf" } } do
    status, _, err = quiet(convert, { pair[1], pair[2], "--force" })
    lu.assertEquals(status, 1)
    lu.assertStrContains(err, "FROM and TO are the same")
  end
end

function tests.test_what_is_written_is_said()
  local status, out = quiet(convert, { tiny .. "llama", dir .. "/m.gguf", "--type", "q4_K" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "/m.gguf: 30 tensors, 27,168 parameters, 26.4 kB, ")
  lu.assertStrContains(out, " bits a parameter")
  lu.assertStrContains(out, "types: ")
  -- 32 columns: no blocks of 256, but those of 32. 48 columns: neither.
  lu.assertStrContains(out, "tensors are q5_0 and not q4_K, whose blocks do not divide rows of 32: token_embd.weight ...")
  local bytes = tonumber(out:match "([%d.]+) bits a parameter") * 27168 / 8
  local tensors = 0
  for _, t in ipairs(assert(peri.gguf.open(dir .. "/m.gguf")):tensors()) do tensors = tensors + t.bytes end
  lu.assertAlmostEquals(bytes, tensors, 27168 / 8 * 0.005)
  status, out = quiet(convert, { dir .. "/m.gguf", dir .. "/f" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "f32 27, f16 3")
end

function tests.test_a_tokenizer_that_would_change_is_an_error()
  local folder = dir .. "/f"
  assert(hf.write(folder, hf.config(tiny .. "llama"), {}, {}))
  assert(peri.files.write(folder .. "/model.safetensors", assert(peri.files.read(tiny .. "llama/model.safetensors"))))
  local json = assert(peri.json.decode(assert(peri.files.read "tests/data/tokenizers/unigram.json")))
  assert(peri.files.write(folder .. "/tokenizer.json", peri.json.encode(json)))
  local config = hf.config(tiny .. "llama")
  config.vocab_size = nil
  assert(peri.files.write(folder .. "/config.json", peri.json.encode(config)))
  local status, _, err = quiet(convert, { folder, dir .. "/m.gguf" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(err, "normalizer NFKC")
  lu.assertStrContains(err, "--allow-loss")
  lu.assertFalse(peri.files.exists(dir .. "/m.gguf"))
  status, _, err = quiet(convert, { folder, dir .. "/m.gguf", "--allow-loss" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(err, "lost of the tokenizer: normalizer NFKC")
  status, _, err = quiet(convert, { folder, dir .. "/n.gguf", "--no-tokenizer" })
  lu.assertEquals({ status, err }, { 0, "" })
  -- And back: what has no form is named, not left out in silence.
  local values = { { key = "general.architecture", type = "text", value = "llama" } }
  local file = assert(peri.gguf.open(dir .. "/n.gguf"))
  for _, v in ipairs(file:keys()) do
    if v.key ~= "general.architecture" and v.key ~= "general.alignment" then
      values[#values + 1] = { key = v.key, type = v.type, value = (file:get(v.key)) }
    end
  end
  values[#values + 1] = { key = "tokenizer.ggml.model", type = "text", value = "rwkv" }
  local tensors = {}
  for _, t in ipairs(file:tensors()) do tensors[t.name] = assert(file:tensor(t.name)) end
  assert(peri.gguf.save(dir .. "/r.gguf", values, tensors))
  status, _, err = quiet(convert, { dir .. "/r.gguf", dir .. "/back" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(err, '"rwkv" is not supported')
  lu.assertEquals((quiet(convert, { dir .. "/r.gguf", dir .. "/back", "--allow-loss" })), 0)
end

function tests.test_info_counts_weights_and_not_the_tables_beside_them()
  local folder = dir .. "/bert"
  local config, tensors = hf.config(tiny .. "bert"), assert(hf.tensors(tiny .. "bert"))
  config.dtype, config.torch_dtype = nil, nil
  tensors["embeddings.position_ids"] = peri.zeros({ 1, 512 }, "i64")
  assert(hf.save(folder, config, tensors))
  local model = assert(peri.models.load(folder))
  local status, out = quiet(info, { folder })
  lu.assertEquals(status, 0)
  local n = tostring(model:num_parameters()):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", "")
  lu.assertStrContains(out, ("parameters     %s\n"):format(n))
  lu.assertStrContains(out, "dtype          f32\n")
  lu.assertStrContains(out, ", 32.00 bits a parameter")
end

function tests.test_info_says_what_a_file_holds()
  local status, out = quiet(info, { tiny .. "llama" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "LlamaForCausalLM")
  lu.assertStrContains(out, "27,168")
  lu.assertStrContains(out, "dtype          float32\n")
  quiet(convert, { tiny .. "llama", dir .. "/m.gguf" })
  status, out = quiet(info, { dir .. "/m.gguf", "--all" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "32.00 bits a parameter")
  lu.assertStrContains(out, "llama.attention.head_count_kv")
  status, out = quiet(info, { "tests/data/files/stored.npz" })
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "f64 1 (48 bytes)")
end

-- Values stay, tensors get other types: those of the first conversion are the measure.
function tests.test_a_gguf_file_is_requantised_under_its_names()
  quiet(convert, { tiny .. "llama", dir .. "/a.gguf", "--type", "f32" })
  for _, kind in ipairs { "f16", "q8_0", "q5_1" } do
    local status, out, message = quiet(convert, { dir .. "/a.gguf", dir .. "/b.gguf", "--type", kind, "--force" })
    lu.assertEquals({ status, message }, { 0, "" })
    lu.assertStrContains(out, "30 tensors, 27,168 parameters")
    local a, b = assert(peri.gguf.open(dir .. "/a.gguf")), assert(peri.gguf.open(dir .. "/b.gguf"))
    for _, v in ipairs(a:keys()) do
      if not v.key:find "^general%.[afq]" then lu.assertEquals(b:get(v.key), a:get(v.key), v.key) end
    end
    lu.assertEquals(b:get "general.file_type", ({ f16 = 1, q8_0 = 7, q5_1 = 9 })[kind])
    for i, t in ipairs(b:tensors()) do
      local want = a:tensors()[i]
      lu.assertEquals({ t.name, t.shape }, { want.name, want.shape })
      local wide = a:tensor(t.name)
      local narrow = t.dtype == "f32" and wide or wide:to(t.dtype)
      lu.assertEquals(b:tensor(t.name):bytes(), narrow:bytes(), t.name)
      if #t.shape == 1 then lu.assertEquals(t.dtype, "f32", t.name) end -- norms
    end
  end
  quiet(convert, { dir .. "/b.gguf", dir .. "/c.gguf" }) -- as stored
  local b, c = assert(peri.gguf.open(dir .. "/b.gguf")), assert(peri.gguf.open(dir .. "/c.gguf"))
  for _, t in ipairs(b:tensors()) do lu.assertEquals(c:tensor(t.name):bytes(), b:tensor(t.name):bytes(), t.name) end
  assert(peri.files.write(dir .. "/d.gguf", "no GGUF"))
  local status, _, message = quiet(convert, { dir .. "/d.gguf", dir .. "/e.gguf" })
  lu.assertEquals(status, 1)
  lu.assertStrContains(message, "d.gguf")
end

-- What a config says of rotary positions, in GGUF and back, or a message that names it.
function tests.test_scaled_rotary_positions_come_back()
  local folder, config = dir .. "/f", hf.config(tiny .. "llama")
  local weights, old = assert(peri.files.read(tiny .. "llama/model.safetensors")), assert(hf.tensors(tiny .. "llama"))
  lu.assertNotNil(old)
  local function convert_with(scaling)
    config.rope_scaling, config.rope_parameters = scaling, nil
    peri.files.remove_tree(folder)
    assert(hf.write(folder, config, {}, {}))
    assert(peri.files.write(folder .. "/model.safetensors", weights))
    return quiet(convert, { folder, dir .. "/m.gguf", "--force" })
  end
  local ids = peri.tensor({ { 5, 9, 1, 44, 17, 3, 30, 2 } }, "i64")
  local function logits(path)
    local model = assert(peri.models.load(path))
    return peri.no_grad(function() return model:logits(model:forward(ids)) end)
  end
  for _, scaling in ipairs {
    { rope_type = "linear", factor = 4.0 },
    { rope_type = "yarn", factor = 4.0, original_max_position_embeddings = 16 },
    { rope_type = "yarn", factor = 2.0, original_max_position_embeddings = 32, attention_factor = 1.25, beta_fast = 16.0,
      beta_slow = 2.0 },
  } do
    local status, _, message = convert_with(scaling)
    lu.assertEquals(status, 0, message)
    lu.assertEquals((quiet(convert, { dir .. "/m.gguf", dir .. "/back", "--force" })), 0)
    local back = hf.config(dir .. "/back").rope_scaling
    for key, value in pairs(scaling) do lu.assertEquals(back[key], value, key) end
    local want = logits(folder)
    lu.assertEquals(logits(dir .. "/m.gguf"):tolist(), want:tolist(), scaling.rope_type)
    lu.assertEquals(logits(dir .. "/back"):tolist(), want:tolist(), scaling.rope_type)
  end
  local status, _, message = convert_with { rope_type = "dynamic", factor = 2.0 }
  lu.assertEquals(status, 1)
  lu.assertStrContains(message, 'rope type "dynamic" has no place in GGUF here')
end

-- The real model: weights of the file itself are the measure.
function tests.test_smollm2_is_requantised_in_little_memory()
  local path = shared.need "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  collectgarbage()
  local before = peri.memory().live
  local status, _, message = quiet(convert, { path, dir .. "/q.gguf", "--type", "q8_0" })
  lu.assertEquals(status, 0, message)
  lu.assertTrue(peri.memory().live - before < 1 << 20)
  local a, b = assert(peri.gguf.open(path, { map = true })), assert(peri.gguf.open(dir .. "/q.gguf", { map = true }))
  lu.assertEquals(b:get "general.file_type", 7)
  lu.assertEquals(b:get "tokenizer.chat_template", a:get "tokenizer.chat_template")
  lu.assertEquals(b:tensor("token_embd.weight"):bytes(), a:tensor("token_embd.weight"):bytes())
  local x, y = a:tensor("blk.7.ffn_up.weight"):to "f32", b:tensor("blk.7.ffn_up.weight"):to "f32"
  local error_of = math.sqrt(x:sub(y):square():mean():item() / x:square():mean():item())
  lu.assertTrue(error_of < 0.01, error_of) -- 8 bits: 1/254 of a block's largest value at most
end

return tests
