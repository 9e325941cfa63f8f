-- pieces.lua - a small vocabulary for a BERT that is trained here: words whole, numbers digit by digit.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local SPECIAL <const> = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]" }

local function json_of(vocab)
  local ids, added, special = {}, {}, {}
  for i, token in ipairs(vocab) do ids[token] = i - 1 end
  for i, token in ipairs(SPECIAL) do
    added[i] = { id = i - 1, content = token, special = true, single_word = false, lstrip = false, rstrip = false,
      normalized = false }
  end
  for _, token in ipairs { "[CLS]", "[SEP]" } do
    special[token] = { id = token, ids = { ids[token] }, tokens = { token } }
  end
  local function mark(token, kind) return { SpecialToken = { id = token, type_id = kind } } end
  local function text(name, kind) return { Sequence = { id = name, type_id = kind } } end
  return peri.json.encode { version = "1.0", added_tokens = added,
    normalizer = { type = "BertNormalizer", clean_text = true, handle_chinese_chars = true, lowercase = true },
    pre_tokenizer = { type = "BertPreTokenizer" },
    post_processor = { type = "TemplateProcessing", special_tokens = special,
      single = { mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0) },
      pair = { mark("[CLS]", 0), text("A", 0), mark("[SEP]", 0), text("B", 1), mark("[SEP]", 1) } },
    decoder = { type = "WordPiece", prefix = "##", cleanup = true },
    model = { type = "WordPiece", unk_token = "[UNK]", continuing_subword_prefix = "##",
      max_input_chars_per_word = 100, vocab = ids } }
end

--- A WordPiece tokenizer as BERT has it (Devlin et al., 1810.04805) whose vocabulary is the words of some texts, in
--- lower case and in the order in which they come. A word that has a digit in it is cut into its characters, and all
--- ten digits are known: "17" is "1", "##7". [PAD], [UNK], [CLS], [SEP] and [MASK] are the ids 0 to 4. It saves and
--- loads as those of Hugging Face do.
--- @param texts string[]  words with blanks between; signs stand alone
--- @return perilune.Tokenizer
function M.word_pieces(texts)
  options.argument("text.word_pieces", "texts", texts, "table")
  local vocab, known = table.move(SPECIAL, 1, #SPECIAL, 1, {}), {}
  local function add(token)
    if not known[token] then known[token], vocab[#vocab + 1] = true, token end
  end
  for digit = 0, 9 do
    add(tostring(digit))
    add("##" .. digit)
  end
  for i, text in ipairs(texts) do
    if type(text) ~= "string" or not utf8.len(text) then
      options.raise(("text.word_pieces: text %d is %s, expected UTF-8"):format(i,
        type(text) == "string" and "none" or "a " .. type(text)))
    end
    for word in text:lower():gmatch "%S+" do
      if not word:find "%d" then add(word)
      else
        local before = ""
        for _, code in utf8.codes(word) do
          add(before .. utf8.char(code))
          before = "##"
        end
      end
    end
  end
  local tokenizer = assert(require("perilune.text.tokenizer").parse(json_of(vocab)))
  for i, role in ipairs { "pad", "unk", "cls", "sep", "mask" } do -- which a folder says beside the vocabulary
    tokenizer[role], tokenizer.special_tokens[role .. "_token"] = i - 1, SPECIAL[i]
  end
  return tokenizer
end

return M
