-- folder.lua - which folder a run lives in, what its config.json says, and that it has one writer.
-- NAME, NAME-2, NAME-3 ... are the runs of one name in the order of their beginning.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"

local M = {}

--- End what is going on with a message for people.
--- @param format string
function M.refuse(format, ...) refusal.raise("recipe: " .. format:format(...)) end

--- A value, or a refusal with the message that came in its place.
--- @param value any
--- @param message string?
--- @return any
function M.must(value, message)
  if not value then M.refuse("%s", refusal.bare(tostring(message))) end
  return value
end

--- A folder's name as it was typed, without the slashes that completion puts behind it.
--- @param text string
--- @return string
function M.trimmed(text)
  local name = text:match "^(.-)/*$"
  return name ~= "" and name or text:sub(1, 1)
end

--- Path of the file of flags in a run folder.
--- @param folder string
--- @return string
function M.config_path(folder) return folder .. "/config.json" end

local function has_run(folder) return peri.files.exists(M.config_path(folder)) ~= false end

local special = require("perilune.run.flags").special

--- The flags that a run was begun with, or nil and a message that names the file.
--- @param folder string
--- @return table?
--- @return string?
function M.load_config(folder)
  local path = M.config_path(folder)
  if not peri.files.exists(path) then return nil, path .. ": there is none" end
  local text, message = peri.files.read(path)
  if not text then return nil, refusal.bare(message) end
  local config, why = peri.json.decode(text)
  if config == nil then return nil, ("%s: %s"):format(path, refusal.bare(why)) end
  if type(config) ~= "table" or #config > 0 or text:match "^%s*%[" then
    return nil, ("%s: is %s, expected an object of flags"):format(path,
      type(config) == "table" and "an array" or "a " .. type(config))
  end
  return config
end

--- Write config.json: all flags but `resume`.
--- @param folder string
--- @param flags table
--- @param name string  of the run
function M.save_config(folder, flags, name)
  local saved = {}
  for k, v in pairs(flags) do
    if type(v) == "number" and (v ~= v or v == math.huge or v == -math.huge) then
      v = v ~= v and "nan" or v > 0 and "inf" or "-inf"
    end
    if k ~= "resume" then saved[k] = v end
  end
  saved.run = name
  M.must(peri.files.write(M.config_path(folder), peri.json.encode(saved, { indent = 2 }) .. "\n"))
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

-- Names in a folder, sorted; none when there is no such folder.
local function entries(folder)
  return peri.files.exists(folder) == "folder" and M.must(peri.files.list(folder)) or {}
end

-- The highest n for which NAME-n is a run of that name; 1 is NAME itself, 0 none. A run that was called
-- "x-3" by its user is no third run of "x".
local function last_number(root, name)
  local last = has_run(("%s/%s"):format(root, name)) and 1 or 0
  local parent, leaf = ("%s/%s"):format(root, name):match "^(.*)/([^/]*)$"
  for _, entry in ipairs(entries(parent)) do
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

--- The folders below root that hold runs.
--- @param root string
--- @return string[]
function M.list(root)
  local out = {}
  for _, name in ipairs(entries(root)) do if has_run(("%s/%s"):format(root, name)) then out[#out + 1] = name end end
  return out
end

--- Note which recipe a new run is of: a script may call its recipe otherwise than itself.
--- @param folder string
--- @param recipe string
--- @param script string?
--- @param judged string[]  metrics that it is judged by
function M.save_origin(folder, recipe, script, judged)
  local origin = { recipe = recipe, script = script, judged = #judged > 0 and judged or nil }
  M.must(peri.files.write(folder .. "/run.json", peri.json.encode(origin) .. "\n"))
end

--- The name that a script's recipe gave to its runs below root; nil when it has none.
--- @param root string
--- @param script string
--- @return string?
function M.recipe_of(root, script)
  for _, name in ipairs(M.list(root)) do
    local path = ("%s/%s/run.json"):format(root, name)
    local text = peri.files.exists(path) and peri.files.read(path)
    local origin = text and peri.json.decode(text)
    if type(origin) == "table" and origin.script == script and type(origin.recipe) == "string" then
      return origin.recipe
    end
  end
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
  if not pid then return nil, refusal.bare(message) end
  if message:find("this process", 1, true) then
    return nil, ("%s: this process (%s) is writing this run; call its run:finish() first"):format(folder, pid)
  end
  return nil, ("%s: another process (%s) is writing this run; wait for it, or stop it"):format(folder, pid)
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
