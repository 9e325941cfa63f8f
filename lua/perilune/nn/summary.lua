-- summary.lua - what each module of a net is, gives and costs. Shapes and arithmetic are those of one forward pass over
-- a given input, seen by hooks: each op's cost, as the op table has it, counts for the modules that it runs in.

local peri = require "perilune"
local describe = require "perilune.nn.describe"
local options = require "perilune.options"

--- @class perilune.nn.Module
local Module = {}

--- @class perilune.nn.Summary
--- @field parameters integer
--- @field trained integer  of them, those that take gradients
--- @field flops number?  of the whole forward pass
local Summary = { __name = "summary" }
Summary.__index = Summary

local WIDTH <const> = 80

-- 1.23e9 as "1.23 G".
local function short(n)
  if n == nil then return "" end
  for _, unit in ipairs { { 1e12, "T" }, { 1e9, "G" }, { 1e6, "M" }, { 1e3, "k" } } do
    if n >= unit[1] then return ("%.3g %s"):format(n / unit[1], unit[2]) end
  end
  return ("%.0f"):format(n)
end

-- A text in so many columns, cut where it is longer.
local function fit(text, width)
  if #text > width then return text:sub(1, width - 2) .. ".." end
  return text .. (" "):rep(width - #text)
end

local function cells(row) return { row.class, row.shape or "", describe.grouped(row.parameters), short(row.flops) } end

-- Rows to be printed: where "layers.0" and "layers.1" with all that is below them are alike, those of the first, which
-- says how far that goes: { row, last }.
local function blocks_of(rows)
  local out, i = {}, 1
  local function body(at, prefix) -- the rows of prefix, as one text
    local list, n = {}, 0
    while rows[at + n] do
      local path = rows[at + n].path
      if path ~= prefix and path:sub(1, #prefix + 1) ~= prefix .. "." then break end
      list[#list + 1] = path:sub(#prefix + 1) .. "\0" .. table.concat(cells(rows[at + n]), "\0")
      n = n + 1
    end
    return table.concat(list, "\n"), n
  end
  while i <= #rows do
    local stack, first = rows[i].path:match "^(.-)%.?(%d+)$"
    local last, skip = nil, 0
    if first then
      local prefix = stack == "" and "" or stack .. "."
      local text, n = body(i, rows[i].path)
      local number = math.tointeger(first)
      while rows[i + n + skip] and rows[i + n + skip].path == prefix .. (number + 1) do
        local other, m = body(i + n + skip, rows[i + n + skip].path)
        if other ~= text then break end
        number, skip = number + 1, skip + m
      end
      if skip > 0 then
        last = number
        for k = 0, n - 1 do out[#out + 1] = { row = rows[i + k], last = k == 0 and last } end
        i = i + n + skip
      end
    end
    if not last then
      out[#out + 1] = { row = rows[i] }
      i = i + 1
    end
  end
  return out
end

--- The rows as a table within 80 columns; neighbours that are alike in all that is below them are one.
function Summary:__tostring()
  local head = { "module", "class", "output", "parameters", "FLOPs" }
  local lines, widths = {}, { #head[1], #head[2], #head[3], #head[4], #head[5] }
  local list = {}
  local place = describe.places()
  for _, entry in ipairs(blocks_of(self)) do
    local row = entry.row
    local path = row.path == "" and "(all)" or place(row.path)
    if entry.last then path = ("%s to [%d]"):format(path, entry.last + 1) end
    local line = { path, table.unpack(cells(row)) }
    for k, text in ipairs(line) do widths[k] = math.max(widths[k], #text) end
    list[#list + 1] = line
  end
  if not self.flops then widths[3], widths[5] = 0, 0 end
  local gaps = self.flops and 8 or 4
  local spare = WIDTH - gaps - widths[4] - widths[5]
  widths[2] = math.min(widths[2], 18)
  widths[3] = math.min(widths[3], 24)
  widths[1] = math.min(widths[1], spare - widths[2] - widths[3])
  local function put(line)
    local text = fit(line[1], widths[1]) .. "  " .. fit(line[2], widths[2])
    if self.flops then text = text .. "  " .. fit(line[3], widths[3]) end
    text = text .. ("  %" .. widths[4] .. "s"):format(line[4])
    if self.flops then text = text .. ("  %" .. widths[5] .. "s"):format(line[5]) end
    lines[#lines + 1] = text
  end
  put(head)
  for _, line in ipairs(list) do put(line) end
  local flops = self.flops and short(self.flops)
  lines[#lines + 1] = ("%s parameters, %s of them trained%s"):format(describe.grouped(self.parameters),
    describe.grouped(self.trained), flops and (", %s%sFLOPs"):format(flops, flops:find " " and "" or " ") or "")
  return table.concat(lines, "\n")
end

-- The shapes of what a forward returned.
local function shapes(...)
  local list = {}
  for i = 1, select("#", ...) do
    local value = select(i, ...)
    if peri.is_tensor(value) then list[#list + 1] = options.shape(value) end
  end
  return table.concat(list, " ")
end

-- Run forward with hooks on all modules, as it is for inference, and forget that it was.
local function measure(self, rows, row_of, ...)
  local handles, started, modes, rng = {}, {}, {}, peri.rng_state()
  for _, row in ipairs(rows) do
    local module = row.module
    modes[module] = module.training
    handles[#handles + 1] = module:hook_before(function (m)
      started[m] = started[m] or {}
      table.insert(started[m], peri._flops())
    end)
    handles[#handles + 1] = module:hook(function (m, _, ...)
      local own = row_of[m]
      own.flops = (own.flops or 0) + peri._flops() - table.remove(started[m])
      own.shape, own.calls = shapes(...), (own.calls or 0) + 1
    end)
  end
  local inputs, total = table.pack(...), nil
  local ok, message = pcall(function ()
    self:eval()
    local _ <close> = peri.no_grad()
    local scope <close> = peri.scope() -- luacheck: ignore 211
    peri.profile(function ()
      self(table.unpack(inputs, 1, inputs.n))
      total = peri._flops()
    end)
  end)
  for i = #handles, 1, -1 do handles[i]:remove() end
  for module, mode in pairs(modes) do rawset(module, "training", mode) end
  peri.set_rng_state(rng)
  if not ok then error(message, 0) end
  return total
end

--- A table of the modules in this one, in order, which prints as one: { path, class, parameters (of all that is below
--- it, tied ones once), trained (of them), module } of each, and with an input what a forward pass of it gave: shape,
--- the output's as text, flops, the arithmetic by the ops' own costs, calls. The pass is one of inference (no
--- gradients, evaluation mode), and leaves mode and random numbers as they were.
---   print(net:summary(peri.randn { 1, 28 * 28 }))
--- @param ... any  what forward takes; nothing for a table without shapes and FLOPs
--- @return perilune.nn.Summary
function Module:summary(...)
  local rows, row_of = setmetatable({}, Summary), {}
  for i, entry in ipairs(self:named_modules()) do
    local module, n, trained = entry[2], 0, 0
    for _, p in ipairs(module:parameters()) do
      n = n + p:numel()
      if p.requires_grad then trained = trained + p:numel() end
    end
    rows[i] = { path = entry[1], class = getmetatable(module).__name, parameters = n, trained = trained,
      module = module }
    row_of[module] = rows[i]
  end
  rows.parameters, rows.trained = rows[1].parameters, rows[1].trained
  if select("#", ...) > 0 then rows.flops = measure(self, rows, row_of, ...) end
  return rows
end

return Module
