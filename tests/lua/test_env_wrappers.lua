-- Wrappers of environments: Gymnasium's numbers, final observations, states, statistics that policies carry.
local lu = require "luaunit"
local peri = require "perilune"
local claims = require "claims"
local scratch = require "scratch"

local env, message = peri.env, claims.message

TestEnvWrappers = {}

-- What tests/c and Gymnasium were driven with, too.
local function actions_at(t)
  local list = {}
  for i = 0, 2 do list[i + 1] = (t * 3 + i * i + t // 5) % 2 end
  return list
end

local function drive(e, n)
  e:reset { seed = 3 }
  local last
  for t = 0, n - 1 do last = { e:step(actions_at(t)) } end
  return table.unpack(last)
end

local function near(t, want, tolerance)
  local got = type(t) == "table" and t or t:tolist()
  for i, v in ipairs(want) do
    if type(v) == "table" then near(got[i], v, tolerance) else lu.assertAlmostEquals(got[i], v, tolerance) end
  end
end

-- gymnasium 1.4: NormalizeObservation over SyncVectorEnv of three CartPole-v1, next-step autoreset, seed 3, 40 steps; its
-- statistics are f32
function TestEnvWrappers.test_observations_are_normalised_as_gymnasium_does()
  local e = env.normalize_obs(env.make("CartPole-v1", { n = 3, autoreset = "next_step" }))
  near(drive(e, 40), {
    { 0.5361979007720947, 0.2027883380651474, -0.7333726286888123, -0.33193403482437134 },
    { 1.1728569269180298, 1.6416734457015991, -1.41694974899292, -1.574220895767212 },
    { -2.0608134269714355, -1.608586072921753, 2.1416265964508057, 1.7503957748413086 } }, 2e-5)
  local n = e:normalizers()[1]
  near(n.mean, { -0.018597615882754326, -0.12378978729248047, 0.03788203001022339, 0.21792976558208466 }, 1e-6)
  near(n.var, { 0.007614683359861374, 0.17963024973869324, 0.0068685454316437244, 0.49567681550979614 }, 1e-6)
end

-- gymnasium 1.4: NormalizeReward, gamma 0.9, same-step autoreset; its sums are f32
function TestEnvWrappers.test_rewards_are_normalised_as_gymnasium_does()
  local e = env.normalize_reward(env.make("CartPole-v1", { n = 3 }), { gamma = 0.9 })
  local _, reward = drive(e, 40)
  near(e:statistics()["normalize_reward.1.var"]:reshape { 1 }, { 6.203355898502614 }, 1e-5)
  near(e:statistics()["normalize_reward.1.mean"]:reshape { 1 }, { 5.602495600070614 }, 1e-5)
  near(reward, { (6.203355898502614 + 1e-8) ^ -0.5 }, 1e-6)
end

function TestEnvWrappers.test_final_observations_are_normalised_and_not_counted()
  local e = env.normalize_obs(env.make("CartPole-v1", { n = 3 }), { clip = 2 })
  drive(e, 200)
  local n = e:normalizers()[1]
  local raw = e._inner.final_obs:to "f64"
  local want = raw:sub(n.mean):div(n.var:add(n.epsilon):sqrt()):clamp(-2, 2):to "f32"
  lu.assertEquals(e.final_obs:tolist(), want:tolist())
  lu.assertEquals(e.final_obs:tolist(), e.final_obs:tolist())
end

function TestEnvWrappers.test_frozen_statistics_stay()
  local e = env.normalize_reward(env.normalize_obs(env.make("CartPole-v1", { n = 3 })))
  drive(e, 20)
  local before = e:statistics()
  e:eval(true)
  drive(e, 20)
  for name, t in pairs(e:statistics()) do
    if not name:find "sum" then lu.assertEquals(t:tolist(), before[name]:tolist(), name) end
  end
  e:eval(false)
  drive(e, 20)
  lu.assertNotEquals(e:statistics()["normalize_obs.1.count"]:item(), before["normalize_obs.1.count"]:item())
end

local function stacked(mode) return env.frame_stack(env.make("CartPole-v1", { n = 3, autoreset = mode }), 3) end

function TestEnvWrappers.test_stacks_begin_anew_with_episodes()
  for _, mode in ipairs { "same_step", "next_step" } do
    local e, plain = stacked(mode), env.make("CartPole-v1", { n = 3, autoreset = mode })
    lu.assertEquals(e.obs_space.shape, { 3, 4 })
    local o = plain:reset({ seed = 3 }):tolist()
    local history = {}
    for i = 1, 3 do history[i] = { o[i], o[i], o[i] } end
    lu.assertEquals(e:reset({ seed = 3 }):tolist(), history)
    for t = 0, 60 do
      local obs, _, terminated, truncated = plain:step(actions_at(t))
      local got = e:step(actions_at(t)):tolist()
      local final, valid = plain.final_obs:tolist(), plain.valid:tolist()
      obs, terminated, truncated = obs:tolist(), terminated:tolist(), truncated:tolist()
      local finals = e.final_obs:tolist()
      for i = 1, 3 do
        local h = history[i]
        lu.assertEquals(finals[i][3], final[i])
        if valid[i] then lu.assertEquals(finals[i][2], h[3]) end
        local begun = mode == "same_step" and (terminated[i] or truncated[i]) or not valid[i]
        history[i] = begun and { obs[i], obs[i], obs[i] } or { h[2], h[3], obs[i] }
        lu.assertEquals(got[i], history[i])
      end
    end
  end
end

function TestEnvWrappers.test_actions_are_scaled_and_clipped()
  -- gymnasium 1.4: RescaleAction(Pendulum-v1, -1, 1), seed 1, action 0.25 is 0.5
  local scaled, plain = env.rescale_action(env.make "Pendulum-v1"), env.make "Pendulum-v1"
  scaled:reset { seed = 1 }
  plain:reset { seed = 1 }
  lu.assertEquals(scaled:step({ 0.25 }):tolist(), plain:step({ 0.5 }):tolist())
  local clipped = env.clip_action(env.make "MountainCarContinuous-v0")
  clipped:reset { seed = 1 }
  local _, reward = clipped:step { 30 }
  lu.assertAlmostEquals(reward, -0.1, 1e-6)
  lu.assertStrContains(message(env.clip_action, env.make "CartPole-v1"), "actions are Discrete(2), expected a Box")
  lu.assertStrContains(message(env.rescale_action, plain, 1, -1), "low is 1, expected less than -1")
end

function TestEnvWrappers.test_actions_of_many_rows_are_lists_of_all_numbers()
  for _, wrapper in ipairs { env.clip_action, env.rescale_action } do
    local e = wrapper(env.make("Pendulum-v1", { n = 2, seed = 1 }))
    local same = wrapper(env.make("Pendulum-v1", { n = 2, seed = 1 }))
    e:reset()
    same:reset()
    lu.assertEquals(e:step({ 0.25, -1 }):tolist(), same:step(peri.tensor { { 0.25 }, { -1 } }):tolist())
    lu.assertStrContains(message(e.step, e, { 0.25 }), "the list of actions has 1 numbers, expected 2")
    lu.assertStrContains(message(e.step, e), "step: actions is missing, expected tensor or table")
    lu.assertStrContains(message(e.step, e, { 0, 0 / 0 }), "Pendulum-v1: row 2, step 2 of its episode: action [0] is nan")
  end
end

local function echo(low, high, dtype)
  return env.make({ id = "Echo-v0", obs = env.box(-100, 100, { shape = { 1 } }), reset = function () end,
    action = env.box(low, high, { shape = { 1 }, dtype = dtype }),
    step = function (_, a, obs) obs[1] = a[1] return 0, false end }, { n = 1 })
end

function TestEnvWrappers.test_scaled_actions_are_not_clipped()
  for low, high in pairs { [-2] = 4, [0.1] = 0.7, [-0.3] = 1.1 } do
    local e, want = env.rescale_action(echo(low, high)), peri.tensor { low, high }:tolist()
    e:reset()
    lu.assertEquals(e:step({ -1 }):item(), want[1])
    local most = e:step({ 1 }):item()
    lu.assertTrue(most <= want[2] and most > want[2] - 1e-6) -- whatever rounding does
    lu.assertAlmostEquals(e:step({ 3 }):item(), high + (high - low), 1e-5) -- as Gymnasium's
    local both = env.clip_action(env.rescale_action(echo(low, high)))
    both:reset()
    lu.assertEquals(both:step({ 3 }):item(), most)
  end
  lu.assertStrContains(message(env.rescale_action, echo(0, 9, "i32")), "the actions of Echo-v0 are i32, expected f32 or f64")
end

function TestEnvWrappers.test_agents_that_are_out_do_not_count()
  local seen = { { 1, 5 }, { 3, 7 }, { 5, 1e6 }, { 7, 1e6 } } -- the second agent's last is 7
  local t = 0
  local inner = { n = 1, rows = 2, agents = 2, id = "Pair-v0", obs_space = env.box(-1e6, 1e6, { shape = { 1 } }) }
  local function give()
    t = t + 1
    inner.valid = peri.tensor({ true, t < 3 }, "bool")
    inner.live = peri.tensor({ true, t < 2 }, "bool")
    return peri.tensor(seen[t]):reshape { 2, 1 }
  end
  inner.reset = give
  function inner.step() return give() end
  function inner.normalizers() return {} end
  local e = env.normalize_obs(inner)
  e:reset()
  for _ = 1, 3 do e:step() end
  lu.assertAlmostEquals(e:normalizers()[1].mean:item(), (1 + 5 + 3 + 7 + 5 + 7) / 6, 1e-3)
end

function TestEnvWrappers.test_rewards_are_clipped_and_episodes_are_not()
  local e = env.clip_reward(env.make("CartPole-v1", { n = 3 }), 0, 0.25)
  local _, reward = drive(e, 30)
  lu.assertEquals(reward:tolist(), { 0.25, 0.25, 0.25 })
  local episodes = e:episodes()
  lu.assertEquals(episodes.returns, episodes.lengths)
end

function TestEnvWrappers.test_a_time_limit_is_that_of_the_environment()
  local e = env.time_limit(env.normalize_obs(env.make("CartPole-v1", { n = 3 })), 5)
  lu.assertEquals(e.max_steps, 5)
  drive(e, 5)
  lu.assertEquals(e.truncated:tolist(), { true, true, true })
  lu.assertStrContains(message(env.time_limit, e, 0), "max_steps is 0, expected an integer in [1, inf)")
end

local function tower()
  local e = env.make("CartPole-v1", { n = 3, seed = 9 })
  return env.normalize_reward(env.frame_stack(env.normalize_obs(env.clip_reward(e, 0, 2)), 2))
end

-- In a loop whose turns are memory scopes, as a run's are, what wrappers have learnt outlives each turn.
function TestEnvWrappers.test_statistics_outlive_scopes()
  local e, plain = tower(), tower()
  e:reset { seed = 1 }
  plain:reset { seed = 1 }
  local got, want = {}, {}
  for t = 1, 40 do
    local _ <close> = peri.scope()
    local obs, reward = e:step(actions_at(t))
    got[t] = { obs:tolist(), reward:tolist(), e.obs:tolist(), e.final_obs:tolist() }
  end
  for t = 1, 40 do
    local obs, reward = plain:step(actions_at(t))
    want[t] = { obs:tolist(), reward:tolist(), plain.obs:tolist(), plain.final_obs:tolist() }
  end
  lu.assertEquals(got, want)
end

function TestEnvWrappers.test_a_tower_goes_on_from_its_state()
  local function go(e)
    local out = {}
    for t = 0, 40 do
      local obs, reward = e:step(actions_at(t))
      out[#out + 1] = { obs:tolist(), reward:tolist(), e.final_obs:tolist() }
    end
    return out
  end
  local first, second = tower(), tower()
  first:reset()
  go(first)
  local tensors, state = first:state_dict()
  second:load_state_dict(tensors, peri.json.decode(peri.json.encode(state)))
  lu.assertEquals(go(second), go(first))
  lu.assertStrContains(message(function () env.make("CartPole-v1", { n = 3 }):load_state_dict(tensors, state) end), "expected")
  lu.assertStrContains(message(second.load_state_dict, second, {}, state), "load_state_dict: missing")
end

-- Of every wrapper that learns something: a state that is not its own is refused by name.
function TestEnvWrappers.test_states_of_others_are_refused_by_name()
  local function plain() return env.make("CartPole-v1", { n = 2, seed = 1 }) end
  local makers = {
    normalize_obs = function () return env.normalize_obs(plain()) end,
    normalize_reward = function () return env.normalize_reward(plain()) end,
    frame_stack = function () return env.frame_stack(plain(), 2) end,
    shape_reward = function ()
      return env.shape_reward(plain(), { gamma = 0.9, potential = function (x) return x:select(-1, 1) end })
    end,
    clip_reward = function () return env.clip_reward(plain()) end,
  }
  for kind, make in pairs(makers) do
    local one = make()
    one:reset()
    local tensors, state = one:state_dict()
    local function with(name, t)
      local all = {}
      for k, v in pairs(tensors) do all[k] = v end
      all[name] = t
      return all
    end
    local own = kind .. ".1."
    make():load_state_dict(tensors, state)
    lu.assertStrContains(message(make().load_state_dict, make(), with(own .. "other", peri.zeros { 1 }), state), "unexpected other")
    lu.assertStrContains(message(make().load_state_dict, make(), with("other", peri.zeros { 1 }), state), "unexpected other")
    for name, t in pairs(one:statistics()) do
      local short = name:sub(#own + 1)
      lu.assertEquals(name, own .. short)
      lu.assertTrue(rawequal(t, tensors[name]) or t:eq(tensors[name]):all():item(), name)
      lu.assertStrContains(message(make().load_state_dict, make(), with(name, nil), state), "missing " .. short)
      lu.assertStrContains(message(make().load_state_dict, make(), with(name, peri.zeros({ 7, 7 }, t.dtype)), state),
        ("load_state_dict: %s is (7, 7) of %s, expected "):format(short, t.dtype))
      lu.assertStrContains(message(make().load_state_dict, make(), with(name, t:to "i32"), state),
        ("%s is %s of i32, expected %s of %s"):format(short, "(" .. table.concat(t.shape, ", ") .. ")",
          "(" .. table.concat(t.shape, ", ") .. ")", t.dtype))
    end
    for other, maker in pairs(makers) do
      if other ~= kind then
        lu.assertStrContains(message(maker().load_state_dict, maker(), tensors, state),
          ("the state is of %s.1, expected %s.1 around CartPole-v1"):format(kind, other))
      end
    end
    lu.assertStrContains(message(make().load_state_dict, make(), tensors), "state")
    local bare, inner = plain():state_dict()
    lu.assertStrContains(message(make().load_state_dict, make(), bare, inner), "the state is of CartPole-v1, expected " .. kind)
    lu.assertStrContains(tostring(one), kind .. "(CartPole-v1")
    lu.assertEquals(#make():normalizers(), kind == "normalize_obs" and 1 or 0)
  end
end

function TestEnvWrappers.test_films_are_kept()
  local folder = scratch.folder()
  local e = env.record(env.make("CartPole-v1", { n = 2, seed = 1 }), { folder = folder, every = 2, kind = "svg" })
  e:reset()
  local ended = 0
  while ended < 3 do
    if select(3, e:step { 1, 1 }):tolist()[1] then ended = ended + 1 end
  end
  lu.assertEquals(peri.files.exists(folder .. "/episode-000001.svg"), "file")
  lu.assertFalse(peri.files.exists(folder .. "/episode-000002.svg") or false)
  lu.assertEquals(peri.files.exists(folder .. "/episode-000003.svg"), "file")
end

function TestEnvWrappers.test_they_want_an_environment()
  for _, name in ipairs { "normalize_obs", "normalize_reward", "clip_action", "clip_reward", "rescale_action" } do
    lu.assertStrContains(message(env[name], 3), ("env.%s: env is 3, expected an environment"):format(name))
  end
  lu.assertStrContains(message(env.frame_stack, env.make "CartPole-v1", 0), "k is 0, expected an integer in [1, inf)")
  lu.assertStrContains(message(env.normalize_obs, env.make "FrozenLake-v1"), "observations are Discrete(16), expected a Box")
end
