-- refill.lua - dynamic sampling: draws until enough groups have something to teach; parts of rollouts, and rollouts
-- as one.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local options = require "perilune.options"
local supports = require "perilune.decode.support"

local M = {}

--- The groups whose rewards differ, from 1: those of equal rewards teach nothing (DAPO, 2503.14476 section 3.2).
--- @param batch table  of rl.rollout
--- @return integer[]
function M.informative(batch)
  options.argument("rl.informative", "batch", batch, "table")
  local list = {}
  for first = 1, #batch.total, batch.group do
    local low, high = math.huge, -math.huge
    for i = first, first + batch.group - 1 do
      local v = batch.total[i]
      if v == v then low, high = math.min(low, v), math.max(high, v) end
    end
    if low < high then list[#list + 1] = (first - 1) // batch.group + 1 end
  end
  return list
end

--- Some groups of a rollout as a rollout.
--- @param batch table  of rl.rollout
--- @param groups integer[]  from 1, at least one
--- @return table
function M.pick(batch, groups)
  options.argument("rl.pick", "batch", batch, "table")
  options.argument("rl.pick", "groups", groups, "table")
  local rows, count = {}, #batch.total
  for _, g in ipairs(groups) do
    if math.type(g) ~= "integer" or g < 1 or g * batch.group > count then
      error(("rl.pick: group %s, expected 1 to %d"):format(tostring(g), count // batch.group), 2)
    end
    for i = (g - 1) * batch.group + 1, g * batch.group do rows[#rows + 1] = i end
  end
  if #rows == 0 then error("rl.pick: there are no groups", 2) end
  local at = peri.tensor(rows, "i64"):sub(1)
  local function of_list(list)
    local out = {}
    for k, i in ipairs(rows) do out[k] = list[i] end
    return out
  end
  local out = {}
  for name, value in pairs(batch) do
    if peri.is_tensor(value) then out[name] = value:index_select(at, 1)
    elseif batches.is(value) or supports.is(value) then out[name] = value:select(rows)
    elseif name == "rewards" then
      out.rewards = {}
      for key, list in pairs(value) do out.rewards[key] = of_list(list) end
    elseif type(value) == "table" and name ~= "names" and name ~= "weights" then out[name] = of_list(value)
    else out[name] = value end
  end
  return out
end

local function widest(list, size)
  local most = 0
  for _, batch in ipairs(list) do most = math.max(most, size(batch)) end
  return most
end

-- Tensors (B, n) of several batches below one another, with zeros up to a width before and behind.
local function stacked(list, name, before, behind)
  local parts = {}
  for k, batch in ipairs(list) do
    local t, b, a = batch[name], before and before(batch) or 0, behind(batch)
    local function zeros(n) return peri.zeros({ t:size(1), n }, t.dtype) end
    local row = { b > 0 and zeros(b) or nil }
    row[#row + 1] = t
    if a > 0 then row[#row + 1] = zeros(a) end
    parts[k] = #row > 1 and peri.cat(row, 2) or t
  end
  return peri.cat(parts, 1)
end

--- Rollouts of the same rewards and the same size of groups as one: prompts are padded on the left, answers on the
--- right.
--- @param list table[]  of rl.rollout, at least one
--- @return table
function M.join(list)
  options.argument("rl.join", "list", list, "table")
  local first = list[1]
  if not first then error("rl.join: there are no batches", 2) end
  for k, batch in ipairs(list) do
    local other = (batch.steps == nil) ~= (first.steps == nil) or (batch.rewards == nil) ~= (first.rewards == nil)
    if other or batch.group ~= first.group then
      error(("rl.join: batch %d has groups of another size, or other rewards, than the first"):format(k), 2)
    end
  end
  if #list == 1 then return first end
  local function answer(batch) return batch.mask:size(2) end
  local function prompt(batch) return batch.from - 1 end
  local width, from = widest(list, answer), widest(list, prompt) + 1
  local function behind(batch) return width - answer(batch) end
  local function before(batch) return from - 1 - prompt(batch) end
  local out = { group = first.group, from = from, names = first.names, weights = first.weights }
  local function lists(key, of)
    local all = {}
    for _, batch in ipairs(list) do
      local own = of(batch)
      table.move(own, 1, #own, #all + 1, all)
    end
    out[key] = all
  end
  for _, key in ipairs { "rows", "texts", "tokens", "ended", "total", "baseline", "conversations" } do
    if first[key] then lists(key, function (batch) return batch[key] end) end
  end
  if first.rewards then
    local by_name = {}
    for _, name in ipairs(first.names) do
      lists("rewards", function (batch) return batch.rewards[name] end)
      by_name[name] = out.rewards
    end
    out.rewards = by_name
  end
  for _, name in ipairs { "logprobs", "mask", "steps", "covered", "ends" } do
    if first[name] then out[name] = stacked(list, name, nil, behind) end
  end
  if first.support then
    local own = {}
    for k, batch in ipairs(list) do own[k] = batch.support end
    out.support = supports.join(own)
  end
  local begins, counts = {}, {}
  for _, batch in ipairs(list) do
    local b, c = batch.sequences:bounds()
    for i = 1, #b do begins[#begins + 1], counts[#counts + 1] = b[i] + before(batch), c[i] end
  end
  out.sequences = batches.by_bounds(stacked(list, "ids", before, behind), begins, counts)
  out.ids, out.start = out.sequences.ids, out.sequences:padding() and out.sequences.start or nil
  return out
end

local refill_rules = {
  most = options.integer(10, "[1, inf)", "draws at most"),
  keep = options.value(M.informative, "callable", "keep(batch) -> list of groups, from 1; default: rl.informative"),
}

--- Dynamic sampling (DAPO, 2503.14476 section 3.2): draws prompts until as many groups as asked for have something to
--- teach, or the most draws are made; what a draw has too many of is left out.
--- @param draw fun(n: integer): table  rl.rollout of n new prompts
--- @param prompts integer  groups that are wanted
--- @param opts table?
--- @return table? batch  as of rl.rollout; nil where no group was worth keeping
--- @return table metrics  sampling/draws, sampling/drawn (groups), sampling/kept_ratio (of these), sampling/missing
--- (groups that are fewer than asked for)
function M.refill(draw, prompts, opts)
  options.argument("rl.refill", "draw", draw, "callable")
  local o = options.fill("rl.refill", opts, refill_rules)
  local problem = options.problem("prompts", prompts, options.integer(1, "[1, inf)"))
  if problem then error("rl.refill: " .. problem, 2) end
  local kept, have, drawn, draws, good = {}, 0, 0, 0, 0
  while have < prompts and draws < o.most do
    local batch = draw(prompts - have)
    draws, drawn = draws + 1, drawn + #batch.total // batch.group
    local list = o.keep(batch)
    good = good + #list
    local some = table.move(list, 1, math.min(#list, prompts - have), 1, {})
    if #some > 0 then kept[#kept + 1] = M.pick(batch, some) end
    have = have + #some
  end
  return #kept > 0 and M.join(kept) or nil, { ["sampling/draws"] = draws, ["sampling/drawn"] = drawn,
    ["sampling/kept_ratio"] = drawn > 0 and good / drawn or 0, ["sampling/missing"] = prompts - have }
end
options.declare(M.refill, { "draw", "prompts" }, refill_rules)

return M
