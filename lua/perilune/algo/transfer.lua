-- transfer.lua - a network that has learned something else learns a new task as a stepper: first its new part alone,
-- then one part after the other from there down (gradual unfreezing; Howard and Ruder, 1801.06146, section 3.3).
local peri = require "perilune"
local options = require "perilune.options"
local trainer = require "perilune.algo.trainer"

local Stepper = trainer.class("transfer", { dropout = true })

local M = {}

local rules = trainer.rules {
  model = options.value(options.required, "module", "that learns, with the weights that it has brought"),
  loss = options.value(options.required, "callable", "function () -> loss of a batch of its own"),
  parts = options.value(options.required, "table", "Lua patterns of parameter names: what learns from the first update "
    .. "on, as the new head, then what follows; parameters that none matches stay as they are"),
  every = options.integer(0, "[0, inf)", "updates after which the next part begins to learn; 0: all learn at once"),
}
rules.probe = nil

-- Which part learns a parameter, of all of them; raises for a part that has none of its own.
local function assign(self)
  local list, owner, counts = self.model:named_parameters(), {}, {}
  for i, pattern in ipairs(self.parts) do
    if type(pattern) ~= "string" then
      options.raise(("transfer: part %d is a %s, expected a pattern"):format(i, type(pattern)))
    end
    counts[i] = 0
    for k, entry in ipairs(list) do
      local ok, found = pcall(string.find, entry[1], pattern)
      if not ok then options.raise(("transfer: part %d: %q is no Lua pattern: %s"):format(i, pattern, found)) end
      if found and not owner[k] then owner[k], counts[i] = i, counts[i] + 1 end
    end
    if counts[i] == 0 then
      options.raise(("transfer: part %d: no parameter that an earlier part has not matches %q"):format(i, pattern))
    end
  end
  if #self.parts == 0 then options.raise "transfer: there are no parts" end
  return list, owner
end

-- Parts that learn in the next update.
local function open(self) return self.every == 0 and #self.parts or math.min(#self.parts, 1 + self.at // self.every) end

local function settle(self)
  self.open = open(self)
  for k, entry in ipairs(self._list) do
    local learns = (self._owner[k] or math.huge) <= self.open
    entry[2]:requires_grad_(learns)
    if not learns then entry[2].grad = nil end
  end
end

--- Transfer learning as a stepper: each :step() is an update by loss(), of the parts that learn by then. parts = {
--- "^head" } trains a new head on features that stay; { "^head", "^body" } with every = 0 fine-tunes all.
---
---     net:load_state_dict(learned, { strict = false })       -- all but the head, which is new
---     local stepper = algo.transfer.new { model = net, optimizer = opt, loss = loss, every = 100,
---       parts = { "^head", "^layers%.1", "^layers%.0" } }
---
--- Parameters that do not learn yet, or never, have requires_grad = false on the model until stepper:close(). An
--- optimizer that no gradient of the loss reaches, as where the loss is of another model, is an error of :step().
---
--- @param opts table  optimizer: over all parameters of the parts
--- @return table stepper  open (parts that learn); :step() -> metrics; :state(), :set_state(s) for checkpoints;
--- :close()
function M.new(opts)
  local self = trainer.new(Stepper, opts, rules)
  self._list, self._owner = assign(self)
  local mine = {}
  for _, p in ipairs(self.optimizer:parameters()) do mine[p] = true end
  for k, entry in ipairs(self._list) do
    if self._owner[k] and not mine[entry[2]] then
      options.raise(("transfer: %s is of part %d and not the optimizer's"):format(entry[1], self._owner[k]))
    end
  end
  self._before = {}
  for k, entry in ipairs(self._list) do self._before[k] = entry[2].requires_grad end
  settle(self)
  return self
end
options.declare(M.new, {}, rules)

-- The loss of a batch, which is the user's function.
local function pass(loss)
  local value = loss()
  if not peri.is_tensor(value) then
    options.raise(("transfer: loss gave %s, expected a tensor: the loss of a batch"):format(
      value == nil and "nothing" or "a " .. type(value)))
  elseif value:numel() ~= 1 then
    options.raise(("transfer: loss gave shape %s, expected one number"):format(options.shape(value)))
  elseif not value.requires_grad then
    options.raise("transfer: loss gave a tensor that no gradient goes through: nothing of the parts that learn is "
      .. "in it")
  end
  return value
end

--- One update.
--- @return table metrics  step, loss, open (parts that learned), learning_rate, grad_norm, skipped and no_op as in
--- algo.grpo
function Stepper:step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local turn <close> = self:begin() -- luacheck: ignore 211
  settle(self)
  local metrics = { open = self.open }
  self:learn(trainer.slices { self.loss }, pass, metrics)
  self:want_reached()
  return self:update(metrics)
end

--- Go on from a state, with the parts that learned by then.
--- @param s table
--- @return self
function Stepper:set_state(s)
  getmetatable(Stepper).set_state(self, s)
  settle(self)
  return self
end

--- Give the parameters of the model back as they were brought: those that could learn before transfer.new() can again.
--- The weights stay. A :step() after it goes on as before. The end of a local stepper <close> does this, too.
--- @return self
function Stepper:close()
  for k, entry in ipairs(self._list) do entry[2]:requires_grad_(self._before[k]) end
  return self
end

Stepper.__close = Stepper.close

return require "perilune.names"(M, "perilune.algo.transfer")
