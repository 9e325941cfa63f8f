-- SentencePiece's own files: every flag that changes ids, against sentencepiece 0.2.3 (expected.json is made by
-- tests/reference/sentencepiece_models.py).
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local T = {}
local DATA = "tests/data/tokenizers/sentencepiece/"

local function decode(path) return assert(peri.json.decode(assert(peri.files.read(path)))) end

function T.test_every_flag_gives_sentencepieces_ids()
  local want = decode(DATA .. "expected.json")
  local count = 0
  for name, rows in pairs(want.ids) do
    count = count + 1
    local tok = assert(peri.tokenizer.load(DATA .. name .. ".model"))
    local raw = { add_special = false, parse_special = false }
    local batch = tok:encode_batch(want.texts, raw)
    for i, text in ipairs(want.texts) do
      lu.assertEquals(tok:encode(text, raw), rows[i], ("%s: %q"):format(name, text))
      lu.assertEquals(batch[i], rows[i], ("%s in a batch: %q"):format(name, text))
    end
  end
  lu.assertEquals(count, 16)
end

function T.test_texts_come_back()
  for _, name in ipairs { "bpe_user", "unigram_user" } do
    local tok = assert(peri.tokenizer.load(DATA .. name .. ".model"))
    for _, text in ipairs { "the copy's <a>", "x 😀🏴 y", "<|im_start|>user\nthe copy<|im_end|>" } do
      lu.assertEquals(tok:decode(tok:encode(text)), text)
    end
    lu.assertEquals(tok:id "<|im_end|>", tok.eos_ids[#tok.eos_ids], "a user's piece ends a turn")
  end
  local bare = assert(peri.tokenizer.load(DATA .. "bpe_no_escape.model"))
  lu.assertEquals(bare:decode(bare:encode "the copy"), " the copy", "as SentencePiece: nothing says what was put")
end

function T.test_kinds_that_are_not_known_are_refused_by_name()
  local tok, message = peri.tokenizer.load(DATA .. "words.model")
  lu.assertNil(tok)
  lu.assertStrContains(message, "model type 3 of SentencePiece")
  local path = scratch.path()
  -- Field 5 of a model, denormalizer_spec, with a table of characters (field 2).
  local bytes = assert(peri.files.read(DATA .. "bpe_plain.model")) .. "\x2A\x06\x12\x04abcd"
  assert(peri.files.write(path, bytes))
  tok, message = peri.tokenizer.load(path)
  lu.assertNil(tok)
  lu.assertStrContains(message, "denormalizer_spec")
  peri.files.remove_tree(path)
end

function T.test_t5_has_its_extra_ids_behind_the_pieces()
  local dir = scratch.path()
  assert(peri.files.make_folder(dir))
  assert(peri.files.write(dir .. "/spiece.model", assert(peri.files.read(DATA .. "unigram_plain.model"))))
  local function load(config)
    assert(peri.files.write(dir .. "/tokenizer_config.json", peri.json.encode(config)))
    return assert(peri.tokenizer.load(dir))
  end
  local pieces = assert(peri.tokenizer.load(DATA .. "unigram_plain.model")).size
  local tok = load { tokenizer_class = "T5Tokenizer" }
  lu.assertEquals({ tok:id "<extra_id_99>", tok:id "<extra_id_0>" }, { pieces, pieces + 99 })
  tok = load { tokenizer_class = "T5Tokenizer", extra_ids = 2 }
  lu.assertEquals({ tok.size, tok:id "<extra_id_0>" }, { pieces + 2, pieces + 1 })
  lu.assertEquals(load { tokenizer_class = "T5Tokenizer", extra_ids = 0 }.size, pieces)
  lu.assertEquals(load {}.size, pieces)
  assert(peri.files.write(dir .. "/tokenizer_config.json", '{"tokenizer_class":"AlbertTokenizer"}'))
  local none, message = peri.tokenizer.load(dir)
  lu.assertNil(none)
  lu.assertStrContains(message, "AlbertTokenizer")
  peri.files.remove_tree(dir)
end

return T
