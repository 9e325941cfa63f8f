-- op_refusals.lua - calls that single ops refuse, with what the message must say: shapes that do not fit,
-- dims and positions out of range, values out of range.
local peri = require "perilune"

local M = {}

local function t(...) return peri.ones { ... } end
local function ids(...) return peri.tensor({ ... }, "i64") end
local function add(op, what, says, call) M[#M + 1] = { op = op, what = what, says = says, call = call } end

for _, op in ipairs { "add", "sub", "mul", "div", "floordiv", "mod", "pow", "maximum", "minimum", "atan2", "eq", "ne",
  "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor" } do
  add(op, "shapes that do not broadcast", { "(2, 3)", "(4, 3)" }, function () peri[op](t(2, 3), t(4, 3)) end)
end
for _, op in ipairs { "relu_backward", "tanh_backward", "sigmoid_backward", "silu_backward", "gelu_backward",
  "gelu_tanh_backward" } do
  add(op, "shapes that do not broadcast", { "(2, 3)", "(4, 3)" }, function () peri[op](t(2, 3), t(4, 3)) end)
end
add("where", "shapes that do not broadcast", { "(2)", "(3)" }, function () peri.where(t(2), t(3), t(3)) end)
add("masked_fill", "a mask of another size", { "(2)", "(3)" }, function () peri.masked_fill(t(3), t(2), 0) end)
add("lerp", "shapes that do not broadcast", { "(2)", "(3)" }, function () peri.lerp(t(2), t(3), 0.5) end)
add("floordiv", "an integer divided by 0", { "zero", "position 1" }, function () peri.floordiv(ids(1, 2), ids(1, 0)) end)
add("mod", "an integer divided by 0", { "zero", "position 1" }, function () peri.mod(ids(1, 2), ids(1, 0)) end)
add("pow", "a negative exponent of an integer", { "-2" }, function () peri.pow(ids(1, 2), -2) end)
add("gelu", "an unknown form", { "sine", "tanh" }, function () peri.gelu(t(2), "sine") end)
add("to", "an unknown dtype", { "f8" }, function () peri.to(t(2), "f8") end)
add("bitcast", "rows that are no whole number of elements", { "12 bytes", "i64" }, function () peri.bitcast(t(2, 3), "i64") end)
add("copy_", "a shape that does not broadcast", { "(3)", "(2)" }, function () peri.copy_(t(2), t(3)) end)

add("pack", "three dims", { "(2, 3, 4)", "2 dims" }, function () peri.pack(t(2, 3, 4)) end)
add("pack", "integers", { "i64", "quantised" }, function () peri.pack(ids(1):reshape { 1, 1 }) end)
add("linear", "f64 with a packed weight", { "f64", "packed" }, function () peri.linear(t(3):to "f64", peri.pack(t(2, 3))) end)
add("matmul", "a packed weight on the left", { "packed" }, function () peri.matmul(peri.pack(t(2, 3)), t(3, 2)) end)
add("token_logprob", "f64 with a packed weight", { "f64", "packed" },
  function () peri.token_logprob(t(1, 3):to "f64", peri.pack(t(2, 3)), ids(1)) end)

for _, op in ipairs { "sum", "mean", "prod", "max", "min", "all", "any", "count_nonzero", "var", "std", "logsumexp" } do
  add(op, "dim 3 of 2", { "3", "2" }, function () peri[op](t(2, 3), { 3 }) end)
  add(op, "dim -3 of 2", { "-3", "2" }, function () peri[op](t(2, 3), { -3 }) end)
  add(op, "a dim twice", { "twice" }, function () peri[op](t(2, 3), { 1, 1 }) end)
  add(op, "dim 0", { "0", "from 1" }, function () peri[op](t(2, 3), { 0 }) end)
end
add("norm", "dim 3 of 2", { "3", "2" }, function () peri.norm(t(2, 3), { dims = 3 }) end)
add("max", "nothing", { "(0)" }, function () peri.max(t(0)) end)
add("min", "nothing", { "(0)" }, function () peri.min(t(0)) end)
for _, op in ipairs { "argmax", "argmin" } do
  add(op, "dim 3 of 2", { "3", "2" }, function () peri[op](t(2, 3), 3) end)
  add(op, "nothing", { "(0)" }, function () peri[op](t(0)) end)
end
for _, op in ipairs { "cumsum", "cumprod", "cummax", "sort", "argsort", "softmax", "log_softmax" } do
  add(op, "dim 3 of 2", { "3", "2" }, function () peri[op](t(2, 3), 3) end)
end
for _, op in ipairs { "softmax_backward", "log_softmax_backward" } do
  add(op, "two shapes", { "(2)", "(3)" }, function () peri[op](t(2), t(3)) end)
end
add("topk", "more than there are", { "4", "3" }, function () peri.topk(t(3), 4) end)
add("topk", "a negative k", { "-1" }, function () peri.topk(t(3), -1) end)

for _, op in ipairs { "zeros", "ones", "empty", "rand", "randn" } do
  add(op, "a negative size", { "-2" }, function () peri[op] { 3, -2 } end)
  add(op, "nine dims", { "9", "8" }, function () peri[op] { 1, 1, 1, 1, 1, 1, 1, 1, 1 } end)
  add(op, "more than memory can address", { "overflows", "1099511627776" }, function () peri[op] { 1 << 40, 1 << 40 } end)
end
add("full", "a negative size", { "-2" }, function () peri.full({ -2 }, 1) end)
add("full", "a value that does not fit", { "300", "u8" }, function () peri.full({ 2 }, 300, "u8") end)
add("full_like", "a value that does not fit", { "300", "u8" }, function () peri.full_like(t(2), 300, "u8") end)
add("fill_", "a value that does not fit", { "300", "u8" }, function () peri.fill_(t(1):to "u8", 300) end)
add("arange", "a step of 0", { "step", "0" }, function () peri.arange(0, 5, 0) end)
add("linspace", "a negative count", { "-1" }, function () peri.linspace(0, 1, -1) end)
add("eye", "a negative size", { "-1" }, function () peri.eye(-1) end)
add("one_hot", "an id beyond the classes", { "4", "0 to 2" }, function () peri.one_hot(ids(0, 4), 3) end)
add("one_hot", "a negative id", { "-1", "0 to 2" }, function () peri.one_hot(ids(0, -1), 3) end)
add("one_hot", "floats", { "f32" }, function () peri.one_hot(t(2), 3) end)
add("randint", "an empty range", { "5" }, function () peri.randint(5, 5, { 2 }) end)
add("randperm", "a negative size", { "-1" }, function () peri.randperm(-1) end)
add("bernoulli", "a probability above 1", { "1.5" }, function () peri.bernoulli(peri.tensor { 0.5, 1.5 }) end)

add("reshape", "another number of elements", { "(2, 3)", "(4)" }, function () peri.reshape(t(2, 3), { 4 }) end)
add("reshape", "two sizes of -1", { "-1" }, function () peri.reshape(t(2, 3), { -1, -1 }) end)
add("flatten", "dim 3 of 2", { "3", "2" }, function () peri.flatten(t(2, 3), 1, 3) end)
add("transpose", "dim 3 of 2", { "3", "2" }, function () peri.transpose(t(2, 3), 1, 3) end)
add("permute", "a dim twice", { "entry 2", "repeats" }, function () peri.permute(t(2, 3), { 1, 1 }) end)
add("permute", "too few dims", { "1", "2" }, function () peri.permute(t(2, 3), { 1 }) end)
add("narrow", "a run beyond the end", { "3" }, function () peri.narrow(t(2, 3), 2, 2, 3) end)
add("narrow", "a negative length", { "-1" }, function () peri.narrow(t(2, 3), 2, 1, -1) end)
add("narrow", "dim 3 of 2", { "3", "2" }, function () peri.narrow(t(2, 3), 3, 1, 1) end)
add("select", "a position beyond the end", { "4", "3" }, function () peri.select(t(2, 3), 2, 4) end)
add("select", "a position before the start", { "-4", "3" }, function () peri.select(t(2, 3), 2, -4) end)
add("select", "position 0", { "0", "from 1" }, function () peri.select(t(2, 3), 2, 0) end)
add("expand", "a size that is not 1", { "(2, 3)", "(4, 3)" }, function () peri.expand(t(2, 3), { 4, 3 }) end)
add("squeeze", "dim 3 of 2", { "3", "2" }, function () peri.squeeze(t(2, 1), 3) end)
add("unsqueeze", "dim 4 of 3", { "4", "3" }, function () peri.unsqueeze(t(2, 1), 4) end)
add("flip", "dim 3 of 2", { "3", "2" }, function () peri.flip(t(2, 1), 3) end)
add("diagonal", "a vector", { "1" }, function () peri.diagonal(t(3)) end)
add("cat", "sizes that differ", { "(2, 3)", "(2, 4)" }, function () peri.cat({ t(2, 3), t(2, 4) }, 1) end)
add("cat", "no tensors", { "empty" }, function () peri.cat {} end)
add("stack", "shapes that differ", { "(2)", "(3)" }, function () peri.stack { t(2), t(3) } end)
add("pad", "an odd number of pads", { "3" }, function () peri.pad(t(3), { 1, 1, 1 }) end)
add("pad", "more cut than there is", { "-4" }, function () peri.pad(t(3), { -4, 0 }) end)
add("tile", "a negative count", { "-1" }, function () peri.tile(t(3), { -1 }) end)
add("repeat_interleave", "a negative count", { "-1" }, function () peri.repeat_interleave(t(3), -1, 1) end)
add("roll", "dim 2 of 1", { "2", "1" }, function () peri.roll(t(3), 1, 2) end)
add("tril", "a vector", { "1" }, function () peri.tril(t(3)) end)
add("triu", "a vector", { "1" }, function () peri.triu(t(3)) end)
add("diag_embed", "a number", { "0" }, function () peri.diag_embed(peri.tensor(1.5)) end)
add("diag", "three dims", { "3" }, function () peri.diag(t(2, 2, 2)) end)

add("gather", "an index beyond the end", { "3" }, function () peri.gather(t(3), ids(0, 3), 1) end)
add("gather", "a negative index", { "-1" }, function () peri.gather(t(3), ids(-1), 1) end)
add("gather", "float indices", { "f32" }, function () peri.gather(t(3), t(3), 1) end)
add("gather", "another number of dims", { "1", "2" }, function () peri.gather(t(3, 2), ids(0), 1) end)
add("index_select", "an index beyond the end", { "3" }, function () peri.index_select(t(3), ids(3), 1) end)
add("index_select", "dim 2 of 1", { "2", "1" }, function () peri.index_select(t(3), ids(0), 2) end)
add("embedding", "an id beyond the rows", { "5", "5" }, function () peri.embedding(t(5, 2), ids(0, 5)) end)
add("embedding", "a negative id", { "-1" }, function () peri.embedding(t(5, 2), ids(-1)) end)
add("embedding", "a vector of weights", { "1", "2" }, function () peri.embedding(t(5), ids(0)) end)
add("embedding_backward", "an id beyond the rows", { "5" }, function () peri.embedding_backward(t(1, 2), ids(5), 5) end)
add("masked_select", "a float mask", { "f32" }, function () peri.masked_select(t(3), t(3)) end)
add("masked_scatter", "too few values", { "2", "1" }, function ()
  peri.masked_scatter(t(2), peri.tensor { true, true }, t(1))
end)
add("scatter", "an index beyond the end", { "3" }, function () peri.scatter(t(3), ids(3), t(1), 1) end)
add("scatter_add", "an index beyond the end", { "3" }, function () peri.scatter_add(t(3), ids(3), t(1), 1) end)
add("scatter_add", "a source of another shape", { "(2)", "(3)" }, function ()
  peri.scatter_add(t(4), ids(0, 1, 2), t(2), 1)
end)
add("index_add", "an index beyond the end", { "3" }, function () peri.index_add(t(3), ids(3), t(1), 1) end)
add("index_add", "a source of another size", { "2" }, function () peri.index_add(t(3), ids(0), t(2), 1) end)

add("matmul", "inner sizes that differ", { "8", "7" }, function () peri.matmul(t(4, 8), t(7, 16)) end)
add("matmul", "batches that do not broadcast", { "(2, 4, 3)", "(3, 3, 4)" }, function ()
  peri.matmul(t(2, 4, 3), t(3, 3, 4))
end)
add("matmul", "a number", { "no dims" }, function () peri.matmul(peri.tensor(1.5), t(2)) end)
add("linear", "inner sizes that differ", { "8", "7" }, function () peri.linear(t(4, 8), t(16, 7)) end)
add("linear", "a bias of another size", { "3", "16" }, function () peri.linear(t(4, 8), t(16, 8), t(3)) end)
add("linear", "an unknown activation", { "sine" }, function () peri.linear(t(4, 8), t(16, 8), nil, "sine") end)
add("outer", "a matrix", { "(2, 2)" }, function () peri.outer(t(2, 2), t(2)) end)
add("einsum", "sizes that differ", { "3", "4" }, function () peri.einsum({ t(2, 3), t(4, 5) }, "ij,jk->ik") end)
add("einsum", "too few letters", { "(2, 3, 4)", "2 letters" }, function () peri.einsum({ t(2, 3, 4) }, "ij->i") end)
add("einsum", "too many terms", { "2" }, function () peri.einsum({ t(2, 3) }, "ij,jk->ik") end)

add("unpack_qkv", "heads that do not fit", { "(2, 5, 3)" }, function () peri.unpack_qkv(t(2, 5, 3), 2, 1) end)
for _, op in ipairs { "layer_norm", "rms_norm" } do
  add(op, "a weight of another size", { "(4)", "3" }, function () peri[op](t(2, 3), t(4)) end)
  add(op, "a number", { "no dim" }, function () peri[op](peri.tensor(1.5)) end)
  add("add_" .. op, "shapes that differ", { "(2, 3)", "(3)" }, function () peri["add_" .. op](t(2, 3), t(3)) end)
  add(op .. "_backward", "shapes that differ", { "(2, 3)", "(3)" }, function () peri[op .. "_backward"](t(2, 3), t(3)) end)
end
add("group_norm", "channels that do not divide", { "(2, 4)", "3" }, function () peri.group_norm(t(2, 4), nil, nil, 3) end)
add("dropout", "p of 2", { "2" }, function () peri.dropout(t(2), 2) end)
add("dropout_backward", "shapes that differ", { "(2)", "(3)" }, function () peri.dropout_backward(t(2), t(3):to "u8", 2) end)
add("silu_mul", "shapes that differ", { "(2)", "(3)" }, function () peri.silu_mul(t(2), t(3)) end)
add("silu_mul_backward", "shapes that differ", { "(2)", "(3)" }, function () peri.silu_mul_backward(t(2), t(2), t(3)) end)
add("swiglu", "an odd size", { "(3)" }, function () peri.swiglu(t(3)) end)
add("swiglu_backward", "a gradient of another shape", { "(4)", "(3)" }, function () peri.swiglu_backward(t(4), t(3)) end)
add("rope", "three dims", { "3" }, function () peri.rope(t(2, 3, 4), ids(0), t(2)) end)
add("rope", "too many frequencies", { "3", "4" }, function () peri.rope(t(1, 1, 1, 4), ids(0), t(3)) end)
add("rope", "positions of another length", { "(1)" }, function () peri.rope(t(1, 2, 1, 4), ids(0), t(2)) end)
local function cache(n) return t(1, n, 1, 2) end
add("kv_append_", "a position beyond the cache", { "1 tokens", "cache of 3" }, function ()
  peri.kv_append_(cache(3), cache(3), cache(1), cache(1), 4)
end)
add("move_rows_", "a row beyond the end", { "from", "3" }, function () peri.move_rows_(t(3, 2), ids(3), ids(0)) end)
add("move_rows_", "a place beyond the end", { "to", "-1" }, function () peri.move_rows_(t(3, 2), ids(0), ids(-1)) end)
add("move_rows_", "more rows than places", { "(2)", "(1)" }, function () peri.move_rows_(t(3), ids(0, 1), ids(0)) end)
add("rope_qkv", "heads that do not fit", { "(1, 1, 5, 4)", "2" }, function ()
  peri.rope_qkv(t(1, 1, 5, 4), ids(0), t(2), 2, 1)
end)
add("rope_qkv_backward", "gradients that do not fit", { "(1, 1, 2, 4)", "(1, 2, 1, 4)" }, function ()
  peri.rope_qkv_backward(t(1, 1, 2, 4), t(1, 2, 1, 4), t(1, 2, 1, 4), ids(0), t(2))
end)
add("attention_step_", "a position beyond the cache", { "2", "3" }, function ()
  peri.attention_step_(cache(3), cache(3), t(1, 2, 3, 2), nil, nil, nil, 3)
end)
add("attention", "three dims", { "3", "4" }, function () peri.attention(t(2, 3, 4), t(2, 3, 4), t(2, 3, 4)) end)
add("attention", "heads that do not divide", { "3", "2" }, function ()
  peri.attention(t(1, 2, 3, 4), t(1, 2, 2, 4), t(1, 2, 2, 4))
end)
add("attention", "a mask of another shape", { "(2, 5)" }, function ()
  peri.attention(t(2, 3, 1, 4), t(2, 3, 1, 4), t(2, 3, 1, 4), t(2, 5))
end)
add("attention", "a start of another size", { "(3)" }, function ()
  peri.attention(t(2, 3, 1, 4), t(2, 3, 1, 4), t(2, 3, 1, 4), nil, ids(0, 1, 2))
end)
add("attention", "a negative softcap", { "-1" }, function ()
  peri.attention(t(2, 3, 1, 4), t(2, 3, 1, 4), t(2, 3, 1, 4), { softcap = -1 })
end)
add("attention_backward", "three dims", { "3", "4" }, function ()
  local x = t(2, 3, 4)
  peri.attention_backward(x, x, x, x, x, x)
end)

add("cross_entropy", "a target beyond the classes", { "4" }, function () peri.cross_entropy(t(2, 4), ids(0, 4)) end)
add("cross_entropy", "a target of another shape", { "(3)", "(2, 4)" }, function () peri.cross_entropy(t(2, 4), ids(0, 1, 2)) end)
add("cross_entropy", "a float target", { "f32" }, function () peri.cross_entropy(t(2, 4), t(2)) end)
add("cross_entropy", "an unknown reduction", { "median" }, function ()
  peri.cross_entropy(t(2, 4), ids(0, 1), { reduction = "median" })
end)
add("cross_entropy", "smoothing of 2", { "2" }, function ()
  peri.cross_entropy(t(2, 4), ids(0, 1), { label_smoothing = 2 })
end)
add("cross_entropy_backward", "a target beyond the classes", { "4" }, function ()
  peri.cross_entropy_backward(peri.tensor(1.5), t(2, 4), ids(0, 4), t(2, 2))
end)
add("token_logprob", "a target beyond the classes", { "5" }, function () peri.token_logprob(t(2, 4), t(5, 4), ids(0, 5)) end)
add("token_logprob", "widths that differ", { "4", "3" }, function () peri.token_logprob(t(2, 4), t(5, 3), ids(0, 1)) end)
add("token_logprob", "a temperature of 0", { "0" }, function ()
  peri.token_logprob(t(2, 4), t(5, 4), ids(0, 1), { temperature = 0 })
end)
add("token_logprob_backward", "a target beyond the classes", { "5" }, function ()
  peri.token_logprob_backward(t(2), t(2), t(2, 4), t(5, 4), ids(0, 5), nil, t(2, 2))
end)
for _, op in ipairs { "mse", "huber", "bce_with_logits", "kl_div" } do
  add(op, "shapes that differ", { "(2)", "(3)" }, function () peri[op](t(2), t(3)) end)
  add(op, "an unknown reduction", { "median" }, function () peri[op](t(2), t(2), { reduction = "median" }) end)
end
add("huber", "a delta of 0", { "0" }, function () peri.huber(t(2), t(2), { delta = 0 }) end)
add("sample", "a row of NaN", { "0" }, function () peri.sample(peri.tensor { { 0 / 0, 1 } }) end)
add("sample", "a negative temperature", { "-1" }, function () peri.sample(t(2, 3), { temperature = -1 }) end)
add("sample", "keys of four numbers", { "(1, 3)", "(1, 4)" }, function ()
  peri.sample(t(1, 3), { keys = t(1, 4):to "i64" })
end)
add("sample", "top_p of 2", { "2" }, function () peri.sample(t(2, 3), { top_p = 2 }) end)
add("categorical", "no draws", { "0" }, function () peri.categorical(t(2, 3), 0) end)
add("discounted_sum", "gamma of 2", { "2" }, function () peri.discounted_sum(t(3), nil, 2) end)
add("discounted_sum", "flags of another shape", { "(2)", "(3)" }, function () peri.discounted_sum(t(3), t(2)) end)
add("gae", "values of another shape", { "(2)", "(3)" }, function () peri.gae(t(3), t(2)) end)
add("gae", "truncation without next values", { "next_values" }, function ()
  peri.gae(t(2), t(2), nil, nil, peri.tensor { true, false })
end)
add("group_advantage", "groups that do not divide", { "(3)", "2" }, function () peri.group_advantage(t(3), nil, 2) end)
add("group_advantage", "a reward of NaN", { "NaN", "position 0" }, function ()
  peri.group_advantage(peri.tensor { 0 / 0, 1 }, nil, 2)
end)

for _, op in ipairs { "sgd_", "muon_" } do
  add(op, "lists of different lengths", { "1", "2" }, function ()
    peri[op]({ t(2, 2), t(2, 2) }, { t(2, 2) }, { t(2, 2), t(2, 2) }, 0.1)
  end)
  add(op, "a gradient of another shape", { "(2, 2)", "(3)" }, function ()
    peri[op]({ t(2, 2) }, { t(3) }, { t(2, 2) }, 0.1)
  end)
end
add("muon_", "a vector", { "(3)" }, function () peri.muon_({ t(3) }, { t(3) }, { t(3) }, 0.1) end)
for _, op in ipairs { "adam_", "adamw_", "lamb_", "rmsprop_" } do
  add(op, "a gradient of another shape", { "(2)", "(3)" }, function ()
    peri[op]({ t(2) }, { t(3) }, { t(2) }, { t(2) }, 0.1)
  end)
  add(op, "integers", { "i64" }, function ()
    peri[op]({ ids(1) }, { ids(1) }, { ids(1) }, { ids(1) }, 0.1)
  end)
end
add("ema_", "shapes that differ", { "(2)", "(3)" }, function () peri.ema_({ t(2) }, { t(3) }, 0.9) end)
add("global_norm", "integers", { "i64" }, function () peri.global_norm { ids(1) } end)
add("clip_grad_norm_", "a negative norm", { "-1" }, function () peri.clip_grad_norm_({ t(2) }, -1) end)

-- Elementwise ops of one tensor and copies of a shape take every tensor.
for _, op in ipairs { "contiguous", "clone", "neg", "abs", "sign", "exp", "expm1", "log", "log1p", "log2", "sqrt", "rsqrt",
  "square", "reciprocal", "sin", "cos", "tanh", "sigmoid", "relu", "leaky_relu", "elu", "silu", "softplus", "erf", "floor",
  "ceil", "round", "clamp", "isnan", "isinf", "isfinite", "logical_not", "zeros_like", "ones_like", "empty_like",
  "rand_like", "randn_like", "nonzero" } do
  M.takes_all = M.takes_all or {}
  M.takes_all[op] = true
end

return M
