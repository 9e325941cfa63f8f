-- describe.lua - a model as text: its sizes, then its weights as a tree with the number of parameters, layers that are
-- alike on one line.
local options = require "perilune.options"
local weights = require "perilune.models.weights"

local function grouped(n)
  local s, k = ("%d"):format(n), 1
  while k > 0 do s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2") end
  return s
end

local function numel(shape)
  local n = 1
  for _, size in ipairs(shape) do n = n * size end
  return n
end

-- Put the weights of a list, each with what is left of its name, into lines: single ones, and the members of a stack
-- ("layers.3.qkv"), of which neighbours that are alike are one. Returns how many of the numbers are trained.
local function tree(list, indent, lines)
  local i, sum, last = 1, 0, nil
  while i <= #list do
    local p = list[i]
    local stack, index = p.rest:match "^(.-)%.(%d+)%."
    if not stack then
      local row = ("%s%s%s"):format(indent, p.rest, (" "):rep(26 - #indent - #p.rest))
      lines[#lines + 1] = ("%s %-16s %14s"):format(row, options.shape(p.shape), grouped(numel(p.shape)))
      sum = sum + (p.trained and numel(p.shape) or 0)
      i, last = i + 1, nil
    else
      local prefix, members, inner = ("%s.%s."):format(stack, index), {}, {}
      while list[i] and list[i].rest:sub(1, #prefix) == prefix do
        local m = list[i]
        members[#members + 1] = { rest = m.rest:sub(#prefix + 1), shape = m.shape, trained = m.trained }
        i = i + 1
      end
      local total = tree(members, indent .. "  ", inner)
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

local sizes = { "vocab", "dim", "layers", "decoder_layers", "heads", "kv_heads", "head_dim", "ff", "experts",
  "positions", "tied" }

--- @param model perilune.models.Model
--- @return string
return function (model)
  local dtypes, seen, entries = {}, {}, {}
  for _, p in ipairs(model._layout or {}) do
    local owner, key = weights.at(model, p)
    local t = owner and owner[key]
    local ok, dtype = pcall(function () return t and t.dtype end)
    if ok and dtype and not seen[dtype] then
      seen[dtype], dtypes[#dtypes + 1] = true, dtype
    end
    entries[#entries + 1] = { rest = p.path, shape = p.shape, trained = p.kind == "parameter" }
  end
  local ok, count = pcall(model.num_parameters, model)
  local settings = {}
  for _, name in ipairs(sizes) do
    local value = model.settings and model.settings[name]
    if type(value) == "number" or value == true then settings[#settings + 1] = ("%s %s"):format(name, value) end
  end
  local out = {
    ("%s, %s parameters, %s"):format(model.__name, ok and grouped(count) or "?", table.concat(dtypes, " and ")),
    "  " .. table.concat(settings, ", "),
  }
  tree(entries, "  ", out)
  return table.concat(out, "\n")
end
