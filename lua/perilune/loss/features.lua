-- features.lua - what a student may learn of a teacher beside its outputs: hidden states as they are (hints), and where
-- a network looks (attention transfer). Losses of tensors, and Hints, which takes these from two networks by hooks and
-- owns the projections between widths. What stands at weight 0 changes nothing by a bit.
local peri = require "perilune"
local counted = require("perilune.loss.masked").counted
local Module = require "perilune.nn.module"
local options = require "perilune.options"

local nn = peri.nn
local M = {}

-- Features with the channels last: pictures are (N, C, H, W).
local function channels_last(x) return x.ndim == 4 and x:permute { 1, 3, 4, 2 } or x end

local function want(who, name, t, shape, of)
  if options.shape(t) ~= options.shape(shape) then
    options.raise(("%s: %s has shape %s, expected %s%s"):format(who, name, options.shape(t), options.shape(shape), of))
  end
end

-- A weight of places counts each of them or a part of it.
local function want_share(who, weight)
  if weight:numel() == 0 or weight.dtype == "bool" then return end
  options.finite(who, "weight", weight)
  local least, most = weight:min():item(), weight:max():item()
  if least < 0 or most > 1 then
    options.raise(("%s: weight goes from %g to %g, expected numbers from 0 to 1"):format(who, least, most))
  end
end

-- Two features of one shape, channels last, and the weight of their places.
local function two(who, student, teacher, weight)
  options.argument(who, "student", student, "tensor")
  options.argument(who, "teacher", teacher, "tensor")
  if student.ndim < 2 then
    options.raise(("%s: student has shape %s, expected (..., D) or (N, C, H, W)"):format(who, options.shape(student)))
  end
  want(who, "teacher", teacher, student.shape, ", the student's")
  student, teacher = channels_last(student), channels_last(teacher:detach():to(student.dtype))
  local places = table.move(student.shape, 1, student.ndim - 1, 1, {})
  if weight == nil then return student, teacher, peri.ones(places, student.dtype) end
  options.argument(who, "weight", weight, "tensor")
  want(who, "weight", weight, places, "")
  want_share(who, weight)
  return counted(student, weight:unsqueeze(-1)), counted(teacher, weight:unsqueeze(-1)), weight:to(student.dtype)
end

-- Products of a vector with itself are at least this where it is divided by their root: one of zeros has no direction.
local TINY <const> = 1e-24

local function unit(x) return x:mul(x:square():sum(-1, true):clamp(TINY):rsqrt()) end

local kinds = {} -- fn(student, teacher) -> one number a place

function kinds.mse(s, t) return s:sub(t):square():mean(-1) end

function kinds.cosine(s, t) return unit(s):mul(unit(t)):sum(-1):neg():add(1) end

local feature_rules = {
  kind = options.choice("mse", options.names(kinds), "mean squared difference of the numbers (FitNets, 1412.6550 eq. 3 "
    .. "without its half), or 1 - cosine of the vectors (DistilBERT, 1910.01108)"),
}

--- The distance of a student's hidden states from a teacher's, the mean over the places that count. Vectors are
--- (..., D), or over the channels of pictures (N, C, H, W). The teacher gets no gradient.
--- @param student perilune.Tensor  (..., D) or (N, C, H, W)
--- @param teacher perilune.Tensor  of the same shape
--- @param weight perilune.Tensor?  (...) or (N, H, W), 0 or 1: which places count; may be left out before options
--- @param opts table?
--- @return perilune.Tensor  0-dim
function M.feature(student, teacher, weight, opts)
  local who = "loss.feature"
  if opts == nil and type(weight) == "table" then weight, opts = nil, weight end
  local o = options.fill(who, opts, feature_rules)
  local s, t, w = two(who, student, teacher, weight)
  return kinds[o.kind](s, t):mul(w):sum():div(math.max(w:sum():item(), 1))
end
options.declare(M.feature, { "student", "teacher", "weight" }, feature_rules)

local power_rule = options.number(2, "[1, inf)", "p: the larger, the more the strongest places count")

-- (N, places) of features with the channels last; a weight leaves places out.
local function map_of(x, power, weight)
  local q = power == 2 and x:square() or x:abs():pow(power)
  q = q:sum(-1)
  if weight then q = q:mul(weight) end
  return unit(q:flatten(2))
end

local function want_places(who, x)
  options.argument(who, "x", x, "tensor")
  if x.ndim ~= 3 and x.ndim ~= 4 then
    options.raise(("%s: features of shape %s, expected (N, C, H, W) or (N, T, D)"):format(who, options.shape(x)))
  end
end

--- Where a network looks: the sum over channels of |x|^p at every place, as one vector of length 1 for each picture or
--- text (attention transfer, 1612.03928, section 3.1, F_sum^p).
--- @param x perilune.Tensor  (N, C, H, W) or (N, T, D)
--- @param power number?  p, 2
--- @return perilune.Tensor  (N, H W) or (N, T)
function M.attention_map(x, power)
  want_places("loss.attention_map", x)
  local problem = options.problem("power", power == nil and 2 or power, power_rule)
  if problem then options.raise("loss.attention_map: " .. problem) end
  return map_of(channels_last(x), power or 2)
end

local attention_rules = {
  power = power_rule,
  norm = options.boolean(false, "the length of the difference, mean over rows, as the paper's eq. 2 has it; false: its "
    .. "mean square, as its authors' program has it"),
}

--- Attention transfer: how far a student looks at other places than its teacher (1612.03928, eq. 2). Channels may
--- differ in number, places may not. The paper multiplies the mean square by 1000. The teacher gets no gradient.
--- @param student perilune.Tensor  (N, C, H, W) or (N, T, D)
--- @param teacher perilune.Tensor  as many places
--- @param weight perilune.Tensor?  (N, H, W) or (N, T), 0 or 1: which places count; may be left out before options
--- @param opts table?
--- @return perilune.Tensor  0-dim
function M.attention_transfer(student, teacher, weight, opts)
  local who = "loss.attention_transfer"
  if opts == nil and type(weight) == "table" then weight, opts = nil, weight end
  local o = options.fill(who, opts, attention_rules)
  want_places(who, student)
  want_places(who, teacher)
  student, teacher = channels_last(student), channels_last(teacher:detach():to(student.dtype))
  local places = table.move(student.shape, 1, student.ndim - 1, 1, {})
  want(who, "teacher, but for its channels,", table.move(teacher.shape, 1, teacher.ndim - 1, 1, {}), places,
    ", the student's")
  local count = 1
  for i = 2, #places do count = count * places[i] end
  local total = places[1] * count
  if weight then
    options.argument(who, "weight", weight, "tensor")
    want(who, "weight", weight, places, "")
    want_share(who, weight)
    student, teacher = counted(student, weight:unsqueeze(-1)), counted(teacher, weight:unsqueeze(-1))
    weight = weight:to(student.dtype)
    total = math.max(weight:sum():item(), 1)
  end
  local apart = map_of(student, o.power, weight):sub(map_of(teacher, o.power, weight)):square()
  if o.norm then return apart:sum(-1):clamp(TINY):sqrt():mean() end
  return apart:sum():div(total)
end
options.declare(M.attention_transfer, { "student", "teacher", "weight" }, attention_rules)

-- ---- two networks --------------------------------------------------------------------------------

local ways = options.choice("mse", { "attention", "cosine", "mse" }, "of pairs that say none: see loss.feature and "
  .. "loss.attention_transfer")
local projections = options.choice("auto", { "auto", "always", "never" }, "a linear map of the student's features to "
  .. "the teacher's width, of pairs that say nothing: where widths differ, always, never; attention needs none")

local hint_rules = {
  student = options.value(options.required, "module", "the network that learns"),
  teacher = options.value(options.required, "module", "the one that it learns from"),
  pairs = options.value(options.required, "table", "list of { path in the student, path in the teacher }, with kind, "
    .. "project, power and weight (1, a factor) where one differs"),
  example = options.value(options.required, "any", "what both take, for their widths; a list: several arguments"),
  teacher_example = options.value(options.none, "any", "what the teacher takes, where it reads something else"),
  kind = ways, project = projections, power = power_rule,
}
local pair_rules = { weight = options.number(1, "[0, inf)", "its factor"), kind = options.value(options.none, "string"),
  project = options.value(options.none, "string"), power = options.value(options.none, "number") }

-- A network on an example: one value, or a list of arguments.
local function run(net, example)
  if type(example) == "table" and getmetatable(example) == nil then return net(table.unpack(example)) end
  return net(example)
end

--- Hidden states of a student beside those of a teacher, by hooks: run both, then hints:loss().
--- @class perilune.loss.Hints: perilune.nn.Module
--- @field projections table<string, perilune.nn.Module>  by the number of their pair
local Hints = Module.class("Hints", function (self, student, teacher, opts)
  local o = options.read("loss.Hints", { "student", "teacher" }, hint_rules, 4, student, teacher, opts)
  local paths = { {}, {} }
  self._pairs, self.projections = {}, {}
  if #o.pairs == 0 then options.raise "loss.Hints: pairs is empty, expected { path in student, path in teacher }" end
  local attends = false
  for i, given in ipairs(o.pairs) do
    local who, named = ("loss.Hints: pair %d"):format(i), {}
    if type(given) ~= "table" or type(given[1]) ~= "string" or type(given[2]) ~= "string" or given[3] ~= nil then
      options.raise(who .. " is not { path in the student, path in the teacher }")
    end
    for key, value in pairs(given) do if type(key) ~= "number" then named[key] = value end end
    local pair = options.fill(who, named, pair_rules)
    for name, rule in pairs { kind = ways, project = projections, power = power_rule } do
      if pair[name] == nil then pair[name] = o[name] end
      local problem = options.problem(name, pair[name], rule)
      if problem then options.raise(who .. ": " .. problem) end
    end
    if named.power ~= nil and pair.kind ~= "attention" then
      options.raise(("%s: power is of kind \"attention\", this pair's is %q"):format(who, pair.kind))
    end
    attends = attends or pair.kind == "attention"
    pair[1], pair[2] = given[1], given[2]
    paths[1][#paths[1] + 1], paths[2][#paths[2] + 1], self._pairs[i] = given[1], given[2], pair
  end
  if type(opts) == "table" and opts.power ~= nil and not attends then
    options.raise "loss.Hints: power is of kind \"attention\", and no pair is of it"
  end
  if o.student == o.teacher then
    options.raise "loss.Hints: the student is the teacher: there is nothing to learn of it; a copy is net:copy()"
  end
  for i, pair in ipairs(self._pairs) do
    for k, name in ipairs { "student", "teacher" } do
      local found, module = pcall(o[name].get, o[name], pair[k])
      if not found or type(module) ~= "table" then
        options.raise(("loss.Hints: pair %d: the %s: %s"):format(i, name, found and pair[k] .. " is no module"
          or (tostring(module):gsub("^[^%s:]+:%d+: ", ""):gsub("^get: ", ""))))
      end
    end
  end
  local ok, message = pcall(function ()
    self._student = o.student:record(paths[1])
    self._teacher = o.teacher:record(paths[2])
    local _ <close> = peri.no_grad()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    run(o.student, o.example)
    run(o.teacher, o.teacher_example == nil and o.example or o.teacher_example)
    for i, pair in ipairs(self._pairs) do
      local a, b = self:_features(i, pair)
      local from, to = channels_last(a):size(-1), channels_last(b):size(-1)
      local linear = pair.kind ~= "attention" and (pair.project == "always" or pair.project == "auto" and from ~= to)
      if linear then
        self.projections[tostring(i)] = a.ndim == 4 and nn.Conv2d(from, to, 1) or nn.Linear(from, to)
      end
      self:_apart(i, pair, a, b)
    end
    self._student:clear()
    self._teacher:clear()
  end)
  if not ok then
    self:remove()
    options.raise((tostring(message):gsub("^[^%s:]+:%d+: ", "")))
  end
end)

-- The features of a pair.
function Hints:_features(i, pair)
  if self._off then options.raise "loss.Hints: the hooks are off: remove() took them" end
  local out = {}
  for k, record in ipairs { self._student, self._teacher } do
    out[k] = record.outputs[pair[k]]
    if not peri.is_tensor(out[k]) then
      options.raise(("loss.Hints: pair %d: %s of the %s %s"):format(i, pair[k], k == 1 and "student" or "teacher",
        out[k] == nil and "has not run since the last loss" or "gives no tensor"))
    end
  end
  return out[1], out[2]
end

-- How far they are apart.
function Hints:_apart(i, pair, a, b, weight)
  local projection = self.projections[tostring(i)]
  if projection then a = projection(a) end
  local ok, value = pcall(function ()
    if pair.kind == "attention" then return M.attention_transfer(a, b, weight, { power = pair.power }) end
    return M.feature(a, b, weight, { kind = pair.kind })
  end)
  if ok then return value end
  options.raise(("loss.Hints: pair %d (%s, %s): %s"):format(i, pair[1], pair[2],
    (tostring(value):gsub("^[^%s:]+:%d+: ", ""):gsub("^loss%.[%w_]+: ", ""))))
end

--- How far the features of the latest forward of both are apart: the sum over pairs, each with its factor. What was
--- recorded is used once: both networks have to run before the next loss.
--- @param weight perilune.Tensor?  (...) or (N, H, W), 0 or 1: which places count, in every pair
--- @return perilune.Tensor loss  0-dim
--- @return perilune.Tensor[] parts  of each pair, 0-dim, without factors and gradients
function Hints:loss(weight)
  local total, parts = nil, {}
  for i, pair in ipairs(self._pairs) do
    local a, b = self:_features(i, pair)
    local value = self:_apart(i, pair, a, b, weight)
    parts[i] = value:detach()
    value = value:mul(pair.weight)
    total = total and total:add(value) or value
  end
  self._student:clear()
  self._teacher:clear()
  return total, parts
end

--- Take the hooks off both networks; a second time does nothing.
function Hints:remove()
  self._off = true
  if self._student then self._student:remove() end
  if self._teacher then self._teacher:remove() end
end

Hints.__close = Hints.remove

function Hints:extra() return ("%d pairs"):format(#self._pairs) end

--- A student's hidden states beside a teacher's (FitNets, 1412.6550; attention transfer, 1612.03928), by hooks on both:
--- hints:loss() behind a forward of each. It is a module that owns the projections between widths, a linear layer or a
--- convolution of 1 x 1: give its parameters to the optimizer, too. hints:remove() takes the hooks off. A copy of it
--- watches the same networks.
---
---     local hints = loss.Hints(student, teacher, { pairs = { { "1", "3" } }, example = x })
---     local target = peri.no_grad(teacher, x)
---     local value = student(x):cross_entropy(label) + hints:loss()
---
--- @param student perilune.nn.Module
--- @param teacher perilune.nn.Module
--- @param opts table
--- @return perilune.loss.Hints
M.Hints = Hints
options.declare(Hints, { "student", "teacher" }, hint_rules)

return M
