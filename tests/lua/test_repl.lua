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
