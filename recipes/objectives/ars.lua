-- ars.lua - a policy without a gradient: try a linear policy moved at random to either side, go where it paid.
--
-- Teaches: augmented random search (Mania, Guy and Recht 2018, 1803.07055): V1 (--normalize false), V1-t (--top below
-- --directions), V2 (observations of mean 0 and deviation 1) and V2-t. Returns are scaled by their own deviation.
-- Run:  ./perilune run recipes/objectives/ars.lua     CartPole, 50,000 steps, ten seeds: seconds
--       MountainCarContinuous: --env MountainCarContinuous-v0 --timesteps 500000 --rate 0.1 --deviation 0.5
--       Pendulum: --env Pendulum-v1 --timesteps 500000 --directions 16 --top 8 --rate 0.1 --deviation 0.1
-- Departs from the paper: all directions play at once, each one episode; rl-zoo's Pendulum has a layer of 16.
local peri = require "perilune"
local rl, recipe = peri.rl, peri.recipe

local cfg = peri.flags(recipe.with_flags {
  env        = { "CartPole-v1", "environment of vectors with a time limit" },
  seeds      = { 10, "policies that are learned beside each other", range = "[1, inf)" },
  timesteps  = { 50000, "steps of each seed: the update that reaches them is the last", range = "[1, inf)" },
  updates    = { 100000, "at most", range = "[0, inf)", budget = true },
  directions = { 8, "tried in an update, on both sides", range = "[1, inf)" },
  top        = { 4, "of them that count", range = "[1, inf)" },
  rate       = { 0.02, "step size", range = "(0, inf)" },
  deviation  = { 0.05, "of what is added to the parameters", range = "(0, inf)" },
  normalize  = { true, "observations; false: V1" },
  eval_every = { 10, "updates between evaluations", range = "[1, inf)" },
  eval       = { 20, "episodes of an evaluation, of each seed", range = "[1, inf)" },
})
local S, tries = cfg.seeds, 2 * cfg.directions
local run = recipe.start { name = "ars", flags = cfg, total = cfg.updates, columns = { "return", "eval", "timesteps" } }
local env = peri.env.make(cfg.env, { n = S * tries, seed = cfg.seed, copy = false })
local test = peri.env.make(cfg.env, { n = S * cfg.eval, copy = false })
local space = env.action_space
assert(env.max_steps and #env.obs_space.shape == 1, cfg.env .. ": expected vectors and a time limit")
local search = rl.random_search { inputs = env.obs_space.shape[1], outputs = space.n or space.shape[1], seeds = S,
  directions = cfg.directions, top = cfg.top, rate = cfg.rate, deviation = cfg.deviation, normalize = cfg.normalize }
local spent = { steps = 0 } -- of each seed, in the mean
function spent:state() return { steps = self.steps } end
function spent:set_state(s) self.steps = s.steps end
run:track("search", search):track("env", env):track("spent", spent)

local function sent(y) -- numbers of a policy as an action
  if space.n then return y:argmax(-1) + space.start end
  return y:clamp(space.low, space.high):to(space.dtype)
end
local function play() -- an episode of every policy that is tried: returns (seeds, tries), steps of all
  local obs, returns, running = env:reset(), peri.zeros({ S * tries }, "f64"), peri.ones({ S * tries }, "bool")
  local steps = 0
  repeat
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local action = sent(search:act(obs))
    search:observe(obs, running)
    local after, reward, terminated, truncated = env:step(action)
    returns = peri.keep(returns + reward:to "f64" * running:to "f64")
    steps = steps + running:to("f32"):sum():item()
    obs, running = after, peri.keep(running:logical_and(terminated:logical_or(truncated):logical_not()))
  until not running:any():item()
  return returns:reshape { S, tries }, steps
end
local function score()
  return rl.evaluate(test, function (obs) return sent(search:act(obs, true)) end,
    { episodes = S * cfg.eval, seeds = S, seed = 1000000 }).of_seed
end

-- Loop.
run:restore()
for update in run:steps() do
  if spent.steps >= cfg.timesteps then break end
  search:ask()
  local returns, steps = play()
  local sigma = search:tell(returns)
  spent.steps = spent.steps + steps / S
  run:log(update, { ["return"] = returns:mean():item(), deviation = sigma:mean():item(), timesteps = spent.steps,
    eval = update % cfg.eval_every == 0 and peri.tensor(score()):mean():item() or nil })
end
local scores = score()
rl.policy.save(run:path "policy.safetensors", { net = search:network(1), env = env,
  head = space.n and "greedy" or "gaussian", log_std = not space.n and peri.zeros { space.shape[1] } or nil })
run:plot("curves.svg", { run:last "eval" and { "return", "eval" } or "return", "deviation" })
run:text("%s, V%d%s, %d steps of each seed: %s", cfg.env, cfg.normalize and 2 or 1,
  cfg.top < cfg.directions and "-t" or "", spent.steps // 1, rl.report(scores))
run:finish()
