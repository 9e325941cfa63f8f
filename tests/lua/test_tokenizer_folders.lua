-- Folders whose facts stand in several files (tests/data/tokenizers/folders.json, made by AutoTokenizer of
-- transformers 5.24: tests/reference/tokenizer_folders.py): the same ids, roles, flags and texts.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local T, dir = {}, nil
local DATA = "tests/data/tokenizers/"

scratch.each(T, function(path) dir = path end)

local function decode(path) return assert(peri.json.decode(assert(peri.files.read(path)))) end
local function encode(value) return type(value) == "string" and value or peri.json.encode(value) end

local function write_case(c, shared)
  local function resolve(value) return type(value) == "string" and shared[value] or value end
  peri.files.remove_tree(dir)
  assert(peri.files.make_folder(dir))
  if c.base ~= peri.json.null then
    local json = decode(DATA .. c.base .. ".json")
    for key, value in pairs(c.changes == peri.json.null and {} or c.changes) do json[key] = resolve(value) end
    if type(json.model) == "table" then
      for key, value in pairs(json.model) do json.model[key] = resolve(value) end
    end
    assert(peri.files.write(dir .. "/tokenizer.json", encode(json)))
  end
  for name, value in pairs(c.files) do assert(peri.files.write(dir .. "/" .. name, encode(resolve(value)))) end
end

function T.test_facts_of_every_file_count_as_autotokenizer_counts_them()
  local all = decode(DATA .. "folders.json")
  lu.assertTrue(#all.cases > 40)
  for _, c in ipairs(all.cases) do
    write_case(c, all.shared)
    local tok, message = peri.tokenizer.load(dir)
    lu.assertNotNil(tok, c.name .. ": " .. tostring(message))
    for i, text in ipairs(c.texts) do
      local what = ("%s: %q"):format(c.name, text)
      lu.assertEquals(tok:encode(text), c.want.ids[i], what)
      lu.assertEquals(tok:encode(text, { add_special = false }), c.want.plain[i], what)
      lu.assertEquals(tok:decode(tok:encode(text)), c.want.decoded[i], what)
      local stream, parts = tok:stream(), {}
      for _, id in ipairs(tok:encode(text)) do parts[#parts + 1] = stream:push(id) end
      lu.assertEquals(table.concat(parts) .. stream:finish(), c.want.decoded[i], what .. " as a stream")
    end
    for _, role in ipairs { "bos", "eos", "pad", "unk", "cls", "sep", "mask" } do
      lu.assertEquals(tok[role], c.want.roles[role], c.name .. ": " .. role)
    end
    for id, token in pairs(c.want.added) do
      lu.assertEquals(tok:token(math.tointeger(tonumber(id))), token[1], c.name)
      lu.assertEquals(tok:is_special(math.tointeger(tonumber(id))), token[2], c.name .. ": " .. token[1])
    end
  end
end

local function write(files)
  peri.files.remove_tree(dir)
  assert(peri.files.make_folder(dir))
  for name, value in pairs(files) do assert(peri.files.write(dir .. "/" .. name, encode(value))) end
end

function T.test_what_a_folder_asks_for_and_is_not_known_is_refused_by_name()
  local words = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nking\n"
  local function refuses(part, files)
    write(files)
    local tok, message = peri.tokenizer.load(dir)
    lu.assertNil(tok)
    lu.assertStrContains(message, part)
  end
  local function bert(config) return { ["vocab.txt"] = words, ["tokenizer_config.json"] = config } end
  refuses("BertJapaneseTokenizer", bert { tokenizer_class = "BertJapaneseTokenizer" })
  refuses("PhobertTokenizer", bert { tokenizer_class = "PhobertTokenizer" })
  refuses("never_split", bert { tokenizer_class = "BertTokenizer", never_split = { "king" } })
  refuses("<unk>", bert { unk_token = "<unk>" })
  refuses("a token must be a string", bert { eos_token = 7 })
  refuses("must be a list", bert { additional_special_tokens = "x" })
  refuses("must be an id", bert { added_tokens_decoder = { x = { content = "y" } } })
  refuses('"content" is missing', bert { added_tokens_decoder = { ["7"] = { special = true } } })
  refuses("the limit is 1024", bert { eos_token = ("x"):rep(1025) })
  local pair = { ["vocab.json"] = { a = 0 }, ["merges.txt"] = "#version: 0.2\n" }
  for _, class in ipairs { "CLIPTokenizer", "WhisperTokenizer", "HerbertTokenizer" } do
    pair["tokenizer_config.json"] = { tokenizer_class = class }
    refuses(class, pair)
  end
  pair["tokenizer_config.json"] = nil
  pair["added_tokens.json"] = { x = "7" }
  refuses("the id of an added token", pair)
end

function T.test_words_without_basic_tokenization_are_what_spaces_part()
  write { ["vocab.txt"] = "[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nking\n##,\nKing\n",
    ["tokenizer_config.json"] = { tokenizer_class = "BertTokenizer", do_basic_tokenize = false } }
  local tok = assert(peri.tokenizer.load(dir))
  lu.assertEquals(tok:encode "king, King KING [MASK]", { 2, 5, 6, 7, 1, 4, 3 })
end

return T
