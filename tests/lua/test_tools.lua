-- Tools: what a call gives, whatever the model wrote and the tool did; search; the environment of calls, and the task of
-- products that is learned with it.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local tools, products = peri.tools, peri.tasks.products

-- One call: its text, and whether it failed.
local function call(tool, arguments)
  local result = tools.call { { tool = tool, arguments = arguments == nil and "" or arguments } }[1]
  return result.text, result.failed
end

local double = tools.tool { name = "double", run = function (x) return 2 * assert(tonumber(x), "a number is expected") end }

TestCalls = {}

-- However a tool ends, a call gives a text within its limits.
function TestCalls.test_every_end_of_a_tool_is_a_text()
  local ends = {
    { "return function () return 'ok' end", "ok", false },
    { "return function (x) return x end", "0:1", false },
    { "return function () return 12 end", "12", false },
    { "return function () return 3.0 end", "3", false },
    { "return function () return 0.5 end", "0.5", false },
    { "return function () return 0 / 0 end", "nan", false },
    { "return function () return -(0 / 0) end", "nan", false },
    { "return function () return nil, 'no luck' end", "no luck", true },
    { "return function () return nil, { 1 } end", "", true },
    { "return function () return ('x'):rep(70000) end", "the result has", true },
    { "return function () return true end", "true", false },
    { "return function () end", "", false },
    { "return function () return { 1, 2 } end", "[1,2]", false },
    { "return function () error 'no luck' end", "no luck", true },
    { "return function () error({}) end", "", true },
    { "return function () error() end", "", true },
    { "return function () error(setmetatable({}, { __tostring = function () error 'x' end })) end", "", true },
    { "return function () while true do end end", "it took more than", true },
    { "return function () while true do pcall(function () while true do end end) end end", "it took more than", true },
    { "return function () coroutine.yield() end", "yield", true },
    { "return function () return print end", "", true },
    { "return function () local t = {} t[1] = t return t end", "", true },
    { "return function () local x <close> = setmetatable({}, { __close = function () error 'closing' end }) error 'a' end",
      "", true },
  }
  for i, one in ipairs(ends) do
    local source, want, failed = table.unpack(one)
    for _, o in ipairs { { source = source }, { run = assert(load(source))() } } do
      o.name, o.timeout = "one", 0.1
      local text, bad = call(tools.tool(o), "0:1")
      local what = ("%d %s: %s"):format(i, o.source and "process" or "here", text)
      lu.assertEquals(bad, failed, what)
      lu.assertEquals(math.type(#text) == "integer" and text:find("\n", 1, true), nil, what)
      lu.assertStrContains(text, want, false, false, what)
    end
  end
end

-- Loops of a run: each is stopped in time, wherever it is and whatever stands around it.
local function loops()
  local create, wrap, resume = coroutine.create, coroutine.wrap, coroutine.resume
  local function forever() while true do end end
  local function deep(n) while true do if n > 0 then resume(create(function () deep(n - 1) end)) end end end
  return {
    plain = forever, coroutine = function () resume(create(forever)) end, wrapped = function () wrap(forever)() end,
    caught = function () while true do pcall(wrap(function () while true do pcall(forever) end end)) end end,
    many = function () while true do resume(create(forever)) end end, deep = function () deep(5) end,
    behind_c = function () while true do pcall(string.gsub, "x", "x", forever) end end,
    closing = function ()
      local _ <close> = setmetatable({}, { __close = forever })
      forever()
    end,
    iterator = function () for _ in wrap(forever) do end end,
  }
end

local function stopped(list)
  local lib, out = require "perilune", {}
  for name, run in pairs(list()) do
    local began = lib.time()
    local result = lib.tools.call { { tool = lib.tools.tool { name = "one", run = run, timeout = 0.05 }, arguments = "" } }[1]
    out[name] = { result.failed, result.text, lib.time() - began < 5 }
  end
  return out
end

function TestCalls.test_every_loop_is_stopped_and_nothing_is_left_changed()
  local before = { debug.gethook(), coroutine.create, coroutine.wrap, coroutine.resume }
  local want = {}
  for name in pairs(loops()) do want[name] = { true, "it took more than 0.05 s", true } end
  lu.assertEquals(stopped(loops), want)
  lu.assertEquals(peri.worker(stopped, loops):result(), want) -- whose hook is the host's
  lu.assertEquals({ debug.gethook(), coroutine.create, coroutine.wrap, coroutine.resume }, before)
  -- a coroutine that outlives the call runs on without a deadline, and a call in a call ends with its own
  local kept
  lu.assertEquals(call(tools.tool { name = "one", timeout = 0.05, run = function ()
    kept = coroutine.wrap(function () for i = 1, math.huge do coroutine.yield(i) end end)
    return kept()
  end }), "1")
  local untimed = peri.time() + 0.1
  while peri.time() < untimed do lu.assertEquals(math.type(kept()), "integer") end
  local inner = tools.tool { name = "inner", timeout = 0.05, run = loops().coroutine }
  local outer = tools.tool { name = "outer", timeout = 20, run = function () return (call(inner, "")) end }
  lu.assertEquals({ call(outer, "") }, { "it took more than 0.05 s", false })
  inner = tools.tool { name = "inner", timeout = 20, run = loops().many }
  outer = tools.tool { name = "outer", timeout = 0.05, run = function () return (call(inner, "")) end }
  lu.assertEquals({ call(outer, "") }, { "it took more than 0.05 s", true })
  lu.assertEquals({ call(double, "4") }, { "8", false })
end

function TestCalls.test_a_process_has_limits_of_memory_and_output()
  local function small(source) return tools.tool { name = "one", source = source, memory = 4 << 20, output = 1000 } end
  local text, failed = call(small "return function () return ('x'):rep(1 << 26) end")
  lu.assertTrue(failed)
  lu.assertStrContains(text, "memory")
  for _, source in ipairs { "return function () for i = 1, 1e6 do print(i) end end",
    "return function () return ('x'):rep(100000) end" } do
    text, failed = call(small(source))
    lu.assertTrue(failed and #text < 200, text)
    lu.assertStrContains(text, "1000 bytes")
  end
  lu.assertTrue(select(2, call(small "return function () return io.open '/etc/passwd' end")))
end

-- Arguments are data on their way into a process, whatever they look like.
function TestCalls.test_arguments_arrive_as_they_are()
  local echo = tools.tool { name = "echo", source = "return function (x) return x end" }
  for _, text in ipairs { "", "a\nb\0c\"]]\\", "')) os.exit(1) --", ("x"):rep(10000), "\xff\xfe" } do
    lu.assertEquals(call(echo, text), text)
  end
  local sum = tools.tool { name = "sum", source = "return function (t) return t.a + #t.list + t.list[2].b end" }
  lu.assertEquals(call(sum, { a = 1, list = { 2, { b = 0.5 } } }), "3.5")
end

function TestCalls.test_a_calculator_computes_and_never_runs_code()
  local calculator = tools.calculator()
  for text, want in pairs { ["123*4567"] = "561741", ["99999*99999"] = "9999800001", [" ( 1 + 2 ) * 3 "] = "9", ["7/2"] = "3.5",
    ["6/3"] = "2", ["2-5"] = "-3", ["9007199254740993*3"] = "27021597764222979",
    ["99999999999*99999999999"] = "9.9999999998e+21", ["9223372036854775807+1"] = "9.2233720368548e+18",
    ["-9223372036854775807-9"] = "-9.2233720368548e+18" } do
    lu.assertEquals({ call(calculator, text) }, { want, false }, text)
  end
  for _, text in ipairs { "", "1+", "2**3", "2^3", "os.exit()", "1/0", ("("):rep(1000), ("9"):rep(400) .. "*2",
    ("1+"):rep(5000) .. "1", "1;2", "0x10" } do
    lu.assertTrue(select(2, call(calculator, text)), text:sub(1, 20))
  end
end

function TestCalls.test_an_interpreter_gives_what_code_prints_and_returns()
  local lua = tools.interpreter { timeout = 0.2, output = 200 }
  for code, want in pairs { ["1 + 1"] = "2", ["print 'a' return 5"] = "a\n5", ["local s = 0 for i = 1, 10 do s = s + i end return s"] = "55",
    ["{ 1, { x = 'y' } }"] = '[1,{"x":"y"}]', ["print(1)"] = "1\n", ["x = 1"] = "", ["return 1, 2"] = "1\t2",
    ["1, nil, { 'a' }, nil"] = '1\tnil\t["a"]\tnil', ["return nil, 'x'"] = "nil\tx", ["return nil"] = "" } do
    lu.assertEquals({ call(lua, code) }, { want, false }, code)
  end
  for _, code in ipairs { "x = = 1", "error 'no'", "while true do end", "io.read()", "('x'):rep(1e9)", "\27Lua", "return print",
    "1, print", "coroutine.create(print)", "('x'):rep(1000)" } do
    lu.assertTrue(select(2, call(lua, code)), code)
  end
end

function TestCalls.test_what_is_no_tool_is_said()
  local function bad(message, o) lu.assertErrorMsgContains(message, tools.tool, o) end
  bad("name is missing", { run = print })
  bad("name is \"a b\", expected letters", { name = "a b", run = print })
  bad("one has neither run nor source, expected one", { name = "one" })
  bad("one has both run and source", { name = "one", run = print, source = "" })
  bad("one has a run and memory is 65536: that limits source alone", { name = "one", run = print, memory = 65536 })
  for source, message in pairs { ["x ="] = "unexpected symbol", ["return 3"] = "it returns a number", [""] = "it returns a nil",
    ["os.exit()"] = "source of one: ", ["error 'no'"] = "no; expected", ["while true do end"] = "it took more than",
    ["\27Lua"] = "source of one: " } do
    bad(message, { name = "one", source = source, timeout = 0.1 })
    bad("expected Lua text that returns a function", { name = "one", source = source, timeout = 0.1 })
  end
end

-- What a call is made of is named where it is wrong.
function TestCalls.test_what_is_no_call_is_said()
  local echo = tools.tool { name = "echo", source = "return function (x) return x end" }
  local endless = {}
  endless[1] = endless
  for message, calls in pairs { ["call 1 has no tool of tools.tool"] = { {} }, ["calls has the field tool"] = { tool = double },
    ["calls has the field 3"] = { { tool = double, arguments = "1" }, [3] = {} },
    ['call 1: unknown field "args"'] = { { tool = double, args = "1" } }, ["call 2, of double, has no arguments"] =
    { { tool = double, arguments = "1" }, { tool = double } }, ["of echo, hold a function"] = { { tool = echo, arguments = { print } } },
    ["of echo, hold a table that is too deep"] = { { tool = echo, arguments = endless } } } do
    lu.assertErrorMsgContains(message, tools.call, calls)
  end
  lu.assertErrorMsgContains("calls is 3", tools.call, 3)
  lu.assertEquals(tools.call {}, {})
end

-- A tool is made of one table, a search of a folder and one; whatever else is given is an error.
function TestCalls.test_every_constructor_refuses_what_it_does_not_read()
  for name, positional in pairs { calculator = 0, interpreter = 0, search = 1, tool = 0 } do
    local given = { {}, {}, {} }
    if positional == 1 then given[1] = "folder" end
    lu.assertErrorMsgContains("tools." .. name .. ": 3 arguments, expected at most " .. positional, tools[name],
      table.unpack(given))
    given = table.move({ "a", "b" }, 1, positional + 1, 1, {})
    lu.assertErrorMsgContains("tools." .. name, tools[name], table.unpack(given))
    given = { [positional + 1] = { nmae = "x" }, [positional] = positional == 1 and "folder" or nil }
    lu.assertErrorMsgContains('unknown option "nmae"', tools[name], table.unpack(given, 1, positional + 1))
  end
  lu.assertErrorMsgContains("2 arguments, expected at most 0", tools.interpreter, nil, { timeout = 1 })
end

-- ---- search ----

TestSearch = {}

local function folder_of(files)
  local folder = scratch.folder()
  assert(peri.files.make_folder(folder .. "/deep"))
  for name, text in pairs(files) do assert(peri.files.write(folder .. "/" .. name, text)) end
  return folder
end

function TestSearch.test_the_best_passages_come_first_with_their_files()
  local folder = folder_of { ["a.txt"] = "The cat sat.\n\nA dog ran far away over the hills and the cat slept.",
    ["deep/b.md"] = "cat cat cat", ["c.bin"] = "cat", ["d.txt"] = "Nothing here." }
  local search = tools.search { folder = folder, results = 2 }
  lu.assertEquals(call(search, "CAT"), "deep/b.md: cat cat cat\na.txt: The cat sat.")
  lu.assertEquals(call(search, "dog?"), "a.txt: A dog ran far away over the hills and the cat slept.")
  lu.assertEquals(call(search, { query = "nothing" }), "d.txt: Nothing here.")
  for _, words in ipairs { "", "zebra", "../../etc/passwd", "%w[", "\0" } do
    lu.assertEquals(call(search, words), "nothing was found")
  end
  lu.assertTrue(select(2, call(search, { 1, 2 })))
  peri.files.remove_tree(folder)
end

-- The folder and options by place are those of one table; links are not followed, round or out.
function TestSearch.test_a_folder_is_what_lies_in_it()
  local folder, outside = folder_of { ["a.txt"] = "one cat", ["deep/b.txt"] = "two cat" }, folder_of { ["c.txt"] = "three cat" }
  local one = { "a.txt: one cat" }
  lu.assertEquals(call(tools.search(folder, { results = 1 }), "cat"), one[1])
  lu.assertEquals(call(tools.search { folder = folder, results = 1 }, "cat"), one[1])
  local before = call(tools.search(folder), "cat")
  for name, target in pairs { ["loop"] = "..", ["deep/up"] = "..", ["out"] = outside, ["out.txt"] = outside .. "/c.txt",
    ["again.txt"] = "a.txt", ["nowhere.txt"] = "none", ["self.txt"] = "self.txt" } do
    assert(os.execute(("ln -s '%s' '%s/%s'"):format(target, folder, name)))
  end
  assert(os.execute(("mkfifo '%s/pipe.txt'"):format(folder)))
  lu.assertEquals(call(tools.search(folder), "cat"), before)
  assert(os.execute(("ln -s '%s' '%s/root'"):format(folder, outside))) -- the folder itself may be one
  lu.assertEquals(call(tools.search(outside .. "/root"), "cat"), before)
  assert(peri.files.make_folder(folder .. "/links"))
  assert(os.execute(("ln -s ../a.txt '%s/links/a.txt'"):format(folder)))
  lu.assertErrorMsgContains("has no texts (txt, md); 1 links were not followed", tools.search, folder .. "/links")
  peri.files.remove_tree(folder)
  peri.files.remove_tree(outside)
end

-- BM25 by its formula over all passages, for every word.
function TestSearch.test_scores_are_those_of_the_formula()
  local rng, docs, files = peri.rng(3), {}, {}
  for d = 1, 12 do
    local words = {}
    for k = 1, rng:int(1, 9) do words[k] = ("w%d"):format(rng:int(1, 5)) end
    docs[d], files[("%02d.txt"):format(d)] = words, table.concat(words, " ")
  end
  local folder, mean = folder_of(files), 0
  for _, words in ipairs(docs) do mean = mean + #words / #docs end
  local search = tools.search { folder = folder, results = 100 }
  for w = 1, 5 do
    local word, scores, df, order = "w" .. w, {}, 0, {}
    for d, words in ipairs(docs) do
      local tf = 0
      for _, one in ipairs(words) do tf = tf + (one == word and 1 or 0) end
      if tf > 0 then df, scores[d], order[#order + 1] = df + 1, tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * #words / mean)), d end
    end
    table.sort(order, function (a, b) return scores[a] == scores[b] and a < b or scores[a] > scores[b] end)
    local text, found = call(search, word), {}
    for name in text:gmatch "(%d+)%.txt" do found[#found + 1] = tonumber(name) end
    lu.assertEquals(found, order, word)
  end
  peri.files.remove_tree(folder)
end

function TestSearch.test_long_paragraphs_are_cut_and_folders_without_texts_refused()
  local folder = folder_of { ["a.txt"] = ("word "):rep(100) .. ("é"):rep(100) }
  local text = call(tools.search { folder = folder, passage = 50, results = 100 }, "word")
  for line in text:gmatch "[^\n]+" do lu.assertTrue(#line <= 50 + #"a.txt: " and utf8.len(line) ~= nil, line) end
  lu.assertErrorMsgContains("has no texts (lua)", tools.search, { folder = folder, extensions = { "lua" } })
  lu.assertErrorMsgContains("more than max_bytes, 10", tools.search, { folder = folder, max_bytes = 10 })
  lu.assertErrorMsgContains("tools.search: ", tools.search, folder .. "/none")
  peri.files.remove_tree(folder)
end

-- ---- the environment ----

TestEnvironment = {}

local letters = "abcdefghijklmnopqrstuvwxyz0123456789 <>/(){}[]\",:.+-*=^;'|_\n"
local chars = peri.text.chars(letters .. "\u{e9}")

local function talk_of(tok, said)
  local ids = tok:encode(said)
  return { row = { prompt = "?" }, turn = 1, ids = ids, text = tok:decode(ids), tokens = ids }
end

-- What a turn is answered with, and what was counted.
local function answer(env, tok, said, last)
  local talk = talk_of(tok, said)
  talk.last = last
  local reply = env:reply({ talk })[1]
  return reply and tok:decode(reply), talk.calls, talk.failed
end

local keys = tools.tool { name = "keys", run = function (t) return type(t) == "table" and t.a or "no table" end }

function TestEnvironment.test_calls_are_read_as_models_write_them()
  local env = tools.environment { tools = { double, keys }, tokenizer = chars }
  for said, want in pairs {
    ["so <tool>double 4</tool>"] = { "<res>8</res>", 1, 0 },
    ["<tool> double(4) </tool> and"] = { "<res>8</res>", 1, 0 },
    ['<tool>{"name": "double", "arguments": "5"}</tool>'] = { "<res>10</res>", 1, 0 },
    ['<tool>{"name": "keys", "arguments": {"a": 3}}</tool>'] = { "<res>3</res>", 1, 0 },
    ["<tool>double 1</tool><tool>double 2</tool>"] = { "<res>2</res><res>4</res>", 2, 0 },
    ["no call"] = { false, 0, 0 },
    [""] = { false, 0, 0 },
  } do lu.assertEquals({ answer(env, chars, said) }, want, said) end
end

-- Whatever a model writes is answered with a text, and counted.
function TestEnvironment.test_malformed_calls_are_told_so()
  local env = tools.environment { tools = { double, keys }, tokenizer = chars, most = 60 }
  for said, want in pairs {
    ["<tool>double four</tool>"] = "a number is expected",
    ["<tool>triple 4</tool>"] = "there is no tool triple; there are: double, keys",
    ["<tool></tool>"] = "there is no tool",
    ["<tool>{\"name\": </tool>"] = "the call is no ",
    ["<tool>{\"arguments\": 3}</tool>"] = "the call has no name",
    ["<tool>{\"name\": 3}</tool>"] = "the call has no name",
    ["<tool>[1]</tool>"] = "there is no tool [1]",
    ["<tool>double 4"] = "a call stands between <tool> and </tool>",
    ["double 4</tool>"] = "a call stands between <tool> and </tool>",
    ["</tool><tool>"] = "a call stands between",
  } do
    local text, calls, failed = answer(env, chars, said)
    lu.assertEquals({ calls, failed }, { 1, 1 }, said)
    lu.assertStrContains(text:lower(), "<err>")
    -- capitals are not of this alphabet
    lu.assertStrContains(text, (want:gsub("%u", "")):sub(1, 50), false, false, said)
  end
  local text, calls, failed = answer(env, chars, ("<tool>double 1</tool>"):rep(12))
  lu.assertEquals({ calls, failed }, { 12, 4 })
  lu.assertStrContains(text, "more than 8 calls in one turn")
  text, calls, failed = answer(env, chars, "<tool>double 1</tool>", true)
  lu.assertEquals({ calls, failed }, { 1, 1 })
  lu.assertStrContains(text, "there is no turn left to read a result")
end

function TestEnvironment.test_a_tool_is_called_by_its_name()
  local env = tools.environment { tools = { double, tools.interpreter() }, tokenizer = chars }
  lu.assertEquals({ env:tool("double", "4") }, { "8", false })
  lu.assertEquals({ env:tool("lua", "6 * 7") }, { "42", false })
  lu.assertEquals({ env:tool("triple", "4") }, { "there is no tool triple; there are: double, lua", true })
end

function TestEnvironment.test_calls_may_be_read_otherwise()
  local env = tools.environment { tools = { keys, double }, tokenizer = chars, read = function (text)
    if text == "huh" then return nil, "what is asked" end
    return text:match "^%a+", { a = text:match "%d+" }
  end }
  lu.assertEquals(answer(env, chars, "<tool>keys 12</tool>"), "<res>12</res>")
  lu.assertEquals({ answer(env, chars, "<tool>huh</tool>") }, { "<err>what is asked</err>", 1, 1 })
  lu.assertEquals({ answer(env, chars, "<tool>other 1</tool>") },
    { "<err>there is no tool other; there are: keys, double</err>", 1, 1 })
end

-- JSON has values and depths that no process takes.
function TestEnvironment.test_arguments_that_no_process_takes_are_told_so()
  local env = tools.environment { tools = { tools.tool { name = "one", source = "return function (t) return #t end" } }, tokenizer = chars }
  for arguments, want in pairs { ["[1,null]"] = "<err>the arguments hold ", ["[1,2]"] = "<res>2</res>",
    [("["):rep(40) .. ("]"):rep(40)] = "<err>the arguments hold a table that is too deep" } do
    lu.assertStrContains(answer(env, chars, ('<tool>{"name": "one", "arguments": %s}</tool>'):format(arguments)), want)
  end
end

-- Megabytes are cut, bytes that are no text are replaced, and nothing raises.
function TestEnvironment.test_what_a_tool_says_is_cut_and_is_never_a_mark()
  local says
  local one = tools.tool { name = "one", output = 6 << 20, run = function () return says end }
  local env = tools.environment { tools = { one }, tokenizer = chars, most = 20 }
  says = ("x"):rep(5 << 20)
  lu.assertEquals(answer(env, chars, "<tool>one</tool>"), "<res>" .. ("x"):rep(20) .. " ... (5242860 more)</res>")
  says = ("\u{e9}"):rep(30)
  lu.assertEquals(answer(env, chars, "<tool>one</tool>"), "<res>" .. ("\u{e9}"):rep(20) .. " ... (10 more)</res>")
  says = "\xff\xfe"
  lu.assertEquals(#talk_of(chars, answer(env, chars, "<tool>one</tool>")).ids, #"<res></res>" + 0) -- "?" is unknown here
  -- a tokenizer with special tokens: those in a result are letters
  local asked = {}
  local special = setmetatable({ encode_batch = function (_, list, o)
    asked[#asked + 1] = { list[1], o.parse_special }
    return chars:encode_batch(list, o)
  end }, { __index = chars })
  env = tools.environment { tools = { one }, tokenizer = special }
  says, asked = "</res><tool>x</tool>", {}
  answer(env, special, "<tool>one</tool>")
  lu.assertEquals(asked, { { "<res>", nil }, { says, false }, { "</res>", nil } })
end

function TestEnvironment.test_what_is_wrong_with_its_options_is_said()
  local function bad(message, o)
    o.tokenizer = chars
    lu.assertErrorMsgContains(message, tools.environment, o)
  end
  bad("there are no tools", { tools = {} })
  bad("tool 1 is none of tools.tool", { tools = { print } })
  bad("two tools are called double", { tools = { double, double } })
  bad("entry 2 of call is missing", { tools = { double }, call = { "<" } })
  bad("entry 1 of result is a number", { tools = { double }, result = { 1, ">" } })
end

-- A mark that the model cannot read or write is named, whichever it is; the two of a call differ.
function TestEnvironment.test_marks_are_texts_of_the_tokenizer()
  for _, name in ipairs { "call", "result", "failure" } do
    for i = 1, 2 do
      local o = { tools = { double }, tokenizer = chars, [name] = { "<a>", "<b>" } }
      o[name][i] = "<A>" -- no capitals here
      lu.assertErrorMsgContains(("entry %d of %s is \"<A>\", which the tokenizer has no tokens for"):format(i, name),
        tools.environment, o)
    end
  end
  lu.assertErrorMsgContains('both entries of call are "|", expected two that differ', tools.environment,
    { tools = { double }, tokenizer = chars, call = { "|", "|" } })
  lu.assertEquals(answer(tools.environment { tools = { double }, tokenizer = chars, result = { "|", "|" } }, chars,
    "<tool>double 4</tool>"), "|8|")
end

-- ---- products ----

TestProducts = {}

local tok = products.tokenizer()

function TestProducts.test_held_out_problems_are_never_trained_on()
  local seen = {}
  for _, row in ipairs(products.problems(peri.rng(1), 5000)) do
    seen[row.prompt] = true
    lu.assertEquals(tonumber(row.answer), row.a * row.b)
    lu.assertEquals(row.easy, row.a < 10 and row.b < 10)
    if not row.easy then lu.assertTrue(row.a >= 100 and row.b >= 100 and row.a < 1e5 and row.b < 1e5) end
  end
  for _, row in ipairs(products.problems(peri.rng(2), 2000, { easy = 0, held_out = true })) do
    lu.assertNil(seen[row.prompt])
  end
  lu.assertEquals(#products.easy(), 100)
end

function TestProducts.test_the_corpus_has_its_shares()
  local rows = products.corpus(peri.rng(3), 8000, { calls = 0.5 })
  local calls, copied, answered = 0, 0, 0
  for i, example in ipairs(products.examples(tok, rows)) do
    local said = rows[i].said
    lu.assertEquals(#example.ids, #example.mask)
    lu.assertEquals(example.ids[#example.ids], tok.eos)
    if said[3] then
      calls = calls + 1
      local a, b = said[1]:gsub("[^%d*]", ""):match "(%d+)%*(%d+)"
      local result = said[2]:gsub("%D", "")
      lu.assertEquals(tonumber(result), a * b)
      if rows[i].answer == result and a == tostring(rows[i].a) and b == tostring(rows[i].b) then copied = copied + 1 end
      if said[3]:gsub("%D", "") == result then answered = answered + 1 end
      -- the result is read, and nothing of it learned
      local from = #tok:encode(rows[i].prompt) + #tok:encode(said[1])
      for k = from + 1, from + #tok:encode(said[2]) do lu.assertEquals(example.mask[k], 0) end
      lu.assertEquals({ example.mask[from], example.mask[from + #tok:encode(said[2]) + 1] }, { 1, 1 })
    end
  end
  lu.assertAlmostEquals(calls / #rows, 0.5, 0.02)
  lu.assertAlmostEquals(copied / calls, 0.7, 0.03)
  lu.assertAlmostEquals(answered / calls, 0.8, 0.03)
end

-- The reward: 1 for the exact answer, in the last turn and alone, less the price of calls.
function TestProducts.test_only_the_exact_answer_pays()
  local env = products.environment(tok, { price = 0.2 })
  local row = products.problems(peri.rng(1), 1, { easy = 0 })[1]
  local digits = row.answer:gsub(".", "%0 "):sub(1, -2)
  local function reward(said, over, calls)
    return env.reward(row, "", {}, { text = said, over = over or "stop", calls = calls })
  end
  lu.assertEquals(reward("ans " .. digits), 1)
  lu.assertEquals(reward("ans " .. digits, "stop", 1), 0.8)
  for _, said in ipairs { "ans", "ans " .. digits .. " 0", digits, "ans ans " .. digits, "= ans " .. digits, "" } do
    lu.assertEquals(reward(said), 0, said)
  end
  lu.assertEquals(reward("ans " .. digits, "turns"), 0)
  lu.assertEquals(reward("ans " .. digits, "length"), 0)
end

function TestProducts.test_its_environment_answers_a_call_and_without_the_tool_none()
  local env = products.environment(tok)
  lu.assertEquals({ answer(env, tok, "<tool> 1 2 * 3 4 </tool>") }, { "<res> 4 0 8 </res>", 1, 0 })
  lu.assertEquals({ answer(env, tok, "<tool> 1 2 * * 4 </tool>") }, { "<err> </res>", 1, 1 })
  lu.assertEquals({ answer(env, tok, "1 2 * 3 4 </tool>") }, { "<err> </res>", 1, 1 })
  lu.assertEquals({ answer(env, tok, "ans 1 2") }, { false, 0, 0 })
  local without = products.environment(tok, { tool = false })
  lu.assertNil(without:reply(talk_of(tok, "<tool> 1 * 2 </tool>")))
  lu.assertEquals(without.stop, env.stop)
end

-- ---- the game ----

TestQuest = {}

local quest = peri.tasks.quest
local words = quest.tokenizer()

-- A conversation of commands: what the game said to each, and what it was worth.
local function played(world, list, price)
  local env, said = quest.environment(words, { price = price }), {}
  local talk = { row = world, turn = 0 }
  for i, command in ipairs(list) do
    talk.turn, talk.text, talk.ids = i, command, words:encode(command)
    said[i] = env:reply(talk) or false
  end
  return said, env.reward(world, "", {}, talk), talk
end

function TestQuest.test_the_rules()
  local world = { start = 1, key = 2, chest = 6 } -- hall, study, cellar
  local said, worth, talk = played(world, { "open .", "north .", "take .", "east .", "take .", "take .", "south .", "east .",
    "open ." }, 0.1)
  lu.assertEquals(said, { "nothing :", "wall :", "nothing :", "study key :", "taken :", "nothing :", "kitchen :",
    "cellar chest :", false })
  lu.assertAlmostEquals(worth, 0.1, 1e-9)
  lu.assertTrue(talk.game.won)
  said, worth = played(world, { "south .", "east .", "east .", "open .", "dance .", ".", "east east ." })
  lu.assertEquals(said, { "garden :", "kitchen :", "cellar chest :", "locked :", "what :", "what :", "what :" })
  lu.assertEquals(worth, 0)
  local env = quest.environment(words)
  talk = { row = world, ids = { words.eos }, text = "" }
  lu.assertNil(env:reply(talk)) -- gives up
  lu.assertEquals(env.reward(world, "", {}, talk), 0)
  lu.assertEquals(env.reward(world, "", {}, {}), 0) -- a turn that was cut before the game heard one
end

-- shortest is that of a search over all plays, in every world; both parts are all there is.
function TestQuest.test_the_fewest_turns_are_those_of_a_search()
  local all = table.move(quest.worlds(true), 1, #quest.worlds(true), #quest.worlds(false) + 1, quest.worlds(false))
  lu.assertEquals(#all, 6 * 6 * 5)
  local seen = {}
  local ways = { "north .", "south .", "west .", "east .", "take .", "open ." }
  for n, world in ipairs(all) do
    local name = world.start .. " " .. world.key .. " " .. world.chest
    lu.assertNil(seen[name])
    seen[name] = true
    if n % 9 == 0 then
      local level, known, turns = { {} }, {}, 0
      local found
      while not found do
        local following = {}
        turns = turns + 1
        for _, list in ipairs(level) do
          for _, way in ipairs(ways) do
            local more = table.move(list, 1, #list, 1, {})
            more[#more + 1] = way
            local _, _, talk = played(world, more)
            local place = talk.game.at .. tostring(talk.game.has)
            found = found or talk.game.won
            if not known[place] then known[place], following[#following + 1] = true, more end
          end
        end
        level = following
      end
      lu.assertEquals(turns, world.shortest, name)
    end
  end
end

function TestQuest.test_the_corpus_is_of_its_games()
  local worlds = quest.worlds(false)
  local rows = quest.corpus(peri.rng(1), worlds, 200)
  local won = 0
  for i, example in ipairs(quest.examples(words, rows)) do
    local mine = {}
    for k, text in ipairs(rows[i].said) do if k % 2 == 1 then mine[#mine + 1] = text end end
    lu.assertTrue(#mine <= 12)
    won = won + (rows[i].won and 1 or 0)
    for _, world in ipairs(worlds) do
      if world.prompt == rows[i].prompt then
        local said, _, talk = played(world, mine)
        local same = talk.game.won or not rows[i].won
        for k = 1, #mine - 1 do same = same and said[k] == rows[i].said[2 * k] end
        if same then mine.fits = true end
      end
    end
    lu.assertTrue(mine.fits)
    local learned = 0
    for k, flag in ipairs(example.mask) do
      learned = learned + flag
      lu.assertTrue(example.ids[k] ~= words.unk)
    end
    lu.assertEquals(learned, 2 * #mine)
  end
  lu.assertTrue(won > 10 and won < 190)
end

os.exit(lu.LuaUnit.run())
