-- reward_model.lua - losses of scorers: rewards from preferences, of whole answers, and of the steps of an answer; and
-- one number out of the scores of steps. What stands at weight 0 changes nothing by a bit; divisors are those of the
-- whole update.
local peri = require "perilune"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local counted = masked.counted

local function want_shape(who, name, t, like, first)
  options.argument(who, name, t, "tensor")
  if t.shape ~= like.shape then
    options.raise(("%s: %s has shape %s, %s has %s"):format(who, name, options.shape(t), first, options.shape(like)))
  end
end

local function weight_of(who, weight, like, first)
  if weight == nil then return peri.ones_like(like:detach()) end
  want_shape(who, "weight", weight, like, first)
  return weight.dtype == like.dtype and weight or weight:to(like.dtype)
end

-- ---- preferences --------------------------------------------------------------------------------

--- Options of loss.bradley_terry that are settings of a run.
M.bradley_terry_rules = {
  center = options.number(0, "[0, inf)", "weight of (chosen + rejected)^2, which holds rewards around 0 (2312.09244)"),
}

local bradley_rules = {
  margin = options.value(0, "number or tensor", "(B) or one for all: by how much the chosen is to be better (Llama 2)"),
  weight = options.value(options.none, "tensor", "(B) 0 or 1: which pairs count; default: all"),
  pairs = options.number(options.none, "(0, inf)", "divisor of the whole update; default: pairs that count"),
}
for name, rule in pairs(M.bradley_terry_rules) do bradley_rules[name] = rule end

--- The Bradley-Terry loss of a reward model: the mean of -log sigmoid(chosen - rejected - margin) (2203.02155 eq. 1;
--- with the margin 2307.09288 eq. 2), and center times the mean of (chosen + rejected)^2.
--- @param chosen perilune.Tensor  (B) rewards of the chosen answers
--- @param rejected perilune.Tensor  (B)
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  (B), without gradients, 0 at weight 0: margin, chosen - rejected; correct, 1 where it is
--- positive
function M.bradley_terry(chosen, rejected, opts)
  local who = "loss.bradley_terry"
  local o = options.fill(who, opts, bradley_rules)
  options.argument(who, "chosen", chosen, "tensor")
  want_shape(who, "rejected", rejected, chosen, "chosen")
  local weight, margin = weight_of(who, o.weight, chosen, "chosen"), o.margin
  local a, b = counted(chosen, weight), counted(rejected, weight)
  if peri.is_tensor(margin) then
    want_shape(who, "margin", margin, chosen, "chosen")
    margin = counted(margin:to(chosen.dtype), weight)
  end
  local d = a:sub(b)
  local each = d:sub(margin):neg():softplus()
  if o.center > 0 then each = each:add(a:add(b):square():mul(o.center)) end
  local loss = counted(each, weight):mul(weight):sum():div(o.pairs or math.max(weight:ne(0):sum():item(), 1))
  d = d:detach()
  return loss, { margin = d, correct = d:gt(0):to(chosen.dtype):mul(weight:ne(0)) }
end
options.declare(M.bradley_terry, { "chosen", "rejected" }, bradley_rules)

-- ---- right and wrong ----------------------------------------------------------------------------

--- Options of loss.outcome that are settings of a run.
M.outcome_rules = {
  level = options.choice("answer", { "answer", "token", "last" }, "what is judged: the mean of an answer's scores; "
    .. "each of its tokens (2110.14168); its last one"),
}

local outcome_rules = {
  answers = options.number(options.none, "(0, inf)", "divisor of the whole update of level answer and last; default: "
    .. "B"),
  tokens = options.number(options.none, "(0, inf)", "divisor of the whole update of level token; default: those of "
    .. "this call"),
  level = M.outcome_rules.level,
}

-- Binary cross-entropy, 0 where the weight is.
local function entropy_of(scores, label, weight)
  return counted(scores:bce_with_logits(counted(label, weight), nil, "none"), weight):mul(weight)
end

-- 1 at the last place of each row that counts. -- (B, N)
local function last_of(weight)
  local place = peri.arange(1, weight:size(2) + 1):mul(weight:ne(0)) -- (B, N)
  return place:eq(place:max(2):unsqueeze(2)):logical_and(weight:ne(0)):to(weight.dtype)
end

local function one_label(who, label, scores)
  options.argument(who, "label", label, "tensor")
  if label.ndim ~= 1 or label:size(1) ~= scores:size(1) then
    options.raise(("%s: label has shape %s, expected (%d)"):format(who, options.shape(label), scores:size(1)))
  end
  return label:to(scores.dtype)
end

local function want_rows(who, scores)
  options.argument(who, "scores", scores, "tensor")
  if scores.ndim == 2 then return end
  options.raise(("%s: scores has shape %s, expected (B, N)"):format(who, options.shape(scores)))
end

--- The loss of an outcome reward model: binary cross-entropy between sigmoid of an answer's score and whether it is
--- right.
--- @param scores perilune.Tensor  (B, N) of the answer's tokens, log odds: of models.scorer
--- @param label perilune.Tensor  (B) 1 where the answer is right, else 0
--- @param weight perilune.Tensor  (B, N) 1 at the answer's tokens
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return perilune.Tensor score  (B) log odds of each answer, without a gradient
function M.outcome(scores, label, weight, opts)
  local who = "loss.outcome"
  local o = options.fill(who, opts, outcome_rules)
  want_rows(who, scores)
  label, weight = one_label(who, label, scores), weight_of(who, weight, scores, "scores")
  local own = counted(scores, weight)
  local at = o.level == "last" and last_of(weight) or weight
  local mean = own:mul(at):sum(2):div(at:sum(2):clamp(1)) -- (B)
  if o.level == "token" then
    local each = entropy_of(own, label:unsqueeze(2):expand(scores.shape), weight)
    return each:sum():div(o.tokens or math.max(weight:sum():item(), 1)), mean:detach()
  end
  local known = weight:sum(2):gt(0):to(scores.dtype) -- an answer without tokens counts nothing
  return entropy_of(mean, label, known):sum():div(o.answers or scores:size(1)), mean:detach()
end
options.declare(M.outcome, { "scores", "label", "weight" }, outcome_rules)

local process_rules = {
  steps = options.number(options.none, "(0, inf)", "divisor of the whole update; default: steps of this call"),
}

--- The loss of a process reward model: binary cross-entropy at the end of each step (2305.20050; 2211.14275).
--- @param scores perilune.Tensor  (B, N) log odds at every token: of models.scorer
--- @param label perilune.Tensor  (B, N) 1 where the step that ends there is right, 0 where it is wrong, or a share
--- between
--- @param weight perilune.Tensor  (B, N) 1 at the last token of each step, else 0
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim, of the same divisor: accuracy
function M.process(scores, label, weight, opts)
  local who = "loss.process"
  local o = options.fill(who, opts, process_rules)
  want_rows(who, scores)
  want_shape(who, "label", label, scores, "scores")
  weight = weight_of(who, weight, scores, "scores")
  label = counted(label:to(scores.dtype), weight)
  local own = counted(scores, weight)
  local steps = o.steps or math.max(weight:sum():item(), 1)
  local right = own:detach():gt(0):eq(label:gt(0.5)):to(scores.dtype):mul(weight)
  return entropy_of(own, label, weight):sum():div(steps), { accuracy = right:sum():div(steps) }
end
options.declare(M.process, { "scores", "label", "weight" }, process_rules)

--- Probabilities that the steps of each answer are right, in order.
--- @param scores perilune.Tensor  (B, N) log odds, of models.scorer
--- @param weight perilune.Tensor  (B, N) 1 at the last token of each step, else 0
--- @return number[][]  a list for each row
function M.step_scores(scores, weight)
  want_rows("loss.step_scores", scores)
  weight = weight_of("loss.step_scores", weight, scores, "scores")
  local p, at, out = scores:detach():sigmoid():tolist(), weight:tolist(), {}
  for b, row in ipairs(p) do
    out[b] = {}
    for i, value in ipairs(row) do
      if at[b][i] ~= 0 then table.insert(out[b], value) end
    end
  end
  return out
end

-- ---- one number out of steps --------------------------------------------------------------------

local ways = {}

function ways.min(list)
  local least = list[1]
  for _, v in ipairs(list) do least = math.min(least, v) end
  return least
end

function ways.last(list) return list[#list] end

function ways.product(list)
  local p = 1
  for _, v in ipairs(list) do p = p * v end
  return p
end

function ways.mean(list)
  local sum = 0
  for _, v in ipairs(list) do sum = sum + v end
  return sum / #list
end

--- Names of the ways to make one number of the scores of steps.
M.aggregations = options.names(ways)
local way = options.choice("min", M.aggregations)

--- One number out of the scores of an answer's steps: their min (2305.20050 found it as good as the product), product,
--- last or mean. NaN among them stays NaN.
--- @param list number[]  probabilities that each step is right; at least one
--- @param how string?  "min", "product", "last" or "mean"
--- @return number
function M.aggregate(list, how)
  options.argument("loss.aggregate", "list", list, "table")
  how = how == nil and "min" or how
  local problem = options.problem("how", how, way)
  if problem then options.raise("loss.aggregate: " .. problem) end
  if #list == 0 then options.raise "loss.aggregate: there are no steps" end
  for i, v in ipairs(list) do
    if type(v) ~= "number" then
      options.raise(("loss.aggregate: step %d is a %s, expected a number"):format(i, type(v)))
    end
    if v ~= v then return v end
  end
  return ways[how](list)
end

return M
