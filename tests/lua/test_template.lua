-- Chat templates: every text that Jinja2 gave for the real templates of tests/data/chat_templates and
-- for the cases of tests/data/template_cases.json, byte for byte; an error where it raised one.
local lu = require "luaunit"
local peri = require "perilune"
local chat = require "perilune.text.chat"
local shared = require "shared"
local template = require "perilune.text.template"

local tests = {}

local function read(path)
  local f <close> = assert(io.open(path, "rb"))
  return f:read "a"
end

local FOLDER = "tests/data/chat_templates/"
local NOW = { year = 2024, month = 7, day = 26, hour = 0, min = 0, sec = 0, wday = 6, yday = 208 }

-- The JSON text of an object's member, to be read again with its keys in order.
local function member(text, name)
  local from = text:match(('"%s"%%s*:%%s*()'):format(name))
  local depth, i = 0, from
  repeat
    local at, c = text:match('()(["{}%[%]])', i)
    i = at + 1
    if c == '"' then
      repeat
        local q = text:find('["\\]', i)
        i = q + 1
        if text:sub(q, q) == "\\" then i = i + 1 end
      until text:sub(q, q) == '"'
    else
      depth = depth + ((c == "{" or c == "[") and 1 or -1)
    end
  until depth == 0
  return text:sub(from, i - 1)
end

local function renders()
  local text = read(FOLDER .. "renders.json")
  local all = assert(peri.json.decode(text))
  local ordered = {}
  for case, vars in pairs(all.cases) do
    local own = member(member(text, "cases"), case)
    ordered[case] = {}
    for name, value in pairs(vars) do
      ordered[case][name] = type(value) == "table" and assert(template.json(member(own, name))) or value
    end
  end
  return all, ordered
end

local function differs(got, message, want)
  if want.error then return got and "a text where Jinja2 raises " .. want.error end
  if got == want.out then return nil end
  if not got then return message end
  local i = 1
  while got:byte(i) == want.out:byte(i) do i = i + 1 end
  return ("byte %d: %q, expected %q"):format(i, got:sub(i, i + 40), want.out:sub(i, i + 40))
end

function tests.test_real_templates_render_as_jinja2_does()
  local all, ordered = renders()
  local count = 0
  for name, cases in pairs(all.renders) do
    local t = assert(template.compile(read(FOLDER .. name .. ".jinja"), { name = name }))
    for case, want in pairs(cases) do
      local vars = { bos_token = "<s>", eos_token = "</s>" }
      for key, value in pairs(ordered[case]) do vars[key] = value end
      local got, message = t:render(vars, { now = NOW })
      local why = differs(got, message, want)
      if why then lu.fail(("%s, %s: %s"):format(name, case, why)) end
      count = count + 1
    end
  end
  lu.assertEquals(count, 390)
end

function tests.test_plain_tables_come_in_the_usual_order_of_keys()
  local all = renders()
  for name, cases in pairs(all.renders) do
    local c = assert(chat.new(read(FOLDER .. name .. ".jinja"), { bos_token = "<s>", eos_token = "</s>" }))
    for case, want in pairs(cases) do
      -- This one loops over tools without asking for them: None is no list, as in transformers.
      if not (name:find "Hermes" and not all.cases[case].tools) then
        local opts = { now = NOW }
        for key, value in pairs(all.cases[case]) do if key ~= "messages" then opts[key] = value end end
        local got, message = c:render(all.cases[case].messages, opts)
        local why = differs(got, message, want)
        if why then lu.fail(("%s, %s: %s"):format(name, case, why)) end
      end
    end
  end
end

function tests.test_small_templates_give_what_jinja2_gives()
  local text = read "tests/data/template_cases.json"
  local own, vars = member(text, "variables"), {}
  for name, value in pairs(peri.json.decode(own)) do
    vars[name] = type(value) == "table" and assert(template.json(member(own, name))) or value
  end
  local now = { year = 2024, month = 7, day = 6, hour = 15, min = 4, sec = 5, wday = 7, yday = 188 }
  local wrong, count = {}, 0
  for _, case in ipairs(assert(peri.json.decode(text)).cases) do
    local source, want = case[1], case[2]
    local t, message = template.compile(source)
    local got
    if t then got, message = t:render(vars, { now = now }) end
    if want == peri.json.null then want = nil end
    if got ~= want then
      wrong[#wrong + 1] = ("%s\n  gives %s\n  not   %s"):format(source, got or message, want or case[4])
    end
    -- An error of ours has a place in the template, never one in our files.
    if message and message:find("%.lua:%d") then wrong[#wrong + 1] = source .. ": " .. message end
    count = count + 1
  end
  lu.assertEquals(table.concat(wrong, "\n", 1, math.min(#wrong, 10)), "")
  lu.assertTrue(count > 6000)
end

function tests.test_chats_of_real_tokenizers()
  local vectors = assert(peri.json.decode(read(shared.need "data/tokenizers/vectors.json")))
  local count = 0
  for name, want in pairs(vectors) do
    local config = assert(peri.json.decode(read(shared.need("data/tokenizers/" .. name .. "/tokenizer_config.json"))))
    local variables = {}
    for _, key in ipairs { "bos_token", "eos_token" } do
      local token = config[key]
      variables[key] = type(token) == "table" and token.content or token
    end
    local c = assert(chat.new(config.chat_template, variables))
    for _, case in ipairs(want.chat) do
      local got = assert(c:render(case.messages, { add_generation_prompt = case.add_generation_prompt }))
      lu.assertEquals(got, case.text)
      count = count + 1
    end
  end
  lu.assertTrue(count >= 8)
end

-- ---- errors and bounds ----

function tests.test_syntax_errors_name_the_place()
  for source, part in pairs {
    ["a\n  {{ x | nosuch }}"] = "t:2:10: unknown filter \"nosuch\"",
    ["{{ x is nosuch }}"] = "t:1:9: unknown test \"nosuch\"",
    ["{% if x %}{{ x | random }}{% endif %}"] = "t:1:18: filter 'random' is not supported",
    ["{{ x | tojsn }}"] = "did you mean \"tojson\"?",
    ["{% include 'x' %}"] = "t:1:4: statement 'include' is not supported",
    ["\n\n{% iff x %}{% endiff %}"] = "t:3:4: unknown statement \"iff\"; did you mean \"if\"?",
    ["{% if x %}"] = "'if' is not closed: expected elif or else or endif",
    ["ab {{ (1 }}"] = "t:1:10: unexpected '}', expected ')'",
    ["ab {{ 1"] = "\"{{\" is not closed",
    ["{% for x of y %}"] = "expected 'in', found 'of'",
    ["é{{ $ }}"] = "t:1:5: unexpected character \"$\"",
    ["{% break %}"] = "'break' outside of a loop",
    ["{{ 99999999999999999999 }}"] = "too large",
  } do
    local t, message = template.compile(source, { name = "t" })
    lu.assertNil(t, source)
    lu.assertStrContains(message, part)
  end
end

function tests.test_errors_while_rendering_name_the_line()
  for source, part in pairs {
    ["\n{{ raise_exception('no ' ~ 1) }}"] = "t:2: no 1",
    ["\n\n{{ a.b.c }}"] = "t:3: 'a' is undefined",
    ["{% for x in 1 %}{% endfor %}"] = "t:1: 'int' object is not iterable",
    ["{{ [].append(1) }}"] = "'append' of 'list' object is unsafe",
    ["{{ 'a' + 1 }}"] = "unsupported operand type(s) for +: 'str' and 'int'",
    ["{{ 9223372036854775807 + 1 }}"] = "too large",
    ["{{ 'x'|tojson|from_json }}{{ '[1'|from_json }}"] = "JSON: expected ',' or ']' at byte 3",
  } do
    local text, message = assert(template.compile(source, { name = "t" })):render {}
    lu.assertNil(text, source)
    lu.assertStrContains(message, part)
  end
end

local function refused(source, part, opts)
  local t, message = template.compile(source)
  local text
  local start = os.clock()
  if t then text, message = t:render({}, opts) end
  lu.assertNil(text, source:sub(1, 100))
  lu.assertStrContains(message, part)
  lu.assertTrue(os.clock() - start < 5, source:sub(1, 100)) -- tenths of a second where nothing else runs
end

function tests.test_steps_output_and_nesting_are_bounded()
  refused("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "more than 250000 steps")
  refused("{% for a in range(10) %}x{% endfor %}", "more than 20 steps", { steps = 20 })
  refused("{{ 'x' * 100000000000 }}", "bytes")
  refused("{{ 'x' * 9223372036854775807 }}", "bytes")
  refused("{{ [1] * 100000000000 }}", "steps")
  refused("{{ ('x' * 10000).replace('x', 'y' * 10000) }}", "bytes")
  refused("{{ '%999999999d' % 1 }}", "width")
  refused("{{ '{:999999999}'.format(1) }}", "width")
  refused("{{ 'x'.center(1000000000) }}", "bytes")
  refused("{{ range(1000000) }}", "range too big")
  -- Searches, splits and number texts that would take the square of their length.
  local loop = "{% for i in range(99999) %}"
  refused("{% set p = 'a' * 9000 ~ 'b' %}{% set s = 'a' * 1000000 %}" .. loop .. "{% set x = s.rsplit(p) %}{% endfor %}", "steps")
  refused("{% set s = '<!--' * 1000000 %}" .. loop .. "{% set x = s|striptags %}{% endfor %}", "steps")
  refused("{% set s = '1' * 1000000 %}" .. loop .. "{% set x = s|float %}{% endfor %}", "steps")
  refused("{% set s = ' ' * 1000000 %}" .. loop .. "{% set x = s|trim %}{% endfor %}", "steps")
  refused("{{ 10 ** 1000 }}", "too large")
  refused("{% set n = namespace(s='xxxxxxxx') %}{% for i in range(99) %}{% set n.s = n.s ~ n.s %}{% endfor %}", "more than")
  refused("{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = n.l + n.l %}{% endfor %}", "steps")
  refused("{% set n = namespace(l=[1]) %}{% for i in range(99) %}{% set n.l = [n.l, n.l] %}{% endfor %}{{ n.l }}", "steps")
  refused("{% set n = namespace() %}{% set n.n = n %}{{ n }}", "nested deeper")
  refused("{% set n = namespace(l=[]) %}{% for i in range(999) %}{% set n.l = [n.l] %}{% endfor %}{{ n.l|tojson }}", "nested")
  refused("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "nested deeper than 100")
  refused("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", "nested deeper than 100")
  refused("{{ " .. ("("):rep(500) .. "1" .. (")"):rep(500) .. " }}", "nested deeper")
  refused("{{ " .. ("-"):rep(500) .. "1 }}", "nested deeper")
  refused("{{ " .. ("not "):rep(500) .. "1 }}", "nested deeper")
  refused("{{ 1" .. (" + 1"):rep(5000) .. " }}", "operations in a row")
  refused("{{ 1" .. ("|abs"):rep(5000) .. " }}", "operations in a row")
  refused(("{% if 1 %}"):rep(500) .. ("{% endif %}"):rep(500), "nested deeper")
  refused(("x"):rep((1 << 20) + 1), "bytes")
  refused("{% for a in range(9999) %}0123456789{% endfor %}", "more than 1000 bytes", { output_bytes = 1000 })
  local deep = {}
  for _ = 1, 200 do deep = { deep } end
  local text, message = assert(template.compile "{{ d }}"):render { d = deep }
  lu.assertNil(text)
  lu.assertStrContains(message, "nested deeper")
end

function tests.test_templates_reach_nothing_of_lua()
  local function gives(source, want, vars)
    lu.assertEquals(assert(template.compile(source)):render(vars or {}), want)
  end
  for _, name in ipairs { "_G", "_ENV", "os", "io", "print", "require", "string", "load", "pcall", "getmetatable" } do
    gives(("{{ %s is defined }}"):format(name), "False")
  end
  for _, name in ipairs { "rep", "gsub", "byte", "sub", "dump", "__index", "__class__", "t", "n", "map", "fn", "keys_" } do
    gives(("{{ 'x'.%s is defined }}{{ 'x'['%s'] is defined }}"):format(name, name), "FalseFalse")
    gives(("{{ range.%s is defined }}{{ namespace().%s is defined }}"):format(name, name), "FalseFalse")
    gives(("{{ [1].%s is defined }}{{ {}.%s is defined }}"):format(name, name), "FalseFalse")
  end
  gives("{% macro m() %}{% endmacro %}{{ m.call is defined }}{{ m.fn is defined }}", "FalseFalse")
  gives("{% for i in [1] %}{{ loop.call is defined }}{{ loop.attribute is defined }}{% endfor %}", "FalseFalse")
  -- What a caller's table holds is data, whatever its keys are.
  gives("{{ x.t }}{{ x.n }}{{ x is mapping }}", "dict7True", { x = { t = "dict", n = 7 } })
  local mine = { { 1, 2 }, { a = "b" } }
  gives("{% set q = mine + [3] %}{{ q|length }}{{ mine }}", "3[[1, 2], {'a': 'b'}]", { mine = mine })
  lu.assertEquals(mine, { { 1, 2 }, { a = "b" } })
end

function tests.test_one_template_serves_many_renderings()
  local t = assert(template.compile "{% set ns = namespace(n=0) %}{% for x in l %}{% set ns.n = ns.n + x %}{% endfor %}{{ ns.n }}")
  lu.assertEquals(t:render { l = { 1, 2 } }, "3")
  lu.assertEquals(t:render { l = { 5 } }, "5")
  lu.assertNil((t:render { l = { "a" } }))
  lu.assertEquals(t:render { l = peri.json.array {} }, "0")
end

-- ---- values from outside ----

function tests.test_values_of_the_caller()
  local function gives(source, want, vars, opts)
    local text, message = assert(template.compile(source)):render(vars, opts)
    lu.assertEquals(text or message, want)
  end
  gives("{{ v }}", "None", { v = peri.json.null })
  gives("{{ v }}", "[1, 2.5, 'x', True, None]", { v = { 1, 2.5, "x", true, peri.json.null } })
  gives("{{ v|tojson }}", '{"type": "t", "name": "n", "a": {}, "tools": []}', { v = { a = {}, name = "n", type = "t", tools = {} } })
  gives("{{ v|tojson }}", '{"z": 1, "a": [2]}', { v = template.dict { { "z", 1 }, { "a", { 2 } } } })
  gives("{{ v|tojson }}", '{"z": 1, "a": {"y": null, "b": []}}', { v = template.json '{"z": 1, "a": {"y": null, "b": []}}' })
  gives("{{ strftime_now('%d %b %Y') }}", "26 Jul 2024", {}, { now = NOW })
  local text, message = assert(template.compile "{{ v }}"):render { v = print }
  lu.assertNil(text)
  lu.assertStrContains(message, "variable 'v' holds a function")
  text, message = assert(template.compile "{{ v }}"):render { v = { 1, 2, a = 3 } }
  lu.assertNil(text)
  lu.assertStrContains(message, "both named and numbered")
  local value, why = template.json '{"a": [1, }'
  lu.assertNil(value)
  lu.assertStrContains(why, "JSON: expected a value at byte 11")
  lu.assertErrorMsgContains("unknown option", function()
    assert(template.compile "x"):render({}, { step = 3 })
  end)
end

-- ---- chats and spans ----

local CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
  .. "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
local TALK = { { role = "user", content = "Hi" }, { role = "assistant", content = "Hello" },
  { role = "user", content = "2+2?" }, { role = "assistant", content = "4 \n" } }

local function spoken(c, messages, opts)
  local text, spans = c:spans(messages, opts)
  if not text then return nil, spans end
  local out = {}
  for i, span in ipairs(spans) do out[i] = text:sub(span[1], span[2]) end
  return out
end

function tests.test_spans_by_prefix()
  local c = assert(chat.new(CHATML))
  lu.assertEquals(spoken(c, TALK), { "Hello<|im_end|>", "4 \n<|im_end|>" })
  lu.assertEquals(spoken(c, { TALK[1] }), {})
  -- Without an end mark the white space that the assistant said stays.
  local plain = assert(chat.new("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    .. "{% if add_generation_prompt %}assistant: {% endif %}"))
  lu.assertEquals(spoken(plain, TALK), { "Hello\n", "4 \n\n" })
end

function tests.test_spans_of_real_templates()
  local function of(name, messages)
    local c = assert(chat.new(read(FOLDER .. name .. ".jinja"), { bos_token = "<s>", eos_token = "</s>" }))
    return spoken(c, messages)
  end
  lu.assertEquals(of("Qwen-Qwen2.5-7B-Instruct", TALK), { "Hello<|im_end|>", "4 \n<|im_end|>" })
  -- Only the last answer keeps its reasoning: the ones before are found all the same.
  local thought = { TALK[1], { role = "assistant", content = "<think>\nhm\n</think>\n\nHello" }, TALK[3],
    { role = "assistant", content = "<think>\nsum\n</think>\n\n4" } }
  lu.assertEquals(of("Qwen-Qwen3-0.6B", thought), { "Hello<|im_end|>", "<think>\nsum\n</think>\n\n4<|im_end|>" })
  -- The prompt opens a think tag that the answer does not have.
  lu.assertEquals(of("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", { TALK[1], TALK[2] }), { "Hello<｜end▁of▁sentence｜>" })
  lu.assertEquals(of("GLM-4.7-Flash", { TALK[1], TALK[2] }), { "</think>Hello" })
  local spans, message = of("openai-gpt-oss-120b", TALK)
  lu.assertNil(spans)
  lu.assertStrContains(message, "rewrites history")
end

function tests.test_spans_by_generation_marks()
  local c = assert(chat.new("{% macro say(m) %}{% generation %}{{ m.content }}</s>{% endgeneration %}{% endmacro %}"
    .. "{% for m in messages %}[{{ m.role }}]{% if m.role == 'assistant' %}{{ say(m) }}{% else %}{{ m.content }}{% endif %}{% endfor %}"))
  lu.assertEquals(spoken(c, TALK), { "Hello</s>", "4 \n</s>" })
  lu.assertEquals(c:render(TALK), "[user]Hi[assistant]Hello</s>[user]2+2?[assistant]4 \n</s>")
  -- A template that measures or changes the marked text has no spans.
  local odd = assert(chat.new "{% set x %}{% generation %}abc{% endgeneration %}{% endset %}{{ x|length }}")
  local spans, message = spoken(odd, TALK)
  lu.assertNil(spans)
  lu.assertStrContains(message, "changes what its generation blocks made")
end

function tests.test_chat_variables_and_named_templates()
  local c = assert(chat.new({ { name = "default", template = "{{ bos_token }}D{{ tools }}{{ enable_thinking }}" },
    { name = "tool_use", template = "T{{ tools|length }}" } }, { bos_token = "<s>" }))
  lu.assertEquals(c:render({}, { enable_thinking = false }), "<s>DNoneFalse")
  lu.assertEquals(c:render({}, { tools = { { type = "function" } } }), "T1")
  lu.assertErrorMsgContains("'messages' is no option", function() c:render({}, { messages = {} }) end)
  lu.assertErrorMsgContains("messages must be a list", function() c:render "hi" end)
  local none, message = chat.new "{% if %}"
  lu.assertNil(none)
  lu.assertStrContains(message, "chat template:1:7: expected an expression")
  -- Reasoning is found under each of its names.
  local r = assert(chat.new "{{ messages[0].reasoning_content }}|{{ messages[0].thinking }}")
  lu.assertEquals(r:render { { role = "assistant", content = "x", reasoning = "hm" } }, "hm|hm")
  lu.assertEquals(r:render(template.json '[{"reasoning_content": "a", "thinking": "b"}]'), "a|b")
end

-- Python's strftime is C's, in the C locale.
function tests.test_strftime_now_writes_what_c_writes()
  local form = "%Y|%y|%C|%m|%d|%e|%H|%I|%M|%S|%j|%p|%B|%b|%h|%A|%a|%w|%u|%U|%W|%n|%t|%%|%F|%T|%X|%R|%D|%x|%r|%c"
  for day = 0, 366 * 8 do
    local t = 1577836800 + day * 86400 + day * 577 % 86400 -- from 2020 on, at other hours
    local now = os.date("!*t", t)
    local write = assert(template.compile("{{ strftime_now(f) }}"))
    lu.assertEquals(write:render({ f = form }, { now = now }), os.date("!" .. form, t))
  end
  local write = assert(template.compile("{{ strftime_now('%-d.%-m. %-H:%f%Z%z %q') }}"))
  lu.assertEquals(write:render({}, { now = NOW }), "26.7. 0:000000 %q")
end

return tests
