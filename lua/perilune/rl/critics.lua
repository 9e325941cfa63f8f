-- critics.lua - several critics that learn side by side, of several seeds at once, as one batched network.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

local rules = {
  inputs = options.integer(options.required, "[1, inf)", "numbers of an observation, and of an action"),
  outputs = options.integer(1, "[1, inf)", "1, or actions whose values it gives side by side"),
  critics = options.integer(2, "[1, inf)", "networks; their least is what a target takes (Fujimoto et al. 2018)"),
  seeds = options.value(options.none, "table", "of the initial weights, one for each learner; none: one learner, from "
    .. "the generator as it is"),
  hidden = options.value({ 256, 256 }, "table", "widths of the hidden layers"),
  activation = options.choice("relu", { "relu", "tanh", "gelu", "silu", "elu" }, "between the layers"),
}

--- Twin critics, or as many as asked for, of one learner or of several seeds, as one network with a leading dim.
---   local critics = rl.Critics { inputs = 3 + 1, seeds = { 1, 2, 3 } }
---   local q = critics(obs, action)                     -- (3, n, 3), (3, n, 1) -> (2, 3, n)
---   local least = q:min(1)                             -- (3, n)
--- @class perilune.rl.Critics
--- @field net perilune.nn.Copies  critic 1 of every seed, then critic 2 ...
M.Critics = nn.class("Critics", function (self, ...)
  local o = options.read("rl.Critics", {}, rules, 4, ...)
  local sizes, seeds = { o.inputs, table.unpack(o.hidden) }, o.seeds and {}
  sizes[#sizes + 1] = o.outputs
  self.critics, self.learners, self.outputs = o.critics, o.seeds and #o.seeds or 1, o.outputs
  for c = 1, seeds and o.critics or 0 do
    for _, seed in ipairs(o.seeds) do seeds[#seeds + 1] = seed * o.critics + c end -- all of them different
  end
  self.net = nn.Copies(o.critics * self.learners, function ()
    return nn.MLP(sizes, { activation = o.activation, init = "uniform" })
  end, { seeds = seeds })
end)
options.declare(M.Critics, {}, rules)

--- @param obs perilune.Tensor  (seeds, n, ...)
--- @param action perilune.Tensor?  (seeds, n, ...): those whose values are asked for
--- @return perilune.Tensor  (critics, seeds, n), or (critics, seeds, n, outputs)
function M.Critics:forward(obs, action)
  local x = action and peri.cat({ obs, action }, -1) or obs
  local s, n, d = x:size(1), x:size(2), x:size(3)
  if s ~= self.learners then
    options.raise(("Critics: rows of %d seeds, there are critics of %d"):format(s, self.learners))
  end
  local y = self.net(x:unsqueeze(1):expand({ self.critics, s, n, d }):reshape { self.critics * s, n, d })
  if self.outputs == 1 then return y:reshape { self.critics, s, n } end
  return y:reshape { self.critics, s, n, self.outputs }
end

return M
