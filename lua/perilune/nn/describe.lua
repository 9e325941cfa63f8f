-- describe.lua - modules as text. A module is the tree of those in it, each as Lua reaches it: layers[1] is layers.0
-- in a state dict. A class with a `heading` (a published model) is that and the tree of its tensors with their numbers,
-- layers that are alike on one line.
local options = require "perilune.options"
local walk = require "perilune.nn.walk"

local M = {}

--- 1234567 as "1,234,567".
--- @param n integer
--- @return string
function M.grouped(n)
  return (("%d"):format(n):reverse():gsub("(%d%d%d)", "%1,"):reverse():gsub("^,", ""))
end

local grouped = M.grouped

--- A path as Lua reaches it: files count from 0, Lua from 1, so that "0" is [1] and "layers.1" is layers[2].
--- @param path string
--- @return string
function M.shown(path)
  return (("." .. path):gsub("%.(%d+)%f[.\0]", function (n) return ("[%d]"):format(n + 1) end):gsub("^%.", ""))
end

local shown = M.shown

local function name_of(object)
  local meta = getmetatable(object)
  return type(meta) == "table" and type(meta.__name) == "string" and meta.__name or "object"
end

-- ---- modules ----

-- "1,234 parameters, 200 of them frozen", or nothing.
local function count_text(self)
  local ok, list = pcall(self.parameters, self)
  if not ok or #list == 0 then return "" end
  local n, frozen = 0, 0
  for _, p in ipairs(list) do
    n = n + p:numel()
    if not p.requires_grad then frozen = frozen + p:numel() end
  end
  return (", %s parameters%s"):format(grouped(n), frozen > 0 and (", %s of them frozen"):format(grouped(frozen)) or "")
end

-- One line for a module: what its class says in one line, where it has a text of its own.
local function line_of(module)
  local meta = getmetatable(module)
  if meta.__tostring ~= M.describe or meta.heading then
    local ok, text = pcall(meta.__tostring, module)
    return (ok and text or name_of(module)):match "^[^\n]*", true
  end
  local ok, extra = pcall(meta.extra, module)
  return ("%s(%s)"):format(name_of(module), ok and tostring(extra) or "?"):gsub("\n", " "), false
end

--- A function for the paths of modules, parents first: a path's depth is that of the module it stands in, as
--- indentation, and its text what follows that module's path.
--- @return fun(path: string): string
function M.places()
  local depth_of = { [""] = -1 }
  return function (path)
    local parent = path
    repeat parent = parent:match "^(.*)%.[^%.]*$" or "" until depth_of[parent]
    depth_of[path] = depth_of[parent] + 1
    return ("  "):rep(depth_of[path] + 1) .. shown(parent == "" and path or path:sub(#parent + 2))
  end
end

local function module_tree(self)
  local lines, place, closed = {}, M.places(), {}
  local function hidden(label)
    for _, at in ipairs(closed) do if label:sub(1, #at) == at then return true end end
    return false
  end
  walk.walk(self, {
    module = function(label, module)
      if hidden(label) then return end
      local text, whole = line_of(module)
      lines[#lines + 1] = (label == "" and "" or place(label) .. ": ") .. text
      if whole and label ~= "" then closed[#closed + 1] = label .. "." end
    end,
    again = function(label, object, first)
      if not walk.is_module(object) or hidden(label) then return end
      local same = first == "" and ", the whole" or ", the same as " .. first
      lines[#lines + 1] = place(label) .. ": " .. name_of(object) .. same
    end,
  })
  lines[1] = lines[1] .. count_text(self)
  return table.concat(lines, "\n")
end

-- ---- tensors ----

-- Put the tensors of a list, each with what is left of its path, into lines: single ones, and the members of a stack
-- ("layers.3.qkv.weight"), of which neighbours that are alike are one. Returns how many of the numbers are trained.
local function tensor_tree(list, indent, lines)
  local i, sum, last = 1, 0, nil
  while i <= #list do
    local p = list[i]
    local stack, index = p.rest:match "^(.-)%.(%d+)%."
    if not stack then
      local row = ("%s%s%s"):format(indent, p.rest, (" "):rep(26 - #indent - #p.rest))
      lines[#lines + 1] = ("%s %-16s %14s"):format(row, options.shape(p.tensor), grouped(p.tensor:numel()))
      sum = sum + (p.kind == "parameter" and p.tensor:numel() or 0)
      i, last = i + 1, nil
    else
      local prefix, members, inner = ("%s.%s."):format(stack, index), {}, {}
      while list[i] and list[i].rest:sub(1, #prefix) == prefix do
        local m = list[i]
        members[#members + 1] = { rest = m.rest:sub(#prefix + 1), tensor = m.tensor, kind = m.kind }
        i = i + 1
      end
      local total = tensor_tree(members, indent .. "  ", inner)
      local text, number = table.concat(inner, "\n"), math.tointeger(index) + 1 -- Lua counts from 1
      sum = sum + total
      if last and last.stack == stack and last.text == text then last.to = number
      else
        last = { stack = stack, from = number, to = number, text = text, at = #lines + 1 }
        lines[#lines + 1] = ""
        table.move(inner, 1, #inner, #lines + 1, lines)
      end
      local range = last.to > last.from and ("%s[%d] to [%d], each"):format(stack, last.from, last.to)
        or ("%s[%d]"):format(stack, last.from)
      lines[last.at] = ("%s%s%s %14s"):format(indent, range, (" "):rep(43 - #indent - #range), grouped(total))
    end
  end
  return sum
end

--- A module as text: see the head of this file.
--- @param self perilune.nn.Module
--- @return string
function M.describe(self)
  if not self.heading then return module_tree(self) end
  local ok, head = pcall(self.heading, self)
  local known, places = pcall(walk.places, self)
  local lines, entries = { ok and head or self.__name }, {}
  for i, place in ipairs(known and places or {}) do
    entries[i] = { rest = place.path, tensor = place.tensor, kind = place.kind }
  end
  tensor_tree(entries, "  ", lines)
  return table.concat(lines, "\n")
end

return M
