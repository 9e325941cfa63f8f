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

-- ---- whose turn it is ----

-- Random games by the loop over agents, against a plain account of turns and rewards.
function TestAgents.test_agents_are_asked_in_turn_and_told_what_came_of_it()
  for seed = 1, 30 do
    local game, rng = env.turns(env.make("TicTacToe-v0", { seed = seed })), env.rng(seed)
    local cells, turn, got, told, moves = {}, 1, { 0, 0 }, {}, 0
    for i = 1, 9 do cells[i] = 0 end
    local over, pending = false, { 0, 0 }
    for agent, now in game:each() do
      if over then
        told[#told + 1] = agent
        lu.assertEquals({ now.ended, now.terminated, now.reward }, { true, true, pending[agent] })
      else
        lu.assertEquals({ agent, now.ended, now.reward }, { turn, false, 0 })
        local want = {}
        for i = 1, 9 do want[i], want[9 + i] = cells[i] == agent and 1 or 0, cells[i] == 3 - agent and 1 or 0 end
        lu.assertEquals(now.obs:tolist(), want)
        local action = game:sample(rng)
        lu.assertTrue(now.mask:tolist()[action + 1])
        game:act(action)
        cells[action + 1], moves = agent, moves + 1
        if games.line_of(cells, 3, 3, 3, agent) then over, pending[agent], pending[3 - agent] = true, 1, -1
        elseif moves == 9 then over = true end
        turn = 3 - turn
      end
      got[agent] = got[agent] + now.reward
    end
    lu.assertEquals({ told, got }, { { 1, 2 }, pending })
  end
end

-- The same loop where all move at once and agents die on the way: rewards are those of the environment.
function TestAgents.test_agents_that_move_at_once_are_asked_one_after_the_other()
  for seed = 1, 8 do
    local opts = { seed = seed, agents = 3, size = 4, pits = 3, max_steps = 20 }
    local game, plain = env.turns(env.make("Forage-v0", opts)), env.make("Forage-v0", opts)
    local rng, actions, asked, last, sums, want = env.rng(seed), {}, {}, {}, { 0, 0, 0 }, { 0, 0, 0 }
    plain:reset()
    local live = plain.live:tolist()
    for agent, now in game:each() do
      sums[agent] = sums[agent] + now.reward
      if now.ended then
        lu.assertNil(last[agent])
        last[agent] = true
      else
        lu.assertEquals(now.obs:tolist(), plain.obs:tolist()[agent])
        actions[agent], asked[#asked + 1] = game:sample(rng), agent
        game:act(actions[agent])
        local all = 0
        for i = 1, 3 do all = all + (live[i] and 1 or 0) end
        if #asked == all then
          for k = 2, #asked do lu.assertTrue(asked[k] > asked[k - 1]) end
          local _, reward = plain:step { actions[1] or 0, actions[2] or 0, actions[3] or 0 }
          for i, r in ipairs(reward:tolist()) do want[i] = want[i] + r end
          asked, live = {}, plain.live:tolist()
        end
      end
    end
    lu.assertEquals({ last, sums }, { { true, true, true }, want })
  end
end

function TestAgents.test_an_environment_of_one_agent_has_the_same_loop()
  local game, steps, total = env.turns(env.make("FrozenLake-v1", { seed = 3, is_slippery = false })), 0, 0
  local way = { 1, 1, 2, 1, 2, 2 }
  for agent, now in game:each() do
    lu.assertEquals(agent, 1)
    total = total + now.reward
    if not now.ended then
      steps = steps + 1
      game:act(way[steps])
    end
  end
  lu.assertEquals({ steps, total }, { 6, 1 })
end

function TestAgents.test_misuse_of_turns_is_named()
  lu.assertStrContains(message(env.turns, env.make("TicTacToe-v0", { n = 2 })), "has 2 environments and autoreset same_step")
  local game = env.turns(env.make("TicTacToe-v0", { seed = 1 }))
  lu.assertStrContains(message(game.act, game, 1), "nobody is asked")
  lu.assertStrContains(message(function () for _ in game:each() do end end), "agent 1 has not acted") -- luacheck: ignore 542
  for _ in game:each() do
    lu.assertStrContains(message(game.act, game, 9), "9 of agent 1 is not in Discrete(9)")
    game:act(0)
    lu.assertStrContains(message(game.act, game, 0), "nobody is asked")
    break
  end
end

-- ---- advantages of those who wait ----

-- By definition: of each action of a row, forwards.
local function plain_gae(f, row, gamma, lam)
  local acts, out = {}, {}
  for t = 1, f.steps do if f.live[t][row] then acts[#acts + 1] = t end end
  for k = #acts, 1, -1 do
    local t, sum, after, over = acts[k], 0, nil, false
    local till = acts[k + 1] or f.steps + 1
    for s = t, till - 1 do
      sum = sum + f.reward[s][row]
      if f.terminated[s][row] or f.truncated[s][row] then
        over, after = true, f.terminated[s][row] and 0 or f.final[s][row]
        break
      end
    end
    local known = over or acts[k + 1] ~= nil or f.live_after[row]
    if not over then after = acts[k + 1] and f.obs[till][row] or f.last[row] end
    if known then
      local next_one = not over and out[acts[k + 1]] or 0
      out[t] = sum + gamma * after - f.obs[t][row] + gamma * lam * next_one
    end
  end
  return out
end

-- The value of an observation is the observation. Flags, turns and rewards at random.
function TestAgents.test_an_action_has_what_others_moves_bring()
  local rng = peri.rng(7)
  local kinds = { incomplete = 0, cut = 0, over = 0 }
  for case = 1, 40 do
    local steps, rows, gamma, lam = rng:int(1, 12), rng:int(1, 6), rng:uniform(), rng:uniform()
    local rollout = peri.rollout { steps = steps, rows = rows, fields = { obs = { "f32", 1 }, final_obs = { "f32", 1 },
      reward = "f32", terminated = "bool", truncated = "bool", live = "bool" } }
    local f = { steps = steps, live_after = {}, last = {} }
    local function flags(p)
      local list = {}
      for i = 1, rows do list[i] = rng:uniform() < p end
      return list
    end
    local function numbers()
      local list = {}
      for i = 1, rows do list[i] = rng:int(-8, 8) / 4 end
      return list
    end
    for _, name in ipairs { "obs", "final", "reward", "terminated", "truncated", "live" } do f[name] = {} end
    for t = 1, steps do
      f.obs[t], f.final[t], f.reward[t] = numbers(), numbers(), numbers()
      f.terminated[t], f.truncated[t], f.live[t] = flags(0.15), flags(case % 2 * 0.1), flags(case % 3 * 0.3 + 0.2)
      rollout:set(t, { obs = peri.tensor(f.obs[t], "f32"):unsqueeze(2), final_obs = peri.tensor(f.final[t], "f32"):unsqueeze(2),
        reward = peri.tensor(f.reward[t], "f32"), terminated = peri.tensor(f.terminated[t], "bool"),
        truncated = peri.tensor(f.truncated[t], "bool"), live = peri.tensor(f.live[t], "bool") })
    end
    f.live_after, f.last = flags(0.5), numbers()
    local found = peri.rl.turn_gae(rollout, { value = function (x) return x:squeeze(-1) end, gamma = gamma, lam = lam,
      last = peri.tensor(f.last, "f32"):unsqueeze(2), live = peri.tensor(f.live_after, "bool") })
    local advantage, counts, returns = found.advantage:tolist(), found.counts:tolist(), found.returns:tolist()
    for row = 1, rows do
      local want = plain_gae(f, row, gamma, lam)
      for t = 1, steps do
        lu.assertEquals(counts[t][row], want[t] ~= nil)
        lu.assertAlmostEquals(advantage[t][row], want[t] or 0, 1e-5)
        lu.assertAlmostEquals(returns[t][row], want[t] and want[t] + f.obs[t][row] or 0, 1e-5)
        kinds.incomplete = kinds.incomplete + (f.live[t][row] and not want[t] and 1 or 0)
        kinds.cut = kinds.cut + (f.truncated[t][row] and not f.terminated[t][row] and 1 or 0)
        kinds.over = kinds.over + (f.terminated[t][row] and 1 or 0)
      end
    end
  end
  lu.assertTrue(kinds.incomplete > 20 and kinds.cut > 20 and kinds.over > 20)
end

function TestAgents.test_where_all_act_at_every_step_it_is_gae()
  peri.seed(1)
  local rollout = peri.rollout { steps = 20, rows = 6, fields = { obs = { "f32", 3 }, final_obs = { "f32", 3 },
    reward = "f32", terminated = "bool", truncated = "bool", live = "bool" } }
  local value = function (x) return x:sum(-1) end
  rollout:put { obs = peri.randn { 20, 6, 3 }, final_obs = peri.randn { 20, 6, 3 }, reward = peri.randn { 20, 6 },
    terminated = peri.rand({ 20, 6 }):lt(0.1), truncated = peri.rand({ 20, 6 }):lt(0.1), live = peri.ones({ 20, 6 }, "bool") }
  for _, truncation in ipairs { "bootstrap", "ignore" } do
    local how = { value = value, last = peri.randn { 6, 3 }, truncation = truncation }
    how.reward = truncation == "ignore" and peri.randn { 20, 6 } or nil
    local want = peri.rl.gae(rollout, how)
    how.live = peri.ones({ 6 }, "bool")
    local found = peri.rl.turn_gae(rollout, how)
    lu.assertTrue(found.counts:all():item())
    for _, name in ipairs { "advantage", "returns", "value" } do
      lu.assertTrue((found[name] - want[name]):abs():max():item() < 1e-5, name)
    end
    how.reward = peri.randn { 6 }
    lu.assertStrContains(message(peri.rl.turn_gae, rollout, how), "reward is (6), expected (20, 6)")
  end
end

-- ---- one against others ----

function TestAgents.test_one_agent_against_others_is_the_game_with_their_actions()
  for _, seat in ipairs { false, 1, 2 } do
    local plain = env.make("ConnectFour-v0", { n = 6, seed = 1 })
    local function lowest(mask) return mask:to("i64"):argmax(-1) end -- the first legal column
    local games_of_one = env.versus(env.make("ConnectFour-v0", { n = 6, seed = 1 }), function (obs, mask)
      lu.assertEquals({ obs.shape[1], mask.shape[1] }, { 6, 6 })
      return lowest(mask)
    end, seat and { seat = seat } or nil)
    lu.assertEquals({ games_of_one.rows, games_of_one.agents, games_of_one.n }, { 6, 1, 6 })
    local mine = {}
    for i = 1, 6 do mine[i] = 2 * (i - 1) + (seat or (i - 1) % 2 + 1) - 1 end
    local index, rng, ended = peri.tensor(mine, "i64"), env.rng(2), 0
    plain:reset()
    games_of_one:reset()
    for _ = 1, 120 do
      for _, name in ipairs { "obs", "mask", "live", "reward", "terminated", "truncated", "final_obs" } do
        lu.assertEquals(games_of_one[name]:tolist(), plain[name]:index_select(index, 1):tolist(), name)
      end
      local action = games_of_one:sample(rng)
      local all, own = lowest(plain.mask):tolist(), action:tolist()
      for i = 1, 6 do all[mine[i] + 1] = own[i] end
      games_of_one:step(action)
      plain:step(all)
      local episodes, want = games_of_one:episodes(), plain:episodes()
      local k = 0
      for j, row in ipairs(want.rows) do
        for i = 1, 6 do
          if row == mine[i] + 1 then
            k = k + 1
            lu.assertEquals({ episodes.rows[k], episodes.returns[k] }, { i, want.returns[j] })
          end
        end
      end
      lu.assertEquals(#episodes.rows, k)
      ended = ended + k
    end
    lu.assertTrue(ended > 20)
  end
  lu.assertStrContains(message(env.versus, env.make "CartPole-v1", print), "CartPole-v1 has one agent")
  lu.assertStrContains(message(env.versus, env.make("TicTacToe-v0", { n = 2 }), print, { seat = 3 }), "has 2 agents")
  for _, wrong in ipairs { peri.zeros({ 3 }, "i64"), peri.zeros({ 1 }, "i64"), peri.zeros({ 2, 1 }, "i64"), { 0, 0 }, 0 } do
    local played = env.versus(env.make("TicTacToe-v0", { n = 2, seed = 1 }), function () return wrong end)
    played:reset()
    lu.assertStrContains(message(played.step, played, { 0, 0 }), "expected a tensor of 2 actions")
  end
end

function TestAgents.test_joint_observations_have_those_of_all_behind_an_agents_own()
  local bare = env.make("Forage-v0", { n = 3, seed = 2, max_steps = 3 })
  local joint = env.joint_obs(env.make("Forage-v0", { n = 3, seed = 2, max_steps = 3 }))
  local d = bare.obs_space.shape[1]
  lu.assertEquals(joint.obs_space.shape, { 5 * d })
  local own, all = bare:reset(), joint:reset()
  for _ = 1, 5 do
    for _, pair in ipairs { { own, all }, { bare.obs, joint.obs }, { bare.final_obs, joint.final_obs } } do
      local x, y = pair[1], pair[2]
      lu.assertEquals(y:narrow(2, 1, d):tolist(), x:tolist())
      for row = 1, 12 do
        lu.assertEquals(y:select(1, row):narrow(1, d + 1, 4 * d):tolist(),
          list_of(x:narrow(1, (row - 1) // 4 * 4 + 1, 4)))
      end
    end
    local action = bare:sample(env.rng(1))
    own, all = bare:step(action), joint:step(action)
  end
  lu.assertStrContains(message(env.joint_obs, env.make("FrozenLake-v1", { n = 1 })), "expected vectors")
end

-- ---- learning ----

-- What rows do that wait is no step: whatever is written there, the update is the same.
function TestAgents.test_steps_of_those_who_wait_are_not_learned_from()
  local function updated(spoil)
    peri.seed(2)
    local field = env.make("TicTacToe-v0", { n = 8, seed = 1 })
    local net = peri.rl.ActorCritic { obs = field.obs_space, action = field.action_space, hidden = { 8 } }
    local agent
    agent = peri.algo.agent.new { env = field, net = net, optimizer = peri.optim.SGD(net, { lr = 0.1 }), steps = 8,
      minibatches = 1, epochs = 1, ent_coef = 0.01, advantage = function (rollout, advantage, returns)
        local off = rollout:get("counts"):logical_not()
        lu.assertFalse(rollout:get("counts"):logical_and(rollout:get("live"):logical_not()):any():item())
        lu.assertTrue(off:any():item())
        if spoil then return advantage:masked_fill(off, 50), returns:masked_fill(off, -70) end
        return advantage, returns
      end }
    local metrics = agent:step()
    local sum = {}
    for _, p in ipairs(net:parameters()) do sum[#sum + 1] = p:detach():flatten() end
    return peri.cat(sum, 1), metrics
  end
  local one, metrics = updated(false)
  local other, again = updated(true)
  lu.assertFalse(one:ne(other):any():item())
  lu.assertEquals({ metrics.loss, metrics.entropy, metrics.approx_kl }, { again.loss, again.entropy, again.approx_kl })
end

os.exit(lu.LuaUnit.run())
