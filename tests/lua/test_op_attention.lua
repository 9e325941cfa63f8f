-- What attention hides does not matter: whatever stands in a hidden key or value, the result and every
-- gradient have the bits that they have with zeros there, and the gradient of what is hidden is 0.
local lu = require "luaunit"
local peri = require "perilune"

local inf = math.huge
local junk = { nan = 0 / 0, inf = inf, ["-inf"] = -inf, large = 1e30, ["-large"] = -1e30 }

local shapes = { -- B, Tq, Tk, Hq, Hkv, D
  { 2, 3, 5, 2, 2, 4 }, { 1, 1, 5, 4, 2, 4 }, { 2, 1, 130, 5, 1, 16 }, { 1, 1, 70, 3, 3, 20 }, { 2, 9, 70, 4, 2, 20 },
  { 1, 70, 70, 2, 1, 64 }, { 1, 40, 200, 2, 2, 7 },
}

-- Which keys each way of hiding hides: a 0/1 tensor (B, Tk), 1 where visible; nothing else hides them.
local function hidden_keys(B, Tk)
  local seen = peri.ones { B, Tk }
  for b = 1, B do
    for j = 1, Tk do if (j * 7 + b * 3) % 4 == 0 and j > 1 then seen:set(b, j, 0) end end
  end
  return seen
end

local function additive(seen) return seen:sub(1):masked_fill(seen:eq(0), -inf) end

local ways = {
  bool = function (seen) return { mask = seen:ne(0) } end,
  added = function (seen) return { mask = additive(seen) } end,
  ["bool for each query"] = function (seen, s)
    return { mask = seen:ne(0):unsqueeze(2):unsqueeze(2):expand { s[1], s[4], s[2], s[3] } }
  end,
  ["added for all heads"] = function (seen, s)
    return { mask = additive(seen):unsqueeze(2):unsqueeze(2):expand { s[1], 1, s[2], s[3] } }
  end,
  ["bool, causal"] = function (seen) return { mask = seen:ne(0), causal = true } end,
  ["added, causal, window"] = function (seen) return { mask = additive(seen), causal = true, window = 3 } end,
  ["bool, softcap"] = function (seen) return { mask = seen:ne(0), softcap = 2 } end,
  ["bool, start"] = function (seen, s) return { mask = seen:ne(0), start = peri.full({ s[1] }, 1, "i64") } end,
}

-- Bits of the result and of the gradients by q, k, v; those of hidden keys apart.
local function run(q, k, v, options, dtype, g)
  local x = {}
  for i, t in ipairs { q, k, v } do x[i] = t:to(dtype):clone():requires_grad_() end
  local opts = {}
  for key, value in pairs(options) do opts[key] = value end
  if opts.mask and opts.mask.dtype ~= "bool" then opts.mask = opts.mask:to(dtype) end
  local y = peri.attention(x[1], x[2], x[3], opts)
  local grads = peri.grad(y, x, { seed = g:to(dtype) })
  local still = peri.no_grad(peri.attention, x[1], x[2]:transpose(2, 4):contiguous():transpose(2, 4), x[3], opts)
  return y, grads, still
end

local function same(a, b, what) lu.assertTrue(a:bytes() == b:bytes(), what .. ": other bits") end

TestHidden = {}
for way, options in pairs(ways) do
  for _, dtype in ipairs { "f32", "f64", "f16", "bf16" } do
    TestHidden[("test_%s, %s"):format(way, dtype)] = function ()
      for n, s in ipairs(shapes) do
        local B, Tq, Tk, Hq, Hkv, D = table.unpack(s)
        peri.seed(n)
        local q, k, v, g = peri.randn { B, Tq, Hq, D }, peri.randn { B, Tk, Hkv, D }, peri.randn { B, Tk, Hkv, D },
          peri.randn { B, Tq, Hq, D }
        local seen = hidden_keys(B, Tk)
        local hide = seen:eq(0):unsqueeze(3):unsqueeze(3):expand(k.shape)
        local opts = options(seen, s)
        local y, grads, still = run(q, k:masked_fill(hide, 0), v:masked_fill(hide, 0), opts, dtype, g)
        lu.assertTrue(y:isfinite():all():item())
        for name, bad in pairs(junk) do
          for _, place in ipairs { { k, v }, { k:masked_fill(hide, 0), v }, { k, v:masked_fill(hide, 0) } } do
            local bk = place[1] == k and k:masked_fill(hide, bad) or place[1]
            local bv = place[2] == v and v:masked_fill(hide, bad) or place[2]
            local what = ("%s in shape %d, %s"):format(name, n, dtype)
            local y2, grads2, still2 = run(q, bk, bv, opts, dtype, g)
            same(y2, y, what)
            same(still2, still, what .. ", keys side by side")
            for i, x in ipairs { "q", "k", "v" } do same(grads2[i], grads[i], what .. ": gradient of " .. x) end
            for i = 2, 3 do lu.assertEquals(grads2[i]:masked_select(hide):abs():sum():item(), 0, what) end
          end
        end
      end
    end
  end
end

-- Hidden for some queries and seen by others: the others alone take the junk.
function TestHidden.test_junk_reaches_only_who_sees_it()
  for _, dtype in ipairs { "f32", "f64" } do
    local q, k = peri.ones({ 1, 3, 1, 4 }, dtype), peri.ones({ 1, 6, 1, 4 }, dtype)
    local v = peri.ones({ 1, 6, 1, 4 }, dtype)
    v:narrow(2, 3, 1):fill_(0 / 0)
    local mask = peri.ones { 1, 1, 3, 6 }:ne(0)
    mask:set(1, 1, 1, 3, false)
    mask:set(1, 1, 3, 3, false)
    local y = peri.attention(q, k, v, { mask = mask })
    lu.assertEquals(y:isnan():any({ 1, 3, 4 }):tolist(), { false, true, false })
  end
end

-- Sequences packed into one row hide from each other: junk in one, gradients too, stays there.
function TestHidden.test_junk_of_a_packed_sequence_stays_there()
  for _, dtype in ipairs { "f32", "f64" } do
    for _, s in ipairs { { 5, 3, 4, 2, 2 }, { 40, 30, 20, 4, 2 }, { 70, 90, 64, 1, 1 } } do
      local first, last, D, Hq, Hkv = table.unpack(s)
      local n = first + last
      peri.seed(n)
      local q, k, v, g = peri.randn { 1, n, Hq, D }, peri.randn { 1, n, Hkv, D }, peri.randn { 1, n, Hkv, D },
        peri.randn { 1, n, Hq, D }
      local mask = peri.zeros({ 1, 1, n, n }, "bool")
      mask:narrow(3, 1, first):narrow(4, 1, first):fill_(1)
      mask:narrow(3, first + 1, last):narrow(4, first + 1, last):fill_(1)
      for _, options in ipairs { { mask = mask }, { mask = additive(mask:to "f32"), causal = true } } do
        local y, grads = run(q, k, v, options, dtype, g)
        for name, bad in pairs(junk) do
          local spoilt = {}
          for i, t in ipairs { q, k, v, g } do
            spoilt[i] = t:clone()
            spoilt[i]:narrow(2, first + 1, last):fill_(bad)
          end
          local y2, grads2 = run(spoilt[1], spoilt[2], spoilt[3], options, dtype, spoilt[4])
          same(y2:narrow(2, 1, first), y:narrow(2, 1, first), name)
          for i, x in ipairs { "q", "k", "v" } do
            same(grads2[i]:narrow(2, 1, first), grads[i]:narrow(2, 1, first), ("%s: gradient of %s"):format(name, x))
          end
        end
      end
    end
  end
end

-- A query that sees nothing: zeros, and whatever it holds, no other gradient changes.
function TestHidden.test_queries_that_see_nothing()
  for _, dtype in ipairs { "f32", "f64" } do
    for _, s in ipairs(shapes) do
      local B, Tq, Tk, Hq, Hkv, D = table.unpack(s)
      peri.seed(Tk)
      local q, k, v, g = peri.randn { B, Tq, Hq, D }, peri.randn { B, Tk, Hkv, D }, peri.randn { B, Tk, Hkv, D },
        peri.randn { B, Tq, Hq, D }
      local mask = peri.ones { B, Hq, Tq, Tk }:ne(0):clone()
      mask:select(3, Tq):fill_(0)
      for _, m in ipairs { mask, additive(mask:to "f32") } do
        local y, grads = run(q, k, v, { mask = m }, dtype, g)
        lu.assertEquals(y:select(2, Tq):abs():sum():item(), 0)
        for i = 1, 3 do lu.assertTrue(grads[i]:isfinite():all():item()) end
        lu.assertEquals(grads[1]:select(2, Tq):abs():sum():item(), 0)
        for _, bad in pairs(junk) do
          local q2, g2 = q:clone(), g:clone()
          q2:select(2, Tq):fill_(bad)
          g2:select(2, Tq):fill_(bad)
          local y2, grads2 = run(q2, k, v, { mask = m }, dtype, g2)
          same(y2, y, "result")
          for i, x in ipairs { "q", "k", "v" } do same(grads2[i], grads[i], "gradient of " .. x) end
        end
      end
    end
  end
end

-- The gradient of an added mask is 0 where it hides.
function TestHidden.test_gradient_of_the_mask()
  for _, dtype in ipairs { "f32", "f64" } do
    peri.seed(3)
    local q, k, v = peri.randn({ 2, 3, 2, 4 }, dtype), peri.randn({ 2, 6, 2, 4 }, dtype), peri.randn({ 2, 6, 2, 4 }, dtype)
    local seen = hidden_keys(2, 6)
    local hide = seen:eq(0):unsqueeze(3):unsqueeze(3):expand(k.shape)
    local function grad(bad)
      local m = additive(seen):to(dtype):unsqueeze(2):unsqueeze(2):expand { 2, 2, 3, 6 }:clone():requires_grad_()
      peri.attention(q, k:masked_fill(hide, bad), v:masked_fill(hide, bad), { mask = m }):square():sum():backward()
      return m.grad
    end
    local want = grad(0)
    lu.assertTrue(want:isfinite():all():item())
    for name, bad in pairs(junk) do same(grad(bad), want, name) end
  end
end

os.exit(lu.LuaUnit.run())
