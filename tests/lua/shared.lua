-- shared.lua - where the large reference files are that are not copied into the repository: the
-- folder named by PERILUNE_DATA, else ../shared beside the checkout. Tests that need one skip
-- visibly where there is none.
local lu = require "luaunit"
local peri = require "perilune"

local M = {}

local root = os.getenv "PERILUNE_DATA" or "../shared"

--- Path of a reference file, or nil.
--- @param name string  such as "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
--- @return string|nil
function M.path(name)
  local path = root .. "/" .. name
  return peri.files.exists(path) and path or nil
end

--- Path of a reference file; without it the running test is skipped, and says so.
--- @param name string
--- @return string
function M.need(name)
  local path = M.path(name)
  if not path then
    print("skipped: no " .. name .. " (set PERILUNE_DATA)")
    lu.skip("no " .. name)
  end
  return path
end

return M
