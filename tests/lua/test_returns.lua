-- Targets over time: what n-step returns, lambda returns and V-trace have in common with each other, with gae and with
-- the sums that they stand for.
local lu = require "luaunit"
local peri = require "perilune"

local function close(got, want, what)
  lu.assertEquals(got.shape, want.shape, what)
  local off = got:sub(want):abs():max():item()
  lu.assertTrue(off <= 1e-12, ("%s: %g off"):format(what, off))
end

local function some(...) return peri.randn({ ... }, "f64") end
local function flags(p, ...) return peri.rand({ ... }):lt(p) end

-- Rewards, values, values of what each step led to, and where episodes end: 8 rows of 30 steps.
local function steps(seed)
  peri.seed(seed)
  local terminated, truncated = flags(0.1, 8, 30), flags(0.1, 8, 30)
  return some(8, 30), some(8, 30), some(8, 30), terminated, truncated
end

TestReturns = {}

function TestReturns.test_one_step_is_the_reward_and_the_next_value()
  local r, _, nv, term, trunc = steps(1)
  local got, factor, used = peri.n_step_returns(r, nv, term, trunc, { n = 1, gamma = 0.9 })
  local alive = term:logical_not():to "f64"
  close(got, r + nv * alive * 0.9, "1-step return")
  close(factor, alive * 0.9, "factor")
  close(used, peri.ones_like(r), "steps")
  close(peri.lambda_returns(r, nv, term, trunc, { gamma = 0.9, lam = 0 }), got, "lambda 0")
end

function TestReturns.test_lambda_one_is_the_longest_n_step_return()
  local r, _, nv, term, trunc = steps(2)
  close(peri.lambda_returns(r, nv, term, trunc, { gamma = 0.9, lam = 1 }),
    (peri.n_step_returns(r, nv, term, trunc, { n = 30, gamma = 0.9 })), "lambda 1")
end

-- next_values as they are in a row of steps: the value of the next step, except where something ended.
local function chained(values, nv, term, trunc)
  local cut = term:logical_or(trunc)
  local shifted = peri.cat({ values:narrow(2, 2, 29), nv:narrow(2, 30, 1) }, 2)
  return peri.where(cut, nv, shifted)
end

-- TD(lambda) is the exponentially weighted mean of n-step returns, and gae is how far it lies above the value.
function TestReturns.test_lambda_returns_are_gae_above_the_values()
  local r, values, nv, term, trunc = steps(3)
  nv = chained(values, nv, term, trunc)
  local advantage = peri.gae(r, values, nv, term, trunc, nil, 0.9, 0.8)
  close(peri.lambda_returns(r, nv, term, trunc, { gamma = 0.9, lam = 0.8 }), advantage + values, "TD(lambda)")
end

function TestReturns.test_vtrace_on_policy_is_gae_and_n_step()
  local r, values, nv, term, trunc = steps(4)
  nv = chained(values, nv, term, trunc)
  local zero = peri.zeros_like(r)
  for _, lam in ipairs { 0, 0.7, 1 } do
    local advantage, target = peri.gae(r, values, nv, term, trunc, nil, 0.9, lam)
    local vs, _, excess = peri.vtrace(r, values, zero, nv, term, trunc, { gamma = 0.9, lam = lam })
    close(excess, advantage, "advantage, lam " .. lam)
    close(vs, target, "target, lam " .. lam)
  end
  local vs, pg = peri.vtrace(r, values, zero, nv, term, trunc, { gamma = 0.9 })
  local returns = peri.n_step_returns(r, nv, term, trunc, { n = 30, gamma = 0.9 })
  close(vs, returns, "vs of an on-policy row is its return")
  close(pg, returns - values, "and the policy gradient weighs by what it lies above the value")
end

function TestReturns.test_vtrace_cuts_ratios_at_its_bars()
  local r, values, nv, term, trunc = steps(5)
  local opts = { gamma = 0.9, rho_bar = 1.2, c_bar = 0.8, pg_rho_bar = 1.5 }
  local far = { peri.vtrace(r, values, peri.full({ 8, 30 }, 50, "f64"), nv, term, trunc, opts) }
  local near = { peri.vtrace(r, values, peri.full({ 8, 30 }, math.log(1.5), "f64"), nv, term, trunc, opts) }
  for k = 1, 3 do close(far[k], near[k], "result " .. k) end
  local never = peri.vtrace(r, values, peri.full({ 8, 30 }, -math.huge, "f64"), nv, term, trunc, opts)
  close(never, values, "an action that the policy never takes teaches nothing")
end

-- Whatever stands behind the end of an episode, nothing before it changes.
function TestReturns.test_nothing_leaks_across_the_end_of_an_episode()
  local r, values, nv = steps(6)
  local none = peri.zeros({ 8, 30 }, "bool")
  local at10 = none:clone()
  for i = 1, 8 do at10:set(i, 10, true) end
  for _, how in ipairs { "terminated", "truncated" } do
    local term, trunc = how == "terminated" and at10 or none, how == "truncated" and at10 or none
    local function all(x)
      return { (peri.n_step_returns(x, nv, term, trunc, { n = 5 })), (peri.lambda_returns(x, nv, term, trunc)),
        (peri.vtrace(x, values, values * 0.1, nv, term, trunc)), select(2, peri.vtrace(x, values, values, nv, term, trunc)),
        (peri.gae(x, values, nv, term, trunc)) }
    end
    local other = r:clone()
    other:narrow(2, 11, 20):fill_(1e6)
    local a, b = all(r), all(other)
    for k, x in ipairs(a) do
      lu.assertEquals(x:narrow(2, 1, 10):tolist(), b[k]:narrow(2, 1, 10):tolist(), how .. " " .. k)
    end
  end
end

-- A terminated step has no next value, whatever is said of it; a truncated one has its own.
function TestReturns.test_terminated_and_truncated_are_apart()
  local r, nv = peri.tensor({ { 1 } }, "f64"), peri.tensor({ { 10 } }, "f64")
  local yes = peri.ones({ 1, 1 }, "bool")
  local v, junk = peri.zeros_like(r), peri.full({ 1, 1 }, 0 / 0, "f64")
  local opts = { gamma = 0.5 }
  local function each(next_values, term, trunc)
    return { (peri.n_step_returns(r, next_values, term, trunc, { n = 3, gamma = 0.5 })):item(),
      peri.lambda_returns(r, next_values, term, trunc, opts):item(),
      (peri.vtrace(r, v, v, next_values, term, trunc, opts)):item() }
  end
  lu.assertEquals(each(nv, nil, yes), { 6, 6, 6 })
  lu.assertEquals(each(junk, yes, nil), { 1, 1, 1 })
  lu.assertEquals(each(junk, yes, yes), { 1, 1, 1 }) -- both in one step: it is terminated
end

-- Steps that do not count are as if they were not there.
function TestReturns.test_masked_steps_are_skipped()
  local r, values, nv, term, trunc = steps(7)
  local lr = values * 0.2
  local mask = flags(0.7, 8, 30)
  local junk = mask:logical_not()
  local function spoil(x) return x:masked_fill(junk, 0 / 0) end
  for i = 1, 8 do
    local at = mask:select(1, i):nonzero():reshape { -1 }
    local function row(x) return x:select(1, i) end
    local function kept(x) return row(x):index_select(at, 1) end
    local function both(fn)
      local whole, short = { fn(function(x) return row(spoil(x)) end, row, row(mask)) }, { fn(kept, kept, nil) }
      for k, x in ipairs(whole) do
        close(x:index_select(at, 1), short[k], "row " .. i)
        lu.assertEquals(x:masked_select(row(junk)):abs():sum():item(), 0)
      end
    end
    both(function(x, f, m) return peri.n_step_returns(x(r), x(nv), f(term), f(trunc), m, 3) end)
    both(function(x, f, m) return peri.lambda_returns(x(r), x(nv), f(term), f(trunc), m) end)
    both(function(x, f, m) return peri.vtrace(x(r), x(values), x(lr), x(nv), f(term), f(trunc), m) end)
    both(function(x, f, m) return peri.vtrace(x(r), x(values), x(lr), nil, f(term), nil, m) end)
  end
end

-- Watkins's Q(lambda): the trace ends at the first action that was not greedy.
function TestReturns.test_a_trace_of_zero_stops_where_the_action_was_not_greedy()
  local r, _, nv = steps(8)
  local trace = peri.ones { 8, 30 }
  for i = 1, 8 do trace:set(i, 6, 0) end
  local got = peri.lambda_returns(r, nv, nil, nil, nil, trace, { gamma = 0.9, lam = 1 })
  local until5 = peri.n_step_returns(r:narrow(2, 1, 5), nv:narrow(2, 1, 5), { n = 5, gamma = 0.9 })
  close(got:narrow(2, 1, 5), until5, "up to the action")
end

-- ---- Stable-Baselines3 and IMPALA: tests/reference/estimators.py ----

TestPeers = {}

local f = assert(io.open("tests/data/estimators.json", "rb"))
local peers = assert(peri.json.decode(f:read "a"))
f:close()
local function of(list) return peri.tensor(list, "f64") end
local function within(got, list, what)
  local off = got:sub(of(list)):abs():max():item()
  lu.assertTrue(off <= 1e-6, ("%s: %g off"):format(what, off))
end
local rewards, values, next_values = of(peers.rewards), of(peers.values), of(peers.next_values)
local terminated, truncated = peri.tensor(peers.terminated), peri.tensor(peers.truncated)

function TestPeers.test_gae_is_that_of_the_rollout_buffer()
  local advantage, returns = peri.gae(rewards, values, next_values, terminated, truncated,
    { gamma = peers.gamma, lam = peers.lam })
  within(advantage, peers.gae.advantages, "advantages")
  within(returns, peers.gae.returns, "returns")
  within(peri.lambda_returns(rewards, next_values, terminated, truncated, { gamma = peers.gamma, lam = peers.lam }),
    peers.gae.returns, "TD(lambda)")
end

-- Their last entry counts as truncated, which is what the end of a row is here.
function TestPeers.test_n_step_returns_are_those_of_the_replay_buffer()
  for n, want in pairs(peers.n_step) do
    local sums, factor, used = peri.n_step_returns(rewards, nil, terminated, truncated,
      { n = math.tointeger(tonumber(n)), gamma = peers.gamma })
    within(sums, want.returns, n .. "-step return")
    within(factor, want.factors, "factor")
    local last = peri.arange(24):to("f64"):add(used):sub(1)
    within(last, want.last, "where the next observation is")
    local whole = peri.n_step_returns(rewards, next_values, terminated, truncated,
      { n = math.tointeger(tonumber(n)), gamma = peers.gamma })
    within(sums:add(factor:mul(next_values:gather(last:to "i64", 2))), whole:tolist(), "with the values behind them")
  end
end

function TestPeers.test_vtrace_is_the_sum_of_the_paper()
  local after = peri.cat({ values:narrow(2, 2, 23), of(peers.last):unsqueeze(2) }, 2)
  for _, want in pairs(peers.vtrace) do
    local vs, pg = peri.vtrace(rewards, values, of(peers.log_rhos), after, terminated, { gamma = peers.gamma,
      rho_bar = want.rho_bar, pg_rho_bar = want.pg_rho_bar })
    within(vs, want.vs, "vs")
    within(pg, want.pg, "advantages of the policy gradient")
  end
end

os.exit(lu.LuaUnit.run())
