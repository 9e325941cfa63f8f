-- q_network.lua - networks of action values: plain, dueling, noisy, and of distributions.

local peri = require "perilune"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

local rules = {
  hidden = options.value({ 256, 256 }, "table", "sizes of the hidden layers, ReLU between them"),
  dueling = options.boolean(false, "the value of the state and what each action adds to it, apart (Wang et al. 2016)"),
  noisy = options.boolean(false, "layers behind the first are noisy and explore by themselves (Fortunato et al. 2018)"),
  sigma = options.number(0.5, "(0, inf)", "of noisy layers: their deviations begin as sigma / sqrt(in)"),
  atoms = options.integer(1, "[1, inf)", "of the distribution of each action's return; 1: its mean alone"),
  low = options.number(options.none, "(-inf, inf)", "with atoms, the return of the first"),
  high = options.number(options.none, "(-inf, inf)", "and of the last"),
}

-- A distribution needs both ends and two atoms; a mean has neither.
local function check_atoms(o)
  for _, name in ipairs { "low", "high" } do
    if (o[name] ~= nil) ~= (o.atoms > 1) then
      options.raise(("QNetwork: %s is %s with %d atom%s, expected %s"):format(name, tostring(o[name]), o.atoms,
        o.atoms == 1 and "" or "s", o.atoms > 1 and "the return of an atom" or "none"))
    end
  end
  if o.atoms > 1 and o.low >= o.high then
    options.raise(("QNetwork: low %g is not below high %g"):format(o.low, o.high))
  end
end

-- The size that a space has, or that was given.
local function size_of(name, n, kind, expected)
  if type(n) == "table" and n.kind then
    if n.kind ~= kind or kind == "box" and (#n.shape ~= 1 or n.dtype ~= "f32") then
      options.raise(("QNetwork: %s are %s, expected %s"):format(name, tostring(n), expected))
    end
    return n.n or n.shape[1]
  end
  if math.type(n) ~= "integer" or n < 1 then
    options.raise(("QNetwork: %s, expected an integer in [1, inf), or a space"):format(options.is(name, n)))
  end
  return n
end

local function layers_of(sizes, o)
  if not o.noisy then
    sizes.activation, sizes.init = "relu", "uniform"
    return nn.MLP(sizes)
  end
  local list = { nn.Linear(sizes[1], sizes[2]) }
  for i = 2, #sizes - 1 do
    list[#list + 1] = nn.ReLU()
    list[#list + 1] = nn.NoisyLinear(sizes[i], sizes[i + 1], { sigma = o.sigma })
  end
  return nn.Sequential(table.unpack(list))
end

--- Action values of observations: rl.QNetwork(4, 2, { hidden = { 256, 256 }, dueling = true }); spaces of an
--- environment may stand for the sizes. They are (..., actions), or with atoms > 1 logits (..., actions, atoms) of the
--- distributions of returns (Bellemare et al. 2017). Dueling, q(s, a) = v(s) + w(s, a) - mean_b w(s, b) (Wang et al.
--- 2016, eq. 9); v and w are outputs of one last layer, so that nothing but the last layer grows. Initial weights are
--- those of Linear.
--- @class perilune.rl.QNetwork
--- @field layers perilune.nn.Module
--- @field actions integer
--- @field atoms integer
M.QNetwork = nn.class("QNetwork", function (self, inputs, actions, opts)
  local o = options.fill("QNetwork", opts, rules)
  inputs = size_of("inputs", inputs, "box", "a Box of one dim in f32")
  actions = size_of("actions", actions, "discrete", "Discrete")
  check_atoms(o)
  self.actions, self.atoms, self.dueling, self.low, self.high = actions, o.atoms, o.dueling, o.low, o.high
  local sizes = table.move(o.hidden, 1, #o.hidden, 2, { inputs })
  sizes[#sizes + 1] = (actions + (o.dueling and 1 or 0)) * o.atoms
  self.layers = layers_of(sizes, o)
end)
options.declare(M.QNetwork, { "inputs", "actions" }, rules)

--- @param x perilune.Tensor  (..., inputs)
--- @return perilune.Tensor  (..., actions), or (..., actions, atoms)
function M.QNetwork:forward(x)
  local y, dim = self.layers(x), -1
  if self.atoms > 1 then
    local shape = x.shape
    shape[#shape], shape[#shape + 1] = self.actions + (self.dueling and 1 or 0), self.atoms
    y, dim = y:reshape(shape), -2
  end
  if not self.dueling then return y end
  local value, extra = y:narrow(dim, 1, 1), y:narrow(dim, 2, self.actions)
  return value + extra - extra:mean(dim, true)
end

--- Action values: what forward gives, of distributions their means.
--- @param x perilune.Tensor  (..., inputs)
--- @return perilune.Tensor  (..., actions)
function M.QNetwork:values(x)
  local y = self(x)
  return self.atoms > 1 and peri.rl.expected_return(y, self.low, self.high) or y
end

local Means = nn.class("Means", function (self, net) self.net = net end)
function Means:forward(x) return self.net:values(x) end
function Means:program(build, x) return self.net:program(build, x) end

--- The network as a module whose forward is values, for peri.rl.policy.save.
--- @return perilune.nn.Module
function M.QNetwork:means() return Means(self) end

-- What a policy file holds of it, which is its values: see perilune.rl.program.
function M.QNetwork:program(build, x)
  local y, dim = build:module(self.layers, x), -1
  if self.atoms > 1 then
    y = build:op("reshape", { y }, { shape = { -1, self.actions + (self.dueling and 1 or 0), self.atoms } })
    dim = -2
  end
  if self.dueling then
    local value = build:op("narrow", { y }, { dim = dim, start = 0, length = 1 })
    local extra = build:op("narrow", { y }, { dim = dim, start = 1, length = self.actions })
    local centred = build:op("sub", { extra, build:op("mean", { extra }, { dims = { dim }, keep = true }) })
    y = build:op("add", { value, centred })
  end
  if self.atoms == 1 then return y end
  local support = peri.arange(self.atoms):to "f32" * ((self.high - self.low) / (self.atoms - 1)) + self.low
  local weighed = build:op("mul", { build:op("softmax", { y }, { dim = -1 }), support })
  return build:op("sum", { weighed }, { dims = { -1 } })
end

function M.QNetwork:extra()
  return ("%d actions%s%s"):format(self.actions, self.dueling and ", dueling" or "",
    self.atoms > 1 and (", %d atoms from %g to %g"):format(self.atoms, self.low, self.high) or "")
end

return M
