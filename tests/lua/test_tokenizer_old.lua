-- test_tokenizer_old.lua - vocabularies from before tokenizer.json: ids are those of the programs that the files were
-- made for, written out here without any speed (GPT-2's encoder.py, BERT's tokenization.py, llama2.c's run.c), over
-- vocabularies and texts of chance; broken files say where.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local T, dir = {}, nil

scratch.each(T, function(path) dir = path end)

local function write(name, text)
  assert(peri.files.write(dir .. "/" .. name, type(text) == "string" and text or peri.json.encode(text)))
  return dir .. "/" .. name
end

local function load_folder() return assert(peri.tokenizer.load(dir)) end

local function refuses(path, part)
  local tok, message = peri.tokenizer.load(path)
  lu.assertNil(tok)
  lu.assertStrContains(message, part)
end

-- Numbers that look random, the same in every run.
local seed = 1
local function draw(n)
  seed = (seed * 1103515245 + 12345) % 2147483648
  return (seed >> 8) % n + 1
end

local function pick(list) return list[draw(#list)] end

local function text_of(parts, most)
  local out = {}
  for i = 1, draw(most) do out[i] = pick(parts) end
  return table.concat(out)
end

-- ---- vocab.json and merges.txt ----

-- Pairs of a word are joined by rank, each pair wherever it stands.
local function gpt2_word(word, ids, ranks)
  local parts = {}
  for c in word:gmatch "." do parts[#parts + 1] = c end
  while true do
    local best, left, right
    for i = 1, #parts - 1 do
      local rank = ranks[parts[i] .. " " .. parts[i + 1]]
      if rank and (not best or rank < best) then best, left, right = rank, parts[i], parts[i + 1] end
    end
    if not best then break end
    local joined, i = {}, 1
    while i <= #parts do
      local both = parts[i] == left and parts[i + 1] == right
      joined[#joined + 1] = both and left .. right or parts[i]
      i = i + (both and 2 or 1)
    end
    parts = joined
  end
  for i, part in ipairs(parts) do parts[i] = ids[part] end
  return parts
end

function T.test_merges_join_pairs_by_rank()
  for round = 1, 20 do
    local pieces, ids, ranks, lines = { "a", "b", "c" }, {}, {}, { "#version: 0.2" }
    for _ = 1, 30 do
      local left, right = pick(pieces), pick(pieces)
      if #left + #right <= 8 and not ranks[left .. " " .. right] then
        ranks[left .. " " .. right] = #lines
        lines[#lines + 1] = left .. " " .. right
        pieces[#pieces + 1] = left .. right
      end
    end
    for _, piece in ipairs(pieces) do
      if not ids[piece] then
        ids[piece] = 0
        for _ in pairs(ids) do ids[piece] = ids[piece] + 1 end
        ids[piece] = ids[piece] - 1
      end
    end
    write("vocab.json", ids)
    write("merges.txt", table.concat(lines, round % 2 == 0 and "\n" or "\r\n") .. "\n")
    local tok = load_folder()
    for _ = 1, 30 do
      local word = text_of({ "a", "b", "c" }, 20)
      lu.assertEquals(tok:encode(word), gpt2_word(word, ids, ranks), word)
    end
  end
end

function T.test_a_line_of_merges_that_is_none_is_named()
  write("vocab.json", { a = 0, b = 1, ab = 2 })
  for text, part in pairs {
    ["#version: 0.2\na b\nab\n"] = "line 3: two tokens with one space between",
    ["a b c\n"] = "line 1: two tokens with one space between",
    ["a b\n\n b\n"] = "line 3: two tokens with one space between",
    ["a \n"] = "line 1: two tokens with one space between",
    ["#version: 0.2\na b\n#version b\n"] = "line 3: a token of this merge, or what it makes, is not in the vocabulary",
    ["a x\n"] = "line 1: a token of this merge, or what it makes, is not in the vocabulary",
    ["b a"] = "line 1: a token of this merge, or what it makes, is not in the vocabulary",
  } do
    write("merges.txt", text)
    refuses(dir, part)
  end
  write("merges.txt", "a b") -- no line feed at the end, no version
  lu.assertEquals(load_folder():encode "abba", { 2, 1, 0 })
end

function T.test_classes_differ_in_what_goes_around_a_text()
  local ids = { a = 0, b = 1, ["<s>"] = 2, ["</s>"] = 3, ["<|endoftext|>"] = 4, ["<pad>"] = 5, ["<unk>"] = 6, ["<mask>"] = 7 }
  write("vocab.json", ids)
  write("merges.txt", "#version: 0.2\n")
  local function with(class)
    write("tokenizer_config.json", { tokenizer_class = class })
    return load_folder()
  end
  for _, class in ipairs { "GPT2Tokenizer", "CodeGenTokenizerFast" } do
    local tok = with(class)
    lu.assertEquals({ tok:encode "ab", tok.bos, tok.eos }, { { 0, 1 }, 4, 4 }, class)
  end
  for _, class in ipairs { "RobertaTokenizer", "BartTokenizerFast", "LongformerTokenizer", "LEDTokenizer", "MvpTokenizer" } do
    lu.assertEquals(with(class):encode "ab", { 2, 0, 1, 3 }, class)
  end
  write("tokenizer_config.json", { tokenizer_class = "CLIPTokenizer" })
  refuses(dir, 'tokenizer_class "CLIPTokenizer" makes of vocab.json and merges.txt what is not known here')
end

-- ---- vocab.txt ----

-- The longest word of the list at each place, behind ## within a word; a word with a rest is unknown.
local function bert_word(word, ids)
  local out, at = {}, 1
  while at <= #word do
    local id
    for stop = #word, at, -1 do
      id = ids[(at > 1 and "##" or "") .. word:sub(at, stop)]
      if id then
        at = stop + 1
        break
      end
    end
    if not id then return { ids["[UNK]"] } end
    out[#out + 1] = id
  end
  return out
end

function T.test_words_are_cut_into_the_longest_of_the_list()
  for _ = 1, 20 do
    local list, ids = { "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "," }, {}
    for i, word in ipairs(list) do ids[word] = i - 1 end
    for _ = 1, 40 do
      local word = (draw(2) == 1 and "##" or "") .. text_of({ "a", "b", "c" }, 4)
      if not ids[word] then
        ids[word] = #list
        list[#list + 1] = word
      end
    end
    write("vocab.txt", table.concat(list, "\n"))
    local tok = load_folder()
    for _ = 1, 30 do
      local text, want = text_of({ "a", "b", "c", "B", " ", "," }, 24), { ids["[CLS]"] }
      for word in text:lower():gsub(",", " , "):gmatch "%S+" do
        for _, id in ipairs(bert_word(word, ids)) do want[#want + 1] = id end
      end
      want[#want + 1] = ids["[SEP]"]
      lu.assertEquals(tok:encode(text), want, text)
    end
  end
end

function T.test_a_list_with_capitals_keeps_them()
  local head = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\n"
  write("vocab.txt", head .. "the\nThe\n")
  lu.assertEquals(load_folder():encode "The the THE", { 2, 6, 5, 1, 3 })
  write("vocab.txt", head .. "the\n")
  lu.assertEquals(load_folder():encode "The the THE", { 2, 5, 5, 5, 3 })
  write("tokenizer_config.json", { do_lower_case = false })
  lu.assertEquals(load_folder():encode "The the THE", { 2, 1, 5, 1, 3 })
end

function T.test_a_list_of_words_that_is_none_is_refused()
  write("vocab.txt", "[PAD]\n[CLS]\n[SEP]\nthe\n")
  refuses(dir, "a list of words without [UNK]: not BERT's vocab.txt")
  write("vocab.txt", "[UNK]\nb\xFF\n")
  refuses(dir, "byte 7: not UTF-8")
  write("vocab.txt", ("\n"):rep(1 << 22) .. "[UNK]\n")
  refuses(dir, "4194304 tokens, the limit is 4194304")
end

-- ---- tokenizer.bin ----

local BYTES = {}
for b = 0, 255 do BYTES[b + 1] = { ("<0x%02X>"):format(b), 0 } end

-- tokens: { text, score } behind the three special ones and the bytes.
local function llama2c(tokens)
  local rows, most = { { "<unk>", 0 }, { "\n<s>\n", 0 }, { "\n</s>\n", 0 } }, 0
  for _, token in ipairs(BYTES) do rows[#rows + 1] = token end
  for _, token in ipairs(tokens) do rows[#rows + 1] = token end
  for i, token in ipairs(rows) do
    most = math.max(most, #token[1])
    rows[i] = string.pack("<fI4", token[2], #token[1]) .. token[1]
  end
  return string.pack("<I4", most) .. table.concat(rows)
end

-- run.c: characters, or their bytes; then the neighbours that make the token of the highest score, again and again.
local function run_c(text, tokens)
  local ids, texts, scores, out = {}, {}, {}, { 1 }
  for i, token in ipairs(BYTES) do texts[i + 2] = token[1] end
  for i, token in ipairs(tokens) do
    ids[token[1]], texts[i + 258], scores[i + 258] = i + 258, token[1], token[2]
  end
  if text ~= "" then out[2] = ids[" "] end
  for c in text:gmatch(utf8.charpattern) do
    if ids[c] then
      out[#out + 1] = ids[c]
    else
      for b in c:gmatch "." do out[#out + 1] = b:byte() + 3 end
    end
  end
  while true do
    local best, at, id = -1e10, nil, nil
    for i = 2, #out - 1 do
      local joined = ids[texts[out[i]] .. texts[out[i + 1]]]
      if joined and scores[joined] > best then best, at, id = scores[joined], i, joined end
    end
    if not at then return out end
    out[at] = id
    table.remove(out, at + 1)
  end
end

function T.test_llama2c_joins_the_neighbours_of_the_highest_score()
  local parts = { "a", "b", " ", "é", "中", "\n", "z" }
  for _ = 1, 20 do
    local tokens, there = {}, {}
    for _, c in ipairs { " ", "a", "b", "é", "中" } do -- line feeds and z are left to the bytes
      there[c] = true
      tokens[#tokens + 1] = { c, -1000 }
    end
    for _ = 1, 40 do
      local joined = pick(tokens)[1] .. pick(tokens)[1]
      if #joined <= 12 and not there[joined] then
        there[joined] = true
        tokens[#tokens + 1] = { joined, -draw(20) } -- equal scores: the first place counts
      end
    end
    local tok = assert(peri.tokenizer.load(write("tokenizer.bin", llama2c(tokens))))
    lu.assertEquals({ tok.size, tok.unk, tok.bos, tok.eos }, { 259 + #tokens, 0, 1, 2 })
    for _ = 1, 30 do
      local text = text_of(parts, 16)
      local ids = tok:encode(text)
      lu.assertEquals(ids, run_c(text, tokens), ("%q"):format(text))
      lu.assertEquals(tok:decode(ids), text)
    end
    lu.assertEquals(tok:encode "", { 1 })
  end
end

function T.test_a_tokenizer_bin_that_ends_early_or_lies_says_where()
  local whole = llama2c { { " ", -1 }, { "ab", -2 } }
  local function broken(bytes, part) refuses(write("tokenizer.bin", bytes), part) end
  assert(peri.tokenizer.load(write("tokenizer.bin", whole)))
  broken(whole:sub(1, 3), "3 bytes are no tokenizer.bin")
  broken(whole:sub(1, 4 + 5), "byte 4: token 0 ends after 5 of 8 bytes")
  broken(whole:sub(1, -2), ("byte %d: token 260 of 2 bytes, 1 are left and the longest has 6"):format(#whole - 6))
  broken(whole:sub(1, 4 + 13), "1 tokens, a tokenizer.bin has at least 259")
  broken(string.pack("<I4", 1) .. whole:sub(5), "byte 8: token 0 of 5 bytes")
  local last = #whole - 10 -- before the last token
  for _, score in ipairs { 0 / 0, 1 / 0, -1 / 0 } do
    broken(whole:sub(1, last) .. string.pack("<fI4", score, 2) .. "ab", ("byte %d: the score of token 260 is "):format(last))
  end
  broken(whole:sub(1, last) .. string.pack("<fI4", 1, 2) .. "a\xC3", ("byte %d: token 260 is no UTF-8"):format(last + 8))
  for cut = 1, #whole - 1, 7 do -- cut anywhere: refused, or a shorter table
    local tok, message = peri.tokenizer.load(write("tokenizer.bin", whole:sub(1, cut)))
    lu.assertTrue(tok ~= nil or message:find "byte" ~= nil or message:find "at least 259" ~= nil, message)
  end
end

return T
