-- curvature.lua - products with second derivatives, which are never formed, and systems solved with nothing but such
-- products: what TRPO, natural gradients and Newton's method are made of.

local peri = require "perilune"
local flat = require "perilune.optim.flat"
local options = require "perilune.options"

local M = {}

-- Raise where a product is not finite, and name the parameter.
local function want_finite(who, product, entries)
  local good = product:isfinite()
  if good:all():item() then return end
  local at = good:to("u8"):argmin(1):item()
  local value, before = product:at(at + 1), 0
  for i, e in ipairs(entries) do
    local n = e[1]:numel()
    if at < before + n then
      options.raise(("%s: the product is %s at element %d (from 0) of %s"):format(who,
        value ~= value and "NaN" or tostring(value), at - before, flat.name_of(e, i)))
    end
    before = before + n
  end
end

-- v -> H v for vectors, from one graph of first derivatives.
local function products(who, loss, entries, damping)
  if type(loss) == "function" then loss = loss() end
  if not peri.is_tensor(loss) or loss:numel() ~= 1 then
    options.raise(("%s: the loss is %s, expected a tensor of one element"):format(who,
      peri.is_tensor(loss) and "of shape " .. options.shape(loss) or "a " .. type(loss)))
  end
  if not loss.requires_grad then options.raise(who .. ": the loss depends on no parameter that takes gradients") end
  local tensors = {}
  for i, e in ipairs(entries) do tensors[i] = e[1] end
  local grads = peri.grad(loss:reshape {}, tensors, { create_graph = true })
  local first = flat.joined(entries, function(p, i) return grads[i] or peri.zeros_like(p) end)
  return function(v)
    local out
    if first.requires_grad then
      local seconds = peri.grad(first:mul(v:detach()):sum(), tensors)
      out = flat.joined(entries, function(p, i) return seconds[i] or peri.zeros_like(p) end)
    else
      out = peri.zeros_like(v) -- a loss that is linear
    end
    want_finite(who, out, entries)
    return damping ~= 0 and out:add(v:detach():mul(damping)) or out
  end
end

local curvature_rules = { damping = options.number(0, "[0, inf)", "times v is added to each product") }

--- A function v -> H v, H being the second derivatives of a loss: one graph of first derivatives, and a backward pass
--- through it for each product. Of the mean KL of a policy to itself, H is the Fisher information (rl.fisher).
---   local H = optim.curvature(loss, net, { damping = 0.1 })
---   local x = optim.conjugate_gradient(H, optim.flatten_grads(net))
--- @param loss perilune.Tensor|fun(): perilune.Tensor  of one element
--- @param parameters any  a module, named parameters, or a list of these and of tensors; of one dtype
--- @param opts table?
--- @return fun(v: perilune.Tensor): perilune.Tensor  vectors (n) in the order of optim.flatten
function M.curvature(loss, parameters, opts)
  local o = options.fill("curvature", opts, curvature_rules)
  local entries, count = flat.entries("curvature", parameters)
  local product = products("curvature", loss, entries, o.damping)
  return function(v)
    local out = product(flat.vector("curvature", "v", v, entries, count))
    return out
  end
end
options.declare(M.curvature, { "loss", "parameters" }, curvature_rules)

--- H v once: see peri.hvp.
function M.hvp(loss, parameters, v)
  local entries, count = flat.entries("hvp", parameters)
  local out = products("hvp", loss, entries, 0)(flat.vector("hvp", "v", v, entries, count))
  return type(v) == "table" and flat.views(out, entries) or out
end

local cg_rules = {
  iterations = options.integer(10, "[0, inf)", "at most so many products, one more where start is given"),
  tolerance = options.number(1e-10, "[0, inf)", "the squared norm of the residual that is small enough"),
  damping = options.number(0, "[0, inf)", "times v is added to each product"),
  start = options.value(options.none, "tensor", "x to begin with; default: 0"),
}

--- Solve A x = b for a symmetric, positive definite A that is known by its products (Hestenes and Stiefel 1952), as
--- sb3-contrib's solver does: up to `iterations` steps, fewer once the squared norm of the residual is below the
--- tolerance. A direction along which A does not curve upwards ends it, and is in the second result; x is then what was
--- had before. A product that is not finite is an error.
--- @param product fun(v: perilune.Tensor): perilune.Tensor  v -> A v
--- @param b perilune.Tensor
--- @param opts table?
--- @return perilune.Tensor x  in b's shape
--- @return table info  iterations; residual, its squared norm; converged; direction and its curvature, where A does not
--- curve upwards
function M.conjugate_gradient(product, b, opts)
  local who = "conjugate_gradient"
  local o = options.fill(who, opts, cg_rules)
  options.argument(who, "product", product, "callable")
  options.argument(who, "b", b, "tensor")
  if not b.dtype:find "^f%d" or not b:isfinite():all():item() then
    options.raise(("%s: b is %s, expected finite numbers"):format(who, b.dtype:find "^f%d" and "not finite" or b.dtype))
  end
  b = b:detach()
  local function dot(x, y) return x:mul(y):sum():item() end
  local made = 0
  local function times(v)
    local out = product(v)
    made = made + 1
    if not peri.is_tensor(out) or options.shape(out) ~= options.shape(b) then
      options.raise(("%s: product %d is %s, expected a tensor of shape %s"):format(who, made,
        peri.is_tensor(out) and "of shape " .. options.shape(out) or "a " .. type(out), options.shape(b)))
    end
    out = out:detach()
    if not out:isfinite():all():item() then options.raise(("%s: product %d holds NaN or inf"):format(who, made)) end
    return o.damping ~= 0 and out:add(v:mul(o.damping)) or out
  end
  local x, residual = peri.zeros_like(b), b
  if o.start then
    if options.shape(o.start) ~= options.shape(b) then
      options.raise(("%s: start has shape %s, b %s"):format(who, options.shape(o.start), options.shape(b)))
    end
    x = o.start:detach()
    residual = b:sub(times(x))
  end
  local info = { iterations = 0, residual = dot(residual, residual) }
  local direction = residual
  while info.iterations < o.iterations and info.residual >= o.tolerance and info.residual > 0 do
    local image = times(direction)
    local curvature = dot(direction, image)
    if curvature <= 0 then
      info.direction, info.curvature = direction, curvature
      break
    end
    local alpha = info.residual / curvature
    x, residual = x:add(direction:mul(alpha)), residual:sub(image:mul(alpha))
    local left = dot(residual, residual)
    direction = residual:add(direction:mul(left / info.residual))
    info.residual, info.iterations = left, info.iterations + 1
  end
  info.converged = info.residual < o.tolerance or info.residual == 0
  return x, info
end
options.declare(M.conjugate_gradient, { "product", "b" }, cg_rules)

return M
