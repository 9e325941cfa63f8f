-- Training as a service: several tenants over one base, losses, the order of requests, what is refused, the socket.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local proto = require "perilune.serve.proto"
local scratch = require "scratch"
local wire = require "perilune.serve.wire"

TestServe = {}

local root
scratch.each(TestServe, function (folder) root = folder end)

local tok = assert(peri.tokenizer.train_bpe({ "one two three four five six" }, { vocab_size = 280 }))

local function tiny()
  peri.seed(1)
  return peri.models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = 280,
    hidden_size = 16, intermediate_size = 32, num_hidden_layers = 2, num_attention_heads = 2, num_key_value_heads = 1,
    max_position_embeddings = 32 }
end

local function open(options)
  local o = { name = "tiny", folder = root .. "/saved" }
  for k, v in pairs(options or {}) do o[k] = v end
  return peri.serve.new(tiny(), tok, o)
end

local function ask(service, name, body, headers)
  local h = { ["content-type"] = "application/json" }
  for k, v in pairs(headers or {}) do h[k] = v end
  local r = service:handle { method = body and "POST" or "GET", path = "/api/v1/" .. name, headers = h,
    body = type(body) == "table" and peri.json.encode(body) or body or "" }
  if r.wait then return r end
  return r.type == "application/json" and peri.json.decode(r.body) or r.body, r.status
end

local function good(service, name, body)
  local value, status = ask(service, name, body)
  lu.assertEquals(status, 200, peri.json.encode(value))
  return value
end

local function settle(service) while service:work() do end end

-- The result of a request that is a future.
local function done(service, name, body)
  local future = good(service, name, body)
  settle(service)
  return (ask(service, "retrieve_future", { request_id = future.request_id }))
end

local function session(service) return good(service, "create_session", {}).session_id end

local function client(service, seed, n)
  local made = done(service, "create_model", { session_id = service.test_session or session(service),
    model_seq_id = n or 0, base_model = "tiny", lora_config = { rank = 4, seed = seed } })
  lu.assertNil(made.error)
  return made.model_id
end

local function datum(tokens, inputs)
  local given = {}
  for name, data in pairs(inputs) do
    given[name] = { data = data, dtype = name == "target_tokens" and "int64" or "float32", shape = { #data } }
  end
  return { model_input = { chunks = { { type = "encoded_text", tokens = tokens } } }, loss_fn_inputs = given }
end

local rows = {
  datum({ 1, 2, 3, 4 }, { target_tokens = { 2, 3, 4, 5 }, weights = { 0, 1, 1, 0.5 } }),
  datum({ 7, 8 }, { target_tokens = { 8, 9 }, weights = { 1, 1 } }),
  datum({ 9, 1, 5 }, { target_tokens = { 1, 5, 9 }, weights = { 1, 0, 1 } }),
}

local function train(id, data, more)
  local b = { model_id = id, forward_backward_input = { data = data or rows, loss_fn = "cross_entropy" } }
  for k, v in pairs(more or {}) do b[k] = v end
  return b
end
local function adam(id, lr) return { model_id = id, adam_params = { learning_rate = lr or 1e-2, eps = 1e-8 } } end

local function bytes_of(tensors)
  local out = {}
  for _, name in ipairs(require("perilune.options").names(tensors)) do out[#out + 1] = name .. tensors[name]:bytes() end
  return table.concat(out)
end
local function weights(service, id) return bytes_of(service.models[id].tenant.adapter:state_dict()) end
local function gradients(service, id)
  local out = {}
  for i, p in ipairs(service.models[id].tenant.adapter:parameters()) do out[i] = p.grad and p.grad:bytes() or "-" end
  return table.concat(out)
end

function TestServe.test_a_tenant_never_sees_another()
  local function steps(service, id, other)
    local losses = {}
    for i = 1, 4 do
      losses[i] = done(service, "forward_backward", train(id)).metrics["loss:sum"]
      if other then
        local w, g = weights(service, id), gradients(service, id)
        done(service, "forward_backward", train(other, { rows[2], rows[2] }))
        lu.assertNil(done(service, "optim_step", adam(other, 0.1)).error)
        done(service, "forward_backward", train(other))
        done(service, "save_weights_for_sampler", { model_id = other })
        lu.assertTrue(w == weights(service, id) and g == gradients(service, id))
      end
      done(service, "optim_step", adam(id))
    end
    return losses, weights(service, id)
  end
  local alone = open()
  local a = client(alone, 3)
  local want, end_weights = steps(alone, a)
  lu.assertTrue(want[4] < want[1])
  local together = open()
  local base = bytes_of(together.base.model:state_dict())
  together.test_session = session(together)
  local first, second = client(together, 3, 0), client(together, 4, 1)
  local got, got_weights = steps(together, first, second)
  lu.assertEquals(got, want)
  lu.assertTrue(got_weights == end_weights)
  lu.assertTrue(bytes_of(together.base.model:state_dict()) == base)
end

-- Log-probabilities by the model itself, and the losses by their formulas over numbers.
local formulas = {
  cross_entropy = function (p, d) return -p * d.weights end,
  importance_sampling = function (p, d) return -math.exp(p - d.logprobs) * d.advantages end,
  ppo = function (p, d)
    local r = math.exp(p - d.logprobs)
    return -math.min(r * d.advantages, math.min(math.max(r, 0.8), 1.2) * d.advantages)
  end,
  cispo = function (p, d) return -math.min(math.max(math.exp(p - d.logprobs), 0.8), 1.2) * d.advantages * p end,
  dro = function (p, d) return -(p * d.advantages - 0.025 * (p - d.logprobs) ^ 2) end,
}

function TestServe.test_every_loss_is_the_sum_of_its_formula()
  local service = open()
  local id = client(service, 1)
  done(service, "forward_backward", train(id))
  done(service, "optim_step", adam(id, 0.05))
  local tokens, targets = { 1, 2, 3, 4, 6 }, { 2, 3, 4, 5, 6 }
  local plain = done(service, "forward_backward", train(id, { datum(tokens, { target_tokens = targets }) },
    { forward_only = true })).loss_fn_outputs[1].logprobs.data
  local inputs = { target_tokens = targets, advantages = { 1, -1, 0.5, 2, -2 }, logprobs = {} }
  for i, p in ipairs(plain) do inputs.logprobs[i] = p + ({ 0.5, -0.5, 0.01, 0.6, 0 })[i] end
  for name, formula in pairs(formulas) do
    local given = name == "cross_entropy" and { target_tokens = targets, weights = { 0, 1, 2, 0.5, 1 } } or inputs
    local want = 0
    for i, p in ipairs(plain) do
      local d = {}
      for k, list in pairs(given) do d[k] = list[i] end
      want = want + formula(p, d)
    end
    local body = train(id, { datum(tokens, given) }, { forward_only = true })
    body.forward_backward_input.loss_fn = name
    lu.assertAlmostEquals(done(service, "forward_backward", body).metrics["loss:sum"], want, 1e-4, name)
  end
  for name in pairs(require("perilune.serve.losses").list) do lu.assertNotNil(formulas[name], name) end
end

function TestServe.test_parts_of_a_batch_add_up()
  local service = open()
  service.test_session = session(service)
  local whole, parts = client(service, 3, 0), client(service, 3, 1)
  local loss = done(service, "forward_backward", train(whole)).metrics["loss:sum"]
  local sum = 0
  for _, row in ipairs(rows) do sum = sum + done(service, "forward_backward", train(parts, { row })).metrics["loss:sum"] end
  lu.assertAlmostEquals(sum, loss, 1e-4)
  local a, b = service.models[whole].tenant.adapter:parameters(), service.models[parts].tenant.adapter:parameters()
  for i, p in ipairs(a) do
    lu.assertEquals(p.grad ~= nil, b[i].grad ~= nil)
    if p.grad then lu.assertTrue(p.grad:sub(b[i].grad):abs():max():item() < 1e-5) end
  end
end

function TestServe.test_requests_are_done_in_their_order_and_once()
  local service = open()
  local id = client(service, 3)
  local b = good(service, "forward_backward", train(id, { rows[2] }, { seq_id = 2 }))
  settle(service)
  lu.assertEquals(select(2, ask(service, "retrieve_future", { request_id = b.request_id })), nil) -- it waits for 1
  local a = good(service, "forward_backward", train(id, { rows[1] }, { seq_id = 1 }))
  lu.assertEquals(good(service, "forward_backward", train(id, { rows[1] }, { seq_id = 1 })), a) -- sent twice
  settle(service)
  local g = gradients(service, id)
  lu.assertNotNil(good(service, "retrieve_future", { request_id = b.request_id }).metrics)
  lu.assertEquals(good(service, "forward_backward", train(id, { rows[1] }, { seq_id = 1 })), a)
  settle(service)
  lu.assertTrue(gradients(service, id) == g)
  local twice = { session_id = service.models[id].session.id, model_seq_id = 0, base_model = "tiny" }
  lu.assertEquals(good(service, "create_model", twice).model_id, id)
  -- one that is refused does not hold up those behind it
  local _, status = ask(service, "forward_backward", train(id, {}, { seq_id = 3 }))
  lu.assertEquals(status, 422)
  lu.assertNotNil(done(service, "optim_step", { model_id = id, seq_id = 4, adam_params = {} }).metrics)
end

function TestServe.test_what_is_wrong_is_refused_by_name_and_nothing_is_lost()
  local service = open { tenants = 1 }
  local id = client(service, 3)
  done(service, "forward_backward", train(id))
  local before = weights(service, id) .. gradients(service, id)
  local ok = rows[2].model_input
  local function with(inputs, input) return train(id, { { model_input = input or ok, loss_fn_inputs = inputs } }) end
  local t = { data = { 1, 2 } }
  local function sample(more)
    local b = { base_model = "tiny", prompt = ok, sampling_params = { max_tokens = 2 } }
    for k, v in pairs(more) do b[k] = v end
    return b
  end
  local cases = {
    { "forward_backward", "{", 422, "no JSON" }, { "forward_backward", "[]", 422, "no object" },
    { "forward_backward", '"x"', 422, "no object" }, { "forward_backward", "{}", 422, "is missing" },
    { "forward_backward", "\xff\xfe", 422, "no JSON" }, { "forward_backward", ("["):rep(100000), 422, "no JSON" },
    { "forward_backward", train "nobody", 404, "model_id" }, { "forward_backward", train(id, {}), 422, "data" },
    { "forward_backward", train(id, { 1 }), 422, "data[0]" },
    { "forward_backward", train(id, rows, { speed = 1 }), 422, 'unknown option "speed"' },
    { "forward_backward", with { target_tokens = { data = { 1 } } }, 422, "data[0].loss_fn_inputs.target_tokens" },
    { "forward_backward", with { target_tokens = { data = { 1, 280 } } }, 422, "target_tokens[1] is 280" },
    { "forward_backward", with { target_tokens = { data = { 1, 0.5 } } }, 422, "target_tokens[1] is 0.5" },
    { "forward_backward", with { target_tokens = { data = { 1, 2 }, shape = { 1, 2 } } }, 422, "2 dimensions" },
    { "forward_backward", with { target_tokens = t, wieghts = t }, 422, 'did you mean "weights"' },
    { "forward_backward", with { target_tokens = t, weights = { data = { 1, "x" } } }, 422, 'weights[1] is "x"' },
    { "forward_backward", with { weights = t }, 422, "target_tokens is missing" },
    { "forward_backward", with({ target_tokens = t }, { chunks = { { type = "image" } } }), 422, 'type "image"' },
    { "forward_backward", with({ target_tokens = t }, { chunks = { { tokens = { -1 } } } }), 422, "chunks[0].tokens[0] is -1" },
    { "forward_backward", with({ target_tokens = t }, { chunks = { { tokens = { 1e300 } } } }), 422, "1e300" },
    { "forward_backward", with { target_tokens = t, weights = { data = { 1, 1e300 } } }, 422, "weights[1] is 1e300" },
    { "forward_backward", with { target_tokens = { data = { 1, 2 }, dtype = "int7" } }, 422, "int7" },
    { "optim_step", { model_id = id }, 422, "adam_params" },
    { "optim_step", { model_id = id, adam_params = { learning_rate = -1 } }, 422, "learning_rate" },
    { "optim_step", { model_id = id, adam_params = { lr = 1 } }, 422, 'unknown option "lr"' },
    { "create_model", { session_id = "x", model_seq_id = 0, base_model = "tiny" }, 404, "session_id" },
    { "asample", sample { prompt = { chunks = {} } }, 422, "prompt has 0 tokens" },
    { "asample", sample { sampling_params = { temperature = "hot" } }, 422, "temperature" },
    { "asample", sample { sampling_params = { top_p = 0 } }, 422, "top_p" },
    { "asample", sample { base_model = "other" }, 404, "base_model" },
    { "asample", sample { sampling_params = { stop = { 280 } } }, 422, "sampling_params.stop[0] is 280" },
    { "asample", sample { sampling_params = { stop = { "a", -1 } } }, 422, "sampling_params.stop[1] is -1" },
    { "asample", sample { sampling_params = { stop = { a = 1 } } }, 422, 'sampling_params.stop is {"a":1}' },
    { "asample", sample { sampling_params = { stop = { { 1 } } } }, 422, "sampling_params.stop[0] is [1]" },
    { "asample", sample { sampling_params = { stop = { peri.json.null } } }, 422, "sampling_params.stop[0] is null" },
    { "asample", sample { model_path = "x" }, 400, "model_path: \"x\" is no tinker://MODEL/sampler_weights/NAME" },
    { "asample", sample { num_samples = 0 }, 422, "num_samples" },
    { "asample", sample { topk_prompt_logprobs = 3 }, 422, "topk_prompt_logprobs" },
    { "load_weights", { model_id = id, path = "tinker://a/weights/../../etc", optimizer = true }, 400, "path" },
    { "load_weights", { model_id = id, path = "/etc/passwd", optimizer = true }, 400, "path" },
    { "load_weights", { model_id = id, path = "tinker://a/weights/b", optimizer = true }, 404, "there is no" },
    { "save_weights", { model_id = id, path = "../x" }, 400, "path" },
    { "retrieve_future", { request_id = "99" }, 404, "request_id" },
    { "create_model", { session_id = "x", model_seq_id = 0, base_model = "tiny", lora_config = { rank = 4,
      train_attn = false, train_mlp = false, train_unembed = false } }, 422, "train_attn" },
    { "nothing", {}, 404, "/api/v1/nothing" }, { "nothing", {}, 404, "forward_backward, get_info" }, { "optim_step", nil, 405, "POST" },
  }
  for i, case in ipairs(cases) do
    local value, status = ask(service, case[1], case[2])
    local message = ("case %d: %s"):format(i, peri.json.encode(value))
    lu.assertEquals(status, case[3], message)
    lu.assertStrContains(value.error, case[4], false, message)
    settle(service)
    lu.assertTrue(weights(service, id) .. gradients(service, id) == before, message)
  end
  local value, status = ask(service, "create_model", { session_id = session(service), model_seq_id = 0,
    base_model = "tiny" })
  lu.assertEquals(status, 429)
  lu.assertStrContains(value.error, "1 training clients")
  lu.assertNotNil(done(service, "optim_step", adam(id)).metrics)
  lu.assertStrContains(done(service, "optim_step", adam(id)).error, "no gradients")
  lu.assertNotNil(done(service, "forward_backward", train(id)).metrics)
end

-- Every place in a body, and the body with another value there.
local function each_change(body, values, fn)
  local function walk(t, path)
    for k, v in pairs(t) do
      for _, value in ipairs(values) do
        t[k] = value
        fn(path .. tostring(k), peri.json.encode(body))
      end
      t[k] = v
      if type(v) == "table" then walk(v, path .. tostring(k) .. ".") end
    end
  end
  walk(body, "")
end

function TestServe.test_no_body_whatever_is_the_servers_fault()
  local service = open { tenants = 10000, queued = 100000, kept = 100000 }
  local id, of = client(service, 3), session(service)
  local path = done(service, "save_weights", { model_id = id, path = "a" }).path
  local policy = datum({ 1, 2 }, { target_tokens = { 2, 3 }, logprobs = { -1, -2 }, advantages = { 1, -1 } })
  local bodies = {
    { "create_session", { tags = {}, sdk_version = "1" } }, { "session_heartbeat", { session_id = of } },
    { "create_model", { session_id = of, model_seq_id = 0, base_model = "tiny", lora_config = { rank = 1, seed = 1,
      train_attn = true, train_mlp = true, train_unembed = true }, optimizer_config = { type = "adamw" } } },
    { "get_info", { model_id = id } }, { "weights_info", { tinker_path = path } },
    { "forward_backward", train(id, { rows[2] }, { forward_only = false }) },
    { "forward_backward", { model_id = id, forward_backward_input = { data = { policy }, loss_fn = "ppo",
      loss_fn_config = { clip_low_threshold = 0.9, clip_high_threshold = 1.1 } } } },
    { "forward_backward", { model_id = id, forward_backward_input = { data = { policy }, loss_fn = "dro",
      loss_fn_config = { beta = 0.1 } } } },
    { "optim_step", { model_id = id, adam_params = { learning_rate = 1e-3, beta1 = 0.9, beta2 = 0.9, eps = 1e-8,
      weight_decay = 0.1, grad_clip_norm = 1 } } },
    { "save_weights", { model_id = id, path = "b", overwrite = true } },
    { "save_weights_for_sampler", { model_id = id, path = "c", sampling_session_seq_id = 1 } },
    { "load_weights", { model_id = id, path = path, optimizer = true } },
    { "create_sampling_session", { session_id = of, sampling_session_seq_id = 7, base_model = "tiny" } },
    { "asample", { base_model = "tiny", prompt = rows[2].model_input, num_samples = 1, prompt_logprobs = true,
      sampling_params = { max_tokens = 2, seed = 1, stop = { 3, "x" }, temperature = 1, top_k = 5, top_p = 0.5 } } },
    { "retrieve_future", { request_id = "1" } }, { "unload_model", { model_id = "x" } },
  }
  local null = peri.json.null
  local values = { null, -1, 0, 1, 0.5, 280, 1e300, -1e300, 1 << 53, math.mininteger, "", "x", "\0", true, false, {},
    peri.json.array {}, peri.json.array { null }, { a = 1 }, { { 1 } }, { -1 }, { 280, 281 } }
  local count = 0
  for _, entry in ipairs(bodies) do
    each_change(entry[2], values, function (place, body)
      count = count + 1
      local value, status = ask(service, entry[1], body)
      local message = ("%s: %s: %s"):format(entry[1], place, body)
      lu.assertTrue(status == 200 or status >= 400 and status < 500, message)
      if status ~= 200 or not value.request_id then return end
      settle(service)
      local result
      result, status = ask(service, "retrieve_future", { request_id = value.request_id })
      lu.assertEquals(status, 200, message)
      if result.error then lu.assertEquals({ result.category, message }, { "user", message }, result.error) end
    end)
  end
  lu.assertTrue(count > 1000, count)
  for _, p in ipairs(service.models[id].tenant.adapter:parameters()) do lu.assertTrue(p:isfinite():all():item()) end
  for _, request in ipairs { { method = "POST", path = "/api/v1/create_session" }, { path = "/" }, {},
    { path = "/api/v1/x\255\0" }, { method = "\255", path = "/api/v1/asample" } } do
    lu.assertTrue(service:handle(request).status < 500) -- from Lua, without headers or a body
  end
end

function TestServe.test_a_service_is_of_one_model_its_tokenizer_and_a_name()
  lu.assertErrorMsgContains("name", peri.serve.new, tiny(), tok, { name = "", folder = root })
  local larger = assert(peri.tokenizer.train_bpe({ ("one two three four five six seven eight nine"):rep(3) },
    { vocab_size = 300, special_tokens = {} }))
  local small = peri.models.llama.new { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = 200,
    hidden_size = 8, intermediate_size = 8, num_hidden_layers = 1, num_attention_heads = 1, num_key_value_heads = 1,
    max_position_embeddings = 8 }
  lu.assertErrorMsgContains("another model's", peri.serve.new, small, larger, { name = "x", folder = root })
end

function TestServe.test_no_pass_is_larger_than_the_docs_say()
  local service = open()
  local id, data, most, rows_read = client(service, 3), {}, 0, 0
  for i = 1, 90 do
    local tokens, n = {}, 1 + i * 7 % 32
    for t = 1, n do tokens[t] = t end
    data[i] = datum(tokens, { target_tokens = tokens })
  end
  local model = service.base.model
  local forward = model.forward
  model.forward = function (self, ids, ...)
    most, rows_read = math.max(most, ids.shape[1] * ids.shape[2]), rows_read + ids.shape[1]
    return forward(self, ids, ...)
  end
  lu.assertEquals(#done(service, "forward_backward", train(id, data)).loss_fn_outputs, 90)
  local said = (assert(peri.files.read "docs/service.md"):match "A pass is of ([%d,]+) tokens":gsub(",", ""))
  lu.assertEquals(rows_read, 90)
  lu.assertTrue(most <= tonumber(said) and most > tonumber(said) / 2, most)
end

function TestServe.test_a_step_that_leaves_no_numbers_moves_nothing()
  local service = open()
  local id = client(service, 3)
  local function adam_of(params) return done(service, "optim_step", { model_id = id, adam_params = params }) end
  local function state() return weights(service, id) .. bytes_of((service.models[id].tenant.optimizer:state_dict())) end
  local function refused(result, what)
    lu.assertEquals(result.category, "user")
    lu.assertStrContains(result.error, what)
  end
  for _ = 1, 2 do -- the first step, and one behind others
    local before = state()
    refused(adam_of {}, "no gradients")
    done(service, "forward_backward", train(id))
    refused(adam_of { learning_rate = 1e300 }, "learning_rate 1e+300")
    lu.assertTrue(state() == before)
    done(service, "forward_backward", train(id))
    for _, p in ipairs(service.models[id].tenant.adapter:parameters()) do if p.grad then p.grad:fill_(1 / 0) end end
    refused(adam_of {}, "gradients are not finite")
    lu.assertTrue(state() == before)
    done(service, "forward_backward", train(id))
    local g = gradients(service, id)
    refused(done(service, "forward_backward", train(id, { datum({ 7, 8 },
      { target_tokens = { 8, 9 }, weights = { 3e38, 3e38 } }) })), "the loss is")
    lu.assertTrue(gradients(service, id) == g)
    lu.assertNotNil(adam_of { learning_rate = 0.01 }.metrics)
  end
  local body = train(id, { datum({ 7 }, { target_tokens = { 8 }, logprobs = { 5 }, advantages = { 1 } }) })
  for name, entry in pairs(require("perilune.serve.losses").list) do
    if table.concat(entry.inputs, " "):find "logprobs" then
      body.forward_backward_input.loss_fn = name
      local value, status = ask(service, "forward_backward", body)
      lu.assertEquals(status, 422, name)
      lu.assertStrContains(value.error, "logprobs[0] is 5")
    end
  end
end

function TestServe.test_saved_weights_go_on_as_if_nothing_had_been()
  local service = open()
  service.test_session = session(service)
  local id = client(service, 3, 0)
  local function step(who)
    local loss = done(service, "forward_backward", train(who)).metrics["loss:sum"]
    lu.assertNil(done(service, "optim_step", adam(who)).error)
    return loss
  end
  step(id)
  local path = done(service, "save_weights", { model_id = id, path = "one" }).path
  lu.assertEquals(path, ("tinker://%s/weights/one"):format(id))
  lu.assertEquals(select(2, ask(service, "save_weights", { model_id = id, path = "one" })), 409)
  lu.assertEquals(good(service, "weights_info", { tinker_path = path }).lora_rank, 4)
  local want = { step(id), step(id) }
  local back = done(service, "load_weights", { model_id = id, path = path, optimizer = true })
  lu.assertNil(back.error)
  lu.assertEquals({ step(id), step(id) }, want)
  local other = open() -- another process, later
  local made = done(other, "load_weights", { session_id = session(other), model_seq_id = 0, path = path, optimizer = true })
  service = other
  lu.assertEquals({ step(made.model_id), step(made.model_id) }, want)
  local plain = assert(peri.peft.load(tiny(), (root .. "/saved/" .. id:gsub(":", "_") .. "/weights/one"))) -- PEFT's
  lu.assertEquals(plain.config.r, 4)
end

function TestServe.test_samples_are_of_the_weights_that_were_saved()
  local service = open()
  local id = client(service, 3)
  for _ = 1, 5 do
    done(service, "forward_backward", train(id))
    done(service, "optim_step", adam(id, 0.05))
  end
  local sampler = done(service, "save_weights_for_sampler", { model_id = id, sampling_session_seq_id = 0 })
  local function draw(more)
    local b = { sampling_session_id = sampler.sampling_session_id, prompt = rows[1].model_input, num_samples = 3,
      prompt_logprobs = true, sampling_params = { max_tokens = 6, seed = 5, temperature = 1 } }
    for k, v in pairs(more or {}) do b[k] = v end
    return b
  end
  local got = done(service, "asample", draw())
  lu.assertEquals(#got.sequences, 3)
  lu.assertEquals(#got.prompt_logprobs, 4)
  -- the policy that samples is the policy that learns: the same log-probabilities
  local s = got.sequences[2]
  local all = { 1, 2, 3, 4 }
  table.move(s.tokens, 1, #s.tokens, 5, all)
  local tokens, targets = table.move(all, 1, #all - 1, 1, {}), table.move(all, 2, #all, 1, {})
  local out = done(service, "forward_backward", train(id, { datum(tokens, { target_tokens = targets }) },
    { forward_only = true })).loss_fn_outputs[1].logprobs.data
  for i, p in ipairs(s.logprobs) do lu.assertEquals(out[#out - #s.tokens + i], p) end
  for i = 1, 3 do lu.assertEquals(got.prompt_logprobs[i + 1], out[i]) end
  done(service, "forward_backward", train(id))
  done(service, "optim_step", adam(id, 0.1))
  lu.assertEquals(done(service, "asample", draw()), got) -- what was saved, not what is
  local base = done(service, "asample", { base_model = "tiny", prompt = rows[1].model_input,
    sampling_params = { max_tokens = 6, seed = 5 } })
  lu.assertNotEquals(base.sequences[1].logprobs, got.sequences[1].logprobs)
  -- many at once are each what they are alone
  local asked = {}
  for i = 1, 6 do asked[i] = good(service, "asample", draw { sampling_params = { max_tokens = 2 + i, seed = i } }) end
  settle(service)
  for i = 1, 6 do
    local one = done(service, "asample", draw { sampling_params = { max_tokens = 2 + i, seed = i } })
    lu.assertEquals(good(service, "retrieve_future", { request_id = asked[i].request_id }), one)
  end
  -- whoever waits comes next, however many more samples are asked for
  local last = good(service, "asample", draw { sampling_params = { max_tokens = 8, seed = 1 } })
  service:work()
  local step = good(service, "forward_backward", train(id))
  for i = 1, 40 do
    good(service, "asample", draw { sampling_params = { max_tokens = 8, seed = i } })
    service:work()
  end
  lu.assertNotNil(good(service, "retrieve_future", { request_id = last.request_id }).sequences)
  lu.assertNotNil(good(service, "retrieve_future", { request_id = step.request_id }).metrics)
  settle(service)
  local named = done(service, "save_weights_for_sampler", { model_id = id, path = "named" }).path
  local again = good(service, "create_sampling_session", { session_id = session(service), sampling_session_seq_id = 0,
    model_path = named })
  lu.assertNotNil(done(service, "asample", draw { sampling_session_id = again.sampling_session_id }).sequences)
end

function TestServe.test_results_are_kept_for_a_while()
  local service = open { kept = 4 }
  local id = client(service, 1)
  local first = good(service, "forward_backward", train(id))
  local r = ask(service, "retrieve_future", { request_id = first.request_id })
  lu.assertEquals({ r.otherwise.status, r.wait() }, { 408 })
  settle(service)
  lu.assertNotNil(r.wait())
  for _ = 1, 8 do done(service, "forward_backward", train(id)) end
  local value, status = ask(service, "retrieve_future", { request_id = first.request_id })
  lu.assertEquals({ status, value.error }, { 410, "request_id: the result of " .. first.request_id .. " is no longer kept" })
end

function TestServe.test_clients_that_are_gone_give_way()
  local service = open { tenants = 2, idle = 0, snapshots = 2 }
  local first = client(service, 1)
  local sampler = done(service, "save_weights_for_sampler", { model_id = first }).sampling_session_id
  local draw = { sampling_session_id = sampler, prompt = rows[1].model_input, sampling_params = { max_tokens = 2, seed = 1 } }
  local want = done(service, "asample", draw)
  client(service, 2)
  service.models[first].session.seen = 0
  local third = client(service, 3) -- the one that was silent longest goes
  lu.assertNil(service.models[first])
  lu.assertEquals(done(service, "asample", draw), want) -- its samples stay
  lu.assertEquals(select(2, ask(service, "optim_step", adam(first))), 404)
  for _ = 1, 2 do done(service, "save_weights_for_sampler", { model_id = third }) end
  lu.assertEquals(select(2, ask(service, "asample", draw)), 404) -- of many snapshots the oldest goes
  local of = third:match "^[^:]+"
  good(service, "sessions/" .. of .. "/finish", {})
  settle(service)
  lu.assertNil(service.models[third])
  local sites = 0
  for _, place in ipairs(require("perilune.peft.targets").places(service.base.model)) do
    local on = place.layer.adapter
    sites = math.max(sites, on and (rawlen(on) > 0 and rawlen(on) or 1) or 0)
  end
  lu.assertTrue(sites <= 2, sites) -- one client is left, and one adapter draws
end

function TestServe.test_web_pages_and_strangers_are_not_answered()
  local service = open { key = "secret" }
  service.hosts = { ["127.0.0.1"] = true }
  local function status(headers) return (select(2, ask(service, "healthz", nil, headers))) end
  lu.assertEquals(status { host = "127.0.0.1:80", ["x-api-key"] = "secret" }, 200)
  lu.assertEquals(status { host = "127.0.0.1", authorization = "Bearer secret" }, 200)
  lu.assertEquals(status { host = "127.0.0.1" }, 401)
  lu.assertEquals(status { host = "evil.example", ["x-api-key"] = "secret" }, 403)
  lu.assertEquals(status { host = "127.0.0.1", origin = "http://evil.example", ["x-api-key"] = "secret" }, 403)
end

-- A request as the public client writes it.
local function as_proto(id, data, seq)
  local list = {}
  local function packed(t, format)
    local out = {}
    for i, v in ipairs(t) do out[i] = string.pack("<" .. format, v) end
    return table.concat(out)
  end
  local tensor = { { "dense", "bytes" }, [3] = { "dtype", "int" }, [4] = { "shape", "int", "list" } }
  local datum_of = { { "model_input", { { "encoded_text", { { "tokens", "bytes" } } } }, "list" },
    { "loss_fn_inputs", tensor, "map" } }
  for i, d in ipairs(data) do
    local inputs = {}
    for name, t in pairs(d.loss_fn_inputs) do
      local whole = name == "target_tokens"
      inputs[name] = { dense = packed(t.data, whole and "i8" or "f"), dtype = whole and 2 or 1, shape = t.shape }
    end
    list[i] = { model_input = { { encoded_text = { tokens = packed(d.model_input.chunks[1].tokens, "i4") } } },
      loss_fn_inputs = inputs }
  end
  return proto.write({ model_id = id, seq_id = seq, data = list, loss_fn = "cross_entropy" },
    { { "model_id", "bytes" }, { "seq_id", "int" }, { "data", datum_of, "list" }, { "loss_fn", "bytes" } })
end

function TestServe.test_protocol_buffers_say_what_json_says()
  local service = open()
  local id = client(service, 3)
  local want = done(service, "forward_backward", train(id, rows, { forward_only = true }))
  local binary = { ["content-type"] = "application/x-protobuf", accept = "application/x-protobuf" }
  local future = ask(service, "forward_backward", as_proto(id, rows, 1), binary)
  settle(service)
  local body, status = ask(service, "retrieve_future", { request_id = future.request_id }, { accept = binary.accept })
  lu.assertEquals(status, 200)
  local batched = { { "data", "bytes" }, { "offsets", "bytes" }, { "dtype", "int" } }
  local record = { { "type_tag", "bytes" }, { "fields", batched, "map" }, { "num_datums", "int" } }
  local got = proto.read(body, { { "type", "bytes" }, { "outputs", record, "list" }, { "metrics", "double", "map" } }, "x")
  local field, at = got.outputs[1].fields.logprobs, 1
  lu.assertEquals({ got.outputs[1].num_datums, #field.offsets }, { 3, 8 * 4 })
  for _, o in ipairs(want.loss_fn_outputs) do
    for _, p in ipairs(o.logprobs.data) do
      local v
      v, at = string.unpack("<f", field.data, at)
      lu.assertEquals(v, p)
    end
  end
  -- cut and changed at every byte: a refusal or an answer, never anything else
  local whole, rng = as_proto(id, { rows[2] }, 0), peri.rng(1)
  for i = 1, #whole do
    local _, cut = ask(service, "forward_backward", whole:sub(1, i - 1), binary)
    local changed = whole:sub(1, i - 1) .. string.char(math.floor(rng:uniform(0, 256))) .. whole:sub(i + 1)
    local _, other = ask(service, "forward_backward", changed, binary)
    for _, s in ipairs { cut, other } do lu.assertTrue(s == 200 or s == 404 or s == 422, s) end
  end
  settle(service)
  lu.assertNotNil(done(service, "optim_step", adam(id)).metrics)
end

function TestServe.test_every_body_has_fields_and_every_route_a_body()
  for _, name in ipairs { "create_session", "create_model", "forward_backward", "optim_step", "asample", "save_weights",
    "save_weights_for_sampler", "load_weights", "retrieve_future", "get_info", "unload_model" } do
    lu.assertTrue(wire.is_known(name), name)
    local _, status = ask(open(), name, { surely_not = 1 })
    lu.assertEquals(status, 422, name)
  end
end

-- ---- the socket ----

local function server_or_skip(options)
  local http = require "perilune.serve.http"
  local server, message = http.listen(options)
  lu.skipIf(server == nil and message:find "not installed" ~= nil, message)
  return assert(server, message)
end

-- What bash sends to a port, while the server turns.
local function spoken(server, service, text)
  local path = scratch.path()
  assert(peri.files.write(path .. ".in", text))
  local pipe = io.popen(("timeout 20 bash -c 'exec 3<>/dev/tcp/127.0.0.1/%d; cat %s.in >&3; cat <&3' >%s.out 2>&1; "
    .. "touch %s.end"):format(server.port, path, path, path), "w")
  local stop = os.time() + 20
  while not peri.files.exists(path .. ".end") and os.time() < stop do server:turn(service, 0.02) end
  pipe:close()
  local out = peri.files.read(path .. ".out")
  for _, e in ipairs { ".in", ".out", ".end" } do os.remove(path .. e) end
  return out
end

local function posted(name, body, more)
  return ("POST /api/v1/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Length: %d\r\n%s\r\n%s")
    :format(name, #body, more or "", body)
end

function TestServe.test_the_socket_has_limits_and_answers()
  local service = open()
  local server = server_or_skip { most_body = 2000, seconds = 1, patience = 1 }
  lu.assertErrorMsgContains("unknown option", require("perilune.serve.http").listen, { prot = 1 })
  local again, message = require("perilune.serve.http").listen { port = server.port }
  lu.assertNil(again)
  lu.assertStrContains(message, "cannot listen")
  lu.assertStrContains(spoken(server, service, posted("create_session", "{}")), "session_id")
  lu.assertStrContains(spoken(server, service, posted("create_session", "{")), "422")
  lu.assertStrContains(spoken(server, service, posted("create_session", (" "):rep(3000))), "413")
  lu.assertNotStrContains(spoken(server, service, "GARBAGE\r\n\r\n"), "200")
  local begun = os.time() -- silent for longer than it may be
  spoken(server, service, "POST /api/v1/x HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n123")
  lu.assertTrue(os.time() - begun < 10)
  local id = client(service, 1)
  local future = good(service, "forward_backward", train(id, rows, { seq_id = 2 })) -- waits for 1, which never comes
  local late = spoken(server, service, posted("retrieve_future", peri.json.encode { request_id = future.request_id }))
  lu.assertStrContains(late, "408")
  lu.assertStrContains(late, "try_again")
  lu.assertStrContains(spoken(server, service, (posted("healthz", ""):gsub("^POST", "GET"))), "200")
  server:close()
end

local function page() return assert(peri.files.read "docs/service.md") end

function TestServe.test_the_session_of_the_docs_runs_with_curl()
  lu.skipIf(not os.execute "command -v curl >/dev/null 2>&1", "curl is not installed")
  local service, server = open { name = "smollm2" }, server_or_skip()
  local script = page():match "```bash\n(.-)```":gsub("8473", tostring(server.port))
  local path = root .. "/session"
  assert(peri.files.write(path, script))
  local pipe = io.popen(("timeout 60 bash %s >%s.out 2>&1; touch %s.end"):format(path, path, path), "w")
  local stop = os.time() + 60
  while not peri.files.exists(path .. ".end") and os.time() < stop do server:turn(service, 0.02) end
  pipe:close()
  server:close()
  local out, losses = assert(peri.files.read(path .. ".out")), {}
  for v in out:gmatch '"loss:sum":([%d.]+)' do losses[#losses + 1] = tonumber(v) end
  lu.assertEquals(#losses, 3, out)
  lu.assertTrue(losses[3] < losses[1], out)
  lu.assertEquals(select(2, out:gsub('"stop_reason"', "")), 2, out)
  lu.assertStrContains(out, "/weights/first")
  lu.assertNotStrContains(out, "error")
end

function TestServe.test_the_docs_have_every_field_of_every_request()
  local text = page()
  for _, name in ipairs(wire.names()) do
    local found = false
    for line in text:gmatch "[^\n]+" do
      local names = line:match "^| ([^|]*) |"
      if names and names:find("`" .. name .. "`", 1, true) then
        local missing = {}
        for _, field in ipairs(wire.fields(name)) do
          if field ~= "type" and not line:find("`" .. field .. "`", 1, true) then missing[#missing + 1] = field end
        end
        found = found or #missing == 0
      end
    end
    lu.assertTrue(found, name)
  end
end

function TestServe.test_the_command_serves_until_ctrl_c()
  server_or_skip():close()
  assert(tiny():save(root .. "/model"))
  assert(tok:save(root .. "/model"))
  local log = root .. "/log"
  local status, text = child.shell(([[
%s train-server %s/model --socket %s/s --folder %s/saved >%s 2>&1 & p=$!
for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do grep -q serving %s && break; sleep 0.3; done
stat -c %%a %s/s; kill -INT $p; wait $p; echo status $?; cat %s; ls %s/s 2>&1]]):format(child.program, root, root, root,
    log, log, root, log, root))
  lu.assertStrContains(text, "600\nstatus 130\nserving " .. root .. "/model at unix:" .. root .. "/s")
  lu.assertStrContains(text, "ended")
  lu.assertStrContains(text, "No such file")
  lu.assertNotNil(status)
  status, text = child.shell(("%s train-server %s/model --address 0.0.0.0"):format(child.program, root))
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "--key")
end
