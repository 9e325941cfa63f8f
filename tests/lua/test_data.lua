-- Streams: order, resuming, padding; the character tokenizer.
local lu = require "luaunit"
local peri = require "perilune"
local data = require "perilune.data"
local text = require "perilune.text"

local function numbers(n)
  local list = {}
  for i = 1, n do list[i] = i end
  return list
end

TestData = {}

function TestData:test_map_filter_take_batch()
  local s = data.list(numbers(10)):filter(function(v) return v % 2 == 0 end)
    :map(function(v) return v * 10 end):take(3):batch(2)
  lu.assertEquals(s:collect(), { { 20, 40 }, { 60 } })
  lu.assertEquals(data.list(numbers(5)):batch(2, { drop_last = true }):collect(), { { 1, 2 }, { 3, 4 } })
end

function TestData:test_shuffle_is_a_permutation_of_the_seed()
  local a, b = data.list(numbers(20)):shuffle(1):collect(), data.list(numbers(20)):shuffle(1):collect()
  lu.assertEquals(a, b)
  lu.assertNotEquals(a, numbers(20))
  lu.assertItemsEquals(a, numbers(20))
  lu.assertNotEquals(data.list(numbers(20)):shuffle(2):collect(), a)
end

function TestData:test_every_epoch_has_an_order_of_its_own()
  local rows = data.list(numbers(8)):shuffle(3):repeat_(2):collect()
  lu.assertEquals(#rows, 16)
  lu.assertNotEquals(table.move(rows, 1, 8, 1, {}), table.move(rows, 9, 16, 1, {}))
end

function TestData:test_a_restored_stream_goes_on_where_it_was()
  local function make()
    return data.list(numbers(7)):shuffle(5):batch(2):repeat_():map(function(b) return b end)
  end
  for stop = 0, 12 do
    local a, b = make(), make()
    for _ = 1, stop do a() end
    b:set_state(peri.json.decode(peri.json.encode(a:state())))
    for _ = 1, 9 do lu.assertEquals(b(), a()) end
  end
end

function TestData:test_plain_streams_repeat_from_their_first_row()
  lu.assertEquals(data.list(numbers(2)):repeat_(2):collect(), { 1, 2, 1, 2 })
  lu.assertEquals(data.list(numbers(5)):take(2):repeat_(2):collect(), { 1, 2, 1, 2 })
  lu.assertEquals(data.list({}):repeat_():collect(), {})
end

function TestData:test_zip_ends_with_the_shortest()
  lu.assertEquals(data.zip(data.list { 1, 2, 3 }, data.list { "a", "b" }):collect(), { { 1, "a" }, { 2, "b" } })
end

function TestData:test_jsonl_reads_objects_and_resumes()
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write('{"a":1}\n\n{"a":9007199254740993}\n{"a":3}')
  file:close()
  local s = assert(data.jsonl(path))
  lu.assertEquals(s().a, 1)
  local again = assert(data.jsonl(path)):set_state(s:state())
  lu.assertEquals(again().a, 9007199254740993)
  lu.assertEquals(again().a, 3)
  lu.assertNil(again())
  file = assert(io.open(path, "w"))
  file:write('{"a":1}\n{"a":\n')
  file:close()
  s = data.jsonl(path)
  s()
  lu.assertErrorMsgContains(path .. ":2:", s)
  os.remove(path)
  local none, message = data.jsonl "/nowhere/x.jsonl"
  lu.assertNil(none)
  lu.assertStrContains(message, "/nowhere")
end

function TestData:test_pad_and_collate()
  local t, mask = data.pad({ { 1, 2, 3 }, { 4 } }, { value = -1 })
  lu.assertEquals(t:tolist(), { { 1, 2, 3 }, { 4, -1, -1 } })
  lu.assertEquals(mask:to("i64"):tolist(), { { 1, 1, 1 }, { 1, 0, 0 } })
  lu.assertEquals(data.pad({ { 1, 2 }, { 4 } }, { side = "left", length = 3 }):tolist(), { { 0, 1, 2 }, { 0, 0, 4 } })
  lu.assertErrorMsgContains("row 1 has 2 values", data.pad, { { 1, 2 } }, { length = 1 })
  local c = data.collate { { x = { 1, 2 }, y = 0, s = "a" }, { x = { 3, 4 }, y = 1, s = "b" } }
  lu.assertEquals(c.x:tolist(), { { 1, 2 }, { 3, 4 } })
  lu.assertEquals(c.y.shape, { 2 })
  lu.assertEquals(c.s, { "a", "b" })
end

TestText = {}

function TestText:test_character_ids_follow_the_special_ones()
  local t = text.chars "0123456789,:"
  lu.assertEquals(t.size, 16)
  lu.assertEquals(t:encode "0:9x", { 4, 15, 13, 3 })
  lu.assertEquals(t:decode { 0, 4, 15, 13, 1, 2 }, "0:9")
  lu.assertEquals(text.from_codes { 48, 49 }:encode "10", { 5, 4 })
  lu.assertErrorMsgContains("occurs twice", text.chars, "aa")
end

function TestText:test_batch_pads_on_the_left()
  local t = text.chars("ab", { separator = true })
  local batch = t:batch { "ab", "b" }
  lu.assertEquals(batch.ids:tolist(), { { 4, 5, 0 }, { 2, 5, 0 } })
  lu.assertEquals(batch.mask:to("i64"):tolist(), { { 1, 1, 1 }, { 0, 1, 1 } })
end

function TestText:test_unicode()
  local t = text.chars "aé日"
  lu.assertEquals(t:decode(t:encode "日é"), "日é")
end

function TestText.test_words_are_cut_at_blanks_and_joined_by_one()
  local t = text.words { "plus", "十", "=", "<think>" }
  lu.assertEquals(t.size, 8)
  lu.assertEquals(t:encode "  plus 十\n= plus,", { 4, 5, 6, t.unk })
  lu.assertEquals(t:decode { t.sep, 4, t.pad, 5, 7, t.eos }, "plus 十 <think>")
  lu.assertEquals(t:encode "", {})
  lu.assertStrContains(tostring(t), "words, 8 tokens")
  local separated = text.words({ "a", "b" }, { separator = true })
  lu.assertEquals(separated:encode_batch { "a b", "" }, { { 4, 5, separated.sep }, { separated.sep } })
  lu.assertErrorMsgContains("\"a\" occurs twice", text.words, { "a", "b", "a" })
  lu.assertErrorMsgContains("word 2 is \"a b\", expected UTF-8 text without blanks", text.words, { "a", "a b" })
  lu.assertErrorMsgContains("word 1 is a number", text.words, { 3 })
  lu.assertErrorMsgContains("word 1 is \"\"", text.words, { "" })
end
