-- JSON of others as Python writes it (NaN, Infinity, a byte-order mark): read wherever files of others are, and
-- a bad line of a JSONL file is named, or left out and counted.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"

local BOM = "\xEF\xBB\xBF"

-- A copy of a folder with one file changed.
local function with(source, name, change, check)
  local folder = os.tmpname()
  os.remove(folder)
  assert(peri.files.make_folder(folder))
  for line in io.popen(("ls %s"):format(source)):lines() do
    local text = assert(peri.files.read(source .. "/" .. line))
    if line == name then text = change(text) end
    assert(peri.files.write(folder .. "/" .. line, text))
  end
  local ok, message = pcall(check, folder)
  peri.files.remove_tree(folder)
  if not ok then error(message, 0) end
end

local CHANGES = {
  function (text) return BOM .. text end,
  function (text) return (text:gsub("^%s*{", '{"unread": [NaN, Infinity, -Infinity], ', 1)) end,
  function (text) return BOM .. text:gsub("^%s*{", '{"unread": {"a": NaN}, ', 1) end,
}

TestForeign = {}

function TestForeign.test_files_beside_models()
  for _, change in ipairs(CHANGES) do
    with("tests/data/hf_tiny/llama", "config.json", change, function (folder) assert(models.load(folder)) end)
    with("tests/data/hf_tiny/llama", "generation_config.json", change, function (folder) assert(models.load(folder)) end)
    -- an adapter may hold no key that is not known: one that is, and that nothing is read from
    local known = function (text) return (change(text):gsub("unread", "runtime_config", 1)) end
    with("tests/data/peft_lora", "adapter_config.json", known, function (folder)
      local base = assert(models.load "tests/data/hf_tiny/llama")
      assert(peri.peft.load(base, folder))
    end)
  end
end

function TestForeign.test_files_of_tokenizers()
  local source = os.tmpname()
  os.remove(source)
  local tok = peri.tokenizer.train_bpe({ "some text to learn from" }, { vocab_size = 280 })
  tok.chat_template = "{{ messages[0].content }}"
  assert(tok:save(source))
  local ids = tok:encode "some text"
  for _, name in ipairs { "tokenizer_config.json", "tokenizer.json", "special_tokens_map.json" } do
    for i, change in ipairs(CHANGES) do
      if name ~= "tokenizer.json" or i == 1 then -- there every field has a meaning
        with(source, name, change, function (folder)
          local got = assert(peri.tokenizer.load(folder))
          lu.assertEquals(got:encode "some text", ids)
          lu.assertEquals(got.chat_template, tok.chat_template)
        end)
      end
    end
  end
  peri.files.remove_tree(source)
end

TestLines = {}

local function file_of(text, check)
  local path = os.tmpname()
  assert(peri.files.write(path, text))
  local ok, message = pcall(check, path)
  os.remove(path)
  if not ok then error(message, 0) end
end

function TestLines.test_rows_as_Python_writes_them()
  file_of(BOM .. '{"a":1,"b":NaN}\r\n{"a":-Infinity}\r\n', function (path)
    lu.assertEquals(#peri.data.jsonl(path):collect(), 2)
    lu.assertErrorMsgContains(":1: json.decode: line 1", function () peri.data.jsonl(path, { strict = true }):collect() end)
    local stream = peri.data.jsonl(path, { strict = true, bad = "skip" })
    lu.assertEquals(#stream:collect(), 0)
    lu.assertEquals((stream:dropped()), 2)
  end)
end

function TestLines.test_a_bad_row_is_named_or_counted()
  file_of('{"z":1,"a":2}\n{"a":\n\n{"a":3}\n', function (path)
    lu.assertErrorMsgContains(path .. ":2: ", function () peri.data.jsonl(path):collect() end)
    local stream = peri.data.jsonl(path, { bad = "skip" })
    local rows = stream:collect()
    lu.assertEquals({ #rows, (stream:dropped()) }, { 2, 1 })
    lu.assertEquals(peri.json.encode(rows[1]), '{"z":1,"a":2}') -- in the order of the file
  end)
end

os.exit(lu.LuaUnit.run())
