-- solver.lua - games of lines on small boards, solved: what a position is worth under best play, and which moves keep
-- that. Alpha-beta over bitboards with a table of bounds.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- @class perilune.rl.Solver
--- @field nodes integer  positions that were looked at so far
local Solver = {}
Solver.__index = Solver
Solver.__name = "perilune.rl.Solver"

local rules = {
  line = options.integer(options.none, "[2, 62]", "stones that win in a line; default: 3 of TicTacToe, else 4"),
  nodes = options.integer(2000000, "[1, inf)", "positions that one question may look at, else its answer is nan"),
  keep = options.integer(2000000, "[1, inf)", "positions whose bounds are remembered; above it all are forgotten"),
}

-- Columns of rows + 1 bits, the lowest cell first (Tromp); the top bit stays 0.
local function board_of(env, o)
  local id, n, actions = env.id, env.obs_space:size() // 2, env.action_space.n
  local falls = id == "ConnectFour-v0"
  if not falls and id ~= "TicTacToe-v0" then
    options.raise(("rl.solver: %s, expected TicTacToe-v0 or ConnectFour-v0"):format(tostring(id)))
  end
  local columns = falls and actions or 3
  local rows = n // columns
  local self = { rows = rows, columns = columns, line = o.line or falls and 4 or 3, falls = falls, actions = actions,
    full = 0, steps = { 1, rows + 1, rows, rows + 2 }, cell = {}, column = {}, bottom = {} }
  for r = 1, rows do
    for c = 1, columns do
      local bit = 1 << ((c - 1) * (rows + 1) + rows - r)
      self.cell[(r - 1) * columns + c], self.full = bit, self.full | bit
    end
  end
  for c = 1, columns do
    self.bottom[c] = 1 << ((c - 1) * (rows + 1))
    self.column[c] = ((1 << rows) - 1) * self.bottom[c]
  end
  self.order = {} -- the middle first
  for a = 1, actions do self.order[a] = a end
  local middle = (actions + 1) / 2
  table.sort(self.order, function (a, b)
    local x, y = math.abs(a - middle), math.abs(b - middle)
    return x < y or x == y and a < b
  end)
  return self
end

--- A solver of the positions of a game, as the environment shows them: TicTacToe-v0 and ConnectFour-v0 of any size.
--- Tic-tac-toe and boards of up to about twenty cells are solved from the first move on, in a second; of 6 x 7 cells
--- positions near the end are.
---
---     local solver = rl.solver(env)
---     local value, best = solver:solve(env.obs)   -- (rows) 1 won, 0 drawn, -1 lost; (rows, actions) bool
---
--- @param env perilune.env.Env
--- @param opts table?
--- @return perilune.rl.Solver
function M.solver(env, opts)
  options.argument("rl.solver", "env", env, "table")
  local o = options.fill("rl.solver", opts, rules)
  local self = setmetatable(board_of(env, o), Solver)
  self.nodes, self._most, self._keep, self._table, self._count = 0, o.nodes, o.keep, {}, 0
  return self
end
options.declare(M.solver, { "env" }, rules)

local function won(self, stones)
  for _, step in ipairs(self.steps) do
    local ends = stones
    for k = 1, self.line - 1 do ends = ends & stones >> k * step end
    if ends ~= 0 then return true end
  end
  return false
end

-- The cell that an action puts a stone into, 0: none.
local function target(self, all, a)
  if not self.falls then return self.cell[a] & ~all end
  return (all & self.column[a]) + self.bottom[a] & self.column[a]
end

local out_of_nodes = {}

-- The value of a position to who moves: exact within (alpha, beta), a bound outside. own: the mover's stones.
local function search(self, own, all, alpha, beta)
  self.nodes = self.nodes + 1
  if self.nodes > self._until then error(out_of_nodes, 0) end
  if all == self.full then return 0 end
  local cells = {}
  for i, a in ipairs(self.order) do
    local cell = target(self, all, a)
    if cell ~= 0 and won(self, own | cell) then return 1 end
    cells[i] = cell
  end
  local key = self.falls and own + all or own << 32 | all
  local known = self._table[key] -- (least + 1) * 4 + most + 1
  local least, most = -1, 1
  if known then least, most = known // 4 - 1, known % 4 - 1 end
  if least > alpha then alpha = least end
  if most < beta then beta = most end
  if alpha >= beta then return least >= beta and least or most end
  local best, first = -1, alpha
  for i = 1, self.actions do
    local cell = cells[i]
    if cell ~= 0 then
      local v = -search(self, all & ~own, all | cell, -beta, -alpha)
      if v > best then best = v end
      if best > alpha then alpha = best end
      if alpha >= beta then break end
    end
  end
  if best <= first then most = best elseif best >= beta then least = best else least, most = best, best end
  if known == nil then self._count = self._count + 1 end
  if self._count > self._keep then self._table, self._count = {}, 1 end
  self._table[key] = (least + 1) * 4 + most + 1
  return best
end

-- Values of a position's actions, nil: not legal. Value of the position; nil: it takes too many nodes.
local function answer(self, own, all)
  self._until = self.nodes + self._most
  if won(self, all & ~own) then return -1, {} end -- it is over
  local values, best = {}, all == self.full and 0 or -2
  for a = 1, self.actions do
    local cell = target(self, all, a)
    if cell ~= 0 then
      local v = 1
      if not won(self, own | cell) then
        local ok, found = pcall(search, self, all & ~own, all | cell, -1, 1)
        if not ok then
          if found ~= out_of_nodes then error(found, 0) end
          return nil, {}
        end
        v = -found
      end
      values[a], best = v, math.max(best, v)
    end
  end
  return best, values
end

--- What positions are worth to who is to move, and which moves keep that.
--- @param obs perilune.Tensor  (n, 2 * cells) as the environment gives them: own stones, those of the other
--- @return perilune.Tensor value  (n) f32: 1 won, 0 drawn, -1 lost; nan: it takes more than the option nodes
--- @return perilune.Tensor best  (n, actions) bool; none where value is nan or the game is over
function Solver:solve(obs)
  options.argument("solver:solve", "obs", obs, "tensor")
  local cells = self.rows * self.columns
  if obs.ndim ~= 2 or obs.shape[2] ~= 2 * cells then
    options.raise(("solver:solve: obs has shape %s, expected (n, %d)"):format(options.shape(obs), 2 * cells))
  end
  local values, best, seen = {}, {}, {}
  for i, row in ipairs(obs:tolist()) do
    local own, all = 0, 0
    for k = 1, cells do
      if row[k] ~= 0 then own = own | self.cell[k] end
      if row[k] ~= 0 or row[cells + k] ~= 0 then all = all | self.cell[k] end
    end
    local key = own .. " " .. all
    seen[key] = seen[key] or table.pack(answer(self, own, all))
    local value, of_actions = seen[key][1], seen[key][2]
    values[i], best[i] = value or 0 / 0, {}
    for a = 1, self.actions do best[i][a] = value ~= nil and of_actions[a] == value end
  end
  return peri.tensor(values, "f32"), peri.tensor(best, "bool")
end

local examine_rules = {
  replies = options.choice("best", { "best", "all" }, "of the other side: all that keep the value, or all"),
  positions = options.integer(1000000, "[1, inf)", "that may come up in a half-move; more are an error"),
}

-- What the side that has stones `own` sees of positions.
local function seen(self, list)
  local rows, legal = {}, {}
  for i, p in ipairs(list) do
    local row, cells = {}, #self.cell
    for k, cell in ipairs(self.cell) do
      row[k] = p.own & cell ~= 0 and 1 or 0
      row[cells + k] = (p.all & ~p.own) & cell ~= 0 and 1 or 0
    end
    rows[i], legal[i] = row, {}
    for a = 1, self.actions do legal[i][a] = target(self, p.all, a) ~= 0 end
  end
  return peri.tensor(rows, "u8"), peri.tensor(legal, "bool")
end

-- Positions behind moves, equal ones as one; games that ended are counted.
local function new_level(self, count, won_as)
  local level, by_key = {}, {}
  -- mover, other and all: stones before the move at `cell`; own: those of the policy behind it
  return level, function (mover, all, cell, own, lines)
    if cell ~= 0 and won(self, mover | cell) then count[won_as] = count[won_as] + lines return end
    if all | cell == self.full then count.drawn = count.drawn + lines return end
    local key = self.falls and own + (all | cell) or own << 32 | all | cell
    local p = by_key[key]
    if not p then
      p = { own = own, all = all | cell, lines = 0 }
      by_key[key], level[#level + 1] = p, p
    end
    p.lines = p.lines + lines
  end
end

-- All replies of the other side.
local function replied(self, level, count, best)
  local after, put = new_level(self, count, "lost")
  for _, p in ipairs(level) do
    local other, value, values = p.all & ~p.own, nil, {}
    if best then
      value, values = answer(self, other, p.all)
      if not value then options.raise "solver:examine: a position takes more nodes than the solver may look at" end
    end
    for a = 1, self.actions do
      local cell = target(self, p.all, a)
      if cell ~= 0 and values[a] == value then put(other, p.all, cell, p.own, p.lines) end
    end
  end
  return after
end

local function moved(self, level, count, act)
  local after, put = new_level(self, count, "won")
  local actions = act(seen(self, level)):tolist()
  for i, p in ipairs(level) do
    local cell = math.type(actions[i]) == "integer" and target(self, p.all, actions[i] + 1) or 0
    if cell == 0 then count.lost = count.lost + p.lines -- a move that is not legal
    else put(p.own, p.all, cell, p.own | cell, p.lines) end
  end
  return after
end

--- Play a policy that does the same each time it sees a position from both sides, against every reply of the other: of
--- perfect play, or any. How many lines of play it wins, draws and loses, `first` and `second` by who begins. A policy
--- that draws the solver at tic-tac-toe loses none.
---
---     local found = solver:examine(function (obs, mask) return net:policy(obs, mask):deterministic() end)
---
--- @param act fun(obs: perilune.Tensor, mask: perilune.Tensor): perilune.Tensor  of (n, 2 * cells) u8 and (n, actions)
--- bool the actions (n) i64
--- @param opts table?
--- @return table  first and second, { won, drawn, lost } each, and the sums won, drawn and lost
function Solver:examine(act, opts)
  local o = options.fill("solver:examine", opts, examine_rules)
  options.argument("solver:examine", "act", act, "callable")
  local out = { won = 0, drawn = 0, lost = 0 }
  for _, side in ipairs { "first", "second" } do
    local count, level = { won = 0, drawn = 0, lost = 0 }, { { own = 0, all = 0, lines = 1 } }
    if side == "second" then level = replied(self, level, count, o.replies == "best") end
    while #level > 0 do
      if #level > o.positions then
        options.raise(("solver:examine: %d positions in one half-move, at most %d"):format(#level, o.positions))
      end
      level = moved(self, level, count, act)
      level = replied(self, level, count, o.replies == "best")
    end
    out[side] = count
    for name, n in pairs(count) do out[name] = out[name] + n end
  end
  return out
end
options.declare(Solver.examine, { "self", "act" }, examine_rules)

return M
