-- countdown.lua - three numbers and a target: which two steps of + - * lead there? The game of TinyZero
-- (github.com/Jiayi-Pan/TinyZero) at the size of a model that a laptop trains: numbers from 1 to 9, targets from 1 to
-- 99, no negative step. An answer is a row of attempts, "2+7=9,9+8=17;8-2=6,7*6=42!": the last one counts.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- Every character of prompts and answers.
M.alphabet = "0123456789,:+-*=;!"

--- What ends an answer.
M.stop = "!"

local HIGHEST <const>, TARGET <const> = 9, 99

local operations = {
  ["+"] = function (a, b) return a + b end,
  ["-"] = function (a, b) return a - b end,
  ["*"] = function (a, b) return a * b end,
}
local OPERATORS <const> = { "+", "-", "*" }

-- The targets that three numbers reach, using each once.
local function reached(numbers)
  local set = {}
  for i = 1, 3 do
    for j = 1, 3 do
      local third = numbers[6 - i - j]
      for _, first in pairs(i ~= j and operations or {}) do
        local c = first(numbers[i], numbers[j])
        for _, second in pairs(c >= 0 and operations or {}) do
          set[second(c, third)], set[second(third, c)] = true, true
        end
      end
    end
  end
  return set
end

--- Every problem that has a solution: each choice of three numbers from 1 to 9, alike ones too, with each target from
--- 1 to 99 that two steps of + - * reach from all three without a negative number on the way. There are 1,864.
--- @return table[] rows  { prompt = "2,7,8:42", numbers = { 2, 7, 8 }, target = 42 }, by numbers, then target
function M.problems()
  local rows = {}
  for a = 1, HIGHEST do
    for b = a, HIGHEST do
      for c = b, HIGHEST do
        local set = reached { a, b, c }
        for target = 1, TARGET do
          if set[target] then
            local numbers = { a, b, c }
            rows[#rows + 1] = { prompt = ("%d,%d,%d:%d"):format(a, b, c, target), numbers = numbers, target = target }
          end
        end
      end
    end
  end
  return rows
end

local split_rules = {
  held_out = options.integer(300, "[1, 1863]", "problems that are not trained on"),
  seed = options.integer(0, nil, "of which those are"),
}

--- The problems, shuffled, cut in two.
--- @param opts table?
--- @return table[] train
--- @return table[] held_out
function M.split(opts)
  local o = options.fill("countdown.split", opts, split_rules)
  local rows = M.problems()
  peri.rng(o.seed):shuffle(rows)
  local n = #rows - o.held_out
  return table.move(rows, 1, n, 1, {}), table.move(rows, n + 1, #rows, 1, {})
end
options.declare(M.split, {}, split_rules)

-- A step of two numbers by chance, the larger first where they are subtracted: its text and its result.
local function step(a, b, rng)
  local op = rng:choice(OPERATORS)
  if rng:int(0, 1) == 1 or op == "-" and a < b then a, b = b, a end
  if op == "-" and a < b then a, b = b, a end
  local c = operations[op](a, b)
  return ("%d%s%d=%d"):format(a, op, b, c), c
end

local aimless_rules = {
  go_on = options.number(0.75, "[0, 1]", "chance of another attempt after a miss"),
  most = options.integer(9, "[1, inf)", "attempts"),
}

--- An answer without aim: attempts whose numbers and operators are drawn, their arithmetic right, until one hits the
--- target or the player gives up.
--- @param row table  of problems
--- @param rng table  of peri.rng
--- @param opts table?
--- @return string text  "2+7=9,9+8=17;8-2=6,7*6=42!"
--- @return boolean hit
function M.aimless(row, rng, opts)
  local o = options.fill("countdown.aimless", opts, aimless_rules)
  local attempts = {}
  repeat
    local numbers = rng:shuffle { table.unpack(row.numbers) }
    local first, c = step(numbers[1], numbers[2], rng)
    local second, value = step(c, numbers[3], rng)
    attempts[#attempts + 1] = first .. "," .. second
    local hit = value == row.target
  until hit or #attempts == o.most or rng:uniform() >= o.go_on
  return table.concat(attempts, ";") .. M.stop, M.is_right(row, attempts[#attempts])
end
options.declare(M.aimless, { "row", "rng" }, aimless_rules)

--- An answer without aim to one of the problems.
--- @param rows table[]  of problems
--- @param rng table  of peri.rng
--- @param opts table?  of aimless
--- @return table row  the problem
--- @return string text
function M.played(rows, rng, opts)
  local row = rng:choice(rows)
  return row, (M.aimless(row, rng, opts))
end
options.declare(M.played, { "rows", "rng" }, aimless_rules)

-- numbers -> target -> row, of lists of rows that were asked for.
local by_target = setmetatable({}, { __mode = "k" })

local function index_of(rows)
  local index = by_target[rows]
  if index then return index end
  index = {}
  for _, row in ipairs(rows) do
    local key = table.concat(row.numbers, ",")
    index[key] = index[key] or {}
    index[key][row.target] = row
  end
  by_target[rows] = index
  return index
end

local told_rules = { most = options.integer(4, "[1, inf)", "attempts: as many as that, or fewer, each as likely") }

--- An answer without aim to a problem that is chosen after it: one of those given that its last attempt hits, and none
--- before. In play a hit is rare, and stopping at it worth little; here every answer ends with one.
--- @param rows table[]  of problems
--- @param rng table  of peri.rng
--- @param opts table?
--- @return table row  the problem
--- @return string text
function M.told(rows, rng, opts)
  local o = options.fill("countdown.told", opts, told_rules)
  local index = index_of(rows)
  while true do
    local numbers = rng:choice(rows).numbers
    local text = M.aimless({ numbers = numbers, target = -1 }, rng, { go_on = 1, most = rng:int(1, o.most) })
    local row = index[table.concat(numbers, ",")][tonumber(text:match "=(%d+)!$")]
    if row and not text:find(("=%d;"):format(row.target), 1, true) then return row, text end
  end
end
options.declare(M.told, { "rows", "rng" }, told_rules)

local function is_padded(digits) return digits:find "^0%d" ~= nil end

-- The numbers of "a o b=c", nil where it is no such step; nobody writes 08.
local function read_step(text)
  local a, op, b, c = text:match "^(%d+)([-+*])(%d+)=(%d+)$"
  if not a or is_padded(a) or is_padded(b) or is_padded(c) then return nil end
  return { a = tonumber(a), op = op, b = tonumber(b), c = tonumber(c) }
end

-- The two steps of an attempt, nil where it has not two.
local function read_attempt(text)
  local left, right = text:match "^([^,;!]+),([^,;!]+)$"
  local first, second = left and read_step(left), right and read_step(right)
  if first and second then return first, second end
end

--- The attempts of an answer: the texts between ";", without the "!" at its end.
--- @param text string
--- @return string[] attempts
--- @return boolean ended  by "!", and there is no other
function M.attempts(text)
  local body, ended = text:match "^([^!]*)!$", true
  if not body then body, ended = text, false end
  local list = {}
  for attempt in (body .. ";"):gmatch "([^;]*);" do list[#list + 1] = attempt end
  return list, ended
end

--- Whether an attempt solves a problem: two true steps, each number used once, the first result used in the second,
--- the target at the end.
--- @param row table  of problems
--- @param attempt string  "8-2=6,7*6=42"
--- @return boolean
function M.is_right(row, attempt)
  local first, second = read_attempt(attempt)
  if not first or second.c ~= row.target then return false end
  for _, s in ipairs { first, second } do
    if operations[s.op](s.a, s.b) ~= s.c then return false end
  end
  local function of(c, other) -- the first result is one number of the second step, the other one is of the problem
    if c ~= first.c then return false end
    local used = { first.a, first.b, other }
    table.sort(used)
    local given = { table.unpack(row.numbers) }
    table.sort(given)
    return used[1] == given[1] and used[2] == given[2] and used[3] == given[3]
  end
  return of(second.a, second.b) or of(second.b, second.a)
end

--- The last attempt of an answer, nil where the answer has no end: what a majority votes on.
--- @param text string
--- @return string?
function M.last(text)
  local list, ended = M.attempts(text)
  return ended and list[#list] or nil
end

--- TinyZero's reward (verl/utils/reward_score/countdown.py): 1 where the last attempt is right, 0.1 where it is well
--- formed and wrong, 0 where there is no answer: no "!" at the end, or no two steps before it.
--- @param row table  of problems
--- @param text string  an answer
--- @return number
function M.reward(row, text)
  local last = M.last(text)
  if not last or not read_attempt(last) then return 0 end
  return M.is_right(row, last) and 1 or 0.1
end

return require "perilune.names"(M, "perilune.tasks.countdown")
