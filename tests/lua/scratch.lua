-- scratch.lua - places for what tests write.
local peri = require "perilune"

local M = {}

--- A path in the temporary folder where nothing is.
--- @return string
function M.path()
  local path = os.tmpname()
  os.remove(path)
  return path
end

--- A fresh folder.
--- @return string
function M.folder()
  local path = M.path()
  assert(peri.files.make_folder(path))
  return path
end

--- Give each test of a table a folder of its own, removed after it.
--- @param tests table
--- @param set fun(path: string)  called with the folder before each test
function M.each(tests, set)
  local dir
  function tests.setUp()
    dir = M.folder()
    set(dir)
  end
  function tests.tearDown() assert(peri.files.remove_tree(dir)) end
end

return M
