-- text.word_pieces: a small WordPiece vocabulary.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

TestPieces = {}

local texts = { "Calculate + = ?", "H2O is water", "is it ?" }

function TestPieces.test_words_are_whole_and_numbers_are_digits()
  local tok = peri.text.word_pieces(texts)
  local function tokens(text)
    local out = {}
    for i, id in ipairs(tok:encode(text)) do out[i] = tok:token(id) end
    return table.concat(out, " ")
  end
  lu.assertEquals(tokens "calculate 17 + 4 = ?", "[CLS] calculate 1 ##7 + 4 = ? [SEP]")
  lu.assertEquals(tokens "H2O 2090", "[CLS] h ##2 ##o 2 ##0 ##9 ##0 [SEP]")
  lu.assertEquals(tokens "nobody is", "[CLS] [UNK] is [SEP]")
  lu.assertEquals({ tok.pad, tok.unk, tok.cls, tok.sep, tok.mask }, { 0, 1, 2, 3, 4 })
  lu.assertEquals(tok.size, 5 + 20 + 4 + 2 + 3) -- special, digits, first text, h ##o, is water it
end

-- Every number comes back.
function TestPieces.test_decoding_is_the_way_back()
  local tok = peri.text.word_pieces(texts)
  for n = 0, 120 do
    lu.assertEquals(tok:decode(tok:encode(tostring(n))), tostring(n))
    lu.assertEquals(tok:decode(tok:encode("water is " .. n)), "water is " .. n)
  end
end

function TestPieces.test_a_pair_has_types_and_a_folder_gives_the_same()
  local tok, to = peri.text.word_pieces(texts), scratch.folder()
  assert(tok:save(to))
  local again = assert(peri.tokenizer.load(to))
  for _, one in ipairs { tok, again } do
    local batch = one:batch { { "12", "is" }, { "water", "3" } }
    lu.assertEquals(batch.ids:tolist(), tok:batch({ { "12", "is" }, { "water", "3" } }).ids:tolist())
    lu.assertEquals(batch.token_type_ids:tolist()[1], { 0, 0, 0, 0, 1, 1 })
    lu.assertEquals({ one.pad, one.unk, one.cls, one.sep, one.mask }, { 0, 1, 2, 3, 4 })
  end
  peri.files.remove_tree(to)
end

function TestPieces.test_what_is_no_text_is_refused()
  lu.assertErrorMsgContains("text 2 is a number", peri.text.word_pieces, { "a", 3 })
  lu.assertErrorMsgContains("text 1 is none", peri.text.word_pieces, { "\xff" })
  lu.assertErrorMsgContains("texts", peri.text.word_pieces, "a b")
end

os.exit(lu.LuaUnit.run())
