-- checkpoint.lua - what a checkpoint of a run is: a file of tensors for each tracked object, and state.json with plain
-- values, the generator and the best measurements. It is written whole or not at all.

local peri = require "perilune"
local options = require "perilune.options"
local walk = require "perilune.nn.walk"
local folders = require "perilune.run.folder"

local must = folders.must

local M = {}

--- The message of an error without the place when that is in the library, or where the script called it.
function M.message_of(err)
  local text = tostring(type(err) == "table" and err.message or err):match "^[^\n]*"
  local _, here = pcall(options.raise, "")
  if here ~= "" and text:sub(1, #here) == here then return text:sub(#here + 1) end
  return (text:gsub("^%S*perilune/[%w_/]+%.lua:%d+: ", ""))
end

-- The names of the objects in a checkpoint.
local function objects_in(path, state)
  local names = {}
  for name in pairs(state.objects) do names[name] = true end
  for _, file in ipairs(must(peri.files.list(path))) do
    local name = file:match "^(.*)%.safetensors$"
    if name then names[name] = true end
  end
  return names
end

-- Hand an object its part of a checkpoint; one that it does not fit is refused by name.
local function restore_object(path, name, object, plain)
  local ok, why
  if object.state_dict then
    local tensors = must(peri.safetensors.load(("%s/%s.safetensors"):format(path, name)))
    ok, why = pcall(object.load_state_dict, object, tensors, plain)
  else
    ok, why = pcall(object.set_state, object, plain)
  end
  if ok then return end
  if peri.interrupted() then error(why, 0) end
  folders.refuse("%s does not fit %q: %s", path, name, M.message_of(why))
end

--- Put the checkpoint of a run that resumes into what is tracked.
--- @param self perilune.recipe.Run
function M.load(self)
  local path = self._checkpoint
  local state, why = peri.json.decode(must(peri.files.read(path .. "/state.json")), { allow_nan = true })
  if type(state) ~= "table" then folders.refuse("%s/state.json: %s", path, tostring(why or "is not an object")) end
  local there = objects_in(path, state)
  for _, name in ipairs(self._order) do
    if not there[name] then folders.refuse("%s has no %q: it was not tracked then", path, name) end
  end
  for _, name in ipairs(options.names(there)) do
    if self._objects[name] == nil then folders.refuse("%s has %q, which is not tracked now", path, name) end
  end
  for _, name in ipairs(self._order) do restore_object(path, name, self._objects[name], state.objects[name]) end
  peri.set_rng_state(state.rng)
  self.step, self.saved = state.step, state.step
  if not self._prolonged then self.stopped = state.stopped end
  for _, best in ipairs(self._bests) do
    local before = state.best and state.best[best.metric]
    if before then best:set_state(before) end
    if self._prolonged then best:prolong(state.step) end
    best:rewind(state.step)
  end
end

-- The text of state.json; numbers that JSON has not are written as Python writes them.
local function encoded(state)
  local ok, text = pcall(peri.json.encode, state, { nan = "literal" })
  if ok then return text end
  for _, name in ipairs(options.names(state.objects)) do
    local good, why = pcall(peri.json.encode, state.objects[name], { nan = "literal" })
    if not good then folders.refuse("the state of %q cannot be written: %s", name, tostring(why)) end
  end
  return error(text, 0)
end

--- What cannot be saved is said before the first step, not at the first checkpoint.
--- @param self perilune.recipe.Run
function M.check(self)
  local objects, tracked = {}, {}
  for i, name in ipairs(self._order) do
    local object = self._objects[name]
    tracked[i] = { name, object }
    if object.state_dict then
      local tensors, plain = object:state_dict()
      for _, key in ipairs(options.names(tensors or {})) do
        local t = tensors[key]
        if peri.is_tensor(t) and t.dtype:find "^q%d" then
          folders.refuse("the state of %q cannot be written: %s is %s, which the format does not have: load the model "
            .. "in f32, f16 or bf16, or track its adapter alone", name, key, t.dtype)
        end
      end
      objects[name] = plain
    else
      objects[name] = object:state()
    end
  end
  encoded { objects = objects }
  local left = walk.left_out(tracked)
  if left then folders.refuse("%s and would not be saved: track it, or put it in a field of what is tracked", left) end
end

--- Write a checkpoint of everything tracked.
--- @param self perilune.recipe.Run
--- @param step integer
function M.save(self, step)
  local tracked = {}
  for i, name in ipairs(self._order) do tracked[i] = { name, self._objects[name] } end
  local problem = walk.counted_twice(tracked)
  if problem then options.raise("save: " .. problem) end
  local writer <close> = must(peri.files.checkpoint.begin(self.folder .. "/checkpoints"))
  local state = { step = step, rng = peri.rng_state(), objects = {}, best = {},
    stopped = not self._left and self.stopped or nil }
  for _, name in ipairs(self._order) do
    local object = self._objects[name]
    if object.state_dict then
      local tensors, plain = object:state_dict()
      must(peri.safetensors.save(("%s/%s.safetensors"):format(writer.path, name), tensors))
      state.objects[name] = plain
    else
      state.objects[name] = object:state()
      if state.objects[name] == nil then folders.refuse("the state of %q is nil, expected a plain value", name) end
    end
  end
  for _, best in ipairs(self._bests) do state.best[best.metric] = best:state() end
  must(peri.files.write(writer.path .. "/state.json", encoded(state)))
  must(writer:commit(("step-%08d"):format(step), self._options.keep))
  self.saved = step
  for _, best in ipairs(self._bests) do best:prune() end
end

return M
