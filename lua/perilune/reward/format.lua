-- format.lua - rewards for the form of a completion, whatever it says: thought and answer between their tags.
local answers = require "perilune.reward.answers"
local options = require "perilune.options"

local M = {}

local rules = {
  answer = options.boolean(false, "an <answer></answer> has to follow the thought, and nothing else"),
  opened = options.boolean(false, "the prompt ends with <think>: the completion begins inside of it"),
  least = options.integer(0, "[0, inf)", "characters that the thought has at least, spaces around it aside"),
  right = options.number(1, nil, "reward of the form"),
  wrong = options.number(0, nil, "reward of any other"),
}

-- Where a plain text stands first and how often it does, up to twice.
local function places(text, word, at)
  local from, to = text:find(word, at, true)
  if not from then return nil, nil, 0 end
  return from, to, text:find(word, to + 1, true) and 2 or 1
end

-- Characters of a text; bytes where it is no UTF-8.
local function length(text) return utf8.len(text) or #text end

local function has_form(text, o)
  if o.opened then text = "<think>" .. text end
  if text:sub(1, 7) ~= "<think>" or text:find("<think>", 8, true) then return false end
  local close, behind, closes = places(text, "</think>", 8)
  if not close or o.least > 0 and length(answers.trimmed(text:sub(8, close - 1))) < o.least then return false end
  if not o.answer then return true end
  local _, _, opens = places(text, "<answer>", 1)
  local _, _, ends = places(text, "</answer>", 1)
  if closes ~= 1 or opens ~= 1 or ends ~= 1 then return false end
  local from = text:match("^%s*<answer>()", behind + 1)
  local to = from and text:find("</answer>", from, true)
  return to ~= nil and text:find("^%s*$", to + 9) ~= nil and text:find("%S", from) < to
end

--- A reward for a thought between <think> and </think> at the start. As TRL's think_format_reward, whose regular
--- expression is ^<think>(?!.*<think>)(.*?)</think>.*$ with "." for any character: one <think>, first of all, and a
--- </think> behind it. With answer = true, R1's template: one of each tag, and an <answer></answer> that says
--- something follows the thought and ends the text, spaces aside. A bare form is easily earned by saying nothing:
--- `least` asks for a thought.
--- @param opts table?
--- @return function reward
function M.format(opts)
  local o = options.fill("reward.format", opts, rules)
  return function (_, text) return has_form(text, o) and o.right or o.wrong end
end
options.declare(M.format, {}, rules)

return M
