-- self_play.lua - two sides of a game learn from playing each other, judged by one who knows the game.
--
-- Teaches: PPO in turns (rl.turn_gae) against a league of past selves (fictitious self-play, Heinrich et al. 2015;
-- --choose hard is AlphaStar's priority, Vinyals et al. 2019). Elo ratings of selves by age, an exact solver, and the
-- non-stationarity: `first` is what the learner scores against one fixed policy, its first self.
-- Run:  ./perilune run recipes/agents/self_play.lua --seeds 10    tic-tac-toe, two minutes of one core; no pool:
--       --choose newest --newest 1 --oldest 0; connect four, solved: --env ConnectFour-v0 --rows 4 --columns 4
-- Departs from the papers: opponents are dealt anew at every update, also in the middle of games.
local peri = require "perilune"
local nn, optim, rl, recipe, sched = peri.nn, peri.optim, peri.rl, require "perilune.recipe", require "perilune.sched"

local cfg = peri.flags(recipe.with_flags {
  env       = { "TicTacToe-v0", "the game", choices = { "TicTacToe-v0", "ConnectFour-v0" } },
  rows      = { 6, "of connect four", range = "[1, 62]" },
  columns   = { 7, "of connect four", range = "[1, 32]" },
  seeds     = { 1, "learners beside each other, each with a league of its own", range = "[1, inf)" },
  updates   = { 1000, "of each learner", range = "[1, inf)", budget = true },
  games     = { 64, "of each learner at a time", range = "[1, inf)" },
  steps     = { 18, "moves of both sides in a rollout", range = "[1, inf)" },
  tables    = { 8, "opponents of each learner at a time", range = "[1, inf)" },
  choose    = { "uniform", "which past selves are dealt", choices = { "uniform", "hard", "newest" } },
  newest    = { 0.25, "share of tables at which the newest self sits", range = "[0, 1]" },
  oldest    = { 0.25, "and the oldest, which plays at random", range = "[0, 1]" },
  every     = { 10, "updates between two selves that join the league", range = "[1, inf)" },
  capacity  = { 24, "selves in the league", range = "[2, inf)" },
  hidden    = { 64, "width of both layers", range = "[1, inf)" },
  lr        = { 3e-3, "learning rate, down to 0 along a line", range = "[0, inf)" },
  ent_coef  = { 0.2, "of the entropy bonus", range = "[0, inf)" },
  lam       = { 0.8, "of advantages", range = "[0, 1]" },
  log_every = { 50, "updates between two rows of metrics", range = "[1, inf)" },
  duels     = { 40, "games of a pair of selves for their ratings", range = "[2, inf)" },
})
assert(cfg.games % (2 * cfg.tables) == 0, "--games is a multiple of 2 --tables: both sides at each")
local S, each = cfg.seeds, cfg.games // cfg.tables
local rows, columns = table.unpack(cfg.env == "ConnectFour-v0" and { cfg.rows, cfg.columns } or {})
local function make(n, seed) return peri.env.make(cfg.env, { n = n, seed = seed, rows = rows, columns = columns }) end
local run = recipe.start { name = "self_play", flags = cfg, total = cfg.updates,
  columns = { "score", "first", "optimal", "lost", "entropy" } }
local board = make(S * cfg.games, cfg.seed)
local shape = { obs = board.obs_space, action = board.action_space, hidden = { cfg.hidden, cfg.hidden } }
local function new() return rl.ActorCritic(shape) end
local net = nn.Copies(S, new, { seeds = peri.arange(S):add(cfg.seed):tolist() })
local league = rl.league { make = new, seeds = S, tables = cfg.tables, capacity = cfg.capacity, choose = cfg.choose,
  newest = cfg.newest, oldest = cfg.oldest, seed = cfg.seed }
-- Actions of several networks, each in rows of its own; the learners play one side of every game.
local function acting(copies)
  return function (obs, mask)
    local _ <close> = peri.no_grad()
    return (rl.together(copies.net:policy(rl.apart(obs, copies.n), rl.apart(mask, copies.n)):act()))
  end
end
local env = peri.env.versus(board, acting(league.players))
local opt = optim.Adam(net:parameters(), { lr = cfg.lr })
local agent = peri.algo.agent.new { env = env, net = net, optimizer = opt, steps = cfg.steps, gamma = 1, lam = cfg.lam,
  ent_coef = cfg.ent_coef, truncation = "ignore",
  schedule = sched.linear { from = cfg.lr, to = 0, steps = cfg.updates } }
run:track("net", net):track("optimizer", opt):track("agent", agent):track("env", env):track("league", league)

-- Points of selves against others, of each seed.
local guest, host = nn.Copies(S, new), nn.Copies(S, new)
local hall = peri.env.versus(make(S * cfg.duels), acting(guest))
local function meet(a, b)
  host:load_state_dict(a)
  guest:load_state_dict(b)
  local act, points = acting(host), {}
  local found = rl.evaluate(hall, function (obs) return act(obs, hall.mask) end, { episodes = S * cfg.duels, seeds = S,
    seed = 1000000 })
  for s, r in ipairs(found.of_seed) do points[s] = (r + 1) / 2 * cfg.duels end
  return points, cfg.duels
end
local function against_first() -- a share
  return peri.tensor((meet(net:state_dict(), league.members[1].tensors)), "f64"):div(cfg.duels):tolist()
end
-- The share of likeliest moves that keep a position's value, where it is known; of each learner the share of games lost
-- from both sides, through all openings, against best replies or all.
local small = board.obs_space:size() <= 32
local solver = rl.solver(board, { nodes = small and 1000000 or 20000 })
local function optimal()
  local _, best = solver:solve(board.obs)
  local kept = best:gather(agent:act(board.obs, { mask = board.mask, greedy = true }):unsqueeze(2), 2):squeeze(2)
  local known = kept:masked_select(best:any(2):logical_and(board.live))
  return known:numel() > 0 and known:to("f32"):mean():item() or nil
end
local function lost(replies)
  local list = {}
  for s = 1, S do
    local one, _ <close> = net:single(s), peri.no_grad()
    local n = solver:examine(function (o, mask) return one:policy(o, mask):deterministic() end, { replies = replies })
    list[s] = n.lost / (n.won + n.drawn + n.lost)
  end
  return list
end
-- Loop.
if not run:restore() or #league.members == 0 then league:add(net) end
for update in run:steps() do
  league:deal()
  local m = agent:step()
  for i, row in ipairs(agent.ended.rows) do -- who won at which table
    league:score((row - 1) % cfg.games // each + 1, (agent.ended.returns[i] + 1) / 2, 1)
  end
  if update % cfg.every == 0 then league:add(net) end
  if update % cfg.log_every == 0 or update == cfg.updates then
    run:log(update, { score = m["return"] and (m["return"] + 1) / 2, first = rl.iqm(against_first()),
      optimal = optimal(), lost = small and rl.iqm(lost "best") or nil, entropy = m.entropy })
  end
end
local selves, rose = league:ratings(meet)
for _, one in ipairs(selves) do
  run:text("Elo of the self of update %4d: %s", (one.age - 1) * cfg.every, rl.report(one.rating, { digits = 0 }))
end
run:text("%.0f %% of steps from a self to the next rose; points against the first: %s", 100 * rose,
  rl.report(against_first()))
for _, replies in ipairs(small and { "best", "all" } or {}) do
  local list = lost(replies)
  run:text("%s replies: lost %s, %d of %d learners lose none", replies, rl.report(list),
    peri.tensor(list, "f64"):eq(0):sum():item(), S)
end
rl.policy.save(run:path "policy.safetensors", { net = net:single(1), head = "categorical", env = board })
run:plot("curves.svg", { { "score", "first" }, "optimal", "entropy" })
run:finish()
