-- folder.lua - which folder a run lives in, what its config.json says, and that it has one writer.
-- NAME, NAME-2, NAME-3 ... are the runs of one name in the order of their beginning.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

-- What the outside world did wrong: a message without a traceback, since no line of a script is to blame.
local Refusal = { __name = "perilune.recipe.refusal" }
Refusal.__index = Refusal
Refusal.__tostring = function(self) return self.message end

--- End what is going on with a message for people.
--- @param message string
function M.stop(message) error(setmetatable({ message = message }, Refusal), 0) end

--- The same for what cannot be begun.
--- @param format string
function M.refuse(format, ...) M.stop("recipe: " .. format:format(...)) end

--- A value, or a refusal with the message that came in its place.
--- @param value any
--- @param message string?
--- @return any
function M.must(value, message)
  if not value then M.refuse("%s", (tostring(message):gsub("^%w[%w_:]*%.[%w_]+: ", ""))) end
  return value
end

--- Path of the file of flags in a run folder.
--- @param folder string
--- @return string
function M.config_path(folder) return folder .. "/config.json" end

local function has_run(folder) return peri.files.exists(M.config_path(folder)) ~= false end

-- JSON has no infinity: such numbers are text in config.json.
local special = { ["inf"] = math.huge, ["-inf"] = -math.huge, ["nan"] = 0 / 0 }

--- The flags that a run was begun with, or nil and a message that names the file.
--- @param folder string
--- @return table?
--- @return string?
function M.load_config(folder)
  local path = M.config_path(folder)
  if not peri.files.exists(path) then return nil, path .. ": there is none" end
  local text, message = peri.files.read(path)
  if not text then return nil, (message:gsub("^files%.read: ", "")) end
  local config, why = peri.json.decode(text)
  if config == nil then return nil, ("%s: %s"):format(path, (why:gsub("^json%.decode: ", ""))) end
  if type(config) ~= "table" or #config > 0 or text:match "^%s*%[" then
    return nil, ("%s: is %s, expected an object of flags"):format(path,
      type(config) == "table" and "an array" or "a " .. type(config))
  end
  return config
end

--- A value of config.json as the flag whose default is given, or nil and what was expected.
--- @param value any
--- @param default any
--- @return any
--- @return string?
function M.as_flag(value, default)
  if type(default) ~= "number" then
    if type(value) == type(default) then return value end
    return nil, "a " .. type(default)
  end
  local number = special[value] or value
  if type(number) ~= "number" then return nil, "a number" end
  if math.type(default) == "integer" then return math.tointeger(number), "an integer" end
  return number + 0.0
end

--- Write config.json: all flags but `resume`.
--- @param folder string
--- @param flags table
--- @return boolean?
--- @return string?
function M.save_config(folder, flags)
  local saved = {}
  for k, v in pairs(flags) do
    if type(v) == "number" and (v ~= v or v == math.huge or v == -math.huge) then
      v = v ~= v and "nan" or v > 0 and "inf" or "-inf"
    end
    if k ~= "resume" then saved[k] = v end
  end
  return peri.files.write(M.config_path(folder), peri.json.encode(saved, { indent = 2 }) .. "\n")
end

--- Are two values of a flag the same? Lists and NaN count by what they hold.
--- @param a any
--- @param b any
--- @return boolean
function M.same(a, b)
  a, b = special[a] or a, special[b] or b
  if type(a) == "table" and type(b) == "table" then return peri.json.encode(a) == peri.json.encode(b) end
  return a == b or a ~= a and b ~= b
end

--- Flags that config.json and a table of flags disagree on, as "lr was 1, is 2".
--- @param before table
--- @param now table
--- @param free table<string, boolean>  names that do not count
--- @return string[]
function M.differences(before, now, free)
  local all, list = {}, {}
  for k in pairs(before) do all[k] = true end
  for k in pairs(now) do all[k] = true end
  for _, name in ipairs(options.names(all)) do
    if not free[name] and not M.same(before[name], now[name]) then
      list[#list + 1] = ("%s was %s, is %s"):format(name, tostring(before[name]), tostring(now[name]))
    end
  end
  return list
end

-- The highest n for which NAME-n is a run of that name; 1 is NAME itself, 0 none. A run that was called
-- "x-3" by its user is no third run of "x".
local function last_number(root, name)
  local last = has_run(("%s/%s"):format(root, name)) and 1 or 0
  if peri.files.exists(root) ~= "folder" then return last end
  local parent, leaf = ("%s/%s"):format(root, name):match "^(.*)/([^/]*)$"
  for _, entry in ipairs(peri.files.exists(parent) == "folder" and peri.files.list(parent) or {}) do
    local n = entry:sub(1, #leaf + 1) == leaf .. "-" and entry:sub(#leaf + 2):match "^[1-9]%d*$"
    n = n and math.tointeger(tonumber(n))
    local folder = ("%s/%s"):format(parent, entry)
    if n and n > last and n > 1 and has_run(folder) then
      local config = M.load_config(folder)
      local of = config and config.run
      if of == nil or of == "" or of == name then last = n end
    end
  end
  return last
end

local function numbered(root, name, n)
  return n == 1 and ("%s/%s"):format(root, name) or ("%s/%s-%d"):format(root, name, n)
end

--- The folder of the newest run of a name; NAME-1 is the first one. nil when there is none.
--- @param root string
--- @param name string
--- @return string? folder
--- @return integer count  runs of that name, or the number of the newest
function M.newest(root, name)
  local n = last_number(root, name)
  if n > 0 then return numbered(root, name, n), n end
  local first = name:match "^(.+)%-1$"
  if first and has_run(numbered(root, first, 1)) then return numbered(root, first, 1), 1 end
  return nil, 0
end

--- Take the lock of a run folder: it has one writer.
--- @param folder string
--- @return userdata|nil lock
--- @return string? message  names the process that has it
function M.lock(folder)
  local lock, message = peri.files.lock(folder .. "/.lock")
  if lock then return lock end
  local pid = message:match "process (%d+) has locked" or message:match "this process %((%d+)%)"
  if not pid then return nil, (message:gsub("^files%.lock: ", "")) end
  local who = message:find "this process" and "this process" or "another process"
  return nil, ("%s: %s (%s) is writing this run; wait for it, or stop it"):format(folder, who, pid)
end

--- Make and lock the folder of a new run: the next of NAME, NAME-2, NAME-3 ... that nobody has.
--- @param root string
--- @param name string
--- @return string folder
--- @return userdata lock
function M.fresh(root, name)
  for n = last_number(root, name) + 1, math.huge do
    local folder = numbered(root, name, math.tointeger(n))
    M.must(peri.files.make_folder(folder))
    local lock, message = M.lock(folder)
    if lock and not has_run(folder) then return folder, lock end
    if lock then
      lock:drop()
    elseif not message:find "is writing this run" then
      M.refuse("%s", message)
    end
  end
end

return M
