-- Laws of streams, over every source with every combinator behind every combinator: passes end and go
-- on being at their end, each pass has its rows once, a state of any position goes on from there.
local lu = require "luaunit"
local peri = require "perilune"
local data = require "perilune.data"
local scratch = require "scratch"

local PASSES = 3

local function numbers(n)
  local list = {}
  for i = 1, n do list[i] = i end
  return list
end

-- A number that a row is judged by, however deep it is nested.
local function total(row)
  if type(row) ~= "table" then return row end
  local sum = 0
  for _, v in ipairs(row) do sum = sum + total(v) end
  return sum
end

local function identity(row) return row end

-- name -> function(stream) -> stream; those of `whole` keep every row.
local combinators = {
  map = function(s) return s:map(identity) end,
  filter = function(s) return s:filter(function(row) return total(row) % 3 ~= 1 end) end,
  take = function(s) return s:take(3) end,
  batch = function(s) return s:batch(2) end,
  drop_last = function(s) return s:batch(2, { drop_last = true }) end,
  shuffle = function(s) return s:shuffle(5) end,
  blocks = function(s) return s:shuffle(5, { buffer = 3 }) end,
  repeat_ = function(s) return s:repeat_(2) end,
  zip = function(s) return data.zip(s, data.list(numbers(40)):shuffle(2)) end,
}
local whole = { map = 1, batch = 1, shuffle = 1, blocks = 1, repeat_ = 2 } -- times that a row comes

local names = {}
for name in pairs(combinators) do names[#names + 1] = name end
table.sort(names)

-- visit(make, path) for every composition down to a depth.
local function compositions(source, depth, visit, path)
  path = path or {}
  visit(function()
    local s = source()
    for _, name in ipairs(path) do s = combinators[name](s) end
    return s
  end, path)
  if #path == depth then return end
  for _, name in ipairs(names) do
    path[#path + 1] = name
    compositions(source, depth, visit, path)
    path[#path] = nil
  end
end

local function label(what, path) return what .. ":" .. table.concat(path, ":") end

-- Rows and ends of a number of passes, as texts.
local function trace(s, passes, visit)
  local out = {}
  for _ = 1, passes do
    for row in s do
      out[#out + 1] = peri.json.encode(row)
      if visit then visit(#out) end
    end
    out[#out + 1] = "end"
    if visit then visit(#out) end
  end
  return out
end

local lines = table.concat({ '1', '2', '', '3', '4', '5' }, "\n")

local function sources(fn)
  local path = scratch.path()
  assert(peri.files.write(path, lines))
  local ok, message = xpcall(fn, debug.traceback, {
    list = function() return data.list(numbers(5)) end,
    one = function() return data.list { 1 } end,
    none = function() return data.list {} end,
    jsonl = function() return (assert(data.jsonl(path))) end,
  })
  os.remove(path)
  if not ok then error(message, 0) end
end

TestDataLaws = {}

function TestDataLaws:test_the_end_is_sticky_and_a_pass_begins_in_three_ways()
  sources(function(all)
    for what, source in pairs(all) do
      compositions(source, what == "list" and 3 or 2, function(make, path)
        local s, by_hand, n = make(), make(), 0
        local want = trace(s, 1)
        repeat
          local row = by_hand()
          n = n + (row == nil and 0 or 1)
          lu.assertTrue(n <= 200, label(what, path) .. " has no end")
        until row == nil
        lu.assertEquals(n, #want - 1, label(what, path))
        for _ = 1, 3 do lu.assertNil(by_hand(), label(what, path)) end
        -- the second pass of the first is the second pass of the others
        local second = trace(s, 1)
        lu.assertEquals(trace(by_hand:restart(), 1), second, label(what, path))
        local third = make()
        third:collect()
        lu.assertEquals(#third:collect(), #second - 1, label(what, path))
      end)
    end
  end)
end

function TestDataLaws:test_every_pass_has_every_row_as_often()
  local function flat(row, out)
    if type(row) ~= "table" then out[#out + 1] = row
    else for _, v in ipairs(row) do flat(v, out) end end
    return out
  end
  sources(function(all)
    for what, source in pairs(all) do
      compositions(source, what == "list" and 3 or 2, function(make, path)
        local times = 1
        for _, name in ipairs(path) do times = times * (whole[name] or 0) end
        if times == 0 then return end
        local want = {}
        for _ = 1, times do for row in source() do want[#want + 1] = row end end
        table.sort(want)
        local s = make()
        for _ = 1, PASSES do
          local got = {}
          for row in s do flat(row, got) end
          table.sort(got)
          lu.assertEquals(got, want, label(what, path))
        end
        lu.assertEquals((s:dropped()), 0)
      end)
    end
  end)
end

function TestDataLaws:test_a_state_of_any_position_goes_on_from_there()
  sources(function(all)
    for what, source in pairs(all) do
      compositions(source, what == "list" and 3 or 2, function(make, path)
        local states, s = {}, make()
        states[0] = peri.json.encode(s:state())
        local passes = what == "list" and #path > 2 and 2 or PASSES
        local want = trace(s, passes, function(at) states[at] = peri.json.encode(s:state()) end)
        local ends = 0
        for at = 0, #want - 1 do
          if want[at] == "end" then ends = ends + 1 end
          local again = make():set_state(peri.json.decode(states[at]))
          lu.assertEquals(trace(again, passes - ends), table.move(want, at + 1, #want, 1, {}),
            ("%s, at %d"):format(label(what, path), at))
          lu.assertEquals({ again:dropped() }, { s:dropped() })
        end
      end)
    end
  end)
end

-- Also of repetitions that never end, which pass through epochs without an end between.
function TestDataLaws:test_endless_streams_resume_at_every_epochs_boundary()
  sources(function(all)
    for _, what in ipairs { "list", "one", "jsonl" } do
      compositions(all[what], 2, function(make, path)
        for _, behind in ipairs { "map", "batch", "blocks" } do
          local function endless() return combinators[behind](make():repeat_()) end
          local s, states, rows = endless(), {}, {}
          for i = 1, 24 do
            states[i] = peri.json.encode(s:state())
            rows[i] = s()
          end
          if rows[1] == nil then return end
          for i = 1, 24 do
            local again = endless():set_state(peri.json.decode(states[i]))
            for k = i, 24 do lu.assertEquals(again(), rows[k], label(what, path)) end
          end
        end
      end)
    end
  end)
end

-- Eight rows have 40,320 orders: that two of five passes agree is a matter of the seed, and these do not.
function TestDataLaws:test_a_shuffle_draws_another_order_in_each_pass_behind_everything()
  local before = { plain = identity, map = combinators.map, filter = function(s) return s:filter(function() return true end) end,
    take = function(s) return s:take(8) end, zip = function(s) return data.zip(s) end }
  local after = { plain = identity, map = combinators.map, filter = before.filter, take = before.take, batch = combinators.batch,
    zip = before.zip, batch_map = function(s) return s:batch(2):map(identity) end }
  for name, first in pairs(before) do
    for then_, last in pairs(after) do
      for how, repeated in pairs { loop = identity, repeat_ = function(s) return s:repeat_(5) end } do
        local s, seen, rows = repeated(last(first(data.list(numbers(8))):shuffle(3))), {}, {}
        for _ = 1, how == "loop" and 5 or 1 do for row in s do rows[#rows + 1] = peri.json.encode(row) end end
        local n = #rows // 5
        for pass = 0, 4 do seen[table.concat(rows, " ", pass * n + 1, pass * n + n)] = true end
        local count = 0
        for _ in pairs(seen) do count = count + 1 end
        lu.assertEquals(count, 5, ("%s, shuffle, %s, %s"):format(name, then_, how))
      end
    end
  end
end

function TestDataLaws:test_a_shuffle_behind_a_map_has_the_order_of_one_before_it()
  lu.assertEquals(data.list(numbers(9)):map(identity):shuffle(4):repeat_(2):collect(),
    data.list(numbers(9)):shuffle(4):map(identity):repeat_(2):collect())
end

function TestDataLaws:test_gzipped_lines_make_a_second_pass()
  local s = assert(data.jsonl "tests/data/files/rows.jsonl.gz"):shuffle(1, { buffer = 2 })
  for _ = 1, 2 do lu.assertEquals(#s:collect(), 3) end
end

function TestDataLaws:test_a_stream_over_one_that_has_ended_is_over_its_next_pass()
  local rows = data.list(numbers(5))
  for _ = 1, 3 do
    local n = 0
    for _ in rows:batch(2) do n = n + 1 end
    lu.assertEquals(n, 3)
  end
end

function TestDataLaws:test_a_loop_that_was_left_goes_on()
  local s = data.list(numbers(4)):map(identity)
  for row in s do if row == 2 then break end end
  lu.assertEquals(s:collect(), { 3, 4 })
end

-- ---- refusals ----

function TestDataLaws:test_arguments_out_of_range_are_refused_where_they_are_given()
  local function rows() return data.list(numbers(4)) end
  local nan = 0 / 0
  for _, case in ipairs {
    { "batch: n is 0", function() rows():batch(0) end }, { "batch: n is -1", function() rows():batch(-1) end },
    { "batch: n is 1.5", function() rows():batch(1.5) end }, { "batch: n is missing", function() rows():batch() end },
    { "batch: n is \"2\"", function() rows():batch "2" end }, { "batch: n is", function() rows():batch(nan) end },
    { "batch: n is inf", function() rows():batch(math.huge) end },
    { 'did you mean "drop_last"', function() rows():batch(2, { droplast = true }) end },
    { "drop_last is 1", function() rows():batch(2, { drop_last = 1 }) end },
    { "batch: argument 2 is true", function() rows():batch(2, true) end },
    { "take: n is -1", function() rows():take(-1) end }, { "take: n is missing", function() rows():take() end },
    { "map: fn is 3", function() rows():map(3) end }, { "map: fn is missing", function() rows():map() end },
    { "map: fn is a tensor", function() rows():map(peri.ones { 1 }) end },
    { "filter: fn is", function() rows():filter "x" end },
    { "repeat_: times is 0", function() rows():repeat_(0) end }, { "repeat_: times is -1", function() rows():repeat_(-1) end },
    { "shuffle: seed is missing", function() rows():shuffle() end }, { "shuffle: seed is 0.5", function() rows():shuffle(0.5) end },
    { "shuffle: buffer is 0", function() rows():shuffle(1, { buffer = 0 }) end },
    { "never ends; give a buffer", function() rows():repeat_():map(identity):shuffle(1) end },
    { "never ends; take", function() rows():repeat_():batch(2):collect() end },
    { "zip: no streams", function() data.zip() end }, { "argument 2 is a table", function() data.zip(rows(), {}, rows()) end },
    { "arguments 1 and 2 read from one stream, stream list: make", function() local s = rows() data.zip(s, s) end },
    { "arguments 1 and 3 read from one stream", function()
      local s = rows()
      data.zip(s:map(identity):batch(2), rows(), s:shuffle(1, { buffer = 2 }))
    end },
    { "arguments 1 and 2 read from one stream", function() local s = rows() data.zip(data.zip(s, rows()), s:take(1)) end },
    { 'unknown option "strict"', function() data.zip(rows(), { strict = true }) end },
    { "rows are a nil", function() data.list() end }, { "rows are a string", function() data.list "x" end },
    { "path is missing", function() data.jsonl() end }, { "bad is \"keep\"", function() data.jsonl("x", { bad = "keep" }) end },
    { "call it as stream:map", function() data.Stream.map({}, identity) end },
    { 'side is "centre"', function() data.pad({ { 1 } }, { side = "centre" }) end },
    { "length is -1", function() data.pad({ { 1 } }, { length = -1 }) end },
    { 'did you mean "value"', function() data.pad({ { 1 } }, { valeu = 1 }) end },
    { "row 2 is a number", function() data.pad { { 1 }, 2 } end },
    { "there are no rows", function() data.collate {} end },
    { 'row 2 has no "y"', function() data.collate { { x = 1, y = 1 }, { x = 2 } } end },
    { 'row 2 has "z"', function() data.collate { { x = 1 }, { x = 2, z = 3 } } end },
  } do
    local ok, message = pcall(case[2])
    lu.assertFalse(ok, case[1])
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_data_laws.lua") -- the caller, not the library
  end
end

function TestDataLaws:test_rows_that_would_vanish_raise()
  lu.assertErrorMsgContains("map: the function gave nil", function() data.list { 1 }:map(function() end):collect() end)
  lu.assertErrorMsgContains("list: row 2 is nil", function() data.list(table.move({ 1, 3 }, 2, 2, 3, { 1, nil, 3 })):collect() end)
  lu.assertErrorMsgContains("several values", function() data.list { 1 }:map(function(v) return v, v end):batch(2):collect() end)
  lu.assertErrorMsgContains("stream 2 ended before", function()
    data.zip(data.list { 1, 2 }, data.list { 1 }, { equal = true }):collect()
  end)
  lu.assertErrorMsgContains("stream 1 ended before", function()
    data.zip(data.list { 1 }, data.list { 1, 2 }, { equal = true }):collect()
  end)
end

function TestDataLaws:test_several_values_of_a_map_reach_the_loop_and_the_next_map()
  local s = data.list { { 1, 2 }, { 3 } }:batch(2):map(data.pad):map(function(ids, mask) return ids, mask:any():item() end):repeat_(2)
  local n = 0
  for ids, any in s do
    n = n + 1
    lu.assertEquals(ids.shape, { 2, 2 })
    lu.assertTrue(any)
  end
  lu.assertEquals(n, 2)
end

function TestDataLaws:test_dropped_rows_are_counted()
  local s = data.zip(data.list(numbers(9)):filter(function(v) return v ~= 4 end):batch(3, { drop_last = true }), data.list { 1 })
  s:collect()
  local n, kinds = s:dropped()
  lu.assertEquals({ n, kinds.filter, kinds.zip, kinds.batch }, { 2, 1, 1, nil })
  data.list(numbers(5)):batch(3, { drop_last = true }):collect()
  local b = data.list(numbers(5)):batch(3, { drop_last = true }):repeat_(2)
  b:collect()
  lu.assertEquals({ b:dropped() }, { 4, { batch = 4 } })
end

function TestDataLaws:test_bad_lines_raise_by_number_or_are_skipped_and_counted()
  local path = scratch.path()
  assert(peri.files.write(path, '{"a":1}\n{"a":\n{"a":3}\n'))
  local s = assert(data.jsonl(path, { bad = "skip" }))
  for _ = 1, 2 do lu.assertEquals(s:collect(), { { a = 1 }, { a = 3 } }) end
  lu.assertEquals({ s:dropped() }, { 2, { jsonl = 2 } })
  local strict = assert(data.jsonl(path)):batch(2)
  lu.assertErrorMsgContains(path .. ":2:", strict)
  lu.assertEquals(strict(), { { a = 1 }, { a = 3 } }) -- the batch that was begun is not lost
  local state = s:state()
  assert(peri.files.write(path, '{"a":1}\n'))
  s = assert(data.jsonl(path))
  lu.assertErrorMsgContains("has 1 lines, the state is of line", s.set_state, s, state)
  lu.assertEquals(s().a, 1)
  os.remove(path)
end

-- A row that raises in the middle of what gathers rows: nothing that was read before it is lost, not
-- even when the run is stopped there.
function TestDataLaws:test_a_row_that_raises_loses_no_other()
  local function make(bad)
    return data.list(numbers(7)):map(function(v) if v == bad then error "bad" end return v end)
  end
  for _, name in ipairs { "batch", "blocks", "shuffle", "zip" } do
    local s = combinators[name](make(5))
    local got = {}
    for _ = 1, 20 do
      local ok, row = pcall(s)
      if ok and row ~= nil then got[#got + 1] = row end
      if not ok then
        local again = combinators[name](make(nil)):set_state(s:state())
        local rest = again:collect()
        local left = combinators[name](make(nil)):collect()
        lu.assertEquals(rest, table.move(left, #got + 1, #left, 1, {}), name)
      end
    end
    local n = 0
    for _, row in ipairs(got) do n = n + (type(row) == "table" and name ~= "zip" and #row or 1) end
    lu.assertEquals(n, 6, name)
  end
end

function TestDataLaws:test_a_state_of_another_stream_is_refused_and_changes_nothing()
  local function make() return data.list(numbers(6)):shuffle(1):batch(2) end
  local s = make()
  s()
  local want = s:state()
  for _, case in ipairs {
    { "the stream list:batch, this one is list:shuffle:batch", data.list(numbers(6)):batch(2):state() },
    { "the state is of 5 rows, this list has 6", data.list(numbers(5)):shuffle(1):batch(2):state() },
    { "the state is of seed 2, this stream has 1", data.list(numbers(6)):shuffle(2):batch(2):state() },
    { "the stream ?", {} }, { "the stream ?", 3 },
    { "at is -1", { kind = "batch", of = { { kind = "list:shuffle", at = -1, epoch = 0, seed = 1, rows = 6 } } } },
    { "at is 7", { kind = "batch", of = { { kind = "list:shuffle", at = 7, epoch = 0, seed = 1, rows = 6 } } } },
    { "epoch is nil", { kind = "batch", of = { { kind = "list:shuffle", at = 1, seed = 1, rows = 6 } } } },
  } do
    lu.assertErrorMsgContains(case[1], s.set_state, s, case[2])
    lu.assertEquals(s:state(), want)
  end
end

-- Rows of tensors that wait in a block of a shuffle were made in the scope of another step.
function TestDataLaws:test_tensors_that_wait_in_a_shuffle_outlive_their_step()
  local s = data.list(numbers(6)):map(function(v) return { x = peri.full({ 2 }, v) } end):shuffle(1, { buffer = 4 })
  local sum = 0
  for _ in peri.steps(6) do sum = sum + s().x:sum():item() end
  lu.assertEquals(sum, 42)
end
