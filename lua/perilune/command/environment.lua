-- environment.lua - the environment that a command names, and how it is asked for.
local peri = require "perilune"

local M = {}

local function value_of(text)
  if text == "true" then return true elseif text == "false" then return false end
  return tonumber(text) or text
end

--- Options of an environment from a flag's text "name=value,name=value".
--- @param text string
--- @return table
function M.options(text)
  local o = {}
  for part in text:gmatch "[^,]+" do
    local name, value = part:match "^%s*([%w_]+)%s*=(.*)$"
    if not name then error(("option: %q, expected name=value"):format(part), 0) end
    o[name] = value_of(value)
  end
  return o
end

-- The file's result, or the id that it has registered.
local function from_file(path)
  local before = {}
  for _, id in ipairs(peri.env.ids()) do before[id] = true end
  local chunk, message = loadfile(path, "t")
  if not chunk then error(message, 0) end
  local result = chunk()
  if type(result) == "string" or type(result) == "table" then return result end
  local new = {}
  for _, id in ipairs(peri.env.ids()) do if not before[id] then new[#new + 1] = id end end
  if #new == 1 then return new[1] end
  error(("%s: expected a file that returns an environment's table or id, or registers one; it registers %s")
    :format(path, #new == 0 and "none" or table.concat(new, ", ")), 0)
end

--- Whether a word names an environment of Python.
--- @param word string
--- @return boolean
function M.is_python(word) return word:find "^gymnasium:" or word:find "^pettingzoo:" or word:find "^file:" end

--- A function that makes the environment of a word: an id, a Lua file that returns a definition or registers one, or
--- gymnasium:ID, pettingzoo:MODULE, file:PATH:FUNCTION. Raises when there is none.
--- @param word string
--- @return function make  (options) -> environment
--- @return string name
function M.maker(word)
  if M.is_python(word) then
    return function (o) return peri.env.python(word, o) end, word
  end
  local what = word:find "%.lua$" and from_file(word) or word
  return function (o) return peri.env.make(what, o) end, type(what) == "table" and (what.id or word) or what
end

return M
