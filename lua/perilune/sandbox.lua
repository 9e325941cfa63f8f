-- sandbox.lua - Lua code that cannot be trusted, run in a process that can do nothing but compute: for rewards that try
-- what a model wrote. docs/design/sandbox.md says what stops what.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  tests = options.value(options.none, "table", "what is tried after the code: Lua texts that raise where it is wrong, "
    .. "and { call = name, args = { ... }, want = value }"),
  timeout = options.number(1, "(0, 3600]", "seconds of the processor for all of it"),
  wall = options.number(options.none, "(0, 36000]", "seconds on the clock; default: 5 + 4 * timeout"),
  memory = options.integer(64 << 20, "[65536, 1099511627776]", "bytes that the code may have"),
  output = options.integer(64 << 10, "[0, 1073741824]", "bytes that it may print"),
  value = options.integer(1 << 20, "[0, 1073741824]", "bytes of the value that it returns, as they are sent"),
  seed = options.integer(0, nil, "of math.random, so that a run is the same each time"),
  libraries = options.choice("safe", { "safe", "all" }, "all: Lua's own, io and os included, to test the filter"),
  unprotected = options.boolean(false, "run, too, where the kernel has no filter of system calls"),
  program = options.value(options.none, "string", "path of perilune-sandbox; default: as sandbox.program finds it"),
}

-- ---- values as bytes: ORDER sandbox_request, bindings/sandbox/program.h ----

local MAGIC <const>, VERSION <const> = 0x50534258, 1
local MOST_ARGS <const>, DEEPEST <const> = 200, 32

local function encode(out, v, depth)
  local t = math.type(v) or type(v)
  if v == nil then out[#out + 1] = "N"
  elseif t == "boolean" then out[#out + 1] = v and "T" or "F"
  elseif t == "integer" then out[#out + 1] = ("<c1i8"):pack("I", v)
  elseif t == "float" then out[#out + 1] = ("<c1d"):pack("D", v)
  elseif t == "string" then out[#out + 1] = ("<c1s4"):pack("S", v)
  elseif t == "table" and depth < DEEPEST then
    out[#out + 1] = "{"
    for key, value in next, v do
      encode(out, key, depth + 1)
      encode(out, value, depth + 1)
    end
    out[#out + 1] = "}"
  else
    error(t == "table" and "a table that is too deep" or "a " .. t, 0)
  end
end

-- The value at `at` and where it ends; raises where the bytes are none. They come from a process that is not trusted.
local function decode(s, at, depth)
  local kind = s:sub(at, at)
  if kind == "N" then return nil, at + 1
  elseif kind == "T" or kind == "F" then return kind == "T", at + 1
  elseif kind == "I" then return ("<i8"):unpack(s, at + 1)
  elseif kind == "D" then return ("<d"):unpack(s, at + 1)
  elseif kind == "S" then return ("<s4"):unpack(s, at + 1)
  elseif kind ~= "{" or depth > DEEPEST then error "not a value" end
  local t = {}
  at = at + 1
  while s:sub(at, at) ~= "}" do
    local key, value
    key, at = decode(s, at, depth + 1)
    value, at = decode(s, at, depth + 1)
    t[key] = value
  end
  return t, at + 1
end

-- ---- requests ----

local call_keys = { call = true, args = true, want = true }

local function test_piece(who, i, test)
  if type(test) == "string" then return ("<c1s8"):pack("T", test) end
  local function refuse(fmt, ...) options.raise(("%s: test %d %s"):format(who, i, fmt:format(...))) end
  if type(test) ~= "table" or type(test.call) ~= "string" then
    refuse("is no Lua text and no table with call, the name of a function")
  end
  for key in pairs(test) do
    if not call_keys[key] then refuse("has an %s", options.unknown("field", key, { "call", "args", "want" })) end
  end
  local args = test.args == nil and {} or test.args
  if type(args) ~= "table" then refuse("has args that are a %s, expected a list", type(args)) end
  local out = {}
  local ok, why = pcall(function ()
    encode(out, test.call, 0)
    encode(out, args, 0)
    encode(out, test.want, 0)
  end)
  if not ok then refuse("holds %s, expected plain values", why) end
  if #args > MOST_ARGS then refuse("has %d arguments, at most %d go", #args, MOST_ARGS) end
  return ("<c1s8"):pack("C", table.concat(out))
end

local function request_of(who, source, o)
  local pieces = { ("<c1s8"):pack("S", source) }
  for i, test in ipairs(o.tests or {}) do pieces[i + 1] = test_piece(who, i, test) end
  if o.tests and #pieces - 1 ~= #o.tests then options.raise(who .. ": tests is no list without holes") end
  local flags = (o.libraries == "all" and 1 or 0) | (o.unprotected and 2 or 0)
  local microseconds = math.max(1, math.ceil(o.timeout * 1e6))
  return ("<I4I4I8I8I8i8I4I4"):pack(MAGIC, VERSION, math.tointeger(o.memory), microseconds, math.tointeger(o.value),
    math.tointeger(o.seed), flags, #pieces) .. table.concat(pieces)
end

-- ---- results ----

-- Signals by number: those of Linux on every architecture that has the filter.
local signals = { [4] = "SIGILL", [6] = "SIGABRT", [7] = "SIGBUS", [8] = "SIGFPE", [9] = "SIGKILL", [11] = "SIGSEGV",
  [24] = "SIGXCPU", [27] = "SIGPROF", [31] = "SIGSYS" }

local by_signal = { SIGSYS = "syscall", SIGPROF = "timeout", SIGXCPU = "timeout" }

-- The records that came, whole ones only: record(kind, text).
local function each_record(reply, record)
  local at = 1
  while at + 8 <= #reply do
    local kind, size = ("<c1I8"):unpack(reply, at)
    if size < 0 or size > #reply - at - 8 then return end
    record(kind, reply:sub(at + 9, at + 8 + size))
    at = at + 9 + size
  end
end

local function read_records(result, reply)
  local ended = false
  each_record(reply, function (kind, text)
    if kind == "L" then
      result.protected = text:byte(1) == 1
      if not result.protected then result.err = text:sub(2) end
    elseif kind == "V" and text:sub(1, 1) == "X" then
      result.status, result.note = "ok", "the value cannot be shown: " .. text:sub(2)
    elseif kind == "V" then
      local ok, value = pcall(decode, text, 1, 0)
      result.status = "ok"
      if ok then result.value = value else result.note = "the value cannot be shown: it is not one" end
    elseif kind == "E" or kind == "M" then
      result.status, result.err = kind == "E" and "error" or "memory", text
    elseif kind == "T" then
      local verdict = text:byte(1)
      result.tests[#result.tests + 1] = { ok = verdict == 1, err = verdict ~= 1 and text:sub(2) or nil }
      if verdict == 1 then result.passed = result.passed + 1 elseif verdict == 2 then result.status = "memory" end
    elseif kind == "P" and #text == 8 then
      result.memory, ended = ("<I8"):unpack(text), true
    end
  end)
  return ended
end

local function result_of(raw, o)
  local wanted = o.tests and #o.tests or 0
  local result = { ok = false, stdout = raw.output, tests = {}, passed = 0, protected = false, seconds = raw.seconds,
    cpu = raw.cpu, memory = raw.memory }
  local ended = read_records(result, raw.reply)
  local signal = raw.how == "signalled" and (signals[raw.code] or "signal " .. raw.code)
  if raw.how == "timed out" then
    result.status, result.err = "timeout", ("it took more than %g s on the clock"):format(o.wall)
  elseif raw.how == "flooded" then
    result.status, result.err = "output", ("it wrote more than %d bytes"):format(o.output)
  elseif signal then
    local killed = signal == "SIGKILL" and raw.cpu >= o.timeout and "timeout" or "killed"
    local status = by_signal[signal] or killed
    local why = { syscall = "it asked the system for something that is not allowed",
      timeout = ("it took more than %g s of the processor"):format(o.timeout) }
    result.status, result.err = status, why[status] or "it was killed by " .. signal
  elseif not result.protected and not o.unprotected then
    result.status = "unprotected"
    result.err = "the code was not run: " .. (result.err or "the helper program said nothing")
  elseif not ended then
    result.status, result.err = "killed", raw.how == "exited" and ("its process ended with status %d"):format(raw.code)
      or "how its process ended is unknown: the host waits for all children"
  end
  for i = #result.tests + 1, wanted do
    result.tests[i] = { ok = false, err = result.status == "ok" and "it was not run" or result.err }
  end
  result.ok = result.status == "ok" and result.passed == wanted
  return result
end

-- ---- running ----

local function filled(who, given)
  local o = options.fill(who, given, rules)
  o.wall = o.wall or 5 + 4 * o.timeout
  return o
end

-- More than the records can be: layers, value or error, verdicts.
local function reply_room(o) return o.value + 4096 * (#(o.tests or {}) + 2) end

local function job_of(who, source, o)
  return { request = request_of(who, source, o), wall = o.wall, output = o.output, reply = reply_room(o) }
end

--- Run Lua code in a process of its own that has no files, no network, no other processes and no more than so much
--- time, memory and output. A field `status` says how it ended: "ok" to its end, "error" by an error of its own,
--- "memory", "timeout", "output" by a limit, "syscall" because it asked the system for something, "killed" by a
--- signal, "unprotected" when the kernel has no filter of system calls: then it was not run. What the code prints
--- decides nothing: verdicts come on a way that it has no access to.
---
--- Code finds Lua's math, string, table, utf8, coroutine, os.time, os.clock, os.date, os.difftime, the basic functions
--- and load of texts. Tests find libraries of their own, which the code cannot change, and the globals that it made. A
--- test { call = "add", args = { 1, 2 }, want = 3 } calls a global, or a field of what the code returned, and compares
--- plain data without any metamethod of the code's, floats to 1e-9; args.n says how many there are.
--- @param source string
--- @param opts table?
--- @return table|nil result  ok (ended "ok" and every test passed), status, stdout, value (the first result, plain
--- data) or note (why it is not shown), err (text), tests ({ ok, err } each), passed (how many), seconds, cpu, memory
--- (bytes: the code's most, or of the process where it was stopped), protected
--- @return string? message  when the helper program cannot be started
function M.run(source, opts)
  options.argument("sandbox.run", "source", source, "string")
  local o = filled("sandbox.run", opts)
  local raw, message = peri._sandbox({ job_of("sandbox.run", source, o) }, 1, o.program)
  if not raw then return nil, message end
  return result_of(raw[1], o)
end
options.declare(M.run, { "source" }, rules)

local many_rules = {
  workers = options.integer(options.none, "[1, 256]", "processes at a time; default: as many as ops have threads"),
}
for name, rule in pairs(rules) do many_rules[name] = rule end

--- Run several, some at a time: a list of sources, or of { source = text } with tests and other options of its own.
--- @param list table[]
--- @param opts table?
--- @return table[]|nil results  as of run, in the order of the list
--- @return string? message  when the helper program cannot be started
function M.run_many(list, opts)
  options.argument("sandbox.run_many", "list", list, "table")
  local shared, jobs, each = options.fill("sandbox.run_many", opts, many_rules), {}, {}
  local workers = shared.workers or peri.threads()
  for i, one in ipairs(list) do
    local own, source = {}, one
    for name in pairs(rules) do if opts then own[name] = opts[name] end end
    if type(one) == "table" then
      for key, value in pairs(one) do own[key] = value end
      source, own.source = one.source, nil
    end
    if type(source) ~= "string" then
      options.raise(("sandbox.run_many: item %d has no source, a text"):format(i))
    end
    if own.program ~= shared.program then
      options.raise(("sandbox.run_many: item %d has a program of its own; it is one for all"):format(i))
    end
    local who = ("sandbox.run_many: item %d"):format(i)
    each[i] = filled(who, own)
    jobs[i] = job_of(who, source, each[i])
  end
  if #jobs ~= #list then options.raise "sandbox.run_many: list has holes" end
  local raw, message = peri._sandbox(jobs, workers, shared.program)
  if not raw then return nil, message end
  local results = {}
  for i, o in ipairs(each) do results[i] = result_of(raw[i], o) end
  return results
end
options.declare(M.run_many, { "list" }, many_rules)
M._rules = many_rules -- rewards take some of them

--- Where the helper program is: as the environment variable PERI_SANDBOX says, beside the program or library, or in the
--- bin of their installation.
--- @return string|nil path
--- @return string? message  the places that were looked at
function M.program() return peri._sandbox_program() end

return require "perilune.names"(M, "perilune.sandbox")
