-- perilune: the module itself. The C part with submodules that load on first use, and help.
local peri = require "perilune.core"

-- peri.log is the logarithm: the logger is require "perilune.log" alone.
local submodules = {
  nn = true, optim = true, sched = true, data = true, flags = true, plot = true, gguf = true,
  recipe = true, rl = true, text = true, tokenizer = true, models = true, lm = true, peft = true,
  batch = true, embed = true,
}
peri._submodules = submodules

-- Folders of modules without one of their own: peri.models.llama is perilune.models.llama.
local function folder(name)
  return setmetatable({}, {
    __index = function(t, key)
      if type(key) ~= "string" then return nil end
      local module = require("perilune." .. name .. "." .. key)
      rawset(t, key, module)
      return module
    end,
  })
end

local folders = { post = true, tasks = true }

-- Functions written in Lua: a file each, loaded on the first call.
local functions = {
  per_sample_grad = "perilune.per_sample", help = "perilune.help", clip_grad_value_ = "perilune.optim.clip_values",
}

-- Functions of tensors that are no ops of the table: they return lists of views.
local loaded = setmetatable(peri, {
  __index = function(t, key)
    local value
    if submodules[key] then value = require("perilune." .. key)
    elseif folders[key] then value = folder(key)
    elseif functions[key] then value = require(functions[key])
    else return nil end
    rawset(t, key, value)
    return value
  end,
})

for name, entry in pairs(require "perilune.compose") do
  rawset(loaded, name, entry.fn)
  if name ~= "meshgrid" then peri._method(name, entry.fn) end
end

return loaded
