-- adapt.lua - steps of gradient descent as a function of where they begin: what meta-learning differentiates.

local peri = require "perilune"
local functional = require "perilune.nn.functional"
local options = require "perilune.options"

local M = {}

local rules = {
  lr = options.value(options.required, "number or tensor or table", "step size: a number, a tensor that broadcasts to "
    .. "every parameter, or a list with one of them for each; tensors that take gradients learn theirs (Meta-SGD)"),
  steps = options.integer(1, "[0, inf)", "how many"),
  order = options.choice(2, { 2, 1, 0 }, "2: steps are differentiated, MAML; 1: as if gradients did not depend on "
    .. "where they were taken, first-order MAML; 0: not at all, to evaluate, and for Reptile"),
  from = options.value(options.none, "table", "tensors to begin with in place of the module's own, one for each "
    .. "parameter"),
}

local function check_rate(rate, i, n)
  local name = i and ("lr %d"):format(i) or "lr"
  if type(rate) == "number" then
    if not (rate >= 0 and rate < math.huge) then
      options.raise(("adapt: %s is %s, expected a number in [0, inf)"):format(name, rate))
    end
  elseif type(rate) == "table" and not i then
    if #rate ~= n then options.raise(("adapt: lr has %d entries for %d parameters"):format(#rate, n)) end
    for k = 1, n do check_rate(rate[k], k, n) end
  else options.argument("adapt", name, rate, "number or tensor") end
end

-- Where the steps begin: the module's own tensors, or others; and which of them move.
local function start(module, o)
  local entries, fast, moving = module:named_parameters(), {}, {}
  if o.from and #o.from ~= #entries then
    options.raise(("adapt: from has %d tensors for %d parameters"):format(#o.from, #entries))
  end
  for i, entry in ipairs(entries) do
    local t = o.from and o.from[i] or entry[2]
    options.argument("adapt", entry[1], t, "tensor")
    if entry[2].requires_grad then
      moving[#moving + 1] = i
      if o.order == 0 or not t.requires_grad then t = t:detach():requires_grad_() end
    end
    fast[i] = t
  end
  if #moving == 0 then options.raise "adapt: no parameter takes gradients" end
  return fast, moving
end

local function loss_of(loss, k)
  local value = loss(k)
  if not peri.is_tensor(value) or value:numel() ~= 1 then
    options.raise(("adapt: the loss of step %d is %s, expected a tensor of one element"):format(k,
      peri.is_tensor(value) and "of shape " .. options.shape(value) or "a " .. type(value)))
  end
  if not value.requires_grad then
    options.raise(("adapt: the loss of step %d depends on no parameter that takes gradients"):format(k))
  end
  return value
end

--- Steps of gradient descent from a module's parameters, which stay as they are: the tensors that they lead to are
--- returned, for nn.functional_call and nn.with_tensors, and as functions of the parameters they pass gradients on
--- (MAML, Finn et al. 2017, equation 1: theta' = theta - lr grad L(theta)).
---
---     local fast = optim.adapt(net, function () return net(x):sub(y):square():mean() end, { lr = 0.01 })
---     nn.functional_call(net, fast, new_x):sub(new_y):square():mean():backward() -- into net's parameters
---
--- An op of the loss that has no second derivative is an error that names it, where order is 2. Frozen parameters do
--- not move; what is no parameter, such as the running statistics of nn.BatchNorm, is the module's own and moves as in
--- any pass. Tasks side by side are networks of nn.Copies whose losses are added up.
--- @param module perilune.nn.Module
--- @param loss fun(step: integer): perilune.Tensor  of one element, of the module as it stands then
--- @param opts table
--- @return perilune.Tensor[] fast  one for each of module:parameters()
--- @return perilune.Tensor[] losses  before each step, without a graph
function M.adapt(module, loss, opts)
  options.argument("adapt", "module", module, "module")
  options.argument("adapt", "loss", loss, "callable")
  local o = options.fill("adapt", opts, rules)
  local fast, moving = start(module, o)
  check_rate(o.lr, nil, #fast)
  local on <close> = peri.enable_grad() -- luacheck: ignore 211
  local losses = {}
  for k = 1, o.steps do
    local value, wrt = nil, {}
    for i, at in ipairs(moving) do wrt[i] = fast[at] end
    local grads = functional.with_tensors(module, fast, function ()
      value = loss_of(loss, k)
      local list = peri.grad(value:reshape {}, wrt, { create_graph = o.order == 2 })
      return list
    end)
    losses[k] = value:detach()
    local moved = table.move(fast, 1, #fast, 1, {})
    for i, at in ipairs(moving) do
      if grads[i] then
        local rate = type(o.lr) == "table" and o.lr[at] or o.lr
        moved[at] = fast[at] - grads[i] * rate
        if o.order == 0 then moved[at] = moved[at]:detach():requires_grad_() end
      end
    end
    fast = moved
  end
  return fast, losses
end
options.declare(M.adapt, { "module", "loss" }, rules)

return M
