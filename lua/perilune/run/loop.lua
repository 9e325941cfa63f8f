-- loop.lua - the steps of a run as an iterator, and every way that such a loop ends: by itself, by break or
-- return, by run:stop and early stopping, by Ctrl-C, by an error. After each but the last two a checkpoint
-- of the last step is there; after those the message says where to go on.

local peri = require "perilune"
local refusal = require "perilune.refusal"
local checkpoint = require "perilune.run.checkpoint"
local sessions = require "perilune.run.sessions"

local M = {}

local Loop = {}

local function quoted(word)
  if word:find "^[%w_./=,:+-]+$" then return word end
  return "'" .. word:gsub("'", "'\\''") .. "'"
end

-- The words that started the script, as they were typed: the launcher of a checkout says how it was called.
local function program(script)
  local first, words = 0, {}
  while type(arg[first - 1]) == "string" do first = first - 1 end
  for i = first, -1 do words[#words + 1] = quoted(arg[i]) end
  local typed = os.getenv "PERILUNE_COMMAND"
  if typed and typed ~= "" and words[1] and words[1]:find "perilune[%w-]*$" then words[1] = quoted(typed) end
  words[#words + 1] = quoted(script)
  return table.concat(words, " ")
end

--- The command line that goes on with a run.
--- @param run perilune.recipe.Run
--- @return string
function M.command(run)
  local script = type(arg) == "table" and type(arg[-1]) == "string" and type(arg[0]) == "string" and arg[0]
  local words = { script and program(script) or "the recipe with" }
  local flags = run.flags
  if flags.runs and flags.runs ~= "runs" then words[#words + 1] = "--runs " .. quoted(flags.runs) end
  if flags.run and flags.run ~= "" then words[#words + 1] = "--run " .. quoted(flags.run) end
  words[#words + 1] = "--resume"
  return table.concat(words, " ")
end

-- "step 3 of 10", "step 3".
local function place(run, step) return run.total and ("step %d of %d"):format(step, run.total) or "step " .. step end

local function last_checkpoint(run)
  if not run.saved then return "there is no checkpoint yet: begin a new run" end
  return ("the last checkpoint is of step %d; go on with: %s"):format(run.saved, M.command(run))
end

-- Ctrl-C was asked to wait for the end of the step, which is now.
local function stop_here(loop, step)
  local run = loop.run
  local message = ("stopped after %s; checkpoint %d is saved; go on with: %s"):format(place(run, step), step,
    M.command(run))
  run.logger:note(message)
  run:finish(false, "Ctrl-C")
  loop.over = true -- a second Ctrl-C up to here ends it otherwise
  refusal.raise(message, true)
end

-- A turn is over: whatever it made is in the objects.
local function turn_over(loop, step)
  local run = loop.run
  local asked = peri.interrupted()
  if run:due(step) or run.stopped or asked then run:save(step) end
  if asked then stop_here(loop, step) end
  if run.stopped then run:text("stopped after %s: %s", place(run, step), run.stopped) end
end

-- The message first, then where to go on, then the traceback.
local function with_hint(err, hint)
  local at = type(err) == "string" and err:find("\nstack traceback:\n", 1, true)
  return at and ("%s\n%s%s"):format(err:sub(1, at - 1), hint, err:sub(at)) or err
end

-- A second Ctrl-C: the files are not written to, since the runtime is interrupted.
local function stop_at_once(loop)
  local run = loop.run
  local step = loop.last or run.step
  loop.over = true
  refusal.raise(("stopped %s; %s"):format(run.saved == step and "after " .. place(run, step)
    or ("in %s before its end"):format(place(run, step)), last_checkpoint(run)), true)
end

local function close(loop, err)
  local inner <close> = loop.inner -- luacheck: ignore 211
  local run = loop.run
  refusal.hint = nil
  local asked = peri.on_interrupt(false)
  local at_once = peri.interrupted()
  run._turn = nil
  run.logger:pause()
  if err == nil then run:_warn_unmeasured() end
  if loop.over then return end
  loop.over = true
  if err == nil then -- break, return: the turn counts
    if run.saved ~= loop.last then run:save(loop.last) end
    if asked then stop_here(loop, loop.last) end
    if loop.last ~= run.total then run.stopped, run._left = "the loop was left", true end
    return
  end
  if at_once then stop_at_once(loop) end
  local hint = last_checkpoint(run)
  local said = tostring(err):match "[^\n]*"
  pcall(run.logger.note, run.logger, ("failed in %s: %s"):format(place(run, loop.last or run.step), said))
  pcall(sessions.finish, run.folder, run.step, false, said)
  local hinted = with_hint(err, hint)
  if hinted ~= err then error(hinted, 0) end -- else it goes on as it is
end

-- Ctrl-C may come while the loop is closing, too.
function Loop.__close(loop, err)
  local ok, why = pcall(close, loop, err)
  if ok then return end
  if type(why) ~= "table" and peri.interrupted() then stop_at_once(loop) end
  error(why, 0)
end

--- The steps that are left, each a memory scope.
--- @param run perilune.recipe.Run
function M.steps(run)
  local first = run:restore() + 1
  run._begun = true
  if run._left then run.stopped, run._left = nil, nil end -- a second loop goes on where the first was left
  local over = run.stopped ~= nil or run.total ~= nil and first > run.total
  local last = over and 0 or run.total or math.huge
  local next_step, state, control, inner = peri.steps(last, { from = over and 1 or first })
  if not over then checkpoint.check(run) end
  local loop = setmetatable({ run = run, inner = inner }, Loop)
  refusal.hint = function() return last_checkpoint(run) end
  peri.on_interrupt(true, "stopping after this step; Ctrl-C again stops at once")
  return function(s, c)
    if loop.last then turn_over(loop, loop.last) end
    if not run.stopped then loop.last = next_step(s, c) else loop.last = nil end
    run._turn = loop.last
    if loop.last then run.step = loop.last else loop.over = true end
    return loop.last, run.total
  end, state, control, loop
end

Loop.__index = Loop
return M
