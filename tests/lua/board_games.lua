-- board_games.lua - tic-tac-toe and connect four written plainly, as environments in Lua: what those in C are held to.
local peri = require "perilune"

local M = {}

-- Whether stones of a side are in a line of n through some cell, by walking.
local function line_of(cells, rows, columns, n, side)
  for r = 1, rows do
    for c = 1, columns do
      for _, d in ipairs { { 0, 1 }, { 1, 0 }, { 1, 1 }, { 1, -1 } } do
        local k = 0
        while k < n do
          local y, x = r + d[1] * k, c + d[2] * k
          if y < 1 or y > rows or x < 1 or x > columns or cells[(y - 1) * columns + x] ~= side then break end
          k = k + 1
        end
        if k == n then return true end
      end
    end
  end
  return false
end
M.line_of = line_of

-- The cell that an action puts a stone into, or nil.
local function target(cells, rows, columns, falls, action)
  if not falls then return cells[action + 1] == 0 and action + 1 or nil end
  for r = rows, 1, -1 do
    local i = (r - 1) * columns + action + 1
    if cells[i] == 0 then return i end
  end
end

--- The game as a table for peri.env.make.
function M.spec(rows, columns, line, falls)
  local n, actions = rows * columns, falls and columns or rows * columns
  local function show(s, obs, mask, live)
    for k = 1, 2 do
      for i = 1, n do
        obs[k][i], obs[k][n + i] = s.cells[i] == k and 1 or 0, s.cells[i] == 3 - k and 1 or 0
      end
      live[k] = s.turn == k
    end
    for a = 0, s.over and -1 or actions - 1 do
      mask[s.turn][a + 1] = target(s.cells, rows, columns, falls, a) ~= nil
    end
  end
  return { id = "Board-v0", agents = 2, mask = true, obs = peri.env.box(0, 1, { shape = { 2 * n }, dtype = "u8" }),
    action = peri.env.discrete(actions),
    reset = function (s, obs, _, mask, live)
      s.cells, s.turn, s.count = {}, 1, 0
      for i = 1, n do s.cells[i] = 0 end
      show(s, obs, mask, live)
    end,
    step = function (s, action, obs, _, mask, _, live)
      local mover, reward = s.turn, { 0, 0 }
      local i = target(s.cells, rows, columns, falls, action[mover])
      if i then s.cells[i], s.count = mover, s.count + 1 end
      local won = i and line_of(s.cells, rows, columns, line, mover)
      s.over = not i or won or s.count == n
      if won or not i then
        reward[mover], reward[3 - mover] = i and 1 or -1, i and -1 or 1
      end
      s.turn = 3 - mover
      show(s, obs, mask, live)
      return reward, s.over, false
    end }
end

return M
