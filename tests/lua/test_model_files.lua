-- Model files as sources: Hugging Face folders and shards, GGUF and llama2.c files; arrays of NumPy and
-- IDX; gzipped lines. tests/data/files was written by numpy 2.4, gzip and gguf-py 0.19.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local shared = require "shared"
local hf = require "perilune.weights.hf"
local gguf = require "perilune.weights.gguf.source"
local llama2c = require "perilune.weights.llama2c"

local tests, dir = {}, nil
local data, tiny = "tests/data/files/", "tests/data/hf_tiny/"

scratch.each(tests, function (path) dir = path end)

local function fails(part, value, message)
  lu.assertNil(value)
  lu.assertStrContains(message, part)
end

local function write(name, text) assert(peri.files.write(dir .. "/" .. name, text)) end
local function json(name, value) write(name, peri.json.encode(value)) end

-- ---- arrays --------------------------------------------------------------------------------------

function tests.test_numpy_files_are_read()
  lu.assertAlmostEquals(peri.npy.load(data .. "f4.npy"):tolist()[2][3], 1.3040000200271606, 1e-12)
  lu.assertEquals(peri.npy.load(data .. "fortran.npy"):tolist()[2], { { 12, 13, 14, 15 }, { 16, 17, 18, 19 },
    { 20, 21, 22, 23 } })
  local z = assert(peri.npz.load(data .. "stored.npz"))
  lu.assertEquals(z.a:tolist(), { { 0, 1, 2 }, { 3, 4, 5 } })
  lu.assertEquals(z.F:tolist(), { { 0, 1, 2 }, { 3, 4, 5 } })
  lu.assertEquals(z.b.dtype, "i64")
  z = assert(peri.npz.load(data .. "deflated.npz"))
  lu.assertEquals(z.a.shape, { 100, 100 })
  lu.assertEquals(z.b:tolist(), { 1, 2, 3 })
end

function tests.test_numpy_files_are_written_as_numpy_writes_them()
  local t = assert(peri.npy.load(data .. "f4.npy"))
  assert(peri.npy.save(dir .. "/a.npy", t))
  lu.assertEquals(peri.files.read(dir .. "/a.npy"), peri.files.read(data .. "f4.npy"))
  assert(peri.npy.save(dir .. "/t.npy", t:transpose()))
  lu.assertEquals(peri.npy.load(dir .. "/t.npy"):tolist(), t:transpose():tolist())
  local all = { t = t:transpose(), i = peri.tensor { 1, 2 }, b = peri.tensor { true }, s = peri.tensor(2.5) }
  assert(peri.npz.save(dir .. "/a.npz", all))
  local back = assert(peri.npz.load(dir .. "/a.npz"))
  for name, x in pairs(all) do
    lu.assertEquals(back[name].dtype, x.dtype)
    lu.assertEquals(back[name]:tolist(), x:tolist())
  end
  lu.assertErrorMsgContains("NumPy has no dtype for bf16", peri.npy.save, dir .. "/x", t:to "bf16")
end

-- The bytes of a .npy file.
local function npy_bytes(descr, shape, fortran, elements)
  local header = ("{'descr': '%s', 'fortran_order': %s, 'shape': %s, }"):format(descr, fortran and "True" or "False", shape)
  return "\x93NUMPY\1\0" .. string.pack("<s2", header .. (" "):rep(63 - (10 + #header) % 64) .. "\n") .. elements
end

-- Kinds of numbers as NumPy writes them: Lua's format, our dtype, values.
local numpy_kinds = {
  i1 = { "i1", "i32", { -128, -1, 0, 1, 2, 127 } }, i2 = { "i2", "i32", { -32768, -1, 0, 1, 2, 32767 } },
  i4 = { "i4", "i32", { -1 << 31, -1, 0, 1, 2, (1 << 31) - 1 } },
  i8 = { "i8", "i64", { math.mininteger, -1, 0, 1, 2, math.maxinteger } },
  u1 = { "I1", "u8", { 0, 1, 2, 127, 128, 255 } }, u2 = { "I2", "i32", { 0, 1, 2, 32767, 32768, 65535 } },
  u4 = { "I4", "i64", { 0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 32) - 1 } },
  f4 = { "f", "f32", { -1.5, 0, 0.25, 1e10, 3, 5 } }, f8 = { "d", "f64", { -1.5, 0, 0.1, 1e300, 3, 5 } },
}

function tests.test_every_number_of_numpy_is_read_in_either_byte_order_and_layout()
  for kind, entry in pairs(numpy_kinds) do
    local orders = kind:sub(2) == "1" and { "<", ">", "|", "=" } or { "<", ">", "=" }
    for _, order in ipairs(orders) do
      local parts = {}
      for i, v in ipairs(entry[3]) do parts[i] = string.pack((order == ">" and ">" or "<") .. entry[1], v) end
      local v = entry[3]
      for _, case in ipairs { { "(6,)", false, v }, { "(2, 3)", false, { { v[1], v[2], v[3] }, { v[4], v[5], v[6] } } },
                              { "(2, 3)", true, { { v[1], v[3], v[5] }, { v[2], v[4], v[6] } } } } do
        write("n.npy", npy_bytes(order .. kind, case[1], case[2], table.concat(parts)))
        local t = assert(peri.npy.load(dir .. "/n.npy"))
        lu.assertEquals(t.dtype, entry[2], order .. kind)
        lu.assertEquals(t:contiguous():tolist(), case[3], order .. kind)
      end
      write("n.npy", npy_bytes(order .. kind, "(0, 3)", false, ""))
      lu.assertEquals(assert(peri.npy.load(dir .. "/n.npy")).shape, { 0, 3 })
    end
  end
  write("n.npy", npy_bytes(">f2", "(2,)", false, "\x3c\0\xc0\0"))
  lu.assertEquals(assert(peri.npy.load(dir .. "/n.npy")):tolist(), { 1, -2 })
  for _, order in ipairs { "", "=" } do -- this machine's
    write("n.npy", npy_bytes(order .. "f8", "(1,)", false, string.pack("=d", 1.5)))
    lu.assertEquals(assert(peri.npy.load(dir .. "/n.npy")):tolist(), { 1.5 })
  end
  write("n.npy", npy_bytes(">f2", "(2,)", false, "\x3c\0\xc0\0"))
  lu.assertEquals(assert(peri.npy.load(dir .. "/n.npy")):tolist(), { 1, -2 })
end

function tests.test_what_numpy_has_and_we_have_not_is_refused_by_name()
  for descr, why in pairs { ["<u8"] = "unsigned integers of 64 bits", ["<c8"] = "complex", ["<U3"] = "texts", ["|S4"] = "texts",
      ["|O"] = "Python objects", ["<M8[ns]"] = "dates", ["<m8[s]"] = "spans", ["|V4"] = "raw bytes", ["<f16"] = "more than 64 bits",
      ["|i4"] = "no code of a number", ["<q3"] = "no code of a number", ["\0i4"] = "not supported",
      ["bfloat16"] = "no code of a number", ["float8"] = "no code of a number" } do
    write("n.npy", npy_bytes(descr, "(1,)", false, ("\0"):rep(64)))
    fails("dtype '", peri.npy.load(dir .. "/n.npy"))
    fails(why, peri.npy.load(dir .. "/n.npy"))
  end
end

-- A zip archive of stored files.
local function zip(files)
  local function crc(text)
    local c = 0xFFFFFFFF
    for i = 1, #text do
      c = c ~ text:byte(i)
      for _ = 1, 8 do c = c >> 1 ~ (0xEDB88320 & -(c & 1)) end
    end
    return c ~ 0xFFFFFFFF
  end
  local body, directory, at = {}, {}, 0
  for _, file in ipairs(files) do
    local name, text = file[1], file[2]
    local common = string.pack("<I2I2I2I2I2I4I4I4I2I2", 20, 0, 0, 0, 0, crc(text), #text, #text, #name, 0)
    body[#body + 1] = "PK\3\4" .. common .. name .. text
    directory[#directory + 1] = "PK\1\2" .. string.pack("<I2", 20) .. common .. string.pack("<I2I2I2I4I4", 0, 0, 0, 0, at) .. name
    at = at + #body[#body]
  end
  local list = table.concat(directory)
  return table.concat(body) .. list .. "PK\5\6" .. string.pack("<I2I2I2I2I4I4I2", 0, 0, #files, #files, #list, at, 0)
end

function tests.test_one_odd_member_does_not_spoil_an_archive()
  local good = npy_bytes(">i2", "(2,)", false, "\0\1\0\2")
  write("z.npz", zip { { "a.npy", good }, { "names.npy", npy_bytes("<U2", "(1,)", false, ("a\0\0\0"):rep(2)) },
    { "readme.txt", "what this is about" }, { "o.npy", npy_bytes("|O", "(1,)", false, "junk") }, { "z.npy", good } })
  local z, problems = assert(peri.npz.load(dir .. "/z.npz"))
  lu.assertEquals({ z.a:tolist(), z.z:tolist() }, { { 1, 2 }, { 1, 2 } })
  local seen = {}
  for name in pairs(z) do seen[#seen + 1] = name end
  table.sort(seen)
  lu.assertEquals(seen, { "a", "z" })
  for name, part in pairs { names = "dtype '<U2' is not supported (texts)", o = "Python objects", ["readme.txt"] = "readme.txt" } do
    lu.assertStrContains(problems[name], part)
    local ok, message = pcall(function () return z[name] end)
    lu.assertFalse(ok)
    lu.assertStrContains(message, part)
    lu.assertStrContains(message, "test_model_files.lua")
  end
  lu.assertNil(z.nothing)
  -- what is damaged is not odd
  write("z.npz", zip { { "a.npy", good }, { "b.npy", "no array at all" } })
  fails("no .npy file begins like this", peri.npz.load(dir .. "/z.npz"))
  lu.assertNil(select(2, peri.npz.load(data .. "stored.npz")))
end

function tests.test_damaged_arrays_are_refused()
  local text = peri.files.read(data .. "deflated.npz")
  write("z", text:sub(1, 100) .. "\255" .. text:sub(102))
  fails("z: byte", peri.npz.load(dir .. "/z"))
  text = peri.files.read(data .. "stored.npz")
  local at = text:find("NUMPY", 1, true) + 130
  write("z", text:sub(1, at - 1) .. "!" .. text:sub(at + 1))
  fails("the checksum does not match", peri.npz.load(dir .. "/z"))
  local function npy(header) write("n", "\x93NUMPY\1\0" .. string.pack("<s2", header) .. ("x"):rep(64)) end
  npy "{'descr': '<f4', 'fortran_order': False, 'shape': (4294967296, 4294967296), }"
  fails("overflows 64 bits", peri.npy.load(dir .. "/n"))
  npy "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000,), }"
  fails("4000000 bytes of elements are more than the file can hold", peri.npy.load(dir .. "/n"))
  npy "{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
  fails("dtype '|O' is not supported", peri.npy.load(dir .. "/n"))
  npy "{'descr': '<f4', 'shape': (1,), }"
  fails("lacks descr, fortran_order or shape", peri.npy.load(dir .. "/n"))
  fails("no IDX file begins like this", peri.idx.load(data .. "f4.npy"))
end

function tests.test_idx_and_gzipped_lines()
  for _, name in ipairs { "x.idx", "x.idx.gz" } do
    lu.assertEquals(peri.idx.load(data .. name):tolist(), { { 0, 1, 2 }, { 3, 4, 5 } })
  end
  local rows = {}
  for line, number in assert(peri.files.lines(data .. "rows.jsonl.gz")) do rows[number] = peri.json.decode(line).i end
  lu.assertEquals(rows, { 0, 1, 2 }) -- two gzip members, \r\n, no newline at the end
  write("plain", "a\n\nb\n")
  rows = {}
  for line in peri.files.lines(dir .. "/plain") do rows[#rows + 1] = line end
  lu.assertEquals(rows, { "a", "", "b" })
  write("long", ("x"):rep(200000) .. "\n")
  lu.assertErrorMsgContains("line 1 has more than 1000 bytes", function()
    for _ in peri.files.lines(dir .. "/long", 1000) do error "read" end
  end)
  fails("No such file", peri.files.lines(dir .. "/none"))
  write("cut.gz", peri.files.read(data .. "rows.jsonl.gz"):sub(1, 20))
  lu.assertErrorMsgContains("ends too early", function()
    for _ in peri.files.lines(dir .. "/cut.gz") do lu.assertTrue(true) end
  end)
end

-- ---- Hugging Face folders ------------------------------------------------------------------------

function tests.test_folders_are_sources()
  local source = assert(hf.open(tiny .. "llama"))
  lu.assertEquals(source.format, "hf")
  lu.assertEquals(#source.names, 30)
  lu.assertEquals(source.config.hidden_size, 32)
  local want = peri.safetensors.load(tiny .. "llama/model.safetensors")
  for _, name in ipairs(source.names) do
    lu.assertEquals(source:get(name):bytes(), want[name]:bytes())
    lu.assertEquals(source:info(name).shape, want[name].shape)
  end
  fails("there is no tensor \"x\"", source:get "x")
  fails("No such file", hf.open(dir))
  json("config.json", { model_type = "llama" })
  fails("there is neither model.safetensors nor", hf.open(dir))
  write("pytorch_model.bin", "x")
  fails("pickled weights are not read", hf.open(dir))
end

function tests.test_shards_are_written_and_read()
  local want = peri.safetensors.load(tiny .. "qwen2/model.safetensors")
  local config = hf.config(tiny .. "qwen2")
  assert(hf.save(dir, config, want, { shard_bytes = 40000, generation_config = { eos_token_id = 2 } }))
  local index = peri.json.decode(peri.files.read(dir .. "/model.safetensors.index.json"))
  local files, bytes = {}, 0
  for name, file in pairs(index.weight_map) do
    files[file] = true
    bytes = bytes + #want[name]:bytes()
  end
  lu.assertEquals(index.metadata.total_size, bytes)
  lu.assertTrue(files["model-00001-of-00003.safetensors"] or files["model-00001-of-00004.safetensors"])
  lu.assertFalse(peri.files.exists(dir .. "/model.safetensors"))
  local source = assert(hf.open(dir))
  lu.assertEquals(source.generation_config.eos_token_id, 2)
  local n = 0
  for name, t in pairs(want) do
    n = n + 1
    lu.assertEquals(source:get(name):bytes(), t:bytes())
  end
  lu.assertEquals(#source.names, n)
  assert(hf.save(dir, config, want)) -- one file: what was there before would be read first
  lu.assertEquals(peri.files.list(dir), { "config.json", "generation_config.json", "model.safetensors" })
  lu.assertErrorMsgContains("unknown option", hf.save, dir, config, want, { shards = 1 })
end

function tests.test_indexes_are_checked()
  json("config.json", { model_type = "llama" })
  assert(peri.safetensors.save(dir .. "/a.safetensors", { x = peri.tensor { 1.0 } }))
  local function index(map, size)
    json("model.safetensors.index.json", { metadata = { total_size = size }, weight_map = map })
  end
  for _, name in ipairs { "../a.safetensors", "/etc/passwd", "a/../a.safetensors", ".a.safetensors", "a.bin" } do
    index { x = name }
    fails("no name of a safetensors file", hf.open(dir))
  end
  index { x = "a.safetensors", y = "a.safetensors" }
  fails("a.safetensors has no tensor \"y\"", hf.open(dir))
  index { x = "b.safetensors" }
  fails("No such file", hf.open(dir))
  index({ x = "a.safetensors" }, 100)
  fails("total_size is 100 bytes, the tensors of weight_map have 4", hf.open(dir))
  index({ x = "a.safetensors" }, 4)
  lu.assertEquals(hf.open(dir):get("x"):tolist(), { 1 })
end

function tests.test_loading_takes_little_more_than_what_is_kept()
  local made = {}
  for i = 1, 8 do made[("t%d"):format(i)] = peri.zeros { 512, 512 } end
  local kept = 8 * 4 * 512 * 512
  assert(hf.save(dir, { model_type = "none" }, made, { shard_bytes = 3000000 }))
  made = nil -- luacheck: ignore 311
  collectgarbage()
  collectgarbage()
  local before = peri.memory().live
  peri.reset_peak()
  local source = assert(hf.open(dir))
  local all = {}
  for _, name in ipairs(source.names) do
    local scope <close> = peri.scope()
    all[name] = scope:keep(source:get(name):clone())
  end
  lu.assertTrue(peri.memory().peak - before <= 1.1 * kept)
  lu.assertEquals(all.t3:numel(), 512 * 512)
end

-- ---- GGUF ----------------------------------------------------------------------------------------

function tests.test_gguf_of_another_writer_is_read()
  for _, map in ipairs { false, true } do
    local f = assert(peri.gguf.open(data .. "python.gguf", { map = map }))
    lu.assertEquals(f:get "general.name", "of gguf-py")
    lu.assertEquals({ f:get "a.u32" }, { 7, "u32" })
    lu.assertEquals({ f:get "a.texts" }, { { "x", "", "yz" }, "text", 3 })
    lu.assertEquals(f:get "a.ints", { 1, -2, 3 })
    lu.assertEquals(f:get "a.f64", 0.5)
    lu.assertEquals(f:get "a.bool", true)
    lu.assertNil(f:get "none")
    local x = f:tensor "f32"
    lu.assertEquals(x.shape, { 2, 32 })
    lu.assertEquals(x:at(2, 1), 1.5)
    lu.assertEquals(f:tensor("f16"):to("f32"):tolist(), x:tolist())
    -- as gguf-py dequantises
    for name, want in pairs { Q8_0 = { 1.481475830078125, 1.60845947265625 }, Q4_1 = { 1.5, 1.5, 1.75830078125 },
                              Q4_0 = { 1.34375, 1.34375, 2.015625 } } do
      local t = f:tensor(name)
      lu.assertEquals(t.dtype, name:lower())
      local row = t:to("f32"):at(2):tolist()
      for i, v in ipairs(want) do lu.assertEquals(row[i], v) end
    end
    fails("there is no tensor 'x'", f:tensor "x")
    f:close()
    lu.assertEquals(x:at(2, 1), 1.5)
    lu.assertErrorMsgContains("it is closed", f.get, f, "a.u32")
  end
end

function tests.test_gguf_is_saved()
  local t = { w = peri.tensor { { 1.0, 2 }, { 3, 4 } }:transpose(),
    q = peri.arange(0, 64):to("f32"):reshape { 2, 32 }:to "q8_0" }
  assert(peri.gguf.save(dir .. "/a.gguf", { ["general.architecture"] = "none", ["a.list"] = { 1, -2 },
    ["a.texts"] = { "x" }, ["a.num"] = 0.25, ["a.yes"] = true, ["a.big"] = 1 << 40 }, t))
  local f = assert(peri.gguf.open(dir .. "/a.gguf"))
  lu.assertEquals(f:keys()[1].key, "general.architecture")
  lu.assertEquals(f:get "a.list", { 1, -2 })
  lu.assertEquals({ f:get "a.big" }, { 1 << 40, "i64" })
  lu.assertEquals(f:get "a.num", 0.25)
  lu.assertEquals(f:tensor("w"):tolist(), { { 1, 3 }, { 2, 4 } })
  lu.assertEquals(f:tensor("q"):bytes(), t.q:bytes())
  lu.assertErrorMsgContains("bool has no type in GGUF", peri.gguf.save, dir .. "/b.gguf", {},
    { b = peri.tensor { true } })
  fails("No such file", peri.gguf.save(dir .. "/none/a.gguf", {}, {}))
end

function tests.test_gguf_sources_refuse_what_they_do_not_know()
  local x = peri.zeros { 2, 2 }
  local function save(values, tensors) assert(peri.gguf.save(dir .. "/a.gguf", values, tensors)) end
  save({ ["general.architecture"] = "rwkv" }, {})
  fails("architecture \"rwkv\" is not known", gguf.open(dir .. "/a.gguf"))
  save({}, {})
  fails("general.architecture is missing", gguf.open(dir .. "/a.gguf"))
  save({ ["general.architecture"] = "llama" }, {})
  fails("the file has no number for num_hidden_layers", gguf.open(dir .. "/a.gguf"))
  local values = { ["general.architecture"] = "llama", ["llama.block_count"] = 1, ["llama.embedding_length"] = 2,
    ["llama.feed_forward_length"] = 2, ["llama.attention.head_count"] = 3, ["llama.context_length"] = 8,
    ["llama.attention.layer_norm_rms_epsilon"] = 1e-5 }
  save(values, { strange = x })
  fails("tensor \"strange\" is not known in architecture llama", gguf.open(dir .. "/a.gguf"))
  save(values, { ["blk.0.attn_q.weight"] = x })
  local source = assert(gguf.open(dir .. "/a.gguf"))
  lu.assertEquals(source.config.rms_norm_eps, 1e-5)
  fails("2 rows are no 3 heads of pairs", source:get "model.layers.0.self_attn.q_proj.weight")
end

-- Llama's layout, quantised: the rows of quantised queries are put in Hugging Face's order as bytes.
function tests.test_smollm2_reads_as_a_llama()
  local source = assert(gguf.open(shared.need "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
  local c = source.config
  lu.assertEquals({ c.model_type, c.num_hidden_layers, c.hidden_size, c.num_key_value_heads, c.head_dim },
    { "llama", 30, 576, 3, 64 })
  lu.assertEquals({ c.rope_theta, c.rms_norm_eps, c.tie_word_embeddings }, { 100000.0, 1e-05, true })
  lu.assertEquals(source.generation_config.eos_token_id, 2)
  local q = source:get "model.layers.3.self_attn.q_proj.weight"
  lu.assertEquals(q.dtype, "q4_1")
  local raw, got = source.file:tensor("blk.3.attn_q.weight"):to "f32", q:to "f32"
  lu.assertEquals(got:at(2):tolist(), raw:at(3):tolist()) -- channel 1 of a head stood at 2
  lu.assertEquals(got:at(33):tolist(), raw:at(2):tolist()) -- the second half's first at 1
  lu.assertEquals(got:at(65):tolist(), raw:at(65):tolist()) -- the next head
end

-- ---- llama2.c ------------------------------------------------------------------------------------

-- llama2.c's own greedy text (show c of the format): the first tokens, as its vocabulary numbers them.
function tests.test_llama2c_checkpoints_are_sources()
  local path = shared.need "data/stories260k/stories260K.bin"
  local source = assert(llama2c.open(path))
  lu.assertEquals({ source.config.hidden_size, source.config.num_hidden_layers, source.config.num_key_value_heads,
    source.config.tie_word_embeddings }, { 64, 5, 4, true })
  lu.assertStrContains(source.tokenizer_path, "tok512.bin")
  lu.assertEquals(#source.names, 5 * 9 + 2)
  local tok = assert(require("perilune.text.tokenizer").load(source.tokenizer_path))
  local model = assert(peri.models.load(path))
  local out = model:generate(peri.tensor { { 1 } }, { max_new_tokens = 40, temperature = 0 })
  lu.assertStrContains(tok:decode(out.tokens:at(1):tolist()),
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park.")
  local text = peri.files.read(path)
  write("a.bin", text .. "x")
  fails("its header asks for", llama2c.open(dir .. "/a.bin"))
  write("a.bin", string.pack("<i4i4i4", 64, 172, 1 << 25) .. text:sub(13))
  fails("layers do not fit", llama2c.open(dir .. "/a.bin"))
  write("a.bin", string.pack("<i4", -1) .. text:sub(5))
  fails("byte 0: dim is -1", llama2c.open(dir .. "/a.bin"))
  write("a.bin", "short")
  fails("5 bytes are no llama2.c checkpoint", llama2c.open(dir .. "/a.bin"))
end

-- ---- files that change under a model -------------------------------------------------------------

function tests.test_without_a_map_a_file_may_be_truncated_under_its_model()
  local folder, file = dir .. "/llama", dir .. "/llama.gguf"
  assert(peri.files.make_folder(folder))
  for _, name in ipairs(assert(peri.files.list(tiny .. "llama"))) do
    assert(peri.files.write(folder .. "/" .. name, assert(peri.files.read(tiny .. "llama/" .. name))))
  end
  assert(require "perilune.weights.convert".run { from = folder, to = file, type = "f32" })
  local ids = peri.tensor({ { 1, 2, 3 } }, "i64")
  for path, weights in pairs { [folder] = folder .. "/model.safetensors", [file] = file } do
    for _, dtype in ipairs { "file", "f32" } do
      local model = assert(peri.models.load(path, { dtype = dtype, map = false }))
      local want, text = model:logits(model:forward(ids)):tolist(), assert(peri.files.read(weights))
      assert(io.open(weights, "wb")):close() -- cut, not replaced: a map would lose its pages
      lu.assertEquals(model:logits(model:forward(ids)):tolist(), want)
      assert(peri.files.write(weights, text))
    end
  end
end

function tests.test_map_is_a_boolean_and_reaches_every_loader()
  for _, load in ipairs { peri.models.load, peri.models.open, peri.lm.load } do
    lu.assertErrorMsgContains("map", load, tiny .. "llama", { map = 1 })
    lu.assertErrorMsgContains('did you mean "map"', load, tiny .. "llama", { mpa = true })
  end
end

return tests
