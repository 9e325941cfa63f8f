-- Flags of recipes, named options.
local lu = require "luaunit"
local flags = require "perilune.run.flags"
local options = require "perilune.options"

local spec = {
  steps = { 100, "updates" }, lr = { 1e-3, "learning rate" }, name = "demo", verbose = false,
  shuffle = { true, "random order" }, mode = { "a", "how", choices = { "a", "b" } },
}

local function parse(...) return flags.parse(spec, { ... }) end

TestFlags = {}

function TestFlags:test_defaults_and_overrides()
  lu.assertEquals(parse(), { steps = 100, lr = 1e-3, name = "demo", verbose = false, shuffle = true, mode = "a" })
  local f = parse("--steps", "5", "--lr=0.1", "--name", "x y", "--verbose", "--no-shuffle", "--mode", "b")
  lu.assertEquals(f, { steps = 5, lr = 0.1, name = "x y", verbose = true, shuffle = false, mode = "b" })
  lu.assertEquals(parse("--verbose", "false").verbose, false)
end

function TestFlags:test_types_follow_the_defaults()
  lu.assertEquals(math.type(parse("--lr", "1").lr), "float")
  lu.assertEquals(math.type(parse("--steps", "1e2").steps), "integer")
  for _, args in ipairs { { "--steps", "1.5" }, { "--steps", "many" }, { "--lr", "x" }, { "--verbose=maybe" } } do
    local values, message = flags.parse(spec, args)
    lu.assertNil(values)
    lu.assertStrContains(message, args[1]:match "%-%-%a+")
  end
end

function TestFlags:test_unknown_flags_name_the_nearest()
  local _, message = parse("--step", "3")
  lu.assertStrContains(message, 'did you mean "steps"')
  _, message = parse "steps"
  lu.assertStrContains(message, "not a flag")
  _, message = parse "--steps"
  lu.assertStrContains(message, "needs a value")
  _, message = parse("--mode", "c")
  lu.assertStrContains(message, "choice")
end

function TestFlags:test_a_range_is_checked_wherever_the_value_comes_from()
  local ranged = { steps = { 10, "updates", range = "[0, inf)" }, lr = { 0.1, "rate", range = "(0, 1]" } }
  for _, args in ipairs { { "--steps", "0" }, { "--steps=7", "--lr", "1" }, {} } do
    lu.assertNotNil(flags.parse(ranged, args))
  end
  for value, want in pairs {
    ["--steps=-3"] = "--steps is -3, expected an integer in [0, inf)",
    ["--lr=0"] = "--lr is 0.0, expected a number in (0, 1]",
    ["--lr=1e999"] = "--lr is inf, expected a number in (0, 1]",
  } do
    local values, message = flags.parse(ranged, { value })
    lu.assertNil(values)
    lu.assertEquals(message, want)
  end
  local path = os.tmpname()
  local file = assert(io.open(path, "w"))
  file:write '{"steps": -1}'
  file:close()
  local values, message = flags.parse(ranged, { "--config", path })
  os.remove(path)
  lu.assertNil(values)
  lu.assertEquals(message, path .. ": --steps is -1, expected an integer in [0, inf)")
  lu.assertStrContains(select(2, flags.parse(ranged, { "--help" })), "updates, in [0, inf) (10)")
end

function TestFlags:test_a_spec_that_contradicts_itself_is_refused()
  for want, bad in pairs {
    ["the default is -1"] = { -1, "", range = "[0, inf)" },
    ["has a range, but its default is a string"] = { "x", "", range = "[0, inf)" },
    ['did you mean "choices"'] = { "x", "", choice = { "x" } },
  } do
    lu.assertErrorMsgContains(want, flags.parse, { flag = bad }, {})
  end
end

function TestFlags:test_options_of_the_program_say_where_they_stand()
  local _, message = parse("--threads", "4")
  lu.assertEquals(message, "--threads is of the program and stands before the file: perilune run --threads 4 FILE")
end

function TestFlags:test_help_lists_everything()
  local values, text, is_help = flags.parse(spec, { "--help" }, "What it does.")
  lu.assertNil(values)
  lu.assertTrue(is_help)
  for _, s in ipairs { "What it does.", "--steps", "updates", "(100)", '("demo")', ", one of a, b" } do
    lu.assertStrContains(text, s)
  end
end

function TestFlags:test_config_file_comes_before_the_command_line()
  local path = os.tmpname()
  local function write(s)
    local file = assert(io.open(path, "w"))
    file:write(s)
    file:close()
  end
  write '{"steps": 7, "lr": 1, "name": "file"}'
  local f = parse("--name", "line", "--config", path)
  lu.assertEquals({ f.steps, f.lr, f.name }, { 7, 1.0, "line" })
  lu.assertEquals({ parse "--config" }, { nil, "--config needs a value" })
  lu.assertEquals({ parse("--config", path, "--config", path) }, { nil, "--config is given twice" })
  lu.assertEquals({ parse("--config", path, "--config=" .. path) }, { nil, "--config is given twice" })
  lu.assertTrue(select(3, parse "--help=all"))
  write '{"lr": "inf"}'
  lu.assertEquals(parse("--config", path).lr, math.huge)
  write '{"stepz": 7}'
  local _, message = parse("--config=" .. path)
  lu.assertStrContains(message, 'did you mean "steps"')
  write '{"steps": "7"}'
  _, message = parse("--config=" .. path)
  lu.assertStrContains(message, "an integer")
  os.remove(path)
end

function TestFlags:test_the_flags_of_a_script_are_found_without_running_the_rest()
  local ran = false
  local function script()
    flags(spec, {}, "about")
    ran = true
  end
  lu.assertEquals({ flags.spec_of(script), ran }, { spec, false })
  lu.assertEquals({ flags.spec_of(function () end) }, { nil, "it reads no flags" })
  lu.assertStrContains(select(2, flags.spec_of(function () error "no such luck" end)), "no such luck")
  lu.assertEquals(flags(spec, {}), parse()) -- and is not asked afterwards
end

TestOptions = {}

function TestOptions:test_nearest()
  lu.assertEquals(options.nearest("causl", { "causal", "scale" }), "causal")
  lu.assertEquals(options.nearest("Bais", { "bias", "base" }), "bias")
  lu.assertNil(options.nearest("xyz", { "causal", "scale" }))
end

function TestOptions:test_read_by_position_and_name()
  local function read(...)
    return options.read("f", { "a", "b" }, { a = options.required, b = 2, c = options.none }, 2, ...)
  end
  lu.assertEquals(read(1), { a = 1, b = 2 })
  lu.assertEquals(read(1, 5, { c = 3 }), { a = 1, b = 5, c = 3 })
  lu.assertEquals(read { a = 1, c = 3 }, { a = 1, b = 2, c = 3 })
  lu.assertErrorMsgContains("a is missing", read)
  lu.assertErrorMsgContains("4 arguments", read, 1, 2, {}, 3)
end
