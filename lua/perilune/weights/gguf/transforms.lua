-- transforms.lua - what is done to a tensor on its way from a GGUF file to a Hugging Face checkpoint (read) and back
-- (write). Quantised rows stay as they are where only whole rows move; what blocks cannot express comes as f32.
--   q, k        rows of heads are rotated in pairs of neighbours in GGUF and of halves in Hugging Face
--   transposed  Conv1D of GPT-2 keeps (in, out)
--   plus_one    norms of Gemma without their 1
--   experts     (E, N, K) is E matrices: written together, see export.lua
--   k_b, v_b    parts of kv_b_proj by head, k_b transposed: read together as kv_b, written by export.lua
local dtypes = require "perilune.dtypes"
local peri = require "perilune"

local M = {}

local plain = dtypes.is_float

--- The tensor, or its values in f32 where it is quantised.
function M.as_float(t) return plain[t.dtype] and t or t:to "f32" end

-- Run fn on rows: those of quantised weights as bytes.
local function by_rows(t, fn)
  if plain[t.dtype] then return fn(t) end
  return fn(t:bitcast "u8"):contiguous():bitcast(t.dtype)
end

-- Heads whose channels are neighbours (0, 1), (2, 3), ... -> first halves, then second halves.
local function halves(t, heads)
  return by_rows(t, function(x)
    local rows, rest = x:size(1), x.ndim == 2 and x:size(2) or 1
    return x:reshape { heads, rows // heads // 2, 2, rest }:permute { 1, 3, 2, 4 }:reshape(x.shape)
  end)
end

-- The other way round.
local function neighbours(t, heads)
  local rows, rest = t:size(1), t.ndim == 2 and t:size(2) or 1
  return t:reshape { heads, 2, rows // heads // 2, rest }:permute { 1, 3, 2, 4 }:reshape(t.shape)
end

local function kv_heads(config) return config.num_key_value_heads or config.num_attention_heads end

M.q = { heads = function (c) return c.num_attention_heads end }
M.k = { heads = kv_heads }
for _, how in ipairs { M.q, M.k } do
  function how.read(t, c) return halves(t, how.heads(c)) end
  function how.write(t, c) return neighbours(t, how.heads(c)) end
  function how.problem(t, c)
    local heads = how.heads(c)
    if t.ndim > 2 or heads < 1 or t:size(1) % (2 * heads) ~= 0 then
      return ("%d rows are no %d heads of pairs"):format(t:size(1), heads)
    end
  end
end

M.transposed = {
  read = function (t) return t.ndim == 2 and M.as_float(t):transpose():contiguous() or t end,
  write = function (t) return t.ndim == 2 and t:transpose():contiguous() or t end,
}

M.plus_one = {
  read = function (t) return M.as_float(t):sub(1) end,
  write = function (t) return t:to("f32"):add(1) end,
}

M.experts = {
  read = function (t, _, expert)
    return by_rows(t, function(x) return x:narrow(1, expert + 1, 1):reshape { x:size(2), x:size(3) } end)
  end,
  problem = function (t) if t.ndim ~= 3 then return "experts need 3 dims" end end,
}

-- k_b (H, rank, nope), v_b (H, v, rank) -> (H (nope + v), rank)
M.kv_b = {
  read = function (k, c, _, v)
    k = M.as_float(k):transpose(2, 3)
    v = M.as_float(v):to(k.dtype)
    return peri.cat({ k, v }, 2):reshape { c.num_attention_heads * (k:size(2) + v:size(2)), k:size(3) }
  end,
  problem = function (k, c, v)
    if k.ndim ~= 3 or v.ndim ~= 3 or k:size(1) ~= c.num_attention_heads or k:size(1) ~= v:size(1)
      or k:size(2) ~= v:size(3) then return "attn_k_b and attn_v_b do not fit together" end
  end,
}

return M
