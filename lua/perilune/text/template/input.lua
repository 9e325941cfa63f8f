-- input.lua - values of the caller to values of a template. The caller's tables are copied: no
-- template ever sees them.

local peri_json = require "perilune.core".json
local values = require "perilune.text.template.values"

local M = {}

local DEPTH_MAX = 64

-- Objects that came from JSON keep the order of their text. Lua's own tables have none: these keys come
-- first, in this order (the one that tools and messages are written in: transformers' get_json_schema and
-- OpenAI's), all others behind them by their bytes.
M.key_order = { "role", "type", "id", "function", "name", "description", "parameters", "return", "properties",
  "required", "title", "text", "content", "reasoning_content", "thinking", "tool_calls", "tool_call_id",
  "arguments", "enum", "items", "default" }

local rank = {}
for i, key in ipairs(M.key_order) do rank[key] = i end

local function before(a, b)
  local ra, rb = rank[a] or math.huge, rank[b] or math.huge
  if ra ~= rb then return ra < rb end
  return values.lt(a, b, "<")
end

-- Empty tables under these names are lists.
local lists = { messages = true, tools = true, documents = true, tool_calls = true, required = true, enum = true }

local array_mark = getmetatable(peri_json.array {})

local function from_json(v)
  local meta = getmetatable(v)
  return type(meta) == "table" and rawget(meta, "__name") == "perilune.json.object"
end

M.from_json = from_json

-- A box around a value that is already a template's own.
local Box = { __name = "perilune.template.value" }

local function convert(v, depth, name)
  local kind = type(v)
  if kind == "string" then values.allow(2 * #v) end
  if kind == "string" or kind == "number" or kind == "boolean" then return v end
  if v == nil or v == peri_json.null then return values.None end
  if kind ~= "table" then
    values.raise("variable '%s' holds a %s: strings, numbers, booleans and tables are expected", name, kind)
  end
  if getmetatable(v) == Box then
    values.allow(v.worth)
    return v.value
  end
  values.allow(1000)
  if depth > DEPTH_MAX then values.raise("variable '%s' is nested deeper than %d", name, DEPTH_MAX) end
  local n, count = #v, 0
  for _ in pairs(v) do count = count + 1 end
  if getmetatable(v) == array_mark or n > 0 or count == 0 and lists[name] and not from_json(v) then
    if n ~= count then values.raise("variable '%s' has a table with both named and numbered values, or holes", name) end
    local out = {}
    for i = 1, n do out[i] = convert(v[i], depth + 1, name) end
    return values.list(out, n)
  end
  for key in pairs(v) do
    if type(key) ~= "string" then values.raise("variable '%s' has a key that is a %s", name, type(key)) end
  end
  local keys = peri_json.keys(v)
  if not from_json(v) then keys = values.sort(keys, count, before) end
  local out = values.dict()
  for i = 1, count do values.put(out, keys[i], convert(v[keys[i]], depth + 1, keys[i])) end
  return out
end

--- Variables of a rendering.
--- @param vars table?
--- @return table
function M.variables(vars)
  local out = {}
  for name, v in pairs(vars or {}) do
    if type(name) ~= "string" then values.raise("a variable is named by a %s", type(name)) end
    out[name] = convert(v, 0, name)
  end
  return out
end

--- @param v any  a value of values.lua
--- @param worth integer?  steps that it adds to a rendering
function M.box(v, worth) return setmetatable({ value = v, worth = worth or 1000 }, Box) end

--- The elements of a boxed list, boxed, or nil.
--- @param v any
--- @return table?
function M.unboxed_list(v)
  if getmetatable(v) ~= Box or type(v.value) ~= "table" or v.value.t ~= "list" then return nil end
  local out = {}
  for i = 1, v.value.n do out[i] = M.box(v.value[i], v.worth // v.value.n) end
  return out
end

--- A member of a message, boxed or not.
--- @param v table
--- @param key string
--- @return any
function M.member(v, key)
  if getmetatable(v) ~= Box then return v[key] end
  return type(v.value) == "table" and v.value.t == "dict" and v.value.map[key] or nil
end

--- @param pairs_of table  list of { key, value }
function M.dict(pairs_of)
  local out = values.dict()
  for _, pair in ipairs(pairs_of) do values.put(out, pair[1], convert(pair[2], 1, tostring(pair[1]))) end
  return M.box(out)
end

return M
