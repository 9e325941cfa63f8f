-- elastic.lua - elastic weight consolidation: a net that learns something new is held where it was by springs, each as
-- strong as what was learned before depends on its weight.
local peri = require "perilune"
local options = require "perilune.options"
local Module = require "perilune.nn.module"
local per_sample = require "perilune.per_sample"
local params = require "perilune.optim.params"

local M = {}

local function want_rows(who, name, x)
  if peri.is_tensor(x) and x.ndim > 0 and x:size(1) == 0 then
    options.raise(("%s: %s has no rows: its tensor has shape %s"):format(who, name, options.shape(x)))
  end
end

-- One for each of the parameters, by the batches; who is named in messages.
local function diagonal(who, loss_of, parameters, batches)
  local out, moving, places, count = {}, {}, {}, 0
  for i, p in ipairs(params.list(who, parameters)) do
    out[i] = peri.zeros_like(p)
    if p.requires_grad then moving[#moving + 1], places[#places + 1] = p, i end
  end
  if #moving == 0 then options.raise(who .. ": no parameter takes gradients") end
  for i, batch in ipairs(batches) do
    options.argument(who, "batch " .. i, batch, "table")
    for _, x in ipairs(batch) do want_rows(who, "batch " .. i, x) end
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local found = per_sample(loss_of, moving, table.unpack(batch, 1, batch.n or #batch))
    local _ <close> = peri.no_grad()
    for k, g in ipairs(found) do out[places[k]]:add_(g:square():sum(1)) end
    count = count + found[1]:size(1)
  end
  for _, sum in ipairs(out) do sum:div_(count) end
  return out
end

--- The mean over samples of the square of the gradient of each one's loss, weight by weight: with the loss -log p(y|x)
--- of the data's answers the diagonal of the empirical Fisher information (Kunstner et al. 2019, 1905.12558); with
--- answers drawn from the net a sample of the true one, which loss.fisher_of_classes has without noise. The square of
--- the mean gradient, which one backward pass of a batch gives, is neither.
--- @param loss_of fun(...): perilune.Tensor  of a batch, one loss for each sample (B)
--- @param parameters any  a module, or a list of tensors; frozen ones have 0
--- @param batches any[][]  the arguments of loss_of, batch by batch: gradients of all samples of one are held at once
--- @return perilune.Tensor[]  one for each of the parameters, in its shape
function M.fisher_diagonal(loss_of, parameters, batches)
  local who = "loss.fisher_diagonal"
  options.argument(who, "loss_of", loss_of, "callable")
  options.argument(who, "batches", batches, "table")
  if #batches == 0 then options.raise(who .. ": there are no batches") end
  return diagonal(who, loss_of, parameters, batches)
end
options.declare(M.fisher_diagonal, { "loss_of", "parameters", "batches" }, {})

--- The diagonal of the Fisher information of a classifier: the mean over inputs, and over all classes by the
--- probability that the net itself gives them, of the square of the gradient of -log p(class | input), by weight.
--- Nothing is drawn; as many passes as there are classes.
---
---     local F = loss.fisher_of_classes(net, net, { x })
---
--- @param predict fun(x: any): perilune.Tensor  logits (B, C)
--- @param parameters any  a module, or a list of tensors; frozen ones have 0
--- @param inputs any[]  batches: gradients of all samples of one are held at once
--- @return perilune.Tensor[]  one for each of the parameters, in its shape
function M.fisher_of_classes(predict, parameters, inputs)
  local who = "loss.fisher_of_classes"
  options.argument(who, "predict", predict, "callable")
  options.argument(who, "inputs", inputs, "table")
  local batches, classes = {}, nil
  for i, x in ipairs(inputs) do
    options.argument(who, "input " .. i, x, "tensor")
    want_rows(who, "input " .. i, x)
    if not classes then
      local shape = peri.no_grad(predict, x:narrow(1, 1, 1)).shape
      if #shape ~= 2 then
        options.raise(("%s: predict gave shape %s, expected logits (B, C)"):format(who, options.shape(shape)))
      end
      classes = shape[2]
    end
    for c = 0, classes - 1 do batches[#batches + 1] = { x, peri.full({ x:size(1) }, c, "i64") } end
  end
  if #batches == 0 then options.raise(who .. ": there are no inputs") end
  local function each(x, class) -- its square counts by the probability; the mean over classes is made a sum
    local logits = predict(x)
    local share = logits:detach():softmax(-1):gather(class:unsqueeze(2), 2):squeeze(2) * classes
    return logits:cross_entropy(class, { reduction = "none" }) * share:sqrt()
  end
  return diagonal(who, each, parameters, batches)
end
options.declare(M.fisher_of_classes, { "predict", "parameters", "inputs" }, {})

local rules = { weight = options.number(1, "[0, inf)", "lambda, of all springs") }
local parts = { "values", "fisher" }

-- Names of the parameters of a module; of a list nothing is known but the order.
local function names_of(parameters)
  if not Module.is_module(parameters) then return nil end
  local names = {}
  for k, entry in ipairs(parameters:named_parameters()) do names[k] = entry[1] end
  return names
end

-- A Fisher has no number below 0; what was looked at once is not looked at again until it changes.
local seen = setmetatable({}, { __mode = "k" })
local function want_fisher(who, i, k, fisher)
  if seen[fisher] == fisher:version() or fisher:numel() == 0 then return end
  options.finite(who, ("anchor %d: fisher %d"):format(i, k), fisher)
  local least = fisher:min():item()
  if least < 0 then
    options.raise(("%s: anchor %d: fisher %d has %g, expected no number below 0"):format(who, i, k, least))
  end
  seen[fisher] = fisher:version()
end

-- The tensors of an anchor, one for each parameter.
local function held(who, anchor, i, parameters, list)
  options.argument(who, "anchor " .. i, anchor, "table")
  local out, names = {}, names_of(parameters)
  for name in pairs(anchor) do
    if name ~= "values" and name ~= "fisher" then
      options.raise(("%s: anchor %d: %s"):format(who, i, options.unknown("field", name, parts)))
    end
  end
  for _, name in ipairs(parts) do
    if anchor[name] == nil then options.raise(("%s: anchor %d has no %s"):format(who, i, name)) end
    out[name] = params.list(("%s: anchor %d: %s"):format(who, i, name), anchor[name])
    if #out[name] ~= #list then
      options.raise(("%s: anchor %d has %d %s for %d parameters"):format(who, i, #out[name], name, #list))
    end
    local others = names_of(anchor[name])
    for k, t in ipairs(out[name]) do
      if options.shape(t) ~= options.shape(list[k]) then
        options.raise(("%s: anchor %d: %s %d has shape %s, the parameter %s"):format(who, i, name, k,
          options.shape(t), options.shape(list[k])))
      end
      if names and others and names[k] ~= others[k] then
        options.raise(("%s: anchor %d: %s %d is of %s, the parameter is %s"):format(who, i, name, k, others[k],
          names[k]))
      end
      if name == "fisher" then want_fisher(who, i, k, t) end
    end
  end
  for k, t in ipairs(out.values) do
    if t:data_ptr() == list[k]:data_ptr() and t:numel() > 0 then
      options.raise(("%s: anchor %d: values %d is the parameter itself, expected a copy as it was: net:copy()")
        :format(who, i, k))
    end
  end
  return out
end

--- Elastic weight consolidation: lambda / 2 times the sum over what was learned before, and over weights, of F (theta -
--- theta*)^2, to be added to the loss of what is learned now (Kirkpatrick et al. 2017, 1612.00796, equation 3). theta*
--- are the weights as they were at the end of each of those, F its Fisher information there. One anchor with the sum
--- of the F and the latest weights is the form for many (Huszar 2018, 1712.03847).
---
---     known[#known + 1] = { values = net:copy(), fisher = loss.fisher_of_classes(net, net, { x }) }
---     local total = new_loss + loss.elastic(net, known, { weight = 1000 })
---
--- @param parameters any  a module, or a list of tensors
--- @param anchors table[]  { values =, fisher = } each: a module or a list, as parameters are; values are a copy
--- @param opts table?
--- @return perilune.Tensor  (), 0 without anchors
function M.elastic(parameters, anchors, opts)
  local who = "loss.elastic"
  options.argument(who, "anchors", anchors, "table")
  local o = options.fill(who, opts, rules)
  for key in pairs(anchors) do
    if math.type(key) ~= "integer" or key < 1 or key > #anchors then
      options.raise(("%s: anchors has the key %q, expected a list { { values =, fisher = }, ... }"):format(who,
        tostring(key)))
    end
  end
  local list, total = params.list(who, parameters), nil
  if #list == 0 then options.raise(who .. ": there are no parameters") end
  for i, anchor in ipairs(anchors) do
    local at = held(who, anchor, i, parameters, list)
    for k, p in ipairs(list) do
      local pull = ((p - at.values[k]:detach()):square() * at.fisher[k]:detach()):sum()
      total = total and total + pull or pull
    end
  end
  return total and total * (o.weight / 2) or peri.zeros({}, list[1].dtype)
end
options.declare(M.elastic, { "parameters", "anchors" }, rules)

return M
