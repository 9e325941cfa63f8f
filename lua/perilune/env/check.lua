-- check.lua - is an environment what it says? Spaces, seeds, rows, threads, states, resets, limits, masks: each check
-- plays some steps and compares, and names the first value that is not as it should be.
local options = require "perilune.options"
local peri = require "perilune"

local M = {}

local ROWS <const>, HUGE <const> = 9, 1e4 -- rows: enough for states by columns and for two threads

-- ---- episodes as lists of numbers ----

local outputs = { "observation", "reward", "terminated", "truncated", "final observation", "mask" }

local function flat(t) return t and t:reshape({ -1 }):tolist() end

local function snapshot(env) return { flat(env.obs), flat(env.reward), flat(env.terminated), flat(env.truncated),
  flat(env.final_obs), flat(env.mask) } end

-- Play steps from a reset with a seed: with the given actions, or random ones of rng, which are noted.
local function play(env, seed, steps, rng, actions)
  local trace = { actions = {}, rows = env.rows }
  env:reset { seed = seed }
  trace[0] = snapshot(env)
  for i = 1, steps do
    trace.actions[i] = actions and actions[i] or env:sample(rng)
    env:step(trace.actions[i])
    trace[i] = snapshot(env)
  end
  return trace
end

local function same(a, b) return a == b or a ~= a and b ~= b end

-- Rows `row` of trace a and `other` of trace b, each as its rows; nil when all is alike, else the first difference.
local function difference(a, b, row, other, what)
  for i = 0, math.min(#a, #b) do
    for k, name in ipairs(outputs) do
      local x, y = a[i][k], b[i][k]
      local per = x and #x // a.rows
      for j = 1, per or 0 do
        local u, v = x[(row - 1) * per + j], y[(other - 1) * per + j]
        if not same(u, v) then
          return ("step %d, row %d: %s%s is %s, %s %s"):format(i, row, name, per > 1 and (" %d"):format(j) or "",
            tostring(u), what, tostring(v))
        end
      end
    end
  end
end

local function any_difference(a, b, what)
  for row = 1, a.rows do
    local text = difference(a, b, row, row, what)
    if text then return text end
  end
end

-- ---- the checks: each answers nil, or what is wrong, or a word of advice with true ----

-- What a box holds, as numbers.
local function bound(v, j) return type(v) == "table" and v[j] or v end

local function outside(space, values, rows)
  local per = #values // rows
  for i, v in ipairs(values) do
    local j = (i - 1) % per + 1
    local row = (i - 1) // per + 1
    local low, high = bound(space.low, j), bound(space.high, j)
    if space.kind == "discrete" then low, high = space.start, space.start + space.n - 1
    elseif space.kind == "multi_discrete" then low, high = 0, space.nvec[j] - 1
    elseif space.kind == "multi_binary" then low, high = 0, 1 end
    if not (v >= low and v <= high) then
      return ("row %d: observation %d is %s, outside of [%s, %s]"):format(row, j, tostring(v), tostring(low),
        tostring(high))
    end
  end
end

local checks = {}
local function check(name, fn) checks[#checks + 1] = { name = name, fn = fn } end

check("observations are in their space", function (c)
  for i = 0, #c.trace do
    for _, k in ipairs { 1, 5 } do
      local text = outside(c.env.obs_space, c.trace[i][k], c.trace.rows)
      if text then return ("step %d, %s"):format(i, text) end
    end
  end
end)

check("actions and observations are of a size that networks like", function (c)
  local a, most = c.env.action_space, 0
  for j = 1, a.kind == "box" and a:size() or 0 do
    local low, high = bound(a.low, j), bound(a.high, j)
    if low ~= -1 or high ~= 1 then
      return ("action %d goes from %g to %g; policies begin near [-1, 1]: env.rescale_action"):format(j, low, high),
        true
    end
  end
  if c.env.obs_space.kind ~= "box" or c.env.obs_space.dtype == "u8" then return end
  for i = 0, #c.trace do
    for _, v in ipairs(c.trace[i][1]) do most = math.max(most, math.abs(v)) end
  end
  if most > HUGE then return ("an observation is %g; normalise them: env.normalize_obs"):format(most), true end
end)

check("the same seed gives the same episode", function (c)
  return any_difference(play(c.make { n = c.n }, c.seed, c.steps, nil, c.trace.actions), c.trace, "before it was")
end)

check("episodes leave nothing behind", function (c)
  return any_difference(play(c.env, c.seed, c.steps, nil, c.trace.actions), c.trace, "in a new environment it was")
end)

check("other seeds give other episodes", function (c)
  local other = play(c.env, c.seed + 1000, c.steps, nil, c.trace.masked and nil or c.trace.actions)
  if any_difference(other, c.trace, "") then return end
  return "nothing depends on the seed", true
end)

check("without a seed the generator goes on", function (c)
  c.env:reset { seed = c.seed }
  c.env:reset()
  local second = snapshot(c.env)
  c.env:reset { seed = c.seed }
  c.env:reset()
  local again = snapshot(c.env)
  for k, name in ipairs(outputs) do
    for j, v in ipairs(second[k] or {}) do
      if not same(v, again[k][j]) then
        return ("reset after reset { seed = %d }: %s %d is %s and then %s"):format(c.seed, name, j, tostring(v),
          tostring(again[k][j]))
      end
    end
  end
end)

check("row i is the environment of seed + i - 1", function (c)
  local agents = c.env.agents
  for _, i in ipairs { 1, 2, c.n } do
    local one, alone = c.make { n = 1 }, { actions = {}, rows = agents }
    one:reset { seed = c.seed + i - 1 }
    alone[0] = snapshot(one)
    for k, action in ipairs(c.trace.actions) do
      one:step(action:narrow(1, (i - 1) * agents + 1, agents))
      alone[k] = snapshot(one)
    end
    for a = 1, agents do
      local text = difference(c.trace, alone, (i - 1) * agents + a, a, "alone it is")
      if text then return text end
    end
  end
end)

check("threads change nothing", function (c)
  return any_difference(play(c.make { n = c.n, threads = 0 }, c.seed, c.steps, nil, c.trace.actions), c.trace,
    "on one thread it was")
end)

check("a state that is loaded goes on as it would have", function (c)
  local env, middle = c.make { n = c.n }, c.steps // 2
  env:reset { seed = c.seed }
  for i = 1, middle do env:step(c.trace.actions[i]) end
  local states = {}
  for i = 1, c.n do
    local ok, state = pcall(env.save, env, i)
    if not ok then
      if tostring(state):find "cannot be saved" then return "its state is elsewhere and cannot be saved", true end
      error(state, 0)
    end
    states[i] = state
  end
  for i = middle + 1, c.steps do env:step(c.trace.actions[i]) end
  for i = 1, c.n do env:load(i, states[i]) end
  for i = middle + 1, c.steps do
    env:step(c.trace.actions[i])
    local now = { [0] = snapshot(env), rows = env.rows }
    local text = any_difference(now, { [0] = c.trace[i], rows = env.rows }, "had it gone on it would be")
    if text then return (text:gsub("^step 0", "step " .. i)) end
  end
end)

check("its pictures can be drawn", function (c)
  local env = c.make { n = c.n }
  env:reset { seed = c.seed }
  for i = 1, math.min(c.steps, 20) do
    env:step(c.trace.actions[i])
    for row = 1, env.n do
      if env.has_frame then env:render(row, 16) end
      local text = env.has_text and env:text(row) or ""
      if type(text) ~= "string" then return ("step %d, row %d: text gives a %s"):format(i, row, type(text)) end
    end
    local text = any_difference({ [0] = snapshot(env), rows = env.rows }, { [0] = c.trace[i], rows = env.rows },
      "without pictures it was")
    if text then return (text:gsub("^step 0", "step " .. i)) end
  end
end)

check("episodes end", function (c)
  if c.env.max_steps then return end
  local env, rng = c.make { n = c.n }, peri.env.rng(c.seed)
  env:reset { seed = c.seed }
  for _ = 1, c.patience do
    local _, _, over, cut = env:step(env:sample(rng))
    if over:any():item() or cut:any():item() then return end
  end
  return ("none of %d rows has ended within %d steps and there is no max_steps"):format(c.n, c.patience), true
end)

check("the time limit truncates", function (c)
  local env, limit = c.make { n = c.n, max_steps = 3, autoreset = "same_step" }, 3
  env:reset { seed = c.seed }
  local ended = {}
  for i = 1, limit do
    local _, _, over, cut = env:step(c.trace.actions[i])
    local overs, cuts = flat(over), flat(cut)
    for row = 1, env.rows do
      if i == limit and not overs[row] and not cuts[row] and not ended[row] then
        return ("row %d: neither ended nor truncated at step 3 with max_steps = 3"):format(row)
      end
      if overs[row] or cuts[row] then ended[row] = true end
    end
  end
end)

check("final observations are kept, the next episode begins", function (c)
  local env = c.make { n = c.n, autoreset = "next_step" }
  local steps = math.min(c.steps, 400)
  env:reset { seed = c.seed }
  local ended, rng = {}, peri.env.rng(c.seed)
  for i = 1, steps do
    local _, _, over, cut = env:step(env:sample(rng))
    local valid, overs, cuts = flat(env.valid), flat(over), flat(cut)
    for row = 1, env.rows do
      if env.agents == 1 and ended[row] and (valid[row] or overs[row] or cuts[row]) then
        return ("step %d, row %d: an episode ended before and this step did not begin the next"):format(i, row)
      end
      ended[row] = overs[row] or cuts[row]
    end
  end
end)

check("at least one action is legal", function (c)
  for i = 0, c.trace[0][6] and #c.trace or -1 do
    local mask = c.trace[i][6]
    local per = #mask // c.trace.rows
    for row = 1, c.trace.rows do
      local any = false
      for j = 1, per do any = any or mask[(row - 1) * per + j] end
      if not any then return ("step %d, row %d: the mask allows none of %d actions"):format(i, row, per) end
    end
  end
end)

check("an action out of its space is refused", function (c)
  local env, space = c.make { n = c.n }, c.env.action_space
  env:reset { seed = c.seed }
  local before = snapshot(env)
  local bad = space.kind == "box" and 0 / 0 or space.kind == "discrete" and space.start + space.n
    or space.kind == "multi_binary" and 2 or space.nvec[1]
  if space.kind == "box" and not space.dtype:find "^f" then return end -- whole numbers are never nan
  local actions = peri.full({ env.rows, table.unpack(space.shape) }, bad, space.dtype)
  if pcall(env.step, env, actions) then
    return ("step took actions of %s, which are not in %s"):format(bad, tostring(space))
  end
  local now = { [0] = snapshot(env), rows = env.rows }
  local text = any_difference(now, { [0] = before, rows = env.rows }, "before it was")
  if text then return (text:gsub("^step 0", "after an action that was refused")) end
  env:step(c.trace.actions[1])
end)

-- ---- all of them ----

local rules = {
  seed = options.integer(1, "[0, inf)", "of the episodes"),
  steps = options.integer(200, "[10, inf)", "that are played in each check"),
  n = options.integer(ROWS, "[2, inf)", "environments at once"),
  patience = options.integer(20000, "[1, inf)", "steps within which some episode should end"),
}

local function plain(message)
  return (tostring(message):gsub("^[^%s:]+:%d+: ", ""):gsub("\nstack traceback:.*$", ""))
end

--- Check an environment: what make returns for options such as n, threads and autoreset. Each check plays some steps.
--- @param make function|string|table  (options) -> environment; an id, or the table of one that is written in Lua
--- @param opts table?
--- @return table[]  { name, ok, message }: ok is true, false or "warning"; one entry where the first steps fail
--- @return boolean  whether all of them are right, warnings aside
function M.check(make, opts)
  options.argument("env.check", "make", make, "callable or string or table")
  local o = options.fill("env.check", opts, rules)
  local what = make
  if type(make) ~= "function" then make = function (more) return peri.env.make(what, more) end end
  local list, all = {}, true
  local c = { make = make, seed = o.seed, steps = o.steps, n = o.n, patience = o.patience }
  local ok, message = pcall(function ()
    c.env = make { n = o.n }
    c.trace = play(c.env, o.seed, o.steps, peri.env.rng(o.seed))
    c.trace.masked = c.trace[0][6] ~= nil
  end)
  list[1] = { name = "it plays", ok = ok, message = not ok and plain(message) or nil }
  if not ok then return list, false end
  for _, one in ipairs(checks) do
    local ran, text, mild = pcall(one.fn, c)
    local entry = { name = one.name, ok = true }
    if not ran then entry.ok, entry.message = false, plain(text)
    elseif text then entry.ok, entry.message = mild and "warning" or false, text end
    all = all and entry.ok ~= false
    list[#list + 1] = entry
  end
  return list, all
end

return options.declare(M.check, { "make" }, rules)
