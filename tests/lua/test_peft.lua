-- Adapters: against outputs and gradients that PEFT made (tests/reference/peft_vectors.py), and what
-- must hold of any of them.
local lu = require "luaunit"
local peri = require "perilune"
local models, peft, optim = require "perilune.models", require "perilune.peft", require "perilune.optim"
local nn = require "perilune.nn"

local BASE = "tests/data/hf_tiny/llama"

local function difference(a, b) return a:sub(b):abs():max():item() end

local function logits_of(model, ids)
  return peri.no_grad(function () return model:logits(model:forward(ids)) end)
end

local function loaded(kind)
  local model = assert(models.load(BASE))
  local adapter = assert(peft.load(model, "tests/data/peft_" .. kind))
  local io = assert(peri.safetensors.load(("tests/data/peft_%s/io.safetensors"):format(kind)))
  return model, adapter:eval(), io
end

local function input() return assert(peri.safetensors.load(BASE .. "/io.safetensors")).input_ids end

-- An adapter that does something: its parameters moved by normal noise.
local function moved(adapter, std)
  for _, p in ipairs(adapter:parameters()) do p:detach():add_(peri.randn_like(p):mul(std)) end
  return adapter
end

local function temporary(fn)
  local folder = os.tmpname()
  os.remove(folder)
  local ok, message = pcall(fn, folder)
  peri.files.remove_tree(folder)
  if not ok then error(message, 0) end
end

TestPEFT = {}

-- 1e-5 of logits around 1: both sides sum at most 48 f32 products, in another order.
for _, kind in ipairs { "lora", "prefix" } do
  TestPEFT["test_logits_and_gradients_equal_PEFTs_" .. kind] = function ()
    local model, adapter, io = loaded(kind)
    lu.assertTrue(difference(logits_of(model, io.input_ids), io.logits) < 1e-5)
    local logp = model:token_logprobs(io.input_ids, 2)
    local loss = logp:mean():neg()
    lu.assertAlmostEquals(loss:item(), io.loss:at(1), 1e-5)
    loss:backward()
    local seen, n = {}, 0
    for _, pair in ipairs(adapter:named_parameters()) do seen[pair[1]] = pair[2].grad end
    for name, want in pairs(io) do
      if name:find "^grad%." then
        local short = name:gsub("^grad%.base_model%.model%.", "")
        if kind == "prefix" then short = "prompt_encoder.embedding.weight" end
        local got = seen[short]
        lu.assertNotNil(got, name)
        local scale = want:abs():max():item()
        lu.assertTrue(difference(got, want) < 1e-4 * scale, ("%s: %g of %g"):format(name, difference(got, want), scale))
        n = n + 1
      end
    end
    lu.assertEquals(n, #adapter:parameters())
  end
end

function TestPEFT.test_a_new_adapter_changes_nothing()
  local ids = input()
  local model = assert(models.load(BASE))
  local before = logits_of(model, ids)
  for _, kind in ipairs { "lora", "bottleneck" } do
    local adapter = peft[kind](model)
    lu.assertEquals(difference(logits_of(model, ids), before), 0, kind)
    adapter:remove()
  end
end

function TestPEFT.test_only_the_adapter_gets_gradients()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    local model = assert(models.load(BASE))
    local adapter = moved(peft[kind](model), 0.1)
    model:token_logprobs(input(), 2):sum():backward()
    for _, p in ipairs(model:parameters()) do lu.assertNil(p.grad) end
    for i, p in ipairs(adapter:parameters()) do lu.assertNotNil(p.grad, ("%s parameter %d"):format(kind, i)) end
  end
end

-- Three layers of 7 projections: r (in + out) for each.
function TestPEFT.test_lora_counts_r_times_in_plus_out()
  local model = assert(models.load(BASE))
  local want = 0
  for _, p in ipairs(model:projections()) do
    for _, part in ipairs(p.parts) do want = want + 5 * (part[2] + p.in_features) end
  end
  lu.assertEquals(peft.lora(model, { r = 5 }):num_parameters(), want)
end

-- 5e-6: the sum of one product more, rounded once.
function TestPEFT.test_merged_computes_the_same_and_comes_out_again()
  local ids = input()
  local model = assert(models.load(BASE))
  local before = logits_of(model, ids)
  local adapter = moved(peft.lora(model, { r = 4, alpha = 8 }), 0.1)
  local apart = logits_of(model, ids)
  lu.assertTrue(difference(apart, before) > 0.1)
  adapter:merge()
  lu.assertTrue(adapter:is_merged())
  lu.assertTrue(difference(logits_of(model, ids), apart) < 5e-6)
  lu.assertErrorMsgContains("merged already", function () adapter:merge() end)
  adapter:unmerge()
  lu.assertErrorMsgContains("is not merged", function () adapter:unmerge() end)
  lu.assertEquals(difference(logits_of(model, ids), apart), 0)
  adapter:remove()
  lu.assertEquals(difference(logits_of(model, ids), before), 0)
end

local function bits(model)
  local out = {}
  for name, t in pairs(model:state_dict()) do out[name] = t:clone() end
  return out
end

local function same_bits(model, want, what)
  for name, t in pairs(model:state_dict()) do lu.assertEquals(difference(t, want[name]), 0, what .. ": " .. name) end
end

-- What can happen to a LoRA while it is merged; the ones that the model follows, and the ones it refuses to.
local changes = {
  nothing = { function () end },
  loaded = { function (adapter)
    local state = {}
    for name, t in pairs(adapter:state_dict()) do state[name] = peri.randn_like(t):mul(0.2) end
    adapter:load_state_dict(state)
  end },
  scaled = { function (adapter) adapter:set_scale(0.25) end },
  scaled_to_nothing = { function (adapter) adapter:set_scale(0) end },
  saved = { function (adapter) temporary(function (folder) assert(adapter:save(folder)) end) end },
  turned = { function (adapter) adapter:train():eval() end },
  moved = { function (adapter) moved(adapter, 0.3) end, "was changed while it is merged" },
  stepped = { function (adapter)
    for _, p in ipairs(adapter:parameters()) do p.grad = peri.ones_like(p) end
    optim.SGD(adapter, { lr = 0.1 }):step():zero_grad()
  end, "was changed while it is merged" },
}

for _, name in ipairs { "llama", "gpt2", "bert", "t5", "deepseek_v3", "gemma2" } do
  TestPEFT["test_a_lora_changed_while_merged_gives_the_weights_back_" .. name] = function ()
    local folder = "tests/data/hf_tiny/" .. name
    local io = assert(peri.safetensors.load(folder .. "/io.safetensors"))
    local given = { mask = io.attention_mask, labels = io.labels }
    for what, change in pairs(changes) do
      peri.seed(7)
      local model = assert(models.load(folder))
      local function run()
        return peri.no_grad(function ()
          return model:forward(io.input_ids, (io.labels or not model.generate) and given or nil)
        end)
      end
      local before, plain = bits(model), run()
      local adapter = moved(peft.lora(model, { r = 3, alpha = 6 }), 0.1):eval()
      adapter:merge()
      change[1](adapter)
      if change[2] then lu.assertErrorMsgContains(change[2], run) end
      local merged = not change[2] and run()
      adapter:unmerge()
      same_bits(model, before, what)
      local apart = run()
      if merged then
        lu.assertTrue(difference(merged, apart) < 3e-5 * math.max(1, apart:abs():max():item()), what)
      end
      adapter:merge():unmerge()
      lu.assertEquals(difference(run(), apart), 0, what)
      adapter:remove()
      lu.assertEquals(difference(run(), plain), 0, what)
    end
  end
end

function TestPEFT.test_adapters_come_out_in_the_order_in_which_they_can()
  local model = assert(models.load(BASE))
  local before, ids = bits(model), input()
  local a, b = moved(peft.lora(model, { r = 2 }), 0.1), moved(peft.lora(model, { r = 3, targets = { "q_proj" } }), 0.1)
  local apart = logits_of(model, ids)
  a:merge()
  b:merge()
  lu.assertTrue(difference(logits_of(model, ids), apart) < 1e-5)
  for _, refused in ipairs { function () a:unmerge() end, function () a:set_scale(2) end,
    function () a:load_state_dict(a:state_dict()) end } do
    lu.assertErrorMsgContains("was merged into model.layers.0.self_attn.q_proj after this one", refused)
  end
  lu.assertEquals(a.scale, 1)
  b:unmerge()
  a:unmerge()
  same_bits(model, before, "both")
  a:merge()
  b:merge()
  b:remove() -- for good
  lu.assertErrorMsgContains("after this one", function () a:unmerge() end)
end

function TestPEFT.test_an_unmerge_that_would_undo_something_else_is_refused()
  local model = assert(models.load(BASE))
  local adapter = moved(peft.lora(model, { r = 2 }), 0.1):merge()
  model:projections()[1].weight:detach():mul_(0.5)
  local before = bits(model)
  lu.assertErrorMsgContains("was changed after the merge", function () adapter:unmerge() end)
  same_bits(model, before, "nothing changed")
  lu.assertTrue(adapter:is_merged())
  model = assert(models.load(BASE))
  adapter = moved(peft.lora(model, { r = 2 }), 0.1):merge { keep = false }
  lu.assertErrorMsgContains("merged for good", function () adapter:unmerge() end)
  lu.assertErrorMsgContains("merged for good", function () adapter:set_scale(2) end)
  lu.assertErrorMsgContains('did you mean "keep"', function () peft.lora(model):merge { kep = true } end)
  adapter:remove()
  lu.assertErrorMsgContains("taken off", function () adapter:unmerge() end)
end

function TestPEFT.test_kinds_that_are_no_products_say_that_they_cannot_be_merged()
  for _, kind in ipairs { "bottleneck", "prefix" } do
    local model = assert(models.load(BASE))
    local before = bits(model)
    local adapter = peft[kind](model)
    for _, call in ipairs { "merge", "unmerge" } do
      local ok, message = pcall(function () adapter[call](adapter) end)
      lu.assertFalse(ok)
      lu.assertStrContains(message, kind .. ": adapters of this kind cannot be merged")
      lu.assertStrContains(message, "test_peft.lua")
    end
    lu.assertFalse(adapter:is_merged())
    same_bits(model, before, kind)
  end
end

function TestPEFT.test_a_merged_model_is_saved_merged_and_the_adapter_as_it_is()
  local model, ids = assert(models.load(BASE)), input()
  local adapter = moved(peft.lora(model, { r = 2, alpha_pattern = { q_proj = 4 } }), 0.1)
  adapter:set_scale(0.5)
  local want = logits_of(model, ids)
  adapter:merge()
  temporary(function (folder)
    assert(model:save(folder))
    lu.assertTrue(difference(logits_of(assert(models.load(folder)), ids), want) < 5e-6)
  end)
  temporary(function (folder) -- the factor of set_scale is in alpha then
    assert(adapter:save(folder))
    local other = assert(models.load(BASE))
    assert(peft.load(other, folder)):eval()
    lu.assertTrue(difference(logits_of(other, ids), want) < 1e-6)
  end)
  lu.assertErrorMsgContains("factor is nan", function () adapter:set_scale(0 / 0) end)
  lu.assertErrorMsgContains("alpha was fixed when the adapter was made", function () adapter.config.alpha = 3 end)
end

function TestPEFT.test_every_option_out_of_range_is_refused_and_freezes_nothing()
  local bounds, options = require "bounds", require "perilune.options"
  local model = assert(models.load(BASE))
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    for _, o in ipairs(options.declared(peft[kind]).options) do
      lu.assertNotEquals(o.doc, "")
      for _, bad in ipairs(bounds.bad(o.kind)) do
        local ok, message = pcall(function () peft[kind](model, { [o.name] = bad }) end)
        lu.assertFalse(ok, kind .. "." .. o.name)
        lu.assertStrContains(message, ("%s: %s is"):format(kind, o.name))
        lu.assertStrContains(message, "test_peft.lua")
      end
    end
  end
  for text, o in pairs { ['rank_pattern["q_proj"] is 0'] = { rank_pattern = { q_proj = 0 } },
    ['alpha_pattern["q_proj"] is nan'] = { alpha_pattern = { q_proj = 0 / 0 } }, ["no layer is called"] = { targets = "nope" } } do
    lu.assertErrorMsgContains(text, function () peft.lora(model, o) end)
  end
  for _, p in ipairs(model:parameters()) do lu.assertTrue(p.requires_grad) end
end

function TestPEFT.test_saved_and_loaded_is_bit_equal()
  local ids = input()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    temporary(function (folder)
      local model = assert(models.load(BASE))
      local adapter = moved(peft[kind](model), 0.1)
      local want = logits_of(model, ids)
      assert(adapter:save(folder))
      adapter:remove()
      local again = assert(peft.load(model, folder))
      lu.assertEquals(difference(logits_of(model, ids), want), 0, kind)
      lu.assertEquals(again.kind, adapter.kind)
    end)
  end
end

-- What a model of each kind makes of the stored input.
local function run(model, io)
  local given = { mask = io.attention_mask, labels = io.labels }
  return model:forward(io.input_ids, (io.labels or not model.generate) and given or nil)
end

-- Fused parts, Conv1D's transposed weights, encoders, cross-attention, experts.
for _, name in ipairs { "gpt2", "bert", "distilbert", "t5", "t5_gated", "deepseek_v3", "gemma2", "qwen3" } do
  TestPEFT["test_lora_on_" .. name] = function ()
    local folder = "tests/data/hf_tiny/" .. name
    local io = assert(peri.safetensors.load(folder .. "/io.safetensors"))
    local model = assert(models.load(folder))
    local before = run(model, io)
    local adapter = moved(peft.lora(model, { r = 3, alpha = 6 }), 0.1)
    local apart = run(model, io)
    lu.assertTrue(difference(apart, before) > 1e-2)
    apart:square():sum():backward()
    local without = 0
    for _, pair in ipairs(adapter:named_parameters()) do
      local idle = pair[1]:find "experts%.%d" or pair[1]:find "^pooler" -- no token came by
      if not idle then lu.assertNotNil(pair[2].grad, pair[1]) end
      without = without + (pair[2].grad and 0 or 1)
    end
    lu.assertTrue(without < #adapter:parameters() // 2)
    temporary(function (out)
      assert(adapter:save(out))
      local other = assert(models.load(folder))
      assert(peft.load(other, out)):eval()
      lu.assertEquals(difference(run(other, io), apart), 0)
      local config = peri.json.decode(assert(peri.files.read(out .. "/adapter_config.json")))
      lu.assertEquals(config.fan_in_fan_out, name == "gpt2")
    end)
    adapter:merge():remove()
    lu.assertTrue(difference(run(model, io), apart) < 2e-5 * math.max(1, apart:abs():max():item()))
  end
end

function TestPEFT.test_a_copy_and_a_saved_model_are_without_the_adapter()
  local ids = input()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    temporary(function (folder)
      local model = assert(models.load(BASE))
      local before = logits_of(model, ids)
      moved(peft[kind](model), 0.1)
      lu.assertTrue(difference(logits_of(model, ids), before) > 1e-3)
      lu.assertEquals(difference(logits_of(model:copy(), ids), before), 0, kind)
      assert(model:save(folder))
      lu.assertEquals(difference(logits_of(assert(models.load(folder)), ids), before), 0, kind)
    end)
  end
end

function TestPEFT.test_dropout_is_of_training_and_seeded()
  local ids, model = input(), assert(models.load(BASE))
  local adapter = moved(peft.lora(model, { r = 4, dropout = 0.5 }), 0.1)
  local function seeded(seed)
    peri.seed(seed)
    return logits_of(model, ids)
  end
  lu.assertEquals(difference(seeded(1), seeded(1)), 0)
  lu.assertTrue(difference(seeded(1), seeded(2)) > 0)
  local function gradient(on)
    model:checkpointing(on)
    peri.seed(1)
    model:token_logprobs(ids, 2):sum():backward()
    local p = adapter:parameters()[1]
    local g = p.grad
    p:zero_grad()
    return g
  end
  lu.assertEquals(difference(gradient(false), gradient(true)), 0)
  adapter:eval()
  lu.assertEquals(difference(seeded(1), seeded(2)), 0)
end

-- q, k and v of one layer stored in different dtypes stay three weights; f16 is not merged into.
function TestPEFT.test_parts_of_different_dtypes()
  local model = assert(models.load(BASE))
  local ids = input()
  temporary(function (folder)
    local kept = {}
    for name, t in pairs(model:state_dict()) do
      kept[name] = name:find "k_proj" and t:to "f16" or name:find "v_proj" and t:to "bf16" or t
    end
    assert(peri.files.make_folder(folder))
    assert(peri.safetensors.save(folder .. "/model.safetensors", kept, { format = "pt" }))
    assert(peri.files.write(folder .. "/config.json", assert(peri.files.read(BASE .. "/config.json"))))
    local mixed = assert(models.load(folder, { dtype = "file" }))
    lu.assertEquals(#mixed:projections()[1].weights, 3)
    local before = logits_of(mixed, ids)
    local adapter = moved(peft.lora(mixed, { r = 4 }), 0.1)
    lu.assertTrue(difference(logits_of(mixed, ids), before) > 1e-2)
    mixed:token_logprobs(ids, 2):sum():backward()
    for _, pair in ipairs(adapter:named_parameters()) do lu.assertNotNil(pair[2].grad, pair[1]) end
    lu.assertErrorMsgContains("of several dtypes", function () adapter:merge() end)
    lu.assertErrorMsgContains("is f16", function ()
      peft.lora(assert(models.load(folder, { dtype = "f16" }))):merge()
    end)
  end)
end

function TestPEFT.test_materialised_prefix_is_the_same_function()
  local ids = input()
  local model = assert(models.load(BASE))
  local adapter = peft.prefix(model, { tokens = 3, projection = true, std = 0.3 })
  local want = logits_of(model, ids)
  lu.assertEquals(#adapter:parameters(), 5)
  adapter:materialise()
  lu.assertEquals(#adapter:parameters(), 1)
  lu.assertEquals(difference(logits_of(model, ids), want), 0)
end

-- Sampling with an adapter is the policy that is trained: the same bits.
function TestPEFT.test_generated_logprobs_are_those_of_training()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    local model = assert(models.load(BASE))
    moved(peft[kind](model), 0.1):eval()
    local prompt = input():narrow(1, 1, 1):narrow(2, 1, 5)
    peri.seed(3)
    local out = model:generate(prompt, { max_new_tokens = 6, samples = 3 })
    local ids = peri.cat({ prompt:repeat_interleave(3, 1), out.tokens }, 2)
    local logp = peri.no_grad(function () return (model:token_logprobs(ids, 6)) end)
    lu.assertTrue(difference(logp, out.logprobs) <= (kind == "lora" and 0 or 2e-6),
      ("%s: %g"):format(kind, difference(logp, out.logprobs)))
  end
end

-- Weights in blocks of 32 and of 256 stay as they are; the adapter still learns over them.
function TestPEFT.test_lora_learns_over_quantised_weights()
  peri.seed(1)
  local model = models.llama.new({ model_type = "llama", vocab_size = 32, hidden_size = 256, intermediate_size = 256,
    num_hidden_layers = 1, num_attention_heads = 4, num_key_value_heads = 2, rms_norm_eps = 1e-6 }, { std = 0.2 })
  temporary(function (folder)
    assert(model:save(folder))
    for i = 1, 6 do
      local dtype, pack = ({ "q8_0", "q4_0", "q4_K" })[(i + 1) // 2], i % 2 == 0
      local base = assert(models.load(folder, { dtype = dtype, pack = pack }))
      lu.assertEquals(base:projections()[1].weight.dtype, dtype)
      local adapter = peft.lora(base, { r = 4, alpha = 16 })
      local opt = optim.AdamW(adapter:parameters(), { lr = 2e-2, weight_decay = 0 })
      local ids = peri.arange(0, 16):reshape { 1, 16 }
      local first, last
      for _ = 1, 20 do
        local scope <close> = peri.scope() -- luacheck: ignore 211
        local loss = base:token_logprobs(ids, 2):mean():neg()
        loss:backward()
        opt:step():zero_grad()
        first, last = first or loss:item(), loss:item()
      end
      lu.assertTrue(last < first - 0.5, ("%s%s: %g to %g"):format(dtype, pack and " packed" or "", first, last))
      lu.assertErrorMsgContains("cannot merge", function () adapter:merge() end)
    end
  end)
end

function TestPEFT.test_refusals_name_what_is_wrong()
  local model = assert(models.load(BASE))
  local function refuses(text, fn) lu.assertErrorMsgContains(text, fn) end
  refuses('no layer is called "q_projj"', function () peft.lora(model, { targets = { "q_projj" } }) end)
  refuses("r is 0", function () peft.lora(model, { r = 0 }) end)
  refuses('did you mean "alpha"', function () peft.lora(model, { alhpa = 1 }) end)
  refuses("dropout is 1", function () peft.lora(model, { dropout = 1.0 }) end)
  refuses("tokens is 0", function () peft.prefix(model, { tokens = 0 }) end)
  refuses("act is", function () peft.bottleneck(model, { act = "cube" }) end)
  temporary(function (folder)
    assert(peri.files.make_folder(folder))
    local function config(c)
      assert(peri.files.write(folder .. "/adapter_config.json", peri.json.encode(c)))
      local adapter, message = peft.load(model, folder)
      lu.assertNil(adapter)
      return message
    end
    lu.assertStrContains(config { peft_type = "IA3" }, 'peft_type "IA3"')
    lu.assertStrContains(config { peft_type = "LORA", r = 4, use_dora = true }, "use_dora")
    lu.assertStrContains(config { peft_type = "LORA", r = 4 }, "adapter_model.safetensors")
  end)
end

function TestPEFT.test_a_merged_adapter_that_changed_lets_nothing_leave_the_model()
  for _, keep in ipairs { true, false } do
    local model = assert(models.load(BASE))
    local adapter = peft.lora(model, { r = 2 })
    adapter:merge { keep = keep }
    peri.no_grad(function () adapter:parameters()[2]:fill_(1) end)
    local advice = keep and "unmerge() and merge() it" or "can only be removed"
    for _, leave in ipairs { function () model:state_dict() end, function () model:copy() end,
      function () model:save "nowhere" end, function () logits_of(model, input()) end } do
      lu.assertErrorMsgContains("changed while it is merged", leave)
      lu.assertErrorMsgContains(advice, leave)
    end
    adapter:remove()
    model:copy():state_dict()
  end
end

-- The base with the adapter in it and the adapter: what is loaded would have it twice.
function TestPEFT.test_a_merged_adapter_is_not_saved_beside_its_model()
  local Both = nn.class("Both", function (self)
    self.model = assert(models.load(BASE))
    self.adapter = peft.lora(self.model, { r = 2 })
  end)
  local net = Both()
  local state = net:state_dict()
  net.adapter:merge()
  local message = "adapter is merged into model, and what is loaded would have it twice"
  lu.assertErrorMsgContains("state_dict: " .. message, net.state_dict, net)
  lu.assertErrorMsgContains("load_state_dict: " .. message, net.load_state_dict, net, state)
  temporary(function (folder)
    local both = require("perilune.run.recipe").start { name = "both", flags = { runs = folder }, console = false }
    both:track("model", net.model):track("adapter", net.adapter)
    lu.assertErrorMsgContains("save: " .. message, both.save, both, 1)
  end)
  net.adapter:unmerge()
  net:load_state_dict(net:state_dict())
end

function TestPEFT.test_an_adapter_that_does_not_load_leaves_the_model_as_it_was()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    local model = assert(models.load(BASE))
    for _, p in ipairs(model:parameters()) do p:requires_grad_() end
    model:parameters()[2]:requires_grad_(false)
    local other = peft[kind](assert(models.load(BASE)))
    temporary(function (folder)
      assert(other:save(folder))
      local file = folder .. "/adapter_model.safetensors"
      local tensors = assert(peri.safetensors.load(file))
      local name = next(tensors)
      tensors[name] = peri.zeros { 3, 3 }
      assert(peri.safetensors.save(file, tensors))
      lu.assertNil(peft.load(model, folder))
    end)
    for i, p in ipairs(model:parameters()) do lu.assertEquals(p.requires_grad, i ~= 2) end
    lu.assertNil(model.prefix)
    for _, p in ipairs(model:projections()) do lu.assertNil(p.adapter) end
  end
end

function TestPEFT.test_states_that_are_none_and_names_that_mean_nothing_are_refused()
  for _, kind in ipairs { "lora", "bottleneck", "prefix" } do
    local adapter = peft[kind](assert(models.load(BASE)))
    for message, state in pairs { ["the state is a string"] = "x", ["is a number, expected a tensor"] = { [adapter:named_parameters()[1][1]] = 3 },
      ["unexpected 1"] = { peri.ones { 1 } } } do
      lu.assertErrorMsgContains(message, adapter.load_state_dict, adapter, state)
    end
    lu.assertErrorMsgContains("the state is nil", adapter.load_state_dict, adapter)
  end
  local model = assert(models.load(BASE))
  for _, key in ipairs { "rank_pattern", "alpha_pattern" } do
    lu.assertErrorMsgContains(key .. '["x_proj"] means none of the layers that are targets', peft.lora, model,
      { targets = "q_proj", [key] = { x_proj = 2 } })
    lu.assertErrorMsgContains("means none", peft.lora, model, { targets = "q_proj", [key] = { v_proj = 2 } })
  end
  local first = peft.prefix(model)
  lu.assertErrorMsgContains("the model has a prefix already", peft.prefix, model)
  first:remove()
  local second = peft.prefix(model)
  first:remove()
  lu.assertNotNil(model.prefix)
  second:remove()
end
