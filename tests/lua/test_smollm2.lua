-- A real instruction-tuned model, SmolLM2-135M-Instruct, from its Q4_1 GGUF file: what transformers and
-- llama.cpp make of it in f32. Two windows of the text are scored; with PERILUNE_FULL set, all 38.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local tokenizer = require "perilune.text.tokenizer"
local shared = require "shared"

local file, loaded = "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", nil

local function load()
  local path = shared.need(file)
  local vectors = assert(peri.json.decode(assert(peri.files.read(shared.need "vectors/smollm2.json"))))
  loaded = loaded or { model = assert(models.load(path)), tok = assert(tokenizer.load(path)) }
  return loaded.model, loaded.tok, vectors
end

TestSmollm2 = {}

function TestSmollm2.test_loading_takes_no_more_memory_than_the_weights()
  local path = shared.need(file)
  loaded = nil
  collectgarbage()
  collectgarbage()
  peri.reset_peak()
  local before = peri.memory().live
  local model = assert(models.load(path))
  local bytes = 0
  for _, t in pairs(model:state_dict()) do bytes = bytes + 4 * t:numel() end
  lu.assertEquals(model:num_parameters(), 134515008)
  lu.assertTrue(peri.memory().peak - before < 1.1 * bytes, ("%d bytes for %d"):format(peri.memory().peak - before, bytes))
end

function TestSmollm2.test_sizes()
  local model, _, v = load()
  local s = model.settings
  lu.assertEquals({ s.layers, s.dim, s.heads, s.kv_heads, s.ff, s.vocab, s.tied },
    { v.shape.n_layer, v.shape.n_embd, v.shape.n_head, v.shape.n_kv_head, v.shape.n_ff, v.shape.vocab, v.shape.tied })
end

function TestSmollm2.test_encodings()
  local _, tok, v = load()
  for _, case in ipairs(v.encode) do
    lu.assertEquals(tok:encode(case.text, { add_special = false }), case.ids, case.text)
  end
end

function TestSmollm2.test_likeliest_first_tokens()
  local model, _, v = load()
  local _ <close> = peri.no_grad()
  for _, chat in ipairs(v.chat) do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local hidden = model:forward(peri.tensor({ chat.prompt_ids }, "i64"))
    local logp, ids = model:logits(hidden:select(2, -1)):log_softmax(-1):topk(8, -1)
    lu.assertEquals(ids:tolist()[1], chat.top8_ids)
    for k, want in ipairs(chat.top8_logprobs) do lu.assertAlmostEquals(logp:at(1, k), want, 1e-3) end
  end
end

function TestSmollm2.test_greedy_answers()
  local model, tok, v = load()
  for i, chat in ipairs(v.chat) do
    if i <= 2 or os.getenv "PERILUNE_FULL" then
      lu.assertEquals(tok:encode(chat.prompt), chat.prompt_ids)
      local out = model:generate(peri.tensor({ chat.prompt_ids }, "i64"),
        { max_new_tokens = #chat.greedy_ids, greedy = true })
      lu.assertEquals(out.tokens:tolist()[1], chat.greedy_ids)
      lu.assertEquals((tok:decode(chat.greedy_ids, { skip_special = false })), chat.greedy_text)
    end
  end
end

-- Mean negative log-likelihood of tokens 2 .. of each window of 512.
function TestSmollm2.test_likelihood_of_text()
  local model, tok, v = load()
  local want = v.tinyshakespeare_first_64KiB
  local ids = tok:encode(assert(peri.files.read(shared.need "data/text/tinyshakespeare.txt")):sub(1, 65536),
    { add_special = false })
  lu.assertEquals(#ids, want.tokens)
  lu.assertEquals(table.move(ids, 1, #want.first_ids, 1, {}), want.first_ids)
  local _ <close> = peri.no_grad()
  local total, windows = 0, os.getenv "PERILUNE_FULL" and want.windows or 2
  for w = 1, windows do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local window = peri.tensor({ table.move(ids, (w - 1) * want.window + 1, w * want.window, 1, {}) }, "i64")
    local nll = -model:token_logprobs(window, 2):mean():item()
    lu.assertAlmostEquals(nll, want.nll_of_each_window[w], 1e-4 * nll)
    total = total + nll
  end
  if windows == want.windows then lu.assertAlmostEquals(total / windows, want.mean_nll, 1e-4 * want.mean_nll) end
end

-- The weights as they are in the file, packed: nothing is unpacked as a whole.
function TestSmollm2.test_the_files_own_weights_answer_alike()
  local path = shared.need(file)
  local _, _, v = load()
  local model = assert(models.load(path, { dtype = "file" }))
  lu.assertEquals(model.layers[1].ff.down.weight.dtype, "q4_1")
  local chat = v.chat[1]
  local out = model:generate(peri.tensor({ chat.prompt_ids }, "i64"), { max_new_tokens = #chat.greedy_ids, greedy = true })
  lu.assertEquals(out.tokens:tolist()[1], chat.greedy_ids)
end

function TestSmollm2.test_zz_let_go() -- of the weights, for the count of live bytes
  loaded = nil
end

os.exit(lu.LuaUnit.run())
