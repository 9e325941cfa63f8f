-- perilune: the module itself. The C part with submodules that load on first use, and help.
local peri = require "perilune.core"

peri._library(debug.getinfo(1, "S").source:match "^(.*)init") -- errors point past these files

-- What there is: peri.NAME -> the file of perilune. that it is, loaded when it is first read. require
-- "perilune.NAME" gives the same. A table stands for modules below a name without a module of its own.
local public = {
  nn = "nn", optim = "optim", sched = "optim.sched", data = "data", models = "models", peft = "peft",
  text = "text", tokenizer = "text.tokenizer", batch = "text.batch", lm = "lm", embed = "lm.embed",
  gguf = "weights.gguf", env = "env", rl = "rl", reward = "reward", sandbox = "sandbox", tools = "tools",
  dist = "dist", loss = "loss",
  algo = { agent = "algo.agent", distill = "algo.distill", dpo = "algo.dpo", grpo = "algo.grpo", joint = "algo.joint",
    multi_task = "algo.multi_task", ppo = "algo.ppo", prm = "algo.prm", reject = "algo.reject",
    reward_model = "algo.reward_model", sft = "algo.sft", transfer = "algo.transfer" },
  tasks = { chain = "tasks.chain", clock = "tasks.clock", countdown = "tasks.countdown", domains = "tasks.domains",
    gsm8k = "tasks.gsm8k", metrics = "tasks.metrics", products = "tasks.products", quest = "tasks.quest",
    sums = "tasks.sums", verdicts = "tasks.verdicts", words = "tasks.words" },
  recipe = "run.recipe", serve = "serve.tinker", flags = "run.flags", plot = "run.plot", image = "image",
  -- the names that steppers had before the room algo
  post = { grpo = "algo.grpo", sft = "algo.sft", rows = "data.rows" },
}
peri._public = public

local names = require "perilune.names"

local function preload(name, file)
  if name ~= file then package.preload["perilune." .. name] = function () return require("perilune." .. file) end end
end
preload("log", "run.log") -- peri.log is the logarithm
for name, file in pairs(public) do
  if type(file) == "string" then preload(name, file) end
  for part, below in pairs(type(file) == "table" and file or {}) do preload(name .. "." .. part, below) end
end

local function folder(name)
  local known = public[name]
  return names(setmetatable({}, {
    __index = function(t, key)
      if not known[key] then return nil end
      local module = require("perilune." .. known[key])
      rawset(t, key, module)
      return module
    end,
  }), "perilune." .. name, known)
end

-- Functions written in Lua: a file each, loaded on the first call.
local functions = {
  per_sample_grad = "perilune.per_sample", help = "perilune.help", show = "perilune.show",
  clip_grad_value_ = "perilune.optim.clip_values", hvp = "perilune.optim.hvp", worker = "perilune.parallel.worker",
  replay = "perilune.env.replay", rollout = "perilune.env.rollout",
}

setmetatable(peri, {
  __index = function(t, key)
    local value
    if type(public[key]) == "table" then value = folder(key)
    elseif public[key] then value = require("perilune." .. public[key])
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
for _, list in ipairs { public, functions } do
  for name in pairs(list) do later[name] = true end
end
return names(peri, "perilune", later)
