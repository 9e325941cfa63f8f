-- test_info.lua - perilune info: what it says of a file of every kind is what stands in it.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local child = require "child"

local T, dir = {}, nil

scratch.each(T, function(path) dir = path end)

local function write(name, value)
  assert(peri.files.write(dir .. "/" .. name, type(value) == "string" and value or peri.json.encode(value)))
  return dir .. "/" .. name
end

local function info(words)
  local status, out = child.shell(("%s info %s"):format(child.program, words))
  return out, status
end

-- Rows that must stand in the output, each "name  value".
local function says(words, rows)
  local out, status = info(words)
  lu.assertEquals(status, 0, out)
  for name, value in pairs(rows) do
    lu.assertStrContains("\n" .. out .. "\n", ("\n%-14s %s\n"):format(name, value))
  end
  return out
end

function T.test_a_safetensors_file()
  local tensors = { ["a.weight"] = peri.zeros { 30, 40 }, b = peri.zeros({ 5 }, "f16"), steps = peri.zeros({ 3 }, "i64"),
    ["odd\27[2Jname"] = peri.zeros { 1 } }
  assert(peri.safetensors.save(dir .. "/x.safetensors", tensors, { format = "pt", note = "two\nlines\7" }))
  local out = says(dir .. "/x.safetensors", { format = "safetensors", parameters = "1,206",
    types = "f16 1 (10 bytes), f32 2 (4.8 kB), i64 1 (24 bytes)" })
  lu.assertStrContains(out, "4.8 kB in 4 tensors, 31.93 bits a parameter")
  lu.assertStrContains(out, "metadata       note = two\\nlines?") -- nothing steers the terminal
  lu.assertStrContains(out, "  odd?[2Jname")
  lu.assertNil(out:find "\27")
  for i = 1, 30 do tensors["t" .. i] = peri.zeros { 1 } end
  assert(peri.safetensors.save(dir .. "/x.safetensors", tensors))
  lu.assertStrContains(info(dir .. "/x.safetensors"), "  and 14 more (--all shows them)")
  lu.assertNil((info(dir .. "/x.safetensors --all"):find " more %("))
end

function T.test_arrays()
  assert(peri.npy.save(dir .. "/x.npy", peri.zeros { 2, 3 }))
  says(dir .. "/x.npy", { format = "NumPy .npy", elements = "6", size = "24 bytes in 1 tensors" })
  assert(peri.npz.save(dir .. "/x.npz", { a = peri.zeros { 4 }, b = peri.zeros({ 2 }, "u8") }))
  says(dir .. "/x.npz", { format = "NumPy .npz", elements = "6", types = "f32 1 (16 bytes), u8 1 (2 bytes)" })
  says("tests/data/files/x.idx", { format = "IDX" })
  says("tests/data/files/x.idx.gz", { format = "IDX" })
end

function T.test_a_folder_and_its_tokenizer()
  local tiny = "tests/data/hf_tiny/llama/"
  write("model.safetensors", assert(peri.files.read(tiny .. "model.safetensors")))
  local config = assert(peri.json.decode(assert(peri.files.read(tiny .. "config.json"))))
  config.rope_parameters, config.rope_scaling = { rope_type = "linear", factor = 2.0, rope_theta = 5000.0 }, nil
  write("config.json", config)
  says(dir, { format = "Hugging Face folder", architecture = "llama (LlamaForCausalLM)",
    hidden = tostring(config.hidden_size), rope = "theta 5000, linear", tokenizer = "no tokenizer.json",
    ["chat template"] = "none" })
  write("tokenizer.json", assert(peri.files.read "tests/data/tokenizers/llama.json"))
  local json = assert(peri.json.decode(assert(peri.files.read "tests/data/tokenizers/llama.json")))
  local n = 0
  for _ in pairs(json.model.vocab) do n = n + 1 end
  n = tostring(n):gsub("(%d)(%d%d%d)$", "%1,%2")
  write("tokenizer_config.json", { chat_template = "{{ a }}\n\n{{ b }}\n{{ c }}\n{{ d }}" })
  local out = says(dir, { tokenizer = ("BPE, %s tokens, %d added"):format(n, #json.added_tokens),
    ["chat template"] = "32 bytes" })
  lu.assertStrContains(out, "{{ a }}\n  {{ b }}\n  {{ c }}\n") -- the first lines
  lu.assertNil(out:find("{{ d }}", 1, true))
  for _, t in ipairs(json.added_tokens) do
    if t.special then lu.assertStrContains(out, ("%d %s"):format(t.id, t.content)) end
  end
  write("tokenizer_config.json", { chat_template = { { name = "default", template = "{{ x }}" } } })
  lu.assertStrContains(info(dir), "7 bytes\n  {{ x }}")
  write("tokenizer.json", "{}")
  lu.assertStrContains(info(dir), "tokenizer.json: model is missing")
  write("tokenizer.json", "{")
  lu.assertStrContains(info(dir), "tokenizer      " .. dir .. "/tokenizer.json")
end

function T.test_a_gguf_file_and_its_tokenizer()
  local function gguf(values, tensors)
    assert(peri.gguf.save(dir .. "/x.gguf", values, tensors or {}))
    return dir .. "/x.gguf"
  end
  local path = gguf({ { key = "general.architecture", type = "text", value = "wavelet" },
    { key = "general.name", type = "text", value = "Mine" },
    { key = "tokenizer.ggml.model", type = "text", value = "gpt2" },
    { key = "tokenizer.ggml.pre", type = "text", value = "qwen2" },
    { key = "tokenizer.ggml.tokens", type = "text", value = { "a", "b", "<end>" } },
    { key = "tokenizer.ggml.eos_token_id", type = "u32", value = 2 },
    { key = "tokenizer.chat_template", type = "text", value = "{{ m }}" } }, { w = peri.zeros { 4 } })
  local out = says(path, { format = "GGUF 3, alignment 32", name = "Mine", architecture = "wavelet",
    tokenizer = "gpt2, pre-tokenizer qwen2, 3 tokens", special = "eos 2 <end>", ["chat template"] = "7 bytes",
    parameters = "4" })
  lu.assertStrContains(out, "cannot be loaded here: ")
  out = says(path .. " --all", {})
  lu.assertStrContains(out, "tokenizer.ggml.tokens")
  lu.assertStrContains(out, "3 of text")
  says(gguf { { key = "general.architecture", type = "text", value = "none" } },
    { architecture = "none", tokenizer = "none", parameters = "0" })
end

function T.test_a_llama2c_checkpoint()
  local header = string.pack("<i4i4i4i4i4i4i4", 4, 4, 1, 1, 1, 5, 2)
  local floats = 5 * 4 + 4 + 4 * 16 + 4 + 3 * 16 + 4 + 2 * 4
  local path = write("x.bin", header .. ("\0"):rep(4 * floats))
  says(path, { format = "llama2.c checkpoint", tokenizer = "none beside it", vocabulary = "5", tied = "yes",
    dtype = "f32" })
  write("tok5.bin", "")
  says(path, { tokenizer = dir .. "/tok5.bin" })
end

function T.test_what_cannot_be_read_is_a_message_and_status_1()
  for name, part in pairs {
    ["none.gguf"] = "there is no such file or folder",
    ["x.txt"] = "the name tells no format that is known here",
    ["x.gguf"] = "GGUF",
    ["x.safetensors"] = "x.safetensors",
    ["x.npy"] = "x.npy",
    ["x.npz"] = "x.npz",
    ["x-ubyte"] = "x-ubyte",
    ["x.bin"] = "4 bytes are no llama2.c checkpoint",
  } do
    if not name:find "none" then write(name, "text") end
    local out, status = info(dir .. "/" .. name)
    lu.assertEquals(status, 1, out)
    lu.assertStrContains(out, "perilune info: ")
    lu.assertStrContains(out, part)
    lu.assertNil(out:find "traceback", out)
  end
  local out, status = info(dir) -- a folder that is no model
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "config.json")
end

return T
