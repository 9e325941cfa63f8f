-- reward.lua - the reward contract: what a reward function is called with and may return, checked where it
-- returns, with a message that names the function and the completion.
local peri = require "perilune"
local options = require "perilune.options"
local phases = require "perilune.phases"

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

local library = debug.getinfo(1, "S").source:match "^(.*)rl/reward" -- as in options: a place in it helps nobody

-- What was thrown, as one line or more that show where: of what has no place of its own, where the function stands.
local function thrown(fn, err)
  local text = err
  if type(err) ~= "string" then
    local meta = getmetatable(err)
    local ok, said = pcall(type(meta) == "table" and meta.__tostring or error, err)
    text = ok and type(said) == "string" and said
      or type(err) == "table" and type(rawget(err, "message")) == "string" and err.message
      or ("an error that is a %s"):format(type(err))
  end
  if text:find ":%d+:" then return text end
  local body = type(fn) == "table" and getmetatable(fn).__call or fn
  local info = type(body) == "function" and debug.getinfo(body, "S")
  local outside = info and info.what ~= "C" and info.source:sub(1, #library) ~= library
  return outside and ("%s:%d: %s"):format(info.short_src, info.linedefined, text) or text
end

-- fn(...) -> its results; an error goes to refuse(text). An interrupt is nobody's error.
local function called(fn, refuse, ...)
  local ok, value, more = pcall(fn, ...)
  if ok then return value, more end
  if peri.interrupted() then error(value, 0) end
  return refuse(thrown(fn, value))
end

local function check_value(name, i, row, text, value)
  if not finite(value) then
    fail(name, i, row, text, "the value is %s, expected a number, or nil to abstain", shown(value))
  end
end

-- Calls a reward function for each completion; values[i] is NaN where it abstained.
local function each(rows, texts, tokens, name, fn, talks)
  local values, extra = {}, {}
  for i, row in ipairs(rows) do
    local value, more = called(fn, function (why) fail(name, i, row, texts[i], "%s", why) end, row, texts[i], tokens[i],
      talks and talks[i])
    if value == nil then value = 0 / 0 else check_value(name, i, row, texts[i], value) end
    values[i], extra[i] = value, more
  end
  return values, extra
end

local function fail_whole(name, count, fmt, ...)
  error(("reward%s: %s (a batch of %d completions)"):format(name and " " .. tostring(name) or "", fmt:format(...),
    count), 0)
end

-- A list of the results of a batch, with nil in it where there is none. Its length is its highest index, or its field
-- n: a list that is too short would otherwise pass for one that abstains at its end.
local function check_list(name, list, count, what)
  local highest = 0
  for k in pairs(list) do
    if k ~= "n" and (math.type(k) ~= "integer" or k < 1) then
      fail_whole(name, count, "the list of %s has the key %s, expected 1 to %d", what, tostring(k), count)
    elseif k ~= "n" then
      highest = math.max(highest, k)
    end
  end
  local n = list.n == nil and highest or list.n
  if n ~= count or highest > count then
    local hint = list.n == nil and highest < count
      and (" (one that abstains at its end says n = %d)"):format(count) or ""
    fail_whole(name, count, "%s %s, expected one a completion: %d%s", tostring(highest > count and highest or n), what,
      count, hint)
  end
end

-- The same of a function that is called once with all of them and returns a list, or a tensor (B).
local function all_at_once(rows, texts, tokens, name, fn, talks)
  local count = #rows
  local list, more = called(fn, function (why) fail_whole(name, count, "%s", why) end, rows, texts, tokens, talks)
  if peri.is_tensor(list) then
    if not pcall(list.size, list) then fail_whole(name, count, "the value is a tensor that was released") end
    if list.ndim ~= 1 then
      fail_whole(name, count, "the value is a tensor of shape %s, expected (%d)", options.shape(list), count)
    end
    list = list:tolist()
  end
  if type(list) ~= "table" or callable(list) then
    fail_whole(name, count, "the value is %s, expected a list of numbers, one a completion", shown(list))
  end
  check_list(name, list, count, "values")
  local values, extra = {}, {}
  for i, row in ipairs(rows) do
    if list[i] ~= nil then check_value(name, i, row, texts[i], list[i]) end
    values[i] = list[i] == nil and 0 / 0 or list[i]
  end
  if type(more) == "table" then
    check_list(name, more, count, "lists of step rewards")
    for i = 1, count do extra[i] = more[i] end
  elseif more ~= nil then
    fail_whole(name, count, "the second value is %s, expected a list of lists of step rewards", shown(more))
  end
  return values, extra
end

local function is_batch(fn) return type(fn) == "table" and fn.batch == true end

local known = { [1] = true, [2] = true, [3] = true, batch = true }

-- name, function, weight and whether it takes batches, of an entry of a list of rewards.
local function entry_of(one, k, taken)
  local name, fn, factor = nil, nil, nil
  if type(one) == "table" then name, fn, factor = one[1], one[2], one[3] == nil and 1 or one[3] end
  local why = type(one) ~= "table" and "it is a " .. type(one)
    or type(name) ~= "string" and (name == nil and "it has no name" or "its name is a " .. type(name))
    or taken[name] and ("another one is called %q"):format(name)
    or not callable(fn) and ("of %q the second is a %s"):format(name, type(fn))
    or not finite(factor) and ("of %q the weight is %s"):format(name, shown(factor))
  if why then
    options.raise(("rl.score: reward %d is no { name, function, weight (1) } with a name of its own: %s"):format(k,
      why))
  end
  for key in pairs(one) do
    if not known[key] then
      options.raise(("rl.score: reward %s: %s"):format(name, options.unknown("field", key, { "batch" })))
    end
  end
  if one.batch ~= nil and type(one.batch) ~= "boolean" then
    options.raise(("rl.score: reward %s: %s, expected true or false"):format(name, options.is("batch", one.batch)))
  end
  if one.batch == nil then return name, fn, factor, is_batch(fn) end
  return name, fn, factor, one.batch
end

-- Rewards of several functions: their weighted sum, and each under its name.
local function score_each(rows, texts, tokens, list, talks)
  local total, by_name, names, weights = {}, {}, {}, {}
  if #list == 0 then
    local key = next(list)
    options.raise("rl.score: the list of rewards is empty" .. (key == nil and ""
      or (": it has the key %s, expected entries { name, function, weight (1) }"):format(tostring(key))))
  end
  for k, one in ipairs(list) do
    local name, fn, factor, batch = entry_of(one, k, by_name)
    local values, extra = (batch and all_at_once or each)(rows, texts, tokens, name, fn, talks)
    for i, row in ipairs(rows) do
      if type(extra[i]) == "table" then
        fail(name, i, row, texts[i], "a list of step rewards: only a single function may give one")
      end
      if values[i] == values[i] then total[i] = (total[i] or 0) + factor * values[i] end
    end
    names[k], by_name[name], weights[k] = name, values, factor
  end
  for i, row in ipairs(rows) do
    total[i] = total[i] or 0 / 0
    if total[i] == total[i] and not finite(total[i]) then
      fail(nil, i, row, texts[i], "the weighted sum is %s, expected a number", shown(total[i]))
    end
  end
  return { total = total, rewards = by_name, names = names, weights = weights }
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
--- weight (1) }, whose functions return a number or nil: their weighted sum is the reward. With batch = true in such an
--- entry, or in a function that is a table that can be called, it is called once as reward(rows, texts, tokens) and
--- returns a list with nil where it abstains (that says n = #rows where its end abstains) or a tensor (B). Anything
--- else, an error of the function's own included, is an error that names the function and the completion. Of
--- conversations with an environment each function gets the talk as a fourth argument, or the list of them.
--- @param rows table[]  one row a completion
--- @param texts string[]
--- @param tokens integer[][]  token ids of each completion, stop token included
--- @param reward function|table
--- @param talks table[]?  conversations with an environment, see rl.rollout
--- @return table scored  total (number[], NaN where abstained), steps (number[][] or nil); of a list rewards
--- (name -> number[]), names and weights
function M.score(rows, texts, tokens, reward, talks)
  local phase <close> = phases.open "score" -- luacheck: ignore 211
  options.argument("rl.score", "rows", rows, "table")
  options.argument("rl.score", "texts", texts, "table")
  options.argument("rl.score", "tokens", tokens, "table")
  if #rows ~= #texts or #rows ~= #tokens then
    error(("rl.score: %d rows, %d texts, %d lists of tokens"):format(#rows, #texts, #tokens), 2)
  end
  if type(reward) == "table" and not callable(reward) then
    return (score_each(rows, texts, tokens, reward, talks))
  end
  if not callable(reward) then
    error(("rl.score: the reward is a %s, expected a function or a list of them"):format(type(reward)), 2)
  end
  local values, extra = (is_batch(reward) and all_at_once or each)(rows, texts, tokens, nil, reward, talks)
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
