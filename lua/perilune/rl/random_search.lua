-- random_search.lua - augmented random search (Mania, Guy and Recht 2018, 1803.07055): no gradient of a policy, only
-- the returns of parameters that were moved at random to either side.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  inputs = options.integer(options.required, "[1, inf)", "numbers of an observation"),
  outputs = options.integer(options.required, "[1, inf)", "numbers that a policy gives: a preference of each action, "
    .. "or the action itself"),
  seeds = options.integer(1, "[1, inf)", "learners beside each other"),
  directions = options.integer(8, "[1, inf)", "N: of an update, each tried on both sides"),
  top = options.integer(options.none, "[1, inf)", "b: the directions with the best returns, which alone count (V1-t, "
    .. "V2-t); default: all"),
  rate = options.number(0.02, "(0, inf)", "alpha"),
  deviation = options.number(0.03, "(0, inf)", "nu: of what is added to the parameters"),
  normalize = options.boolean(true, "observations by running mean and deviation of all that were seen (V2); false: V1"),
  seed = options.integer(options.none, nil, "of a generator of its own; none: that of random ops"),
}

--- @class perilune.rl.RandomSearch
--- @field weight perilune.Tensor  (seeds, outputs, inputs) f64
--- @field mean perilune.Tensor  (seeds, inputs) f64 of the observations
--- @field square perilune.Tensor  (seeds, inputs) f64, squares of what is off the mean, summed
local Search = {}
Search.__index = Search

--- A linear policy that is learned by augmented random search: V1 without normalize, V2 with, V1-t and V2-t with top.
--- ask gives policies to try, act what they do, observe counts what was seen, tell takes their returns.
---
---     local search = rl.random_search { inputs = 4, outputs = 2, directions = 8, top = 4 }
---     search:ask()
---     local numbers = search:act(obs) -- (rows, outputs), rows = seeds * 2 * directions
---     search:tell(returns)            -- (seeds, 2 * directions): first those of the + side, then of the - side
---
--- @param opts table
--- @return perilune.rl.RandomSearch
function M.random_search(opts)
  local self = setmetatable(options.fill("rl.random_search", opts, rules), Search)
  self.top = self.top or self.directions
  if self.top > self.directions then
    options.raise(("rl.random_search: top is %d, there are %d directions"):format(self.top, self.directions))
  end
  self.weight = peri.keep(peri.zeros({ self.seeds, self.outputs, self.inputs }, "f64"))
  self.mean = peri.keep(peri.zeros({ self.seeds, self.inputs }, "f64"))
  self.square, self.count = peri.keep(self.mean:clone()), peri.keep(peri.zeros({ self.seeds, 1 }, "f64"))
  return self
end
options.declare(M.random_search, {}, rules)

--- Draw the directions of an update. Until their returns are told, observations are normalised by what was counted
--- before, so that all meet the same ones (algorithm 1, line 5).
--- @return self
function Search:ask()
  self.delta = peri.keep(peri.randn({ self.seeds, self.directions, self.outputs, self.inputs }, "f64"))
  self.before = { mean = self.mean, square = self.square, count = self.count }
  local base = self.weight:unsqueeze(2)
  self.tried = peri.keep(peri.cat({ base + self.delta * self.deviation, base - self.delta * self.deviation }, 2))
  return self
end

-- (seeds, n, inputs), of mean 0 and deviation 1.
local function normal(self, obs, of)
  local x = obs:to("f64"):reshape { self.seeds, -1, self.inputs }
  if not self.normalize then return x end
  local var = (of.square / of.count:maximum(1)):clamp(0)
  var = peri.where(of.count:gt(1):logical_and(var:gt(1e-8)), var, peri.ones_like(var))
  return (x - of.mean:unsqueeze(2)) / var:sqrt():unsqueeze(2)
end

--- What the policies that are tried give, or, with best, what the parameters give that were learned.
--- @param obs perilune.Tensor  (rows, inputs): rows of a learner one behind the other; of the tried ones one each
--- @param best boolean?
--- @return perilune.Tensor  (rows, outputs) f32
function Search:act(obs, best)
  local x = normal(self, obs, not best and self.before or self)
  local rows = self.seeds * x.shape[2]
  if best then return x:matmul(self.weight:transpose(2, 3)):reshape({ rows, self.outputs }):to "f32" end
  if not self.tried then options.raise "random_search:act: ask for policies before they act" end
  if x.shape[2] ~= 2 * self.directions then
    options.raise(("random_search:act: %d rows of each learner, expected %d, one of each policy"):format(x.shape[2],
      2 * self.directions))
  end
  return (self.tried * x:unsqueeze(3)):sum(4):reshape({ rows, self.outputs }):to "f32"
end

--- Count observations for the mean and deviation, as many as are marked (Chan's parallel formula).
--- @param obs perilune.Tensor  (rows, inputs)
--- @param counts perilune.Tensor?  (rows) bool: rows whose episode goes on
--- @return self
function Search:observe(obs, counts)
  if not self.normalize then return self end
  local x = obs:to("f64"):reshape { self.seeds, -1, self.inputs }
  local w = (counts or peri.ones({ obs.shape[1] }, "bool")):to("f64"):reshape { self.seeds, -1, 1 }
  local n = w:sum(2) -- (seeds, 1)
  local mean = (x * w):sum(2) / n:maximum(1)
  local square = ((x - mean:unsqueeze(2)):square() * w):sum(2)
  local total, off = self.count + n, mean - self.mean
  local share = n / total:maximum(1)
  self.square = peri.keep(self.square + square + off:square() * self.count * share)
  self.mean, self.count = peri.keep(self.mean + off * share), peri.keep(total)
  return self
end

--- Learn from the returns: the parameters move by alpha / (b sigma) sum (r+ - r-) delta over the b directions with the
--- best max(r+, r-), where sigma is the deviation of their 2 b returns (algorithm 2 of the paper).
--- @param returns perilune.Tensor  (seeds, 2 * directions): first of the + side
--- @return perilune.Tensor deviation  (seeds) sigma
function Search:tell(returns)
  local n, who = self.directions, "random_search:tell"
  options.argument(who, "returns", returns, "tensor")
  if options.shape(returns) ~= options.shape { self.seeds, 2 * n } then
    options.raise(("%s: returns are %s, expected (%d, %d)"):format(who, options.shape(returns), self.seeds, 2 * n))
  end
  if not self.tried then options.raise(who .. ": ask for policies before their returns are told") end
  if not returns:isfinite():all():item() then options.raise(who .. ": a return is not finite") end
  returns = returns:to "f64"
  local plus, minus = returns:narrow(2, 1, n), returns:narrow(2, n + 1, n)
  local best = plus:maximum(minus):argsort(2, true):narrow(2, 1, self.top) -- (seeds, b)
  local up, down = plus:gather(best, 2), minus:gather(best, 2)
  local both = peri.cat({ up, down }, 2)
  local sigma = (both - both:mean(2, true)):square():mean(2, true):sqrt()
  local step = (up - down) / (sigma + 1e-12)
  local full = peri.zeros({ self.seeds, n }, "f64"):scatter_add(best, step, 2)
  local move = (full:reshape { self.seeds, n, 1, 1 } * self.delta):sum(2)
  self.weight = peri.keep(self.weight + move * (self.rate / self.top))
  self.delta, self.tried, self.before = nil, nil, nil
  return sigma:squeeze(2)
end

--- Everything that a resumed run needs, between updates.
--- @return table tensors
function Search:state_dict()
  return { weight = self.weight, mean = self.mean, square = self.square, count = self.count }
end

--- @param tensors table  of state_dict
function Search:load_state_dict(tensors)
  for name, t in pairs(self:state_dict()) do
    local given = tensors[name]
    if not given or options.shape(given) ~= options.shape(t) then
      options.raise(("random_search: the state has no %s of shape %s"):format(name, options.shape(t)))
    end
  end
  for name in pairs(self:state_dict()) do self[name] = peri.keep(tensors[name]:clone()) end
  return self
end

--- The policy of one learner as a module, observations in, what it gives out: for peri.rl.policy.save.
--- @param i integer
--- @return perilune.nn.Module
function Search:network(i)
  if math.type(i) ~= "integer" or i < 1 or i > self.seeds then
    options.raise(("random_search:network: i is %s, expected an integer from 1 to %d"):format(tostring(i), self.seeds))
  end
  local layer, w = peri.nn.Linear(self.inputs, self.outputs), self.weight:select(1, i)
  local zero = peri.zeros({ 1, 1, self.inputs }, "f64")
  local origin = zero:expand { self.seeds, 1, self.inputs }
  local scale = normal(self, origin + 1, self) - normal(self, origin, self)
  local _ <close> = peri.no_grad()
  local scaled = w * scale:select(1, i)
  layer.weight:copy_(scaled:to "f32")
  layer.bias:copy_((self.normalize and -(scaled * self.mean:select(1, i):unsqueeze(1)):sum(2)
    or peri.zeros({ self.outputs }, "f64")):to "f32")
  return layer
end

return M
