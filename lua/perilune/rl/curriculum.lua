-- curriculum.lua - which rows are drawn: the ones that still have something to teach, more often.
local options = require "perilune.options"

local Curriculum = {}
Curriculum.__index = Curriculum

local M = {}

local rules = {
  floor = options.number(0.1, "[0, inf)", "chance of a solved row beside 1 + floor of an unsolved one"),
  decay = options.number(0.95, "[0, 1]", "of the average, a completion"),
  best = options.number(1, "(0, inf)", "the reward of a solved row"),
}

local average = options.number(options.required)

--- Draws rows the more often the less reward they had of late: groups that are all right teach
--- nothing (DAPO, 2503.14476, section 3.2, filters them after sampling; this asks for fewer of them).
--- A row is drawn with a chance proportional to 1 + floor - its average reward, the average as a share of
--- best and held in [0, 1]; when every chance is 0 all are drawn alike. A row begins with an average of 0.
--- @param rows table[]
--- @param opts table?
--- @return table curriculum  :draw(rng), :update(batch), :state(), :set_state(s)
function M.curriculum(rows, opts)
  local self = options.fill("rl.curriculum", opts, rules)
  if type(rows) ~= "table" or #rows == 0 then error("rl.curriculum: there are no rows", 2) end
  self.rows, self.seen, self.index = rows, {}, {}
  for i, row in ipairs(rows) do
    self.seen[i] = 0
    self.index[row] = self.index[row] or i
  end
  return setmetatable(self, Curriculum)
end
options.declare(M.curriculum, { "rows" }, rules)

local function weight_of(self, i)
  local share = self.seen[self.index[self.rows[i]]] / self.best
  return 1 + self.floor - math.min(math.max(share, 0), 1)
end

--- A row by its chance.
--- @param rng table  of peri.rng
--- @return table row
function Curriculum:draw(rng)
  for _ = 1, 100 do -- draw and reject, which takes few tries unless almost all is solved
    local i = rng:int(1, #self.rows)
    if rng:uniform() * (1 + self.floor) < weight_of(self, i) then return self.rows[i] end
  end
  local sum = 0
  for i = 1, #self.rows do sum = sum + weight_of(self, i) end
  local left = rng:uniform() * sum
  for i = 1, #self.rows do
    left = left - weight_of(self, i)
    if left < 0 then return self.rows[i] end
  end
  return self.rows[rng:int(1, #self.rows)]
end

--- Learn from the rewards of a batch whose rows this drew; those of completions that the reward
--- function abstained from (NaN) are left out. A batch that is refused changes nothing.
--- @param batch table  rows, total (number[]), as of rl.rollout
function Curriculum:update(batch)
  local seen = table.move(self.seen, 1, #self.seen, 1, {})
  for k, row in ipairs(batch.rows) do
    local i, r = self.index[row], batch.total[k]
    if not i then error(("curriculum: row %d of the batch is none of its rows"):format(k), 2) end
    if type(r) ~= "number" or r == math.huge or r == -math.huge then
      error(("curriculum: the reward of row %d is %s, expected a number"):format(k, tostring(r)), 2)
    end
    if r == r then seen[i] = self.decay * seen[i] + (1 - self.decay) * r end
  end
  self.seen = seen
end

--- The averages, for a checkpoint.
--- @return table
function Curriculum:state() return { seen = table.move(self.seen, 1, #self.seen, 1, {}) } end

--- Go on from a state.
--- @param s table  of state() over as many rows
--- @return self
function Curriculum:set_state(s)
  local given = type(s) == "table" and type(s.seen) == "table" and s.seen or {}
  if #given ~= #self.rows then
    error(("curriculum: the state is of %d rows, there are %d"):format(#given, #self.rows), 2)
  end
  for i, v in ipairs(given) do
    local problem = options.problem(("the average of row %d"):format(i), v, average)
    if problem then error("curriculum: " .. problem, 2) end
  end
  self.seen = table.move(given, 1, #given, 1, {})
  return self
end

return M
