-- Several agents in one environment: built-in games against plain ones, a grid that several gather in, whose turn it is.
local lu = require "luaunit"
local peri = require "perilune"
local games = require "board_games"

local env = peri.env

TestAgents = {}

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  lu.assertFalse(ok)
  return text
end

local function list_of(t) return t:flatten():tolist() end

-- ---- games ----

local boards = {
  { "TicTacToe-v0", {}, { 3, 3, 3, false } },
  { "ConnectFour-v0", {}, { 6, 7, 4, true } },
  { "ConnectFour-v0", { rows = 4, columns = 5, line = 3 }, { 4, 5, 3, true } },
  { "ConnectFour-v0", { rows = 2, columns = 9, line = 4 }, { 2, 9, 4, true } },
  { "ConnectFour-v0", { rows = 9, columns = 2, line = 5 }, { 9, 2, 5, true } },
}

-- Also moves that are not legal.
function TestAgents.test_random_games_are_those_of_plain_rules()
  for _, case in ipairs(boards) do
    for _, mode in ipairs { "same_step", "next_step" } do
      local opts = { n = 9, seed = 2, autoreset = mode }
      local plain = env.make(games.spec(table.unpack(case[3])), opts)
      for k, v in pairs(case[2]) do opts[k] = v end
      local built = env.make(case[1], opts)
      local rng = env.rng(5)
      built:reset()
      plain:reset()
      local ended, lost = 0, 0
      for step = 1, 400 do
        for _, name in ipairs { "obs", "mask", "live", "reward", "terminated", "final_obs" } do
          lu.assertEquals(list_of(built[name]), list_of(plain[name]), ("%s, step %d: %s"):format(case[1], step, name))
        end
        local action = rng:integer(20) > 0 and built:sample(rng) or peri.randint(0, built.action_space.n, { 18 })
        built:step(action)
        plain:step(action)
        ended, lost = ended + #built:episodes().returns, lost + built.reward:abs():sum():item()
      end
      lu.assertTrue(ended > 100 and lost > 20, ("%d, %g"):format(ended, lost))
    end
  end
end

function TestAgents.test_a_state_of_a_game_goes_on_in_another_row()
  local rows = env.make("ConnectFour-v0", { n = 2, seed = 1 })
  rows:reset()
  for _ = 1, 5 do rows:step(rows:sample()) end
  rows:load(1, rows:save(2))
  lu.assertEquals(rows.obs:tolist()[1], rows.obs:tolist()[3])
  lu.assertEquals(rows:text(1), rows:text(2))
end

function TestAgents.test_boards_that_make_no_sense_are_named()
  for _, case in ipairs {
    { { rows = 9 }, "9 rows of 7 columns: (rows + 1) * columns is 70, at most 64" },
    { { line = 8 }, "option 'line' is 8, longer than 6 rows and 7 columns" },
    { { line = 2.5 }, "option 'line' is 2.5, expected an integer" },
  } do lu.assertStrContains(message(env.make, "ConnectFour-v0", case[1]), case[2]) end
end

-- ---- gathering ----

-- Positions out of what the first agent sees: its own, the others', apples, pits; nil: out.
local function seen(obs, o)
  local at = { math.floor((obs[1] + 1) / 2 * (o.size - 1) + 0.5), math.floor((obs[2] + 1) / 2 * (o.size - 1) + 0.5) }
  local list = {}
  for k = 0, o.agents + o.apples + o.pits - 2 do
    local dx, dy, there = obs[3 * k + 3], obs[3 * k + 4], obs[3 * k + 5]
    list[k + 1] = there == 1 and (at[2] + math.floor(dy * (o.size - 1) + 0.5)) * o.size
      + at[1] + math.floor(dx * (o.size - 1) + 0.5) or false
  end
  table.insert(list, 1, at[2] * o.size + at[1])
  return table.move(list, 1, o.agents, 1, {}), table.move(list, o.agents + 1, o.agents + o.apples, 1, {})
end

local function moved(cell, action, size)
  local x, y = cell % size, cell // size
  if action == 1 then y = y - 1 elseif action == 2 then x = x + 1 elseif action == 3 then y = y + 1
  elseif action == 4 then x = x - 1 end
  if x < 0 or x >= size or y < 0 or y >= size then return cell end
  return y * size + x
end

-- Apples that so many of the agents' cells gather, without agent `but`.
local function gathered(agents, apples, weight, but)
  local sum = 0
  for _, apple in ipairs(apples) do
    local n = 0
    for i, cell in ipairs(agents) do n = n + (i ~= but and cell == apple and 1 or 0) end
    sum = sum + (n >= weight and 1 or 0)
  end
  return sum
end

function TestAgents.test_the_difference_is_what_would_be_lacking_without_an_agent()
  for _, o in ipairs { { agents = 3, size = 3, apples = 2, weight = 1, pits = 0 },
    { agents = 5, size = 2, apples = 2, weight = 3, pits = 0 }, { agents = 4, size = 3, apples = 4, weight = 2, pits = 0 } } do
    local field = env.make("Forage-v0", { n = 1, seed = 3, agents = o.agents, size = o.size, apples = o.apples,
      weight = o.weight, max_steps = 0 })
    local obs, rng, total = field:reset():tolist(), env.rng(1), 0
    for _ = 1, 300 do
      local agents, apples = seen(obs[1], o)
      local action = field:sample(rng)
      local reward
      obs, reward = field:step(action)
      obs = obs:tolist()
      for i, a in ipairs(action:tolist()) do agents[i] = moved(agents[i], a, o.size) end
      local all, want, differences = gathered(agents, apples, o.weight), {}, {}
      for i = 1, o.agents do want[i], differences[i] = all, { all - gathered(agents, apples, o.weight, i) } end
      lu.assertEquals(reward:tolist(), want)
      lu.assertEquals(field.metrics:tolist(), differences)
      lu.assertEquals((seen(obs[1], o)), agents)
      total = total + all
    end
    lu.assertTrue(total > 20, total)
  end
end

function TestAgents.test_who_fell_into_a_pit_gets_nothing_more_and_comes_back_with_the_others()
  local field = env.make("Forage-v0", { n = 5, seed = 1, agents = 3, size = 4, pits = 4, max_steps = 0 })
  field:reset()
  local rng, out, again, ends = env.rng(1), {}, 0, 0
  for _ = 1, 400 do
    field:step(field:sample(rng))
    local live, reward, over, valid = list_of(field.live), list_of(field.reward), list_of(field.terminated),
      list_of(field.valid)
    for i = 0, 4 do
      local all = true
      for row = 3 * i + 1, 3 * i + 3 do
        if out[row] then lu.assertEquals({ reward[row], over[row], valid[row] }, { 0, false, false }) end
        out[row] = out[row] or over[row]
        ends, all = ends + (over[row] and 1 or 0), all and out[row]
      end
      for row = 3 * i + 1, 3 * i + 3 do
        if all then out[row], again = nil, again + 1 end
        lu.assertEquals(live[row], not out[row])
      end
    end
  end
  lu.assertTrue(again > 60 and ends == #field:episodes().returns, again)
end

function TestAgents.test_what_is_too_far_is_not_seen()
  local far = env.make("Forage-v0", { n = 4, seed = 5, sight = 64 })
  local near = env.make("Forage-v0", { n = 4, seed = 5, sight = 1 })
  local all, some = far:reset():tolist(), near:reset():tolist()
  local hidden = 0
  for row = 1, #all do
    for k = 3, 3 + 3 * 5, 3 do
      local dx, dy = all[row][k], all[row][k + 1]
      local close = math.abs(dx) < 0.21 and math.abs(dy) < 0.21 -- one of five cells
      lu.assertEquals({ table.unpack(some[row], k, k + 2) }, close and { dx, dy, 1 } or { 0, 0, 0 })
      hidden = hidden + (close and 0 or 1)
    end
  end
  lu.assertTrue(hidden > 30)
end

function TestAgents.test_fields_that_make_no_sense_are_named()
  for _, case in ipairs {
    { { weight = 9 }, "option 'weight' is 9, there are 4 agents" },
    { { size = 2, apples = 3, pits = 1 }, "3 apples and 1 pits leave none of 4 cells" },
    { { agents = 2.5 }, "option 'agents' is 2.5, expected an integer" },
  } do lu.assertStrContains(message(env.make, "Forage-v0", case[1]), case[2]) end
end

os.exit(lu.LuaUnit.run())
