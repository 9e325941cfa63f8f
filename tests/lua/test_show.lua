-- Values as text: what the prompt prints.
local lu = require "luaunit"
local peri = require "perilune"
local nn = peri.nn

TestShow = {}

local function show(v, o) return peri.show(v, o) end

function TestShow.test_plain_values()
  for want, value in pairs {
    ["{1, 2.5, true, nan}"] = { 1, 2.5, true, -(0 / 0) }, ["{}"] = {}, ['{"a\\nb\\"\\\\\\x00"}'] = { 'a\nb"\\\0' },
    ["{x = 1, [\"a b\"] = 2, [\"end\"] = 3}"] = false, ["{{{}}}"] = { { {} } }, ["{[2.5] = 1}"] = { [2.5] = 1 },
    ["{1, 2, [10] = 3, b = 4, [true] = 5}"] = { 1, 2, [10] = 3, b = 4, [true] = 5 }, ["{inf, -inf}"] = { 1 / 0, -1 / 0 },
  } do
    if value then lu.assertEquals(show(value), want) end
  end
  lu.assertEquals(show "text", "text") -- only those in tables are quoted
  lu.assertEquals(show { "text" }, '{"text"}')
  lu.assertEquals(show { ["a b"] = 2, ["end"] = 3, x = 1 }, '{["a b"] = 2, ["end"] = 3, x = 1}')
  lu.assertEquals(show(nil), "nil")
  lu.assertEquals(show { "\255\254" }, '{"\\xff\\xfe"}')
  lu.assertEquals(show { "äö" }, '{"äö"}')
end

function TestShow.test_keys_are_in_order_and_lists_come_first()
  local t = {}
  for i = 12, 1, -1 do t["layer" .. i] = i end
  t[1], t[2] = "a", "b"
  lu.assertEquals(show(t, { width = 400 }), '{"a", "b", layer1 = 1, layer2 = 2, layer3 = 3, layer4 = 4, layer5 = 5, '
    .. "layer6 = 6, layer7 = 7, layer8 = 8, layer9 = 9, layer10 = 10, layer11 = 11, layer12 = 12}")
end

-- Whatever a table holds, its lines fit and there are not more than a screen or two of them.
function TestShow.test_lines_fit_the_width_and_long_tables_are_cut()
  local long, wide, deep, mixed = {}, {}, {}, {}
  for i = 1, 10000 do long[i] = i * 7 end
  for i = 1, 500 do wide["key" .. i] = { i, { name = ("x"):rep(i) } } end
  local at = deep
  for _ = 1, 50 do
    at.inner = { 1 }
    at = at.inner
  end
  for i = 1, 300 do mixed[i] = { id = i, text = ("word "):rep(i % 40), list = long } end
  for _, t in ipairs { long, wide, deep, mixed, { long, wide, deep, mixed } } do
    for _, width in ipairs { 20, 40, 80, 120 } do
      local text = show(t, { width = width })
      local lines = 0
      for line in (text .. "\n"):gmatch "(.-)\n" do
        lines = lines + 1
        if width >= 40 then lu.assertTrue(utf8.len(line) <= width, ("%d: %s"):format(width, line)) end
      end
      lu.assertTrue(lines < (width < 40 and 300 or 150), lines)
    end
  end
  lu.assertStrContains(show(long), "... 9880 more\n}")
  lu.assertStrContains(show(wide), "... 460 more\n}")
  lu.assertStrContains(show(deep), "{...}")
  lu.assertEquals(show({ { { 1 } } }, { depth = 1 }), "{{...}}")
end

function TestShow.test_a_table_in_itself_is_marked_and_one_that_comes_twice_is_not()
  local t, shared = { name = "t" }, { 1 }
  t.inner = { back = t }
  lu.assertEquals(show(t), '{inner = {back = (the table around it)}, name = "t"}')
  lu.assertEquals(show { shared, shared }, "{{1}, {1}}")
end

function TestShow.test_an_object_that_cannot_speak_harms_nobody_else()
  local function dumb() return setmetatable({}, { __tostring = function () error("no", 0) end }) end
  local text = show { dumb(), [dumb()] = 1, [dumb()] = 2 }
  lu.assertEquals(select(2, text:gsub("%(its __tostring fails: no%)", "")), 3)
end

function TestShow.test_objects_speak_for_themselves()
  local class = nn.class("Net", function (self) self.layers = { nn.Linear(2, 3), nn.Linear(3, 1) } end)
  local net = class()
  lu.assertEquals(show(net), tostring(net))
  lu.assertStrContains(show { net = net }, "{\n  net = Net(), 13 parameters\n      layers[1]: Linear(2, 3)\n")
  lu.assertEquals(show { peri.ones { 2 }, peri.ones { 30, 2 } }, "{tensor (2) f32 cpu [1., 1.], tensor (30, 2) f32 cpu}")
  lu.assertEquals(show { nn.Linear, peri.nn }, "{class Linear, module perilune.nn}")
  lu.assertEquals(show(setmetatable({ a = 1, _b = 2 }, { __name = "thing" })), "thing {a = 1}")
  lu.assertEquals(show { peri.exp, function (a, b, ...) return a, b, ... end }, "{function exp(x), function(a, b, ...)}")
  lu.assertEquals(show { peri.rng(3) }, "{rng {seed=3, offset=0}}")
end

-- What a user holds says what it is in a line or a tree, not in an address or a dump of its fields.
function TestShow.test_what_the_library_makes_has_a_text_of_its_own()
  local model = assert(peri.models.load("tests/data/hf_tiny/llama"))
  local tok = peri.text.chars "abc"
  for want, object in pairs {
    ["^lm of llama, 27,168 parameters, f32; characters, 7 tokens"] = peri.lm.new(model, tok),
    ["^lora, %d+ parameters in %d+ tensors on llama$"] = peri.peft.lora(model, { r = 2 }),
    ['^characters, 7 tokens: 4 special ones and "abc"$'] = tok,
    ["^tokenizer, 908 tokens"] = assert(peri.tokenizer.load "tests/data/tokenizers/bytelevel.json"),
    ["^encoder of texts up to %d+ tokens, pooled by mean: llama"] = peri.embed.new(model, tok),
    ["^llama, 27,168 parameters, f32\n"] = model,
    ["^AdamW, "] = peri.optim.AdamW(nn.Linear(2, 3), { lr = 1 }),
    ["^stream "] = peri.data.list { 1, 2 }:shuffle(1),
    ["^rng {seed=1"] = peri.rng(1),
  } do
    lu.assertStrMatches(show(object):match "^[^\n]*" .. (want:find "\n" and "\n" or ""), want:sub(2):gsub("%$$", "") .. ".*")
    lu.assertNotStrContains(show(object), "0x")
    lu.assertTrue(#show({ { object } }) < 120)
  end
end

-- net[1] is what is printed as [1].
function TestShow.test_printed_indices_are_those_of_lua()
  local net = nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)))
  lu.assertEquals(tostring(net), "Sequential(), 25 parameters\n  [1]: Linear(2, 3)\n  [2]: Sequential()\n"
    .. "    [1]: ReLU()\n    [2]: Linear(3, 4)")
  lu.assertStrContains(tostring(net[1]), "Linear(2, 3)")
  lu.assertStrContains(tostring(net[2][2]), "Linear(3, 4)")
end

function TestShow.test_optimizers_say_what_they_have_done()
  local net = nn.Linear(2, 3)
  local opt = peri.optim.AdamW(net, { lr = 0.5 })
  lu.assertEquals(tostring(opt), "AdamW, 9 parameters in 2 tensors, 0 steps, last lr 0.5\n"
    .. "  betas = {0.9, 0.999}, eps = 1e-08, lr = 0.5, weight_decay = 0.01")
  net(peri.ones { 1, 2 }):sum():backward()
  opt:step { lr = 0.25 }
  lu.assertStrContains(tostring(opt), "1 step, last lr 0.25")
  local w = peri.ones { 2 }:requires_grad_()
  opt = peri.optim.SGD({ { params = { w }, lr = 1 }, { params = net } }, { lr = 0.1 })
  lu.assertStrContains(tostring(opt), "\n  group 1, 1 tensor: ")
  lu.assertStrContains(tostring(opt), "\n  group 2, 2 tensors: ")
end

-- The tree of a model counts what num_parameters counts.
function TestShow.test_models_are_trees_with_their_parameters()
  local function number(text) return tonumber((text:gsub(",", ""))) end
  for _, name in ipairs { "llama", "bert", "t5", "deepseek_v3", "gpt2", "gemma2" } do
    local model = assert(peri.models.load("tests/data/hf_tiny/" .. name))
    local text = tostring(model)
    lu.assertEquals(number(text:match "^[%w_]+, ([%d,]+) parameters"), model:num_parameters())
    local sum = 0
    for line in text:gmatch "\n  (%S[^\n]*)" do
      local count = number(line:match "([%d,]+)$" or "0") or 0
      local from, to = line:match "%[(%d+)%] to %[(%d+)%], each"
      if not line:find "^vocab" then sum = sum + count * (from and to - from + 1 or 1) end
    end
    lu.assertTrue(sum >= model:num_parameters() and sum < 1.02 * model:num_parameters(), name) -- buffers beside them
    for line in text:gmatch "[^\n]+" do lu.assertTrue(#line <= 100) end
    lu.assertStrContains(text, "f32")
  end
end

function TestShow.test_colours_are_only_added()
  local t = { 1, "two", { x = true, f = print } }
  local plain, painted = show(t), show(t, { colour = true })
  lu.assertNotEquals(plain, painted)
  lu.assertEquals((painted:gsub("\27%[%d+m", "")), plain)
  lu.assertErrorMsgContains('unknown option "color"', show, t, { color = true })
end

os.exit(lu.LuaUnit.run())
