-- search.lua - Monte Carlo tree search over a model, learned or true, of many roots side by side: each simulation adds
-- a node to every tree, and the model is asked for all of them at once. The trees are plain Lua numbers, states are
-- tensors.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  simulations = options.integer(50, "[1, inf)", "nodes that are added to each tree"),
  gamma = options.number(0.997, "[0, 1]", "discount"),
  players = options.choice(1, { 1, 2 }, "2: next to move is the other one, whose value is minus that of the first"),
  c1 = options.number(1.25, "[0, inf)", "weight of priors beside values"),
  c2 = options.number(19652, "(0, inf)", "visits at which that weight begins to grow"),
  noise = options.number(0, "[0, 1]", "share of Dirichlet noise in the root's priors: MuZero's 0.25 while it learns"),
  alpha = options.number(0.3, "(0, inf)", "of that noise"),
}

-- A node is a number from 0 (the root) on; action a of node k is entry k * A + a of the lists.
local function tree_of(A)
  return { A = A, n = {}, w = {}, p = {}, r = {}, child = {}, over = {}, total = {}, path = {}, low = math.huge,
    high = -math.huge }
end

local function add_node(t, node, priors)
  local base = node * t.A
  for a = 1, t.A do t.n[base + a], t.w[base + a], t.p[base + a] = 0, 0, priors[a] end
  t.total[node] = 0
end

-- From the root down the best scores to an action without a node, or one that ended the episode. Schrittwieser et al.
-- 2020, eq. 2 and 5; N of a node counts its own first visit, so that priors decide before there are others.
local function descend(t, c1, c2)
  local A, n, w, p, path, node, depth = t.A, t.n, t.w, t.p, t.path, 0, 0
  local low, width = t.low, t.high - t.low
  while true do
    local visits, base = 1 + t.total[node], node * A
    local c = (c1 + math.log((visits + c2 + 1) / c2)) * math.sqrt(visits)
    local best, at = -1, nil
    for i = base + 1, base + A do
      if p[i] > 0 then
        local score = c * p[i] / (1 + n[i])
        if n[i] > 0 and width > 0 then score = score + (w[i] / n[i] - low) / width end
        if score > best then best, at = score, i end
      end
    end
    depth = depth + 1
    path[depth] = at
    local child = t.child[at]
    if not child or t.over[child] then return node, at - base, depth, child end
    node = child
  end
end

-- What was found below goes up the path (eq. 3 and 4); values are normalised by all that the tree has seen (eq. 5).
local function back_up(t, depth, value, discount)
  local A, n, w, path = t.A, t.n, t.w, t.path
  for d = depth, 1, -1 do
    local i = path[d]
    value = t.r[i] + discount * value
    n[i], w[i] = n[i] + 1, w[i] + value
    local q, node = w[i] / n[i], (i - 1) // A
    t.total[node] = t.total[node] + 1
    if q < t.low then t.low = q end
    if q > t.high then t.high = q end
  end
end

local function want(who, name, x, rows)
  if not peri.is_tensor(x) or x.ndim == 0 or x.shape[1] ~= rows then
    options.raise(("%s: %s is %s, expected a tensor of %d rows"):format(who, name,
      peri.is_tensor(x) and options.shape(x) or type(x), rows), 3)
  end
end

local function priors_of(logits) return logits:softmax(-1):tolist() end

local function root_priors(logits, o)
  local p = logits:softmax(-1)
  if o.noise == 0 then return p:tolist() end
  local legal = p:gt(0)
  local draw = peri.rand_gamma(peri.full(p.shape, o.alpha), true):masked_fill(legal:logical_not(), -math.huge)
  draw = draw:softmax(-1)
  return (p * (1 - o.noise) + draw * o.noise):tolist()
end

local function result_of(trees, A)
  local visits, q, value = {}, {}, {}
  for row, t in ipairs(trees) do
    local of_visits, of_q, sum = {}, {}, 0
    for a = 1, A do
      of_visits[a], of_q[a], sum = t.n[a], t.n[a] > 0 and t.w[a] / t.n[a] or 0, sum + t.w[a]
    end
    visits[row], q[row], value[row] = of_visits, of_q, sum / t.total[0]
  end
  visits = peri.tensor(visits, "f32")
  return { visits = visits, policy = visits / visits:sum(-1, true), q = peri.tensor(q, "f32"),
    value = peri.tensor(value, "f32") }
end

--- Search ahead of several states at once, as MuZero does (Schrittwieser et al. 2020, appendix B): PUCT over values
--- that are normalised to [0, 1] by the least and the largest of each tree, so that rewards may have any scale.
---   local found = rl.search({ state = s, logits = logits }, step, { simulations = 25 })
---   local action = found.visits:argmax(-1)
--- The model is step(state, action) of rows -> state, reward, logits, value, and over where an episode can end: (rows,
--- ...), (rows), (rows, actions), (rows), (rows) bool. Logits of -inf are actions that are not legal. With players = 2
--- reward and value are those of who moved and of who is next.
--- @param root table  state (rows, ...), logits (rows, actions)
--- @param step function
--- @param opts table?
--- @return table  visits, policy (their shares), q (rows, actions; 0 where unvisited), value (rows), f32
function M.search(root, step, opts)
  local who <const> = "rl.search"
  options.argument(who, "root", root, "table")
  options.argument(who, "step", step, "callable")
  local o = options.fill(who, opts, rules)
  for _, name in ipairs { "state", "logits" } do
    if not peri.is_tensor(root[name]) then options.raise(("rl.search: root has no tensor %s"):format(name)) end
  end
  for name in pairs(root) do
    if name ~= "state" and name ~= "logits" then
      options.raise(("rl.search: %s; logits of -inf are actions that are not legal"):format(
        options.unknown("entry of root", name, { "state", "logits" })))
    end
  end
  local rows, A, shape = root.state.shape[1], root.logits.shape[2], root.state.shape
  want(who, "root.logits", root.logits, rows)
  local mode <close> = peri.no_grad() -- luacheck: ignore 211
  local K, trees = o.simulations + 1, {}
  for row, priors in ipairs(root_priors(root.logits, o)) do
    trees[row] = tree_of(A)
    add_node(trees[row], 0, priors)
    local most = math.max(table.unpack(priors))
    if most ~= most or most <= 0 then
      options.raise(("rl.search: row %d of the root has no legal action"):format(row))
    end
  end
  local states = peri.zeros({ rows, K, root.state:numel() // rows }, root.state.dtype) -- of every node
  states:select(2, 1):copy_(root.state:reshape { rows, -1 })
  local pool, discount = states:flatten(1, 2), o.players == 2 and -o.gamma or o.gamma
  local from, chosen, depths, ends = {}, {}, {}, {}
  for k = 1, o.simulations do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    for row, t in ipairs(trees) do
      local node, action, depth, over = descend(t, o.c1, o.c2)
      from[row], chosen[row], depths[row], ends[row] = (row - 1) * K + node, action - 1, depth, over or false
    end
    shape[1] = rows
    local state, reward, logits, value, over = step(pool:index_select(peri.tensor(from, "i64"), 1):reshape(shape),
      peri.tensor(chosen, "i64"))
    for name, x in pairs { state = state or 0, reward = reward or 0, logits = logits or 0, value = value or 0 } do
      want(who, "the model's " .. name, x, rows)
    end
    states:select(2, k + 1):copy_(state:reshape { rows, -1 })
    local rewards, values, priors = reward:tolist(), value:tolist(), priors_of(logits)
    local overs = over and over:ne(0):tolist()
    for row, t in ipairs(trees) do
      local worth = 0
      if not ends[row] then -- a new node; what ended before is what it was
        local i = t.path[depths[row]]
        t.child[i], t.r[i] = k, rewards[row]
        if overs and overs[row] then t.over[k] = true
        else
          add_node(t, k, priors[row])
          worth = values[row]
        end
      end
      back_up(t, depths[row], worth, discount)
    end
  end
  return result_of(trees, A)
end
options.declare(M.search, { "root", "step" }, rules)

return M
