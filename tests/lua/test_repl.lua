-- The prompt: what it prints for what is typed, and completion. Editing a line is libedit's part.
local lu = require "luaunit"
local peri = require "perilune"

local program = arg[-2] or "build/perilune"

-- Output of a prompt that reads text.
local function typed(text, env)
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write(text)
  file:close()
  local run = io.popen(("%s %s repl <%s 2>&1"):format(env or "", program, path))
  local out = run:read "a"
  run:close()
  os.remove(path)
  return out
end

TestRepl = {}

function TestRepl:test_expressions_print_their_values()
  lu.assertEquals(typed "1 + 1\n", "2\n")
  lu.assertEquals(typed "1, nil, 'x'\n", "1\tnil\tx\n")
  lu.assertEquals(typed "nil\n", "nil\n")
  lu.assertEquals(typed "x = 3\nx\n", "3\n")
  lu.assertEquals(typed "local a = 1\na\n", "nil\n")
  lu.assertStrContains(typed "peri.ones{2}\n", "tensor (2) f32 cpu\n[1., 1.]")
  lu.assertEquals(typed "6 * 7\n_ + 1\n", "42\n43\n")
  lu.assertEquals(typed "print('a')\n", "a\n")
end

function TestRepl:test_the_last_expression_of_a_line_prints()
  for text, want in pairs {
    ["x = 3; x"] = "3\n",
    ["x = 1; y = 2; x + y, y"] = "3\t2\n",
    ["local a = 5; a * 2"] = "10\n",
    ["peri.seed(1); peri.ones{1}:item()"] = "1.0\n",
    ["string.rep('a', 2); string.rep('b', 2)"] = "bb\n",
    ["x = 'a; b'; x"] = "a; b\n",
    ["x = [[a; b]]; #x"] = "4\n",
    ["x = 3 -- as before; x"] = "",
    ["x = 3; -- x"] = "",
    ["x = 5; --[[ c ]] x"] = "5\n",
    ["x = 5 -- c"] = "",
    ["5 -- c"] = "5\n",
    ["for i = 1, 2 do end; 5"] = "5\n",
    ["x = 3 --[[ ; ]]; x"] = "3\n",
    ["x = 'it\\'s; x'; #x"] = "7\n",
    ["print('a;b'); print(2)"] = "a;b\n2\n",
    ["for i = 1, 2 do x = i; print(x) end"] = "1\n2\n",
    ["do local x = 1; x = 2 end"] = "",
    ["(function() local a = 1; return a end)()"] = "1\n",
    ["t = {1; 2; 3}; #t"] = "3\n",
    ["5;"] = "5\n",
    ["=6, 7"] = "6\t7\n",
    ["8 -- so"] = "8\n",
    ["return 6"] = "6\n",
    ["goto done; ::done::"] = "",
    [";;"] = "",
    [""] = "",
    ["-- nothing"] = "",
  } do
    lu.assertEquals(typed(text .. "\n"), want, text)
  end
  lu.assertEquals(typed "x = 1; f = function()\nreturn 7\nend; f()\n", "7\n")
  lu.assertStrContains(typed "x = 1;\nx = 2; error 'here'\n", "stdin:1: here")
end

function TestRepl:test_values_print_as_what_they_are()
  lu.assertEquals(typed "peri.zeros{2, 3}.shape\n", "(2, 3)\n")
  lu.assertEquals(typed "{1, 'two', {three = 4 > 3}}\n", '{1, "two", {three = true}}\n')
  lu.assertEquals(typed "0/0, -(0/0), {0/0}\n", "nan\tnan\t{nan}\n")
  lu.assertEquals(typed "1, {2}\n", "1\t{2}\n")
  lu.assertEquals(typed "1, peri.ones{1}\n", "1\ntensor (1) f32 cpu\n[1.]\n")
  lu.assertEquals(typed "'a\\nb'\n", "a\nb\n")
  lu.assertStrContains(typed "peri.info()\n", '\n  version = "')
  lu.assertStrContains(typed "peri.memory()\n", "tensors = 0")
  lu.assertStrContains(typed "peri.nn\n", "module perilune.nn")
  lu.assertEquals(typed "peri.softmax\n", "function softmax(x, dim?)\n")
  lu.assertEquals(typed "t = {} t.t = t; t\n", "{t = (the table around it)}\n")
  lu.assertEquals(typed "setmetatable({}, { __tostring = function() return 'mine' end })\n", "mine\n")
  lu.assertStrContains(typed "setmetatable({}, { __tostring = function() error 'oops' end })\n", "__tostring fails: stdin:1: oops")
  lu.assertNotStrContains(typed("{1, 'x', peri}\n", "TERM=xterm"), "\27") -- not on a terminal
  lu.assertEquals(typed "print = function(...) io.write('<', ..., '>') end\n{1}\n", "<{1}>")
  lu.assertEquals(typed "{1}\n_[1] + 1\n", "{1}\n2\n")
end

function TestRepl:test_exit_and_quit_say_how_to_leave()
  for _, text in ipairs { "exit", "quit", "exit()", "quit()" } do
    lu.assertEquals(typed(text .. "\n1\n"), "Ctrl-D leaves.\n1\n")
  end
  lu.assertEquals(typed "exit = 3; exit\n", "3\n")
end

function TestRepl:test_errors_blame_the_line_that_was_typed()
  for text, want in pairs {
    ["peri.softmx(1)"] = "stdin:1: perilune has no 'softmx'; did you mean 'softmax'?",
    ["peri.optim.AdamW(peri.nn.Linear(1, 2), { foo = 3 })"] = 'stdin:1: AdamW: unknown option "foo"',
    ["x = 1; peri.nn.Linear(1)"] = "stdin:1: Linear: out_features is missing",
    ["peri.nn.Linear(2, 2)(peri.ones{3})"] = "stdin:1: linear: ",
    ["peri.nosuch"] = "stdin:1: perilune has no 'nosuch'",
    ["x = 1; peri.nosuch"] = "stdin:1: perilune has no 'nosuch'",
    ["peri.zeros{-1}"] = "stdin:1: zeros: ",
    ["peri.nn.Liner"] = "stdin:1: perilune.nn has no 'Liner'",
    ["x = 1; peri.nn.Liner -- what"] = "stdin:",
  } do
    lu.assertEquals(typed(text .. "\n"):match "^[^\n]*":sub(1, #want), want)
  end
end

function TestRepl:test_a_statement_may_span_lines()
  lu.assertEquals(typed "for i = 1, 2 do\nprint(i)\nend\n'done'\n", "1\n2\ndone\n")
  lu.assertEquals(typed "x =\n5\nx\n", "5\n")
  lu.assertEquals(typed "s = [[a\nb]]\ns\n", "a\nb\n")
  lu.assertEquals(typed "(function()\nreturn 7 end)()\n", "7\n")
end

function TestRepl:test_errors_show_a_traceback_and_go_on()
  local out = typed "local function f() error 'oops' end f()\n1\n"
  lu.assertStrContains(out, "stdin:1: oops")
  lu.assertStrContains(out, "stack traceback")
  lu.assertStrContains(out, "\n1\n")
  lu.assertNotStrContains(out, "repl.lua")
  lu.assertStrContains(typed "x = = 1\n", "unexpected symbol near '='")
  lu.assertStrContains(typed "error({code = 7})\n", "error object is a table value (code = 7)")
  lu.assertStrContains(typed "for\n", "<eof>")
end

function TestRepl:test_init_and_a_last_line_without_newline()
  lu.assertEquals(typed("v\n", "LUA_INIT='v = 9'"), "9\n")
  lu.assertEquals(typed "3", "3\n")
  lu.assertStrContains(typed "help 'gelu'", "peri.gelu(")
end

function TestRepl:test_completion()
  package.preload["perilune.line"] = package.preload["perilune.line"] or function() return {} end
  local complete = require("perilune.repl").complete
  _G.sample_tensor = peri.ones { 2 }
  lu.assertEquals(complete "string.for", "mat")
  lu.assertEquals(complete "x = string.for", "mat")
  lu.assertEquals(complete "sample_te", "nsor")
  lu.assertEquals(complete "sample_tensor.requires_g", "rad")
  lu.assertEquals(complete "sample_tensor:log_sof", "tmax")
  lu.assertEquals(complete "nonsense.fo", nil)
  lu.assertEquals(complete "  ", "  ")
  lu.assertEquals(complete "retu", "rn")
  local insert, list = complete "string."
  lu.assertNil(insert)
  lu.assertStrContains(list, "gmatch")
  _G.peri_completion = peri
  lu.assertEquals(complete "peri_completion.nn.Lin", "ear")
  lu.assertEquals(complete "peri_completion.per_s", "ample_grad")
  _G.sample_tensor, _G.peri_completion = nil, nil
end

if arg and arg[0] and arg[0]:find "test_repl" then os.exit(lu.LuaUnit.run()) end
