-- evaluate.lua - how good a policy is, apart from its training: whole episodes, none preferred for being short.

local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"

local M = {}

local rules = {
  episodes = options.integer(100, "[1, inf)", "shared out evenly among the rows of the environment"),
  seed = options.integer(options.none, "[0, inf)", "of row 1, the next one has seed + 1; none: the generators go on"),
  deterministic = options.boolean(true, "what a policy of peri.rl.policy is asked for"),
  seeds = options.integer(1, "[1, inf)", "learners that share the rows, one behind the other: episodes are of all, and "
    .. "of_seed has the mean of each"),
  gamma = options.number(options.none, "[0, 1]", "discount of rewards; then discounted has what each episode was worth "
    .. "from its beginning"),
  max_steps = options.integer(1000000, "[1, inf)", "of a row, after which it is an error that episodes do not end"),
}

-- act(obs, began) as one function, of a policy, a module or a function.
local function actor(policy, env, o)
  if type(policy) == "table" and policy.restart and policy.act then
    return function(obs, began)
      policy:restart(began)
      return policy:act(obs, { deterministic = o.deterministic, mask = env.mask })
    end
  end
  return policy
end

--- Play whole episodes and say how they went. Each row plays its share, the first ones that it begins: the first
--- episodes to end anywhere would be the short ones.
---
---     local score = rl.evaluate(test_env, function(obs) return net(obs):argmax(-1) end, { seed = 1000 })
---     print(score.mean, #score.returns)
---
--- @param env perilune.env.Env  many rows, one of its own: training goes on where it was
--- @param policy function|table  a policy, or function(obs, began) that gives actions; began (n) bool: episodes that
--- begin with this observation, for what remembers
--- @param opts table?
--- @return table  returns and lengths of the episodes by row and order, mean, std, min and max of the returns,
--- of_seed; with gamma discounted, of each episode
function M.evaluate(env, policy, opts)
  local phase <close> = phases.open "evaluate" -- luacheck: ignore 211
  local o = options.fill("rl.evaluate", opts, rules)
  options.argument("rl.evaluate", "env", env, "table")
  options.argument("rl.evaluate", "policy", policy, "table or function")
  if not env.n then options.raise "rl.evaluate: the environment is a single one; make it with n" end
  if env.rows % o.seeds ~= 0 or o.episodes % o.seeds ~= 0 then
    options.raise(("rl.evaluate: %d seeds do not share %d rows and %d episodes evenly"):format(o.seeds, env.rows,
      o.episodes))
  end
  local act, share, rows = actor(policy, env, o), {}, env.rows
  local each, own = rows // o.seeds, o.episodes // o.seeds
  for row = 1, rows do share[row] = own // each + ((row - 1) % each < own % each and 1 or 0) end
  local left, found, lengths = o.episodes, {}, {}
  local mode <close> = peri.no_grad() -- luacheck: ignore 211
  local obs = env:reset { seed = o.seed }
  env:episodes() -- those of before
  local began = peri.ones({ rows }, "bool")
  local steps, worth, weight = 0, peri.zeros({ rows }, "f64"), peri.ones({ rows }, "f64")
  while left > 0 do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local next_obs, reward, terminated, truncated = env:step(act(obs, began))
    obs = peri.keep(next_obs)
    if o.gamma then -- from the beginning of the episode that a row is in
      worth = peri.keep(worth:masked_fill(began, 0) + weight:masked_fill_(began, 1) * reward)
      weight:mul_(o.gamma)
    end
    began = peri.keep(terminated:logical_or(truncated):logical_or(env.valid:logical_not()))
    local ended = env:episodes()
    for i, row in ipairs(ended.rows) do
      if share[row] > 0 then
        share[row], left = share[row] - 1, left - 1
        found[#found + 1] = { row, #found, ended.returns[i], ended.lengths[i], o.gamma and worth:at(row) }
      end
    end
    steps = steps + 1
    if steps == o.max_steps and left > 0 then
      options.raise(("rl.evaluate: %s: %d of %d episodes have not ended after %d steps; make it with a time limit")
        :format(env.id, left, o.episodes, steps))
    end
  end
  table.sort(found, function(a, b) return a[1] < b[1] or a[1] == b[1] and a[2] < b[2] end)
  local returns, discounted = {}, o.gamma and {}
  for i, episode in ipairs(found) do
    returns[i], lengths[i] = episode[3], episode[4]
    if discounted then discounted[i] = episode[5] end
  end
  local t = peri.tensor(returns, "f64")
  local of_seed = t:reshape({ o.seeds, own }):mean(-1):tolist()
  return { returns = returns, lengths = lengths, mean = t:mean():item(), std = #returns > 1 and t:std():item() or 0,
           min = t:min():item(), max = t:max():item(), of_seed = of_seed, discounted = discounted }
end
options.declare(M.evaluate, { "env", "policy" }, rules)

return M
