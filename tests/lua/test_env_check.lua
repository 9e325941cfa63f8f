-- peri.env.check and perilune check-env, play: what is right passes, every kind of fault is found and named.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"

TestEnvCheck = {}

-- A walk that is right; faults are put into copies of it.
local function walk(changes)
  local t = {
    id = "Walk-v0", max_steps = 20,
    obs = peri.env.box { -10, 10, shape = { 2 } }, action = peri.env.discrete(2),
    reset = function (s, obs, rng)
      s.at, s.steps = rng:integer(3) - 1, 0
      obs[1], obs[2] = s.at, s.steps
    end,
    step = function (s, action, obs)
      s.at, s.steps = s.at + (action == 1 and 1 or -1), s.steps + 1
      obs[1], obs[2] = s.at, math.min(s.steps, 10)
      return s.at == 3 and 1 or 0, math.abs(s.at) == 3, false
    end,
  }
  for k, v in pairs(changes or {}) do t[k] = v end
  return t
end

local function finds(def, name, part, mild)
  local list, ok = peri.env.check(def, { steps = 60, patience = 500 })
  lu.assertEquals(ok, mild == true)
  for _, entry in ipairs(list) do
    if entry.name == name and entry.ok ~= true then
      lu.assertEquals(entry.ok, mild and "warning" or false)
      lu.assertStrContains(entry.message, part)
      return
    end
  end
  lu.fail(name .. " found nothing: " .. peri.json.encode(list))
end

function TestEnvCheck.test_what_is_built_in_passes()
  for _, id in ipairs(peri.env.ids()) do
    local list, ok = peri.env.check(id, { steps = 40 })
    lu.assertTrue(ok, id .. ": " .. peri.json.encode(list))
  end
end

function TestEnvCheck.test_a_right_environment_has_no_complaint()
  local list, ok = peri.env.check(walk())
  lu.assertTrue(ok)
  for _, entry in ipairs(list) do lu.assertEquals(entry.ok, true, entry.name .. ": " .. tostring(entry.message)) end
  lu.assertTrue(#list > 12)
end

function TestEnvCheck.test_observations_outside_of_their_space()
  finds(walk { obs = peri.env.box { -2, 2, shape = { 2 } } }, "observations are in their space", "is 3.0, outside of [-2, 2]")
end

function TestEnvCheck.test_hidden_randomness()
  local n = 0
  finds(walk { step = function (s, _, obs)
    n = n + 1
    obs[1], obs[2] = n % 7, 0
    return 0, s == nil, false
  end }, "the same seed gives the same episode", "step 1, row 1: observation 1 is")
end

function TestEnvCheck.test_something_that_lives_on_between_episodes()
  local seen, base = {}, walk()
  finds(walk {
    reset = function (s, obs, rng)
      base.reset(s, obs, rng)
      seen[s] = (seen[s] or 0) + 1
      local total = 0
      for _ in pairs(seen) do total = total + 1 end
      obs[2] = math.min(9, total // 9)
    end }, "episodes leave nothing behind", "in a new environment it was")
end

function TestEnvCheck.test_rows_that_know_of_each_other()
  local base, last = walk(), 0
  finds(walk { step = function (s, action, obs)
    local reward, over, cut = base.step(s, action, obs)
    obs[2] = last
    last = s.at
    return reward, over, cut
  end }, "row i is the environment of seed + i - 1", "alone it is")
end

function TestEnvCheck.test_a_state_that_is_not_all()
  local base, steps = walk(), setmetatable({}, { __mode = "k" })
  finds(walk {
    reset = function (s, obs, rng)
      base.reset(s, obs, rng)
      steps[s] = 0
    end,
    step = function (s, action, obs)
      local reward, over, cut = base.step(s, action, obs)
      steps[s] = (steps[s] or 0) + 1
      obs[2] = math.min(steps[s], 10)
      return reward, over, cut
    end }, "a state that is loaded goes on as it would have", "observation 2 is")
end

function TestEnvCheck.test_pictures_that_fail_or_move_the_environment()
  finds(walk { render = function (_, frame) frame:rect(0, 0, 1, 1, { 1, 0, 0 }) end }, "its pictures can be drawn", "rgb")
  finds(walk { text = function () return 7 end }, "its pictures can be drawn", "step 1, row 1: text gives a number")
  local cart = peri.env.make "CartPole-v1"
  cart:reset()
  local own, small = cart:render().shape, cart:render(1, 30).shape
  lu.assertEquals({ small[1], small[2], small[3] }, { 30, (30 * own[2] + own[1] // 2) // own[1], 3 })
  local base, drawn = walk(), setmetatable({}, { __mode = "k" })
  finds(walk { text = function (s)
    drawn[s] = true
    return ""
  end, step = function (s, action, obs)
    local reward, over, cut = base.step(s, action, obs)
    if drawn[s] then obs[2] = 5 end
    return reward, over, cut
  end }, "its pictures can be drawn", "without pictures it was")
end

function TestEnvCheck.test_errors_and_numbers_that_are_none()
  local base = walk()
  local function at_step(what)
    return walk { step = function (s, action, obs)
      local reward, over, cut = base.step(s, action, obs)
      if s.steps == 2 then return what(obs, reward, over, cut) end
      return reward, over, cut
    end }
  end
  for part, what in pairs {
    ["no such move"] = function () error "no such move" end,
    ["nan"] = function (obs, ...)
      obs[1] = 0 / 0
      return ...
    end,
    ["inf"] = function (_, _, over, cut) return math.huge, over, cut end,
  } do
    finds(at_step(what), "it plays", part)
    finds(at_step(what), "it plays", "Walk-v0: row 1, step 2")
  end
end

function TestEnvCheck.test_episodes_without_an_end_and_seeds_without_effect()
  finds(walk { max_steps = 0, step = function (s, _, obs)
    obs[1], obs[2] = s.at, 0
    return 0, false, false
  end }, "episodes end", "none of 9 rows has ended within 500 steps", true)
  finds(walk { reset = function (s, obs)
    s.at, s.steps = 0, 0
    obs[1], obs[2] = 0, 0
  end }, "other seeds give other episodes", "nothing depends on the seed", true)
end

function TestEnvCheck.test_threads_that_change_something()
  local base = walk()
  local other = walk { step = function (s, action, obs)
    local reward, over, cut = base.step(s, action, obs)
    return reward + 0.5, over, cut
  end }
  finds(function (o) return peri.env.make(o.threads == 0 and other or walk(), o) end, "threads change nothing",
    "reward is")
end

function TestEnvCheck.test_limits_and_resets_that_are_not_kept()
  local function without(name, value)
    return function (o)
      local given = {}
      for k, v in pairs(o) do given[k] = v end
      if given[name] then given[name] = value end
      return peri.env.make(walk(), given)
    end
  end
  finds(without("max_steps", 7), "the time limit truncates", "neither ended nor truncated at step 3 with max_steps = 3")
  finds(without("autoreset", "same_step"), "final observations are kept, the next episode begins",
    "an episode ended before and this step did not begin the next")
end

function TestEnvCheck.test_masks_that_allow_nothing()
  local base = walk()
  local function shut(s, mask) for k = 1, 2 do mask[k] = s.at < 2 end end
  finds(walk { mask = true, step = function (s, action, obs, _, mask)
    shut(s, mask)
    return base.step(s, action, obs)
  end, reset = function (s, obs, rng, mask)
    base.reset(s, obs, rng)
    s.at = 2
    shut(s, mask)
  end }, "it plays", "mask")
  local made = peri.env.make
  finds(function (o) -- one that plays whatever its mask says
    local env = made(walk { mask = true, step = function (s, action, obs, _, mask)
      local reward, over, cut = base.step(s, action, obs)
      shut(s, mask)
      return reward, over, cut
    end }, o)
    env.sample = function (self, rng) return self.action_space:sample(rng) and peri.ones({ self.rows }, "i64") end
    return env
  end, "at least one action is legal", "the mask allows none of 2 actions")
end

function TestEnvCheck.test_actions_that_are_not_refused()
  finds(function (o)
    local env = peri.env.make(walk(), o)
    local step = env.step
    env.step = function (self, actions) return step(self, actions:clamp(0, 1)) end
    return env
  end, "an action out of its space is refused", "step took actions of 2, which are not in Discrete(2)")
end

function TestEnvCheck.test_sizes_that_networks_do_not_like()
  finds(walk { obs = peri.env.box { -1e9, 1e9, shape = { 2 } }, reset = function (s, obs, rng)
    s.at, s.steps = rng:integer(3) - 1, 0
    obs[1], obs[2] = s.at, 1e6
  end }, "actions and observations are of a size that networks like", "an observation is 1e+06", true)
end

-- ---- the commands ----

local dir
scratch.each(TestEnvCheck, function (path) dir = path end)

-- What the program says and its status.
local function program(...)
  local words = {}
  for i, word in ipairs { ... } do words[i] = "'" .. word .. "'" end
  local status, out = child.shell(child.program .. " " .. table.concat(words, " ") .. " </dev/null")
  return out, status
end

local function file(text)
  assert(peri.files.write(dir .. "/own.lua", text))
  return dir .. "/own.lua"
end

local right = [[
local peri = require "perilune"
return { id = "Right-v0", max_steps = 5, obs = peri.env.discrete(3), action = peri.env.discrete(2),
  reset = function (s, _, rng) s.at = rng:integer(3) return s.at end,
  step = function (s, a) s.at = (s.at + a) %% 3 return %s, false, false, s.at end }
]]

function TestEnvCheck.test_the_command_checks_files()
  local out, status = program("check-env", file(right:format "0"))
  lu.assertEquals(status, 0)
  lu.assertStrContains(out, "Right-v0\nok     it plays\nok     observations are in their space\n")
  out, status = program("check-env", file(right:format "0 / 0"))
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "WRONG  it plays: ")
  lu.assertStrContains(out, "Right-v0: row 1, step 1")
  out, status = program("check-env", file "return 7")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "expected a file that returns an environment's table or id, or registers one")
  out, status = program("check-env", "CartPol-v1")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "CartPole-v1")
end

function TestEnvCheck.test_the_command_plays_into_files()
  local gif, svg, png = dir .. "/a.gif", dir .. "/a.svg", dir .. "/a.png"
  local out, status = program("play", "CartPole-v1", "--random", "--episodes", "2", "--seed", "3", "--gif", gif, "--svg", svg,
    "--png", png)
  lu.assertEquals(status, 0, out)
  lu.assertStrMatches(out, "episode 1: return (%d+), length %1\nepisode 2: return (%d+), length %2\nmean return of 2 episodes: .*")
  lu.assertEquals(assert(peri.files.read(gif)):sub(1, 6), "GIF89a")
  lu.assertStrContains(assert(peri.files.read(svg)), "</svg>")
  lu.assertEquals(assert(peri.files.read(png)):sub(2, 4), "PNG")
  local again = program("play", "CartPole-v1", "--random", "--episodes", "2", "--seed", "3")
  lu.assertEquals(again, out)
  local own = right:format "0":gsub("reset =", "render = function () error 'no paint' end, reset =")
  out, status = program("play", file(own), "--random", "--png", png)
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "no paint")
  out, status = program("play", file(right:format "0"), "--random", "--png", png)
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "Right-v0 has no picture for a file")
  out, status = program("play", "CartPole-v1")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "keys need a terminal")
  out, status = program("play", "TicTacToe-v0", "--random", "--seed", "1", "--png", png)
  lu.assertEquals(status, 0, out)
  lu.assertStrMatches(out, "episode 1: return %-?[01], length [5-9]\n")
  out, status = program("play", "TicTacToe-v0", "--random", "--seat", "2")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "keys need a terminal")
  out, status = program("play", "TicTacToe-v0", "--random", "--seat", "3")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "--seat 3: TicTacToe-v0 has 2 agents")
  out, status = program("play", "GridWorld-v0", "--random", "--option", "colour=1")
  lu.assertEquals(status, 1)
  lu.assertStrContains(out, "unknown option")
end
