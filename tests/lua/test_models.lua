-- Every architecture against what transformers stored (tests/data/hf_tiny): outputs, loss, every
-- parameter gradient, greedy continuations; saving and loading; what loading promises.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local scratch = require "scratch"
local tiny = require "tiny"

local folder, load, relative = tiny.folder, tiny.load, tiny.relative

local function causal_loss(logits, ids)
  local time = ids:size(2)
  return logits:narrow(2, 1, time - 1):cross_entropy(ids:narrow(2, 2, time - 1))
end

-- What each kind stored: io -> output, its name in io, and the loss of it.
local kinds = {}
function kinds.causal(model, io)
  local logits = model:logits(model:forward(io.input_ids))
  return logits, io.logits, causal_loss(logits, io.input_ids)
end
function kinds.encoder(model, io)
  local hidden = model:forward(io.input_ids, { mask = io.attention_mask })
  return hidden, io.last_hidden_state, hidden:square():mean()
end
function kinds.masked(model, io)
  local logits = model:logits(model:forward(io.input_ids, { mask = io.attention_mask }))
  return logits, io.logits, logits:cross_entropy(io.input_ids)
end
function kinds.seq2seq(model, io)
  local logits = model:logits(model:forward(io.input_ids, { mask = io.attention_mask, labels = io.labels }))
  return logits, io.logits, logits:cross_entropy(io.labels)
end

local all = {
  llama = "causal", llama31_rope = "causal", qwen2 = "causal", qwen3 = "causal", mistral = "causal", gpt2 = "causal",
  deepseek_v3 = "causal", gemma2 = "causal", bert = "encoder", bert_mlm = "masked", distilbert = "encoder",
  t5 = "seq2seq", t5_gated = "seq2seq",
}

-- A published gradient of all experts together as theirs: (E, 2 F, D) or (E, D, F). Experts that no
-- token went to have none.
local function expert_gradient(got, name, stored)
  local layer, which = name:match "^(.*%.experts%.)([a-z_]+)$"
  if not layer then return got[name] end
  local list = {}
  for e = 1, stored:size(1) do
    local at = layer .. (e - 1) .. "."
    if not got[at .. "down_proj.weight"] then list[e] = peri.zeros_like(stored:select(1, e))
    elseif which == "down_proj" then list[e] = got[at .. "down_proj.weight"]
    else list[e] = peri.cat({ got[at .. "gate_proj.weight"], got[at .. "up_proj.weight"] }, 1) end
  end
  return peri.stack(list, 1)
end

TestModels = {}

local function check_gradients(model, name)
  local want = assert(peri.safetensors.load(folder .. name .. "/grads.safetensors"))
  local got, n, most = model:gradients(), 0, 0
  for _, g in pairs(want) do most = math.max(most, g:abs():max():item()) end
  for stored, g in pairs(want) do
    local key = stored:gsub("^grad%.", "")
    local mine = expert_gradient(got, key, g)
    lu.assertNotNil(mine, key)
    -- a key's bias shifts all scores of a query alike: what is stored for it is rounding of zero
    local zero = math.max(g:abs():max():item(), mine:abs():max():item()) < 1e-6 * most
    lu.assertTrue(zero or relative(mine, g) < 1e-4, ("%s %s: %g"):format(name, key, relative(mine, g)))
    n = n + 1
  end
  lu.assertTrue(n > 20)
end

for name, kind in pairs(all) do
  TestModels["test_outputs_of_" .. name] = function ()
    local model, io = load(name)
    local got, want = peri.no_grad(function () return kinds[kind](model, io) end)
    -- 1e-5: both sides are f32 sums of at most 64 terms in another order
    lu.assertTrue(relative(got, want) < 1e-5, ("%s: %g"):format(name, relative(got, want)))
  end

  TestModels["test_loss_and_gradients_of_" .. name] = function ()
    local model, io = load(name)
    local _, _, loss = kinds[kind](model, io)
    lu.assertAlmostEquals(loss:item(), io.loss:item(), 1e-5)
    loss:backward()
    check_gradients(model, name)
  end

  TestModels["test_checkpointing_changes_no_gradient_of_" .. name] = function ()
    local plain, io = load(name)
    local model = load(name):checkpointing(true)
    for _, m in ipairs { plain, model } do
      local _, _, loss = kinds[kind](m, io)
      loss:backward()
    end
    local got = model:gradients()
    for key, g in pairs(plain:gradients()) do lu.assertEquals(got[key]:bytes(), g:bytes(), key) end
  end

  TestModels["test_saved_" .. name .. "_reads_back_bit_equal"] = function ()
    local model = load(name)
    tiny.reload(model)
    local kept = model:state_dict()
    local stored = peri.safetensors.load(folder .. name .. "/model.safetensors")
    for key, t in pairs(stored) do lu.assertEquals(kept[key] and kept[key]:bytes(), t:bytes(), key) end
  end

  TestModels["test_copy_of_" .. name .. "_is_its_own"] = function ()
    local model, io = load(name)
    local copy = model:copy()
    local _ <close> = peri.no_grad()
    local before = kinds[kind](copy, io):bytes()
    lu.assertEquals(kinds[kind](model, io):bytes(), before)
    for _, p in ipairs(model:parameters()) do p:mul_(0.5) end
    lu.assertEquals(kinds[kind](copy, io):bytes(), before)
    for _, p in ipairs(copy:parameters()) do lu.assertFalse(p.requires_grad) end
  end

  if kind == "causal" then
    TestModels["test_greedy_continuation_of_" .. name] = function ()
      local model, io = load(name)
      local want = io.greedy_from_first5
      local prompt = io.input_ids:narrow(1, 1, 1):narrow(2, 1, 5)
      local out = model:generate(prompt, { max_new_tokens = want:size(2) - 5, greedy = true })
      lu.assertEquals(peri.cat({ prompt, out.tokens }, 2):tolist(), want:tolist())
    end

    TestModels["test_decoding_is_training_of_" .. name] = function ()
      local model = load(name)
      peri.seed(4)
      local prompt = peri.randint(0, 61, { 3, 5 })
      local mask = peri.tensor { { true, true, true, true, true }, { false, false, true, true, true },
                                 { true, true, true, true, true } }
      local out = model:generate(prompt, { samples = 2, max_new_tokens = 7, prompt_mask = mask })
      local ids = peri.cat({ prompt:repeat_interleave(2, 1), out.tokens }, 2)
      local start = peri.tensor({ 0, 0, 2, 2, 0, 0 }, "i64")
      local logp = peri.no_grad(function () return (model:token_logprobs(ids, 6, { start = start })) end)
      if model.settings.logit_cap then lu.assertTrue(logp:sub(out.logprobs):abs():max():item() < 1e-6)
      else lu.assertEquals(logp:bytes(), out.logprobs:bytes()) end
    end

    TestModels["test_packed_rows_of_" .. name .. "_do_not_see_each_other"] = function ()
      local model, io = load(name)
      local a, b = io.input_ids:narrow(1, 1, 1):narrow(2, 1, 7), io.input_ids:narrow(1, 2, 1):narrow(2, 1, 5)
      local segments = peri.cat({ peri.zeros({ 1, 7 }, "i64"), peri.ones({ 1, 5 }, "i64") }, 2)
      local _ <close> = peri.no_grad()
      local packed = model:forward(peri.cat({ a, b }, 2), { segments = segments })
      lu.assertEquals(packed:narrow(2, 1, 7):bytes(), model:forward(a):bytes())
      lu.assertEquals(packed:narrow(2, 8, 5):bytes(), model:forward(b):bytes())
    end
  end
end

-- The weights of a folder under another config, against transformers.
local variants = assert(peri.safetensors.load(folder .. "hf_variants.safetensors"))
for name, v in pairs(assert(peri.json.decode(assert(peri.files.read(folder .. "hf_variants.json"))))) do
  TestModels["test_config_" .. name] = function ()
    local source = assert(models.open(folder .. v.folder))
    for key, value in pairs(v.config) do source.config[key] = value end
    local model = assert(models.from_source(source))
    local io = assert(peri.safetensors.load(folder .. v.folder .. "/io.safetensors"))
    local logits = peri.no_grad(function () return model:logits(model:forward(io.input_ids)) end)
    lu.assertTrue(relative(logits, variants[name]) < 1e-5, ("%s: %g"):format(name, relative(logits, variants[name])))
    local plain = load(v.folder)
    local other = peri.no_grad(function () return plain:logits(plain:forward(io.input_ids)) end)
    lu.assertTrue(relative(other, variants[name]) > 1e-4, "the config changes nothing")
  end
end

for _, name in ipairs { "t5", "t5_gated" } do
  TestModels["test_greedy_answers_of_" .. name] = function ()
    local model, io = load(name)
    local want = io.greedy or variants["t5 greedy"]
    for samples = 1, 2 do
      local out = model:generate(io.input_ids,
        { mask = io.attention_mask, max_new_tokens = want:size(2), greedy = true, samples = samples })
      lu.assertEquals(out.tokens:tolist(), want:repeat_interleave(samples, 1):tolist())
    end
  end
end

-- ---- dtypes of weights ------------------------------------------------------------------------

local function logits_of(model, io)
  local _ <close> = peri.no_grad()
  return model:logits(model:forward(io.input_ids))
end

for dtype, long in pairs { bf16 = "bfloat16", f16 = "float16" } do
  TestModels["test_weights_in_" .. dtype] = function ()
    local plain, io = load "llama"
    local model = assert(models.load(folder .. "llama", { dtype = dtype }))
    local layer = model.layers[2]
    lu.assertEquals({ layer.attention.qkv.weight.dtype, layer.norm1.weight.dtype, model.embed.weight.dtype }, { dtype, "f32", dtype })
    lu.assertTrue(relative(logits_of(model, io), logits_of(plain, io)) < 0.03)
    local ids = model:generate(io.input_ids:narrow(2, 1, 5), { max_new_tokens = 4, greedy = true }).tokens
    local logp, entropy = model:token_logprobs(peri.cat({ io.input_ids:narrow(2, 1, 5), ids }, 2), 6)
    lu.assertEquals({ logp.dtype, entropy.dtype, logp:isfinite():all():item() }, { "f32", "f32", true })
    local again = tiny.reload(model, { dtype = "file" })
    lu.assertEquals(again.config.dtype, long)
    lu.assertEquals(logits_of(again, io):bytes(), logits_of(model, io):bytes())
    for _, p in ipairs(again:parameters()) do lu.assertFalse(p.requires_grad) end
  end
end

function TestModels.test_quantised_weights_are_the_published_ones_quantised()
  local plain, io = load "llama"
  local model = assert(models.load(folder .. "llama", { dtype = "q8_0" }))
  lu.assertEquals({ model.layers[1].attention.qkv.weight.dtype, model.layers[1].ff.down.weight.dtype }, { "q8_0", "f16" })
  lu.assertTrue(relative(logits_of(model, io), logits_of(plain, io)) < 0.05)
  local got = model:state_dict()
  for name, t in pairs(plain:state_dict()) do
    if got[name].dtype == "q8_0" then
      lu.assertEquals(got[name]:to("f32"):bytes(), t:to("q8_0"):to("f32"):bytes(), name)
    end
  end
end

-- Every architecture computes with weights in few bits, packed or not.
for name, kind in pairs(all) do
  TestModels["test_other_dtypes_of_" .. name] = function ()
    local plain, io = load(name)
    local want = peri.no_grad(function () return (kinds[kind](plain, io)) end)
    for _, opts in ipairs { { dtype = "bf16" }, { dtype = "q8_0" }, { dtype = "q8_0", pack = true }, { dtype = "file", pack = true } } do
      local model = assert(models.load(folder .. name, opts))
      local got = peri.no_grad(function () return (kinds[kind](model, io)) end)
      lu.assertEquals(got.dtype, "f32")
      local off = got:sub(want):square():mean():sqrt():item() / want:std():item()
      lu.assertTrue(off < 0.05, ("%s in %s: %g"):format(name, opts.dtype, off))
      lu.assertEquals(peri.no_grad(function () return (kinds[kind](model:copy(), io)) end):bytes(), got:bytes())
    end
  end
end

-- A file may mix types within what we hold as one matrix.
function TestModels.test_parts_of_several_dtypes_stay_apart()
  local source = assert(models.open(folder .. "llama"))
  local io = assert(peri.safetensors.load(folder .. "llama/io.safetensors"))
  local mixed = setmetatable({ get = function (_, name)
    local t = source:get(name)
    return name:find "k_proj" and t:to("q8_0") or name:find "up_proj" and t:to("bf16") or t
  end }, { __index = source })
  local model = assert(models.from_source(mixed, { dtype = "file" }))
  local qkv = model.layers[1].attention.qkv
  lu.assertNil(qkv.weight)
  lu.assertEquals({ #qkv.weights, qkv.weights[2].dtype, qkv.weights[1].dtype }, { 3, "q8_0", "f32" })
  local cast = assert(models.from_source(mixed))
  lu.assertEquals(cast.layers[1].attention.qkv.weight.dtype, "f32")
  lu.assertTrue(relative(logits_of(model, io), logits_of(cast, io)) < 1e-2)
  lu.assertEquals(model:num_parameters(), cast:num_parameters())
  lu.assertEquals(#model:named_parameters(), #cast:named_parameters() + 3 * 3) -- q, k, v; gate, up
  local copy = model:copy()
  lu.assertEquals(logits_of(copy, io):bytes(), logits_of(model, io):bytes())
end

function TestModels.test_packed_weights_compute_the_same()
  local plain, io = load "llama"
  local model = assert(models.load(folder .. "llama", { pack = true }))
  lu.assertTrue(relative(logits_of(model, io), logits_of(plain, io)) < 1e-5)
  local out = model:generate(io.input_ids:narrow(2, 1, 5), { max_new_tokens = 4, greedy = true })
  lu.assertEquals(out.tokens:tolist(),
    plain:generate(io.input_ids:narrow(2, 1, 5), { max_new_tokens = 4, greedy = true }).tokens:tolist())
  lu.assertErrorMsgContains("packed weights cannot be saved", model.save, model, "/tmp/unused")
end

-- Weights are cast one at a time from the mapped file.
function TestModels.test_loading_holds_one_tensor_besides_what_is_kept()
  local model = models.llama.new { model_type = "llama", vocab_size = 200, hidden_size = 64, intermediate_size = 96,
    num_hidden_layers = 24, num_attention_heads = 4 }
  local path = scratch.path()
  assert(model:save(path))
  for _, dtype in ipairs { "f32", "bf16", "q8_0" } do
    collectgarbage()
    collectgarbage()
    peri.reset_peak()
    local before = peri.memory().live
    local loaded = assert(models.load(path, { dtype = dtype }))
    collectgarbage()
    collectgarbage()
    local now = peri.memory()
    lu.assertTrue(now.peak - before < 1.1 * (now.live - before),
      ("%s: %d for %d bytes"):format(dtype, now.peak - before, now.live - before))
    lu.assertNotNil(loaded)
  end
  peri.files.remove_tree(path)
end

-- ---- what training asks for --------------------------------------------------------------------

function TestModels.test_dropout_of_the_config_is_on_in_training_only()
  for name, keys in pairs { gpt2 = { "embd_pdrop", "attn_pdrop", "resid_pdrop" }, t5 = { "dropout_rate" },
                            llama = { "attention_dropout" }, bert = { "attention_probs_dropout_prob", "hidden_dropout_prob" } } do
    for _, key in ipairs(keys) do
      local source = assert(models.open(folder .. name))
      source.config[key] = 0.3
      local model = assert(models.from_source(source))
      local io = assert(peri.safetensors.load(folder .. name .. "/io.safetensors"))
      local function run()
        local out, _, loss = kinds[all[name]](model, io)
        return out, loss
      end
      local plain = run():bytes()
      lu.assertEquals(run():bytes(), plain)
      model:train()
      peri.seed(1)
      local out, loss = run()
      lu.assertNotEquals(out:bytes(), plain, key)
      lu.assertTrue(out:isfinite():all():item())
      loss:backward()
      peri.seed(1)
      lu.assertEquals(run():bytes(), out:bytes())
      lu.assertEquals(model:eval() and run():bytes(), plain)
    end
  end
end

-- The probabilities that dropout is applied to are those of attention.
function TestModels.test_attention_with_dropout_is_attention_where_nothing_drops()
  local context = require "perilune.nn.context"
  peri.seed(3)
  local q, k, v = peri.randn { 2, 5, 4, 8 }, peri.randn { 2, 7, 2, 8 }, peri.randn { 2, 7, 2, 8 }
  local start = peri.tensor({ 0, 2 }, "i64")
  local mask = peri.randn { 1, 4, 5, 7 }
  local how = { causal = true, scale = 0.3, window = 4, softcap = 1.5, dropout = 0 }
  local want = context.attention(q, k, v, mask, start, how)
  how.dropout = 1e-9
  lu.assertTrue(relative(context.attention(q, k, v, mask, start, how), want) < 1e-5)
  lu.assertTrue(relative(context.attention(q, k, v, mask:gt(-1), start, how),
    peri.attention(q, k, v, mask:gt(-1), start, { causal = true, scale = 0.3, window = 4, softcap = 1.5 })) < 1e-5)
end

-- Segments may be one row for all.
function TestModels.test_segments_of_one_row_are_those_of_every_row()
  for _, name in ipairs { "llama", "gpt2", "deepseek_v3" } do
    local model = load(name)
    local ids = peri.randint(1, 50, { 3, 6 })
    local one = peri.tensor({ 0, 0, 1, 1, 1, 1 }, "i64")
    local _ <close> = peri.no_grad()
    local want = model:forward(ids, { segments = one:unsqueeze(1):expand({ 3, 6 }):contiguous() }):bytes()
    lu.assertEquals(model:forward(ids, { segments = one }):bytes(), want)
    lu.assertEquals(model:forward(ids, { segments = one:unsqueeze(1) }):bytes(), want)
  end
end

-- The leaves of a checkpoint are found while its first graph is garbage already.
function TestModels.test_collections_at_any_time_lose_no_gradient_of_a_checkpoint()
  collectgarbage("incremental", 100, 1000)
  local w, x = peri.randn({ 4, 4 }):requires_grad_(), peri.randn({ 2, 4 }):requires_grad_()
  local garbage = 0
  local function f(a)
    local u = a:matmul(w):tanh()
    local _ = a:mul(w:sum()) -- what no result depends on
    for _ = 1, garbage do _ = { {} } end
    return u:mul(2), u:add(1)
  end
  local function gradients(...)
    local a, b = ...
    a:sum():add(b:square():sum()):backward()
    local gw, gx = w.grad, x.grad
    w:zero_grad()
    x:zero_grad()
    return gw:bytes() .. gx:bytes()
  end
  local want = gradients(f(x))
  for i = 1, 600 do
    garbage = i * 7 % 40
    lu.assertEquals(gradients(peri.checkpoint(f, x)), want)
  end
  collectgarbage("incremental", 200, 100)
end

function TestModels.test_parameters_that_are_not_trained_are_none()
  local model = load "deepseek_v3"
  for _, pair in ipairs(model:named_parameters()) do lu.assertNil(pair[1]:find "gate_bias") end
  lu.assertNotNil(model:state_dict()["model.layers.1.mlp.gate.e_score_correction_bias"])
end

-- ---- what is refused ---------------------------------------------------------------------------

local function refused(change, ...)
  local source = assert(models.open(folder .. "llama"))
  change(source)
  local model, message = models.from_source(source)
  lu.assertNil(model)
  for _, part in ipairs { ... } do lu.assertStrContains(message, part) end
end

function TestModels.test_what_does_not_fit_is_named()
  refused(function (s) s.config.model_type = "mamba" end, "mamba", "gemma2", "llama")
  refused(function (s) s.config.model_type = nil end, "nil")
  refused(function (s) s.config.hidden_size = nil end, "hidden_size")
  refused(function (s) s.config.hidden_act = "gelu" end, "gelu")
  refused(function (s) s.config.hidden_size = -1 end, "hidden_size is -1, expected an integer from 1 to 2^24")
  refused(function (s) s.config.hidden_size = "many" end, "hidden_size is many")
  refused(function (s) s.config.num_hidden_layers = 1000000 end, "num_hidden_layers is 1000000, and there are 30 tensors")
  refused(function (s) s.config.num_key_value_heads = 3 end, "4 heads do not divide into 3")
  refused(function (s) s.config.head_dim = 1 << 20 end, "rotary")
  refused(function (s) s.config.vocab_size = 60 end, "model.embed_tokens.weight has shape (61, 32), expected (60, 32)")
  refused(function (s) s.config.num_hidden_layers = 4 end, "model.layers.3.mlp.down_proj.weight is missing")
  refused(function (s) s.config.num_hidden_layers = 2 end, "model.layers.2.mlp.down_proj.weight is unexpected")
  refused(function (s) s.config.rope_parameters = { rope_type = "longrope", factor = 2 } end, "longrope")
  refused(function (s) s.config.rope_parameters = { rope_type = "yarn" } end, "factor")
end

function TestModels.test_a_path_that_holds_no_model_is_no_error()
  for path, part in pairs { ["/no/such/model"] = "/no/such/model", ["tests/data"] = "config.json", [arg[0]] = "neither" } do
    local model, message = models.load(path)
    lu.assertNil(model)
    lu.assertStrContains(message, part)
  end
  local model, message = models.gpt2.load(folder .. "llama")
  lu.assertNil(model)
  lu.assertStrContains(message, "gpt2")
  lu.assertErrorMsgContains("dtpye", models.load, folder .. "llama", { dtpye = "f32" })
  lu.assertErrorMsgContains("q9_0", models.load, folder .. "llama", { dtype = "q9_0" })
end

os.exit(lu.LuaUnit.run())
