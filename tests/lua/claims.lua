-- claims.lua - what tests of the bindings claim of a call.
local lu = require "luaunit"

local M = {}

--- What fn(...) raises; that it raises is claimed.
function M.message(fn, ...)
  local ok, err = pcall(fn, ...)
  lu.assertFalse(ok)
  return err
end

--- That two tensors have one shape and differ by at most eps (0).
function M.close(a, b, eps)
  lu.assertEquals(a.shape, b.shape)
  lu.assertTrue((a - b):abs():max():item() <= (eps or 0))
end

return M
