-- test_llama2c.lua - llama2.c checkpoints of chance: what a model says is what run.c says, written out here number by
-- number; a header that does not fit its file says where. They become GGUF files and Hugging Face folders.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local llama2c = require "perilune.weights.llama2c"
local convert = require "perilune.weights.convert"

local T, dir = {}, nil

scratch.each(T, function(path) dir = path end)

local function write(name, bytes)
  assert(peri.files.write(dir .. "/" .. name, bytes))
  return dir .. "/" .. name
end

local HEADER <const> = 28
local sizes = { dim = 16, hidden = 20, layers = 2, heads = 4, kv = 2, vocab = 11, seq = 6 }

-- A checkpoint, and its weights as lists of rows.
local function checkpoint(tied, change)
  peri.seed(5)
  local s, w, out = {}, {}, {}
  for k, v in pairs(sizes) do s[k] = change and change[k] or v end
  out[1] = string.pack("<i4i4i4i4i4i4i4", s.dim, s.hidden, s.layers, s.heads, s.kv, tied and s.vocab or -s.vocab, s.seq)
  local function put(name, rows, columns, around)
    local t = peri.randn { rows, columns }:mul(0.3):add(around or 0)
    out[#out + 1] = t:bytes()
    w[name] = t:tolist()
  end
  local function each(name, rows, columns, around)
    for l = 1, s.layers do put(name .. l, rows, columns, around) end
  end
  local kv = s.dim // s.heads * s.kv
  put("embed", s.vocab, s.dim)
  each("att_norm", 1, s.dim, 1)
  each("q", s.dim, s.dim)
  each("k", kv, s.dim)
  each("v", kv, s.dim)
  each("o", s.dim, s.dim)
  each("ffn_norm", 1, s.dim, 1)
  each("w1", s.hidden, s.dim)
  each("w2", s.dim, s.hidden)
  each("w3", s.hidden, s.dim)
  put("norm", 1, s.dim, 1)
  put("tables", s.seq, s.dim // s.heads)
  if tied then w.out = w.embed else put("out", s.vocab, s.dim) end
  return table.concat(out), w, s
end

-- ---- run.c ----

local function times(matrix, x)
  local y = {}
  for i, row in ipairs(matrix) do
    y[i] = 0
    for j, v in ipairs(row) do y[i] = y[i] + v * x[j] end
  end
  return y
end

local function rmsnorm(x, weight)
  local ss, y = 0, {}
  for _, v in ipairs(x) do ss = ss + v * v end
  local scale = 1 / math.sqrt(ss / #x + 1e-5)
  for i, v in ipairs(x) do y[i] = weight[i] * v * scale end
  return y
end

local function add(x, y)
  for i, v in ipairs(y) do x[i] = x[i] + v end
end

-- Logits at each position of ids.
local function run_c(w, s, ids)
  local head, out, keys, values = s.dim // s.heads, {}, {}, {}
  for pos, id in ipairs(ids) do
    local x = table.move(w.embed[id + 1], 1, s.dim, 1, {})
    for l = 1, s.layers do
      local xb = rmsnorm(x, w["att_norm" .. l][1])
      local q, k = times(w["q" .. l], xb), times(w["k" .. l], xb)
      for _, vector in ipairs { q, k } do
        for i = 1, #vector, 2 do -- pairs of neighbours
          local angle = (pos - 1) / 10000 ^ ((i - 1) % head / head)
          local c, n, a, b = math.cos(angle), math.sin(angle), vector[i], vector[i + 1]
          vector[i], vector[i + 1] = a * c - b * n, a * n + b * c
        end
      end
      keys[l], values[l] = keys[l] or {}, values[l] or {}
      keys[l][pos], values[l][pos] = k, times(w["v" .. l], xb)
      local mixed = {}
      for h = 0, s.heads - 1 do
        local at, kv_at, scores, sum = h * head, h // (s.heads // s.kv) * head, {}, 0
        for p = 1, pos do
          local score = 0
          for i = 1, head do score = score + q[at + i] * keys[l][p][kv_at + i] end
          scores[p] = math.exp(score / math.sqrt(head))
          sum = sum + scores[p]
        end
        for i = 1, head do
          mixed[at + i] = 0
          for p = 1, pos do mixed[at + i] = mixed[at + i] + scores[p] / sum * values[l][p][kv_at + i] end
        end
      end
      add(x, times(w["o" .. l], mixed))
      local xf = rmsnorm(x, w["ffn_norm" .. l][1])
      local a, b = times(w["w1" .. l], xf), times(w["w3" .. l], xf)
      for i, v in ipairs(a) do a[i] = v / (1 + math.exp(-v)) * b[i] end
      add(x, times(w["w2" .. l], a))
    end
    out[pos] = times(w.out, rmsnorm(x, w.norm[1]))
  end
  return out
end

local function logits(model, ids)
  return peri.no_grad(function() return model:logits(model:forward(peri.tensor({ ids }, "i64"))):select(1, 1) end)
end

local ids = { 1, 7, 10, 0, 7, 3 }

-- f32 against f64 over sums of at most 20 terms of size one.
local function assert_near(got, want, what)
  lu.assertTrue((got - peri.tensor(want)):abs():max():item() < 2e-5, what)
end

function T.test_a_checkpoint_says_what_run_c_says()
  for _, tied in ipairs { true, false } do
    for _, heads in ipairs { 1, 2, 4 } do
      local bytes, w, s = checkpoint(tied, { kv = heads })
      local path = write("a.bin", bytes)
      local source = assert(llama2c.open(path))
      lu.assertEquals({ source.config.tie_word_embeddings, source.config.num_key_value_heads, #source.names },
        { tied, heads, 9 * s.layers + (tied and 2 or 3) })
      lu.assertNil(source.tokenizer_path)
      assert_near(logits(assert(peri.models.load(path)), ids), run_c(w, s, ids), ("tied %s, %d heads"):format(tied, heads))
    end
  end
end

function T.test_a_checkpoint_becomes_a_folder_or_a_gguf_file()
  local bytes, w, s = checkpoint(false)
  local path, want = write("a.bin", bytes), run_c(w, s, ids)
  for _, to in ipairs { "/m.gguf", "/folder" } do
    local report = assert(convert.run { from = path, to = dir .. to })
    lu.assertEquals(report.tensors, 9 * s.layers + 3)
    lu.assertStrContains(table.concat(report.notes, "\n"), "without a tokenizer: the source has none")
    assert_near(logits(assert(peri.models.load(dir .. to)), ids), want, to)
  end
  write("tokenizer.bin", "of another form")
  local report, message = convert.run { from = path, to = dir .. "/b" }
  lu.assertNil(report)
  lu.assertStrContains(message, "a llama2.c tokenizer has no form as tokenizer.json here (--no-tokenizer converts without)")
  report = assert(convert.run { from = path, to = dir .. "/b", allow_loss = true })
  lu.assertStrContains(report.notes[1], "without a tokenizer: a llama2.c tokenizer has no form")
  assert(convert.run { from = path, to = dir .. "/c", no_tokenizer = true })
end

function T.test_the_vocabulary_beside_it_is_found_by_its_size()
  local path = write("a.bin", (checkpoint(true)))
  write("tokenizer.bin", "x")
  lu.assertEquals(assert(llama2c.open(path)).tokenizer_path, dir .. "/tokenizer.bin")
  write("tok11.bin", "x")
  lu.assertEquals(assert(llama2c.open(path)).tokenizer_path, dir .. "/tok11.bin")
end

function T.test_a_header_that_does_not_fit_says_where()
  local whole = checkpoint(true)
  local function refuses(bytes, part)
    local source, message = llama2c.open(write("b.bin", bytes))
    lu.assertNil(source)
    lu.assertStrContains(message, part)
  end
  local function header(...) return string.pack("<i4i4i4i4i4i4i4", ...) .. whole:sub(HEADER + 1) end
  refuses("", "0 bytes are no llama2.c checkpoint")
  refuses(whole:sub(1, HEADER - 1), "27 bytes are no llama2.c checkpoint")
  refuses(string.pack("<I4", 0x616b3432) .. whole:sub(5), "byte 0: a checkpoint of version 1 or 2")
  refuses(whole .. "x", ("has %d bytes, its header asks for %d"):format(#whole + 1, #whole))
  refuses(whole:sub(1, -2), ("has %d bytes, its header asks for %d"):format(#whole - 1, #whole))
  for i, name in ipairs { "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len" } do
    for _, bad in ipairs { 0, (1 << 26) + 1 } do
      local fields = { 16, 20, 2, 4, 2, 11, 6 }
      fields[i] = bad
      refuses(header(table.unpack(fields)), ("byte %d: %s is %d, 1 to %d is expected"):format(4 * i - 4, name, bad, 1 << 26))
    end
  end
  refuses(header(16, 20, 2, 5, 5, 11, 6), "byte 12: 16 channels, 5 heads and 5 of keys do not divide evenly")
  refuses(header(12, 20, 2, 4, 4, 11, 6), "byte 12: 12 channels, 4 heads and 4 of keys do not divide evenly")
  refuses(header(16, 20, 2, 4, 3, 11, 6), "byte 12: 16 channels, 4 heads and 3 of keys do not divide evenly")
  refuses(header(16, 20, 1 << 20, 4, 2, 11, 6), "byte 8: 1048576 layers do not fit")
  local source, message = llama2c.open(dir .. "/none.bin")
  lu.assertNil(source)
  lu.assertStrContains(message, "none.bin")
end

function T.test_a_file_that_shrinks_under_its_source_is_a_message()
  local bytes = checkpoint(true)
  local path = write("a.bin", bytes)
  local source = assert(llama2c.open(path))
  local t, message = source:get "model.layers.7.mlp.up_proj.weight"
  lu.assertNil(t)
  lu.assertStrContains(message, 'there is no tensor "model.layers.7.mlp.up_proj.weight"')
  write("a.bin", bytes:sub(1, HEADER + 100))
  t, message = source:get "model.norm.weight"
  lu.assertNil(t)
  lu.assertStrContains(message, "it ends within model.norm.weight")
  os.remove(path)
  lu.assertNil((source:get "model.norm.weight"))
end

return T
