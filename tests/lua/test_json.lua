-- peri.json: values survive the way to text and back; what JSON cannot say is refused.
local lu = require "luaunit"
local peri = require "perilune"
local json = peri.json

local tests = {}

local function same(value, text)
  lu.assertEquals(json.encode(value), text)
  lu.assertEquals(json.encode(json.decode(text)), text)
end

function tests.test_values_round_trip()
  same(1, "1")
  same(1.0, "1.0")
  same(math.mininteger, "-9223372036854775808")
  same(0.1, "0.1")
  same(-0.0, "-0.0")
  same(1e300, "1e300")
  same("a\"\\\n\0é", [["a\"\\\n\u0000é"]])
  same(true, "true")
  same(json.null, "null")
  same({ 1, 2.5, "x", json.null, false }, '[1,2.5,"x",null,false]')
  same({ b = { 1 }, a = {}, c = json.array {} }, '{"a":{},"b":[1],"c":[]}')
  lu.assertEquals(math.type(json.decode "9007199254740993"), "integer")
  lu.assertEquals(math.type(json.decode "1.0"), "float")
  lu.assertEquals(json.decode '"\\ud83d\\ude00"', "😀")
  lu.assertIs(json.decode "null", json.null)
  lu.assertEquals(tostring(json.null), "null")
  lu.assertIs(json.decode("[null]")[1], json.null)
  lu.assertEquals(json.decode "false", false)
end

function tests.test_keys_are_sorted_by_byte()
  local t = {}
  for i = 1, 100 do t[("k%d"):format(i * 7919 % 1000)] = i end
  local keys = {}
  for k in json.encode(t):gmatch '"(%w+)":' do keys[#keys + 1] = k end
  lu.assertEquals(#keys, 100)
  for i = 2, #keys do lu.assertTrue(keys[i - 1] < keys[i]) end
  same({ [""] = 1, ["a"] = 2, ["a\0"] = 3, ["é"] = 4, B = 5 }, '{"":1,"B":5,"a":2,"a\\u0000":3,"é":4}')
end

-- Objects are written in the order in which they were read, whatever their number of keys and whatever was
-- read before; what is added comes behind, what is taken away is gone.
function tests.test_decoded_objects_keep_the_order_of_their_keys()
  local rng = peri.rng(1)
  local function object(n, depth)
    local names, parts = {}, {}
    for i = 1, n do names[i] = ("k%d"):format(i) end
    rng:shuffle(names)
    for i, name in ipairs(names) do
      local value = depth > 0 and rng:int(1, 3) == 1 and object(rng:int(0, 3), depth - 1) or tostring(i)
      parts[i] = ('"%s":%s'):format(name, value)
    end
    return "{" .. table.concat(parts, ",") .. "}"
  end
  for _, n in ipairs { 0, 1, 2, 5, 63, 64, 65, 66, 130, 1000 } do
    for _ = 1, 5 do
      local text = object(n, 2)
      lu.assertEquals(json.encode(json.decode(text)), text)
      lu.assertEquals(json.encode(json.decode("[" .. text .. "," .. text .. "]")), "[" .. text .. "," .. text .. "]")
    end
  end
  for i = 1, 10000 do -- more shapes than are remembered
    local text = ('{"z%d":{"b":1,"a":2},"a":1}'):format(i)
    if json.encode(json.decode(text)) ~= text then lu.fail(text) end
  end
  local t = json.decode '{"z":1,"b":2,"m":3}'
  t.b, t.x, t.c = nil, 4, 5
  lu.assertEquals(json.encode(t), '{"z":1,"m":3,"c":5,"x":4}')
  lu.assertEquals(json.keys(t), { "z", "m", "c", "x" })
  t.b = 6
  lu.assertEquals(json.keys(t), { "z", "b", "m", "c", "x" })
  lu.assertEquals(json.encode(json.decode '{"__gc":1,"__index":2,"1":3,"__name":4}'), '{"__gc":1,"__index":2,"1":3,"__name":4}')
end

function tests.test_an_order_of_ones_own()
  local t = json.object({ a = 1, b = 2, c = 3 }, { "c", "a", "not there" })
  lu.assertEquals(json.encode(t), '{"c":3,"a":1,"b":2}')
  lu.assertEquals(json.keys(t), { "c", "a", "b" })
  lu.assertEquals(json.keys { b = 1, a = 2, "x" }, { "a", "b" })
  lu.assertEquals(json.encode(json.array(json.decode "{}")), "[]")
  lu.assertErrorMsgContains("a list of names", json.object, {}, { 1 })
  lu.assertErrorMsgContains("has a metatable already", json.object, setmetatable({}, {}), {})
  -- still the options of a call
  lu.assertEquals(peri.zeros(json.decode "[2,3]"):numel(), 6)
end

function tests.test_foreign_texts_are_read_as_Python_writes_them()
  local text = '\xEF\xBB\xBF{"a":NaN,"b":[Infinity,-Infinity]}'
  local t = json.decode(text, { foreign = true })
  lu.assertTrue(t.a ~= t.a)
  lu.assertEquals({ t.b[1], t.b[2] }, { math.huge, -math.huge })
  for strict, part in pairs { [text] = "byte 0xef", ['{"a":NaN}'] = "expected a value", ["-Infinity"] = "" } do
    local value, message = json.decode(strict)
    lu.assertNil(value)
    lu.assertStrContains(message, part)
  end
  for _, bad in ipairs { " \xEF\xBB\xBF1", "nan", "+Infinity", "\xEF\xBB\xBF", "'a'", '{"a":1,"a":2}', "[1,]" } do
    lu.assertNil((json.decode(bad, { foreign = true })), bad)
  end
end

function tests.test_indent()
  lu.assertEquals(json.encode({ a = { 1, 2 }, b = {} }, { indent = 2 }),
    '{\n  "a": [\n    1,\n    2\n  ],\n  "b": {}\n}')
end

function tests.test_bad_text_is_nil_and_a_message_with_its_place()
  for text, part in pairs {
    ["[1,\n 2,]"] = "line 2, column 4 (byte 7): expected a value, found ']'",
    ['{"a":1,"a":2}'] = 'duplicate key "a"',
    ["[1] x"] = "nothing behind the value",
    ['"\\ud800"'] = "surrogate",
    ["NaN"] = "expected a value",
    ["18446744073709551615"] = "cannot hold exactly",
    [("["):rep(65)] = "nested deeper than 64",
    [""] = "found the end of the text",
  } do
    local value, message = json.decode(text)
    lu.assertNil(value)
    lu.assertStrContains(message, part)
  end
  lu.assertNil(json.decode("[[1]]", { max_depth = 1 }))
  lu.assertEquals(json.decode("[Infinity]", { allow_nan = true })[1], math.huge)
end

function tests.test_nan_needs_a_policy()
  local list = { 0 / 0, math.huge, -math.huge }
  lu.assertErrorMsgContains("JSON has no NaN", json.encode, list)
  lu.assertErrorMsgContains("JSON has no infinity", json.encode, { math.huge }, { nan = "error" })
  lu.assertEquals(json.encode(list, { nan = "null" }), "[null,null,null]")
  lu.assertEquals(json.encode(list, { nan = "literal" }), "[NaN,Infinity,-Infinity]")
end

function tests.test_what_has_no_json_form_raises()
  local cycle = { a = {} }
  cycle.a.b = cycle
  local deep = {}
  for _ = 1, 64 do deep = { deep } end
  for part, value in pairs {
    ["contains itself"] = cycle,
    ["nested deeper than 64"] = deep,
    ["both named and numbered"] = { 1, a = 2 },
    ["holes"] = { 1, nil, 3 },
    ["a key is a boolean"] = { [true] = 1 },
    ["a key is a number"] = { [1.5] = 1 },
    ["a function has no JSON form"] = { print },
    ["not valid UTF-8"] = { "\xff" },
  } do lu.assertErrorMsgContains(part, json.encode, value) end
  local shared = { 1 } -- twice, but not inside itself
  lu.assertEquals(json.encode { shared, shared }, "[[1],[1]]")
  lu.assertErrorMsgContains("holes", json.encode, { [2] = 1 })
  lu.assertErrorMsgContains("named and numbered", json.encode, json.array { a = 1 })
end

function tests.test_misuse_raises()
  lu.assertErrorMsgContains("argument 1 (text) must be a string", json.decode, 1)
  lu.assertErrorMsgContains("unknown option 'indnet', did you mean 'indent'?", json.encode, 1, { indnet = 1 })
  lu.assertErrorMsgContains("option indent must be an integer from 0 to 16", json.encode, 1, { indent = 17 })
  lu.assertErrorMsgContains("option nan must be", json.encode, 1, { nan = 3 })
  lu.assertErrorMsgContains("argument 1 (value) is missing", json.encode)
  lu.assertErrorMsgContains("has a metatable", json.array, setmetatable({}, {}))
end

return tests
