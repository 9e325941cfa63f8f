-- perilune.env: environments for reinforcement learning, single or many at once. docs/environments.md.
local batch = require "perilune.env.batch"
local core = require("perilune.core")._env
local dp = require "perilune.env.dp"
local options = require "perilune.options"

local M = {}

local function known()
  local list = {}
  for _, entry in ipairs(core.list()) do list[entry.id] = entry end
  return list
end

--- Ids of the environments that are known, sorted.
--- @return string[]
function M.ids()
  local list = {}
  for id in pairs(known()) do list[#list + 1] = id end
  table.sort(list)
  return list
end

--- An environment by its id: n of them at once, or without n a single one. Options that are not listed below are the
--- environment's own; a list of them is a text with commas.
--- @param id string
--- @param opts table?
--- @return perilune.env.Env
function M.make(id, opts)
  options.argument("env.make", "id", id, "string")
  options.argument("env.make", "opts", opts or {}, "table")
  local entry = known()[id]
  if not entry then options.raise("env.make: " .. options.unknown("environment", id, M.ids())) end
  local own, given, args, names = {}, {}, {}, options.names(batch.rules)
  for _, o in ipairs(entry.options) do own[o.name], names[#names + 1] = true, o.name end
  for k, v in pairs(opts or {}) do
    if batch.rules[k] then given[k] = v
    elseif own[k] then args[k] = type(v) == "table" and table.concat(v, ",") or v
    else options.raise(("env.make: %s: %s"):format(id, options.unknown("option", k, names))) end
  end
  local env = batch.make(id, options.fill("env.make", given, batch.rules), args)
  return env
end
options.declare(M.make, { "id" }, batch.rules)

M.python = require "perilune.env.python"

--- A generator whose draws are those of NumPy's default_rng(seed): double, uniform, integer, normal, state, set_state.
--- @param seed integer?
--- @return table
function M.rng(seed) return core.rng(seed) end

M.optimal, M.evaluate = dp.optimal, dp.evaluate

return require "perilune.names"(M, "perilune.env")
