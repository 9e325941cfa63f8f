-- Counts of n-grams as a model of text.
local lu = require "luaunit"
local peri = require "perilune"

TestNgrams = {}

local text = peri.text
local abra = "abracadabra"

local function total(counts, context)
  local sum = 0
  for byte = 0, 255 do sum = sum + counts:probability(context, string.char(byte)) end
  return sum
end

function TestNgrams:test_probabilities_of_all_bytes_add_up_to_one_behind_any_context()
  for order = 1, 5 do
    local counts = text.ngrams(abra, { order = order })
    for _, context in ipairs { "", "a", "br", "zzz", "abr", "abra", "cadabra", "\0\255" } do
      lu.assertAlmostEquals(total(counts, context), 1, 1e-12)
    end
  end
  lu.assertAlmostEquals(total(text.ngrams "", "a"), 1, 1e-12) -- nothing was counted
end

function TestNgrams:test_it_is_witten_and_bells_formula()
  local counts = text.ngrams(abra, { order = 2 })
  local one = (5 + 5 / 256) / (11 + 5) -- "a": 5 of 11, 5 kinds
  lu.assertAlmostEquals(text.ngrams(abra, { order = 1 }):probability("", "a"), one, 1e-15)
  local b = (2 + 5 / 256) / 16
  lu.assertAlmostEquals(counts:probability("xa", "b"), (2 + 3 * b) / (4 + 3), 1e-15) -- b, c, d behind a, 4 times
  lu.assertAlmostEquals(counts:probability("z", "b"), b, 1e-15) -- never seen: the shorter context's
end

function TestNgrams:test_bits_are_the_mean_of_logarithms_at_every_order()
  local counts, test = text.ngrams(abra, { order = 4 }), "abrac"
  local bits = counts:bits(test)
  lu.assertEquals(#bits, 4)
  for order = 1, 4 do
    local own, sum = text.ngrams(abra, { order = order }), 0
    for i = 1, #test do sum = sum - math.log(own:probability(test:sub(1, i - 1), test:sub(i, i)), 2) end
    lu.assertAlmostEquals(bits[order], sum / #test, 1e-12)
  end
  lu.assertTrue(bits[3] < bits[2] and bits[2] < bits[1]) -- what it has seen it knows
end

function TestNgrams:test_what_is_wrong_is_named()
  local counts = text.ngrams(abra)
  lu.assertErrorMsgContains("text is missing, expected string", text.ngrams)
  lu.assertErrorMsgContains("order is 0", text.ngrams, abra, { order = 0 })
  lu.assertErrorMsgContains('character is "ab", expected one byte', counts.probability, counts, "", "ab")
  lu.assertErrorMsgContains("the text is empty", counts.bits, counts, "")
end

os.exit(lu.LuaUnit.run())
