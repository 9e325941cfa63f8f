-- The console line and the metric files.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local log = require "perilune.run.log"

-- A file-like sink for console output.
local function sink()
  local s = { text = "" }
  function s:write(...) self.text = self.text .. table.concat { ... } end -- no result: as a stream without errors
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

local function lines_of(text)
  local lines = {}
  for line in text:gmatch "([^\n]*)\n" do lines[#lines + 1] = line end
  return lines
end

function TestLog:test_rows_are_a_table_without_escapes()
  local out = sink()
  local l = log.new { total = 100, out = out, live = false, width = 80 }
  l:step(1, { loss = 10.5, reward = 0 }, { tok_s = 1234.5 })
  l:step(2, { loss = 9.5, reward = 0.25 }, { tok_s = 987.0 })
  l:close()
  lu.assertEquals(lines_of(out.text), {
    "step   reward     loss    tok_s",
    "   1        0    10.50     1234",
    "   2   0.2500    9.500    987.0",
  })
end

-- Many metrics with long names, as rl.summary gives them, at any width.
function TestLog:test_rows_fit_any_width_with_whole_names_and_what_is_judged_first()
  local values = { loss = -1.2345e-5, reward = 0.5, entropy = 2.25, reward_std = 0.25, kl = 1e-9,
    ["completions/mean_terminated_length"] = 5.5, ["completions/clipped_ratio"] = 0.25, clip_ratio = 0.1,
    ["rewards/accuracy/mean"] = 0.5, ["rewards/format/mean"] = 0.25, frac_reward_zero_std = 0.125 }
  local names = {}
  for name in pairs(values) do
    names[log.short_name(name)] = true
  end
  for width = 24, 200 do
    local out = sink()
    local l = log.new { total = 1000, out = out, live = false, width = width }
    for step = 1, 3 do l:step(step, values, { tok_s = 123456.0 }) end
    l:close()
    local lines = lines_of(out.text)
    lu.assertEquals(#lines, 4)
    for _, line in ipairs(lines) do lu.assertTrue(#line < width, ("%d: %s"):format(width, line)) end
    lu.assertEquals(lines[1]:match "^%s*step%s+(%S+)", "reward")
    for word in lines[1]:gmatch "%S+" do
      lu.assertTrue(word == "step" or word == "tok_s" or names[word] ~= nil, word)
    end
    lu.assertEquals(#lines[1], #lines[2])
  end
end

function TestLog:test_named_columns_come_first_and_have_a_place_before_their_first_value()
  local out = sink()
  local l = log.new { total = 3, out = out, live = false, width = 60, columns = { "held_out", "accuracy/mean" } }
  l:step(1, { loss = 1, ["rewards/accuracy/mean"] = 0.5 })
  l:step(2, { loss = 1, held_out = 0.25 })
  l:close()
  lu.assertEquals(lines_of(out.text), {
    "step  held_out  accuracy/mean     loss",
    "   1                   0.5000        1",
    "   2    0.2500                       1",
  })
end

function TestLog:test_short_names_that_two_metrics_share_are_said_in_full()
  local out = sink()
  local l = log.new { out = out, live = false, width = 60 }
  l:step(1, { ["train/loss"] = 1, ["valid/loss"] = 2 })
  lu.assertEquals(lines_of(out.text)[1], "  step  train/loss  valid/loss")
end

function TestLog:test_the_head_comes_again_now_and_then_and_with_a_new_column()
  local out = sink()
  local l = log.new { out = out, live = false, width = 60 }
  for step = 1, 50 do l:step(step, { loss = 1, acc = step > 45 and 1 or nil }) end
  local heads = {}
  for i, line in ipairs(lines_of(out.text)) do if line:find "step" then heads[#heads + 1] = i end end
  lu.assertEquals(heads, { 1, 22, 43, 49 })
end

function TestLog:test_rows_come_every_n_steps_and_for_remarks()
  local out = sink()
  local l = log.new { total = 25, out = out, live = false, width = 60, every = 10 }
  for step = 1, 25 do l:step(step, { loss = 1 }, nil, step == 7 and "step skipped" or nil) end
  local steps = {}
  for _, line in ipairs(lines_of(out.text)) do steps[#steps + 1] = math.tointeger(tonumber(line:match "^%s*(%d+)")) end
  lu.assertEquals(steps, { 1, 7, 10, 20, 25 })
  lu.assertStrContains(out.text, "7        1  step skipped\n")
end

function TestLog:test_text_values_are_cut_by_characters()
  local out = sink()
  local l = log.new { out = out, live = false, width = 60 }
  l:step(1, { s = ("é"):rep(60), t = "a\nb" })
  lu.assertTrue(utf8.len(out.text) ~= nil)
  lu.assertEquals(#lines_of(out.text), 2)
  lu.assertStrContains(out.text, ("é"):rep(23) .. "…")
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
  l:step(3, { loss = 1 }, nil, nil, "2 skipped")
  lu.assertStrContains(out.text, "2 skipped")
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

-- Summaries as protoc encodes them (checked with TensorBoard's own reader and its hparams plugin).
function TestLog:test_events_have_the_known_bytes()
  local events = require "perilune.run.log.events"
  local function hex(s) return (s:gsub(".", function(c) return ("%02x"):format(c:byte()) end)) end
  lu.assertEquals(hex(events.event(1.5, 300, 5, "xy")), "09000000000000f83f10ac022a027879")
  lu.assertEquals(hex(events.text("t", "hi")), "0a1d0a0174420c0807120412020801420268694a0a0a060a04746578742002")
  local h = { min = 1, max = 2, num = 2, sum = 3, sum_squares = 5, limits = { 2 }, counts = { 2 } }
  lu.assertEquals(hex(events.histogram("w", h)), "0a460a01772a41" .. "09000000000000f03f" .. "110000000000000040"
    .. "190000000000000040" .. "210000000000000840" .. "290000000000001440" .. "32080000000000000040"
    .. "3a080000000000000040")
  local start = events.session({ a = 2, b = true, c = "x" }, {}, 1)
  lu.assertEquals(#start, 1)
  lu.assertStrContains(hex(start[1]), hex "_hparams_/session_start_info" .. "4a")
  lu.assertStrContains(hex(start[1]), "0a0e0a016112091100000000000000" .. "40") -- "a": number_value 2
  lu.assertStrContains(hex(start[1]), "0a070a016212022001")                     -- "b": bool_value true
  lu.assertStrContains(hex(start[1]), "0a080a016312031a0178")                   -- "c": string_value "x"
  lu.assertEquals(#events.session({ a = 2 }, { "loss" }, 1), 2)
  lu.assertStrContains(hex(events.session_end(false, 1)), "0802" .. "11000000000000f03f")
end

function TestLog:test_histograms_count_every_finite_value_once()
  local events = require "perilune.run.log.events"
  local function count(list)
    local h, left_out = events.count(peri.tensor(list, "f64"))
    local sum = 0
    for _, n in ipairs(h and h.counts or {}) do sum = sum + n end
    return h, left_out, sum
  end
  local h, left_out, sum = count { 1, 2, 3, 0 / 0, 1 / 0, -1 / 0 }
  lu.assertEquals({ h.min, h.max, h.num, h.sum, h.sum_squares, left_out, sum }, { 1, 3, 3, 6, 14, 3, 3 })
  lu.assertEquals({ h.limits[#h.limits], h.counts[1], h.counts[#h.counts] }, { 3, 1, 1 })
  h, left_out, sum = count { 5, 5 }
  lu.assertEquals({ h.limits, h.counts, left_out, sum }, { { 5 }, { 2 }, 0, 2 })
  lu.assertEquals({ count { 0 / 0 } }, { nil, 1, 0 })
  local values = {}
  for i = 1, 1000 do values[i] = (i * 7919 % 1000) / 7 end
  h, left_out, sum = count(values)
  lu.assertEquals({ #h.counts, left_out, sum }, { 30, 0, 1000 })
end

-- What a disk without room, a folder that is missing and a folder in the way make of every file.
function TestLog:test_what_cannot_be_written_is_an_error_that_names_it()
  for _, option in ipairs { "jsonl", "csv" } do
    local l = log.new { console = false, [option] = "/dev/full" }
    lu.assertErrorMsgContains("/dev/full: cannot write: No space left", l.step, l, 1, { loss = 1 })
    lu.assertErrorMsgContains("/nowhere/x", log.new, { console = false, [option] = "/nowhere/x" })
    lu.assertErrorMsgContains("cannot open", log.new, { console = false, [option] = scratch.folder() })
  end
  lu.assertErrorMsgContains("/nowhere", log.new, { console = false, tensorboard = "/nowhere" })
  local l = log.new { console = false, text = "/dev/full" }
  lu.assertErrorMsgContains("No space left", l.text, l, "a line")
  local full = assert(io.open("/dev/full", "w"))
  full:setvbuf "no"
  l = log.new { out = full, live = false }
  lu.assertErrorMsgContains("No space left", l.step, l, 1, { loss = 1 })
  full:close()
end

function TestLog:test_what_is_no_metric_is_named_before_anything_is_written()
  local folder = scratch.folder()
  local l = log.new { console = false, jsonl = folder .. "/j", csv = folder .. "/c", tensorboard = folder }
  for want, row in pairs {
    ["a is a table, expected a number"] = { a = {} }, ["a is a function"] = { a = print },
    ["a is a tensor of shape (2), expected one element"] = { a = peri.ones { 2 } },
    ["1 is no name of a metric"] = { 5 }, ["step is the number of the row"] = { step = 2 },
    ['"" cannot name a metric'] = { [""] = 1 }, ["cannot name a metric"] = { ["a\xff"] = 1 },
    ["UTF-8 without control characters"] = { ["a\nb"] = 1 }, ["1 to 1024 bytes"] = { [("x"):rep(1025)] = 1 },
  } do
    row.good = 1
    lu.assertErrorMsgContains(want, l.step, l, 1, row)
    lu.assertErrorMsgContains(want, l.step, l, 1, { good = 1 }, row)
  end
  l:close()
  lu.assertEquals(read(folder .. "/j") .. read(folder .. "/c"), "")
  lu.assertErrorMsgContains("columns has a number", log.new, { columns = { 1 } })
end

function TestLog:test_the_step_that_a_row_of_a_stepper_says_is_that_of_the_row()
  local folder = scratch.folder()
  local l = log.new { console = false, jsonl = folder .. "/j" }
  local row = { step = 3, loss = 1 }
  l:step(3, row)
  lu.assertErrorMsgContains("step is the number of the row and here another one", l.step, l, 4, row)
  l:close()
  lu.assertEquals(read(folder .. "/j"), '{"step":3,"loss":1}\n')
  lu.assertEquals(row, { step = 3, loss = 1 })
end

function TestLog:test_a_text_of_any_bytes_is_logged_and_a_row_stays_a_line()
  local folder, out = scratch.folder(), sink()
  local l = log.new { out = out, live = false, width = 60, jsonl = folder .. "/j", csv = folder .. "/c", tensorboard = folder }
  for step, text in ipairs { "a\xe4\xb8", "\xff\xfe\0", "\u{4e2d}\r\nx,y\n", "\xed\xa0\x80" } do
    l:step(step, { text = text })
    l:markdown(step, "samples", text)
  end
  l:step(5, { text = "last", more = 1 })
  l:close()
  lu.assertStrContains(read(folder .. "/j"), '{"step":1,"text":"a\u{FFFD}\u{FFFD}"}\n')
  lu.assertEquals(read(folder .. "/c"), "step,text,more\n1,a\u{FFFD}\u{FFFD},\n2,\u{FFFD}\u{FFFD}\0,\n"
    .. '3,"\u{4e2d}\\nx,y\\n",\n4,\u{FFFD}\u{FFFD}\u{FFFD},\n5,last,1\n')
  for _, text in ipairs { out.text, read(folder .. "/j"), read(folder .. "/c") } do lu.assertNotNil(utf8.len(text)) end
end

function TestLog:test_csv_names_with_commas_survive_a_resumption()
  local path = scratch.folder() .. "/m.csv"
  local l = log.new { console = false, csv = path }
  l:step(1, { ['a,"b'] = 1, c = 2 })
  l:close()
  l = log.new { console = false, csv = path, resume = 1 }
  l:step(2, { ['a,"b'] = 3, c = 4 })
  l:close()
  lu.assertEquals(read(path), 'step,"a,""b",c\n1,1,2\n2,3,4\n')
end

function TestLog:test_nan_has_no_sign_in_a_text()
  local out = sink()
  local l = log.new { out = out, live = false }
  for _, nan in ipairs { 0 / 0, -(0 / 0) } do l:text("loss %.2f, mean %g of foo-nan.txt", nan, nan) end
  l:close()
  lu.assertEquals(out.text, ("loss nan, mean nan of foo-nan.txt\n"):rep(2))
end

function TestLog:test_unknown_options_are_refused()
  lu.assertErrorMsgContains('did you mean "total"', log.new, { totla = 3 })
end
