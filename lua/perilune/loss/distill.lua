-- distill.lua - losses of distillation: divergences of the student's and the teacher's distributions over the whole
-- vocabulary, or over the teacher's top k and the rest; and what remains when only the sampled tokens are known. Of
-- models the logits of a few positions are there at a time. What stands at weight 0 changes nothing by a bit.
local peri = require "perilune"
local kl = require "perilune.loss.kl"
local masked = require "perilune.loss.masked"
local options = require "perilune.options"

local M = {}

local between, counted = kl.between, masked.counted

local CHUNK <const> = 64 -- positions whose logits are held at once

-- ---- divergences of log-probabilities (n, C) -----------------------------------------------------

local divergences = {} -- fn(student, teacher, beta) -> (n)

-- KL(teacher || student): the student covers what the teacher does (1503.02531).
function divergences.forward(s, t) return between(t, s) end

-- KL(student || teacher): it does what the teacher does, not all of it (MiniLLM, 2306.08543).
function divergences.reverse(s, t) return between(s, t) end

-- beta KL(teacher || m) + (1 - beta) KL(student || m), m = beta teacher + (1 - beta) student (GKD, 2306.13649 eq. 1).
function divergences.jsd(s, t, beta)
  local neither = s:eq(-math.huge):logical_and(t:eq(-math.huge))
  local mixed = peri.stack({ s:masked_fill(neither, 0):add(math.log(1 - beta)),
    t:masked_fill(neither, 0):add(math.log(beta)) }, 1):logsumexp(1)
  return between(t, mixed):mul(beta):add(between(s, mixed):mul(1 - beta))
end

-- The log-probabilities of some tokens and of all others together. -- (n, K + 1)
local function with_rest(picked)
  local mass = picked:logsumexp(-1, true):clamp { max = -2 ^ -24 }
  return peri.cat({ picked, mass:expm1():neg():log() }, 2)
end

-- ---- who says what -------------------------------------------------------------------------------

-- A tensor of logits; { model =, hidden = }, whose logits are made here; { ids =, logprobs =, temperature = }, the top
-- k.
local function source(who, name, given, may_be_topk)
  if peri.is_tensor(given) then return { rows = given, shape = given.shape, direct = true } end
  local function has(key) return type(given) == "table" and rawget(given, key) ~= nil end
  if has "model" and peri.is_tensor(given.hidden) then
    local model = given.model
    return { rows = given.hidden, shape = given.hidden.shape, logits = function (h) return model:logits(h) end }
  elseif may_be_topk and has "ids" and peri.is_tensor(given.logprobs) then
    if options.shape(given.ids) ~= options.shape(given.logprobs) then
      options.raise(("%s: the teacher's ids have shape %s, its logprobs %s"):format(who, options.shape(given.ids),
        options.shape(given.logprobs)))
    end
    return { rows = given.logprobs, ids = given.ids, shape = given.logprobs.shape,
             temperature = given.temperature or 1 }
  end
  options.raise(("%s: %s is %s, expected logits (..., V), { model =, hidden = }%s"):format(who, name,
    type(given) == "table" and "a table of neither" or "a " .. type(given),
    may_be_topk and " or { ids =, logprobs =, temperature = }" or ""))
end

--- Options of loss.distill that are settings of a run.
M.distill_rules = {
  divergence = options.choice("forward", options.names(divergences), "KL(teacher || student), KL(student || teacher), "
    .. "or between them: the generalised Jensen-Shannon divergence"),
  beta = options.number(options.none, "(0, 1)", "of jsd: near 0 it is as forward, near 1 as reverse; default: 0.5"),
  temperature = options.number(1, "(0, inf)", "both distributions are softened by it"),
  squared = options.boolean(true, "the divergence times temperature^2, which keeps gradients at their size "
    .. "(1503.02531)"),
  hard = options.number(0, "[0, 1]", "share of the cross-entropy with the labels; the divergence has the rest"),
}

local rules = {
  labels = options.value(options.none, "tensor", "(...) i64, for hard; -100: only the divergence counts there"),
  tokens = options.number(options.none, "(0, inf)", "divisor of the whole update; default: those that count"),
}
for name, rule in pairs(M.distill_rules) do rules[name] = rule end

-- Sums over some rows: of the divergence and of the cross-entropy.
local function sums(o, student, teacher, hidden, other, weight, labels, ids)
  local out = weight:eq(0):unsqueeze(2)
  local x = hidden:masked_fill(out, 0)
  local y = other:masked_fill(out, ids and -1 or 0)
  if student.logits then x = student.logits(x) end
  if teacher.logits then y = teacher.logits(y) end
  if x.dtype ~= weight.dtype then weight = weight:to(x.dtype) end
  local soft = peri.zeros({}, x.dtype)
  if o.hard < 1 then
    local s = x:div(o.temperature):log_softmax(-1)
    local t = y:detach()
    if ids then s, t = with_rest(s:gather(ids, 2)), with_rest(t:to(s.dtype))
    else t = t:to(s.dtype):div(o.temperature):log_softmax(-1) end
    soft = counted(divergences[o.divergence](s, t, o.beta or 0.5), weight):mul(weight):sum()
  end
  if o.hard == 0 then return soft, peri.zeros({}, x.dtype) end
  local known = labels:masked_fill(weight:eq(0), -100)
  return soft, x:cross_entropy(known, { reduction = "none" }):mul(weight):sum()
end

local function flat(t, width) return t:reshape(width and { -1, t:size(-1) } or { -1 }) end

--- Settings that only make sense together.
--- @param who string
--- @param o table  of distill_rules, filled in
function M.distill_check(who, o)
  if o.beta and o.divergence ~= "jsd" then
    options.raise(("%s: beta is %g, and only divergence = \"jsd\" has one, not %q"):format(who, o.beta, o.divergence))
  end
  if o.beta and o.hard == 1 then
    options.raise(("%s: beta is %g, and hard = 1 leaves no divergence"):format(who, o.beta))
  end
end

--- Distillation: the divergence of a student's distributions from a teacher's, summed over the tokens that count and
--- divided by their number. (1 - hard) temperature^2 D(teacher, student; temperature) + hard CE(student, labels).
--- Student and teacher are logits (..., V), or { model =, hidden = } with hidden states (..., D) as model:forward
--- returned them: then the logits of 64 positions are there at a time, forward and backward. A teacher may be its top
--- k, { ids =, logprobs =, temperature = } (..., K): then all other tokens count as one. The teacher gets no gradient.
--- @param student perilune.Tensor|table
--- @param teacher perilune.Tensor|table
--- @param weight perilune.Tensor?  (...) 0 or 1: which tokens count; default: all; may be left out before options
--- @param opts table?
--- @return perilune.Tensor loss  0-dim
--- @return table stats  0-dim, without gradients, of the same divisor: divergence (not squared), cross_entropy (with
--- hard)
function M.distill(student, teacher, weight, opts)
  local who = "loss.distill"
  if opts == nil and type(weight) == "table" then weight, opts = nil, weight end
  local o = options.fill(who, opts, rules)
  M.distill_check(who, o)
  local a, b = source(who, "student", student), source(who, "teacher", teacher, true)
  local place = table.move(a.shape, 1, #a.shape - 1, 1, {})
  local function want_place(name, shape)
    if options.shape(shape) ~= options.shape(place) then
      options.raise(("%s: %s has shape %s, expected %s"):format(who, name, options.shape(shape), options.shape(place)))
    end
  end
  want_place("the teacher, but for the last dim,", table.move(b.shape, 1, #b.shape - 1, 1, {}))
  if a.direct and b.direct and a.shape[#a.shape] ~= b.shape[#b.shape] then
    options.raise(("%s: the student has %d logits, the teacher %d: they need one vocabulary"):format(who,
      a.shape[#a.shape], b.shape[#b.shape]))
  end
  if b.ids and b.temperature ~= o.temperature then
    options.raise(("%s: temperature is %g, the teacher's top k are of %g: what is not among them is not known at "
      .. "another")
      :format(who, o.temperature, b.temperature))
  end
  if o.hard > 0 and not o.labels then options.raise(("%s: hard is %g and there are no labels"):format(who, o.hard)) end
  if o.labels and (opts or {}).hard == nil then
    options.raise(who .. ": there are labels and no hard, their share: give hard, or 0 for none")
  end
  if o.labels then want_place("labels", o.labels.shape) end
  if weight then want_place("weight", weight.shape) else weight = peri.ones(place) end
  if weight.dtype ~= "f32" and weight.dtype ~= "f64" then weight = weight:to "f32" end
  local count = o.tokens or math.max(weight:sum():item(), 1)
  local rows = { flat(a.rows, true), flat(b.rows, true), flat(weight), flat(o.labels or peri.zeros(place, "i64")),
    b.ids and flat(b.ids, true) or nil }
  local soft, hard
  if a.direct and b.direct then soft, hard = sums(o, a, b, table.unpack(rows))
  else
    local run = peri.grad_enabled() and peri.checkpoint or function (fn, ...) return fn(...) end
    local function part(...) return sums(o, a, b, ...) end
    for at = 1, rows[1]:size(1), CHUNK do
      local n, some = math.min(CHUNK, rows[1]:size(1) - at + 1), {}
      for i, t in ipairs(rows) do some[i] = t:narrow(1, at, n) end
      local one, two = run(part, table.unpack(some))
      soft, hard = soft and soft:add(one) or one, hard and hard:add(two) or two
    end
  end
  local scale = o.squared and o.temperature ^ 2 or 1
  local loss = soft:mul((1 - o.hard) * scale / count)
  if o.hard > 0 then loss = loss:add(hard:mul(o.hard / count)) end
  return loss, { divergence = soft:detach():div(count), cross_entropy = o.hard > 0 and hard:detach():div(count) or nil }
end
options.declare(M.distill, { "student", "teacher", "weight" }, rules)

-- ---- of sampled tokens alone ---------------------------------------------------------------------

local function pair(who, student, teacher, weight)
  options.argument(who, "student", student, "tensor")
  options.argument(who, "teacher", teacher, "tensor")
  masked.want_shape(who, "teacher", teacher, student)
  if weight == nil then return student, teacher end
  masked.want_shape(who, "weight", weight, student)
  return counted(student, weight), counted(teacher, weight)
end

--- The teacher as an advantage: log teacher - log student of each token that the student sampled, without a gradient,
--- for loss.policy. Its mean gradient is that of the reverse KL, at a larger variance than loss.distill over the whole
--- vocabulary. Log-ratios count up to 20 either way.
--- @param student perilune.Tensor  (B, N) log-probabilities of the sampled tokens, of the student
--- @param teacher perilune.Tensor  (B, N) of the teacher
--- @param weight perilune.Tensor?  (B, N) 0 or 1
--- @return perilune.Tensor  (B, N), 0 at weight 0
function M.teacher_advantage(student, teacher, weight)
  student, teacher = pair("loss.teacher_advantage", student, teacher, weight)
  local most = masked.log_ratio_max
  return teacher:detach():sub(student:detach()):clamp(-most, most)
end

local token_rules = {
  estimator = options.choice("k2", { "k1", "k2", "k3", "k1+", "k3+" }, "see loss.kl; k1 is refused"),
}

--- An estimate of KL(student || teacher) at each sampled token that can be made small itself: k2, whose mean gradient
--- is the right one, k1+ or k3+, which have it with another value, or k3. k1 = log student - log teacher is refused:
--- its gradient is that of log student, the teacher has no part in it (loss.teacher_advantage has).
--- @param student perilune.Tensor  (B, N) log-probabilities of the sampled tokens, of the student
--- @param teacher perilune.Tensor  (B, N) of the teacher
--- @param weight perilune.Tensor?  (B, N) 0 or 1; may be left out before options
--- @param opts table?
--- @return perilune.Tensor  (B, N)
function M.token_kl(student, teacher, weight, opts)
  local who = "loss.token_kl"
  if opts == nil and type(weight) == "table" then weight, opts = nil, weight end
  local o = options.fill(who, opts, token_rules)
  if o.estimator == "k1" then
    options.raise(who .. ": the gradient of k1 is that of log student alone, the teacher has no part in it: use k2, "
      .. "k1+ or k3+, or loss.teacher_advantage with loss.policy")
  end
  student, teacher = pair(who, student, teacher, weight)
  return kl.kl(student, teacher:detach(), weight, { estimator = o.estimator })
end
options.declare(M.token_kl, { "student", "teacher", "weight" }, token_rules)

return M
