-- policy.lua - trained policies as files: spaces, network, how an action is chosen, and the statistics that
-- observations were normalised with, all in one. runtime/env/policy.c runs them; a host needs no Lua for it.

local peri = require "perilune"
local options = require "perilune.options"
local program = require "perilune.rl.program"
local spaces = require "perilune.env.space"
local core = require("perilune.core")._policy

local M = {}

local KEY <const> = "perilune.policy" -- in the metadata of the file

-- ---- saving ----

local heads = { "categorical", "bernoulli", "greedy", "gaussian", "squashed", "tanh" }

local save_rules = {
  net = options.value(options.required, "module", "from observations to what the head reads: layers of nn, or a class "
    .. "with a method program(build, x)"),
  head = options.choice(options.required, heads, "what becomes of it: logits, logits of zeros and ones, action values, "
    .. "means of a Gaussian, the same through tanh, or numbers in [-1, 1]"),
  env = options.value(options.required, "table", "the environment, wrapped as in training"),
  log_std = options.value(options.none, "tensor", "of a gaussian or squashed head whose net gives the mean alone"),
  epsilon = options.number(0, "[0, 1]", "how often a greedy head takes any action, unless it acts deterministically"),
  metadata = options.value(options.none, "table", "further texts for the file's metadata"),
}

local null = peri.json.null

-- Bounds as JSON has them, which knows no infinity, one after the other whatever the shape is; and back.
local function finite(bound, list)
  if type(bound) ~= "table" then return math.abs(bound) < math.huge and bound or null end
  list = list or {}
  for _, v in ipairs(bound) do
    if type(v) == "table" then finite(v, list) else list[#list + 1] = finite(v) end
  end
  return list
end

local function infinite(bound, none)
  if type(bound) ~= "table" then return bound == null and none or bound end
  local list = {}
  for i, v in ipairs(bound) do list[i] = infinite(v, none) end
  return list
end

local function describe_space(s)
  if s.kind == "discrete" then return { kind = s.kind, n = s.n, start = s.start } end
  if s.kind == "multi_discrete" then return { kind = s.kind, nvec = s.nvec } end
  if s.kind == "multi_binary" then return { kind = s.kind, shape = s.shape } end
  return { kind = s.kind, dtype = s.dtype, shape = s.shape, low = finite(s.low), high = finite(s.high) }
end

local function space_of(s)
  if s.kind == "box" then
    return spaces.of { kind = "box", dtype = s.dtype, shape = s.shape, low = infinite(s.low, -math.huge),
                       high = infinite(s.high, math.huge) }
  end
  local dtype, shape = s.kind == "multi_binary" and "u8" or "i64", s.shape or s.nvec and { #s.nvec } or {}
  local n = s.n or not s.nvec and shape[1] or nil
  return spaces.of { kind = s.kind, dtype = dtype, shape = shape, nvec = s.nvec, n = n,
                     start = s.kind == "discrete" and (s.start or 0) or nil }
end

-- What wrappers did to observations before the network saw them.
local function normalised(build, x, env)
  for _, n in ipairs(env:normalizers()) do
    x = build:op("sub", { x, n.mean:to "f32" })
    x = build:op("mul", { x, (n.var + n.epsilon):rsqrt():to "f32" })
    if n.clip then x = build:op("clamp", { x }, { min = -n.clip, max = n.clip }) end
  end
  return x
end

local function build_program(o)
  local build = program.new { net = o.net }
  local x = "obs"
  local space = o.env.obs_space
  if space.kind == "box" and not space.dtype:find "^f" then x = build:op("to", { x }, { dtype = "f32" }) end
  local value, spread = build:module(o.net, normalised(build, x, o.env))
  if o.log_std then spread = build:op("clone", { o.log_std }) end
  return build, { value, spread }
end

-- What the file says of the environment's present observations against the network itself, where nothing lies between.
local function differs(o, path)
  if #o.env:normalizers() > 0 then return nil end
  local obs, space = o.env.obs, o.env.obs_space
  if type(obs) ~= "userdata" then obs = peri.tensor({ obs }, "i64") end
  if obs.ndim == #space.shape then obs = obs:unsqueeze(1) end
  local policy, message = M.load(path)
  if not policy then return message end
  local _ <close> = peri.no_grad()
  local x = space.kind == "box" and obs:to "f32" or obs
  local there, here = policy:act(obs, { deterministic = true }), (o.net:copy()(x))
  if o.head == "categorical" or o.head == "greedy" then
    if o.env.action_space.kind ~= "discrete" then return nil end
    here = here:argmax(-1) + o.env.action_space.start
  elseif o.head == "bernoulli" then here = here:gt(0)
  else return nil end
  return there:to("i64"):ne(here:to "i64"):any():item() and "it acts otherwise than the network" or nil
end

--- Save a policy: a file that `peri.rl.policy.load`, `perilune play` and `peri_policy_load` in C read. It takes the
--- observations that the environment itself gives, before any wrapper. Those that it gives now are put to the file, and
--- an answer other than the network's is an error.
---
---     peri.rl.policy.save("cartpole.safetensors", { net = net.actor, head = "categorical", env = env })
---
--- @param path string
--- @param opts table
function M.save(path, opts)
  local o = options.fill("policy.save", opts, save_rules)
  options.argument("policy.save", "path", path, "string")
  if getmetatable(o.net) == peri.nn.Copies then
    options.raise(("policy.save: net is nn.Copies of %d networks, and a file holds one: give it copies:single(i)")
      :format(o.net.n))
  end
  local build, result = build_program(o)
  local metadata = {}
  for key, text in pairs(o.metadata or {}) do metadata[key] = text end
  metadata[KEY] = peri.json.encode {
    version = 1, environment = o.env.id, observation = describe_space(o.env.obs_space),
    action = describe_space(o.env.action_space), state = #build.state > 0 and build.state or nil,
    program = build.steps, head = { kind = o.head, ["in"] = result, epsilon = o.epsilon > 0 and o.epsilon or nil },
  }
  local tensors = {}
  for name, t in pairs(build.tensors) do tensors[name] = t:detach() end
  local ok, message = peri.safetensors.save(path, tensors, metadata)
  message = not ok and message or differs(o, path)
  if message then options.raise("policy.save: " .. message) end
end
options.declare(M.save, { "path" }, save_rules)

-- ---- loading ----

--- @class perilune.rl.Policy
--- @field obs_space perilune.env.Space
--- @field action_space perilune.env.Space
--- @field environment string  id of the environment that it was trained on
local Policy = {}
Policy.__index = Policy
Policy.__name = "perilune.rl.Policy"

--- Open a policy file, or nil and a message.
--- @param path string
--- @return perilune.rl.Policy?
--- @return string?
function M.load(path)
  options.argument("policy.load", "path", path, "string")
  local handle, message = core.load(path)
  if not handle then return nil, message end
  local spec = peri.json.decode(assert(peri.safetensors.info(path)).metadata[KEY])
  return setmetatable({ _handle = handle, _spec = spec, environment = spec.environment,
                        obs_space = space_of(spec.observation), action_space = space_of(spec.action) }, Policy)
end
options.declare(M.load, { "path" }, {})

local act_rules = {
  deterministic = options.boolean(false, "the most likely action, or the mean, in place of a drawn one"),
  mask = options.value(options.none, "tensor", "(n, actions) bool, which of them are legal"),
}

--- Choose actions for observations: rows of a batch of environments, or those of one environment, as it gives them.
--- @param obs perilune.Tensor|integer
--- @param opts table?
--- @return perilune.Tensor|integer  (n, ...), or one action for one observation
function Policy:act(obs, opts)
  local o = options.fill("policy:act", opts, act_rules)
  local one = math.type(obs) == "integer"
  if one then obs = peri.tensor({ obs }, "i64") end
  options.argument("policy:act", "obs", obs, "tensor")
  if not one and obs.ndim == #self.obs_space.shape then obs, one = obs:unsqueeze(1), true end
  local mask = o.mask
  if mask and mask.ndim == 1 then mask = mask:unsqueeze(1) end
  local action = self._handle:act(obs, mask, o.deterministic)
  if not one then return action end
  action = action:squeeze(1)
  return self.action_space.kind == "discrete" and math.tointeger(action:item()) or action
end
options.declare(Policy.act, { "obs" }, act_rules)

--- Before the first observation of an episode: a recurrent policy forgets what it remembers, of the rows that are set
--- or of all.
--- @param rows perilune.Tensor?  (n) bool
function Policy:restart(rows) self._handle:restart(rows) end

-- ---- as source ----

local export_rules = {
  name = options.value(options.none, "string", "that what a C file defines begins with; default: the file's name"),
}

--- Write a policy file as source: one C99 file that needs libc alone (and the header beside it) where the path ends in
--- .c, a module of plain Lua 5.4 where it ends in .lua. Nothing is written where what is emitted, run beside the
--- policy, gives other numbers. Its deterministic actions, and those that a seed draws, are those of policy:act; what
--- the network gives agrees to about six digits, since sums are made in another order.
---
---     assert(peri.rl.policy.export("cartpole.safetensors", "cartpole.c"))
---
--- @param from string  path of a policy file
--- @param to string
--- @param opts table?
--- @return string|nil about  what it holds, in a line
--- @return string? message  why it cannot be read, exported or written
function M.export(from, to, opts)
  local o = options.fill("policy.export", opts, export_rules)
  options.argument("policy.export", "from", from, "string")
  options.argument("policy.export", "to", to, "string")
  local stem, language = to:match "([^/]+)%.(%l+)$"
  if language ~= "c" and language ~= "lua" then
    options.raise(("policy.export: %s: expected a name that ends in .c or .lua"):format(to))
  end
  local name = o.name or stem:gsub("[^%w_]", "_"):gsub("^%f[%d]", "p_") .. ""
  if not name:find "^[%a_][%w_]*$" or #name > 60 then
    options.raise(("policy.export: name is %q, expected up to 60 letters, digits and _, a letter first"):format(name))
  end
  local policy, message = M.load(from)
  if not policy then return nil, message end
  return require("perilune.rl.export").write(policy, from, to, language, name)
end
options.declare(M.export, { "from", "to" }, export_rules)

M.Policy = Policy

return M
