-- llama2c.lua - llama2.c checkpoints (karpathy/llama2.c, run.c and export.py, version 0) as model
-- sources. The file: seven i32 (dim, hidden_dim, n_layers, n_heads, n_kv_heads, vocab_size, which is
-- negative when the classifier is not the embedding, seq_len), then f32 tensors in a fixed order, each
-- kind for all layers. Queries and keys are rotated in pairs of neighbours; Hugging Face's are in
-- halves, so their rows are put in that order.
local peri = require "perilune"

local M = {}

local HEADER = 28
local MOST = 1 << 26 -- no field is larger; products of four stay within 64 bits

-- { field, least }: none may be smaller
local fields = { "dim", "hidden_dim", "n_layers", "n_heads", "n_kv_heads", "vocab_size", "seq_len" }

local function read_header(text)
  local c = {}
  for i, name in ipairs(fields) do c[name] = string.unpack("<i4", text, 4 * i - 3) end
  c.tied = c.vocab_size > 0
  c.vocab_size = math.abs(c.vocab_size)
  for i, name in ipairs(fields) do
    if c[name] < 1 or c[name] > MOST then
      return nil, ("byte %d: %s is %d, 1 to %d is expected"):format(4 * i - 4, name, c[name], MOST)
    end
  end
  if c.dim % c.n_heads ~= 0 or c.dim // c.n_heads % 2 ~= 0 or c.n_heads % c.n_kv_heads ~= 0 then
    return nil, ("byte 12: %d channels, %d heads and %d of keys do not divide evenly"):format(c.dim, c.n_heads,
      c.n_kv_heads)
  end
  return c
end

-- Name -> { offset, rows, columns, heads }, in the file's order, and its size.
local function layout(c)
  local kv = c.dim // c.n_heads * c.n_kv_heads
  local at, entries, names = HEADER, {}, {}
  local function add(name, rows, columns, heads)
    entries[name] = { offset = at, rows = rows, columns = columns, heads = heads }
    names[#names + 1] = name
    at = at + 4 * rows * (columns or 1)
  end
  local function each(name, rows, columns, heads)
    for i = 0, c.n_layers - 1 do add(("model.layers.%d.%s.weight"):format(i, name), rows, columns, heads) end
  end
  add("model.embed_tokens.weight", c.vocab_size, c.dim)
  each("input_layernorm", c.dim)
  each("self_attn.q_proj", c.dim, c.dim, c.n_heads)
  each("self_attn.k_proj", kv, c.dim, c.n_kv_heads)
  each("self_attn.v_proj", kv, c.dim)
  each("self_attn.o_proj", c.dim, c.dim)
  each("post_attention_layernorm", c.dim)
  each("mlp.gate_proj", c.hidden_dim, c.dim)
  each("mlp.down_proj", c.dim, c.hidden_dim)
  each("mlp.up_proj", c.hidden_dim, c.dim)
  add("model.norm.weight", c.dim)
  at = at + 4 * c.seq_len * (c.dim // c.n_heads) -- tables of cosines and sines, of old
  if not c.tied then add("lm_head.weight", c.vocab_size, c.dim) end
  return entries, names, at
end

local Source = {}
Source.__index = Source

--- A tensor under its Hugging Face name, f32.
--- @param name string
--- @return perilune.Tensor|nil
--- @return string? message
function Source:get(name)
  local e = self._entries[name]
  if not e then return nil, ("%s: there is no tensor %q"):format(self.path, name) end
  local file <close>, err = io.open(self.path, "rb")
  if not file then return nil, err end
  local bytes = 4 * e.rows * (e.columns or 1)
  file:seek("set", e.offset)
  local text = file:read(bytes)
  if not text or #text < bytes then return nil, ("%s: it ends within %s"):format(self.path, name) end
  local t = peri.from_bytes(text, "f32", { e.rows, e.columns })
  if not e.heads then return t end
  return t:reshape { e.heads, e.rows // e.heads // 2, 2, e.columns }:permute { 1, 3, 2, 4 }
    :reshape { e.rows, e.columns }
end

--- dtype and shape of a tensor.
--- @param name string
--- @return table  {name, dtype, shape, bytes}
function Source:info(name)
  local e = self._entries[name]
  return { name = name, dtype = "f32", shape = { e.rows, e.columns }, bytes = 4 * e.rows * (e.columns or 1) }
end

-- The vocabulary beside a checkpoint: tok512.bin has as many tokens as its name says.
local function vocabulary(path, size)
  local folder = path:match "^(.*/)" or ""
  for _, name in ipairs { ("tok%d.bin"):format(size), "tokenizer.bin" } do
    if peri.files.exists(folder .. name) == "file" then return folder .. name end
  end
end

--- Open a llama2.c checkpoint as a model source.
--- @param path string
--- @return table|nil source  format, path, config, generation_config, names, get, tokenizer_path
--- @return string? message
function M.open(path)
  local file <close>, err = io.open(path, "rb")
  if not file then return nil, err end
  local text = file:read(HEADER)
  if not text or #text < HEADER then
    return nil, ("%s: %d bytes are no llama2.c checkpoint"):format(path, text and #text or 0)
  end
  if string.unpack("<I4", text) == 0x616b3432 then
    return nil, path .. ": byte 0: a checkpoint of version 1 or 2, only version 0 is read"
  end
  local c, message = read_header(text)
  if not c then return nil, path .. ": " .. message end
  local size = file:seek "end"
  if c.n_layers > size // (4 * c.dim) then -- before tables are made of it
    return nil, ("%s: byte 8: %d layers do not fit into %d bytes"):format(path, c.n_layers, size)
  end
  local entries, names, bytes = layout(c)
  if bytes ~= size then
    return nil, ("%s: has %d bytes, its header asks for %d"):format(path, size, bytes)
  end
  return setmetatable({
    format = "llama2c", path = path, names = names, _entries = entries,
    tokenizer_path = vocabulary(path, c.vocab_size),
    generation_config = { bos_token_id = 1, eos_token_id = 2 },
    config = {
      model_type = "llama", architectures = { "LlamaForCausalLM" }, hidden_act = "silu",
      hidden_size = c.dim, intermediate_size = c.hidden_dim, num_hidden_layers = c.n_layers,
      num_attention_heads = c.n_heads, num_key_value_heads = c.n_kv_heads, vocab_size = c.vocab_size,
      max_position_embeddings = c.seq_len, rms_norm_eps = 1e-5, rope_theta = 10000.0,
      tie_word_embeddings = c.tied, bos_token_id = 1, eos_token_id = 2,
    },
  }, Source)
end

return M
