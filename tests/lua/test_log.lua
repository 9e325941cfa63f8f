-- The console line and the metric files.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local log = require "perilune.log"

-- A file-like sink for console output.
local function sink()
  local s = { text = "" }
  function s:write(...) self.text = self.text .. table.concat { ... } end
  function s:flush() end -- luacheck: ignore 212
  return s
end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

TestLog = {}

function TestLog:test_numbers_keep_four_digits()
  for value, want in pairs { [1.23456] = "1.235", [12.3456] = "12.35", [123.456] = "123.5", [1234.56] = "1235",
    [0.123456] = "0.1235", [1e-5] = "1.00e-5", [12345678.9] = "1.23e7", [0] = "0", [-0.5] = "-0.5000" } do
    lu.assertEquals(log.format(value), want)
  end
  lu.assertEquals(log.format(0 / 0), "nan")
  lu.assertEquals(log.format "x", "x")
  lu.assertEquals(log.duration(3723), "1:02:03")
  lu.assertEquals(log.duration(65), "1:05")
end

function TestLog:test_plain_lines_are_aligned_and_have_no_escapes()
  local out = sink()
  local l = log.new { total = 100, out = out, live = false }
  l:step(1, { loss = 10.5, reward = 0 }, { tok_s = 1234.5 })
  l:step(2, { loss = 9.5, reward = 0.25 }, { tok_s = 987.0 })
  l:close()
  lu.assertNil(out.text:find "\27")
  local lines = {}
  for line in out.text:gmatch "[^\n]+" do lines[#lines + 1] = line end
  lu.assertEquals(#lines, 2)
  lu.assertEquals(lines[1]:find "tok_s" ~= nil, true)
  lu.assertEquals(#lines[2], #"  2  loss 9.500  reward 0.2500  tok_s 987.0")
end

function TestLog:test_live_console_ends_with_a_bar_and_clears_it()
  local out = sink()
  local l = log.new { total = 4, out = out, live = true, every = 2 }
  l:step(1, { loss = 1 })
  l:step(2, { loss = 1 })
  lu.assertStrContains(out.text, "2/4")
  lu.assertStrContains(out.text, "50%")
  l:text("hello %d", 5)
  lu.assertStrContains(out.text, "hello 5\n")
  l:step(4, { loss = 1 })
  l:close()
  lu.assertEquals(out.text:sub(-1), "\n")
end

function TestLog:test_jsonl_is_sorted_exact_and_has_no_live_values()
  local path = scratch.folder() .. "/m.jsonl"
  local l = log.new { console = false, jsonl = path }
  l:step(1, { b = 0.1, a = 2, n = 0 / 0, t = peri.tensor { 1.5 } }, { tok_s = 3 })
  l:close()
  lu.assertEquals(read(path), '{"step":1,"a":2,"b":0.1,"n":"NaN","t":1.5}\n')
end

function TestLog:test_csv_grows_columns()
  local path = scratch.folder() .. "/m.csv"
  local l = log.new { console = false, csv = path }
  l:step(1, { a = 1 })
  l:step(2, { a = 2, b = "x,y" })
  l:close()
  lu.assertEquals(read(path), 'step,a,b\n1,1,\n2,2,"x,y"\n')
  l = log.new { console = false, csv = path, resume = 1 }
  l:step(2, { a = 5 })
  l:close()
  lu.assertEquals(read(path), "step,a,b\n1,1,\n2,5,\n")
end

function TestLog:test_resume_drops_later_and_broken_lines()
  local path = scratch.folder() .. "/m.jsonl"
  local file = assert(io.open(path, "w"))
  file:write '{"step":1,"a":1}\n{"step":2,"a":1}\n{"step":3,"a":1}\n{"ste'
  file:close()
  local l = log.new { console = false, jsonl = path, resume = 2 }
  l:step(3, { a = 9 })
  l:close()
  lu.assertEquals(read(path), '{"step":1,"a":1}\n{"step":2,"a":1}\n{"step":3,"a":9}\n')
end

function TestLog:test_tensorboard_file_has_records()
  local dir = scratch.folder()
  local l = log.new { console = false, tensorboard = dir }
  l:step(1, { loss = 2 })
  l:close()
  local names = peri.files.list(dir)
  lu.assertStrContains(names[1], "tfevents")
  local text = read(dir .. "/" .. names[1])
  lu.assertStrContains(text, "brain.Event:2")
  lu.assertStrContains(text, "loss")
end

function TestLog:test_unknown_options_are_refused()
  lu.assertErrorMsgContains('did you mean "total"', log.new, { totla = 3 })
end
