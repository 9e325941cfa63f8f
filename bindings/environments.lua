-- environments.lua - the generated part of docs/environments.md: what the built-in environments say of themselves.
-- Between <!-- generated from the built-in environments --> and <!-- end -->. Returns function() -> text.
local peri = require "perilune"
local core = require("perilune.core")._env

local function code(text) return "`" .. text .. "`" end
local function cell(text) return (text:gsub("|", "\\|")) end

local function number(x)
  if x == math.huge then return "inf" elseif x == -math.huge then return "-inf" end
  return ("%.4g"):format(x)
end

local function bounds(low, high)
  if low == -high then return "±" .. number(high) end
  return number(low) .. " to " .. number(high)
end

-- "Box (4) f32: ±4.8, ±inf, ..."
local function space(s)
  if s.kind == "discrete" then return ("Discrete(%d)"):format(s.n) end
  if s.kind == "multi_discrete" then return "MultiDiscrete(" .. table.concat(s.nvec, ", ") .. ")" end
  local list = {}
  if type(s.low) == "table" then
    for i, low in ipairs(s.low) do list[i] = bounds(low, s.high[i]) end
  else list[1] = bounds(s.low, s.high) end
  return ("Box (%s) %s: %s"):format(table.concat(s.shape, ", "), s.dtype, table.concat(list, ", "))
end

local function default(v)
  if type(v) == "string" then return v ~= "" and code(v) or "" end
  return number(v)
end

return function ()
  local out = { "", "| id | observation | action | time limit | threshold |", "| --- | --- | --- | --- | --- |" }
  local list = core.list()
  for _, e in ipairs(list) do
    local env = peri.env.make(e.id)
    out[#out + 1] = ("| %s | %s | %s | %s | %s |"):format(code(e.id), space(env.obs_space), space(env.action_space),
      env.max_steps or "", env.reward_threshold and number(env.reward_threshold) or "")
  end
  out[#out + 1] = ""
  for _, e in ipairs(list) do
    out[#out + 1] = ("#### %s\n\n%s"):format(code(e.id), e.doc)
    if #e.options > 0 then out[#out + 1] = "\n| option | default | |\n| --- | --- | --- |" end
    for _, o in ipairs(e.options) do
      out[#out + 1] = ("| %s | %s | %s |"):format(code(o.name), default(o.default), cell(o.doc))
    end
    out[#out + 1] = ""
  end
  return table.concat(out, "\n") .. "\n"
end
