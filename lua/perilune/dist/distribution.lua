-- distribution.lua - what every probability distribution offers, and how one refuses what it has not. A family is a
-- class:
--   _draw(lead)                    a tensor of the shape lead, batch, event; with _reparametrised it has a gradient
--   _log_prob(x, before)           of x, which broadcasts with batch, event
--   _entropy, _mean, _mode, _best  over the batch; one that is not there is refused with the words in why
--   _kl(q)                         to another of the same family
local peri = require "perilune"
local dtypes = require "perilune.dtypes"
local options = require "perilune.options"

--- @class perilune.dist.Distribution
--- @field batch integer[]  sizes: one distribution for each place of the batch
--- @field event integer[]  sizes of one value
local Distribution = {}
Distribution.__index = Distribution

local M = {}

--- A family: its methods are looked for in the class, then in Distribution.
--- @param name string
--- @param why table  what it cannot do -> why, and what to do
function M.class(name, why)
  local class = setmetatable({ name = name, why = why }, { __index = Distribution })
  class.__index, class.__name, class.__tostring = class, "perilune.dist." .. name, Distribution.__tostring
  class.__transient = true -- a module may hold the last one that it made: it is neither saved nor trained
  return class
end

function Distribution.__tostring(self)
  local text = ("dist.%s, batch %s"):format(self.name, options.shape(self.batch))
  return #self.event > 0 and ("%s, event %s"):format(text, options.shape(self.event)) or text
end

-- ---- shapes ----

--- One list of sizes behind another.
--- @param a integer[]
--- @param b integer[]
--- @return integer[]
function M.joined(a, b)
  local out = table.move(a, 1, #a, 1, {})
  return table.move(b, 1, #b, #out + 1, out)
end

--- The shape that two broadcast to; nil when they do not.
--- @param a integer[]
--- @param b integer[]
--- @return integer[]?
function M.broadcast(a, b)
  local n, out = math.max(#a, #b), {}
  for i = 1, n do
    local x, y = a[#a - n + i] or 1, b[#b - n + i] or 1
    if x ~= y and x ~= 1 and y ~= 1 then return nil end
    out[i] = x == 1 and y or x
  end
  return out
end

local floats = dtypes.is_float

--- Whether a tensor has the sizes of one list and then those of another.
--- @param x perilune.Tensor
--- @param first integer[]
--- @param more integer[]
--- @return boolean
function M.has_sizes(x, first, more)
  local n = #first
  if x.ndim ~= n + #more then return false end
  for i, s in ipairs(x.shape) do
    if s ~= (first[i] or more[i - n]) then return false end
  end
  return true
end

--- Parameters as tensors of one dtype, and the shape that they broadcast to; a number joins the others' dtype.
--- @param who string
--- @param given table<string, perilune.Tensor|number>  by name
--- @param names string[]
--- @return integer[] shape
--- @return perilune.Tensor ...  in the order of names
function M.parameters(who, given, names)
  local dtype, list, shape = nil, {}, {}
  for _, name in ipairs(names) do
    local x = given[name]
    if peri.is_tensor(x) then
      if not floats[x.dtype] then
        options.raise(("%s: %s is of dtype %s, expected a float dtype"):format(who, name, x.dtype))
      end
      if dtype and x.dtype ~= dtype then
        options.raise(("%s: %s is of dtype %s, the other parameters %s"):format(who, name, x.dtype, dtype))
      end
      dtype = x.dtype
    end
  end
  for i, name in ipairs(names) do
    local x = given[name]
    if not peri.is_tensor(x) then x = peri.full({}, x, dtype or "f32") end
    list[i] = x
    if i == 1 then
      shape = x.shape
    elseif not M.has_sizes(x, shape, {}) then
      local both = M.broadcast(shape, x.shape)
      if not both then
        options.raise(("%s: %s has shape %s, which does not broadcast with %s of the others"):format(who, name,
          options.shape(x), options.shape(shape)))
      end
      shape = both
    end
  end
  return shape, table.unpack(list)
end

--- Raise unless every element of a parameter lies above 0.
--- @param who string
--- @param name string
--- @param x perilune.Tensor
function M.want_positive(who, name, x)
  local least = x:numel() > 0 and x:min():item() or 1
  if least <= 0 or least ~= least then
    options.raise(("%s: %s holds %g, expected more than 0"):format(who, name, least))
  end
end

--- Batch and event of a shape whose last `event` dims are one value.
--- @param who string
--- @param shape integer[]
--- @param event integer
--- @return integer[] batch
--- @return integer[] event
function M.divided(who, shape, event)
  if event > #shape then
    options.raise(("%s: event is %d, but the parameters have shape %s"):format(who, event, options.shape(shape)))
  end
  return table.move(shape, 1, #shape - event, 1, {}), table.move(shape, #shape - event + 1, #shape, 1, {})
end

--- The rule of the option event, which families of numbers have.
M.event = options.integer(0, "[0, 8]", "how many of the last dims are one value, whose log-probabilities are summed")

--- The sum over the dims of one value.
--- @param x perilune.Tensor  (..., event)
--- @return perilune.Tensor
function Distribution:_sum(x)
  local n = #self.event
  if n == 0 then return x end
  if n == 1 then return x:sum(-1) end
  local dims = {}
  for i = 1, n do dims[i] = -i end
  return x:sum(dims)
end

-- The same where x may be of the event's dims alone, or of fewer: it is spread over the batch first.
function Distribution:_total(x)
  if not M.has_sizes(x, self.batch, self.event) then x = x:expand(M.joined(self.batch, self.event)) end
  return self:_sum(x)
end

local function refuse(self, what)
  local why = self.why[what]
  options.raise(("dist.%s has no %s%s"):format(self.name, what, why and ": " .. why or ""))
end

local count = options.integer(nil, "[0, inf)")

local function lead_of(self, what, n)
  if n == nil then return {} end
  if not count.accepts(n) then
    options.raise(("dist.%s: %s of %s, expected a number of draws"):format(self.name, what, tostring(n)))
  end
  return { math.tointeger(n) }
end

-- ---- what users call ----

--- Draws, with the context's generator and without a gradient: (batch, event), or (n, batch, event). A squashed one
--- gives a second tensor, the draws before they were squashed.
--- @param n integer?
--- @return perilune.Tensor
--- @return perilune.Tensor? before
function Distribution:sample(n)
  local lead = lead_of(self, "sample", n)
  local _ <close> = peri.no_grad()
  local x, before = self:_draw(lead)
  return x, before
end

--- Draws through which the gradient goes on into the parameters (reparametrised): Normal and SquashedNormal have them.
--- @param n integer?
--- @return perilune.Tensor
--- @return perilune.Tensor? before
function Distribution:rsample(n)
  if not self._reparametrised then refuse(self, "rsample") end
  local x, before = self:_draw(lead_of(self, "rsample", n))
  return x, before
end

-- x is a tensor whose shape broadcasts with the distribution's.
local function want_value(self, what, x)
  if not peri.is_tensor(x) then
    options.argument(("dist.%s"):format(self.name), "the value of " .. what, x, "tensor")
  end
  if M.has_sizes(x, self.batch, self.event) then return end
  local shape = M.joined(self.batch, self.event)
  local both = M.broadcast(x.shape, shape)
  local fits = both ~= nil
  for i = 0, #self.event - 1 do fits = fits and x.ndim > i and x:size(-1 - i) == both[#both - i] end
  if not fits then
    options.raise(("dist.%s: the value of %s has shape %s, which does not go with (..., %s)"):format(self.name, what,
      options.shape(x), table.concat(shape, ", ")))
  end
end

--- The logarithm of the probability or density of values: (batch), or (n, batch) for (n, batch, event).
--- @param x perilune.Tensor  whole numbers of discrete families in i64, i32 or u8
--- @param before perilune.Tensor?  of a squashed family: what sample and rsample gave beside x, which has every digit
--- @return perilune.Tensor
function Distribution:log_prob(x, before)
  want_value(self, "log_prob", x)
  if before ~= nil then
    if not self._squashes then
      options.raise(("dist.%s: log_prob takes no second value: nothing is squashed"):format(self.name))
    end
    want_value(self, "log_prob before squashing", before)
  end
  local out = self:_log_prob(x, before)
  return out
end

--- The entropy in nats, one for each place of the batch; refused where it has no closed form.
--- @return perilune.Tensor  (batch)
function Distribution:entropy()
  if not self._entropy then refuse(self, "entropy") end
  local out = self:_entropy()
  return out
end

--- A draw and its log-probability, without a gradient: what a rollout keeps. The log-probability has the bits that
--- log_prob gives, so the first importance ratio of an update is 1 exactly.
--- @return perilune.Tensor x  (batch, event)
--- @return perilune.Tensor log_prob  (batch)
--- @return perilune.Tensor? before  of a squashed one, as of sample
function Distribution:act()
  local _ <close> = peri.no_grad()
  if self._act then
    local x, logp = self:_act()
    return x, logp
  end
  local x, before = self:_draw({})
  return x, self:_log_prob(x, before), before
end

--- Log-probabilities of values and the entropy, in one pass where that is cheaper: what a policy gradient needs of a
--- minibatch.
--- @param x perilune.Tensor
--- @return perilune.Tensor log_prob
--- @return perilune.Tensor entropy  (batch)
function Distribution:evaluate(x)
  want_value(self, "evaluate", x)
  if self._evaluate then
    local logp, entropy = self:_evaluate(x)
    return logp, entropy
  end
  if not self._entropy then refuse(self, "entropy") end
  local logp, entropy = self:_log_prob(x), self:_entropy()
  return logp, entropy
end

--- The mean, (batch, event); refused where there is none or no closed form.
--- @return perilune.Tensor
function Distribution:mean()
  if not self._mean then refuse(self, "mean") end
  local out = self:_mean()
  return out
end

--- The likeliest value, (batch, event), the first of several; refused where it has no closed form.
--- @return perilune.Tensor
function Distribution:mode()
  if not self._mode then refuse(self, "mode") end
  local out = self:_mode()
  return out
end

--- What a policy does that is not to explore, (batch, event): the mode of choices and of a normal, the squashed mean of
--- a squashed normal, the mean of a beta, that of the likeliest component of a mixture.
--- @return perilune.Tensor
function Distribution:deterministic()
  local _ <close> = peri.no_grad()
  local out = self:_best()
  return out
end

--- The same distribution as it is now, without a gradient: no step of the parameters changes it.
--- @return perilune.dist.Distribution
function Distribution:detach()
  local out = setmetatable({}, getmetatable(self))
  for key, value in pairs(self) do
    if peri.is_tensor(value) then value = value:detach():clone()
    elseif type(value) == "table" and getmetatable(value) and value.detach then value = value:detach()
    elseif key == "heads" then
      local heads = {}
      for i, head in ipairs(value) do heads[i] = head:detach() end
      value = heads
    end
    out[key] = value
  end
  return out
end

M.Distribution = Distribution

return M
