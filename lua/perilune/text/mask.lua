-- mask.lua - tokens that a model is to guess: BERT's task (Devlin et al., 1810.04805, section 3.1).
local peri = require "perilune"
local batches = require "perilune.text.batch"
local options = require "perilune.options"

local M = {}

local rules = {
  mask = options.integer(options.required, "[0, inf)", "id of the token that stands for what is to be guessed"),
  vocab = options.integer(options.none, "[1, inf)", "how many ids random tokens are drawn from; needed with random"),
  rate = options.number(0.15, "(0, 1]", "share of the tokens that are to be guessed, each by itself"),
  random = options.number(0.1, "[0, 1]", "of them, the share in whose place a random token stands"),
  keep = options.number(0.1, "[0, 1]", "of them, the share that stays as it is"),
  special = options.value({}, "table", "ids that are never guessed: of ends, separators, padding"),
}

--- Ids with some tokens hidden, and what they were: masked-language modelling. Of the tokens that are to be guessed,
--- drawn by the generator of random ops, some are replaced by the mask, some by a random token, and some stay. At least
--- one is to be guessed; padding of a batch never is.
---
---     local hidden, labels = text.mask_tokens(ids, { mask = 4, vocab = 30, special = { 0, 1, 2 } })
---     local loss = model:logits(model:forward(hidden)):flatten(1, 2):cross_entropy(labels:flatten())
---
--- @param ids perilune.Tensor|perilune.Batch  (B, T) i64
--- @param opts table
--- @return perilune.Tensor ids  (B, T) i64
--- @return perilune.Tensor labels  (B, T) i64, -100 where nothing is to be guessed
function M.mask_tokens(ids, opts)
  local who = "text.mask_tokens"
  local o = options.fill(who, opts, rules)
  local counts = batches.is(ids) and ids.mask or nil
  if counts then ids = ids.ids end
  options.argument(who, "ids", ids, "tensor")
  if ids.ndim ~= 2 or ids.dtype ~= "i64" then
    options.raise(("%s: ids is %s of shape %s, expected i64 (B, T)"):format(who, ids.dtype, options.shape(ids)))
  end
  if o.random + o.keep > 1 then
    options.raise(("%s: random %g and keep %g are more than 1 together"):format(who, o.random, o.keep))
  end
  if o.random > 0 and not o.vocab then
    options.raise(("%s: random is %g and there is no vocab to draw from"):format(who, o.random))
  end
  local _ <close> = peri.no_grad()
  local never = counts and counts:logical_not() or peri.zeros(ids.shape, "bool")
  for _, id in ipairs(o.special) do never = never:logical_or(ids:eq(id)) end
  local draw = peri.rand(ids.shape):masked_fill(never, 2)
  local least = draw:min():item()
  if least > 1 then options.raise(who .. ": there is no token that could be guessed") end
  local chosen = draw:lt(o.rate):logical_or(draw:eq(least))
  local fate = peri.rand(ids.shape)
  local hidden = chosen:logical_and(fate:lt(1 - o.random - o.keep))
  local changed = ids:masked_fill(hidden, o.mask)
  if o.random > 0 then
    local noise = chosen:logical_and(fate:ge(1 - o.random - o.keep)):logical_and(fate:lt(1 - o.keep))
    changed = noise:where(peri.randint(0, o.vocab, ids.shape), changed)
  end
  return changed, ids:masked_fill(chosen:logical_not(), -100)
end
options.declare(M.mask_tokens, { "ids" }, rules)

return M
