-- Environments written with tensor ops for the whole batch: the same as row by row, states, what they do wrong.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"

local env, message = peri.env, claims.message

TestEnvWhole = {}

-- A walk with noise to 3 or -4: the same transitions twice. obs { place, noise of two kinds }; with masks: at 2 and beyond only
-- the way back is legal.
local function by_rows(masked)
  return { id = "Noisy-v0", obs = env.box(-99, 99, { shape = { 3 } }), action = env.discrete(2), max_steps = 9,
    mask = masked,
    reset = function (s, obs, rng)
      s.at = rng:integer(3) - 1
      obs[1], obs[2], obs[3] = s.at, rng:double(), 0
    end,
    step = function (s, action, obs, rng, mask)
      local noise = rng:normal() * 0.25
      s.at = s.at + (action == 1 and 1 or -1) + noise
      obs[1], obs[2], obs[3] = s.at, noise, rng:uniform(-1, 2)
      if masked then mask[2] = s.at < 2 end
      return s.at * 0.5, s.at >= 3, s.at <= -4
    end }
end

local function by_batch(masked)
  return { id = "Noisy-v0", obs = env.box(-99, 99, { shape = { 3 } }), action = env.discrete(2), max_steps = 9,
    mask = masked, batch = true,
    reset = function (S, _, rng)
      S.at = rng:integer(3):sub(1):to "f64"
      return peri.stack({ S.at, rng:double(), peri.zeros(S.at.shape, "f64") }, 2),
        masked and peri.ones({ S.at.shape[1], 2 }, "bool") or nil
    end,
    step = function (S, action, rng)
      local noise = rng:normal() * 0.25
      S.at = S.at + (action * 2 - 1):to "f64" + noise
      local legal = masked and peri.stack({ peri.ones(S.at.shape, "bool"), S.at:lt(2) }, 2) or nil
      return peri.stack({ S.at, noise, rng:uniform(-1, 2) }, 2), S.at * 0.5, S.at:ge(3), S.at:le(-4), legal
    end }
end

local function seen(e)
  return { e.obs:tolist(), e.reward:tolist(), e.terminated:tolist(), e.truncated:tolist(), e.final_obs:tolist(),
    e.valid:tolist(), e.mask and e.mask:tolist(), e.episode_return:tolist() and e.episode_length:tolist() }
end

-- Steps of both with the same actions; rows that ended are reset by a mask where nothing else does it.
local function play_both(a, b, steps, mode)
  local rng, ended = env.rng(4), 0
  for t = 1, steps do
    local actions = a:sample(rng)
    a:step(actions)
    b:step(actions)
    lu.assertEquals(seen(b), seen(a), ("%s, step %d"):format(mode, t))
    if mode == "disabled" then
      local over = a.terminated:logical_or(a.truncated)
      if over:any():item() then
        a:reset { mask = over }
        b:reset { mask = over }
        lu.assertEquals(seen(b), seen(a), ("%s, reset after step %d"):format(mode, t))
      end
    end
    ended = ended + a.terminated:logical_or(a.truncated):sum():item()
  end
  local e = a:episodes()
  lu.assertEquals(b:episodes(), e)
  return #e.returns
end

function TestEnvWhole.test_a_batch_is_bit_for_bit_its_rows()
  for _, mode in ipairs { "same_step", "next_step", "disabled" } do
    for _, n in ipairs { 1, 3, 270 } do
      for _, masked in ipairs { false, true } do
        local o = { n = n, seed = 7, autoreset = mode }
        local a, b = env.make(by_rows(masked), o), env.make(by_batch(masked), o)
        a:reset()
        b:reset()
        lu.assertEquals(seen(b), seen(a))
        lu.assertTrue(play_both(a, b, 40, mode) >= n)
      end
    end
  end
end

function TestEnvWhole.test_a_single_one_has_no_rows()
  local a, b = env.make(by_rows(), { seed = 3 }), env.make(by_batch(), { seed = 3 })
  lu.assertEquals(b:reset():tolist(), a:reset():tolist())
  local over, cut, t = false, false, 0
  while not (over or cut) do
    local x, r, d, c = a:step(t % 2)
    local y, q
    y, q, over, cut = b:step(t % 2)
    lu.assertEquals({ y:tolist(), q, over, cut }, { x:tolist(), r, d, c })
    t = t + 1
  end
end

function TestEnvWhole.test_all_of_it_is_in_the_state()
  for _, mode in ipairs { "same_step", "next_step" } do
    local o = { n = 5, seed = 2, autoreset = mode }
    local first = env.make(by_batch(), o)
    first:reset()
    for _ = 1, 8 do first:step { 1, 0, 1, 1, 0 } end
    local tensors, state = first:state_dict()
    state = peri.json.decode(peri.json.encode(state))
    for name, t in pairs(tensors) do tensors[name] = t:clone() end
    local second = env.make(by_batch(), o)
    second:load_state_dict(tensors, state)
    lu.assertEquals(seen(second), seen(first))
    play_both(first, second, 20, mode)
  end
end

function TestEnvWhole.test_a_saved_row_goes_on_the_same_in_another()
  local rows = env.make(by_batch(), { n = 4, seed = 2 })
  rows:reset()
  rows:step { 1, 0, 1, 0 }
  local kept = rows:save(1)
  local obs = rows:step { 1, 0, 1, 0 }
  rows:load(3, kept)
  local again = rows:step { 0, 0, 1, 0 }
  lu.assertEquals(again:tolist()[3], obs:tolist()[1])
  local spec = by_batch()
  local reset = spec.reset
  function spec.reset(S, ...) S.map = S.map or "wall" return reset(S, ...) end
  local odd = env.make(spec, { n = 2 })
  odd:reset()
  lu.assertStrContains(message(odd.save, odd, 1), "S.map is no tensor of 2 rows, so a row cannot be saved alone")
  local tensors, state = odd:state_dict()
  local other = env.make(by_batch(), { n = 2 })
  other:load_state_dict(tensors, state)
end

function TestEnvWhole.test_what_a_batch_does_wrong_is_named()
  local nan = 0 / 0
  local function step_with(change)
    return function (S, action, rng)
      local out = { by_batch().step(S, action, rng) }
      change(out, S)
      return table.unpack(out, 1, 5)
    end
  end
  local cases = {
    { function (o) o[2] = peri.tensor { 0, nan, 0 } end, "row 2, step 1 of its episode: its reward is nan, expected a finite number" },
    { function (o) o[1] = o[1]:mul(peri.tensor({ { 1 }, { 1 }, { nan } }, "f64")) end, "row 3, step 1 of its episode: its observation [0] is nan" },
    { function (o) o[2] = 1 end, "step returned number as reward, expected a tensor (3) of f64" },
    { function (o) o[2] = peri.zeros { 2 } end, "step returned (2) of f32 as reward, expected (3) of f64" },
    { function (o) o[3] = peri.zeros { 3 } end, "step returned (3) of f32 as terminated, expected (3) of bool" },
    { function (o) o[1] = nil end, "step returned nil as obs, expected a tensor (3, 3) of f32" },
    { function (o) o[4] = true end, "step returned boolean as truncated, expected a tensor (3) of bool" },
  }
  for k, case in ipairs(cases) do
    local spec = by_batch()
    spec.step = step_with(case[1])
    local rows = env.make(spec, { n = 3, seed = 1 })
    rows:reset()
    lu.assertStrContains(message(rows.step, rows, { 1, 1, 1 }), case[2], false, k)
    lu.assertStrContains(message(rows.step, rows, { 1, 1, 1 }), "an earlier step or reset failed")
    lu.assertStrContains(message(rows.save, rows), "environment that failed")
  end
  local spec = by_batch()
  local reset = spec.reset
  function spec.reset(S, ...) S.count = (S.count or 0) + 1 return reset(S, ...) end
  local rows = env.make(spec, { n = 3, seed = 1 })
  rows:reset()
  lu.assertStrContains(message(rows.reset, rows, { mask = peri.tensor { true, false, false } }),
    "reset of some rows changed S.count, which is no tensor of 3 rows as before: the others would see it")
end

function TestEnvWhole.test_states_outlive_the_scopes_of_their_steps()
  local rows = env.make(by_batch(), { n = 3, seed = 1 })
  rows:reset()
  for _ in peri.steps(12) do rows:step { 1, 0, 1 } end
  lu.assertEquals(rows.obs.shape, { 3, 3 })
end

function TestEnvWhole.test_generators_are_lent()
  local kept
  local spec = by_batch()
  local reset = spec.reset
  function spec.reset(S, rows, rng) kept = rng return reset(S, rows, rng) end
  env.make(spec, { n = 2 }):reset()
  lu.assertStrContains(message(kept.double, kept), "generators of rows are there while the batch is stepped")
end

function TestEnvWhole.test_speed_is_said()
  for _, how in ipairs { by_batch(), by_rows() } do
    local rows = env.make(how, { n = 1024, seed = 1, copy = false })
    rows:reset()
    local actions, steps, began = peri.ones({ 1024 }, "i64"), 50, os.clock()
    for _ in peri.steps(steps) do rows:step(actions) end
    print(("  1024 rows %s: %.2f M steps/s"):format(how.batch and "with tensor ops" or "row by row",
      1024 * steps / (os.clock() - began) / 1e6))
  end
end
