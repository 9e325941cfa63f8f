-- copies.lua - several networks of one shape as one: each parameter has a leading dim over them, and one pass runs all.
-- Seeds of a small learner cost a fraction of as many runs: calls and threads are shared, the arithmetic is the same.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local linear = require "perilune.nn.linear"
local noisy = require "perilune.nn.noisy"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local M = {}

local rules = {
  n = options.integer(options.required, "[1, inf)", "how many"),
  make = options.value(options.required, "callable", "make(i) makes network i, all of one shape"),
  seeds = options.value(options.none, "table",
    "n seeds, one for the initial weights of each; the generator goes on as if nothing had been drawn"),
}

-- Modules with tensors that know what to do with a leading dim, or stand where it is known: Linear (alone or in an
-- MLP), NoisyLinear and those of other people's classes, whose formulas are their own.
local leading = { [linear.Linear] = true, [noisy.NoisyLinear] = true }
local function check_classes(net)
  for name, class in pairs(require "perilune.nn") do
    for _, entry in ipairs(type(class) == "table" and not leading[class] and net:named_modules() or {}) do
      if getmetatable(entry[2]) == class then
        for _, value in next, entry[2] do
          if walk.is_tensor(value) then
            options.raise(("Copies: %s is a %s, whose formula has no leading dim: Linear, NoisyLinear, MLP and "
              .. "parameters of your own classes can be copied"):format(entry[1] == "" and "the network" or entry[1],
              name))
          end
        end
      end
    end
  end
end

-- The places of every network's tensors, checked to be the same.
local function places_of(nets)
  local all = {}
  for i, net in ipairs(nets) do
    all[i] = walk.places(net)
    if #all[i] ~= #all[1] then
      options.raise(("Copies: network %d has %d tensors, network 1 has %d"):format(i, #all[i], #all[1]))
    end
    for k, place in ipairs(all[i]) do
      local a, b = place.tensor, all[1][k].tensor
      if place.path ~= all[1][k].path or a.shape ~= b.shape or a.dtype ~= b.dtype then
        options.raise(("Copies: network %d has %s %s %s, network 1 has %s %s %s"):format(i, place.path,
          options.shape(a), a.dtype, all[1][k].path, options.shape(b), b.dtype))
      end
    end
  end
  return all
end

-- Put made(tensor, k) in every place of a net, tied ones once.
local function put(places, made)
  local by_tensor = {}
  for k, place in ipairs(places) do
    local t = by_tensor[place.tensor]
    if not t then
      t = made(place.tensor, k)
      t = place.kind == "parameter" and Module.parameter(t) or peri.keep(t:detach())
      by_tensor[place.tensor] = t
    end
    place.owner[place.key] = t
  end
end

-- Every layer of class `from` becomes one of `to`.
local function turn(net, from, to)
  for _, module in ipairs(net:modules()) do
    if getmetatable(module) == from then setmetatable(module, to) end
  end
end

--- Several networks of one shape as one: nn.Copies(20, function (i) return nn.MLP { 4, 64, 2 } end, { seeds = list }).
--- Its parameters are those of one network with a leading dim, and it takes x (n, ..., in), each network its own rows.
--- A parameter of a class of your own gets the same leading dim: give it the dims that its formula needs, as a
--- logarithm of deviations (1, A) -> (n, 1, A). Of nn, Linear, NoisyLinear, MLP and what has no tensors can be copied.
--- Optimizers step all at once: opt:step { copies = n, clip = 0.5 }.
--- @class perilune.nn.Copies
--- @field n integer
--- @field net perilune.nn.Module  the network, with the leading dim
M.Copies = Module.class("Copies", function (self, ...)
  local o = options.read("Copies", { "n", "make" }, rules, 4, ...)
  if o.seeds and #o.seeds ~= o.n then
    options.raise(("Copies: %d seeds for %d networks"):format(#o.seeds, o.n))
  end
  local nets, state = {}, peri.rng_state()
  for i = 1, o.n do
    if o.seeds then peri.seed(o.seeds[i]) end
    nets[i] = o.make(i)
    if not Module.is_module(nets[i]) then
      options.raise(("Copies: make(%d) gave a %s, expected a module"):format(i, type(nets[i])))
    end
  end
  if o.seeds then peri.set_rng_state(state) end
  check_classes(nets[1])
  local all = places_of(nets)
  local _ <close> = peri.no_grad()
  put(all[1], function (_, k)
    local list = {}
    for i = 1, o.n do list[i] = all[i][k].tensor end
    return peri.stack(list)
  end)
  turn(nets[1], linear.Linear, linear.LinearCopies)
  self.n, self.net = o.n, nets[1]
end)
options.declare(M.Copies, { "n", "make" }, rules)

function M.Copies:extra() return tostring(self.n) end

--- @param x perilune.Tensor  (n, ..., in)
--- @return perilune.Tensor  (n, ..., out)
function M.Copies:forward(x, ...) return self.net(x, ...) end

--- Network i alone, with tensors of its own.
--- @param i integer
--- @return perilune.nn.Module
function M.Copies:single(i)
  if math.type(i) ~= "integer" or i < 1 or i > self.n then
    options.raise(("single: i is %s, expected an integer from 1 to %d"):format(tostring(i), self.n))
  end
  local net = self.net:copy { trained = true }
  local _ <close> = peri.no_grad()
  put(walk.places(net), function (t) return t:select(1, i):clone() end)
  turn(net, linear.LinearCopies, linear.Linear)
  return net
end

return M
