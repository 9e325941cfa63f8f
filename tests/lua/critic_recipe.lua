-- critic_recipe.lua - an actor and a critic on published models in one module, as a recipe for test_resume_critic.lua:
-- one optimizer with a group by pattern, one file of weights, an adapter on the actor, a frozen table in the critic.
local peri = require "perilune"
local nn, optim, peft, models, rl, recipe = peri.nn, peri.optim, peri.peft, peri.models, peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags { base = { "tests/data/hf_tiny/llama", "published model" }, steps = { 12, "updates" },
  group = { 16, "answers" }, tokens = { 6, "of an answer" } })

-- A causal model with a number for each position.
local Critic = nn.class("Critic", function (self, base)
  self.base = base
  self.value = nn.Linear(base.settings.dim, 1)
end)

function Critic:forward(ids) return self.value(self.base:forward(ids)):squeeze(-1) end -- (B, T)

local ActorCritic = nn.class("ActorCritic", function (self, base)
  self.policy = base
  self.lora = peft.lora(base, { r = 4, alpha = 16, targets = { "q_proj", "v_proj", "lm_head" } })
  self.critic = Critic(base:copy { trained = true }:unfreeze())
  self.critic:freeze "embed"
end)

local run = recipe.start { name = "critic", flags = cfg, total = cfg.steps, console = true, tensorboard = false }
local net = ActorCritic(assert(models.load(cfg.base))):train()
local opt = optim.AdamW(net, { lr = 2e-2, weight_decay = 0, groups = {
  { pattern = "^critic", lr = 1e-2, weight_decay = 0.01 } } })
run:track("net", net):track("optimizer", opt)

local rng = peri.rng(cfg.seed)
run:track("prompts", rng)

for step in run:steps() do
  local prompt = peri.tensor({ rng:int(1, 50), rng:int(1, 50) }, "i64"):reshape { 1, 2 }
  local out = net.policy:generate(prompt, { samples = cfg.group, max_new_tokens = cfg.tokens, stop = {} })
  local ids = peri.cat({ prompt:repeat_interleave(cfg.group, 1), out.tokens }, 2) -- (B, 2 + N)
  local reward = out.tokens:lt(30):to "f32" -- (B, N): a small id is worth 1
  local values = net.critic(ids):narrow(2, 2, cfg.tokens) -- (B, N), of what each token was chosen in
  local over = peri.arange(cfg.tokens):eq(cfg.tokens - 1):expand({ cfg.group, cfg.tokens }):contiguous()
  local v = values:detach()
  local after = peri.cat({ v:narrow(2, 2, cfg.tokens - 1), peri.zeros { cfg.group, 1 } }, 2)
  local advantage = peri.gae(reward, v, after, over, peri.zeros_like(over), { gamma = 1, lam = 0.95 })
  local logp = net.policy:token_logprobs(ids, 3)
  local weight = peri.ones_like(reward)
  local actor = rl.clipped(logp, out.logprobs, advantage, weight, { clip = 0.2 })
  local critic = values:mse(v:add(advantage))
  actor:add(critic:mul(0.5)):backward()
  opt:step { clip = 1 }:zero_grad()
  run:log(step, { reward = reward:sum(2):mean():item(), critic = critic:item(), grad_norm = opt.grad_norm })
end
assert(peri.safetensors.save(run:path "net.safetensors", net:state_dict()))
run:finish()
