-- model.lua - a reward model as a reward function: what a models.scorer says at the end of a completion.
local peri = require "perilune"
local answers = require "perilune.reward.answers"
local batches = require "perilune.text.batch"
local data_rows = require "perilune.data.rows"
local options = require "perilune.options"
local scorers = require "perilune.models.scorer"

local M = {}

local rules = {
  model = options.value(options.required, "table", "a models.scorer, as algo.reward_model trains one"),
  tokenizer = options.value(options.required, "table", "the one that it was trained with"),
  part = answers.part_rule "whole",
  where = options.value(options.none, "callable", "where(row) -> boolean: the rows that it judges; default: all"),
  batch_size = options.integer(64, "[1, inf)", "completions in one forward pass"),
}

-- The part of a completion that is judged. One without a thought is all summary; one that ends in its thought has none.
local function judged(text, part)
  local found = answers.part(text, part)
  if found then return found end
  return text:find("<think>", 1, true) and "" or text
end

-- Ids of a prompt and what is judged, as those of an answer in a preference.
local function encoded(o, row, text)
  local completion = judged(text, o.part)
  if type(row.prompt) == "table" then completion = { { role = "assistant", content = completion } } end
  return data_rows.encode(o.tokenizer, { prompt = row.prompt, completion = completion }).ids
end

-- A reward of a scorer, by the options of one of the makers below.
local function of_model(who, opts, rules_of)
  local o = options.fill(who, opts, rules_of)
  scorers.want(who, o.model)
  return setmetatable({ batch = true }, { __call = function (_, rows, texts)
    local _ <close> = peri.no_grad()
    local values, list, at = { n = #rows }, {}, {}
    for i, row in ipairs(rows) do
      if not o.where or o.where(row) then list[#list + 1], at[#at + 1] = encoded(o, row, texts[i]), i end
    end
    for first = 1, #list, o.batch_size do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local some = table.move(list, first, math.min(first + o.batch_size - 1, #list), 1, {})
      local batch = batches.pad(some, { side = "right", pad = o.tokenizer.pad or o.tokenizer.eos or 0 })
      for k, value in ipairs(o.model:last(batch):tolist()) do values[at[first + k - 1]] = value end
    end
    return values
  end })
end

--- A reward for what a reward model likes: its score at the last token of prompt and completion, or of the prompt with
--- one part of the completion. DeepSeek-R1 (2501.12948, section 2.3.4) judges how helpful the summary is and how
--- harmless all of it. Scores are log odds against other answers to a prompt and have no zero of their own: in the
--- advantages of a group nothing but their differences counts. Abstains from rows that `where` leaves out.
--- @param opts table  model, tokenizer
--- @return table reward  callable, of whole batches: reward(rows, texts) -> numbers
function M.model(opts) return of_model("reward.model", opts, rules) end
options.declare(M.model, {}, rules)

local helpful_rules = {}
for name, rule in pairs(rules) do helpful_rules[name] = rule end
helpful_rules.part = answers.part_rule "summary"

--- reward.model of the summary alone, as R1 judges what is helpful: the thought is not for the reader.
--- @param opts table  model, tokenizer
--- @return table reward  callable, of whole batches: reward(rows, texts) -> numbers
function M.helpfulness(opts) return of_model("reward.helpfulness", opts, helpful_rules) end
options.declare(M.helpfulness, {}, helpful_rules)

--- reward.model of the whole completion, as R1 judges what is harmless: a thought can do harm, too.
--- @param opts table  model, tokenizer
--- @return table reward  callable, of whole batches: reward(rows, texts) -> numbers
function M.harmlessness(opts) return of_model("reward.harmlessness", opts, rules) end
options.declare(M.harmlessness, {}, rules)

return M
