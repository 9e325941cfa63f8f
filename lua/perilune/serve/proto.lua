-- proto.lua - Protocol Buffers' wire format (protobuf.dev/programming-guides/encoding), by tables that say what a
-- message has:
-- { [number] = { name, kind, more } }. kind is "int", "bool", "double", "bytes" (text is bytes), or a table like
-- this one; more = "list" for repeated fields, "map" for maps, whose kind is that of the values.
local M = {}

local function fail(format, ...) error(format:format(...), 0) end

-- A variable-length integer at a place: its value and the place behind it.
local function varint(s, at, stop)
  local value, shift = 0, 0
  while true do
    if at > stop or shift > 63 then fail("protobuf: a number at byte %d has no end", at - 1) end
    local b = s:byte(at)
    value, at = value | (b & 127) << shift, at + 1
    if b < 128 then return value, at end
    shift = shift + 7
  end
end

local read

-- The payload of a field: its value, where it ends.
local function payload(s, at, stop, wire, number)
  if wire == 0 then return varint(s, at, stop) end
  if wire == 1 and at + 7 <= stop then return s:sub(at, at + 7), at + 8 end
  if wire == 5 and at + 3 <= stop then return s:sub(at, at + 3), at + 4 end
  if wire == 2 then
    local n, from = varint(s, at, stop)
    if n < 0 or n > stop - from + 1 then fail("protobuf: field %d is longer than what it is in", number) end
    return s:sub(from, from + n - 1), from + n
  end
  return fail("protobuf: field %d is of wire type %d or cut", number, wire)
end

local wires = { int = 0, bool = 0, double = 1, bytes = 2 }

local function value_of(kind, raw, name, deep)
  if type(kind) == "table" then return read(raw, kind, name, deep + 1) end
  if kind == "bool" then return raw ~= 0 end
  if kind == "double" then return (string.unpack("<d", raw)) end
  return raw
end

local function packed(s)
  local list, at = {}, 1
  while at <= #s do list[#list + 1], at = varint(s, at, #s) end
  return list
end

function read(s, message, what, deep)
  local out, at, stop = {}, 1, #s
  if deep > 16 then fail("protobuf: messages are nested too deep") end
  while at <= stop do
    local tag
    tag, at = varint(s, at, stop)
    local number, wire = tag >> 3, tag & 7
    local field = message[number]
    if not field then fail("%s: field number %d is not known here", what, number) end
    local name, kind, more = field[1], field[2], field[3]
    local raw
    raw, at = payload(s, at, stop, wire, number)
    local want = more == "map" and 2 or wires[kind] or 2
    if kind == "int" and more == "list" and wire == 2 then
      out[name] = table.move(packed(raw), 1, #s, #(out[name] or {}) + 1, out[name] or {})
    elseif wire ~= want then fail("%s: %s has wire type %d, expected %d", what, name, wire, want)
    elseif more == "map" then
      local entry = read(raw, { { "key", "bytes" }, { "value", kind } }, name, deep + 1)
      out[name] = out[name] or {}
      out[name][entry.key or ""] = entry.value == nil and (type(kind) == "table" and {} or 0) or entry.value
    elseif more == "list" then
      out[name] = out[name] or {}
      table.insert(out[name], value_of(kind, raw, name, deep))
    else out[name] = value_of(kind, raw, name, deep) end
  end
  return out
end

--- Read a message; raises what is wrong with it.
--- @param s string
--- @param message table
--- @param what string  its name, for messages
--- @return table
function M.read(s, message, what) return read(s, message, what, 0) end

local function put_varint(out, v)
  while v & ~127 ~= 0 do
    out[#out + 1] = string.char(v & 127 | 128)
    v = v >> 7
  end
  out[#out + 1] = string.char(v)
end

local function put_bytes(out, number, s)
  put_varint(out, number << 3 | 2)
  put_varint(out, #s)
  out[#out + 1] = s
end

local function put(out, number, kind, v)
  if type(kind) == "table" then put_bytes(out, number, M.write(v, kind))
  elseif kind == "bytes" then put_bytes(out, number, v)
  elseif kind == "double" then
    put_varint(out, number << 3 | 1)
    out[#out + 1] = string.pack("<d", v)
  else
    put_varint(out, number << 3)
    put_varint(out, kind == "bool" and (v and 1 or 0) or v)
  end
end

--- Write a message.
--- @param t table
--- @param message table
--- @return string
function M.write(t, message)
  local out, numbers = {}, {}
  for number in pairs(message) do numbers[#numbers + 1] = number end
  table.sort(numbers)
  for _, number in ipairs(numbers) do
    local field = message[number]
    local name, kind, more = field[1], field[2], field[3]
    local v = t[name]
    if v ~= nil and more == "list" then
      for _, one in ipairs(v) do put(out, number, kind, one) end
    elseif v ~= nil and more == "map" then
      local keys = {}
      for key in pairs(v) do keys[#keys + 1] = key end
      table.sort(keys)
      for _, key in ipairs(keys) do
        put_bytes(out, number, M.write({ key = key, value = v[key] }, { { "key", "bytes" }, { "value", kind } }))
      end
    elseif v ~= nil then put(out, number, kind, v) end
  end
  return table.concat(out)
end

return M
