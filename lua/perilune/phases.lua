-- phases.lua - where the time of a run goes: what a recipe prints with --profile. The library marks what it does, as
-- `local phase <close> = phases.open "rollout"`; of marks inside one another the outermost counts, so that the times
-- add up to the whole. Off, a mark is one call that returns nil.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local usual = { "rollout", "score", "forward", "backward", "optimizer", "evaluate" } -- in this order, then any others

local on, open, since, began, backward
local spent, calls = {}, {}

local closer = setmetatable({}, { __close = function ()
  if not open then return end -- turned off meanwhile
  spent[open], calls[open] = (spent[open] or 0) + peri.time() - since, (calls[open] or 0) + 1
  open = nil
end })

--- Mark the rest of a block: local phase <close> = phases.open(name).
--- @param name string
--- @return table?  nil when nobody measures, or in another phase
function M.open(name)
  if not on or open then return nil end
  open, since = name, peri.time()
  return closer
end

--- Measure from now on. Backward passes, a method in C, are wrapped for as long.
function M.start()
  spent, calls, on, open, began = {}, {}, true, nil, peri.time()
  if backward then return end
  backward = peri.zeros {}.backward
  local plain = backward
  peri._method("backward", function (...)
    local phase <close> = M.open "backward" -- luacheck: ignore 211
    return plain(...)
  end)
end

--- End it.
--- @return table rows  { name, calls, seconds, share } of every phase that there was, and of "other" last
--- @return number seconds  of all
function M.stop()
  local all, rows = peri.time() - began, {}
  local left = all
  local names, listed = table.move(usual, 1, #usual, 1, {}), {}
  table.move(options.names(spent), 1, #options.names(spent), #names + 1, names)
  for _, name in ipairs(names) do
    if spent[name] and not listed[name] then
      listed[name] = true
      rows[#rows + 1] = { name = name, calls = calls[name], seconds = spent[name], share = spent[name] / all }
      left = left - spent[name]
    end
  end
  rows[#rows + 1] = { name = "other", seconds = left, share = left / all }
  if backward then peri._method("backward", backward) end
  on, open, backward = nil, nil, nil
  return rows, all
end

--- The same as lines for people.
--- @return string
function M.report()
  local rows, all = M.stop()
  local lines = { ("%-10s %9s %11s %7s"):format("phase", "calls", "seconds", "share") }
  for _, row in ipairs(rows) do
    lines[#lines + 1] = ("%-10s %9s %11.3f %6.1f%%"):format(row.name, row.calls or "", row.seconds, 100 * row.share)
  end
  lines[#lines + 1] = ("%-10s %9s %11.3f"):format("all", "", all)
  return table.concat(lines, "\n")
end

return M
