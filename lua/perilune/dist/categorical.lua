-- categorical.lua - choices among a few actions: Categorical, several at once (MultiCategorical), and Bernoulli.
local peri = require "perilune"
local base = require "perilune.dist.distribution"
local dtypes = require "perilune.dtypes"
local options = require "perilune.options"

local M = {}

-- ---- Categorical ----

local Categorical = base.class("Categorical", {
  rsample = "a choice has no gradient; weigh log_prob by what came of it",
  mean = "classes are names, not numbers",
})

local mask_text = "bool or 0 and 1, broadcasts with logits: actions at 0 have probability 0 and no gradient"
local categorical_rules = { mask = options.value(options.none, "tensor", mask_text) }

local floats = dtypes.is_float

local function check_logits(who, logits)
  if type(logits) ~= "userdata" then options.argument(who, "logits", logits, "tensor") end
  if not floats[logits.dtype] or logits.ndim < 1 or logits:size(-1) < 1 then
    options.raise(("%s: logits are %s of shape %s, expected (..., classes) of a float dtype with at least 1 class")
      :format(who, logits.dtype, options.shape(logits)))
  end
end

-- The mask as bool in the shape of logits; every row has something to choose.
local function check_mask(who, mask, logits, head)
  local both = base.broadcast(mask.shape, logits.shape)
  if not both or options.shape(both) ~= options.shape(logits) then
    options.raise(("%s: mask has shape %s, which does not broadcast to %s of logits"):format(who, options.shape(mask),
      options.shape(logits)))
  end
  if mask.dtype ~= "bool" then mask = mask:ne(0) end
  local some = mask:any(-1)
  if not some:all():item() then
    local rows = some:expand(table.move(logits.shape, 1, logits.ndim - 1, 1, {})):reshape { -1 }
    local row = rows:to("u8"):argmin(1):item()
    options.raise(("%s: row %d (from 0) of the mask%s has no legal action"):format(who, row, head or ""))
  end
  if options.shape(mask) ~= options.shape(logits) then mask = mask:expand(logits.shape) end
  return mask
end

local function categorical(logits, mask)
  local batch = logits.shape
  batch[#batch] = nil
  return setmetatable({ logits = logits, mask = mask, event = {}, batch = batch }, Categorical)
end

--- Choices among classes, numbered from 0, by the softmax of logits.
--- @param logits perilune.Tensor  (..., classes); give p:log() to choose by probabilities
--- @param opts table?
--- @return perilune.dist.Distribution  values (...) i64
function M.Categorical(logits, opts)
  local mask = opts ~= nil and options.fill("dist.Categorical", opts, categorical_rules).mask
  check_logits("dist.Categorical", logits)
  local d = categorical(logits, mask and check_mask("dist.Categorical", mask, logits) or nil)
  return d
end
options.declare(M.Categorical, { "logits" }, categorical_rules)

-- Logits that are -inf where an action is not legal.
function Categorical:_legal()
  return self.mask and peri.where(self.mask, self.logits, -math.huge) or self.logits
end

-- ids and their log-probabilities
local function draws(logits, lead)
  if #lead > 0 then logits = logits:expand(base.joined(lead, logits.shape)) end
  local ids, logp = logits:sample()
  return ids, logp
end

function Categorical:_draw(lead) return (draws(self:_legal(), lead)) end
function Categorical:_act() return draws(self:_legal(), {}) end

-- Logits and mask with the leading dims of x, and x with those of the batch.
function Categorical:_over(x)
  if base.has_sizes(x, self.batch, {}) then return self.logits, x, self.mask end
  local shape = base.broadcast(x.shape, self.batch)
  local wide = base.joined(shape, { self.logits:size(-1) })
  return self.logits:expand(wide), x:expand(shape), self.mask and self.mask:expand(wide)
end

function Categorical:_log_prob(x) return (peri.categorical_logprob(self:_over(x))) end

function Categorical:_evaluate(x)
  local logp, entropy = peri.categorical_logprob(self:_over(x))
  return logp, entropy.ndim == #self.batch and entropy or self:_entropy()
end

function Categorical:_entropy() return select(2, peri.categorical_logprob(self.logits, self:_mode(), self.mask)) end

function Categorical:_mode() return self:_legal():argmax(-1) end

function Categorical:_best() return self:_mode() end

-- sum p (log p - log q) over what p may choose; inf where q may not.
function Categorical:_kl(q)
  if self.logits:size(-1) ~= q.logits:size(-1) then return nil, "their classes differ" end
  local p, logq = self:_legal():log_softmax(-1), q:_legal():log_softmax(-1)
  local weight = p:exp()
  return peri.where(weight:gt(0), p:sub(logq), 0):mul(weight):sum(-1)
end

-- ---- MultiCategorical ----

local Multi = base.class("MultiCategorical", Categorical.why)

local size = options.integer(nil, "[1, inf)")

--- Several choices at once, independent of each other: the actions of a MultiDiscrete space.
--- @param logits perilune.Tensor  (..., sum of sizes): those of the first choice, then of the second, ...
--- @param sizes integer[]
--- @param opts table?
--- @return perilune.dist.Distribution  values (..., choices) i64
function M.MultiCategorical(logits, sizes, opts)
  local who = "dist.MultiCategorical"
  local o = options.fill(who, opts, categorical_rules)
  check_logits(who, logits)
  options.argument(who, "sizes", sizes, "table")
  local sum = 0
  for i, n in ipairs(sizes) do
    local problem = options.problem(("size %d"):format(i), n, size)
    if problem then options.raise(("%s: %s"):format(who, problem)) end
    sum = sum + n
  end
  if sum ~= logits:size(-1) or sum == 0 then
    options.raise(("%s: sizes add up to %d, logits have shape %s"):format(who, sum, options.shape(logits)))
  end
  if o.mask and (o.mask.ndim < 1 or o.mask:size(-1) ~= sum) then
    options.raise(("%s: mask has shape %s, expected (..., %d)"):format(who, options.shape(o.mask), sum))
  end
  local heads, masks = logits:split(sizes, -1), o.mask and o.mask:split(sizes, -1)
  for i, head in ipairs(heads) do
    local mask = masks and check_mask(who, masks[i], head, (", choice %d,"):format(i))
    heads[i] = categorical(head, mask)
  end
  return setmetatable({ heads = heads, batch = heads[1].batch, event = { #heads } }, Multi)
end
options.declare(M.MultiCategorical, { "logits", "sizes" }, categorical_rules)

local function stacked(self, fn)
  local list = {}
  for i, head in ipairs(self.heads) do list[i] = fn(head) end
  return peri.stack(list, -1)
end

local function added(self, fn)
  local sum
  for i, head in ipairs(self.heads) do
    local one = fn(head, i)
    sum = sum and sum:add(one) or one
  end
  return sum
end

function Multi:_draw(lead) return stacked(self, function(head) return head:_draw(lead) end) end
function Multi:_mode() return stacked(self, Categorical._mode) end
function Multi:_best() return self:_mode() end
function Multi:_entropy() return added(self, Categorical._entropy) end
function Multi:_log_prob(x) return added(self, function(head, i) return head:_log_prob(x:select(-1, i)) end) end

function Multi:_evaluate(x)
  local entropies = {}
  local logp = added(self, function(head, i)
    local one, entropy = head:_evaluate(x:select(-1, i))
    entropies[i] = entropy
    return one
  end)
  return logp, added(self, function(_, i) return entropies[i] end)
end

function Multi:_kl(q)
  for i, head in ipairs(self.heads) do
    if head.logits:size(-1) ~= q.heads[i].logits:size(-1) then return nil, "their sizes differ" end
  end
  return added(self, function(head, i) return head:_kl(q.heads[i]) end)
end

-- ---- Bernoulli ----

local Bernoulli = base.class("Bernoulli", { rsample = Categorical.why.rsample })

local bernoulli_rules = { event = base.event }

--- 1 with the probability sigmoid(logits), else 0; with event = 1 a row of them is one value, the action of a
--- MultiBinary space.
--- @param logits perilune.Tensor
--- @param opts table?
--- @return perilune.dist.Distribution  values in the dtype of logits
function M.Bernoulli(logits, opts)
  local o = options.fill("dist.Bernoulli", opts, bernoulli_rules)
  local shape, x = base.parameters("dist.Bernoulli", { logits = logits }, { "logits" })
  local batch, event = base.divided("dist.Bernoulli", shape, o.event)
  return setmetatable({ logits = x, batch = batch, event = event }, Bernoulli)
end
options.declare(M.Bernoulli, { "logits" }, bernoulli_rules)

function Bernoulli:_draw(lead) return self.logits:sigmoid():expand(base.joined(lead, self.logits.shape)):bernoulli() end

function Bernoulli:_log_prob(x)
  x = x:to(self.logits.dtype)
  if not x:mul(x:sub(1)):eq(0):all():item() then options.raise "dist.Bernoulli: a value is neither 0 nor 1" end
  return self:_sum(x:mul(self.logits):sub(self.logits:softplus()))
end

function Bernoulli:_entropy()
  return self:_sum(self.logits:softplus():sub(self.logits:mul(self.logits:sigmoid())))
end

function Bernoulli:_mean() return self.logits:sigmoid() end
function Bernoulli:_mode() return self.logits:gt(0):to(self.logits.dtype) end
function Bernoulli:_best() return self:_mode() end

function Bernoulli:_kl(q)
  local a, b = self.logits, q.logits
  return self:_sum(a:sigmoid():mul(a:sub(b)):sub(a:softplus()):add(b:softplus()))
end

return M
