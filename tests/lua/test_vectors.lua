-- Losses of post-training against values computed elsewhere (tests/data/rl_losses.json). Tensors named
-- lcg(name, shape, scale) there follow the file's own rule.
local lu = require "luaunit"
local peri = require "perilune"
local rl = require "perilune.rl"

local v = assert(peri.json.decode(assert(peri.files.read "tests/data/rl_losses.json")))

-- value = ((x >> 8) / 2^24 - 0.5) * scale, x0 = FNV1a32(name), x = x * 1664525 + 1013904223 mod 2^32
local function lcg(name, shape, scale)
  local x, n, list = 2166136261, 1, {}
  for i = 1, #name do x = ((x ~ name:byte(i)) * 16777619) & 0xffffffff end
  for _, d in ipairs(shape) do n = n * d end
  for i = 1, n do
    x = (x * 1664525 + 1013904223) & 0xffffffff
    list[i] = ((x >> 8) / (1 << 24) - 0.5) * scale
  end
  return peri.tensor(list, "f64"):reshape(shape)
end

local function f64(t) return peri.tensor(t, "f64") end

-- The file has nine decimals.
local function near(got, want, what)
  local d = got:sub(f64(want)):abs():max():item()
  lu.assertTrue(d < 2e-9, ("%s differs by %g"):format(what, d))
end

TestVectors = {}

local function grpo_inputs()
  local g = v.grpo_loss
  local logits = lcg("grpo.logits", { 4, 5, 7 }, 4):detach():requires_grad_()
  local logp = logits:log_softmax(-1):gather(peri.tensor(g.tokens):unsqueeze(3), 3):squeeze(3) -- (4, 5)
  return g, logits, logp, f64(g.mask), f64(g.adv):unsqueeze(2):expand { 4, 5 }
end

function TestVectors.test_token_logprobs_and_kl_and_ratio()
  local g, _, logp = grpo_inputs()
  near(logp, g.logp, "logp")
  near(rl.kl(logp, f64(g.ref_logp)), g.kl_k3, "k3")
  near(logp:sub(f64(g.old_logp)):exp(), g.ratio, "ratio")
end

local function check_grpo(name, opts)
  local g, logits, logp, mask, adv = grpo_inputs()
  opts.clip, opts.beta, opts.ref = g.eps, g.beta, f64(g.ref_logp)
  local loss = rl.clipped(logp, f64(g.old_logp), adv, mask, opts)
  local want = g[name]
  lu.assertAlmostEquals(loss:item(), want.loss, 2e-9)
  loss:backward()
  near(logits.grad:at(1, 1), want.grad_row0_t0, name .. " gradient")
  lu.assertAlmostEquals(logits.grad:norm():item(), want.grad_l2, 2e-9)
  lu.assertAlmostEquals(logits.grad:abs():sum():item(), want.grad_sum_abs, 2e-8)
end

function TestVectors.test_grpo_loss_of_deepseekmath() check_grpo("grpo", { reduce = "sequence" }) end
function TestVectors.test_token_level_loss_of_dapo() check_grpo("bnpo_dapo", { reduce = "token" }) end
function TestVectors.test_constant_divisor_of_dr_grpo() check_grpo("dr_grpo", { reduce = "constant" }) end

-- DeepSeek-V3 (2412.19437 eq. 26) takes the probability of the whole answer, in the ratio and in the KL.
function TestVectors.test_ratio_of_whole_answers_of_deepseek_v3()
  check_grpo("v3_sequence", { level = "whole", reduce = "sequence" })
end

function TestVectors.test_group_advantages_in_three_conventions()
  local g = v.grpo_adv
  local r = f64(g.rewards):reshape { 12 }
  local function run(std, eps) return r:group_advantage(nil, 4, std, eps):reshape { 3, 4 } end
  near(run("sample", 1e-4), g.adv_trl_sample_std_eps1e4, "trl")
  near(run("none", 0), g.adv_dr_grpo, "dr_grpo")
  local population = run("population", 0)
  for _, i in ipairs { 1, 3 } do near(population:at(i), g.adv_population_std_no_eps[i], "population") end
  lu.assertEquals(population:at(2):abs():max():item(), 0) -- no spread: no signal, and no NaN
end

function TestVectors.test_gae_and_whitening()
  local p = v.ppo
  local adv, returns = peri.gae(f64(p.rewards), f64(p.values), nil, nil, nil, nil, p.gamma, p.lam)
  near(adv, p.advantages, "advantages")
  near(returns, p.returns, "returns")
  local all = peri.ones_like(adv)
  near(rl.whiten(adv, all), p.whitened, "whitened")
  for _, skipped in ipairs { "carry", "zero" } do
    local own, behind = rl.token_gae(f64(p.rewards), f64(p.values), all, { gamma = p.gamma, lam = p.lam, skipped = skipped })
    near(own, p.advantages, "advantages of tokens")
    near(behind, p.returns, "returns of tokens")
  end
end

function TestVectors.test_ppo_policy_and_value_loss()
  local p = v.ppo
  local logp, value = f64(p.new_logp):requires_grad_(), f64(p.vpred):requires_grad_()
  local adv, old = f64(p.whitened), f64(p.values)
  local policy = rl.clipped(logp, f64(p.old_logp), adv, peri.ones_like(adv), { clip = p.cliprange })
  local value_loss = peri.loss.value(value, f64(p.returns), peri.ones_like(adv), { clip = p.cliprange_value, old = old })
  lu.assertAlmostEquals(policy:item(), p.pg_loss, 2e-9)
  lu.assertAlmostEquals(value_loss:item(), p.vf_loss, 2e-9)
  local loss = policy:add(value_loss:mul(p.vf_coef))
  lu.assertAlmostEquals(loss:item(), p.loss, 2e-9)
  loss:backward()
  near(logp.grad, p.grad_logp, "grad_logp")
  near(value.grad, p.grad_v, "grad_v")
end

-- The k3 estimator's mean under the policy is the exact KL, and its sign is right.
function TestVectors.test_k3_estimates_the_kl_divergence()
  local p, q = f64 { 0.7, 0.2, 0.1 }, f64 { 0.5, 0.3, 0.2 }
  local exact = p:mul(p:div(q):log()):sum():item()
  lu.assertAlmostEquals(p:mul(rl.kl(p:log(), q:log())):sum():item(), exact, 1e-14)
  local tiny = rl.kl(f64 { -1 }, f64 { -1 - 1e-6 }):item() -- d^2/2; the naive form has the wrong sign
  lu.assertAlmostEquals(tiny, 0.5e-12, 1e-18)
end

function TestVectors.test_sequence_ratio_has_the_gradient_of_each_token()
  local g, logits, logp, mask, adv = grpo_inputs()
  local loss = rl.clipped(logp, logp:detach(), adv, mask, { level = "sequence", reduce = "sequence", clip = g.eps })
  loss:backward()
  lu.assertTrue(logits.grad:isfinite():all():item())
  lu.assertAlmostEquals(loss:item(), -adv:select(2, 1):mean():item(), 1e-12) -- ratio 1 everywhere
end

os.exit(lu.LuaUnit.run())
