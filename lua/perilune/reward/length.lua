-- length.lua - rewards that look at how long a completion is and how often it repeats itself.
local answers = require "perilune.reward.answers"
local options = require "perilune.options"

local M = {}

-- Words between spaces.
local function words_of(text)
  local list = {}
  for word in text:gmatch "%S+" do list[#list + 1] = word end
  return list
end

local count = {
  tokens = function (_, tokens) return #tokens end,
  words = function (text) return select(2, text:gsub("%S+", "")) end,
  characters = function (text) return utf8.len(text) or #text end,
}

local function unit_rule()
  return options.choice("tokens", { "tokens", "words", "characters" },
    "what is counted: tokens (the stop token included), words between spaces, characters")
end

-- ---- a range ----

local length_rules = {
  min = options.integer(0, "[0, inf)", "the shortest that is right"),
  max = options.integer(options.none, "[0, inf)", "the longest that is right; default: none is too long"),
  margin = options.integer(0, "[0, inf)", "how far outside the reward falls from 1 to 0; 0: at once"),
  unit = unit_rule(),
  part = answers.part_rule "whole",
}

--- A reward for a length between min and max: 1 within, 0 outside, falling in a line over the margin. Of a part of the
--- completion only words and characters can be counted.
--- @param opts table?
--- @return function reward
function M.length(opts)
  local o = options.fill("reward.length", opts, length_rules)
  local max = o.max or math.huge
  if o.min > max then error(("reward.length: min is %d, above max, %d"):format(o.min, max), 2) end
  if o.part ~= "whole" and o.unit == "tokens" then
    error(("reward.length: the tokens of the %s are not known; ask for words or characters"):format(o.part), 2)
  end
  return function (_, text, tokens)
    local n = count[o.unit](answers.part(text, o.part) or "", tokens)
    local off = n < o.min and o.min - n or n > max and n - max or 0
    if off == 0 then return 1 end
    return off <= o.margin and 1 - off / (o.margin + 1) or 0
  end
end
options.declare(M.length, {}, length_rules)

-- ---- cosine ----

local cosine_rules = {
  correct = options.value(options.required, "callable", "a reward function: right where it gives more than 0"),
  max_length = options.integer(options.required, "[1, inf)", "where the cosine ends; longer counts as that"),
  min_wrong = options.number(-1, nil, "reward of a wrong answer of no length"),
  max_wrong = options.number(-0.5, nil, "reward of a wrong answer of max_length"),
  min_right = options.number(0.5, nil, "reward of a right answer of max_length"),
  max_right = options.number(1, nil, "reward of a right answer of no length"),
  unit = unit_rule(),
}

--- A reward for right answers that are short and wrong ones that are long: low + (high - low) (1 + cos(pi n / max)) /
--- 2, from max_right down to min_right, and from min_wrong up to max_wrong (2502.03373, appendix C.1; TRL's
--- get_cosine_scaled_reward). Where `correct` abstains, so does it.
--- @param opts table
--- @return function reward
function M.cosine(opts)
  local o = options.fill("reward.cosine", opts, cosine_rules)
  return function (row, text, tokens)
    local right = o.correct(row, text, tokens)
    if right == nil then return nil end
    if type(right) ~= "number" or right ~= right then
      error(("correct gave %s, expected a number or nil"):format(right ~= right and "nan" or "a " .. type(right)), 0)
    end
    local share = math.min(count[o.unit](text, tokens) / o.max_length, 1)
    local low, high = o.max_wrong, o.min_wrong
    if right > 0 then low, high = o.min_right, o.max_right end
    return low + 0.5 * (high - low) * (1 + math.cos(math.pi * share))
  end
end
options.declare(M.cosine, {}, cosine_rules)

-- ---- too long ----

local overlong_rules = {
  max_length = options.integer(options.required, "[1, inf)", "above it the reward is -1"),
  cache = options.integer(options.required, "[0, inf)", "tokens below max_length over which it falls from 0 to -1"),
  unit = unit_rule(),
}

--- A penalty for completions that are too long: 0 up to max_length - cache, falling in a line to -1 at max_length, -1
--- above (DAPO, 2503.14476, equation 13; TRL's get_soft_overlong_punishment).
--- @param opts table
--- @return function reward
function M.overlong(opts)
  local o = options.fill("reward.overlong", opts, overlong_rules)
  if o.cache > o.max_length then
    error(("reward.overlong: cache is %d, above max_length, %d"):format(o.cache, o.max_length), 2)
  end
  local free = o.max_length - o.cache
  return function (_, text, tokens)
    local n = count[o.unit](text, tokens)
    if n <= free then return 0 end
    return n <= o.max_length and (free - n) / o.cache or -1
  end
end
options.declare(M.overlong, {}, overlong_rules)

-- ---- repetition ----

local repetition_rules = {
  n = options.integer(3, "[1, inf)", "length of the n-grams"),
  penalty = options.number(-1, "(-inf, 0]", "reward where all n-grams are one"),
  unit = options.choice("tokens", { "tokens", "words" }, "what n-grams are of: tokens, or words in lower case"),
}

--- A penalty for n-grams that come again: (1 - distinct / all) * penalty, of tokens, or of words between spaces as
--- open-r1 has it (2502.03373, appendix C.2; TRL's get_repetition_penalty_reward). 0 where there are fewer than n.
--- @param opts table?
--- @return function reward
function M.repetition(opts)
  local o = options.fill("reward.repetition", opts, repetition_rules)
  return function (_, text, tokens)
    local list = o.unit == "tokens" and tokens or words_of(text:lower())
    local total, distinct, seen = #list - o.n + 1, 0, {}
    if total < 1 then return 0 end
    for i = 1, total do
      local gram = o.n == 1 and list[i] or table.concat(list, " ", i, i + o.n - 1)
      if not seen[gram] then seen[gram], distinct = true, distinct + 1 end
    end
    if distinct == total then return 0 end
    return (1 - distinct / total) * o.penalty
  end
end
options.declare(M.repetition, {}, repetition_rules)

return M
