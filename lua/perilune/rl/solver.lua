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

return M
