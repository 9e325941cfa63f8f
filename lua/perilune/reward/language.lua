-- language.lua - language consistency (DeepSeek-R1, 2501.12948, section 2.3.2): the share of the words of the chain of
-- thought that are of the target language, told by the script of their letters.
local answers = require "perilune.reward.answers"
local options = require "perilune.options"
local scripts = require "perilune.reward.scripts"

local M = {}

-- The scripts that a language is written in, by ISO 639-1 code.
local languages = {}
for script, codes in pairs {
  Latin = "en de fr es it pt nl sv da no nb nn fi is pl cs sk hu ro hr sl et lv lt tr vi id ms tl sw ca eu gl ga cy mt "
    .. "sq az uz af eo la",
  Cyrillic = "ru uk bg be mk sr kk ky mn tg", Greek = "el", Armenian = "hy", Georgian = "ka", Hebrew = "he yi",
  Arabic = "ar fa ur ps ku sd ug", Devanagari = "hi mr ne sa", Bengali = "bn as", Gurmukhi = "pa", Gujarati = "gu",
  Oriya = "or", Tamil = "ta", Telugu = "te", Kannada = "kn", Malayalam = "ml", Sinhala = "si", Thai = "th", Lao = "lo",
  Tibetan = "bo dz", Myanmar = "my", Khmer = "km", Ethiopic = "am ti", Hangul = "ko", Thaana = "dv", Syriac = "syr",
  Mongolian = "",
} do
  for code in codes:gmatch "%S+" do languages[code] = { [script] = true } end
end
languages.zh, languages.ja = { Han = true, Bopomofo = true }, { Han = true, Kana = true }

-- What is neither language: code, formulas, tags, addresses. Each is found in one pass, from where the last one ended.
local function without(text, open, close)
  if not text:find(open, 1, true) then return text end
  local pieces, at = {}, 1
  while true do
    local from, inside = text:find(open, at, true)
    local _, to = nil, nil
    if from then _, to = text:find(close, inside + 1, true) end
    if not to then
      pieces[#pieces + 1] = text:sub(at)
      return table.concat(pieces)
    end
    pieces[#pieces + 1], pieces[#pieces + 2], at = text:sub(at, from - 1), " ", to + 1
  end
end

local function prose(text)
  text = without(text, "```", "```")
  text = without(text, "`", "`")
  text = without(text, "$$", "$$")
  text = without(without(text, "\\(", "\\)"), "\\[", "\\]")
  text = text:gsub("\\boxed%f[%A]", " "):gsub("\\%a+", " "):gsub("</?[%a][%w_%-]*/?>", " "):gsub("<|[%w_]+|>", " ")
  return (text:gsub("https?://%S+", " "))
end

local each_han = { Han = true }

local rules = {
  target = options.value("en", "string", "code of the language (en, zh, ru ...) or name of a script (Latin, Han ...)"),
  field = options.value(options.none, "string", "of the row, that says the target instead"),
  part = answers.part_rule "thought",
  han = options.choice("run", { "run", "character" }, "what is one word of Han: a run of characters, or each"),
  empty = options.number(options.none, nil, "reward where there are no words; default: abstain"),
}

local function scripts_of(target)
  local found = languages[target]
  if found then return found end
  if scripts.is(target) then return { [target] = true } end
end

local function names()
  local list = {}
  for code in pairs(languages) do list[#list + 1] = code end
  for _, name in ipairs(scripts.names) do list[#list + 1] = name end
  table.sort(list)
  return list
end

--- A reward for a chain of thought in one language: the share of its words that are of the target language, R1's
--- language consistency. A word is a run of letters of one script ("don't" is one, "x2y" two); a run of Han characters
--- between other things is one word, or with han = "character" each is, so that "we compute 结果 now" is 3/4 English, or
--- 3/5. Digits, punctuation, tags, code and formulas are neither language. Scripts are told apart, not the languages
--- that share one: German passes for English, and Han is Japanese as well as Chinese.
--- @param opts table?
--- @return function reward
function M.language(opts)
  local o = options.fill("reward.language", opts, rules)
  if not scripts_of(o.target) then
    options.raise("reward.language: " .. options.unknown("language or script", o.target, names()))
  end
  return function (row, text)
    local target = o.target
    if o.field then target = type(row) == "table" and row[o.field] end
    local wanted = type(target) == "string" and scripts_of(target)
    if not wanted then
      error(("the row's %s, expected the code of a language or the name of a script"):format(
        options.is(o.field, target)), 0)
    end
    local words = prose(answers.part(text, o.part) or "")
    local count, total = scripts.words(words, o.han == "character" and each_han or nil)
    if total == 0 then return o.empty end
    local right = 0
    for script in pairs(wanted) do right = right + (count[script] or 0) end
    return right / total
  end
end
options.declare(M.language, {}, rules)

return M
