-- sessions.lua - which processes worked at a run: a line of sessions.jsonl when one begins or goes on, with what it
-- runs on, and one when it ends. A process that was killed leaves no second line.

local peri = require "perilune"
local folders = require "perilune.run.folder"

local M = {}

local function path_of(folder) return folder .. "/sessions.jsonl" end

local function add(folder, row)
  row.time = os.date "%Y-%m-%d %H:%M:%S"
  folders.must(peri.files.append(path_of(folder), peri.json.encode(row) .. "\n"))
end

local function read(path)
  local text = peri.files.exists(path) == "file" and peri.files.read(path)
  return text and text:match "^%s*(.-)%s*$" or nil
end

-- The commit that a folder of git's stands at; nil where it cannot be read.
local function head_of(git)
  local head = read(git .. "/HEAD")
  local ref = head and head:match "^ref: ([%w%._/-]+)$"
  if not ref then return head and head:match "^%x+$" end
  local common = read(git .. "/commondir") -- of a worktree: where its branches are
  for _, place in ipairs { git, common and (common:find "^/" and common or git .. "/" .. common) } do
    local hash = read(place .. "/" .. ref)
    if hash and hash:find "^%x+$" then return hash end
    for line in (read(place .. "/packed-refs") or ""):gmatch "[^\n]+" do
      local packed, name = line:match "^(%x+) (%S+)$"
      if name == ref then return packed end
    end
  end
end

local HIGH <const> = 12 -- folders above the script that are looked at

--- The git commit of the checkout that a file is in; nil where there is none.
--- @param path string
--- @return string?
function M.commit(path)
  local folder = path:match "^(.*)/[^/]*$" or "."
  for _ = 1, HIGH do
    local git = folder .. "/.git"
    local kind = peri.files.exists(git)
    if kind == "file" then
      local place = (read(git) or ""):match "^gitdir: (.+)$"
      git = place and (place:find "^/" and place or folder .. "/" .. place)
    end
    if kind then return git and head_of(git) end
    folder = folder .. "/.."
  end
end

--- A process begins a run, or goes on with it.
--- @param folder string
--- @param step integer  that is done
--- @param total integer?
--- @param resumed boolean
function M.begin(folder, step, total, resumed)
  local info = peri.info()
  local script = type(arg) == "table" and type(arg[0]) == "string" and arg[0] or nil
  add(folder, { event = resumed and "resume" or "begin", step = step, total = total, perilune = info.version,
    lua = info.lua, device = info.device, processor = info.processor, simd = info.simd, threads = info.threads,
    commit = script and M.commit(script) })
end

--- It ends.
--- @param folder string
--- @param step integer  that is done
--- @param ok boolean
--- @param why string?
function M.finish(folder, step, ok, why) add(folder, { event = "end", step = step, ok = ok, why = why }) end

--- The lines of a run, in order; one that is damaged is left out.
--- @param folder string
--- @return table[]
function M.read(folder)
  local list = {}
  if peri.files.exists(path_of(folder)) ~= "file" then return list end
  for line in folders.must(peri.files.lines(path_of(folder))) do
    local row = peri.json.decode(line)
    if type(row) == "table" and type(row.event) == "string" then list[#list + 1] = row end
  end
  return list
end

return M
