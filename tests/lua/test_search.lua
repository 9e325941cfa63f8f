-- Tree search with true models: against exact values, and against a plain reading of the published pseudocode.
local lu = require "luaunit"
local peri = require "perilune"
local rl = peri.rl

TestSearch = {}

-- A random deterministic world of S states and A actions: rewards (S, A), next states, which of them end.
local function world(S, A, ends)
  local w = { S = S, A = A, reward = {}, next = {}, over = {}, exact = {} }
  for s = 0, S - 1 do
    w.reward[s], w.next[s], w.over[s] = {}, {}, {}
    for a = 1, A do
      w.reward[s][a], w.next[s][a] = peri.randn({}):item(), peri.randint(0, S, {}):item()
      w.over[s][a] = ends and peri.rand({}):item() < 0.15
    end
  end
  return w
end

-- Optimal values by sweeps.
local function solve(w, gamma)
  local v = {}
  for s = 0, w.S - 1 do v[s] = 0 end
  local q = {}
  for _ = 1, 2000 do
    local new = {}
    for s = 0, w.S - 1 do
      q[s] = q[s] or {}
      for a = 1, w.A do q[s][a] = w.reward[s][a] + (w.over[s][a] and 0 or gamma * v[w.next[s][a]]) end
      new[s] = math.max(table.unpack(q[s]))
    end
    v = new
  end
  return v, q
end

-- The world as the model of a search: states (rows, 1) f32; value(s) and prior(s) of a node.
local function model_of(w, value, logits)
  return function (state, action)
    local s, a = state:flatten():tolist(), action:tolist()
    local led, reward, values, priors, over = {}, {}, {}, {}, {}
    for row = 1, #s do
      local at, what = math.tointeger(s[row]), a[row] + 1
      local to = w.next[at][what]
      led[row], reward[row], over[row] = { to }, w.reward[at][what], w.over[at][what]
      values[row], priors[row] = value(to), logits(to)
    end
    return peri.tensor(led, "f32"), peri.tensor(reward, "f64"), peri.tensor(priors, "f64"), peri.tensor(values, "f64"),
      peri.tensor(over, "bool")
  end
end

local function root_of(w, states, logits)
  local s, p = {}, {}
  for i, at in ipairs(states) do s[i], p[i] = { at }, logits(at) end
  return { state = peri.tensor(s, "f32"), logits = peri.tensor(p, "f64") }, w
end

local function even(w) return function () local t = {}; for a = 1, w.A do t[a] = 0 end; return t end end

-- With exact values at its leaves, the first look at every action is exact.
function TestSearch.test_with_exact_values_below_it_the_search_has_those_of_every_action()
  for seed = 1, 5 do
    peri.seed(seed)
    local w, gamma = world(12, 4, seed % 2 == 0), 0.9
    local v, q = solve(w, gamma)
    local function exact(s) return v[s] end
    local states = { 0, 3, 7, 11 }
    local found = rl.search(root_of(w, states, even(w)), model_of(w, exact, even(w)),
      { simulations = 4, gamma = gamma, c1 = 1e6 }) -- priors alone: each action once
    lu.assertEquals(found.visits:tolist(), { { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 }, { 1, 1, 1, 1 } })
    for i, s in ipairs(states) do
      for a = 1, 4 do lu.assertAlmostEquals(found.q:select(1, i):at(a), q[s][a], 1e-5) end
    end
  end
end

-- Nothing known but the model: with many simulations it finds the best action and comes near to what it is worth.
function TestSearch.test_with_a_true_model_alone_it_comes_to_the_optimal_action_and_its_value()
  for seed = 1, 2 do
    peri.seed(10 + seed)
    local w, gamma = world(6, 3, true), 0.6
    local v, q = solve(w, gamma)
    local states = {}
    for s = 0, 5 do states[s + 1] = s end
    local found = rl.search(root_of(w, states, even(w)), model_of(w, function () return 0 end, even(w)),
      { simulations = 300, gamma = gamma })
    local best = found.visits:argmax(-1):tolist()
    for i, s in ipairs(states) do
      lu.assertTrue(v[s] - q[s][best[i] + 1] < 0.1, ("seed %d, state %d"):format(seed, s))
      lu.assertAlmostEquals(found.q:select(1, i):at(best[i] + 1), v[s], 0.8) -- a mean over all that was tried
    end
  end
end

-- The environment's own model, its own optimum: a walk around a wall, without slips.
function TestSearch.test_on_a_grid_it_walks_the_shortest_way()
  local env = peri.env.make("GridWorld-v0", { map = "S#G/...", slip = 0, seed = 1 })
  local grid = env:model()
  local w = { S = grid.states, A = 4, reward = {}, next = {}, over = {} }
  for s = 0, grid.states - 1 do
    w.reward[s], w.next[s], w.over[s] = {}, {}, {}
    for a = 0, 3 do
      local outcome = grid.transitions[s][a][1]
      w.reward[s][a + 1], w.next[s][a + 1], w.over[s][a + 1] = outcome.reward, outcome.next, outcome.terminated
    end
  end
  local s, value, over = env:reset(), 0, false
  for _ = 1, 4 do
    local found = rl.search(root_of(w, { s }, even(w)), model_of(w, function () return 0 end, even(w)),
      { simulations = 300, gamma = 0.9 })
    local reward
    s, reward, over = env:step(found.visits:argmax(-1):item())
    value = value + reward
  end
  lu.assertTrue(over)
  lu.assertAlmostEquals(value, (peri.env.optimal(env)), 1e-6)
end

-- A plain recursion over tables that follows appendix B line by line; the counts are the same.
local function plain(w, root, simulations, o)
  local low, high = math.huge, -math.huge
  local function node(s) return { s = s, n = {}, w = {}, p = {}, kids = {}, over = {} } end
  local function expand(x, logits)
    local sum = 0
    for a = 1, w.A do x.p[a] = math.exp(logits[a]); sum = sum + x.p[a] end
    for a = 1, w.A do x.p[a], x.n[a], x.w[a] = x.p[a] / sum, 0, 0 end
    return x
  end
  local tree = expand(node(root), o.logits(root))
  local function simulate(x)
    local total = 1
    for a = 1, w.A do total = total + x.n[a] end
    local best, choice = -math.huge, nil
    for a = 1, w.A do
      local u = x.p[a] * math.sqrt(total) / (1 + x.n[a]) * (o.c1 + math.log((total + o.c2 + 1) / o.c2))
      local q = x.n[a] > 0 and high > low and (x.w[a] / x.n[a] - low) / (high - low) or 0
      if x.p[a] > 0 and q + u > best then best, choice = q + u, a end
    end
    local value = 0
    if not x.kids[choice] then
      local to = w.next[x.s][choice]
      x.kids[choice], x.over[choice] = expand(node(to), o.logits(to)), w.over[x.s][choice]
      if not x.over[choice] then value = o.value(to) end
    elseif not x.over[choice] then value = simulate(x.kids[choice]) end
    value = w.reward[x.s][choice] + (o.players == 2 and -o.gamma or o.gamma) * value
    x.n[choice], x.w[choice] = x.n[choice] + 1, x.w[choice] + value
    local q = x.w[choice] / x.n[choice]
    low, high = math.min(low, q), math.max(high, q)
    return value
  end
  for _ = 1, simulations do simulate(tree) end
  return tree
end

function TestSearch.test_counts_and_values_are_those_of_a_plain_recursion()
  for seed = 1, 6 do
    peri.seed(20 + seed)
    local A = 2 + seed % 3
    local w = world(9, A, seed > 2)
    local logits, values = {}, peri.randn({ 9 }, "f64"):tolist()
    for s = 0, 8 do logits[s] = peri.randn({ A }, "f64"):tolist() end
    if seed == 4 then for s = 0, 8 do logits[s][1] = -math.huge end end -- an action that is never legal
    local o = { gamma = 0.95, c1 = 1.25, c2 = seed == 5 and 10 or 19652, players = 1 + seed % 2,
      logits = function (s) return logits[s] end, value = function (s) return values[s + 1] end }
    local states = { 0, 4, 8 }
    local found = rl.search(root_of(w, states, o.logits), model_of(w, o.value, o.logits),
      { simulations = 60, gamma = o.gamma, c1 = o.c1, c2 = o.c2, players = o.players })
    for i, s in ipairs(states) do
      local tree = plain(w, s, 60, o)
      lu.assertEquals(found.visits:select(1, i):tolist(), peri.tensor(tree.n, "f32"):tolist())
      local sum = 0
      for a = 1, A do
        sum = sum + tree.w[a]
        if tree.n[a] > 0 then lu.assertAlmostEquals(found.q:select(1, i):at(a), tree.w[a] / tree.n[a], 1e-5) end
      end
      lu.assertAlmostEquals(found.value:at(i), sum / 60, 1e-5)
    end
    lu.assertEquals(found.visits:sum(-1):tolist(), { 60, 60, 60 })
  end
end

-- A game: take one or two from a heap, who takes the last wins. Heaps that are multiples of three are lost.
function TestSearch.test_two_players_find_the_move_that_wins()
  local function step(state, action)
    local left = state:squeeze(-1) - action:to "f32" - 1
    local over = left:le(0)
    local logits = peri.stack({ left * 0, left:lt(2):to("f32") * -1e30 }, -1)
    return left:unsqueeze(-1), over:to "f32", logits, left * 0, over
  end
  local heaps = { 2, 4, 5, 7, 8 }
  local state = peri.tensor(heaps, "f32"):unsqueeze(-1)
  local found = rl.search({ state = state, logits = peri.zeros { #heaps, 2 } }, step,
    { simulations = 600, gamma = 1, players = 2 })
  local best = found.visits:argmax(-1):tolist()
  for i, n in ipairs(heaps) do lu.assertEquals((n - best[i] - 1) % 3, 0, n) end
end

function TestSearch.test_scaled_rewards_and_values_change_nothing_that_is_chosen()
  peri.seed(31)
  local w = world(9, 3, true)
  local values = peri.randn({ 9 }, "f64"):tolist()
  local function run(scale)
    local other = { S = w.S, A = w.A, next = w.next, over = w.over, reward = {} }
    for s = 0, 8 do
      other.reward[s] = {}
      for a = 1, 3 do other.reward[s][a] = w.reward[s][a] * scale end
    end
    return rl.search(root_of(other, { 0, 5 }, even(w)), model_of(other, function (s) return values[s + 1] * scale end,
      even(w)), { simulations = 80 }).visits:tolist()
  end
  lu.assertEquals(run(1024), run(1))
  lu.assertEquals(run(1 / 64), run(1))
end

function TestSearch.test_noise_lets_the_root_try_what_its_priors_leave_out_and_no_illegal_action()
  peri.seed(32)
  local function step(state, action)
    local n = state:size(1)
    return state, action:to "f32" * 0, peri.zeros { n, 3 }, peri.zeros { n }
  end
  local logits = peri.tensor { { 30, 0, -math.huge } }
  local root = { state = peri.zeros { 1, 1 }, logits = logits }
  local plainly, noisy = rl.search(root, step, { simulations = 30 }), rl.search(root, step, { simulations = 30, noise = 0.5 })
  lu.assertEquals(plainly.visits:tolist(), { { 30, 0, 0 } })
  lu.assertTrue(noisy.visits:select(2, 2):item() > 0)
  lu.assertEquals(noisy.visits:select(2, 3):item(), 0)
end

function TestSearch.test_what_is_wrong_is_named()
  local function step(s) return s end
  lu.assertErrorMsgContains("root has no tensor logits", rl.search, { state = peri.zeros { 1, 1 } }, step)
  lu.assertErrorMsgContains('unknown entry of root "mask"; there are: state, logits; logits of -inf are actions that are not legal',
    rl.search, { state = peri.zeros { 1, 1 }, logits = peri.zeros { 1, 2 }, mask = peri.ones { 1, 2 } }, step)
  local root = { state = peri.zeros { 2, 1 }, logits = peri.zeros { 2, 3 } }
  lu.assertErrorMsgContains("the model's ", rl.search, root, step)
  lu.assertErrorMsgContains("row 2 of the root has no legal action", rl.search,
    { state = peri.zeros { 2, 1 }, logits = peri.tensor { { 0, 0 }, { -math.huge, -math.huge } } }, step)
  lu.assertErrorMsgContains("expected a tensor of 2 rows", rl.search, { state = peri.zeros { 2, 1 }, logits = peri.zeros { 3, 3 } },
    step)
end

os.exit(lu.LuaUnit.run())
