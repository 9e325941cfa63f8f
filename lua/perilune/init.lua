-- perilune: the module itself. The C part with submodules that load on first use, and help.
local peri = require "perilune.core"

peri._library(debug.getinfo(1, "S").source:match "^(.*)init") -- errors point past these files

-- peri.log is the logarithm: the logger is require "perilune.log" alone.
local submodules = {
  nn = true, optim = true, sched = true, data = true, flags = true, plot = true, gguf = true,
  recipe = true, rl = true, text = true, tokenizer = true, models = true, lm = true, peft = true,
  batch = true, embed = true,
}
peri._submodules = submodules

local names = require "perilune.names"

-- Folders of modules without one of their own: peri.post.grpo is perilune.post.grpo.
local folders = {
  post = { grpo = true, sft = true, rows = true },
  tasks = { gsm8k = true, metrics = true },
}

local function folder(name)
  local known = folders[name]
  return names(setmetatable({}, {
    __index = function(t, key)
      if not known[key] then return nil end
      local module = require("perilune." .. name .. "." .. key)
      rawset(t, key, module)
      return module
    end,
  }), "perilune." .. name, known)
end

-- Functions written in Lua: a file each, loaded on the first call.
local functions = {
  per_sample_grad = "perilune.per_sample", help = "perilune.help", show = "perilune.show",
  clip_grad_value_ = "perilune.optim.clip_values",
}

setmetatable(peri, {
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

-- Functions of tensors that are no ops of the table: they return lists of views.
for name, entry in pairs(require "perilune.compose") do
  rawset(peri, name, entry.fn)
  if name ~= "meshgrid" then peri._method(name, entry.fn) end
end

for _, name in ipairs { "json", "files", "safetensors", "npy", "npz", "idx" } do
  names(rawget(peri, name), "perilune." .. name)
end
local later = {}
for _, list in ipairs { submodules, folders, functions } do
  for name in pairs(list) do later[name] = true end
end
return names(peri, "perilune", later)
