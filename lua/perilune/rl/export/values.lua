-- values.lua (of exported policies) - a value of the program as an emitted loop reads and writes it: an array, where in
-- it the value begins, its kind and shape.

local peri = require "perilune"

local M = {}

--- Does a value hold integers?
function M.whole(v) return v.kind == "int64_t" end

--- Element `at` of a value as it is.
--- @param v table
--- @param at string
--- @return string
function M.raw(v, at)
  if v.offset == 0 then return ("%s[%s]"):format(v.var, at) end
  return at == "0" and ("%s[%d]"):format(v.var, v.offset) or ("%s[%d + %s]"):format(v.var, v.offset, at)
end

--- The same as a double.
function M.read(w, v, at)
  if w.lua or v.kind == "double" then return M.raw(v, at) end
  return "(double)" .. M.raw(v, at)
end

--- Give element `at` a number, rounded to what the value is.
function M.write(w, y, at, text)
  if not w.lua and y.kind == "float" then text = "(float)(" .. text .. ")" end
  w:set(M.raw(y, at), text)
end

--- The product of some sizes.
function M.product(shape, from, to)
  local n = 1
  for i = from or 1, to or #shape do n = n * shape[i] end
  return n
end

--- A tensor of a shape that holds its own places, from 0.
function M.numbered(shape) return peri.arange(M.product(shape)):reshape(shape) end

--- The elements of a tensor in order.
function M.list(t) return t:contiguous():reshape({ t:numel() }):tolist() end

--- A dim of an op, from 0, or from the end, as 1 .. ndim.
function M.dim_of(d, ndim) return d < 0 and d + ndim + 1 or d + 1 end

--- Mean and sum of squared differences of n elements, as `mean` and `var`.
function M.moments(w, x, n, at)
  w:number("mean", "0.0")
  w:loop("r", n, function () w:add("mean", M.read(w, x, at "r")) end)
  w:set("mean", ("mean / %d.0"):format(n))
  w:number("var", "0.0")
  w:loop("r", n, function () w:add("var", ("square(%s - mean)"):format(M.read(w, x, at "r"))) end)
end

return M
