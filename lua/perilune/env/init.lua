-- perilune.env: environments for reinforcement learning, single or many at once. docs/environments.md.
local batch = require "perilune.env.batch"
local core = require("perilune.core")._env
local dp = require "perilune.env.dp"
local options = require "perilune.options"
local spaces = require "perilune.env.space"
local wrappers = require "perilune.env.wrappers"

local M = { box = spaces.box, discrete = spaces.discrete, multi_discrete = spaces.multi_discrete,
  multi_binary = spaces.multi_binary, dict = spaces.dict }

local written = {} -- those registered from Lua, by id

local function known()
  local list = {}
  for _, entry in ipairs(core.list()) do list[entry.id] = entry end
  for id, spec in pairs(written) do list[id] = { id = id, doc = spec.doc, options = {} } end
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

local spec_rules = {
  id = options.value("Lua-v0", "string", "its name, as in messages"),
  doc = options.value("An environment written in Lua.", "string", "a sentence"),
  obs = options.value(options.required, "table", "space of the observations"),
  action = options.value(options.required, "table", "space of the actions"),
  reset = options.value(options.required, "callable",
    "(s, obs, rng, mask): begin an episode in the empty table s; returns the observation where it is discrete"),
  step = options.value(options.required, "callable",
    "(s, action, obs, rng, mask) -> reward, terminated, truncated, and the observation where it is discrete"),
  max_steps = options.integer(0, "[0, inf)", "time limit; 0: none"),
  mask = options.boolean(false, "reset and step say which actions are legal next, in the list mask"),
  batch = options.boolean(false, "written with tensor ops, for all rows at once: reset (S, rows, rng) -> obs, mask; " ..
    "step (S, actions, rng) -> obs, reward, terminated, truncated, mask"),
  text = options.value(options.none, "callable", "(s) -> a picture in characters"),
  render = options.value(options.none, "callable", "(s, frame): draw it, see peri.frame"),
  save = options.value(options.none, "callable", "(s) -> plain values; default: a copy of s"),
  load = options.value(options.none, "callable", "(plain values) -> s"),
}

local function checked(who, spec)
  local o = options.fill(who, spec, spec_rules)
  for _, name in ipairs { "obs", "action" } do
    if not spaces.is_space(o[name]) then
      options.raise(("%s: %s: %s, expected a space such as peri.env.discrete(2)"):format(who, o.id,
        options.is(name, o[name])))
    end
  end
  if o.mask and o.action.kind ~= "discrete" then
    options.raise(("%s: %s: only discrete actions have a mask"):format(who, o.id))
  end
  if (o.save == nil) ~= (o.load == nil) then options.raise(("%s: %s: save and load go together"):format(who, o.id)) end
  return o
end

--- Make an environment that is written in Lua known by its id; a later one of that id takes its place.
--- @param spec table
--- @return string id
function M.register(spec)
  local o = checked("env.register", spec)
  if spec.id == nil then options.raise "env.register: id is missing" end
  for _, entry in ipairs(core.list()) do
    if entry.id == o.id then options.raise(("env.register: an environment %s is there already"):format(o.id)) end
  end
  written[o.id] = o
  return o.id
end
options.declare(M.register, {}, spec_rules)

--- An environment by its id, or the table of one that is written in Lua (as register takes it): n of them at once, or
--- without n a single one. Options that are not listed below are the environment's own; a list of them is a text with
--- commas.
--- @param id string|table
--- @param opts table?
--- @return perilune.env.Env
function M.make(id, opts)
  options.argument("env.make", "id", id, "string or table")
  options.argument("env.make", "opts", opts or {}, "table")
  local how
  local own, given, args, names = {}, {}, {}, options.names(batch.rules)
  if type(id) == "table" then
    how = checked("env.make", id)
  else
    local entry = known()[id]
    if not entry then options.raise("env.make: " .. options.unknown("environment", id, M.ids())) end
    for _, o in ipairs(entry.options) do own[o.name], names[#names + 1] = true, o.name end
    how = written[id] or id
  end
  for k, v in pairs(opts or {}) do
    if batch.rules[k] then given[k] = v
    elseif own[k] then args[k] = type(v) == "table" and table.concat(v, ",") or v
    else
      options.raise(("env.make: %s: %s"):format(type(how) == "table" and how.id or how,
        options.unknown("option", k, names)))
    end
  end
  local env = batch.make(how, options.fill("env.make", given, batch.rules), args)
  return env
end
options.declare(M.make, { "id" }, batch.rules)

M.python = require "perilune.env.python"
M.check = require "perilune.env.check"

--- A generator whose draws are those of NumPy's default_rng(seed): double, uniform, integer, normal, state, set_state.
--- @param seed integer?
--- @return table
function M.rng(seed) return core.rng(seed) end

M.optimal, M.evaluate = dp.optimal, dp.evaluate
for name, wrapper in pairs(wrappers) do M[name] = wrapper end

return require "perilune.names"(M, "perilune.env")
