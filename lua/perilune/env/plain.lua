-- plain.lua - states of environments that are written in Lua, as texts: numbers bit for bit, strings, booleans, tables
-- of them. What is none of these is refused by its path.
local options = require "perilune.options"

local M = {}

local function put(out, v, path, above)
  local kind = math.type(v) or type(v)
  if kind == "integer" then out[#out + 1] = ("i%d;"):format(v)
  elseif kind == "float" then out[#out + 1] = ("d%s;"):format(("<d"):pack(v):gsub(".", function (c)
    return ("%02x"):format(c:byte())
  end))
  elseif kind == "string" then out[#out + 1] = ("s%d;%s"):format(#v, v)
  elseif kind == "boolean" then out[#out + 1] = v and "t" or "f"
  elseif kind == "table" and getmetatable(v) == nil then
    if above[v] then options.raise(("save: %s holds itself"):format(path)) end
    above[v] = true
    out[#out + 1] = "{"
    local keys = {}
    for k in pairs(v) do
      if math.type(k) ~= "integer" and type(k) ~= "string" then
        options.raise(("save: %s has a %s as key; plain states have integers and strings"):format(path, type(k)))
      end
      keys[#keys + 1] = k
    end
    table.sort(keys, function (a, b)
      if type(a) == type(b) then return a < b end
      return type(a) == "number"
    end)
    for _, k in ipairs(keys) do
      put(out, k, path, above)
      put(out, v[k], type(k) == "string" and path .. "." .. k or ("%s[%d]"):format(path, k), above)
    end
    out[#out + 1] = "}"
    above[v] = nil
  else
    options.raise(("save: %s is a %s, which is no plain value: give the environment save and load functions")
      :format(path, kind))
  end
end

--- @param v any
--- @param path string  what messages call it
--- @return string
function M.encode(v, path)
  local out = {}
  put(out, v, path, {})
  return table.concat(out)
end

local function bad(at) options.raise(("load: the bytes are no saved state: byte %d"):format(at)) end

local function take(text, at)
  local kind = text:sub(at, at)
  if kind == "t" or kind == "f" then return kind == "t", at + 1 end
  if kind == "{" then
    local t = {}
    at = at + 1
    while text:sub(at, at) ~= "}" do
      local k, v
      k, at = take(text, at)
      v, at = take(text, at)
      if k == nil then bad(at) end
      t[k] = v
    end
    return t, at + 1
  end
  local body, last = text:match("^([^;]*);()", at + 1)
  if not body then bad(at) end
  if kind == "i" and math.tointeger(body) then return math.tointeger(body), last end
  if kind == "d" and body:find "^%x+$" and #body == 16 then
    return (("<d"):unpack((body:gsub("%x%x", function (h) return string.char(tonumber(h, 16)) end)))), last
  end
  if kind == "s" and math.tointeger(body) and #text >= last + body - 1 then
    return text:sub(last, last + math.tointeger(body) - 1), last + math.tointeger(body)
  end
  return bad(at)
end

--- @param text string
--- @return any
function M.decode(text)
  local v, last = take(text, 1)
  if last ~= #text + 1 then bad(last) end
  return v
end

return M
