-- elo.lua - how strong players are, from games between them: ratings by maximum likelihood, with intervals.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  players = options.integer(options.none, "[2, inf)", "how many; default: the largest number that played"),
  anchor = options.integer(1, "[1, inf)", "the player whose rating is given; intervals are of differences to it"),
  base = options.number(0, "(-inf, inf)", "its rating"),
  confidence = options.number(0.95, "(0, 1)", "of the intervals"),
  prior = options.number(0, "[0, inf)", "drawn games that are added to each pair that met; above 0 ratings stay finite "
    .. "where somebody won all games"),
}

local SCALE <const> = 400 / math.log(10)

-- n[i][j] games, w[i][j] points of i against j.
local function tally(who, games, o)
  local most = o.players or 0
  for k, g in ipairs(games) do
    local a, b, points, count = g[1], g[2], g[3], g[4] or 1
    for _, player in ipairs { a, b } do
      if math.type(player) ~= "integer" or player < 1 or o.players and player > o.players then
        options.raise(("%s: entry %d: player %s, expected an integer from 1%s"):format(who, k, tostring(player),
          o.players and " to " .. o.players or ""))
      end
      most = math.max(most, player)
    end
    if math.type(b) ~= "integer" or a == b or type(points) ~= "number" or type(count) ~= "number"
      or not (count > 0 and points >= 0 and points <= count) then
      options.raise(("%s: entry %d is { %s, %s, %s, %s }, expected two players, points of the first and games")
        :format(who, k, tostring(a), tostring(b), tostring(points), tostring(count)))
    end
  end
  local n, w = {}, {}
  for i = 1, most do
    n[i], w[i] = {}, {}
    for j = 1, most do n[i][j], w[i][j] = 0, 0 end
  end
  for _, g in ipairs(games) do
    local a, b, points, count = g[1], g[2], g[3], g[4] or 1
    n[a][b], n[b][a] = n[a][b] + count, n[b][a] + count
    w[a][b], w[b][a] = w[a][b] + points, w[b][a] + count - points
  end
  for i = 1, most do
    for j = 1, most do
      if n[i][j] > 0 then n[i][j], w[i][j] = n[i][j] + o.prior, w[i][j] + o.prior / 2 end
    end
  end
  return n, w, most
end

-- Everybody must have taken points, over some others, from everybody (Ford 1957): else a rating is infinite.
local function check_connected(who, w, most, anchor)
  local function reached(beats)
    local seen, list = { [anchor] = true }, { anchor }
    for _, i in ipairs(list) do
      for j = 1, most do
        if not seen[j] and beats(i, j) then
          seen[j] = true
          list[#list + 1] = j
        end
      end
    end
    return seen
  end
  local below, above = reached(function (i, j) return w[i][j] > 0 end), reached(function (i, j) return w[j][i] > 0 end)
  for j = 1, most do
    if not (below[j] and above[j]) then
      local why = not below[j] and not above[j] and "has not played against" or not below[j] and "has lost no points to"
        or "has taken no points from"
      options.raise(("%s: no finite rating of player %d: it %s player %d, nor by way of others%s"):format(who, j, why,
        anchor, below[j] == above[j] and "" or "; prior = 1 gives one"))
    end
  end
end

-- Solve a x = b for several b by Cholesky; a (m, m) positive definite, overwritten.
local function solve(a, bs)
  local m = #a
  for j = 1, m do
    for k = 1, j - 1 do a[j][j] = a[j][j] - a[j][k] ^ 2 end
    a[j][j] = math.sqrt(a[j][j])
    for i = j + 1, m do
      for k = 1, j - 1 do a[i][j] = a[i][j] - a[i][k] * a[j][k] end
      a[i][j] = a[i][j] / a[j][j]
    end
  end
  for _, b in ipairs(bs) do
    for i = 1, m do
      for k = 1, i - 1 do b[i] = b[i] - a[i][k] * b[k] end
      b[i] = b[i] / a[i][i]
    end
    for i = m, 1, -1 do
      for k = i + 1, m do b[i] = b[i] - a[k][i] * b[k] end
      b[i] = b[i] / a[i][i]
    end
  end
end

-- Gradient of the log-likelihood and its negative second derivatives, without the anchor; the log-likelihood.
local function slopes(n, w, theta, free)
  local g, h, value = {}, {}, 0
  for x in ipairs(free) do
    g[x], h[x] = 0, {}
    for y in ipairs(free) do h[x][y] = 0 end
  end
  for i = 1, #theta do
    for j = 1, #theta do
      if n[i][j] > 0 then
        local d = theta[i] - theta[j]
        local p = 1 / (1 + math.exp(-d))
        value = value - w[i][j] * (d > -30 and math.log(1 + math.exp(-d)) or -d)
        local x, y = free[-i], free[-j]
        if x then
          g[x] = g[x] + w[i][j] - n[i][j] * p
          h[x][x] = h[x][x] + n[i][j] * p * (1 - p)
          if y then h[x][y] = h[x][y] - n[i][j] * p * (1 - p) end
        end
      end
    end
  end
  return g, h, value
end

-- The z with P(|N(0, 1)| < z) = confidence, by halving.
local function normal_bound(confidence)
  local low, high = 0, 40
  for _ = 1, 80 do
    local z = (low + high) / 2
    if peri.erf(peri.tensor(z / math.sqrt(2), "f64")):item() < confidence then low = z else high = z end
  end
  return high
end

--- Elo ratings of players from games between them, by maximum likelihood: player i scores 1 / (1 + 10^((R_j - R_i) /
--- 400)) against j on average (Elo 1978; the model of Bradley and Terry 1952), a draw counts half. Ratings are found
--- by Newton's method (the log-likelihood is concave), intervals are those of the observed information; draws make them
--- wider than they need be. Games in a list: { a, b, points, count }: count games (default 1) of which a got points.
---
---     local elo = rl.elo { { 1, 2, 30, 100 }, { 2, 3, 45, 100 } }
---     print(elo.rating[2], elo.low[2], elo.high[2])
---
--- Raises where somebody's rating is infinite, and names the player.
--- @param games table
--- @param opts table?
--- @return table  rating, low, high and error (standard), by player
function M.elo(games, opts)
  local who = "rl.elo"
  options.argument(who, "games", games, "table")
  local o = options.fill(who, opts, rules)
  if #games == 0 then options.raise(who .. ": there are no games") end
  local n, w, most = tally(who, games, o)
  if o.anchor > most then options.raise(("%s: anchor is %d, there are %d players"):format(who, o.anchor, most)) end
  check_connected(who, w, most, o.anchor)
  local theta, free = {}, {} -- free[x] is a player, free[-player] its place
  for i = 1, most do
    theta[i] = 0
    if i ~= o.anchor then free[#free + 1] = i end
  end
  for x, i in ipairs(free) do free[-i] = x end
  for _ = 1, 200 do
    local g, h, value = slopes(n, w, theta, free)
    solve(h, { g })
    local rate, size, next_theta = 1
    repeat -- a step that does not climb is halved
      size, next_theta = 0, table.move(theta, 1, most, 1, {})
      for x, i in ipairs(free) do
        next_theta[i] = theta[i] + rate * g[x]
        size = math.max(size, math.abs(rate * g[x]))
      end
      local _, _, now = slopes(n, w, next_theta, free)
      rate = rate / 2
    until now >= value - 1e-12 * math.abs(value) or size < 1e-13
    theta = next_theta
    if size < 1e-12 then break end
  end
  local _, h = slopes(n, w, theta, free)
  local units = {}
  for x in ipairs(free) do
    units[x] = {}
    for y in ipairs(free) do units[x][y] = x == y and 1 or 0 end
  end
  solve(h, units)
  local out, z = { rating = {}, low = {}, high = {}, error = {} }, normal_bound(o.confidence)
  for i = 1, most do
    local x = free[-i]
    out.rating[i] = o.base + SCALE * theta[i]
    out.error[i] = x and SCALE * math.sqrt(units[x][x]) or 0
    out.low[i], out.high[i] = out.rating[i] - z * out.error[i], out.rating[i] + z * out.error[i]
  end
  return out
end
options.declare(M.elo, { "games" }, rules)

return M
