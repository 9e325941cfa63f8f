-- Options as every constructor takes them: names, types and ranges are checked, defaults filled in.
local lu = require "luaunit"
local options = require "perilune.options"
local peri = require "perilune"

TestOptions = {}

local rules = {
  lr = options.number(options.required, "[0, inf)", "learning rate"),
  share = options.number(0.5, "(0, 1]"),
  steps = options.integer(5, "[1, inf)"),
  reduce = options.choice("mean", { "mean", "sum" }),
  on = options.boolean(false),
  mask = options.value(options.none, "tensor or number"),
  call = options.value(options.none, "callable"),
  plain = 3,
}

local function refused(given, message)
  lu.assertErrorMsgContains(message, options.fill, "f", given, rules, 1)
end

function TestOptions:test_defaults_are_filled_in()
  local o = options.fill("f", { lr = 1 }, rules)
  lu.assertEquals(o, { lr = 1, share = 0.5, steps = 5, reduce = "mean", on = false, plain = 3 })
end

function TestOptions:test_what_is_outside_of_its_range_is_refused_by_name()
  refused({ lr = -1 }, "f: lr is -1, expected a number in [0, inf)")
  refused({ lr = 0 / 0 }, "expected a number in [0, inf)")
  refused({ lr = math.huge }, "expected a number in [0, inf)")
  refused({ lr = "1" }, 'f: lr is "1", expected a number in [0, inf)')
  refused({ lr = 1, share = 0 }, "share is 0, expected a number in (0, 1]")
  refused({ lr = 1, steps = 1.5 }, "steps is 1.5, expected an integer in [1, inf)")
  refused({ lr = 1, steps = 0 }, "steps is 0")
  refused({ lr = 1, reduce = "max" }, 'reduce is "max", expected one of "mean", "sum"')
  refused({ lr = 1, on = 1 }, "on is 1, expected true or false")
  refused({ lr = 1, mask = {} }, "mask is a table, expected tensor or number")
  refused({ lr = 1, call = 1 }, "call is 1, expected callable")
  refused({}, "f: lr is missing")
  refused(7, "f: options are 7, expected a table")
end

function TestOptions:test_what_is_inside_passes()
  local o = options.fill("f", { lr = 0, share = 1, steps = 3.0, mask = peri.ones { 1 }, call = print }, rules)
  lu.assertEquals(o.lr, 0)
  lu.assertEquals(o.share, 1)
end

function TestOptions:test_unknown_names_are_refused_with_the_nearest_or_all()
  refused({ lr = 1, setps = 3 }, 'f: unknown option "setps"; did you mean "steps"?')
  refused({ lr = 1, zzzzzzzzz = 3 }, 'unknown option "zzzzzzzzz"; there are: call, lr, mask, on, plain, reduce, share, steps')
end

function TestOptions:test_words_of_other_programs_are_told_ours()
  local names = { "max_new_tokens", "samples", "repetition_penalty", "temperature", "template", "on_text" }
  for word, ours in pairs { max_length = "max_new_tokens", max_tokens = "max_new_tokens", num_predict = "max_new_tokens",
      n = "samples", num_return_sequences = "samples", repeat_penalty = "repetition_penalty", temp = "temperature",
      callback = "on_text" } do
    lu.assertEquals(options.nearest(word, names), ours, word)
  end
  lu.assertNil(options.nearest("n", { "lr", "steps" }))
end

function TestOptions:test_a_positional_argument_without_a_rule_is_no_option()
  local f = options.declare(function() end, { "params", "n" }, { lr = options.number(1), n = options.integer(2) })
  local known, names = options.declared(f), {}
  for i, o in ipairs(known.options) do names[i] = o.name end
  lu.assertEquals(names, { "n", "lr" })
  lu.assertEquals({ known.positional, known.more }, { { "params", "n" }, true })
end

function TestOptions:test_an_argument_too_many_is_not_swallowed()
  local few = { n = options.integer(options.required), on = options.boolean(false) }
  local function f(...) return (options.read("f", { "n" }, few, 3, ...)) end
  lu.assertErrorMsgContains("f: argument 2 is true, expected a table of options", f, 2, true)
  lu.assertErrorMsgContains("f: 3 arguments", f, 2, true, 3)
  lu.assertEquals(f(2, nil), { n = 2, on = false })
  lu.assertEquals(f(2, { on = true }), { n = 2, on = true })
end

function TestOptions:test_declared_options_can_be_read_back()
  local function f() end
  lu.assertIs(options.declare(f, { "x" }, rules), f)
  local known = options.declared(f)
  lu.assertEquals(known.positional, { "x" })
  local by = {}
  for _, o in ipairs(known.options) do by[o.name] = o end
  lu.assertEquals(by.lr, { name = "lr", default = "required", kind = "number in [0, inf)", doc = "learning rate" })
  lu.assertEquals(by.mask.default, nil)
  lu.assertEquals(by.reduce.default, '"mean"')
end
