-- Layers, module walks, state dicts, initial weights.
local lu = require "luaunit"
local peri = require "perilune"
local nn = require "perilune.nn"

local function close(a, b, tolerance)
  lu.assertEquals(a.shape, b.shape)
  lu.assertTrue(a:sub(b):abs():max():item() <= (tolerance or 1e-6))
end

local function names(module)
  local list = {}
  for i, pair in ipairs(module:named_parameters()) do list[i] = pair[1] end
  return list
end

TestModules = {}

function TestModules:setUp() peri.seed(1) end

function TestModules:test_linear_takes_sizes_by_position_or_by_name()
  local a, b = nn.Linear(3, 2, { bias = false }), nn.Linear { in_features = 3, out_features = 2, bias = false }
  lu.assertEquals(a.weight.shape, { 2, 3 })
  lu.assertEquals(b.weight.shape, { 2, 3 })
  lu.assertNil(a.bias)
  lu.assertEquals(nn.Linear(3, 2).bias.shape, { 2 })
end

function TestModules:test_unknown_option_names_the_nearest()
  lu.assertErrorMsgContains('did you mean "bias"', nn.Linear, 3, 2, { bais = false })
  lu.assertErrorMsgContains("out_features is missing", nn.Linear, 3)
end

function TestModules:test_a_state_that_could_not_be_read_says_why()
  lu.assertErrorMsgContains("the state is nil, expected a table of tensors: safetensors.load: /nonexistent",
    function() nn.Linear(2, 2):load_state_dict(peri.safetensors.load "/nonexistent") end)
end

function TestModules:test_errors_point_at_the_caller()
  local _, message = pcall(function() nn.Linear(3) end)
  lu.assertStrContains(message, "test_nn.lua")
end

function TestModules:test_linear_computes_xw_plus_b()
  local layer = nn.Linear(2, 2)
  layer.weight:detach():copy_(peri.tensor { { 1, 2 }, { 3, 4 } })
  layer.bias:detach():copy_(peri.tensor { 0.5, -0.5 })
  lu.assertEquals(layer(peri.tensor({ { 1, 1 } }, "f32")):tolist(), { { 3.5, 6.5 } })
end

function TestModules:test_parameters_come_in_order_of_assignment()
  local net = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 1))
  lu.assertEquals(names(net), { "0.weight", "0.bias", "2.weight", "2.bias" })
  lu.assertEquals(net:num_parameters(), 2 * 3 + 3 + 3 + 1)
  lu.assertEquals(#net:parameters(), 4)
end

function TestModules:test_own_classes_and_lists_of_modules()
  local Net = nn.class("Net", function(net, n)
    net.first = nn.Linear(2, 4)
    local blocks = {}
    for i = 1, n do blocks[i] = nn.Linear(4, 4, { bias = false }) end
    net.blocks = blocks
    net.last = nn.Linear(4, 1)
  end)
  function Net:forward(x)
    x = self.first(x)
    for _, b in ipairs(self.blocks) do x = b(x):relu() end
    return self.last(x)
  end
  local net = Net(2)
  lu.assertEquals(names(net), { "first.weight", "first.bias", "blocks.0.weight", "blocks.1.weight",
    "last.weight", "last.bias" })
  lu.assertEquals(net(peri.ones { 5, 2 }).shape, { 5, 1 })
  lu.assertStrContains(tostring(net), "blocks[2]: Linear(4, 4, bias = false)")
end

function TestModules:test_tied_parameter_is_listed_once_and_saved_twice()
  local Net = nn.class("Tied", function(net)
    net.embed = nn.Embedding(5, 3)
    net.head = net.embed.weight
  end)
  local net = Net()
  lu.assertEquals(names(net), { "embed.weight" })
  local state = net:state_dict()
  lu.assertNotNil(state["head"])
  net:to "f64"
  lu.assertEquals(net.head.dtype, "f64")
  lu.assertTrue(rawequal(net.head, net.embed.weight))
end

function TestModules:test_buffers_are_saved_and_not_trained()
  local Net = nn.class("Buffered", function(net)
    net.mean = peri.zeros { 3 }
    net._private = peri.zeros { 3 }
  end)
  local net = Net()
  lu.assertEquals(net:parameters(), {})
  lu.assertNotNil(net:state_dict().mean)
  lu.assertNil(net:state_dict()._private)
end

function TestModules:test_state_dict_goes_there_and_back()
  local a, b = nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3)), nn.Sequential(nn.Linear(2, 3), nn.LayerNorm(3))
  local x = peri.randn { 4, 2 }
  b:load_state_dict(a:state_dict())
  lu.assertEquals(b(x):tolist(), a(x):tolist())
end

function TestModules:test_load_state_dict_names_everything_that_does_not_fit()
  local net = nn.Linear(2, 3)
  local before = net.weight:tolist()
  local ok, message = pcall(net.load_state_dict, net, { weight = peri.zeros { 3, 3 }, extra = peri.zeros { 1 } })
  lu.assertFalse(ok)
  lu.assertStrContains(message, "missing bias")
  lu.assertStrContains(message, "unexpected extra")
  lu.assertStrContains(message, "weight has (3, 3), expected (3, 2)")
  lu.assertEquals(net.weight:tolist(), before)
  net:load_state_dict({ weight = peri.zeros { 3, 2 }, extra = peri.zeros { 1 } }, { strict = false })
  lu.assertEquals(net.weight:tolist(), { { 0, 0 }, { 0, 0 }, { 0, 0 } })
end

function TestModules:test_train_and_eval_reach_every_module()
  local net = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.Dropout(0.9)))
  local x = peri.ones { 8, 2 }
  net:eval()
  lu.assertEquals(net(x):tolist(), net(x):tolist())
  lu.assertFalse(net[2][1].training)
  net:train()
  lu.assertTrue(net[2][1].training)
  lu.assertTrue(net(x):eq(0):any():item())
end

function TestModules:test_freeze_takes_a_pattern()
  local net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
  net:freeze "^0%."
  lu.assertFalse(net[1].weight.requires_grad)
  lu.assertTrue(net[2].weight.requires_grad)
  net(peri.ones { 1, 2 }):sum():backward()
  lu.assertNil(net[1].weight.grad)
  lu.assertNotNil(net[2].weight.grad)
  lu.assertEquals(#net:unfreeze():parameters(), 4)
  net:zero_grad()
  lu.assertNil(net[2].weight.grad)
end

function TestModules:test_to_changes_the_dtype_of_floats()
  local net = nn.Linear(2, 2):to "f64"
  lu.assertEquals(net.weight.dtype, "f64")
  lu.assertTrue(net.weight.requires_grad)
end

function TestModules:test_sequential_takes_functions()
  local net = nn.Sequential(nn.Linear(2, 2), function(x) return x:mul(0) end)
  lu.assertEquals(net(peri.ones { 1, 2 }):tolist(), { { 0, 0 } })
  lu.assertErrorMsgContains("expected a module or a function", nn.Sequential, 1)
end

function TestModules:test_norms_and_activations_agree_with_their_ops()
  local x = peri.randn { 2, 6, 5 }
  close(nn.LayerNorm(5)(x), x:layer_norm(peri.ones { 5 }, peri.zeros { 5 }))
  close(nn.RMSNorm(5)(x), x:rms_norm(peri.ones { 5 }))
  close(nn.GroupNorm(3, 6)(x), x:group_norm(peri.ones { 6 }, peri.zeros { 6 }, 3))
  close(nn.LeakyReLU(0.2)(x), x:leaky_relu(0.2))
  close(nn.Softmax(-1)(x), x:softmax(-1))
  close(nn.Flatten()(x), x:reshape { 2, 30 })
  lu.assertErrorMsgContains("7 channels do not divide into 3", nn.GroupNorm, 3, 7)
  lu.assertErrorMsgContains("expected a number in [0, 1)", nn.Dropout, 1)
end

function TestModules:test_apply_visits_every_module_parents_first()
  local seen = {}
  nn.Sequential(nn.Linear(1, 1), nn.Sequential(nn.Tanh())):apply(function(m)
    seen[#seen + 1] = getmetatable(m).__name
  end)
  lu.assertEquals(seen, { "Sequential", "Linear", "Sequential", "Tanh" })
end

TestAttentionLayer = {}

function TestAttentionLayer:setUp() peri.seed(2) end

function TestAttentionLayer:test_shapes_with_grouped_queries()
  local layer = nn.MultiHeadAttention(12, 6, { kv_heads = 2, rope = true, qk_norm = true })
  lu.assertEquals(layer(peri.randn { 2, 5, 12 }).shape, { 2, 5, 12 })
  lu.assertEquals(names(layer), { "qkv.weight", "out.weight", "q_norm.weight", "k_norm.weight" })
  lu.assertErrorMsgContains("6 heads do not divide into 4", nn.MultiHeadAttention, 12, 6, { kv_heads = 4 })
end

function TestAttentionLayer:test_equals_plain_attention()
  local layer = nn.MultiHeadAttention(8, 2)
  local x = peri.randn { 1, 4, 8 }
  local qkv = x:matmul(layer.qkv.weight:transpose(1, 2)) -- (1, 4, 24)
  local out = {}
  for h = 0, 1 do
    local q, k = qkv:narrow(-1, h * 4 + 1, 4), qkv:narrow(-1, 8 + h * 4 + 1, 4)
    local v = qkv:narrow(-1, 16 + h * 4 + 1, 4)
    local mask = peri.full({ 4, 4 }, -1e9):triu(1)
    out[h + 1] = q:matmul(k:transpose(2, 3)):mul(0.5):add(mask):softmax(-1):matmul(v)
  end
  close(layer(x), peri.cat(out, 3):matmul(layer.out.weight:transpose(1, 2)), 1e-5)
end

function TestAttentionLayer:test_cache_gives_the_same_rows()
  local layer = nn.MultiHeadAttention(8, 2, { rope = true, kv_heads = 1 }):eval()
  local x = peri.randn { 2, 5, 8 }
  local _ <close> = peri.no_grad()
  local whole = layer(x)
  local cache = layer:cache(2, 5)
  local parts = { layer(x:narrow(2, 1, 3), { cache = cache }) }
  for t = 4, 5 do parts[#parts + 1] = layer(x:narrow(2, t, 1), { cache = cache }) end
  close(peri.cat(parts, 2), whole, 1e-5)
  lu.assertErrorMsgContains("room for 5", layer, x, { cache = cache })
end

function TestAttentionLayer:test_left_padding_changes_nothing()
  local layer = nn.MultiHeadAttention(8, 2, { rope = true }):eval()
  local x = peri.randn { 1, 3, 8 }
  local padded = peri.cat({ peri.randn { 1, 2, 8 }, x }, 2)
  local _ <close> = peri.no_grad()
  close(layer(padded, { start = peri.tensor { 2 } }):narrow(2, 3, 3), layer(x), 1e-5)
end

-- The ops of one head at a time, as the formulas have them.
local function by_hand(q, k, v, how) -- (B, T, H, D)
  local heads = {}
  for h = 1, q:size(3) do
    local g = (h - 1) // (q:size(3) // k:size(3)) + 1
    local s = q:select(3, h):matmul(k:select(3, g):transpose(2, 3)):mul(how.scale)
    if how.softcap > 0 then s = s:div(how.softcap):tanh():mul(how.softcap) end
    if how.hidden then s = s:masked_fill(how.hidden, -1e30) end
    heads[h] = s:softmax(-1):matmul(v:select(3, g))
  end
  return peri.cat(heads, 3)
end

function TestAttentionLayer:test_scale_soft_cap_window_and_segments_are_as_written()
  local layer = nn.MultiHeadAttention(12, 6, { kv_heads = 2, scale = 0.9, softcap = 1.5, window = 3 })
  local x = peri.randn { 2, 7, 12 }
  local q, k, v = layer.qkv(x):reshape({ 2, 7, 10, 2 }):unpack_qkv(6, 2)
  local i, j = peri.arange(7):unsqueeze(2), peri.arange(7)
  local hidden = j:gt(i):logical_or(j:le(i:sub(3)))
  local want = layer.out(by_hand(q, k, v, { scale = 0.9, softcap = 1.5, hidden = hidden }))
  close(layer(x), want, 1e-5)
  local segments = peri.tensor({ 0, 0, 0, 1, 1, 1, 1 }, "i64")
  local apart = peri.cat({ layer(x:narrow(2, 1, 3)), layer(x:narrow(2, 4, 4)) }, 2)
  close(layer(x, { segments = segments }), apart, 1e-5)
  close(layer(x, { segments = segments:unsqueeze(1):expand({ 2, 7 }):contiguous() }), apart, 1e-5)
  lu.assertErrorMsgContains("segments is i64 of shape (6), expected i64 of (7) or (2, 7)", layer, x,
    { segments = segments:narrow(1, 1, 6) })
end

function TestAttentionLayer:test_dropout_of_attention_and_of_the_output_is_of_training()
  for _, name in ipairs { "dropout", "attention_dropout" } do
    local layer = nn.MultiHeadAttention(8, 2, { [name] = 0.5 })
    local x = peri.randn { 1, 4, 8 }
    peri.seed(1)
    local a = layer(x)
    peri.seed(1)
    lu.assertEquals(layer(x):tolist(), a:tolist())
    lu.assertNotEquals(layer(x):tolist(), a:tolist())
    local plain = layer:eval()(x):tolist()
    lu.assertEquals(layer(x):tolist(), plain)
    lu.assertNotEquals(a:tolist(), plain)
  end
end

function TestAttentionLayer:test_cross_attention_is_as_written_and_its_keys_are_made_once()
  local layer = nn.CrossAttention(8, 4, { source_dim = 6, kv_heads = 2, bias = true })
  local x, source = peri.randn { 2, 3, 8 }, peri.randn { 2, 5, 6 }
  local q = layer.q(x):reshape { 2, 3, 4, 2 }
  local kv = layer.kv(source):reshape { 2, 5, 4, 2 }
  local seen = peri.tensor { { true, true, false, true, false }, { false, true, true, true, true } }
  local function want(hidden)
    return layer.out(by_hand(q, kv:narrow(3, 1, 2), kv:narrow(3, 3, 2), { scale = 2 ^ -0.5, softcap = 0, hidden = hidden }))
  end
  close(layer(x, source), want(), 1e-5)
  close(layer(x, source, { mask = seen }), want(seen:logical_not():unsqueeze(2)), 1e-5)
  lu.assertEquals(layer(x, layer:keys(source)):tolist(), layer(x, source):tolist())
  lu.assertErrorMsgContains("source is missing, expected tensor or table", layer, x)
  lu.assertErrorMsgContains("5 heads do not divide into 2", nn.CrossAttention, 10, 5, { kv_heads = 2 })
end

function TestAttentionLayer:test_blocks_have_their_norms_before_or_behind()
  for _, norm in ipairs { "layer", "rms" } do
    local x = peri.randn { 2, 4, 8 }
    local pre, post = nn.Block(8, 2, { norm = norm }), nn.Block(8, 2, { norm = norm, norm_first = false })
    local h = x:add(pre.attention(pre.norm1(x)))
    close(pre(x), h:add(pre.ff(pre.norm2(h))), 1e-6)
    h = post.norm1(x:add(post.attention(x)))
    close(post(x), post.norm2(h:add(post.ff(h))), 1e-6)
    for _, block in ipairs { pre, post } do
      local function gradients(on)
        block:checkpointing(on):zero_grad()
        block(x):square():sum():backward()
        local out = {}
        for i, p in ipairs(block:parameters()) do out[i] = p.grad:bytes() end
        return out
      end
      lu.assertEquals(gradients(true), gradients(false))
      lu.assertEquals(gradients(false), gradients(false))
    end
  end
end

function TestAttentionLayer:test_a_cache_of_a_layer_is_emptied_and_says_what_is_in_it()
  local layer = nn.MultiHeadAttention(8, 2, { rope = true }):eval()
  local x = peri.randn { 1, 3, 8 }
  local _ <close> = peri.no_grad()
  local cache = layer:cache(1, 4)
  local first = layer(x, { cache = cache })
  lu.assertEquals(tostring(cache), "cache of 1 layers, 1 rows, 3 of 4 positions, f32")
  lu.assertErrorMsgContains("the cache has 3 positions and gets 3 more, and has room for 4", layer, x, { cache = cache })
  lu.assertErrorMsgContains("2 rows, the cache has 1", layer, peri.randn { 2, 1, 8 }, { cache = cache })
  cache:reset()
  lu.assertEquals(layer(x, { cache = cache }):tolist(), first:tolist())
  local all = nn.caches(nn.Sequential(layer, nn.Block(8, 2), nn.Linear(8, 8)), 2, 6)
  local n = 0
  for module, one in pairs(all) do
    n = n + 1
    lu.assertEquals(one:bytes(), 2 * 6 * module.kv_heads * module.head_dim * 2 * 4)
  end
  lu.assertEquals(n, 2)
  for _, name in ipairs { "deepseek_v3", "t5" } do -- kinds of their own, and weights of any dtype
    local model = assert(peri.models.load("tests/data/hf_tiny/" .. name, { dtype = "q8_0" }))
    for module, one in pairs(nn.caches(model, 1, 2)) do
      lu.assertEquals({ one.dtype, one.room, #one.parts[1] }, { "f32", 2, #module:keeps() })
    end
  end
end

function TestAttentionLayer:test_feed_forward_kinds()
  local x = peri.randn { 2, 4 }
  for _, kind in ipairs { "gelu", "relu", "silu", "swiglu", "geglu", "reglu", "glu" } do
    lu.assertEquals(nn.FeedForward(4, 6, { kind = kind })(x).shape, { 2, 4 })
  end
  local ff = nn.FeedForward(4, 6, { kind = "swiglu" })
  local h = x:matmul(ff.up.weight:transpose(1, 2))
  local want = h:narrow(-1, 1, 6):silu():mul(h:narrow(-1, 7, 6)):matmul(ff.down.weight:transpose(1, 2))
  close(ff(x), want, 1e-5)
end

function TestAttentionLayer:test_block_trains_every_parameter()
  local block = nn.Block(8, 2, { norm = "rms", kind = "swiglu", rope = true, ff = 12 })
  block(peri.randn { 2, 3, 8 }):square():sum():backward()
  for _, pair in ipairs(block:named_parameters()) do
    lu.assertNotNil(pair[2].grad, pair[1])
  end
end

TestInit = {}

function TestInit:setUp() peri.seed(3) end

local function moments(t)
  local mean = t:mean():item()
  return mean, t:sub(mean):square():mean():sqrt():item()
end

function TestInit:test_moments()
  local t = peri.empty { 200, 100 }
  local mean, std = moments(nn.init.normal_(t, 0.5, 2))
  local function spread(x) return (select(2, moments(x))) end
  lu.assertAlmostEquals(mean, 2, 0.02)
  lu.assertAlmostEquals(std, 0.5, 0.01)
  lu.assertAlmostEquals(spread(nn.init.xavier_normal_(t)), math.sqrt(2 / 300), 0.002)
  lu.assertAlmostEquals(spread(nn.init.xavier_uniform_(t)), math.sqrt(2 / 300), 0.002)
  lu.assertAlmostEquals(spread(nn.init.kaiming_normal_(t)), math.sqrt(2 / 100), 0.004)
  nn.init.kaiming_uniform_(t, { fan = "out", activation = "linear" })
  lu.assertAlmostEquals(spread(t), math.sqrt(1 / 200), 0.002)
  nn.init.trunc_normal_(t, 0.1)
  lu.assertTrue(t:abs():max():item() <= 0.2 + 1e-7)
  lu.assertEquals(nn.init.ones_(t):sum():item(), 20000)
  lu.assertEquals(nn.init.zeros_(t):sum():item(), 0)
end

function TestInit:test_orthogonal_rows_or_columns()
  for _, shape in ipairs { { 8, 8 }, { 20, 5 }, { 5, 20 } } do
    local t = nn.init.orthogonal_(peri.empty(shape), 2)
    local m = shape[1] <= shape[2] and t or t:transpose(1, 2)
    local n = math.min(shape[1], shape[2])
    close(m:matmul(m:transpose(1, 2)), peri.eye(n):mul(4), 1e-4)
  end
end

function TestInit:test_same_seed_same_weights()
  peri.seed(9)
  local a = nn.Linear(4, 4).weight:tolist()
  peri.seed(9)
  lu.assertEquals(nn.Linear(4, 4).weight:tolist(), a)
end

function TestInit:test_what_is_out_of_range_is_refused_where_it_is_given()
  local v, m = peri.empty { 4 }, peri.empty { 2, 2 }
  for _, case in ipairs {
    { "std is -1", function() nn.init.normal_(v, -1) end }, { "std is nan", function() nn.init.normal_(v, 0 / 0) end },
    { "a number, expected a tensor", function() nn.init.ones_(3) end },
    { "a tensor of i64", function() nn.init.zeros_(peri.zeros({ 2 }, "i64")) end },
    { "low is 2, above high", function() nn.init.uniform_(v, 2, 1) end },
    { "limit is 0", function() nn.init.trunc_normal_(v, 1, 0, 0) end },
    { "value is missing", function() nn.init.constant_(v) end },
    { "gain is -1", function() nn.init.xavier_normal_(m, -1) end }, { "gain is", function() nn.init.orthogonal_(m, 1 / 0) end },
    { "xavier_uniform_: 1 dims", function() nn.init.xavier_uniform_(v) end },
    { "kaiming_normal_: 1 dims", function() nn.init.kaiming_normal_(v) end },
    { 'fan is "both"', function() nn.init.kaiming_normal_(m, { fan = "both" }) end },
    { 'did you mean "slope"', function() nn.init.kaiming_uniform_(m, { slop = 1 }) end },
    { 'activation is "cube"', function() nn.init.kaiming_uniform_(m, { activation = "cube" }) end },
  } do
    local ok, message = pcall(case[2])
    lu.assertFalse(ok, case[1])
    lu.assertStrContains(message, case[1])
    lu.assertStrContains(message, "test_nn.lua")
  end
end
