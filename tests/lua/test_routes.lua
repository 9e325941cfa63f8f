-- Routing replay: tokens go to the experts that they went to before.
local lu = require "luaunit"
local peri = require "perilune"
local models = require "perilune.models"
local loss = require "perilune.loss"
local optim = require "perilune.optim"
local rl = require "perilune.rl"
local text = require "perilune.text"

TestRoutes = {}

local tok = text.chars("0123456789,:", { separator = true })

local function net(seed, dense)
  peri.seed(seed)
  return models.deepseek_v3.new({ model_type = "deepseek_v3", vocab_size = tok.size, hidden_size = 16,
    intermediate_size = 32, moe_intermediate_size = 8, num_hidden_layers = 3, first_k_dense_replace = dense or 1,
    num_attention_heads = 2, n_routed_experts = 6, n_shared_experts = 1, num_experts_per_tok = 2, kv_lora_rank = 8,
    qk_nope_head_dim = 4, qk_rope_head_dim = 4, v_head_dim = 8, eos_token_id = tok.eos }, { std = 0.3 })
end

local function rollout(model)
  local rows = { { prompt = "1:2" }, { prompt = "3" }, { prompt = "4,5:6" } }
  local batch = rl.rollout(model, tok, rows, function (_, answer) return #answer end, { group = 4, max_new_tokens = 5 })
  batch.routes = model:routes(batch.sequences)
  return batch
end

local function gradients(model, batch, replay, by_length)
  local advantage, weight = rl.advantages(batch)
  local tokens, bits = weight:sum():item(), {}
  for part in rl.parts(rl.with_signal(batch, advantage, weight), 3, { by_length = by_length }) do
    local logp = model:token_logprobs(part.sequences, part.from, { routes = replay and part.routes or nil })
    loss.policy(logp, part.logprobs, part.advantage, part.weight, { tokens = tokens }):backward()
    bits[#bits + 1] = logp:detach():bytes()
  end
  for _, p in ipairs(model:parameters()) do
    bits[#bits + 1] = p.grad and p.grad:bytes() or ""
    p.grad = nil
  end
  return bits
end

function TestRoutes.test_the_replay_is_a_no_op_while_the_policy_is_the_one_that_sampled()
  local model = net(1)
  local batch = rollout(model)
  lu.assertEquals(batch.routes.shape, { 12, batch.ids:size(2), 2, 2 })
  for _, by_length in ipairs { false, true } do
    lu.assertEquals(gradients(model, batch, true, by_length), gradients(model, batch, false, by_length))
  end
  model:checkpointing()
  lu.assertEquals(gradients(model, batch, true), gradients(model, batch, false))
end

function TestRoutes.test_tokens_go_where_they_went_before_after_the_policy_moved()
  local model = net(2)
  local batch = rollout(model)
  local opt = optim.SGD(model:parameters(), { lr = 2 })
  model:token_logprobs(batch.sequences, batch.from):mul(batch.mask):sum():neg():div(40):backward()
  opt:step { clip = 1 }:zero_grad()
  local now = model:routes(batch.sequences)
  lu.assertTrue(now:ne(batch.routes):any():item())
  local again = model:routes(batch.sequences, { routes = batch.routes })
  lu.assertEquals(again:bytes(), batch.routes:bytes())
  lu.assertNotEquals(gradients(model, batch, true), gradients(model, batch, false))
end

function TestRoutes.test_what_is_no_route_is_refused()
  local model, ids = net(3), peri.zeros({ 2, 4 }, "i64")
  local function with(routes, of)
    return function () (of or model):forward(ids, { routes = routes }) end
  end
  lu.assertErrorMsgContains("routes is i64 of shape (2, 4, 1, 2), expected i64 of (2, 4, 2, 2)",
    with(peri.zeros({ 2, 4, 1, 2 }, "i64")))
  lu.assertErrorMsgContains("routes is f32 of shape (2, 4, 2, 2)", with(peri.zeros { 2, 4, 2, 2 }))
  lu.assertFalse(pcall(with(peri.full({ 2, 4, 2, 2 }, 6, { dtype = "i64" })))) -- there are experts 0 to 5
  local dense = net(3, 3)
  lu.assertErrorMsgContains("no layer has experts", dense.routes, dense, ids)
  lu.assertErrorMsgContains("the model has no experts", with(peri.zeros({ 2, 4, 2, 2 }, "i64"), dense))
end

os.exit(lu.LuaUnit.run())
