-- show.lua - values as text: what the prompt prints. Tables are nested, in a width, cut where they are long or deep;
-- lists first, then the keys in order; objects speak through __tostring.
local peri = require "perilune.core"
local options = require "perilune.options"

-- Styles of a terminal.
local codes = { string = "32", number = "36", constant = "35", name = "1", faint = "2" }

local KEYS <const> = 2000 -- of a table that are looked at and sorted
local LINES <const> = 50  -- after which tables stay closed
local TEXT <const> = 500  -- bytes of a text inside a table
local NAMES <const> = { ["and"] = true, ["break"] = true, ["do"] = true, ["else"] = true, ["elseif"] = true,
  ["end"] = true, ["false"] = true, ["for"] = true, ["function"] = true, ["goto"] = true, ["if"] = true,
  ["in"] = true, ["local"] = true, ["nil"] = true, ["not"] = true, ["or"] = true, ["repeat"] = true,
  ["return"] = true, ["then"] = true, ["true"] = true, ["until"] = true, ["while"] = true }

local Printer = {}
Printer.__index = Printer

-- Text with a style and the columns that it takes.
function Printer:paint(text, style)
  local columns = utf8.len(text) or #text
  if not (self.colour and codes[style]) then return text, columns end
  return ("\27[%sm%s\27[0m"):format(codes[style], text), columns
end

local function number_text(v)
  if v ~= v then return "nan" end
  return tostring(v)
end

local escapes = { ["\n"] = "\\n", ["\r"] = "\\r", ["\t"] = "\\t", ['"'] = '\\"', ["\\"] = "\\\\" }

local function quote(s)
  local more = #s > TEXT and ("... (%d bytes)"):format(#s) or ""
  if more ~= "" then s = s:sub(1, TEXT) end
  local odd = utf8.len(s) and '[%c\127"\\]' or '[%c\127-\255"\\]'
  return '"' .. s:gsub(odd, function (c) return escapes[c] or ("\\x%02x"):format(c:byte()) end) .. '"' .. more
end

-- What stands between the parentheses of a function.
local function parameters(f)
  local known = peri.describe(f)
  if known and known.params then
    local list = {}
    for i, p in ipairs(known.params) do list[i] = p.optional and p.name .. "?" or p.name end
    return table.concat(list, ", ")
  end
  if known then return known.sig end
  local info, names = debug.getinfo(f, "uS"), {}
  if info.what == "C" then return nil end
  for i = 1, info.nparams do names[i] = debug.getlocal(f, i) end
  if info.isvararg then names[#names + 1] = "..." end
  return table.concat(names, ", ")
end

local function function_text(f)
  local known = peri.describe(f)
  local sig = parameters(f)
  return "function" .. (known and " " .. known.name or "") .. (sig and "(" .. sig .. ")" or "")
end

local function module_name(t)
  for name, value in pairs(package.loaded) do
    if value == t and name ~= "_G" then return name == "perilune.core" and "perilune" or name end
  end
end

local function class_name(t)
  local meta = getmetatable(t)
  local name = type(meta) == "table" and rawget(meta, "__name")
  return type(name) == "string" and name or nil
end

local function is_class(t)
  local meta = getmetatable(t)
  return type(meta) == "table" and rawget(meta, "__call") ~= nil and rawget(t, "__index") ~= nil
    and type(rawget(t, "__name")) == "string"
end

local function speaks(v)
  local meta = debug.getmetatable(v)
  return type(meta) == "table" and rawget(meta, "__tostring") ~= nil
end

local function spoken(v)
  local ok, text = pcall(tostring, v)
  return ok and text or ("(its __tostring fails: %s)"):format(tostring(text))
end

-- A tensor inside a table: one line, with its values where they are few.
local function tensor_text(x)
  local text = spoken(x)
  local head, rest = text:match "^([^\n]*)\n(.*)$"
  if not head then return text end
  return #rest <= 40 and not rest:find "\n" and head .. " " .. rest or head
end

-- What needs no opening: text and style; nil for a table that has to be looked into.
function Printer:leaf(v, depth)
  local kind = type(v)
  if kind == "string" then return quote(v), "string" end
  if kind == "number" then return number_text(v), "number" end
  if kind == "nil" or kind == "boolean" then return tostring(v), "constant" end
  if kind == "function" then return function_text(v), "faint" end
  if peri.is_tensor(v) then return tensor_text(v), "name" end
  if speaks(v) or kind ~= "table" then return spoken(v), "name" end
  if depth > 0 then
    local name = module_name(v)
    if name then return "module " .. name, "faint" end
  end
  if is_class(v) then return "class " .. rawget(v, "__name"), "name" end
  if self.path[v] then return "(the table around it)", "faint" end
  if next(v) == nil then return (class_name(v) or "") .. "{}" end
  if depth >= self.depth then return (class_name(v) or "") .. "{...}", "faint" end
  return nil
end

local order = { number = 1, string = 2, boolean = 3 }

-- Numbers first, then texts with the numbers in them in their order: layer2, layer10.
local function before(a, b)
  local ka, kb = order[type(a)] or 4, order[type(b)] or 4
  if ka ~= kb then return ka < kb end
  if ka == 1 then return a < b end
  if ka == 2 then
    local na = a:gsub("%d+", function (d) return ("0"):rep(12 - #d) .. d end)
    local nb = b:gsub("%d+", function (d) return ("0"):rep(12 - #d) .. d end)
    if na ~= nb then return na < nb end
    return a < b
  end
  return spoken(a) < spoken(b)
end

-- Length of the list part, the other keys in order, how many more there are. An object's private fields stay so.
local function keys_of(t)
  local n, keys, more, class = rawlen(t), {}, 0, class_name(t)
  for key in next, t do
    local listed = math.type(key) == "integer" and key >= 1 and key <= n
    local private = class and type(key) == "string" and key:sub(1, 1) == "_"
    if not listed and not private then
      if #keys < KEYS then keys[#keys + 1] = key else more = more + 1 end
    end
  end
  table.sort(keys, before)
  return n, keys, more
end

function Printer:key(key)
  if type(key) == "string" and key:find "^[%a_][%w_]*$" and not NAMES[key] then return self:paint(key .. " = ") end
  local text, style = self:leaf(key, math.huge)
  local inner, columns = self:paint(text or "{...}", style)
  return "[" .. inner .. "] = ", columns + 5
end

-- On one line of so many columns, or nil.
function Printer:flat(v, depth, room)
  local text, style = self:leaf(v, depth)
  if text then
    if text:find "\n" then return nil end
    local painted, columns = self:paint(text, style)
    if columns <= room then return painted, columns end
    return nil
  end
  local n, keys, more = keys_of(v)
  if n + #keys + more > room then return nil end -- an item has two columns and more
  local name = class_name(v)
  local out, columns = { name and self:paint(name, "name") .. " " or "" }, (name and #name + 1 or 0) + 2
  self.path[v] = true
  local function put(lead, lead_columns, value)
    local item, width = self:flat(value, depth + 1, room - columns - lead_columns)
    if not item then return false end
    out[#out + 1] = lead .. item
    columns = columns + lead_columns + width + 2
    return columns <= room + 2
  end
  local fits = true
  for i = 1, n do fits = fits and put("", 0, rawget(v, i)) end
  for _, key in ipairs(keys) do
    if not fits then break end
    local lead, lead_columns = self:key(key)
    fits = put(lead, lead_columns, rawget(v, key))
  end
  self.path[v] = nil
  if not fits then return nil end
  return out[1] .. "{" .. table.concat(out, ", ", 2) .. "}", columns - 2
end

-- Short items of a list side by side; nil when one of them is long or not a leaf.
function Printer:row_of(v, n, depth, indent, room)
  local cells, widest = {}, 0
  for i = 1, n do
    local text, style = self:leaf(rawget(v, i), depth + 1)
    if not text or text:find "\n" then return nil end
    local painted, columns = self:paint(text, style)
    if columns > 24 then return nil end
    cells[i] = { painted, columns }
    widest = math.max(widest, columns)
  end
  local lines, line, used = {}, {}, 0
  for i, cell in ipairs(cells) do
    if used + widest + 2 > room and #line > 0 then
      lines[#lines + 1] = table.concat(line):gsub(" +$", "")
      line, used = {}, 0
    end
    line[#line + 1] = (" "):rep(type(rawget(v, i)) == "number" and widest - cell[2] or 0) .. cell[1] .. ", "
      .. (" "):rep(type(rawget(v, i)) == "number" and 0 or widest - cell[2])
    used = used + widest + 2
  end
  lines[#lines + 1] = table.concat(line):gsub(" +$", "")
  self.lines = self.lines + #lines
  return table.concat(lines, "\n" .. indent)
end

-- A text of several lines: whole where it is what was asked for, its beginning inside of something else.
function Printer:block(text, depth, indent)
  local lines = {}
  for line in (text .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  local most = depth <= 1 and 12 or 1
  if #lines > most and most == 1 then return lines[1] .. " ..." end
  if #lines > most then lines = { table.unpack(lines, 1, most), [most + 1] = "..." } end
  self.lines = self.lines + #lines
  return table.concat(lines, "\n" .. indent .. "  ")
end

-- Over as many lines as it takes; room is that of the first line from its column on. Once a screen is full, what does
-- not fit on a line stays closed.
function Printer:full(v, depth, indent, room)
  self.lines = self.lines + 1
  local flat = self:flat(v, depth, room)
  if flat then return flat end
  local text, style = self:leaf(v, depth)
  if text then -- a long text is cut, one of lines is indented
    if not text:find "\n" then
      local most = math.max(room - 3, 20)
      if (utf8.len(text) or #text) > most then
        text = text:sub(1, (utf8.offset(text, most + 1) or #text + 1) - 1) .. "..."
      end
      return (self:paint(text, style))
    end
    return self:block(text, depth, indent)
  end
  if depth > 0 and self.lines > LINES then return (self:paint((class_name(v) or "") .. "{...}", "faint")) end
  local n, keys, more = keys_of(v)
  local inner = indent .. "  "
  local width = self.width - #inner - 1
  local name = class_name(v)
  local lines = { (name and self:paint(name, "name") .. " " or "") .. "{" }
  local function note(count) lines[#lines + 1] = inner .. self:paint(("... %d more"):format(count), "faint") end
  local rows = depth == 0 and 40 or depth == 1 and 12 or 6
  self.path[v] = true
  local shown = math.min(n, 3 * rows)
  local side_by_side = shown > 0 and self:row_of(v, shown, depth, inner, width)
  if side_by_side then lines[#lines + 1] = inner .. side_by_side
  else
    shown = math.min(n, rows)
    for i = 1, shown do
      lines[#lines + 1] = inner .. self:full(rawget(v, i), depth + 1, inner, width) .. ","
    end
  end
  if shown < n then note(n - shown) end
  local most = math.min(#keys, rows)
  if most == #keys - 1 then most = #keys end
  for i = 1, most do
    local lead, columns = self:key(keys[i])
    lines[#lines + 1] = inner .. lead .. self:full(rawget(v, keys[i]), depth + 1, inner, width - columns) .. ","
  end
  if most < #keys + more then note(#keys + more - most) end
  self.path[v] = nil
  lines[#lines + 1] = indent .. "}"
  return table.concat(lines, "\n")
end

-- The names that a module offers, in lines.
function Printer:module(t, name)
  local names = {}
  for key in next, t do
    if type(key) == "string" and key:sub(1, 1) ~= "_" then names[#names + 1] = key end
  end
  table.sort(names)
  local lines, line = { ("module %s, explained by help(x):"):format(name) }, " "
  for _, word in ipairs(names) do
    if #line + #word + 1 > self.width then
      lines[#lines + 1], line = line, " "
    end
    line = line .. " " .. word
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
end

local rules = {
  width = options.integer(80, "[20, inf)", "columns that a line may take"),
  depth = options.integer(5, "[0, inf)", "tables in each other before {...} stands for one"),
  colour = options.boolean(false, "with the colours of a terminal"),
}

--- A value as the prompt prints it: tables nested, in a width, cut where they are long or deep, list first, keys in
--- order, texts quoted; objects as their __tostring says; a table that holds itself is marked.
--- @param value any
--- @param opts table?  width, depth, colour
--- @return string
local function show(value, opts)
  local o = options.fill("show", opts, rules)
  local printer = setmetatable({ width = o.width, depth = o.depth, colour = o.colour, path = {}, lines = 0 }, Printer)
  if type(value) == "string" then return value end
  if speaks(value) then return spoken(value) end
  if type(value) == "table" then
    local name = module_name(value)
    if name then return printer:module(value, name) end
  end
  return printer:full(value, 0, "", o.width)
end

options.declare(show, { "value" }, rules)

return show
