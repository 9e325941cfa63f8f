-- Block-quantised weights against the gguf package (tests/data/quant_blocks.json), and as operands of
-- linear and embedding, packed and not.
local lu = require "luaunit"
local peri = require "perilune"

local v = assert(peri.json.decode(assert(peri.files.read "tests/data/quant_blocks.json")))

local TYPES = { "q8_0", "q4_0", "q4_1", "q5_0", "q5_1", "q4_K", "q5_K", "q6_K" }

local function blocks(hex, dtype, rows)
  local bytes = hex:gsub("..", function(h) return string.char(tonumber(h, 16)) end)
  return peri.from_bytes(bytes, "u8", { rows, #bytes // rows }):bitcast(dtype)
end

local function hex(t)
  return (t:bitcast("u8"):bytes():gsub(".", function(c) return ("%02x"):format(c:byte()) end))
end

TestQuant = {}

function TestQuant.test_numbers_become_the_blocks_that_gguf_makes()
  for dtype, rows in pairs(v.quantise) do
    lu.assertEquals(hex(peri.tensor(v.x, "f32"):to(dtype)), table.concat(rows), dtype)
  end
end

function TestQuant.test_blocks_become_the_numbers_that_gguf_makes()
  for dtype, case in pairs(v.dequantise) do
    lu.assertEquals(blocks(case.hex, dtype, 1):to("f32"):tolist()[1], case.values, dtype)
  end
end

function TestQuant.test_k_types_lose_less_than_types_of_their_size()
  local x = peri.tensor(v.x, "f32")
  local function lost(dtype) return x:to(dtype):to("f32"):sub(x):square():mean():sqrt():item() end
  lu.assertTrue(lost "q4_K" < 0.95 * lost "q4_0")
  lu.assertTrue(lost "q5_K" < 0.95 * lost "q5_0")
  lu.assertTrue(lost "q6_K" < 0.8 * lost "q5_K")
  lu.assertTrue(lost "q8_0" < lost "q6_K")
end

function TestQuant.test_packed_weights_read_back_and_multiply()
  peri.seed(3)
  local w, x = peri.randn { 50, 512 }, peri.randn { 9, 512 }
  for _, dtype in ipairs(TYPES) do
    local q = w:to(dtype)
    local plain, packed = q:to("f32"), peri.pack(q)
    lu.assertEquals(packed.dtype, dtype)
    lu.assertEquals(packed:to("f32"):tolist(), plain:tolist(), dtype)
    local want, got = x:linear(plain), x:linear(packed)
    -- x is rounded to 8 bits: its error has the size of 1/254 of a block's largest value
    local off = got:sub(want):abs():max():item() / want:abs():max():item()
    lu.assertTrue(off < 0.01, ("%s is off by %g"):format(dtype, off))
    lu.assertEquals(x:narrow(1, 3, 1):linear(packed):tolist()[1], got:tolist()[3], dtype)
  end
end
