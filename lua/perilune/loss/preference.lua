-- preference.lua - losses of preferences over log-probabilities of whole answers: pairs of which one is chosen (DPO and
-- its kin), and answers that are desirable or not (KTO). What stands at weight 0 changes nothing by a bit; divisors are
-- those of the whole update, so that micro-batches add up. Names and numbers are TRL 1.16's, but where a comment says
-- otherwise.
local peri = require "perilune"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local counted = masked.counted

-- ---- of pairs -----------------------------------------------------------------------------------

local function log_sigmoid(x) return x:neg():softplus():neg() end

-- log(1 - exp(x)) of x < 0. A probability of 1, which has no odds, counts as one under it, without a gradient.
local function log1mexp(x) return x:clamp({ max = -2 ^ -24 }):expm1():neg():log() end

-- -log sigmoid(x), with the labels of pairs wrong at a rate e (cDPO, Mitchell 2023).
local function logistic(x, e)
  local loss = x:neg():softplus()
  return e == 0 and loss or loss:mul(1 - e):add(x:softplus():mul(e))
end

-- Of a pair, to be made small. fn(c, o): c.chosen and c.rejected are the scores (B), c.delta their difference: of
-- losses with a reference log(policy / reference), of others log-probabilities; sums over the answer, or with average
-- its mean.
--   reference   it needs one
--   average     true or false: the default; "always"
--   smoothing   it knows label_smoothing
--   divergence  it knows f_divergence
--   nll         default weight of the chosen answer's own negative log-likelihood
local losses = {}

-- (2305.18290 eq. 7). Of means over the answer with average (TRL: sigmoid_norm).
losses.dpo = { reference = true, average = false, smoothing = true, divergence = true,
  fn = function (c, o) return logistic(c.delta:mul(o.beta), o.label_smoothing) end }

-- Without the bias that wrong labels bring (Chowdhury et al., 2403.00409 eq. 6).
losses.robust = { reference = true, average = false, smoothing = true, divergence = true, fn = function (c, o)
  local x, e = c.delta:mul(o.beta), o.label_smoothing
  return x:neg():softplus():mul(1 - e):sub(x:softplus():mul(e)):div(1 - 2 * e)
end }

-- (2310.12036 eq. 17); of means, as the authors meant it and TRL has it; sums with average = false.
losses.ipo = { reference = true, average = true, divergence = true,
  fn = function (c, o) return c.delta:sub(1 / (2 * o.beta)):square() end }

-- (SLiC, 2305.10425; RSO, 2309.06657).
losses.hinge = { reference = true, average = false, divergence = true,
  fn = function (c, o) return c.delta:mul(-o.beta):add(1):clamp(0) end }

-- The reverse KL of two-point distributions (2402.00856 eq. 16).
losses.exo = { reference = true, average = false, smoothing = "positive", divergence = true, fn = function (c, o)
  local x = c.delta:mul(o.beta)
  local e = o.label_smoothing
  local chosen = x:sigmoid():mul(log_sigmoid(x):sub(math.log(1 - e)))
  return chosen:add(x:neg():sigmoid():mul(log_sigmoid(x:neg()):sub(math.log(e))))
end }

-- (2402.05369, pairs).
losses.nca = { reference = true, average = false, fn = function (c, o)
  local good, bad = c.chosen:mul(o.beta), c.rejected:mul(o.beta)
  return good:neg():softplus():add(good:softplus():mul(0.5)):add(bad:softplus():mul(0.5))
end }

-- A classifier of right and wrong (2404.04656), without its running shift.
losses.bco = { reference = true, average = false,
  fn = function (c, o) return c.chosen:mul(-o.beta):softplus():add(c.rejected:mul(o.beta):softplus()) end }

-- (2405.00675 eq. 4.7, with hard labels).
losses.sppo = { reference = true, average = false, fn = function (c, o)
  return c.chosen:sub(0.5 / o.beta):square():add(c.rejected:add(0.5 / o.beta):square())
end }

-- Chosen up, rejected down: where the chosen are better than what the model says (2408.06266 eq. 7).
losses.apo_zero = { reference = true, average = false,
  fn = function (c, o) return c.chosen:mul(-o.beta):sigmoid():add(c.rejected:mul(o.beta):sigmoid()) end }

-- Both down, rejected further: where they are worse (2408.06266 eq. 8).
losses.apo_down = { reference = true, average = false,
  fn = function (c, o) return c.chosen:mul(o.beta):sigmoid():add(c.delta:mul(-o.beta):sigmoid()) end }

-- (2406.08414 eq. 5, tau 0.05).
losses.discopop = { reference = true, average = false, divergence = true, fn = function (c, o)
  local x = c.delta:mul(o.beta)
  local mix = x:div(0.05):sigmoid()
  return x:neg():softplus():mul(mix:neg():add(1)):add(x:neg():clamp({ max = masked.log_ratio_max }):exp():mul(mix))
end }

-- (2401.08417 eq. 3, with the likelihood of the chosen).
losses.cpo = { average = false, smoothing = true, nll = 1, fn = losses.dpo.fn }

-- (2405.14734 eq. 6): a margin gamma between means.
losses.simpo = { average = true, smoothing = true, gamma = 0.5,
  fn = function (c, o) return logistic(c.delta:mul(o.beta):sub(o.gamma), o.label_smoothing) end }

-- (2403.07691 eq. 6 and 7): the odds of the mean; of sums they would be those of probabilities that are all but 0.
losses.orpo = { average = "always", nll = 1, fn = function (c, o)
  local function odds(x) return x:sub(log1mexp(x)) end
  return odds(c.chosen):sub(odds(c.rejected)):neg():softplus():mul(o.beta)
end }

--- Names of the losses of pairs.
M.preference_names = options.names(losses)

-- What a log-ratio scores: f'(policy / reference) of an f-divergence (2309.16240). Exponents end at 80, short of
-- infinity.
local divergences = {}
function divergences.reverse_kl(d) return d end
function divergences.forward_kl(d) return d:neg():clamp({ max = 80 }):exp():neg():add(1) end
function divergences.js(d) return log_sigmoid(d):add(math.log(2)) end
function divergences.alpha(d, o)
  if math.abs(o.alpha - 1) < 1e-6 then return d end
  return d:mul(o.alpha - 1):clamp({ max = 80 }):expm1():div(o.alpha - 1)
end

--- Options that are settings of a run: what a stepper takes and hands on.
M.preference_rules = {
  loss = options.choice("dpo", M.preference_names, "see the table of losses"),
  beta = options.number(0.1, "(0, inf)", "how much a log-ratio counts; in ipo and sppo 1 over the margin that is "
    .. "asked for"),
  label_smoothing = options.number(0, "[0, 0.5)", "share of the pairs whose labels are taken to be wrong (cDPO)"),
  gamma = options.number(options.none, "[0, inf)", "simpo: margin between the scores, beta times the means; default "
    .. "0.5"),
  average = options.boolean(options.none, "means over the answer in place of sums; default: true of ipo, simpo and "
    .. "orpo"),
  nll = options.number(options.none, "[0, inf)", "weight of the chosen answers' mean negative log-likelihood a token; "
    .. "default: 1 of orpo and cpo, else 0"),
  reference_free = options.boolean(false, "the reference counts as uniform: log-ratios are log-probabilities"),
  f_divergence = options.choice("reverse_kl", options.names(divergences), "the penalty that the scores stand for"),
  alpha = options.number(0.5, "(-inf, inf)", "of f_divergence = \"alpha\""),
}

local rules = {
  weight = options.value(options.none, "tensor", "(B) 0 or 1: which pairs count; default: all"),
  pairs = options.number(options.none, "(0, inf)", "divisor of the whole update; default: pairs that count"),
  tokens = options.number(options.none, "(0, inf)", "of the chosen answers of the whole update, for nll; default: of "
    .. "this call"),
  chosen_length = options.value(options.none, "tensor", "(B) tokens of each chosen answer, for means and for nll"),
  rejected_length = options.value(options.none, "tensor", "(B) tokens of each rejected answer, for means"),
}
for name, rule in pairs(M.preference_rules) do rules[name] = rule end

--- What a run's settings mean together: the defaults of its loss, and an error for what it does not know.
--- @param who string
--- @param o table  options that were filled in
--- @return table entry  reference: it needs one; average, nll, gamma: as they are to be used
function M.preference_entry(who, o)
  local entry = losses[o.loss]
  local function refuse(...) options.raise(("%s: loss %q "):format(who, o.loss) .. string.format(...)) end
  if o.label_smoothing > 0 and not entry.smoothing then refuse("knows no label_smoothing") end
  if o.label_smoothing == 0 and entry.smoothing == "positive" then refuse("needs a label_smoothing above 0") end
  if o.gamma and not entry.gamma then refuse("knows no gamma") end
  if o.f_divergence ~= "reverse_kl" and not entry.divergence then refuse("knows no f_divergence") end
  if o.average == false and entry.average == "always" then refuse("is of means: average cannot be false") end
  if o.reference_free and not entry.reference then refuse("has no reference to leave out") end
  local average = o.average
  if average == nil then average = entry.average ~= false end
  return { fn = entry.fn, reference = entry.reference and not o.reference_free or false, average = average,
           nll = o.nll or entry.nll or 0, gamma = o.gamma or entry.gamma }
end

local function want_rows(who, name, t, like)
  options.argument(who, name, t, "tensor")
  if t.ndim == 1 and t:size(1) == like:size(1) then return end
  options.raise(("%s: %s has shape %s, expected (%d)"):format(who, name, options.shape(t), like:size(1)))
end

local function check(who, list, like)
  options.argument(who, list[1][1], like, "tensor")
  if like.ndim ~= 1 then
    options.raise(("%s: %s has shape %s, expected (B): the sum over an answer, see loss.answers"):format(who,
      list[1][1], options.shape(like)))
  end
  for _, pair in ipairs(list) do want_rows(who, pair[1], pair[2], like) end
end

--- Loss of pairs of answers, of which one is chosen: DPO and its kin by name. With beta, log-ratios r = log(policy /
--- reference) of whole answers and d = r_chosen - r_rejected: dpo -log sigmoid(beta d) (with label_smoothing cDPO),
--- robust, ipo (d - 1 / (2 beta))^2 of means over the tokens, hinge max(0, 1 - beta d), exo, nca, bco, sppo, apo_zero,
--- apo_down, discopop; without a reference cpo, simpo and orpo. Each cites its paper in loss/preference.lua.
--- @param chosen perilune.Tensor  (B) log-probabilities of the chosen answers, summed over their tokens: see
--- loss.answers
--- @param rejected perilune.Tensor  (B)
--- @param ref_chosen perilune.Tensor?  (B) of the reference; nil, or left out before options, of a loss that has none
--- @param ref_rejected perilune.Tensor?  (B)
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table rewards  without gradients, 0 at weight 0: chosen, rejected (B), beta times the log-ratio, of losses
--- without a reference beta times the score; margin (B) their difference; correct (B) 1 where it is positive
function M.preference(chosen, rejected, ref_chosen, ref_rejected, opts)
  local who = "loss.preference"
  if opts == nil and type(ref_chosen) == "table" then ref_chosen, opts = nil, ref_chosen end
  local o = options.fill(who, opts, rules)
  local entry = M.preference_entry(who, o)
  check(who, { { "chosen", chosen }, { "rejected", rejected } }, chosen)
  if entry.reference ~= (ref_chosen ~= nil) or entry.reference ~= (ref_rejected ~= nil) then
    options.raise(entry.reference
      and ("%s: loss %q needs ref_chosen and ref_rejected; reference_free = true does without"):format(who, o.loss)
      or ("%s: loss %q%s takes no reference"):format(who, o.loss, o.reference_free and " with reference_free" or ""))
  end
  local weight = o.weight or peri.ones_like(chosen:detach())
  want_rows(who, "weight", weight, chosen)
  if weight.dtype ~= chosen.dtype then weight = weight:to(chosen.dtype) end
  local function length(name)
    if o[name] == nil then options.raise(("%s: loss %q needs %s"):format(who, o.loss, name)) end
    want_rows(who, name, o[name], chosen)
    return o[name]:to(chosen.dtype)
  end
  local own = counted(chosen, weight)
  local c, raw = {}, {}
  for name, pair in pairs { chosen = { own, ref_chosen }, rejected = { counted(rejected, weight), ref_rejected } } do
    local score = pair[1]
    if entry.reference then
      want_rows(who, "ref_" .. name, pair[2], chosen)
      score = score:sub(counted(pair[2], weight))
    end
    raw[name] = score:detach()
    score = divergences[o.f_divergence](score, o)
    if entry.average then
      local n = length(name .. "_length"):clamp(1)
      score = score:div(n)
      if not losses[o.loss].reference then raw[name] = score:detach() end
    end
    c[name] = counted(score, weight)
  end
  c.delta = c.chosen:sub(c.rejected)
  o.gamma = entry.gamma
  local count = o.pairs or math.max(weight:ne(0):sum():item(), 1)
  local loss = counted(entry.fn(c, o), weight):mul(weight):sum():div(count)
  if entry.nll > 0 then
    local tokens = o.tokens or math.max(counted(length "chosen_length", weight):sum():item(), 1)
    loss = loss:add(own:mul(weight):sum():mul(-entry.nll / tokens))
  end
  local good, bad = raw.chosen:mul(o.beta), raw.rejected:mul(o.beta)
  return loss, { chosen = counted(good, weight), rejected = counted(bad, weight),
                 margin = counted(good:sub(bad), weight), correct = good:gt(bad):to(chosen.dtype):mul(weight:ne(0)) }
end
options.declare(M.preference, { "chosen", "rejected", "ref_chosen", "ref_rejected" }, rules)

-- ---- of single answers --------------------------------------------------------------------------

--- Options of loss.kto that are settings of a run.
M.kto_rules = {
  beta = M.preference_rules.beta,
  desirable_weight = options.number(1, "[0, inf)", "of the desirable answers"),
  undesirable_weight = options.number(1, "[0, inf)", "of the others; (desirable weight times their number) over the "
    .. "same of the others is best within 1 and 4/3 (section 4.2)"),
}

local kto_rules = {
  z = options.value(0, "number or tensor", "reference point, of loss.kto_point for the whole update; 0: APO-zero"),
  weight = options.value(options.none, "tensor", "(B) 0 or 1: which answers count; default: all"),
  answers = options.number(options.none, "(0, inf)", "divisor of the whole update; default: answers that count"),
}
for name, rule in pairs(M.kto_rules) do kto_rules[name] = rule end

--- KTO's reference point: z = max(0, mean of log(policy / reference)) over answers that belong to other prompts, an
--- estimate of the KL divergence (2402.01306 section 4.1). It has no gradient.
--- @param logp perilune.Tensor  (B) log-probabilities of prompts with answers of others, of the policy
--- @param ref perilune.Tensor  (B) of the reference
--- @param weight perilune.Tensor?  (B) 0 or 1: which count
--- @return perilune.Tensor  0-dim
function M.kto_point(logp, ref, weight)
  check("loss.kto_point", { { "logp", logp }, { "ref", ref } }, logp)
  local d = logp:detach():sub(ref:detach())
  if not weight then return d:mean():clamp(0) end
  want_rows("loss.kto_point", "weight", weight, logp)
  return counted(d, weight):mul(weight):sum():div(math.max(weight:sum():item(), 1)):clamp(0)
end

--- KTO (2402.01306 eq. 8): w (1 - sigmoid(beta (r - z))) of desirable answers, w (1 - sigmoid(beta (z - r))) of the
--- others, r = log(policy / reference) of the answer, w the weight of its class. With z = 0 it is APO-zero of unpaired
--- answers.
--- @param logp perilune.Tensor  (B) log-probabilities of the answers, summed over their tokens
--- @param ref perilune.Tensor  (B) of the reference
--- @param label perilune.Tensor  (B) bool, or 0 and 1: true where the answer is desirable
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return perilune.Tensor rewards  (B) beta times r, without a gradient; 0 at weight 0
function M.kto(logp, ref, label, opts)
  local who = "loss.kto"
  local o = options.fill(who, opts, kto_rules)
  check(who, { { "logp", logp }, { "ref", ref }, { "label", label } }, logp)
  local weight = o.weight or peri.ones_like(logp:detach())
  want_rows(who, "weight", weight, logp)
  if weight.dtype ~= logp.dtype then weight = weight:to(logp.dtype) end
  local z = peri.is_tensor(o.z) and o.z:detach() or peri.full({}, o.z, logp.dtype)
  if z:numel() ~= 1 or z:isnan():item() or z:item() < 0 then
    options.raise(("%s: z is %s, expected a number in [0, inf)"):format(who, z:numel() == 1 and tostring(z:item())
      or "of shape " .. options.shape(z)))
  end
  local good = counted(label, weight):ne(0)
  local r = counted(logp, weight):sub(counted(ref, weight))
  local distance = r:sub(z):mul(-o.beta)
  local loss = peri.where(good, distance, distance:neg()):sigmoid()
  local class = peri.where(good, peri.full_like(weight, o.desirable_weight),
    peri.full_like(weight, o.undesirable_weight))
  local count = o.answers or math.max(weight:ne(0):sum():item(), 1)
  return loss:mul(class):mul(weight):sum():div(count), counted(r:detach():mul(o.beta), weight)
end
options.declare(M.kto, { "logp", "ref", "label" }, kto_rules)

-- ---- answers ------------------------------------------------------------------------------------

--- Log-probabilities of whole answers and their lengths out of those of tokens; what stands at weight 0 does not count,
--- whatever it is.
--- @param logp perilune.Tensor  (B, N) of tokens
--- @param weight perilune.Tensor  (B, N) 0 or 1
--- @return perilune.Tensor sum  (B)
--- @return perilune.Tensor length  (B) tokens that count
function M.answers(logp, weight)
  options.argument("loss.answers", "logp", logp, "tensor")
  options.argument("loss.answers", "weight", weight, "tensor")
  masked.want_shape("loss.answers", "weight", weight, logp)
  if weight.dtype ~= logp.dtype then weight = weight:to(logp.dtype) end
  return counted(logp, weight):mul(weight):sum(2), weight:sum(2)
end

return M
