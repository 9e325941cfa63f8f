-- scores.lua - what each seed of a run scored, as a file of its folder: scores.jsonl has a line for each name, which
-- perilune sweep and perilune compare read.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"

local M = {}

local function path_of(folder) return folder .. "/scores.jsonl" end

local finite = options.number(options.required)

-- What is wrong with a list of scores; nil when nothing is.
local function problem_of(what, list)
  if type(list) ~= "table" or #list == 0 then return what .. ": expected a number for each seed" end
  for i, v in ipairs(list) do
    local problem = options.problem(("number %d of %s"):format(i, what), v, finite)
    if problem then return problem end
  end
end

--- Scores as plain lists, of one task or of each; raises what is wrong with them.
--- @param who string
--- @param name string
--- @param scores number|number[]|number[][]|perilune.Tensor
--- @return number[]|number[][]
function M.plain(who, name, scores)
  options.argument(who, "name", name, "string")
  options.argument(who, "scores", scores, "number or table or tensor")
  if name == "" or #name > 100 or name:find "%c" or not utf8.len(name) then
    options.raise(("%s: %q cannot name scores: 1 to 100 bytes of UTF-8 are expected"):format(who, name))
  end
  if peri.is_tensor(scores) then scores = scores:tolist() end
  if type(scores) == "number" then scores = { scores } end
  local what, problem = "the scores " .. name, nil
  if type(scores) ~= "table" or type(scores[1]) ~= "table" then problem = problem_of(what, scores)
  else
    for t, list in ipairs(scores) do problem = problem or problem_of(("%s of task %d"):format(what, t), list) end
  end
  if problem then options.raise(("%s: %s"):format(who, problem)) end
  return scores
end

--- The scores in a run folder, in the order in which they were first given; none where the run has stored none.
--- @param folder string
--- @return table[]|nil list  { name, scores, step } each
--- @return string? message  where the file is damaged
function M.read(folder)
  local path, list = path_of(folder), {}
  if not peri.files.exists(path) then return list end
  local lines, message = peri.files.lines(path)
  if not lines then return nil, refusal.bare(message) end
  for line, number in lines do
    local row = peri.json.decode(line)
    local ok = type(row) == "table" and type(row.name) == "string" and type(row.scores) == "table"
      and pcall(M.plain, "", row.name, row.scores)
    if not ok then return nil, ("%s: line %d is damaged"):format(path, number) end
    list[#list + 1] = row
  end
  return list
end

--- Put scores in place of those of the same name, or behind the others.
--- @param folder string
--- @param name string
--- @param scores number[]|number[][]
--- @param step integer  that the run has done
function M.write(folder, name, scores, step)
  local list = folders.must(M.read(folder))
  local at = #list + 1
  for i, row in ipairs(list) do if row.name == name then at = i end end
  list[at] = { name = name, scores = scores, step = step }
  local lines = {}
  for i, row in ipairs(list) do
    lines[i] = ('{"name":%s,"step":%d,"scores":%s}\n'):format(peri.json.encode(row.name), row.step,
      peri.json.encode(row.scores))
  end
  folders.must(peri.files.write(path_of(folder), table.concat(lines)))
end

return M
