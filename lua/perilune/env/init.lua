-- perilune.env: environments for reinforcement learning, single or many at once. docs/environments.md.
local agents = require "perilune.env.agents"
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
  for id, spec in pairs(written) do
    list[id] = { id = id, doc = spec.doc, options = {} }
    for _, name in ipairs(options.names(spec.options or {})) do
      table.insert(list[id].options, { name = name, default = spec.options[name] })
    end
  end
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
    "(s, obs, rng, mask, live), in these places whatever there is: begin an episode in the empty table s; writes obs, "
    .. "or returns the observation where it is discrete"),
  step = options.value(options.required, "callable",
    "(s, action, obs, rng, mask, metrics, live) -> reward, terminated, truncated, and the observation where it is "
    .. "discrete, else written into obs"),
  max_steps = options.integer(0, "[0, inf)", "time limit; 0: none"),
  mask = options.boolean(false,
    "reset and step say which actions are legal next, in the list mask, which begins with the first action at 1"),
  batch = options.boolean(false, "written with tensor ops, for all rows at once: reset (S, rows, rng) -> obs, mask; " ..
    "step (S, actions, rng) -> obs, reward, terminated, truncated, mask"),
  metrics = options.value(options.none, "table", "names of numbers that step may set in the table metrics, after mask"),
  agents = options.integer(1, "[1, 65536]", "that act in one environment: actions, obs, masks, metrics, rewards and " ..
    "flags are lists then; after metrics the list live says who acts next"),
  text = options.value(options.none, "callable", "(s) -> a picture in characters; with batch (S, row)"),
  render = options.value(options.none, "callable",
    "(s, frame): draw it into a peri.frame, of 400 x 300 unless frame:size comes first; with batch (S, frame, row)"),
  save = options.value(options.none, "callable", "(s) -> plain values; default: a copy of s"),
  load = options.value(options.none, "callable", "(plain values) -> s"),
  options = options.value(options.none, "table",
    "defaults, by name, of what make may be told: numbers, booleans, texts, lists"),
  configure = options.value(options.none, "callable",
    "(values of the options) -> a table of the fields above that depend on them"),
}

-- The same while configure has not run yet: nothing else is required.
local loose_rules = {}
for name, rule in pairs(spec_rules) do loose_rules[name] = rule end
for _, name in ipairs { "obs", "action" } do loose_rules[name] = options.value(options.none, "table", "") end
for _, name in ipairs { "reset", "step" } do loose_rules[name] = options.value(options.none, "callable", "") end

local plain = { number = true, boolean = true, string = true, table = true }

-- The spec with what configure says of the options given: a table without options.
local function configured(who, spec, given)
  local o, values = options.fill(who, spec, loose_rules), {}
  for name, default in pairs(o.options or {}) do
    if type(name) ~= "string" or not plain[type(default)] then
      options.raise(("%s: %s: option %s is a %s, expected a default by name: a number, boolean, text or list")
        :format(who, o.id, tostring(name), type(default)))
    elseif batch.rules[name] then
      options.raise(("%s: %s: option %s is make's own"):format(who, o.id, name))
    end
    local v = given[name]
    if v == nil then v = default end
    if type(v) ~= type(default) then
      options.raise(("%s: %s: %s, expected a %s"):format(who, o.id, options.is(name, v), type(default)))
    end
    values[name] = v
  end
  if not spec.configure then
    if o.options then options.raise(("%s: %s: options need configure"):format(who, o.id)) end
    return spec
  end
  local more = o.configure(values)
  if type(more) ~= "table" then
    options.raise(("%s: %s: configure returned %s, expected a table of fields"):format(who, o.id, type(more)))
  end
  local full = {}
  for k, v in pairs(spec) do full[k] = v end
  for k, v in pairs(more) do full[k] = v end
  full.options, full.configure = nil, nil
  return full
end

local function checked(who, spec, given)
  local o = options.fill(who, configured(who, spec, given or {}), spec_rules)
  for _, name in ipairs { "obs", "action" } do
    if not spaces.is_space(o[name]) then
      options.raise(("%s: %s: %s, expected a space such as peri.env.discrete(2)"):format(who, o.id,
        options.is(name, o[name])))
    end
  end
  if o.mask and o.action.kind ~= "discrete" then
    options.raise(("%s: %s: only discrete actions have a mask"):format(who, o.id))
  end
  for i, name in ipairs(o.metrics or {}) do
    if type(name) ~= "string" then
      options.raise(("%s: %s: metric %d is a %s, expected a name"):format(who, o.id, i, type(name)))
    end
  end
  if o.batch and o.agents > 1 then options.raise(("%s: %s: a batch has one agent a row"):format(who, o.id)) end
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
  written[o.id] = {} -- as it is now, with its defaults
  for k, v in pairs(spec) do written[o.id][k] = v end
  written[o.id].doc = o.doc
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
    how = id
    for name in pairs(type(id.options) == "table" and id.options or {}) do own[name], names[#names + 1] = true, name end
  else
    local entry = known()[id]
    if not entry then options.raise("env.make: " .. options.unknown("environment", id, M.ids())) end
    for _, o in ipairs(entry.options) do own[o.name], names[#names + 1] = true, o.name end
    how = written[id] or id
  end
  local in_lua = type(how) == "table"
  for k, v in pairs(opts or {}) do
    if batch.rules[k] then given[k] = v
    elseif own[k] then args[k] = not in_lua and type(v) == "table" and table.concat(v, ",") or v
    else
      options.raise(("env.make: %s: %s"):format(in_lua and how.id or in_lua and "Lua-v0" or how,
        options.unknown("option", k, names)))
    end
  end
  if in_lua then how = checked("env.make", how, args) end
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
for _, more in ipairs { wrappers, agents } do
  for name, fn in pairs(more) do M[name] = fn end
end
M.preferences = require("perilune.env.preferences").preferences
M.shape_reward = require("perilune.env.shaping").shape_reward

return require "perilune.names"(M, "perilune.env")
