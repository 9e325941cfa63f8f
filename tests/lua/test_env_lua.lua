-- Environments written in Lua: rows, discrete observations, masks, states as texts, what they do wrong.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local env, message = peri.env, claims.message

TestEnvLua = {}

-- Walks on a line of five places; obs { place, random }.
local function walk(changes)
  local spec = { id = "Walk-v0", obs = env.box(-10, 10, { shape = { 2 } }), action = env.discrete(2), max_steps = 20 }
  function spec.reset(s, obs, rng)
    s.at, s.seen = 0, { n = 0 }
    obs[1], obs[2] = 0, rng:double()
  end
  function spec.step(s, action, obs, rng)
    s.at = s.at + (action == 1 and 1 or -1)
    s.seen.n = s.seen.n + 1
    obs[1], obs[2] = s.at, rng:double()
    return s.at, s.at >= 3, false
  end
  for k, v in pairs(changes or {}) do spec[k] = v end
  return spec
end

local function all(n, action) return peri.full({ n }, action, "i64") end

function TestEnvLua.test_rows_are_those_of_single_environments()
  local rows = env.make(walk(), { n = 300, seed = 5 })
  local obs = rows:reset()
  local one = env.make(walk(), { seed = 5 + 270 })
  lu.assertEquals(one:reset():tolist(), obs:select(1, 271):tolist())
  local actions = peri.randint(0, 2, { 300 })
  for _ = 1, 2 do
    local got, reward = rows:step(actions)
    local mine, r = one:step(actions:tolist()[271])
    lu.assertEquals(mine:tolist(), got:select(1, 271):tolist())
    lu.assertEquals(r, reward:tolist()[271])
  end
end

function TestEnvLua.test_episodes_end_and_begin_as_in_c()
  local rows = env.make(walk(), { n = 2, seed = 1 })
  rows:reset()
  for t = 1, 3 do
    local obs, reward, terminated = rows:step { 1, 0 }
    lu.assertEquals(terminated:tolist(), { t == 3, false })
    lu.assertEquals(obs:tolist()[1][1], t == 3 and 0 or t)
    lu.assertEquals(rows.final_obs:tolist()[1][1], t)
    lu.assertEquals(reward:tolist(), { t, -t })
  end
  lu.assertEquals(rows:episodes(), { returns = { 6 }, lengths = { 3 }, rows = { 1 }, dropped = 0 })
  for _ = 4, 20 do rows:step { 0, 0 } end
  lu.assertEquals(rows.truncated:tolist(), { false, true })
end

function TestEnvLua.test_discrete_observations_are_returned()
  local spec = { id = "Count-v0", obs = env.discrete(4), action = env.discrete(3, -1) }
  function spec.reset(s) s.k = 0 return 0 end
  function spec.step(s, action) s.k = s.k + action return 0.5, s.k == 3, s.k == 2, s.k end
  local one = env.make(spec)
  lu.assertEquals(one:reset(), 0)
  lu.assertEquals({ one:step(1) }, { 1, 0.5, false, false })
  lu.assertEquals({ one:step(1) }, { 2, 0.5, false, true })
  one:reset()
  lu.assertStrContains(message(one.step, one, -1),
    "Count-v0: row 1, step 1 of its episode: its observation is -1, expected an integer from 0 to 3")
end

function TestEnvLua.test_masks_say_what_is_legal_next()
  local spec = walk { mask = true }
  local reset, step = spec.reset, spec.step
  function spec.reset(s, obs, rng, mask) reset(s, obs, rng) mask[1] = false end
  function spec.step(s, action, obs, rng, mask)
    mask[2] = s.at < 0
    return step(s, action, obs, rng)
  end
  local rows = env.make(spec, { n = 2, seed = 1 })
  rows:reset()
  lu.assertEquals(rows.mask:tolist(), { { false, true }, { false, true } })
  lu.assertEquals(rows:sample():tolist(), { 1, 1 })
  rows:step { 1, 1 }
  lu.assertEquals(rows.mask:tolist(), { { true, false }, { true, false } })
end

function TestEnvLua.test_box_actions_are_lists()
  local spec = walk { action = env.box(-1, 1, { shape = { 2 } }) }
  function spec.step(_, action, obs) obs[1] = action[1] + action[2] return action[2], false end
  local rows = env.make(spec, { n = 2 })
  rows:reset()
  local obs, reward = rows:step(peri.tensor { { 0.5, 1 }, { 2, -1 } })
  lu.assertEquals(obs:tolist()[2][1], 1)
  lu.assertEquals(reward:tolist(), { 1, -1 })
  lu.assertStrContains(message(rows.step, rows, peri.tensor { { 0, 0 / 0 }, { 0, 0 } }),
    "row 1, step 2 of its episode: action [1] is nan, expected a finite number")
end

function TestEnvLua.test_what_a_row_does_wrong_is_named()
  local where = debug.getinfo(1, "S").short_src
  local cases = {
    { function () return 0 / 0, false end, "its reward is nan, expected a finite number" },
    { function () return math.huge, false end, "its reward is inf" },
    { function () return "1", false end, "step returned string as reward, expected a number" },
    { function () end, "step returned nil as reward, expected a number" },
    { function () return 1 end, "step returned nil as terminated, expected a boolean" },
    { function () return 1, true, 1 end, "step returned number as truncated, expected a boolean" },
    { function (_, _, obs) obs[3] = 1 return 1, false end, "obs[3]: obs has elements 1 to 2" },
    { function (_, _, obs) obs[0] = 1 return 1, false end, "obs[0]: obs has elements 1 to 2" },
    { function (_, _, obs) obs[1] = nil return 1, false end, "obs[1] is nil, expected a number" },
    { function (_, _, obs) obs[2] = 0 / 0 return 1, false end, "its observation [1] is nan" },
    { function (s) return s.missing.field end, "attempt to index a nil value (field 'missing')" },
    { function () coroutine.yield() end, "attempt to yield across a C-call boundary" },
    { function () error { code = 3 } end, "code = 3" },
  }
  for k, case in ipairs(cases) do
    local rows = env.make(walk { step = function (s, ...)
      s.t = (s.t or 0) + 1
      if s.t == 2 and s.second then return case[1](s, ...) end
      return 0, false
    end, reset = function (s, obs, rng) s.second = rng:double() and true obs[1] = 0 end }, { n = 3 })
    rows:reset()
    rows:step(all(3, 1))
    local said = message(function () coroutine.wrap(function () rows:step(all(3, 1)) end)() end)
    lu.assertStrContains(said, "Walk-v0: row 1, step 2 of its episode: ", false, k)
    lu.assertStrContains(said, case[2], false, k)
    if k == 11 then lu.assertStrContains(said, where .. ":") end
    lu.assertStrContains(message(rows.step, rows, all(3, 1)), "an earlier step or reset failed")
    rows:reset()
    rows:step(all(3, 1))
  end
end

function TestEnvLua.test_rewards_are_those_that_their_dtype_holds()
  for _, v in ipairs { 3.5e38, -3.5e38, 0x1.ffffffp127 } do -- the last one rounds to infinity
    local def = walk { step = function () return v, false end }
    local narrow, wide = env.make(def, { n = 2 }), env.make(def, { n = 2, reward_dtype = "f64" })
    local one = env.make(def)
    narrow:reset()
    wide:reset()
    one:reset()
    lu.assertStrContains(message(narrow.step, narrow, { 0, 1 }),
      ("Walk-v0: row 1, step 1 of its episode: its reward is %g, expected a finite number of f32"):format(v))
    lu.assertEquals(select(2, wide:step { 0, 1 }):tolist(), { v, v })
    lu.assertEquals(select(2, one:step(1)), v)
  end
  local most = 0x1.fffffefffffffp127
  local rows = env.make(walk { step = function () return most, false end }, { n = 2 })
  rows:reset()
  lu.assertEquals(select(2, rows:step { 0, 1 }):tolist(), { 0x1.fffffep127, 0x1.fffffep127 })
end

function TestEnvLua.test_it_may_not_step_itself()
  local rows
  rows = env.make(walk { step = function () rows:step { 1 } return 1, false end }, { n = 1 })
  rows:reset()
  lu.assertStrContains(message(rows.step, rows, { 1 }), "step: it is called from its own step or reset")
end

function TestEnvLua.test_a_generator_of_a_row_is_lent()
  local kept
  local one = env.make(walk { reset = function (_, obs, rng) kept = rng obs[1] = rng:uniform(1, 2) end })
  one:reset()
  lu.assertStrContains(message(kept.double, kept), "the generator of a row is there while the row is stepped")
end

function TestEnvLua.test_saved_rows_go_on_the_same()
  for _, name in ipairs { "lua", "c" } do
    local how = name == "lua" and walk() or "CartPole-v1"
    local rows = env.make(how, { n = 3, seed = 2 })
    rows:reset()
    rows:step { 1, 0, 1 }
    local kept = rows:save(1)
    local obs = rows:step { 1, 0, 1 }
    rows:load(3, kept)
    local again = rows:step { 0, 0, 1 }
    lu.assertEquals(again:tolist()[3], obs:tolist()[1])
    lu.assertStrContains(message(rows.load, rows, 1, "nonsense"), "no saved state")
    lu.assertStrContains(message(rows.save, rows, 4), "row is 4, expected an integer from 1 to 3")
  end
end

function TestEnvLua.test_all_of_it_is_in_the_state()
  for _, how in ipairs { walk(), "CartPole-v1" } do
    for _, mode in ipairs { "same_step", "next_step" } do
      local function made() return env.make(how, { n = 12, seed = 2, autoreset = mode }) end
      local function go(e, n)
        local out = {}
        for _ = 1, n do
          local obs, reward, terminated, truncated = e:step(all(12, 1))
          out[#out + 1] = { obs:tolist(), reward:tolist(), terminated:tolist(), truncated:tolist(),
            e.final_obs:tolist(), e.valid:tolist() }
        end
        out.episodes = e:episodes()
        return out
      end
      local first = made()
      first:reset()
      for _ = 1, 10 do first:step(all(12, 1)) end
      local tensors, state = first:state_dict()
      state = peri.json.decode(peri.json.encode(state))
      local second = made()
      second:load_state_dict(tensors, state)
      lu.assertEquals(go(second, 15), go(first, 15))
      lu.assertStrContains(message(second.load_state_dict, env.make(how, { n = 3 }), tensors, state), "expected")
    end
  end
end

function TestEnvLua.test_only_plain_states_are_saved_unless_functions_say_how()
  local spec = walk { reset = function (s, obs) s.deep = { list = { 1, print } } obs[1] = 0 end }
  local one = env.make(spec)
  one:reset()
  lu.assertStrContains(message(one.save, one), "save: state of row 1.deep.list[2] is a function, which is no plain value")
  spec = walk { reset = function (s) s.f, s.k = print, 7 end, save = function (s) return { s.k } end,
    load = function (t) return { f = print, k = t[1] } end,
    step = function (s, _, obs) s.k = s.k + 1 obs[1] = s.k return s.k, false end }
  one = env.make(spec)
  one:reset()
  local kept = one:save()
  one:step(1)
  one:load(kept)
  lu.assertEquals(select(2, one:step(1)), 8)
end

function TestEnvLua.test_definitions_are_checked()
  lu.assertStrContains(message(env.make, walk { obs = 3 }), "obs is 3, expected table")
  lu.assertStrContains(message(env.make, walk { obs = {} }), "expected a space such as peri.env.discrete(2)")
  lu.assertStrContains(message(env.make, walk { stepp = print }), 'unknown option "stepp"; did you mean "step"?')
  lu.assertStrContains(message(env.make, { obs = env.discrete(2), action = env.discrete(2), reset = print }), "step is missing")
  lu.assertStrContains(message(env.register, walk { id = "CartPole-v1" }), "CartPole-v1 is there already")
  env.register(walk { id = "Walk-v7" })
  lu.assertEquals(env.make("Walk-v7", { n = 2 }).id, "Walk-v7")
  lu.assertStrContains(table.concat(env.ids(), " "), "Walk-v7")
  lu.assertStrContains(message(env.make, "Walk-v7", { length = 2 }), 'unknown option "length"')
end

-- ---- spaces ----

function TestEnvLua.test_spaces_say_what_they_are()
  lu.assertEquals(tostring(env.discrete(3)), "Discrete(3)")
  lu.assertEquals(tostring(env.box { -1, 1, shape = { 2 } }), "Box(-1, 1, (2), f32)")
  lu.assertEquals(tostring(env.multi_discrete { 3, 2 }), "MultiDiscrete(3, 2)")
  lu.assertTrue(env.discrete(3, 5):contains(7))
  lu.assertFalse(env.discrete(3, 5):contains(8))
  lu.assertFalse(env.box(0, 1):contains(peri.tensor(1.5)))
  lu.assertStrContains(message(env.box, 2, 1), "bounds of element 1 of a Box are 2 and 1")
  lu.assertStrContains(message(env.multi_discrete, { 3, 0 }), "size 2 is 0, expected an integer in [1, inf)")
end

-- gymnasium 1.4: space.seed(7), then two samples
function TestEnvLua.test_samples_are_those_of_gymnasium()
  local rng = env.rng(7)
  lu.assertEquals({ env.discrete(10):sample(rng), env.discrete(10):sample(rng) }, { 9, 6 })
  lu.assertEquals(env.multi_discrete({ 3, 5, 2 }):sample(env.rng(7)):tolist(), { 1, 4, 1 })
  local box = env.box({ low = { -1, 0, -math.huge }, high = { 1, 2, math.huge } }):sample(env.rng(7))
  lu.assertAlmostEquals(box:tolist()[1], 0.7944275736808777, 0)
  lu.assertAlmostEquals(box:tolist()[3], 0.001230153371579945, 0)
  rng = env.rng(7)
  lu.assertEquals(env.multi_binary(5):sample(rng):tolist(), { 1, 0, 1, 1, 1 })
  lu.assertEquals(env.multi_binary(5):sample(rng):tolist(), { 1, 0, 0, 1, 1 })
  lu.assertEquals(env.box(0, 255, { shape = { 3 }, dtype = "u8" }):sample(env.rng(7)):tolist(), { 160, 229, 198 })
  rng = env.rng(7)
  local mask = peri.tensor { false, true, false, true, true, false, false, false, false, true }
  lu.assertEquals({ env.discrete(10, -3):sample(rng), env.discrete(10, -3):sample(rng, mask) }, { 6, 1 })
end

-- gymnasium.spaces.flatten of { b = Box(2), a = Discrete(3), c = Dict(d = MultiDiscrete(2, 2)) }
function TestEnvLua.test_dicts_are_flattened_as_gymnasium_does()
  local space = env.dict { b = env.box(-2, 2, { shape = { 2 } }), a = env.discrete(3),
    c = env.dict { d = env.multi_discrete { 2, 2 } } }
  lu.assertEquals(space.shape, { 9 })
  lu.assertEquals(space:flatten { a = 1, b = { 0.5, -1 }, c = { d = { 0, 1 } } }, { 0, 1, 0, 0.5, -1, 1, 0, 0, 1 })
  lu.assertEquals(space.fields[3].name, "c")
  lu.assertEquals({ space.fields[4].name, space.fields[4].from, space.fields[4].size }, { "c.d", 6, 4 })
  lu.assertStrContains(message(space.flatten, space, { a = 3, b = { 0, 0 }, c = { d = { 0, 0 } } }), "a is 3, expected a value of Discrete(3)")
  lu.assertStrContains(message(space.flatten, space, { aa = 3 }), 'unknown part "aa"; did you mean "a"?')
end

-- ---- options of their own ----

local function line(changes)
  local spec = { id = "Line-v0", options = { length = 3, name = "a", windy = false, starts = { 0, 1 } },
    configure = function (o)
      return { obs = env.box(-o.length, o.length, { shape = { 1 } }), action = env.discrete(2), max_steps = 4 * o.length,
        reset = function (s, obs, rng) s.at = o.starts[rng:integer(#o.starts) + 1] obs[1] = s.at end,
        step = function (s, action, obs)
          s.at = s.at + (action == 1 and 1 or -1) + (o.windy and 0.5 or 0)
          obs[1] = s.at
          return #o.name, math.abs(s.at) >= o.length
        end }
    end }
  for k, v in pairs(changes or {}) do spec[k] = v end
  return spec
end

function TestEnvLua.test_options_are_values_that_make_takes()
  local one = env.make(line(), { length = 5, name = "abc", windy = true, starts = { 2 } })
  lu.assertEquals(one:reset():tolist(), { 2 })
  lu.assertEquals({ one.max_steps, one.obs_space.high }, { 20, 5 })
  local obs, reward = one:step(1)
  lu.assertEquals({ obs:tolist()[1], reward }, { 3.5, 3 })
  env.register(line { id = "Line-v1" })
  lu.assertEquals(env.make("Line-v1", { length = 7, n = 2 }).max_steps, 28)
  lu.assertEquals(env.make("Line-v1").max_steps, 12)
  for _, case in ipairs {
    { line(), { lenght = 4 }, 'env.make: Line-v0: unknown option "lenght"; did you mean "length"?' },
    { line(), { length = "4" }, 'env.make: Line-v0: length is "4", expected a number' },
    { line { configure = function () return 3 end }, {}, "configure returned number, expected a table of fields" },
    { line { options = { n = 3 } }, {}, "option n is make's own" },
    { line { options = { f = print } }, {}, "option f is a function, expected a default by name" },
    { line { configure = function () return { obs = env.discrete(2), action = env.discrete(2) } end }, {}, "reset is missing" },
  } do lu.assertStrContains(message(env.make, case[1], case[2]), case[3]) end
  local without = walk { options = { length = 3 } }
  lu.assertStrContains(message(env.make, without), "options need configure")
end

-- ---- metrics, several agents ----

function TestEnvLua.test_metrics_are_named_numbers_of_a_step()
  local spec = walk { metrics = { "far", "left" } }
  local step = spec.step
  function spec.step(s, action, obs, rng, mask, metrics)
    lu.assertNil(mask)
    if action == 0 then metrics.left = 1 end
    local r, over = step(s, action, obs, rng)
    metrics.far = s.at * 0.5
    return r, over
  end
  local rows = env.make(spec, { n = 2, seed = 1 })
  rows:reset()
  lu.assertEquals(rows.metric_names, { "far", "left" })
  rows:step { 1, 0 }
  lu.assertEquals(rows.metrics:tolist(), { { 0.5, 0 }, { -0.5, 1 } })
  rows:step { 1, 1 }
  lu.assertEquals(rows.metrics:tolist(), { { 1, 0 }, { 0, 0 } })
  for _, case in ipairs { { "near", 1, "metrics.near: no metric has this name" },
    { "far", "x", "metrics.far is string, expected a number" } } do
    spec.step = function (_, _, _, _, _, metrics) metrics[case[1]] = case[2] return 1, false end
    local one = env.make(spec, { n = 1 })
    one:reset()
    lu.assertStrContains(message(one.step, one, { 1 }), case[3])
  end
  lu.assertStrContains(message(env.make, walk { metrics = { 3 } }), "metric 1 is a number, expected a name")
end

-- Two count down from what they drew, each by its action; who is at 0 is out.
local function duel(changes)
  local spec = { id = "Duel-v0", agents = 2, obs = env.box(-9, 9, { shape = { 1 } }), action = env.discrete(3),
    mask = true, metrics = { "steps" },
    reset = function (s, obs, rng, mask)
      s.left, s.t = { 2 + rng:integer(2), 4 }, 0
      for k = 1, 2 do obs[k][1] = s.left[k] mask[k][1] = false end
    end,
    step = function (s, actions, obs, _, mask, metrics, live)
      s.t = s.t + 1
      local reward, over = {}, {}
      for k = 1, 2 do
        if live[k] then s.left[k] = s.left[k] - actions[k] end
        obs[k][1] = s.left[k]
        mask[k][1] = false
        metrics[k].steps = s.t * k
        reward[k], over[k] = -s.left[k], s.left[k] <= 0
        if over[k] then live[k] = false end
      end
      return reward, over, false
    end }
  for k, v in pairs(changes or {}) do spec[k] = v end
  return spec
end

function TestEnvLua.test_several_agents_are_rows()
  local rows = env.make(duel(), { n = 2, seed = 3 })
  local first = rows:reset():squeeze(2):tolist()
  lu.assertEquals({ rows.rows, rows.agents, #first }, { 4, 2, 4 })
  lu.assertEquals({ first[2], first[4] }, { 4, 4 })
  lu.assertEquals(rows.mask:tolist()[3], { false, true, true })
  local obs, reward, terminated = rows:step { 2, 1, 1, 2 }
  lu.assertEquals(obs:squeeze(2):tolist(), { first[1] - 2, 3, first[3] - 1, 2 })
  lu.assertEquals(reward:tolist(), { 2 - first[1], -3, 1 - first[3], -2 })
  lu.assertEquals(rows.metrics:tolist(), { { 1 }, { 2 }, { 1 }, { 2 } })
  lu.assertEquals(terminated:tolist(), { first[1] == 2, false, false, false })
  rows:step { 2, 1, 1, 2 }
  lu.assertEquals(rows.terminated:tolist()[4], true)
  lu.assertEquals(rows.live:tolist()[4], false)
  local kept = rows:save(2)
  rows:load(1, kept)
  lu.assertEquals(rows.obs:tolist()[3], rows.obs:tolist()[1])
  lu.assertEquals(rows.live:tolist()[2], false)
end

function TestEnvLua.test_agents_begin_anew_together()
  for _, mode in ipairs { "same_step", "next_step" } do
    local rows = env.frame_stack(env.make(duel(), { n = 3, seed = 3, autoreset = mode }), 2)
    local inner, over, done = rows._inner, { {}, {}, {} }, 0
    local before = rows:reset():tolist()
    local rng = env.rng(1)
    for _ = 1, 30 do
      local obs = rows:step(rows:sample(rng)):tolist()
      local ended = rows.terminated:tolist()
      for i = 1, 3 do
        local fresh
        if mode == "next_step" then fresh = over[i][1] and over[i][2] end
        for k = 1, 2 do over[i][k] = over[i][k] or ended[(i - 1) * 2 + k] end
        if mode == "same_step" then fresh = over[i][1] and over[i][2] end
        if fresh then over[i], done = {}, done + 1 end
        for k = (i - 1) * 2 + 1, i * 2 do
          lu.assertEquals(obs[k][2], inner.obs:tolist()[k])
          lu.assertEquals(obs[k][1], fresh and obs[k][2] or before[k][2])
        end
      end
      before = obs
    end
    lu.assertTrue(done > 6)
  end
end

function TestEnvLua.test_agents_without_n_are_the_rows_of_one()
  local one = env.make(duel(), { seed = 3 })
  lu.assertEquals(one:reset().shape, { 2, 1 })
  one:step { 2, 2 }
  one:step { 2, 2 }
  lu.assertEquals(one.terminated:tolist()[2], true)
  local kinds = { id = "Kinds-v0", agents = 2, obs = env.discrete(5), action = env.box(-1, 1, { shape = { 2 } }),
    reset = function () return { 1, 2 } end,
    step = function (_, a) return { a[1][1], a[2][2] }, { false, true }, nil, { 3, 4 } end }
  local two = env.make(kinds, { n = 1 })
  lu.assertEquals(two:reset():tolist(), { 1, 2 })
  local obs, reward, terminated = two:step(peri.tensor { { 0.5, 0 }, { 0, 0.25 } })
  lu.assertEquals({ obs:tolist(), reward:tolist(), terminated:tolist() }, { { 3, 4 }, { 0.5, 0.25 }, { false, true } })
  kinds.step = function () return 1, false, false, { 1, 1 } end
  two = env.make(kinds, { n = 1 })
  two:reset()
  lu.assertStrContains(message(two.step, two, peri.zeros { 2, 2 }), "reward is a number, expected a list of 2")
  kinds.step = function () return { 1 }, false, false, { 1, 1 } end
  two = env.make(kinds, { n = 1 })
  two:reset()
  local said = message(two.step, two, peri.zeros { 2, 2 })
  lu.assertStrContains(said, "row 2, step 1 of its episode: ")
  lu.assertStrContains(said, "step returned nil as reward, expected a number")
end

-- ---- nothing that a function gives is left aside ----

-- An environment of one agent or two, of vectors or numbered states, that does as it should but for what `odd` does.
local function careful(agents, numbered, odd)
  local function each(v) return agents == 1 and v or { v, v } end
  local function show(obs) if not numbered then for k = 1, agents do (agents == 1 and obs or obs[k])[1] = 1 end end end
  return { id = "Careful-v0", agents = agents, mask = true, metrics = { "m" }, action = env.discrete(2),
    obs = numbered and env.discrete(3) or env.box(-9, 9, { shape = { 1 } }),
    reset = function (_, obs, ...)
      show(obs)
      return table.unpack(odd.reset and odd.reset(obs, ...) or { numbered and each(1) or nil })
    end,
    step = function (_, _, obs, ...)
      show(obs)
      local out = { each(0.5), false, false, numbered and each(2) or nil }
      return table.unpack(odd.step and odd.step(out, obs, ...) or out, 1, 9)
    end }
end

local function plays(spec)
  local e = env.make(spec, { n = 2, seed = 1 })
  e:reset()
  e:step(all(e.rows, 1))
end

function TestEnvLua.test_what_is_returned_beyond_what_is_read_is_refused()
  for _, agents in ipairs { 1, 2 } do
    for _, numbered in ipairs { false, true } do
      local function one(odd) return careful(agents, numbered, odd) end
      local function set(k, v) return function (out) out[k] = v return out end end
      plays(one {})
      plays(one { step = function (out, obs) if not numbered then out[4] = obs end return out end })
      plays(one { reset = not numbered and function (obs) return { obs } end or nil })
      for k = 5, 8 do
        lu.assertStrContains(message(plays, one { step = set(k, {}) }),
          ("step returned a table as value %d, expected 4 at most"):format(k))
      end
      local expected = numbered and "step returned table as" or "step returned a table as observation: write it into the table obs, "
      lu.assertStrContains(message(plays, one { step = set(4, { {}, {} }) }), expected)
      lu.assertStrContains(message(plays, one { reset = function ()
        return { numbered and (agents == 1 and 1 or { 1, 1 }) or nil, {} }
      end }), "reset returned a table as value 2, expected 1 at most")
      if not numbered then
        lu.assertStrContains(message(plays, one { reset = function () return { { 0 } } end }),
          "reset returned a table as observation: write it into the table obs, "
          .. (agents == 1 and "obs[1] = ..." or "obs[agent][1] = ..."))
      end
    end
  end
  -- Gymnasium's order
  lu.assertStrContains(message(plays, careful(1, false, { step = function () return { { 0 }, 1, false, false, {} } end })),
    "step returned a table as value 5, expected 4 at most")
  lu.assertStrContains(message(plays, careful(1, false, { step = function () return { { 0 }, 1, false } end })),
    "it returns reward, terminated, truncated, and writes what is observed into the table obs")
end

function TestEnvLua.test_lists_of_agents_have_one_entry_for_each_and_their_tables_stay()
  for k, name in pairs { "reward", "terminated", "truncated", "obs" } do
    local entries = ({ { 0, 0, 3 }, { false, true, false }, { false, false, true }, { 1, 2, 0 } })[k]
    local said = message(plays, careful(2, true, { step = function (out) out[k] = entries return out end }))
    lu.assertStrContains(said, name .. " has 3 entries, expected one for each of 2 agents")
  end
  lu.assertStrContains(message(plays, careful(2, true, { reset = function () return { { 1, 1, 1 } } end })),
    "obs has 3 entries, expected one for each of 2 agents")
  for place, name in pairs { "obs", [3] = "mask", [4] = "metrics" } do
    for _, k in ipairs { 1, 3 } do -- one that is there, one that is not
      local said = message(plays, careful(2, false, { step = function (out, ...)
        select(place, ...)[k] = { 1 }
        return out
      end }))
      lu.assertStrContains(said, ("%s[%d]: %s is a list for agents 1 to 2; write into what is there"):format(name, k, name))
    end
  end
  lu.assertStrContains(message(plays, careful(2, false, { step = function (out, ...) select(5, ...)[3] = true return out end })),
    "live[3]: live has elements 1 to 2")
  plays(careful(2, false, { step = function (out, obs, _, mask, metrics) -- they read as lists do
    lu.assertEquals({ #obs, #mask, #metrics, obs[3] }, { 2, 2, 2 })
    local n = 0
    for k, t in pairs(obs) do n = n + k + t[1] end
    for k, t in ipairs(mask) do n = n + k + #t end
    lu.assertEquals(n, 3 + 2 + 3 + 4)
    return out
  end }))
end

function TestEnvLua.test_somebody_acts_until_the_episode_ends()
  for _, mode in ipairs { "same_step", "next_step", "disabled" } do
    local function two(reset, step, over)
      local spec = careful(2, false, { step = function (out, _, _, _, _, live)
        for k = 1, 2 do live[k] = step end
        out[2] = over
        return out
      end, reset = function (_, _, _, live)
        for k = 1, 2 do live[k] = reset end
        return {}
      end })
      return function ()
        local e = env.make(spec, { n = 2, seed = 1, autoreset = mode })
        e:reset()
        for _ = 1, mode == "disabled" and 1 or 4 do e:step(all(4, 1)) end
      end
    end
    local nobody = "no agent may act next (live), and the episode has not ended"
    lu.assertStrContains(message(two(false, true, false)), "reset: " .. nobody)
    lu.assertStrContains(message(two(true, false, false)), nobody)
    lu.assertStrContains(message(two(true, false, { true, false })), nobody) -- one is out, the other waits for ever
    two(true, false, true)()
    two(true, true, false)()
  end
  local list, ok = env.check(careful(2, false, { reset = function (_, _, _, live)
    live[1], live[2] = false, false
    return {}
  end }))
  lu.assertFalse(ok)
  lu.assertStrContains(list[1].message, "no agent may act next")
end

function TestEnvLua.test_threads_change_nothing_where_lua_runs()
  local all_of = {}
  for _, threads in ipairs { 1, 2 } do
    local rows = env.make(walk(), { n = 1000, seed = 4, threads = threads })
    rows:reset()
    for t = 1, 25 do rows:step(all(1000, t % 2)) end
    local out = { rows.obs:tolist(), rows:episodes() }
    all_of[#all_of + 1] = out
  end
  lu.assertEquals(all_of[2], all_of[1])
end
