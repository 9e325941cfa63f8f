-- reward.lua - the reward contract: what a reward function is called with and may return, checked where it
-- returns, with a message that names the function and the completion.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local function cut(s)
  if #s <= 80 then return s end
  return s:sub(1, utf8.offset(s, 0, 81) - 1) .. "..."
end

-- The prompt as a person would quote it: of messages, what the last one says.
local function prompt_of(row)
  local prompt = type(row) == "table" and row.prompt
  local last = type(prompt) == "table" and prompt[#prompt]
  if type(last) == "table" then prompt = last.content or last.value end
  return type(prompt) == "string" and ("prompt %q, "):format(cut(prompt)) or ""
end

local function fail(name, i, row, text, fmt, ...)
  error(("reward%s: %s (completion %d: %s%q)"):format(name and " " .. tostring(name) or "", fmt:format(...), i,
    prompt_of(row), cut(tostring(text))), 0)
end

local most = 3.4028234663852886e38 -- of f32, in which advantages are computed

local function shown(v)
  if v ~= v then return "nan" end
  if type(v) ~= "number" then return "a " .. type(v) end
  return tostring(v) .. (math.abs(v) > most and math.abs(v) < math.huge and " (too large for f32)" or "")
end

local callable = options.value(nil, "callable").accepts

local function finite(v) return type(v) == "number" and math.abs(v) <= most end

-- Calls a reward function for each completion; values[i] is NaN where it abstained.
local function each(rows, texts, tokens, name, fn)
  local values, extra = {}, {}
  for i, row in ipairs(rows) do
    local value, more = fn(row, texts[i], tokens[i])
    if value == nil then value = 0 / 0
    elseif not finite(value) then
      fail(name, i, row, texts[i], "the value is %s, expected a number, or nil to abstain", shown(value))
    end
    values[i], extra[i] = value, more
  end
  return values, extra
end

-- Rewards of several functions: their weighted sum, and each under its name.
local function score_each(rows, texts, tokens, list)
  local total, by_name, names = {}, {}, {}
  if #list == 0 then error("rl.score: the list of rewards is empty", 3) end
  for k, one in ipairs(list) do
    local name, fn, factor = nil, nil, nil
    if type(one) == "table" then name, fn, factor = one[1], one[2], one[3] == nil and 1 or one[3] end
    if type(name) ~= "string" or not callable(fn) or not finite(factor) or by_name[name] then
      error(("rl.score: reward %d is no { name, function, weight (1) } with a name of its own"):format(k), 3)
    end
    local values, extra = each(rows, texts, tokens, name, fn)
    for i, row in ipairs(rows) do
      if type(extra[i]) == "table" then
        fail(name, i, row, texts[i], "a list of step rewards: only a single function may give one")
      end
      if values[i] == values[i] then total[i] = (total[i] or 0) + factor * values[i] end
    end
    names[k], by_name[name] = name, values
  end
  for i, row in ipairs(rows) do
    total[i] = total[i] or 0 / 0
    if total[i] == total[i] and not finite(total[i]) then
      fail(nil, i, row, texts[i], "the weighted sum is %s, expected a number", shown(total[i]))
    end
  end
  return { total = total, rewards = by_name, names = names }
end

-- Step rewards of every completion or of none. One that was abstained from has none of its own.
local function checked_steps(rows, texts, tokens, values, extra)
  local given, missing = 0, nil
  for i = 1, #rows do
    if extra[i] ~= nil then given = given + 1
    elseif values[i] == values[i] then missing = missing or i end
  end
  if given == 0 then return nil end
  if missing then
    fail(nil, missing, rows[missing], texts[missing], "step rewards came with %d of %d completions and not with this "
      .. "one: give a list with each (an empty one credits no token), or with none", given, #rows)
  end
  local steps = {}
  for i, row in ipairs(rows) do
    local list = extra[i] or {}
    if type(list) ~= "table" then
      fail(nil, i, row, texts[i], "the second value is %s, expected a list of step rewards", shown(list))
    elseif #list > #tokens[i] then
      fail(nil, i, row, texts[i], "%d step rewards for %d tokens", #list, #tokens[i])
    end
    for k = 1, #list do
      if not finite(list[k]) then
        fail(nil, i, row, texts[i], "step %d is %s, expected a number", k, shown(list[k]))
      end
    end
    steps[i] = list
  end
  return steps
end

--- Score completions. The reward function is called once a completion as reward(row, text, tokens)
--- and returns a finite number, or nil to abstain, and optionally a list of rewards, one for each leading
--- token that deserves credit or blame; tokens after the list are left out of the objective, and lists come
--- with all completions (those abstained from aside) or with none. Or it is a list of { name, function,
--- weight (1) }, whose functions return a number or nil: their weighted sum is the reward. Anything else is
--- an error that names the function and the completion.
--- @param rows table[]  one row a completion
--- @param texts string[]
--- @param tokens integer[][]  token ids of each completion, stop token included
--- @param reward function|table
--- @return table scored  total (number[], NaN where abstained), steps (number[][] or nil); of a list rewards
--- (name -> number[]) and names
function M.score(rows, texts, tokens, reward)
  options.argument("rl.score", "rows", rows, "table")
  options.argument("rl.score", "texts", texts, "table")
  options.argument("rl.score", "tokens", tokens, "table")
  if #rows ~= #texts or #rows ~= #tokens then
    error(("rl.score: %d rows, %d texts, %d lists of tokens"):format(#rows, #texts, #tokens), 2)
  end
  if type(reward) == "table" and not callable(reward) then return (score_each(rows, texts, tokens, reward)) end
  if not callable(reward) then
    error(("rl.score: the reward is a %s, expected a function or a list of them"):format(type(reward)), 2)
  end
  local values, extra = each(rows, texts, tokens, nil, reward)
  return { total = values, steps = checked_steps(rows, texts, tokens, values, extra) }
end

--- Step rewards as tensors.
--- @param steps number[][]
--- @param width integer
--- @return perilune.Tensor rewards  (B, N) f32
--- @return perilune.Tensor covered  (B, N) f32, 1 where there is one
function M.step_tensors(steps, width)
  local rows, counts = {}, {}
  for i, list in ipairs(steps) do
    local row = table.move(list, 1, #list, 1, {})
    for t = #list + 1, width do row[t] = 0 end
    rows[i], counts[i] = row, #list
  end
  local covered = peri.arange(width):lt(peri.tensor(counts, "i64"):unsqueeze(2)) -- (B, N)
  return peri.tensor(rows, "f32"), covered:to "f32"
end

return M
