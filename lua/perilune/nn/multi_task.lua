-- multi_task.lua - one body with a head for each of several tasks.

local Module = require "perilune.nn.module"
local options = require "perilune.options"

local M = {}

--- An encoder that several tasks share, with a head for each: net("math", ids) is heads.math(encoder(ids)).
--- algo.multi_task trains it on all of them.
--- @class perilune.nn.MultiTask
--- @field encoder perilune.nn.Module
--- @field heads table<string, perilune.nn.Module>
M.MultiTask = Module.class("MultiTask", function (self, encoder, heads)
  options.argument("MultiTask", "encoder", encoder, "module")
  options.argument("MultiTask", "heads", heads, "table")
  if next(heads) == nil then options.raise "MultiTask: there is no head" end
  for name, head in pairs(heads) do
    if type(name) ~= "string" or not Module.is_module(head) then
      options.raise(("MultiTask: head %s is a %s, expected names of tasks with modules"):format(tostring(name),
        type(head)))
    end
  end
  self.encoder, self.heads = encoder, heads
end)
options.declare(M.MultiTask, { "encoder", "heads" }, {
  encoder = options.value(options.required, "module", "what all tasks share"),
  heads = options.value(options.required, "table", "name of a task -> a module, which takes what the encoder gives"),
})

--- @param task string  whose head answers
--- @param ... any  what the encoder takes
--- @return any  what the head gives
function M.MultiTask:forward(task, ...)
  local head = self.heads[task]
  if not head then options.raise("MultiTask: " .. options.unknown("task", task, options.names(self.heads))) end
  return head(self.encoder(...))
end

return M
