-- Models of some of the layers of another, of every architecture; and tokens that are hidden to be guessed.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local models = peri.models

TestDepth = {}

-- fn(name, model) for every tiny model with one stack of layers.
local function each_model(fn)
  for _, name in ipairs(assert(peri.files.list "tests/data/hf_tiny")) do
    local folder = "tests/data/hf_tiny/" .. name
    if peri.files.exists(folder .. "/config.json") then
      local model = assert(models.load(folder))
      if model.kind ~= "encoder-decoder" then fn(name, model) end
    end
  end
end

local function out(model, ids)
  local hidden = model:forward(ids)
  return (model.transform or model.head) and model:logits(hidden) or hidden
end

local function copies_of(layers, keep)
  local list = {}
  for i, n in ipairs(keep) do list[i] = layers[n] end
  return list
end

local function same(name, a, b) lu.assertEquals(a:sub(b):abs():max():item(), 0, name) end

function TestDepth.test_a_model_of_some_layers_is_the_whole_one_without_the_others_in_every_architecture()
  local ids, n = peri.randint(3, 30, { 2, 6 }), 0
  each_model(function (name, model)
    local most = model.settings.layers
    for _, keep in ipairs { { 1 }, { most }, table.move({ 1, 2, 3, 4 }, 1, most, 1, {}) } do
      if not (name:find "deepseek" and keep[1] > 1) then -- its blocks ask for their place in the stack
        local made = models.with_layers(model, { layers = keep })
        lu.assertEquals(made.settings.layers, #keep, name)
        local whole = model:copy()
        whole.layers = copies_of(whole.layers, keep)
        same(name, out(made, ids), out(whole, ids))
        local folder = scratch.folder() .. "/m"
        assert(made:save(folder))
        local again = assert(models.load(folder))
        same(name .. " saved", out(again, ids), out(made, ids))
        peri.files.remove_tree(folder)
        n = n + 1
      end
    end
  end)
  lu.assertTrue(n > 20)
end

-- Its blocks are hooked as those of the whole one are, in every architecture.
function TestDepth.test_a_model_of_one_layer_learns_the_last_hidden_states_of_the_whole_one()
  local ids = peri.randint(3, 30, { 2, 6 })
  each_model(function (name, model)
    local student = models.with_layers(model, { layers = { 1 } }):unfreeze()
    local hints <close> = peri.loss.Hints(student, model, { example = ids, kind = "cosine",
      pairs = { { "layers.0", ("layers.%d"):format(model.settings.layers - 1) } } })
    lu.assertEquals(#hints:parameters(), 0, name)
    local opt, first, last = peri.optim.SGD(student, { lr = 0.02 }), nil, nil
    for _ = 1, 5 do
      peri.no_grad(model, ids)
      student(ids)
      local value = hints:loss()
      first, last = first or value:item(), value:item()
      value:backward()
      opt:step { clip = 1 }:zero_grad()
    end
    lu.assertTrue(last < first, ("%s: %g, then %g"):format(name, first, last))
  end)
end

function TestDepth.test_every_second_layer_stays_where_none_are_named_and_weights_are_copies()
  local config = { model_type = "bert", vocab_size = 20, hidden_size = 8, intermediate_size = 16, num_hidden_layers = 5,
    num_attention_heads = 2, max_position_embeddings = 12, type_vocab_size = 2, architectures = { "BertForMaskedLM" } }
  local model = models.bert.new(config)
  local made = models.with_layers(model)
  lu.assertEquals(#made.layers, 3)
  lu.assertEquals(made.config.num_hidden_layers, 3)
  lu.assertEquals(model.config.num_hidden_layers, 5)
  same("third", made.layers[2].attention.qkv.weight, model.layers[3].attention.qkv.weight)
  local ids = peri.randint(0, 20, { 2, 6 })
  local before = out(model:eval(), ids):detach()
  local opt = peri.optim.SGD(made, { lr = 1 })
  out(made:eval(), ids):square():mean():backward()
  opt:step()
  same("the whole one", out(model, ids), before)
end

-- x = (word + place) + type of the whole one, word + (place + type) of this one: two roundings.
function TestDepth.test_a_distilbert_of_all_layers_says_what_its_bert_says()
  for _, name in ipairs { "bert", "bert_mlm" } do
    local model, ids = assert(models.load("tests/data/hf_tiny/" .. name)), peri.randint(3, 30, { 2, 6 })
    local all = {}
    for n = 1, model.settings.layers do all[n] = n end
    local made = models.with_layers(model, { layers = all, as = "distilbert" })
    lu.assertEquals(made.__name, "distilbert")
    lu.assertTrue(out(made, ids):sub(out(model, ids)):abs():max():item() < 1e-5, name)
    local folder = scratch.folder() .. "/m"
    assert(made:save(folder))
    same(name, out(assert(models.load(folder)), ids), out(made, ids))
    peri.files.remove_tree(folder)
  end
end

function TestDepth.test_quantised_weights_are_those_of_the_whole_one()
  local model = assert(models.load("tests/data/hf_tiny/llama", { dtype = "q8_0" }))
  local made = models.with_layers(model, { layers = { 2 } })
  local ids = peri.randint(3, 30, { 1, 6 })
  local whole = model:copy()
  whole.layers = { whole.layers[2] }
  same("q8_0", out(made, ids), out(whole, ids))
end

function TestDepth.test_what_cannot_be_is_refused()
  local llama = assert(models.load "tests/data/hf_tiny/llama")
  local function fails(message, model, o) lu.assertErrorMsgContains(message, models.with_layers, model, o) end
  fails("layers[2] is 1, expected an integer from 3 to 3", llama, { layers = { 2, 1 } })
  fails("layers[1] is 0, expected an integer from 1 to 3", llama, { layers = { 0 } })
  fails("layers[1] is 1.5", llama, { layers = { 1.5 } })
  fails("layers is empty", llama, { layers = {} })
  fails("layers has a key last, expected a list of numbers", llama, { layers = { 1, last = 2 } })
  fails("as = \"distilbert\" is of a BERT, the model is llama", llama, { as = "distilbert" })
  fails("t5 has no single stack of layers", assert(models.load "tests/data/hf_tiny/t5"))
  llama:replace("layers.1", peri.nn.Identity())
  fails("there is no layers.1.norm1.weight: what was there was replaced", llama, { layers = { 2 } })
end

-- ---- tokens to be guessed ----

function TestDepth.test_hidden_tokens_have_the_shares_that_were_asked_for_and_labels_say_what_they_were()
  peri.seed(1)
  local ids = peri.randint(5, 1000, { 200, 100 })
  ids:narrow(2, 1, 1):fill_(2)
  for _, o in ipairs { {}, { rate = 0.4, random = 0.3, keep = 0.2 }, { rate = 1, random = 0, keep = 0 } } do
    local rate, random, keep = o.rate or 0.15, o.random or 0.1, o.keep or 0.1
    o.mask, o.vocab, o.special = 4, 1000, { 0, 1, 2 }
    local hidden, labels = peri.text.mask_tokens(ids, o)
    local chosen = labels:ne(-100)
    local n = chosen:sum():item()
    local function share(t) return t:logical_and(chosen):to("f32"):sum():item() / n end
    lu.assertAlmostEquals(n / (200 * 99), rate, 0.02)
    lu.assertAlmostEquals(share(hidden:eq(4)), 1 - random - keep, 0.03)
    lu.assertAlmostEquals(share(hidden:eq(ids)), keep, 0.03)
    lu.assertEquals(labels:masked_fill(chosen:logical_not(), 0):sub(ids:masked_fill(chosen:logical_not(), 0)):abs():sum():item(), 0)
    lu.assertEquals(hidden:sub(ids):masked_fill(chosen, 0):abs():sum():item(), 0)
    lu.assertEquals(labels:narrow(2, 1, 1):ne(-100):sum():item(), 0) -- a special id
  end
end

function TestDepth.test_at_least_one_token_is_hidden_and_padding_never_is()
  peri.seed(1)
  local batch = peri.batch.pad({ { 5 }, { 6, 7, 8 } }, { pad = 0, side = "right" })
  for _ = 1, 20 do
    local hidden, labels = peri.text.mask_tokens(batch, { mask = 4, random = 0, rate = 1e-9 })
    lu.assertEquals(labels:ne(-100):sum():item(), 1)
    lu.assertEquals(hidden:masked_fill(batch.mask, 0):abs():sum():item(), 0)
    lu.assertEquals(labels:masked_fill(batch.mask, -100):ne(-100):sum():item(), 0)
  end
  local fails = function (message, ids, o) lu.assertErrorMsgContains(message, peri.text.mask_tokens, ids, o) end
  fails("there is no token that could be guessed", peri.tensor({ { 1, 2 } }, "i64"), { mask = 4, random = 0, special = { 1, 2 } })
  fails("random is 0.1 and there is no vocab to draw from", batch, { mask = 4 })
  fails("random 0.6 and keep 0.6 are more than 1 together", batch, { mask = 4, vocab = 9, random = 0.6, keep = 0.6 })
  fails("ids is f32 of shape (2, 2), expected i64 (B, T)", peri.ones { 2, 2 }, { mask = 4, random = 0 })
end

os.exit(lu.LuaUnit.run())
