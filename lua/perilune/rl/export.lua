-- export.lua - a policy file as source: one C file that needs nothing but libc, or one Lua file without perilune. The
-- program of the file is emitted as loops for one row (export/ops.lua), since rows do not act on each other; weights
-- stand in it as hex floats, which lose nothing.

local peri = require "perilune"
local dtypes = require "perilune.dtypes"
local refusal = require "perilune.refusal"
local emitted = require "perilune.rl.export.ops"
local writers = require "perilune.rl.export.writer"
local helpers = require "perilune.rl.export.helpers"
local host = require "perilune.rl.export.host"

local M = {}

local null = peri.json.null
local product = require("perilune.rl.export.values").product
local by_name = {} -- op -> its description
for _, op in ipairs(peri.ops()) do by_name[op.name] = op end

local function fail(message, ...) refusal.raise(message:format(...)) end

-- ---- the program, run ----

-- Ops whose results differ from call to call.
local random = { rand = true, randn = true, rand_like = true, randn_like = true, randint = true, randperm = true,
  bernoulli = true, rand_gamma = true, sample = true, categorical = true, empty = true, empty_like = true }

-- An op of a program, whose dims begin at 0, by its function, whose dims begin at 1.
local function apply(op, tensors, attr)
  local args, given = { n = 0 }, 0
  for i, p in ipairs(by_name[op].params) do
    local v
    if p.kind == "tensors" then v = tensors
    elseif p.kind:find "^tensor" then
      given = given + 1
      v = tensors[given] or nil
    else
      v = attr[p.name]
      if v ~= nil and (p.kind == "dim" or p.kind == "pos") then v = v < 0 and v or v + 1
      elseif v ~= nil and p.kind == "dims" then
        local dims = {}
        for k, d in ipairs(type(v) == "table" and v or { v }) do dims[k] = d < 0 and d or d + 1 end
        v = dims
      end
    end
    args[i], args.n = v, i
  end
  return peri[op](table.unpack(args, 1, args.n))
end

local function optional(v) return v ~= null and v or nil end

-- Run the steps: values by name, and the results of each step.
local function run(spec, tensors, obs, states)
  local values, results = { obs = obs }, {}
  for name, t in pairs(tensors) do values[name] = t end
  for name, t in pairs(states) do values[name] = t end
  for k, step in ipairs(spec.program) do
    local ins = {}
    for i, name in ipairs(step["in"]) do ins[i] = name ~= null and values[name] or false end
    local ok, out = pcall(function () return { apply(step.op, ins, optional(step.attr) or {}) } end)
    if not ok then fail("step %d, %s: %s", k, step.op, tostring(out):gsub("^.-:%d+: ", "")) end
    results[k] = out
    for i, name in ipairs(step.out) do values[name] = out[i] end
  end
  return values, results
end

-- Observations as the space has them, and states that are not zero.
local function example(policy, spec, n)
  local s, rng = policy.obs_space, peri.rng(7)
  local shape, size = { n, table.unpack(s.shape) }, n * product(s.shape)
  local list = {}
  for i = 1, size do
    if s.kind == "discrete" then list[i] = s.start + rng:int(0, s.n - 1)
    elseif s.kind == "multi_discrete" then list[i] = rng:int(0, s.nvec[(i - 1) % #s.nvec + 1] - 1)
    elseif s.kind == "multi_binary" then list[i] = rng:int(0, 1)
    elseif s.dtype:find "^f" then list[i] = rng:normal()
    else list[i] = rng:int(0, 100) end
  end
  local dtype, states = s.dtype, {}
  local obs = peri.tensor(list, dtype):reshape(shape)
  for _, state in ipairs(optional(spec.state) or {}) do
    local values = {}
    for i = 1, n * product(state.shape) do values[i] = rng:normal() * 0.5 end
    states[state.name] = peri.tensor(values, "f32"):reshape { n, table.unpack(state.shape) }
  end
  return obs, states
end

local function row(t, i) return t:narrow(1, i, 1):contiguous() end

local function close(a, b)
  a, b = a:to "f64":reshape { a:numel() }, b:to "f64":reshape { b:numel() }
  local far = (a - b):abs():gt((b:abs() + 1) * 1e-4):logical_and(a:eq(b):logical_not())
  return not far:any():item()
end

-- Rows of a batch must not act on each other: what is emitted is one row's.
local function check_rows(spec, tensors, obs, states)
  local whole = run(spec, tensors, obs, states)
  local names = { spec.head["in"][1] }
  for name in pairs(states) do names[#names + 1] = name end
  for i = 1, 2 do
    local one = {}
    for name, t in pairs(states) do one[name] = row(t, i) end
    local alone = run(spec, tensors, row(obs, i), one)
    for _, name in ipairs(names) do
      local a, b = whole[name], alone[name]
      if a:numel() ~= 2 * b:numel() or not close(row(a:reshape { 2, b:numel() }, i), b) then
        fail("rows of a batch act on each other: a row alone has another %s", name)
      end
    end
  end
end

-- ---- the program, emitted ----

local floats = { [4] = "float", [8] = "double" } -- by bytes

-- What C calls the elements of a dtype; nil: it has no word for them.
local function c_type(dtype)
  local d = dtypes.by_name[dtype]
  if d.kind == "float" then return floats[d.bytes] end
  if d.kind == "quantised" then return nil end
  return d.kind == "bool" and "uint8_t" or ("%sint%d_t"):format(d.name:match "^u" or "", 8 * d.bytes)
end

local function kind_of(t, what)
  local kind = c_type(t.dtype)
  if not kind then fail("%s is %s, expected f32, f64, integers or bool: save the policy in f32", what, t.dtype) end
  return dtypes.is_float[t.dtype] and kind or "int64_t"
end

local function flat(t)
  if t.dtype == "bool" then t = t:to "u8" end
  return t:contiguous():reshape({ t:numel() }):tolist()
end

-- A value of the program: its array in the file (var), what is in it.
local function value(t, what, var)
  return { shape = t.shape, numel = t:numel(), kind = kind_of(t, what), var = var, offset = 0, sample = t }
end

-- A constant's array is written when something reads it.
local lazy = { __index = function (v, key)
  if key ~= "var" then return nil end
  v.var = v.writer:constant(v.kind, flat(v.constant), ("%s (%s)"):format(v.note, table.concat(v.shape, ", ")))
  return v.var
end }

local function constant(w, t, name)
  local v = value(t, name)
  v.constant, v.writer, v.note = t, w, name:gsub("[^%w._-]", "?")
  return setmetatable(v, lazy)
end

-- Emit the steps: the values that the head and the memory read.
local function emit(w, spec, tensors, obs, states)
  local values, results = run(spec, tensors, obs, states)
  local mine, work, memory = w.lua and "work." or "a->", {}, {}
  local at = { obs = value(obs, "the observation", "obs") }
  local function scratch(kind, numel)
    local name = "v" .. #work + 1
    work[#work + 1] = { name, kind, numel }
    return mine .. name
  end
  for i, state in ipairs(optional(spec.state) or {}) do
    memory[i] = { name = state.name, field = "s" .. i, numel = product(state.shape) }
    at[state.name] = value(states[state.name], state.name, (w.lua and "memory." or "memory->") .. memory[i].field)
    at[state.name].state = i
  end
  for k, step in ipairs(spec.program) do
    local ins, all_constant = {}, not random[step.op]
    for i, name in ipairs(step["in"]) do
      local v = name ~= null and (at[name] or tensors[name] and constant(w, tensors[name], name)) or false
      if v then at[name] = v end
      ins[i] = v
      all_constant = all_constant and (not v or v.constant ~= nil)
    end
    if step.op:find "_like$" and not random[step.op] then all_constant = true end
    local outs = {}
    for i, name in ipairs(step.out) do
      local t = results[k][i]
      if all_constant then outs[i] = constant(w, t, name)
      else
        outs[i] = value(t, ("step %d, %s: %s"):format(k, step.op, name))
        outs[i].var = mine .. "v" .. #work + i
      end
    end
    if not all_constant then
      local fn = emitted.ops[step.op]
      if not fn then fail("step %d: the op %s cannot be exported", k, step.op) end
      local first = #work
      for i, v in ipairs(outs) do work[first + i] = { "v" .. first + i, v.kind, v.numel } end
      local missing
      w:line(w.lua and "-- %s" or "/* %s */", step.op)
      w:scope(function ()
        missing = fn(w, { x = ins, y = outs, attr = optional(step.attr) or {}, scratch = function (kind, numel)
          local name = scratch(kind, numel)
          return { var = name, kind = kind, offset = 0, numel = numel }
        end, apply = function (list, attr) return apply(step.op, list, attr) end })
      end)
      if missing then fail("step %d: the op %s %s cannot be exported", k, step.op, missing) end
      for i, v in ipairs(outs) do
        if v.same then
          outs[i] = setmetatable({ shape = v.shape, offset = v.same.offset + v.same_offset, state = v.same.state },
            { __index = v.same })
          outs[i].numel = v.numel
          work[first + i][3] = 0
        end
      end
    end
    for i, name in ipairs(step.out) do at[name] = outs[i] end
  end
  local function copied(v)
    local copy = { var = scratch(v.kind, v.numel), kind = v.kind, offset = 0, numel = v.numel }
    w:loop("i", v.numel, function () w:set(copy.var .. "[i]", ("%s[%d + i]"):format(v.var, v.offset)) end)
    return copy
  end
  for i, m in ipairs(memory) do -- one that becomes another: that one must still be there
    local v = at[m.name]
    m.value = (v.var == "obs" or v.state and v.state ~= i) and copied(v) or v
    m.stays = v.state == i and v.offset == 0
  end
  local heads = {}
  for i, name in ipairs(spec.head["in"]) do
    local v = at[name] or tensors[name] and constant(w, tensors[name], name)
    if v.kind ~= "float" then fail("the head reads %s, which is %s", name, v.kind) end
    heads[i] = (v.var == "obs" or v.state) and copied(v) or v
  end
  return { heads = heads, memory = memory, work = work, values = values }
end

-- ---- the file ----

-- Text of a file within a comment: nothing that could end it, nothing that a terminal obeys.
local function plain(text) return (tostring(text):gsub("[^%w ._,:()%[%]+-]", "?"):sub(1, 100)) end

-- Bounds of a box, one for each number of an action.
local function bounds(space, key)
  local list = {}
  local function add(v)
    if type(v) == "number" then list[#list + 1] = writers.float(v + 0.0)
    else for _, inner in ipairs(v) do add(inner) end end
  end
  add(space[key])
  for i = #list + 1, product(space.shape) do list[i] = list[1] end -- one for all
  return table.concat(list, ", ")
end

-- What the templates of host.lua ask for.
local function facts(policy, spec, made, name, lua)
  local head, space = spec.head.kind, policy.action_space
  local obs = policy.obs_space
  local parts = space.kind == "discrete" and { space.n } or space.nvec
  local size = space.kind == "discrete" and 1 or product(space.shape)
  local count = head == "categorical" or head == "greedy"
  local drawn = head == "gaussian" or head == "squashed"
  local choices = 0
  for _, n in ipairs(count and parts or {}) do choices = choices + n end
  local memory = #made.memory > 0
  local f = { NAME = name, UPPER = name:upper(), OBSSIZE = product(obs.shape), ACTIONSIZE = size, CHOICES = choices,
    OBSTYPE = c_type(obs.dtype), ACTIONTYPE = count and "int64_t" or head == "bernoulli" and "uint8_t"
      or c_type(space.dtype), SIZE = size, memory = memory, categorical = head == "categorical",
    greedy = head == "greedy", drawn = drawn, squashed = head == "squashed", stretched = head ~= "gaussian",
    random = head ~= "tanh", EPSILON = writers.float((optional(spec.head.epsilon) or 0) + 0.0),
    MEMARG = memory and ("%s_memory *memory, "):format(name) or "", MEMROW = memory and "memory + i, " or "",
    MASKARG = count and "const unsigned char *mask, " or "",
    BESTTEXT = drawn and "the mean" or head == "tanh" and "as ever" or "the best action",
    OBSTEXT = ("%s_OBS %s"):format(name:upper(), c_type(obs.dtype)),
    ACTIONTEXT = ("%s_ACTION %s"):format(name:upper(), "numbers"),
    MASKTEXT = count and ("\n** mask: NULL, or n rows of %s_CHOICES bytes, 0: not legal."):format(name:upper()) or "",
    MEMTEXT = memory and "\n** memory: of each row, moved on." or "", MEMFAIL = memory and " and memory" or "" }
  if count then
    f.PARTS, f.COUNTS, f.counted, f.LOGITS = #parts, table.concat(parts, ", "), true, choices
    f.START = space.kind == "discrete" and space.start or 0
    f.RETURN = space.kind == "discrete" and "action[1]" or "action"
  elseif head ~= "bernoulli" then f.LOWS, f.HIGHS = bounds(space, "low"), bounds(space, "high") end
  local x, spread = made.heads[1], made.heads[2]
  local function place(v) return v.offset == 0 and v.var or ("%s + %d"):format(v.var, v.offset) end
  f.HEADX, f.HEADSIZE = ("%s, %d"):format(x.var, x.offset), x.numel
  if lua then
    f.LUAARGS = drawn and "agent, offset, row, x, from, best, log_std, spread" or "x, from"
    f.LUACALL = count and ("self, offset, row, %s, %d, legal, best"):format(x.var, x.offset)
      or head == "bernoulli" and ("self, offset, row, %s, %d, nil, best"):format(x.var, x.offset)
      or drawn and ("self, offset, row, %s, %d, best, %s, %d"):format(x.var, x.offset, spread.var, spread.offset)
      or ("%s, %d"):format(x.var, x.offset)
    return f
  end
  f.ROWARGS = count and ("a, offset, i, %s, mask ? mask + (int64_t)i * %d : 0, deterministic, ")
      :format(place(x), choices)
    or head == "bernoulli" and ("a, offset, i, %s, deterministic, "):format(place(x))
    or drawn and ("a, offset, i, deterministic, %s, %s, "):format(place(spread), place(x)) or place(x) .. ", "
  return f
end

local head_part = { categorical = "choose", greedy = "choose", bernoulli = "flip", gaussian = "move", squashed = "move",
  tanh = "move" }

local function space_text(s)
  if s.kind == "discrete" then return ("one of %d"):format(s.n) end
  if s.kind == "multi_discrete" then return ("choices of %s"):format(table.concat(s.nvec, ", ")) end
  return ("%s (%s)"):format(s.kind == "box" and s.dtype or "bits", table.concat(s.shape, ", "))
end

local function summary(policy, spec, parameters)
  local environment = policy.environment ~= "" and policy.environment or "a policy"
  return ("%s: %s in, %s out, head %s, %d parameters"):format(plain(environment), space_text(policy.obs_space),
    space_text(policy.action_space), spec.head.kind, parameters)
end

local function remembering(w, made)
  w.out = {}
  for _, m in ipairs(made.memory) do
    local v = m.value
    if not m.stays then
      w:loop("i", m.numel, function ()
        w:set((w.lua and "memory." or "memory->") .. m.field .. "[i]", ("%s[%d + i]"):format(v.var, v.offset))
      end)
    end
  end
  return table.concat(w.out, "\n")
end

local function c_file(w, made, f, about)
  local network = table.concat(w.out, "\n")
  local remember = f.memory and remembering(w, made) or ""
  local work, memory = {}, {}
  for _, v in ipairs(made.work) do
    if v[3] > 0 then work[#work + 1] = ("  %s %s[%d];\n"):format(v[2], v[1], v[3]) end
  end
  for i, m in ipairs(made.memory) do memory[i] = ("  float %s[%d];\n"):format(m.field, m.numel) end
  f.WORK, f.MEMORY = table.concat(work), table.concat(memory)
  local declarations = host.filled(host.c_declarations, f)
  local head = host.filled(host.c_heads[head_part[f.head]], f)
  local act = host.filled(host.c_act, f)
  local generator = f.random and host.filled(host.c_generator, f) or ""
  if f.random and not f.drawn then generator = generator .. host.filled(host.c_uniform, f) end
  local use = ("**   %s_agent agent = { 0 };\n%s**   %s_act(&agent, %s1, obs, %s1, action);\n"):format(f.NAME,
    f.memory and ("**   %s_memory memory = { 0 };\n"):format(f.NAME) or "", f.NAME, f.memory and "&memory, " or "",
    f.CHOICES > 0 and "NULL, " or "")
  local text = {
    ("/*\n** %s\n** Made by perilune export; needs libc (-lm) alone. The header has the declarations.\n%s*/\n")
      :format(about, use),
    "#include <math.h>\n\n", declarations, "\n", "enum { OK, RANGE };\n\n", table.concat(w.tables),
    "\n", helpers.of(network .. head, false), "\n",
    ("static int network (%s_agent *a, %sconst %s *obs) {\n  (void)a;\n  (void)obs;\n"):format(f.NAME,
      f.memory and ("const %s_memory *memory, "):format(f.NAME) or "", f.OBSTYPE),
    f.memory and "  (void)memory;\n" or "", network, "\n  return OK;\n}\n\n",
    f.memory and ("static void remember (const %s_agent *a, %s_memory *memory) {\n"):format(f.NAME, f.NAME)
      .. "  (void)a;\n  (void)memory;\n" .. remember .. "\n}\n\n" or "",
    generator, head, act,
  }
  text = table.concat(text)
  if not network:find "RANGE" then
    text = text:gsub("enum { OK, RANGE };", "enum { OK };")
  end
  return text, ("/* %s. Made by perilune export. */\n%s"):format(about, declarations)
end

local function lua_file(w, made, f, about)
  local network = table.concat(w.out, "\n")
  local remember = remembering(w, made)
  local fields, zeros = {}, {}
  for _, v in ipairs(made.work) do if v[3] > 0 then fields[#fields + 1] = v[1] .. " = {}" end end
  for i, m in ipairs(made.memory) do zeros[i] = ("%s = zeros(%d)"):format(m.field, m.numel) end
  local head = host.filled(host.lua_heads[head_part[f.head]], f)
  local generator = f.random and host.lua_generator or ""
  if f.random and not f.drawn then generator = generator .. host.lua_uniform end
  local body = network .. head .. generator
  return table.concat {
    ("-- %s\n-- Made by perilune export; needs Lua 5.4 alone:\n"):format(about),
    ("--   local agent = require(%q).new(seed)\n--   local action = agent:act(obs)\n"):format(f.NAME),
    "-- luacheck: ignore\n",
    "local exp, log, sqrt, floor, ceil, fabs = math.exp, math.log, math.sqrt, math.floor, math.ceil, math.abs\n",
    "local sin, cos, INFINITY, NAN = math.sin, math.cos, math.huge, 0 / 0\nlocal OK, RANGE = 0, 1\n",
    "local M, C = {}, {}\n\n", table.concat(w.tables), "\n", helpers.of(body, true), "\n",
    "local function network(work, memory, obs)\n", network, "\n  return OK\nend\n\n",
    "local function zeros(n)\n  local t = {}\n  for i = 0, n - 1 do t[i] = 0.0 end\n  return t\nend\n\n",
    ("local function work() return { %s } end\n"):format(table.concat(fields, ", ")),
    ("local function forgotten() return { %s } end\n"):format(table.concat(zeros, ", ")),
    ("local function remember(work, memory)\n%s\nend\n\n"):format(remember), generator, head,
    host.filled(host.lua_act, f),
  }
end

-- ---- the whole ----

local function source(policy, spec, tensors, language, name)
  local obs, states = example(policy, spec, 1)
  local w = writers.new(language)
  local made = emit(w, spec, tensors, obs, states)
  local f = facts(policy, spec, made, name, language == "lua")
  f.head = spec.head.kind
  local parameters = 0
  for _, t in pairs(tensors) do parameters = parameters + t:numel() end
  local about = summary(policy, spec, parameters)
  if language == "lua" then return lua_file(w, made, f, about), nil, about end
  local text, header = c_file(w, made, f, about)
  return text, header, about
end

-- What is emitted, run beside the program: the arithmetic is the same in both languages.
local function check(policy, spec, tensors, text)
  local chunk, message = load(text, "=exported policy", "t")
  if not chunk then fail("what was emitted is no Lua: %s", message) end
  local agent = chunk().new(1)
  local obs = example(policy, spec, 4)
  local states = {}
  for _, state in ipairs(optional(spec.state) or {}) do
    states[state.name] = peri.zeros { 1, table.unpack(state.shape) }
  end
  for i = 1, 4 do
    local values = run(spec, tensors, row(obs, i), states)
    for name in pairs(states) do states[name] = values[name] end
    local given = flat(obs:narrow(1, i, 1))
    local there, why = agent:values(given)
    if not there then fail("%s", why) end
    local here = values[spec.head["in"][1]]
    if here:numel() ~= #there or not close(peri.tensor(there, "f64"), here) then
      fail("it would act otherwise than the policy: %s and %s", peri.json.encode(there), peri.json.encode(flat(here)))
    end
  end
end

--- Write a policy as source; what it holds, in a line, or nil and a message. See perilune.rl.policy.export.
--- @param policy perilune.rl.Policy
--- @param from string  its file
--- @param to string
--- @param language string  c or lua
--- @param name string  an identifier
--- @return string|nil about
--- @return string? message
function M.write(policy, from, to, language, name)
  local _ <close> = peri.no_grad()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local spec, tensors = policy._spec, assert(peri.safetensors.load(from))
  local ok, text, header, about = pcall(function ()
    local as_lua, _, said = source(policy, spec, tensors, "lua", name)
    local obs, states = example(policy, spec, 2)
    check_rows(spec, tensors, obs, states)
    check(policy, spec, tensors, as_lua)
    if language == "lua" then return as_lua, nil, said end
    return source(policy, spec, tensors, language, name)
  end)
  if not ok then
    if peri.interrupted() then error(text, 0) end
    return nil, ("%s: %s"):format(from, tostring(text))
  end
  local written, why = peri.files.write(to, text)
  if written and header then written, why = peri.files.write(to:gsub("c$", "h") .. "", header) end
  if not written then return nil, refusal.bare(why) end
  return about
end

return M
