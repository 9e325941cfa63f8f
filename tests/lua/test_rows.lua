-- Training rows against the ids and masks of TRL's own trainers (tests/reference/rows.py), with two real
-- vocabularies.
local lu = require "luaunit"
local peri = require "perilune"
local rows = require "perilune.data.rows"
local shared = require "shared"

local cases = peri.json.decode(assert(peri.files.read "tests/data/rows.json"))

local function check(tok, list)
  for i, c in ipairs(list) do
    local e = rows.encode(tok, c.row, { assistant_only = false })
    lu.assertEquals(e.kind, c.kind)
    for key, want in pairs(c.want) do
      if key ~= "assistant" then lu.assertEquals(e[key], want, ("row %d, %s"):format(i, key)) end
    end
  end
  lu.assertTrue(#list >= 9)
end

TestRowsOfTRL = {}

function TestRowsOfTRL.test_smollm2()
  check(assert(peri.tokenizer.load(shared.need "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf")), cases.smollm2)
end

-- The template has no generation marks. TRL knows it and puts them in by hand, around the line break behind
-- the role and the one behind the end mark too, which a model never writes: here neither is learned.
function TestRowsOfTRL.test_qwen3()
  local tok = assert(peri.tokenizer.load(shared.need "data/tokenizers/qwen3"))
  tok.chat_template = assert(peri.files.read "tests/data/chat_templates/Qwen-Qwen2.5-7B-Instruct.jinja")
  check(tok, cases.qwen3)
  local newline, marked = tok:id "\u{10A}", 0
  for _, c in ipairs(cases.qwen3) do
    local e = c.want.assistant and rows.encode(tok, c.row)
    for k, on in ipairs(e and c.want.assistant or {}) do
      local line_break = e.ids[k] == newline and (on == 0 or e.mask[k - 1] == 0 or e.ids[k - 1] == tok:id "<|im_end|>")
      if not line_break then lu.assertEquals(e.mask[k], on, k) end
      marked = marked + e.mask[k]
    end
  end
  lu.assertTrue(marked > 5)
end

os.exit(lu.LuaUnit.run())
