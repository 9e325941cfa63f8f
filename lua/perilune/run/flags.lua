-- flags.lua - the parameters of a recipe: a table of defaults becomes --help, overrides and the
-- saved config.
--   local flags = peri.flags {
--     steps = { 1000, "updates", range = "[0, inf)" }, lr = { 1e-3, "learning rate" },
--     task = { "digits", "what to learn", choices = { "digits", "sums" } },
--     name = "demo", verbose = false }
-- A value's type is its default's, its range an interval as in perilune.options. --flag value,
-- --flag=value, --flag and --no-flag for booleans, --config FILE.json first, then the command line.
-- perilune.recipe knows two fields more: budget = true, free = true.

local peri = require "perilune"
local comments = require "perilune.comments"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local terminal = require "perilune.terminal"

local M = {}

local function number(text, integer)
  local n = tonumber(text)
  if not n then return nil end
  if integer then return math.tointeger(n) end
  return n + 0.0
end

-- The value that text means for a flag whose default is given, or nil and what was expected.
local function parse(text, default)
  local kind = math.type(default) or type(default)
  if kind == "integer" then return number(text, true), "an integer" end
  if kind == "float" then return number(text, false), "a number" end
  if kind == "boolean" then
    if text == "true" or text == "1" then return true end
    if text == "false" or text == "0" then return false end
    return nil, "true or false"
  end
  return text, "text"
end

--- Numbers that JSON has not are text in files of flags.
M.special = { ["inf"] = math.huge, ["-inf"] = -math.huge, ["nan"] = 0 / 0 }

--- A value of a JSON file as the flag whose default is given, or nil and what was expected.
--- @param value any
--- @param default any
--- @return any
--- @return string?
function M.from_json(value, default)
  if type(default) == "number" then value = M.special[value] or value end
  if type(default) == "number" and type(value) == "number" then
    if math.type(default) == "integer" then return math.tointeger(value), "an integer" end
    return value + 0.0, "a number"
  end
  if type(value) == type(default) then return value end
  return nil, math.type(default) == "integer" and "an integer" or "a " .. type(default)
end

local fields = { choices = true, range = true, budget = true, free = true }

local function read_spec(spec)
  local flags = {}
  for _, name in ipairs(options.names(spec)) do
    local entry = spec[name]
    if type(entry) ~= "table" then entry = { entry } end
    for key in pairs(entry) do
      if not (key == 1 or key == 2 or fields[key]) then
        error(("flags: %s: %s"):format(name, options.unknown("field", key, options.names(fields))), 3)
      end
    end
    if type(entry[1]) == "table" or entry[1] == nil then
      error(("flags: the default of %q is a %s, expected a number, text or boolean")
        :format(name, type(entry[1])), 3)
    end
    local f = { name = name, default = entry[1], help = entry[2] or "", choices = entry.choices }
    if entry.range then
      if type(f.default) ~= "number" then
        error(("flags: %s has a range, but its default is a %s"):format(name, type(f.default)), 3)
      end
      local make = math.type(f.default) == "integer" and options.integer or options.number
      f.range, f.rule = entry.range, make(f.default, entry.range)
      local problem = options.problem("the default", f.default, f.rule)
      if problem then error(("flags: %s: %s"):format(name, problem), 3) end
    end
    flags[#flags + 1] = f
  end
  return flags
end

-- The first line of what a command says of itself is its usage; what follows is broken at a width.
local function about_text(about, columns)
  if not about then return "" end
  if columns == math.maxinteger then return about .. "\n" end
  local usage, more = about:match "^(usage:[^\n]*\n)(.*)$"
  return (usage or "") .. comments.wrap(more or about, columns) .. "\n"
end

local function help_text(flags, about)
  local rows = {}
  for _, f in ipairs(flags) do
    local default = type(f.default) == "string" and ("%q"):format(f.default) or tostring(f.default)
    local said = f.help
    local choices = f.choices and "one of " .. table.concat(f.choices, ", ") or ""
    for _, more in ipairs { choices, f.range and "in " .. f.range or "" } do
      if more ~= "" then said = said .. (said ~= "" and ", " or "") .. more end
    end
    rows[#rows + 1] = { "--" .. f.name, ("%s (%s)"):format(said, default) }
  end
  rows[#rows + 1] = { "--config", "JSON file of flags, read before the others" }
  rows[#rows + 1] = { "--help", "this text" }
  local columns = terminal.live() and terminal.width() or math.maxinteger -- a pipe gets a line a flag, for grep
  return about_text(about, columns) .. "Flags:\n" .. comments.rows(rows, "  ", columns)
end

local of_program = { threads = true, max_bytes = true }

-- Values of the command line into out; nil and a message when it is wrong.
local function read_args(flags, by_name, args, set)
  local names = { "config", "help" }
  for _, f in ipairs(flags) do names[#names + 1] = f.name end
  local i = 1
  while i <= #args do
    local word = args[i]
    local name, value = word:match "^%-%-([%w_%-]+)=(.*)$"
    name = name or word:match "^%-%-([%w_%-]+)$"
    if not name then return nil, ("%q is not a flag; flags look like --name value"):format(word) end
    name = name:gsub("%-", "_")
    if name == "config" then
      return nil, (value or args[i + 1]) and "--config is given twice" or "--config needs a value"
    end
    local f, negated = by_name[name], false
    if not f and name:find "^no_" and by_name[name:sub(4)]
      and type(by_name[name:sub(4)].default) == "boolean" then
      f, negated = by_name[name:sub(4)], true
    end
    if not f then
      local message = options.unknown("flag", name, names)
      if of_program[name] then
        message = ("--%s is of the program and stands before the file: perilune run --%s %s FILE")
          :format(name, name, value or args[i + 1] or "VALUE")
      end
      return nil, message
    end
    if type(f.default) == "boolean" and value == nil then
      local following = args[i + 1]
      if not negated and (following == "true" or following == "false") then
        value, i = following, i + 1
      else
        value = tostring(not negated)
      end
    elseif value == nil then
      i = i + 1
      value = args[i]
      if value == nil then return nil, ("--%s needs a value"):format(name) end
    end
    local parsed, expected = parse(value, f.default)
    if parsed == nil then return nil, ("--%s: %q is not %s"):format(name, value, expected) end
    local ok, message = set(f, parsed)
    if not ok then return nil, message end
    i = i + 1
  end
  return true
end

-- What is wrong with a value of a flag's type; nil when nothing is.
local function problem_of(f, value)
  local known = f.choices == nil
  for _, c in ipairs(f.choices or {}) do known = known or c == value end
  if not known then return ("--%s: %s"):format(f.name, options.unknown("choice", value, f.choices)) end
  return f.rule and options.problem("--" .. f.name, value, f.rule)
end

-- A value of a JSON file in a message.
local function shown(value)
  return type(value) == "table" and (getmetatable(value).__name == "perilune.json.array" and "an array" or "an object")
    or tostring(value)
end
M.shown = shown

--- Parse without leaving the program: values, or nil and a message; with --help nil and the text
--- and true.
--- @param spec table  name = default, or name = { default, "help", choices = { ... }, range = "[0, inf)" };
--- a metatable's finish(values, given, problem) has the last word: the values, or nil and a message
--- @param args string[]
--- @param about string?
--- @return table|nil values
--- @return string? message
--- @return boolean? is_help
function M.parse(spec, args, about)
  local flags, by_name, out, given = read_spec(spec), {}, {}, {}
  for _, f in ipairs(flags) do by_name[f.name], out[f.name] = f, f.default end
  local function set(f, value)
    local problem = problem_of(f, value)
    if problem then return nil, problem end
    out[f.name], given[f.name] = value, true
    return true
  end
  for i, word in ipairs(args) do
    if word == "--help" or word == "-h" or word:find "^%-%-help=" then return nil, help_text(flags, about), true end
    local path = word:match "^%-%-config=(.*)$" or (word == "--config" and args[i + 1])
    if path then
      local config, message = M.load(path)
      if not config then return nil, message end
      for name, value in pairs(config) do
        local f = by_name[name]
        if not f then return nil, path .. ": " .. options.unknown("flag", name, options.names(out)) end
        local converted, expected = M.from_json(value, f.default)
        if converted == nil then
          return nil, ("%s: %s is %s, expected %s"):format(path, name, shown(value), expected)
        end
        local ok, why = set(f, converted)
        if not ok then return nil, path .. ": " .. why end
      end
      local rest = table.move(args, 1, i - 1, 1, {})
      table.move(args, i + (word == "--config" and 2 or 1), #args, i, rest)
      args = rest
      break
    end
  end
  local ok, message = read_args(flags, by_name, args, set)
  if not ok then return nil, message end
  local meta = getmetatable(spec)
  if meta and meta.finish then
    return meta.finish(out, given, function(name, value) return problem_of(by_name[name], value) end)
  end
  return out
end

--- The values of a JSON file of flags, as --config reads it.
--- @param path string
--- @return table|nil
--- @return string? message
function M.load(path)
  local file, err = io.open(path, "rb")
  if not file then return nil, err end
  local text = file:read "a"
  file:close()
  local config, message = peri.json.decode(text)
  if type(config) ~= "table" then
    return nil, ("%s: %s"):format(path, message and refusal.bare(message) or "is no object of flags")
  end
  return config
end

local asked -- who wants to know what a script reads, and nothing more

--- The flags that a script asks for: it runs up to where it reads them. nil and a message where it fails before, or
--- ends.
--- @param script function
--- @return table? spec  as peri.flags takes it
--- @return string? message
function M.spec_of(script)
  local found
  local mark = {}
  asked = function (spec)
    found = spec
    error(mark, 0)
  end
  local ok, why = pcall(script)
  asked = nil
  if found then return found end
  return nil, ok and "it reads no flags" or tostring(why)
end

--- The script's flags from its command line (`arg`). --help prints and ends the program, a wrong
--- flag ends it with status 2.
--- @param spec table
--- @param args string[]?
--- @param about string?  first lines of --help
--- @return table
function M.read(spec, args, about)
  if asked then asked(spec) end
  local values, message, is_help = M.parse(spec, args or arg or {}, about)
  if values then return values end
  if is_help then
    print(message)
    os.exit(0, true)
  end
  io.stderr:write(message, "\n")
  return os.exit(2, true)
end

setmetatable(M, { __call = function(_, ...) return M.read(...) end })
return require "perilune.names"(M, "perilune.flags")
