-- foreign.lua - JSON files that other programs wrote, as Python writes them: NaN, Infinity and a byte order mark
-- are read. Our own files are read with peri.json alone, which is strict.
local peri = require "perilune"

local M = {}

--- An object or a list from a file.
--- @param path string
--- @return table|nil value
--- @return string? message  names the file
function M.read(path)
  local text, message = peri.files.read(path)
  if not text then return nil, message end
  local value
  value, message = peri.json.decode(text, { foreign = true })
  if type(value) == "table" and value ~= peri.json.null then return value end
  return nil, ("%s: %s"):format(path, message or "an object is expected")
end

--- Take JSON's nulls out of a value, also within: an absent key and null mean the same in configs.
--- @param t table
--- @return table t
function M.without_null(t)
  for k, v in pairs(t) do
    if v == peri.json.null then t[k] = nil
    elseif type(v) == "table" then M.without_null(v) end
  end
  return t
end

return M
