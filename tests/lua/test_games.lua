-- Games between learners: exact solutions, ratings, pools of past selves.
local lu = require "luaunit"
local peri = require "perilune"
local games = require "board_games"

local rl, env = peri.rl, peri.env

TestGames = {}

local function message(fn, ...)
  local ok, text = pcall(fn, ...)
  lu.assertFalse(ok)
  return text
end

-- ---- solver ----

-- Plain minimax over cells: the value to side, by all its moves.
local function minimax(b, cells, side, memo)
  local key = table.concat(cells) .. side
  if memo[key] then return memo[key] end
  local best = -2
  for a = 0, (b.falls and b.columns or b.rows * b.columns) - 1 do
    local i
    if b.falls then
      for r = b.rows, 1, -1 do
        if not i and cells[(r - 1) * b.columns + a + 1] == 0 then i = (r - 1) * b.columns + a + 1 end
      end
    elseif cells[a + 1] == 0 then i = a + 1 end
    if i then
      cells[i] = side
      local v = games.line_of(cells, b.rows, b.columns, b.line, side) and 1 or -minimax(b, cells, 3 - side, memo)
      cells[i] = 0
      best = math.max(best, v)
    end
  end
  memo[key] = best == -2 and 0 or best
  return memo[key]
end

local function planes(cells, side)
  local row = {}
  for i, v in ipairs(cells) do row[i], row[#cells + i] = v == side and 1 or 0, v == 3 - side and 1 or 0 end
  return row
end

-- All positions that play reaches and that are not over, as fn(cells, side).
local function each_position(b, fn)
  local seen, ended = {}, {}
  local function visit(cells, side)
    local key = table.concat(cells)
    if seen[key] then return end
    seen[key] = true
    if games.line_of(cells, b.rows, b.columns, b.line, 3 - side) or not key:find "0" then
      ended[#ended + 1] = key
      return
    end
    fn(cells, side)
    for i = 1, #cells do
      if cells[i] == 0 then
        cells[i] = side
        visit(cells, 3 - side)
        cells[i] = 0
      end
    end
  end
  local cells = {}
  for i = 1, b.rows * b.columns do cells[i] = 0 end
  visit(cells, 1)
  local n = 0
  for _ in pairs(seen) do n = n + 1 end
  return n, #ended
end

function TestGames.test_every_position_of_tic_tac_toe_is_worth_what_minimax_says()
  local b = { rows = 3, columns = 3, line = 3 }
  local rows, want, memo = {}, {}, {}
  local positions, ended = each_position(b, function (cells, side)
    rows[#rows + 1], want[#want + 1] = planes(cells, side), minimax(b, cells, side, memo)
  end)
  lu.assertEquals({ positions, ended }, { 5478, 958 })
  local solver = rl.solver(env.make "TicTacToe-v0")
  local value, best = solver:solve(peri.tensor(rows, "u8"))
  lu.assertEquals(value:tolist(), want)
  lu.assertTrue(best:any(2):all():item())
  lu.assertEquals(want[1], 0)
end

-- A move is among the best exactly when the position behind it is worth the same.
function TestGames.test_moves_that_keep_the_value_are_the_best()
  local b, memo = { rows = 3, columns = 4, line = 3, falls = true }, {}
  local field = env.make("ConnectFour-v0", { n = 16, seed = 1, rows = 3, columns = 4, line = 3 })
  local solver, rng, kinds = rl.solver(field, { line = 3 }), env.rng(1), {}
  field:reset()
  for _ = 1, 60 do
    local obs, live, mask = field.obs:tolist(), field.live:tolist(), field.mask:tolist()
    local value, best = solver:solve(field.obs)
    value, best = value:tolist(), best:tolist()
    for row = 1, #obs do
      if live[row] then
        local cells = {}
        for i = 1, 12 do cells[i] = obs[row][i] == 1 and 1 or obs[row][12 + i] == 1 and 2 or 0 end
        lu.assertEquals(value[row], minimax(b, cells, 1, memo))
        for a = 1, 4 do
          local after
          for r = 3, 1, -1 do
            local i = (r - 1) * 4 + a
            if cells[i] == 0 and not after then
              cells[i] = 1
              after = games.line_of(cells, 3, 4, 3, 1) and 1 or -minimax(b, cells, 2, memo)
              cells[i] = 0
            end
          end
          lu.assertEquals(best[row][a], after == value[row])
          lu.assertEquals(mask[row][a], after ~= nil)
        end
        kinds[value[row]] = true
      end
    end
    field:step(field:sample(rng))
  end
  lu.assertTrue(kinds[1] and kinds[-1])
end

-- Known values to who begins (Tromp, John's Connect Four playground): all three are drawn.
function TestGames.test_small_boards_of_connect_four_have_their_known_values()
  for _, case in ipairs { { 4, 4, 0 }, { 5, 4, 0 }, { 4, 5, 0 } } do
    local field = env.make("ConnectFour-v0", { n = 1, rows = case[1], columns = case[2] })
    lu.assertEquals(rl.solver(field):solve(field:reset():narrow(1, 1, 1)):item(), case[3])
  end
end

function TestGames.test_positions_near_the_end_of_a_large_board_are_solved_and_others_are_not_guessed()
  local b, memo = { rows = 6, columns = 7, line = 4, falls = true }, {}
  local field = env.make("ConnectFour-v0", { n = 40, seed = 4 })
  local first = field:reset()
  local solver = rl.solver(field, { nodes = 100 })
  local value, best = solver:solve(first:narrow(1, 1, 1))
  lu.assertTrue(value:item() ~= value:item() and not best:any():item())
  solver = rl.solver(field)
  local rng, found = env.rng(1), 0
  for _ = 1, 200 do
    local obs, live = field.obs, field.live:tolist()
    for row, cells in ipairs(obs:to("i64"):tolist()) do
      local count = 0
      for _, v in ipairs(cells) do count = count + v end
      if live[row] and count >= 34 and found < 60 then
        local own = {}
        for i = 1, 42 do own[i] = cells[i] == 1 and 1 or cells[42 + i] == 1 and 2 or 0 end
        lu.assertEquals(solver:solve(obs:narrow(1, row, 1)):item(), minimax(b, own, 1, memo))
        found = found + 1
      end
    end
    field:step(field:sample(rng))
  end
  lu.assertTrue(found >= 10, found)
end

function TestGames.test_what_a_solver_cannot_do_is_named()
  lu.assertStrContains(message(rl.solver, env.make "CartPole-v1"), "CartPole-v1, expected TicTacToe-v0 or ConnectFour-v0")
  local solver = rl.solver(env.make "TicTacToe-v0")
  lu.assertStrContains(message(solver.solve, solver, peri.zeros { 2, 9 }), "obs has shape (2, 9), expected (n, 18)")
end

-- By play itself: every line of replies, walked one by one.
local function walked(solver, act, replies)
  local out = { first = { won = 0, drawn = 0, lost = 0 }, second = { won = 0, drawn = 0, lost = 0 } }
  local function question(cells, side)
    local row, legal = planes(cells, side), {}
    for i = 1, 9 do legal[i] = cells[i] == 0 end
    return peri.tensor({ row }, "u8"), peri.tensor({ legal }, "bool")
  end
  local function ended(cells, side, count, as)
    if games.line_of(cells, 3, 3, 3, side) then count[as] = count[as] + 1 return true end
    for i = 1, 9 do if cells[i] == 0 then return false end end
    count.drawn = count.drawn + 1
    return true
  end
  local function play(cells, mine, side, count)
    local obs, mask = question(cells, side)
    if side == mine then
      local a = act(obs, mask):tolist()[1] + 1
      cells[a] = side
      if not ended(cells, side, count, "won") then play(cells, mine, 3 - side, count) end
      cells[a] = 0
      return
    end
    local best = select(2, solver:solve(obs)):tolist()[1]
    for a = 1, 9 do
      if cells[a] == 0 and (replies == "all" or best[a]) then
        cells[a] = side
        if not ended(cells, side, count, "lost") then play(cells, mine, 3 - side, count) end
        cells[a] = 0
      end
    end
  end
  play({ 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 1, 1, out.first)
  play({ 0, 0, 0, 0, 0, 0, 0, 0, 0 }, 2, 1, out.second)
  return out
end

function TestGames.test_examined_is_who_is_played_through_all_replies()
  local solver = rl.solver(env.make "TicTacToe-v0")
  local players = {
    best = function (obs) local _, best = solver:solve(obs) return best:to("i64"):argmax(2) end,
    lowest = function (_, mask) return mask:to("i64"):argmax(2) end,
  }
  for name, act in pairs(players) do
    for _, replies in ipairs { "best", "all" } do
      local found = solver:examine(act, { replies = replies })
      local want = walked(solver, act, replies)
      lu.assertEquals({ found.first, found.second }, { want.first, want.second })
      lu.assertEquals(found.lost, want.first.lost + want.second.lost)
      lu.assertEquals(found.lost == 0, name == "best")
      lu.assertEquals(found.won > 0, replies == "all" or name ~= "best" and found.won > 0)
    end
  end
  local illegal = solver:examine(function (obs) return peri.zeros({ obs.shape[1] }, "i64") end, { replies = "all" })
  lu.assertTrue(illegal.lost > 0)
  lu.assertStrContains(message(solver.examine, solver, players.lowest, { positions = 3 }), "positions in one half-move")
end

function TestGames.test_small_boards_of_connect_four_are_examined_too()
  local solver = rl.solver(env.make("ConnectFour-v0", { n = 1, rows = 4, columns = 4 }))
  local found = solver:examine(function (obs) return select(2, solver:solve(obs)):to("i64"):argmax(2) end)
  lu.assertEquals({ found.lost, found.won }, { 0, 0 })
  lu.assertTrue(found.drawn > 100)
end

-- ---- ratings ----

-- A score of p in n games between two: 400 log10(p / (1 - p)), error 400 / ln 10 / sqrt(n p (1 - p)).
function TestGames.test_two_players_have_their_closed_form()
  for _, case in ipairs { { 30, 100 }, { 50.5, 101 }, { 1, 20 }, { 999, 1000 } } do
    local p, n = case[1] / case[2], case[2]
    for _, confidence in ipairs { 0.5, 0.95, 0.99 } do
      local elo = rl.elo({ { 1, 2, case[1], case[2] } }, { anchor = 2, base = 1500, confidence = confidence })
      local se = 400 / math.log(10) / math.sqrt(n * p * (1 - p))
      local z = ({ [0.5] = 0.674489750196, [0.95] = 1.959963984540, [0.99] = 2.575829303549 })[confidence]
      lu.assertAlmostEquals(elo.rating[1], 1500 + 400 * math.log(p / (1 - p), 10), 1e-6)
      lu.assertAlmostEquals(elo.error[1], se, 1e-6)
      lu.assertAlmostEquals(elo.high[1] - elo.rating[1], z * se, 1e-6)
      lu.assertAlmostEquals(elo.rating[1] - elo.low[1], z * se, 1e-6)
      lu.assertEquals({ elo.rating[2], elo.error[2] }, { 1500, 0 })
    end
  end
end

local function tournament(rng, players)
  local list = {}
  for i = 1, players do
    for j = i + 1, players do
      local n = rng:int(4, 40)
      if rng:uniform() < 0.8 or j == i + 1 then list[#list + 1] = { i, j, rng:int(1, 2 * n - 1) / 2, n } end
    end
  end
  return list
end

-- The likelihood equations: everybody is expected to have the points that it has. The anchor moves nobody.
function TestGames.test_expected_points_are_those_that_were_got()
  local rng = peri.rng(3)
  for players = 2, 9 do
    local list = tournament(rng, players)
    local elo = rl.elo(list)
    local left = {}
    for i = 1, players do left[i] = 0 end
    for _, g in ipairs(list) do
      local p = 1 / (1 + 10 ^ ((elo.rating[g[2]] - elo.rating[g[1]]) / 400))
      left[g[1]], left[g[2]] = left[g[1]] + g[3] - g[4] * p, left[g[2]] + g[4] - g[3] - g[4] * (1 - p)
    end
    for i = 1, players do lu.assertAlmostEquals(left[i], 0, 1e-8) end
    local other = rl.elo(list, { anchor = players })
    for i = 1, players do
      lu.assertAlmostEquals(other.rating[i] - other.rating[1], elo.rating[i] - elo.rating[1], 1e-7)
    end
    lu.assertAlmostEquals(other.error[1], elo.error[players], 1e-7)
  end
end

-- In a chain 1 - 2 - ... - n differences are those of the pairs, and their variances add up.
function TestGames.test_a_chain_of_pairs_adds_up()
  local rating, var = 0, 0
  local list, points, n = {}, { 12, 30, 7, 55 }, { 40, 50, 30, 60 }
  for i = 1, 4 do list[i] = { i + 1, i, points[i], n[i] } end
  local elo = rl.elo(list)
  for i = 1, 4 do
    local p = points[i] / n[i]
    rating, var = rating + 400 * math.log(p / (1 - p), 10), var + (400 / math.log(10)) ^ 2 / (n[i] * p * (1 - p))
    lu.assertAlmostEquals(elo.rating[i + 1], rating, 1e-6)
    lu.assertAlmostEquals(elo.error[i + 1], math.sqrt(var), 1e-6)
  end
end

function TestGames.test_ratings_that_are_infinite_are_refused_and_a_prior_makes_them_finite()
  lu.assertStrContains(message(rl.elo, { { 1, 2, 10, 10 } }), "player 2: it has taken no points from player 1")
  lu.assertStrContains(message(rl.elo, { { 2, 1, 10, 10 } }), "player 2: it has lost no points to player 1")
  lu.assertStrContains(message(rl.elo, { { 1, 2, 5, 10 }, { 3, 4, 5, 10 } }, { prior = 1 }),
    "player 3: it has not played against player 1, nor by way of others")
  lu.assertAlmostEquals(rl.elo({ { 1, 2, 10, 10 } }, { prior = 1 }).rating[2], -400 * math.log(10.5 / 0.5, 10), 1e-6)
end

function TestGames.test_games_that_make_no_sense_are_named()
  for _, case in ipairs {
    { {}, "there are no games" }, { { { 1, 1, 1, 1 } }, "entry 1 is { 1, 1, 1, 1 }" },
    { { { 1, 2, 3, 2 } }, "entry 1 is { 1, 2, 3, 2 }" }, { { { 0, 2, 1, 2 } }, "entry 1: player 0, expected an integer from 1" },
    { { { 1, 9, 1, 2 } }, "entry 1: player 9, expected an integer from 1 to 3", { players = 3 } },
    { { { 1, 2, 1, 2 } }, "anchor is 5, there are 2 players", { anchor = 5 } },
  } do lu.assertStrContains(message(rl.elo, case[1], case[3]), case[2]) end
end

-- ---- pools ----

local function new() return peri.nn.MLP { 3, 4, 2 } end

local function same(a, b)
  for name, t in pairs(a:state_dict()) do
    if t:ne(b:state_dict()[name]):any():item() then return false end
  end
  return true
end

function TestGames.test_at_the_tables_sit_the_learners_as_they_were()
  peri.seed(1)
  local net, past = peri.nn.Copies(3, new), {}
  local league = rl.league { make = new, seeds = 3, tables = 4, seed = 5 }
  for age = 1, 5 do
    lu.assertEquals(league:add(net), age)
    past[age] = { net:single(1), net:single(2), net:single(3) }
    for _, p in ipairs(net:parameters()) do p:detach():add_(0.5) end
  end
  local met = {}
  for _ = 1, 30 do
    for k, age in ipairs(league:deal()) do
      met[age] = true
      for s = 1, 3 do lu.assertTrue(same(league.players:single((s - 1) * 4 + k), past[age][s])) end
    end
  end
  lu.assertEquals(#met, 5)
end

function TestGames.test_who_is_dealt_follows_the_choice()
  local net = peri.nn.Copies(1, new)
  local newest = rl.league { make = new, tables = 2, choose = "newest" }
  local hard = rl.league { make = new, tables = 4, choose = "hard", newest = 0.5 }
  for _ = 1, 3 do newest:add(net) hard:add(net) end
  lu.assertEquals(newest:deal(), { 3, 3 })
  for _ = 1, 200 do -- the learner beats member 1 and 3, and loses to 2
    local seats = hard:deal()
    lu.assertEquals({ seats[1], seats[2] }, { 3, 3 })
    for k, age in ipairs(seats) do hard:score(k, age == 2 and 0 or 10, 10) end
  end
  local of = { 0, 0, 0 }
  for _ = 1, 200 do
    local seats = hard:deal()
    for k = 3, 4 do of[seats[k]] = of[seats[k]] + 1 end
  end
  lu.assertTrue(of[2] > 350, of[2])
end

function TestGames.test_a_full_league_keeps_the_oldest_the_newest_and_a_spread()
  local league, net = rl.league { make = new, capacity = 6 }, peri.nn.Copies(1, new)
  for age = 1, 60 do
    league:add(net)
    local members = league.members
    lu.assertTrue(#members <= 6)
    lu.assertEquals({ members[1].age, members[#members].age }, { 1, age })
  end
  local widest = 0
  for i = 2, 6 do widest = math.max(widest, league.members[i].age - league.members[i - 1].age) end
  lu.assertTrue(widest < 40, widest)
end

function TestGames.test_a_league_goes_on_from_its_state()
  local net = peri.nn.Copies(2, new)
  local function made() return rl.league { make = new, seeds = 2, tables = 3, choose = "hard", seed = 2 } end
  local one, other = made(), made()
  for _ = 1, 4 do
    one:add(net)
    for _, p in ipairs(net:parameters()) do p:detach():mul_(0.9) end
  end
  one:deal()
  one:score(1, 4, 8)
  other:load_state_dict(one:state_dict())
  for _ = 1, 10 do
    lu.assertEquals(one:deal(), other:deal())
    lu.assertTrue(same(one.players, other.players))
  end
  lu.assertStrContains(message(made().load_state_dict, rl.league { make = new }, one:state_dict()), "expected (1, ")
end

-- Points as the ages say: ratings are those of the same points.
function TestGames.test_ratings_of_selves_are_those_of_their_tournament()
  local league, net, marks = rl.league { make = new, seeds = 2 }, peri.nn.Copies(2, new), {}
  for age = 1, 9 do
    league:add(net)
    marks[league.members[age].tensors] = age
  end
  local function meet(a, b)
    local d = marks[a] - marks[b]
    return { 20 / (1 + 2 ^ -d), 20 / (1 + 2 ^ d) }, 20 -- the second learner becomes weaker
  end
  local list, rose = league:ratings(meet, { selves = 5, prior = 0 })
  lu.assertEquals(#list, 5)
  for k, one in ipairs(list) do
    lu.assertEquals(one.age, 2 * k - 1)
    lu.assertAlmostEquals(one.rating[1], 400 * math.log(2, 10) * (one.age - 1), 1e-6)
    lu.assertAlmostEquals(one.rating[2], -one.rating[1], 1e-6)
  end
  lu.assertEquals(rose, 0.5)
  lu.assertStrContains(message(league.ratings, rl.league { make = new }, meet), "0 members, expected 2 or more")
end

function TestGames.test_shares_of_tables_go_to_the_oldest_and_the_newest()
  local league, net = rl.league { make = new, tables = 8, newest = 0.25, oldest = 0.5 }, peri.nn.Copies(1, new)
  for _ = 1, 4 do league:add(net) end
  for _ = 1, 20 do
    local seats = league:deal()
    lu.assertEquals({ seats[1], seats[2], seats[5], seats[6], seats[7], seats[8] }, { 4, 4, 1, 1, 1, 1 })
  end
  lu.assertStrContains(message(rl.league, { make = new, newest = 0.75, oldest = 0.5 }), "more than all")
end

function TestGames.test_a_league_that_makes_no_sense_is_named()
  local league = rl.league { make = new, seeds = 2 }
  lu.assertStrContains(message(league.deal, league), "there are no members")
  lu.assertStrContains(message(league.add, league, peri.nn.Copies(3, new)), "net is nn.Copies of 3, expected nn.Copies of 2 learners")
  lu.assertStrContains(message(league.add, league, new()), "net is one network, expected nn.Copies of 2 learners")
end

os.exit(lu.LuaUnit.run())
