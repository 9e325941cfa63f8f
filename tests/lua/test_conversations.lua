-- Rows of conversations in every spelling: read alike in every column, nothing lost on the way to the template,
-- nulls absent, what is left out counted; and where the assistant speaks, also in calls of tools without a text.
local lu = require "luaunit"
local peri = require "perilune"
local chat = require "perilune.text.chat"
local rows = require "perilune.data.rows"

local decode, null = peri.json.decode, peri.json.null

-- A template that writes whatever a message holds.
local ALL = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% if m.reasoning_content %}[{{ m.reasoning_content }}]"
  .. "{% endif %}{% if m.name %}({{ m.name }}){% endif %}{% for c in m.tool_calls or [] %}{{ c.function.name }}="
  .. "{{ c.function.arguments if c.function.arguments is string else c.function.arguments|tojson }}{% endfor %}<|end|>\n"
  .. "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"

local function tokenizer(source)
  local tok = peri.tokenizer.train_bpe({ "some text to learn from, some more of it" }, { vocab_size = 300,
    special_tokens = { "<|end|>" } })
  tok.chat_template = source or ALL
  return tok
end

local tok = tokenizer()

local function text_of(row)
  local e = rows.encode(tok, row, { assistant_only = false, completion_only = false })
  return tok:decode(e.ids, { skip_special = false })
end

TestSpellings = {}

local USER, ANSWER, OTHER = { role = "user", content = "hi" }, { role = "assistant", content = "yo" },
  { role = "assistant", content = "no" }
local function share(m, from) return { from = from or m.role, value = m.content } end

function TestSpellings.test_from_and_value_are_read_in_every_column()
  for _, pair in ipairs {
    { { messages = { USER, ANSWER } }, { messages = { share(USER), share(ANSWER) } } },
    { { messages = { USER, ANSWER } }, { conversations = { share(USER), share(ANSWER) } } },
    { { messages = { USER, ANSWER } }, { conversations = { USER, ANSWER } } },
    { { messages = { USER, ANSWER } }, { conversations = { share(USER, "human"), share(ANSWER, "gpt") } } },
    { { messages = { USER, ANSWER } }, { conversations = { { role = "human", content = "hi" }, share(ANSWER, "gpt") } } },
    { { prompt = { USER } }, { prompt = { share(USER, "human") } } },
    { { prompt = { USER }, completion = { ANSWER } }, { prompt = { share(USER) }, completion = { share(ANSWER, "gpt") } } },
    { { prompt = { USER }, completion = { ANSWER }, label = true },
      { prompt = { share(USER) }, completion = { share(ANSWER) }, label = true } },
    { { prompt = { USER }, chosen = { ANSWER }, rejected = { OTHER } },
      { prompt = { share(USER) }, chosen = { share(ANSWER) }, rejected = { share(OTHER, "gpt") } } },
    { { chosen = { USER, ANSWER }, rejected = { USER, OTHER } },
      { chosen = { share(USER), share(ANSWER) }, rejected = { share(USER), share(OTHER) } } },
  } do
    lu.assertEquals(rows.encode(tok, pair[2]), rows.encode(tok, pair[1]))
    lu.assertEquals({ rows.kind(pair[2]) }, { rows.kind(pair[1]) })
  end
end

function TestSpellings.test_names_of_roles()
  local list = { { "human", "user" }, { "user", "user" }, { "gpt", "assistant" }, { "chatgpt", "assistant" },
    { "model", "assistant" }, { "assistant", "assistant" }, { "system", "system" }, { "observation", "tool" },
    { "tool", "tool" }, { "tool_response", "tool" }, { "developer", "developer" } }
  local given, want = {}, {}
  for i, pair in ipairs(list) do
    given[i], want[i] = { from = pair[1], value = "x" }, { role = pair[2], content = "x" }
  end
  lu.assertEquals(rows.normal({ conversations = given }).messages, want)
end

-- LLaMA-Factory's spelling of a call, one or several, and its result.
function TestSpellings.test_calls_of_functions_become_tool_calls()
  local row = decode [[{"conversations":[{"from":"human","value":"q"},
    {"from":"function_call","value":"{\"name\":\"w\",\"arguments\":{\"z\":1,\"a\":2}}"},
    {"from":"observation","value":"sun"},
    {"from":"function_call","value":"[{\"name\":\"a\",\"arguments\":{}},{\"name\":\"b\",\"arguments\":{}}]"}]}]]
  local m = rows.normal(row).messages
  lu.assertEquals(m[2], { role = "assistant", content = "",
    tool_calls = { { type = "function", ["function"] = { name = "w", arguments = { z = 1, a = 2 } } } } })
  lu.assertEquals(m[3], { role = "tool", content = "sun" })
  lu.assertEquals(#m[4].tool_calls, 2)
  for value, part in pairs { ["no json"] = "is a call of a function", ["{}"] = "has no name" } do
    lu.assertErrorMsgContains(part, rows.encode, tok, { messages = { { from = "function_call", value = value } } })
  end
end

function TestSpellings.test_all_that_a_message_holds_reaches_the_template()
  for _, column in ipairs { "messages", "conversations" } do
    local text = text_of { [column] = { { from = "human", value = "q", name = "Ann" },
      { role = "assistant", content = "", tool_calls = { { ["function"] = { name = "w", arguments = { city = "Oslo" } } } },
        reasoning_content = "why" } } }
    lu.assertEquals(text, '<|user|>q(Ann)<|end|>\n<|assistant|>[why]w={"city": "Oslo"}<|end|>\n')
  end
end

function TestSpellings.test_messages_that_are_none_are_named()
  for message, row in pairs {
    ["message 2 of messages has no role; its keys are content"] = { messages = { USER, { content = "x" } } },
    ["message 1 of prompt is a string"] = { prompt = { "x" } },
    ["tools is an object, expected a list"] = { messages = { USER, ANSWER }, tools = { name = "x" } },
    ["tools: "] = { messages = { USER, ANSWER }, tools = "[{" },
  } do
    lu.assertErrorMsgContains(message, rows.encode, tok, row)
  end
end

-- As transformers: dicts have the order of the file, whatever was done to the row on its way.
function TestSpellings.test_objects_reach_the_template_in_the_order_of_the_file()
  local all = tokenizer(ALL .. "{{ tools|tojson }}")
  local tools = '[{"type":"function","function":{"name":"f","parameters":{"z":{"type":"string"},"a":{"b":1,"B":2}}}}]'
  local arguments = '{"zone":"B","date":"May","amount":2.0}'
  local function spaced(text) return (text:gsub("([:,])", "%1 ")) end
  for _, form in ipairs { '"content":"x"', '"content":"x","name":null', '"content":"x","reasoning":"r"' } do
    for _, role in ipairs { '"role":"assistant"', '"from":"gpt"' } do
      local row = decode(('{"tools":%s,"messages":[{%s,%s,"tool_calls":[{"function":{"name":"f","arguments":%s}}]}]}'):format(
        tools, role, form, arguments))
      local e = rows.encode(all, row, { assistant_only = false })
      local text = all:decode(e.ids, { skip_special = false })
      lu.assertStrContains(text, "f=" .. spaced(arguments))
      lu.assertStrContains(text, spaced(tools))
      row.tools = peri.json.encode(row.tools) -- as text, as some data sets hold it
      lu.assertEquals(rows.encode(all, row, { assistant_only = false }).ids, e.ids)
    end
  end
end

TestNulls = {}

-- A column that is null in this row and something in another one, as a table of columns gives it.
function TestNulls.test_null_columns_are_absent_columns()
  for _, row in ipairs { { text = "a" }, { messages = { USER, ANSWER } }, { prompt = "p" },
    { prompt = "p", completion = "c" }, { prompt = "p", chosen = "c", rejected = "r" }, { chosen = "ac", rejected = "ar" },
    { prompt = "p", completion = "c", label = false }, { prompt = "p", completions = { "a" }, labels = { true } } } do
    local padded = {}
    for _, key in ipairs { "text", "messages", "conversations", "prompt", "completion", "completions", "chosen", "rejected",
      "label", "labels", "tools", "chat_template_kwargs" } do padded[key] = null end
    for k, v in pairs(row) do padded[k] = v end
    lu.assertEquals(rows.kind(padded), rows.kind(row))
    lu.assertEquals(rows.encode(tok, padded), rows.encode(tok, row))
  end
end

function TestNulls.test_null_members_of_messages_are_absent()
  local text = text_of { messages = { { role = "user", content = "q", name = null, tool_calls = null },
    { role = "assistant", content = null, reasoning_content = null,
      tool_calls = { { ["function"] = { name = "w", arguments = { city = "Oslo", unit = null } } } } } } }
  lu.assertEquals(text, '<|user|>q<|end|>\n<|assistant|>w={"city": "Oslo"}<|end|>\n')
  local row = { messages = { USER, ANSWER } }
  lu.assertIs(rows.normal(row), row) -- nothing to do, nothing copied
end

TestReport = {}

function TestReport.test_rows_left_out_are_counted_and_named()
  local list = { { messages = { USER, ANSWER } }, { messages = { USER } }, { messages = { { content = "x" } } },
    { prompt = "only" }, { prompt = { USER }, completion = { ANSWER } } }
  lu.assertErrorMsgContains("rows: row 3: message 1 of messages has no role", rows.examples, tok, list)
  local out, report = rows.examples(tok, list, { bad = "skip" })
  lu.assertEquals(#out, 2)
  lu.assertEquals({ report.rows, report.kept, report.empty, report.unread, report.dropped }, { 5, 2, 1, 2, 3 })
  lu.assertEquals(report.text, ("2 of 5 rows are used; 1 have nothing to learn (the first is row 2); 2 cannot be read "
    .. "(row 3: message 1 of messages has no role; its keys are content)"):format())
  local _, cut = rows.examples(tok, { list[1] }, { max_length = #out[1].ids - 1 })
  lu.assertEquals({ cut.cut, cut.dropped }, { 1, 0 })
  lu.assertErrorMsgContains('unknown option "bda"; did you mean "bad"?', rows.examples, tok, list, { bda = 1 })
  local path = os.tmpname()
  assert(peri.files.write(path, peri.json.encode(list[1]) .. "\n"))
  lu.assertEquals(#rows.examples(tok, peri.data.jsonl(path)), 1) -- a stream
  os.remove(path)
end

TestSpans = {}

local CALL = '"tool_calls":[{"id":"abcdefghi","type":"function","function":{"name":"look","arguments":{"city":"Oslo"}}}]'
local TOOL = '{"role":"tool","tool_call_id":"abcdefghi","name":"look","content":"sun"}'
local Q, NEXT = '{"role":"user","content":"q"}', '{"role":"user","content":"and then?"}'
local function says(text, more) return ('{"role":"assistant","content":"%s"%s}'):format(text, more and "," .. more or "") end

-- Conversations, and what each answer in them says.
local CONVERSATIONS = {
  { { Q, says "one", NEXT, says "two" }, { "one", "two" } },
  { { Q, says("", CALL), TOOL, says "sunny" }, { "look", "sunny" } },
  { { Q, says("I look.", CALL), TOOL, says "sunny" }, { "I look.", "sunny" } },
  { { Q, says("", CALL), TOOL, says("", CALL), TOOL, says "sunny" }, { "look", "look", "sunny" } },
  { { Q, '{"role":"assistant",' .. CALL .. "}", TOOL, says "sunny", NEXT, says "rain" }, { "look", "sunny", "rain" } },
  { { Q, says "", NEXT, says "yes" }, { "", "yes" } },
  { { Q, says("one", '"reasoning_content":"I think"'), NEXT, says("two", '"reasoning_content":"again"') }, { "one", "two" } },
  { { Q, says("", '"reasoning_content":"I think",' .. CALL), TOOL, says("sunny", '"reasoning_content":"so"'), NEXT,
      says("rain", '"reasoning_content":"again"') }, { "look", "sunny", "rain" } },
  { { '{"role":"user","content":"ok"}', says "ok", '{"role":"user","content":"ok"}', says "ok" }, { "ok", "ok" } },
}

-- gpt-oss ends the last answer with another mark than those before; Gemma 4 writes what is said beside a call
-- behind the call's result: these are refused, not guessed.
local function refused(name, i)
  return name:find "gpt%-oss" ~= nil or name:find "gemma%-4" ~= nil and i == 3
end

function TestSpans.test_every_answer_is_found_under_every_template_that_writes_it()
  local count, names = 0, io.popen "ls tests/data/chat_templates/*.jinja"
  for name in names:lines() do
    local c = assert(chat.new(assert(peri.files.read(name)), { bos_token = "<s>", eos_token = "</s>" }))
    for i, conversation in ipairs(CONVERSATIONS) do
      local messages = decode("[" .. table.concat(conversation[1], ",") .. "]")
      if c:render(messages) then
        local text, spans = c:spans(messages)
        local where = ("%s, conversation %d: "):format(name, i)
        if not text and refused(name, i) then
          lu.assertStrContains(spans, "rewrites history")
          text, spans = "", {}
        else
          lu.assertNotNil(text, where .. tostring(spans))
        end
        local behind = 0
        lu.assertEquals(#spans, text ~= "" and #conversation[2] or 0, where .. "spans")
        for k, said in ipairs(text ~= "" and conversation[2] or {}) do
          local got = text:sub(spans[k][1], spans[k][2])
          lu.assertTrue(spans[k][1] > behind, where .. "order")
          lu.assertNil(got:find("and then?", 1, true), where .. got)
          -- what a template leaves out of the text cannot be in a span of it
          if text:find(said, 1, true) then lu.assertStrContains(got, said, false, where) end
          behind = spans[k][2]
        end
        count = count + 1
      end
    end
  end
  names:close()
  lu.assertTrue(count > 250, count .. " conversations")
end

-- The template of Qwen 3 leaves the think block out of answers that are no longer the last.
function TestSpans.test_tool_rows_under_a_template_that_rewrites_history()
  local c = assert(chat.new(assert(peri.files.read "tests/data/chat_templates/Qwen-Qwen3-0.6B.jinja")))
  local text, spans = c:spans(decode("[" .. table.concat(CONVERSATIONS[2][1], ",") .. "]"))
  local said = {}
  for i, s in ipairs(spans) do said[i] = text:sub(s[1], s[2]) end
  lu.assertEquals(said, { '<tool_call>\n{"name": "look", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>',
    "<think>\n\n</think>\n\nsunny<|im_end|>" })
end

os.exit(lu.LuaUnit.run())
