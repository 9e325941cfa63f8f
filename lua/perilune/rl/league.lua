-- league.lua - a pool of past selves to play against: copies of a policy as it was, and who sits at which table.

local peri = require "perilune"
local nn = peri.nn
local options = require "perilune.options"
local elos = require "perilune.rl.elo"

local M = {}

--- @class perilune.rl.League
--- @field players perilune.nn.Copies  seeds * tables networks: those who sit at the tables, learner by learner
--- @field seats integer[]  which member sits at each table, by its age
--- @field members table[]  { age, points, games } of each, oldest first: points of the learner against it
local League = {}
League.__index = League
League.__name = "perilune.rl.League"

local rules = {
  make = options.value(options.required, "callable", "make() makes a network of the learner's shape"),
  seeds = options.integer(1, "[1, inf)", "learners, each of which meets its own past selves"),
  tables = options.integer(1, "[1, inf)", "opponents of each learner at a time"),
  capacity = options.integer(32, "[2, inf)", "members; of more, the one goes whose neighbours in age are closest"),
  choose = options.choice("uniform", { "uniform", "newest", "hard" }, "who is dealt: any member, the newest alone, or "
    .. "rather those that win against the learner"),
  newest = options.number(0, "[0, 1]", "share of tables that get the newest member in any case"),
  oldest = options.number(0, "[0, 1]", "share that get the oldest: one that knows nothing keeps all openings in play"),
  seed = options.integer(1, "[0, inf)", "of what is dealt"),
}

--- A league of past selves for self-play (fictitious self-play, Heinrich et al. 2015; the prioritised choice, by
--- (1 - win rate)^2, is AlphaStar's, Vinyals et al. 2019): :add(net) puts the learner in as it is, :deal() draws who
--- sits at the tables and gives the networks of `players` their weights. Against the newest self alone a learner can go
--- in circles: it forgets how to beat what it has beaten before.
---
---     local function new() return rl.ActorCritic { obs = env.obs_space, action = env.action_space } end
---     local copies = nn.Copies(S, new)                      -- the learners
---     local league = rl.league { make = new, seeds = S, tables = 4 }
---     league:add(copies)
---     league:deal()
---     local action = league.players.net:policy(rl.apart(obs, S * 4)):act()
---
--- @param opts table
--- @return perilune.rl.League
function M.league(opts)
  local o = options.fill("rl.league", opts, rules)
  if o.newest + o.oldest > 1 then
    options.raise(("rl.league: newest and oldest are %g and %g of the tables, more than all"):format(o.newest,
      o.oldest))
  end
  local state = peri.rng_state()
  local players = nn.Copies(o.seeds * o.tables, o.make)
  peri.set_rng_state(state) -- weights that nobody plays with draw nothing
  return setmetatable({ players = players, members = {}, seats = {}, _o = o, _age = 0, _rng = peri.rng(o.seed) },
    League)
end
options.declare(M.league, {}, rules)

-- The member that leaves: not the oldest nor the newest, but the one with the closest neighbours.
local function crowded(members)
  local best, least = 2, math.huge
  for i = 2, #members - 1 do
    local gap = members[i + 1].age - members[i - 1].age
    if gap < least then best, least = i, gap end
  end
  return best
end

--- Put the learners into the league as they are now.
--- @param net perilune.nn.Copies  of so many seeds
--- @return integer age  of the new member: the first is 1
function League:add(net)
  options.argument("league:add", "net", net, "module")
  if net.n ~= self._o.seeds then
    options.raise(("league:add: net is %s, expected nn.Copies of %d learners (rl.league's seeds)"):format(
      net.n and ("nn.Copies of %d"):format(net.n) or "one network", self._o.seeds))
  end
  self._age = self._age + 1
  local tensors = {}
  for name, t in pairs(net:state_dict()) do tensors[name] = peri.keep(t:clone()) end
  local members = self.members
  members[#members + 1] = { age = self._age, points = 0, games = 0, tensors = tensors }
  if #members > self._o.capacity then table.remove(members, crowded(members)) end
  return self._age
end

local function draw(self)
  local members, o = self.members, self._o
  if o.choose == "newest" then return #members end
  local weights, sum = {}, 0
  for i, m in ipairs(members) do
    local won = (m.points + 1) / (m.games + 2) -- of none it is even
    weights[i] = o.choose == "hard" and (1 - won) ^ 2 or 1
    sum = sum + weights[i]
  end
  local left = self._rng:uniform() * sum
  for i, weight in ipairs(weights) do
    left = left - weight
    if left < 0 then return i end
  end
  return #members
end

-- The players get the weights of those whose place in members is given.
local function sit(self, places)
  local o, own = self._o, self.players:state_dict()
  local _ <close> = peri.no_grad()
  for name, t in pairs(own) do
    local list = {}
    for k, place in ipairs(places) do list[k] = self.members[place].tensors[name] end
    t:copy_(peri.stack(list, 2):reshape { o.seeds * o.tables, table.unpack(t.shape, 2) }) -- (seeds, tables, ...)
  end
end

--- Draw who sits at each table.
--- @return integer[] seats  age of the member at each table, the same for all seeds
function League:deal()
  local o, places = self._o, {}
  if #self.members == 0 then options.raise "league:deal: there are no members: league:add(net) first" end
  for k = 1, o.tables do
    places[k] = k <= o.newest * o.tables and #self.members or k > (1 - o.oldest) * o.tables and 1 or draw(self)
    self.seats[k] = self.members[places[k]].age
  end
  sit(self, places)
  return self.seats
end

--- Note how the learners did at a table, for choose = "hard"; older results count less.
--- @param seat integer  which table
--- @param points number  of the learners: 1 for a win, 0.5 for a draw
--- @param games integer
function League:score(seat, points, games)
  for _, m in ipairs(self.members) do
    if m.age == self.seats[seat] then
      m.points, m.games = m.points * 0.9 + points, m.games * 0.9 + games
      return
    end
  end
end

local ratings_rules = {
  selves = options.integer(6, "[2, inf)", "of even distances in the league, the oldest and the newest with them"),
  prior = options.number(1, "[0, inf)", "of rl.elo: drawn games that are added to each pair"),
}

--- Elo ratings of members by age, from a tournament of every pair, of each seed for itself: have they become stronger?
--- The oldest of them has 0.
--- @param meet fun(a: table, b: table): number[], integer  tensors of two members, as of state_dict of nn.Copies: the
--- points of a against b, one for each seed, and the games that they are of
--- @param opts table?
--- @return table[]  { age, rating = { of each seed } }, oldest first
--- @return number  the share of steps from one of them to the next at which a rating rose, over seeds
function League:ratings(meet, opts)
  local o = options.fill("league:ratings", opts, ratings_rules)
  options.argument("league:ratings", "meet", meet, "callable")
  local members, chosen, games, rose = self.members, {}, {}, 0
  if #members < 2 then options.raise(("league:ratings: %d members, expected 2 or more"):format(#members)) end
  local n = math.min(o.selves, #members)
  for k = 1, n do chosen[k] = members[1 + (k - 1) * (#members - 1) // (n - 1)] end
  for s = 1, self._o.seeds do games[s] = {} end
  for i = 2, n do
    for j = 1, i - 1 do
      local points, count = meet(chosen[i].tensors, chosen[j].tensors)
      for s, list in ipairs(games) do list[#list + 1] = { i, j, points[s], count } end
    end
  end
  local out = {}
  for k, m in ipairs(chosen) do out[k] = { age = m.age, rating = {} } end
  for s, list in ipairs(games) do
    local elo = elos.elo(list, { prior = o.prior })
    for k = 1, n do
      out[k].rating[s] = elo.rating[k]
      if k > 1 and elo.rating[k] > elo.rating[k - 1] then rose = rose + 1 end
    end
  end
  return out, rose / ((n - 1) * #games)
end
options.declare(League.ratings, { "self", "meet" }, ratings_rules)

--- Everything that a resumed run needs.
--- @return table tensors
--- @return table plain
function League:state_dict()
  local tensors, plain = {}, { age = self._age, members = {}, seats = table.move(self.seats, 1, #self.seats, 1, {}),
    rng = self._rng:state() }
  for i, m in ipairs(self.members) do
    plain.members[i] = { age = m.age, points = m.points, games = m.games }
    for name, t in pairs(m.tensors) do tensors[("%d.%s"):format(m.age, name)] = t end
  end
  for name, t in pairs(self.players:state_dict()) do tensors["players." .. name] = t end
  return tensors, plain
end

--- @param tensors table  of state_dict
--- @param plain table  its second result
function League:load_state_dict(tensors, plain)
  options.argument("league:load_state_dict", "tensors", tensors, "table")
  options.argument("league:load_state_dict", "plain", plain, "table")
  local own, members, players = self.players:state_dict(), {}, {}
  local function take(part, name, rows)
    local t = tensors[part .. "." .. name]
    local want = { rows, table.unpack(own[name].shape, 2) }
    if not peri.is_tensor(t) or options.shape(t) ~= options.shape(want) then
      options.raise(("league:load_state_dict: %s.%s is %s, expected %s"):format(part, name,
        peri.is_tensor(t) and options.shape(t) or type(t), options.shape(want)))
    end
    return t
  end
  for i, m in ipairs(plain.members) do
    members[i] = { age = m.age, points = m.points, games = m.games, tensors = {} }
    for name in pairs(own) do
      members[i].tensors[name] = peri.keep(take(tostring(m.age), name, self._o.seeds):clone())
    end
  end
  for name in pairs(own) do players[name] = take("players", name, self.players.n) end
  self.players:load_state_dict(players)
  self.members, self._age = members, plain.age
  self.seats = table.move(plain.seats, 1, #plain.seats, 1, {})
  self._rng:set_state(plain.rng)
end

return M
