-- options.lua - tables of named options: defaults filled in, types and ranges checked, unknown names
-- refused with the nearest known one. Every constructor of the library takes its options through here.
-- What an option may be stands once, as a rule beside its default; checks, messages, help() and the
-- pages of docs/ are derived from it:
--   local rules = {
--     lr = options.number(options.required, "[0, inf)", "learning rate"),
--     steps = options.integer(5, "[1, inf)", "of Newton and Schulz"),
--     reduce = options.choice("mean", { "mean", "sum" }, "over the tokens"),
--     nesterov = options.boolean(false, "look ahead"),
--     mask = options.value(options.none, "tensor", "(B, T), 1 where a token counts") }
--   local o = options.fill("AdamW", given, rules)
-- A plain value in place of a rule is a default without a check.

local M = {}

-- Edit distance with swaps of neighbours counted as one edit; stops caring above limit.
local function distance(a, b, limit)
  if math.abs(#a - #b) > limit then return limit + 1 end
  local before, last = {}, {}
  for j = 0, #b do last[j] = j end
  for i = 1, #a do
    local row = { [0] = i }
    for j = 1, #b do
      local cost = a:byte(i) == b:byte(j) and 0 or 1
      row[j] = math.min(last[j] + 1, row[j - 1] + 1, last[j - 1] + cost)
      if i > 1 and j > 1 and a:byte(i) == b:byte(j - 1) and a:byte(i - 1) == b:byte(j) then
        row[j] = math.min(row[j], before[j - 2] + 1)
      end
    end
    before, last = last, row
  end
  return last[#b]
end

-- Whether every word of a is one of b's: "max_tokens" and "max_new_tokens".
local function within(a, b)
  local have, n = {}, 0
  for part in b:gmatch "[^_%-]+" do have[part] = true end
  for part in a:gmatch "[^_%-]+" do
    if not have[part] then return false end
    n = n + #part
  end
  return n >= 4
end

-- The only name that has all words of a word, or whose words it has all.
local function related(word, names)
  local found
  for _, name in ipairs(names) do
    if within(word, name) or within(name, word) then
      if found then return nil end
      found = name
    end
  end
  return found
end

-- What other programs call things, by our name for them.
local elsewhere = {}
for name, words in pairs {
  max_new_tokens = "max_length max_gen_len max_tokens_to_generate num_tokens n_predict num_predict n_tokens",
  samples = "n n_samples best_of num_return_sequences num_generations",
  stop = "stop_sequences stop_strings stop_token_ids eos_token_id eos",
  repetition_penalty = "repeat_penalty rep_penalty", temperature = "temp", greedy = "do_sample",
  on_text = "callback streamer on_token stream", regex = "grammar guided_regex", choices = "guided_choice",
  ignore_stop = "ignore_eos", pad = "pad_token_id pad_id", lr = "learning_rate", weight_decay = "wd l2",
  batch_size = "bs", pooling = "pooling_mode", alpha = "lora_alpha", dropout = "lora_dropout", r = "rank",
  rslora = "use_rslora", targets = "target_modules",
} do
  for word in words:gmatch "%S+" do elsewhere[word] = name end
end

local function is_in(list, word)
  for _, name in ipairs(list) do if name == word then return true end end
  return false
end

--- The name of the list that is nearest to word, or nil when none is near. What other programs say for one of the
--- names is near it.
--- @param word string
--- @param names string[]
--- @return string?
function M.nearest(word, names)
  local known = elsewhere[word:lower()]
  if known and is_in(names, known) then return known end
  local best, least = nil, math.max(1, #word // 3) + 1
  for _, name in ipairs(names) do
    local d = distance(word:lower(), name:lower(), least)
    if d < least then best, least = name, d end
  end
  return best or related(word:lower(), names)
end

--- "unknown WHAT "word"", with the nearest name when there is one, with all of them when there is not.
--- @param what string
--- @param word any
--- @param names string[]
--- @return string
function M.unknown(what, word, names)
  local near = type(word) == "string" and M.nearest(word, names)
  local hint = near and ("; did you mean %q?"):format(near)
    or #names > 0 and ("; there are: %s"):format(table.concat(names, ", ")) or ""
  return ("unknown %s %q%s"):format(what, tostring(word), hint)
end

--- The names of a table's string keys, sorted.
--- @param t table
--- @return string[]
function M.names(t)
  local list = {}
  for k in pairs(t) do if type(k) == "string" then list[#list + 1] = k end end
  table.sort(list)
  return list
end

-- ---- rules ----

M.none = setmetatable({}, { __name = "none" })         -- no default: the field stays nil
M.required = setmetatable({}, { __name = "required" }) -- no default: left out is an error

--- @class perilune.options.Rule
--- @field default any  a value, none or required
--- @field kind string  what help() calls the type
--- @field doc string
--- @field accepts fun(value: any): boolean
local Rule = {}
Rule.__index = Rule

local function rule(default, kind, doc, accepts)
  return setmetatable({ default = default, kind = kind, doc = doc or "", accepts = accepts }, Rule)
end

-- A table of named values: one without a metatable, or an object that came from JSON.
local function is_plain(v)
  if type(v) ~= "table" then return false end
  local meta = getmetatable(v)
  return meta == nil or type(meta) == "table" and rawget(meta, "__name") == "perilune.json.object"
end

local function is_rule(v) return type(v) == "table" and getmetatable(v) == Rule end

-- A test for an interval in the notation of mathematics: "[0, inf)", "(0, 1]".
local function interval(text)
  local open, low, high, close = text:match "^([%[%(])%s*([^,%s]+)%s*,%s*([^,%s]+)%s*([%]%)])$"
  local function bound(word)
    return word == "inf" and math.huge or word == "-inf" and -math.huge or tonumber(word)
  end
  local from, to = bound(low), bound(high)
  return function(v)
    return (v > from or open == "[" and v == from) and (v < to or close == "]" and v == to)
  end
end

--- A number in an interval such as "[0, inf)"; NaN is in none.
--- @param default any
--- @param range string?  default "(-inf, inf)"
--- @param doc string?
--- @return perilune.options.Rule
function M.number(default, range, doc)
  local inside = interval(range or "(-inf, inf)")
  return rule(default, range and "number in " .. range or "finite number", doc,
    function(v) return type(v) == "number" and inside(v) end)
end

--- An integer (3.0 counts) in an interval.
--- @param default any
--- @param range string?
--- @param doc string?
--- @return perilune.options.Rule
function M.integer(default, range, doc)
  local inside = interval(range or "(-inf, inf)")
  return rule(default, range and "integer in " .. range or "integer", doc,
    function(v) return type(v) == "number" and math.tointeger(v) ~= nil and inside(v) end)
end

--- A list of so many numbers, each in an interval.
--- @param default any
--- @param count integer
--- @param range string
--- @param doc string?
--- @return perilune.options.Rule
function M.numbers(default, count, range, doc)
  local inside = interval(range)
  return rule(default, ("list of %d numbers in %s"):format(count, range), doc, function(v)
    if type(v) ~= "table" then return false end
    for k in pairs(v) do
      if math.type(k) ~= "integer" or k < 1 or k > count then return false end
    end
    for i = 1, count do
      if type(v[i]) ~= "number" or not inside(v[i]) then return false end
    end
    return true
  end)
end

--- One integer in an interval, a list of so many of them, or one of the words.
--- @param default any
--- @param count integer
--- @param range string
--- @param doc string?
--- @param words string[]?
--- @return perilune.options.Rule
function M.sizes(default, count, range, doc, words)
  local inside, names = interval(range), {}
  for i, word in ipairs(words or {}) do names[i] = (", %q"):format(word) end
  local function fits(v) return type(v) == "number" and math.tointeger(v) ~= nil and inside(v) end
  return rule(default, ("integer in %s, a list of %d%s"):format(range, count, table.concat(names)), doc, function(v)
    if type(v) ~= "table" then
      for _, word in ipairs(words or {}) do if v == word then return true end end
      return fits(v)
    end
    for k in pairs(v) do
      if math.type(k) ~= "integer" or k < 1 or k > count then return false end
    end
    for i = 1, count do
      if not fits(v[i]) then return false end
    end
    return true
  end)
end

--- @param default any
--- @param doc string?
--- @return perilune.options.Rule
function M.boolean(default, doc)
  return rule(default, "true or false", doc, function(v) return type(v) == "boolean" end)
end

--- One of a list of values.
--- @param default any
--- @param choices any[]
--- @param doc string?
--- @return perilune.options.Rule
function M.choice(default, choices, doc)
  local names = {}
  for i, c in ipairs(choices) do names[i] = type(c) == "string" and ("%q"):format(c) or tostring(c) end
  return rule(default, "one of " .. table.concat(names, ", "), doc, function(v)
    for _, c in ipairs(choices) do if c == v then return true end end
    return false
  end)
end

--- A value of one of the named types: Lua's, "tensor", "module" (of nn), "callable" (a function, or a table that
--- can be called) or "any": "string", "tensor or number".
--- @param default any
--- @param types string  joined by " or "
--- @param doc string?
--- @return perilune.options.Rule
function M.value(default, types, doc)
  local known = {}
  for name in (types .. " or "):gmatch "(.-) or " do known[name] = true end
  return rule(default, types, doc, function(v)
    if known.any or known[type(v)] then return true end
    local meta = getmetatable(v)
    if known.tensor and meta == "perilune.tensor" then return true end
    if known.module and type(v) == "table" and rawget(v, "_known") and v.named_parameters then return true end
    return known.callable and (type(v) == "function" or type(meta) == "table" and meta.__call ~= nil) or false
  end)
end

local function default_of(entry)
  if is_rule(entry) then return entry.default end
  return entry
end

local function shown(v)
  if type(v) == "string" then return ("%q"):format(v) end
  if v ~= v then return "nan" end -- printed with or without a sign otherwise
  if v == nil or type(v) == "number" or type(v) == "boolean" then return tostring(v) end
  local meta = getmetatable(v)
  local name = meta == "perilune.tensor" and "tensor" or type(meta) == "table" and rawget(meta, "__name")
  return "a " .. (type(name) == "string" and name or type(v))
end

--- A shape as every message shows it: "(2, 3)", "(3)", "()".
--- @param x perilune.Tensor|table  a tensor or a list of sizes, which may be names such as "T"
--- @return string
function M.shape(x)
  return "(" .. table.concat(type(x) == "table" and x or x.shape, ", ") .. ")" -- ORDER shape text
end

--- nil when a value satisfies an entry of a table of defaults, else what is wrong with it.
--- @param name string
--- @param value any
--- @param entry any  a rule, or a default without a check
--- @return string?
function M.problem(name, value, entry)
  if not is_rule(entry) or entry.accepts(value) then return nil end
  local kind = entry.kind:match "^%a+"
  local article = (kind == "number" or kind == "finite") and "a " or kind == "integer" and "an " or ""
  return ("%s is %s, expected %s%s"):format(name, shown(value), article, entry.kind)
end

--- "NAME is VALUE" as messages say it, "NAME is missing" of nil.
--- @param name string
--- @param value any
--- @return string
function M.is(name, value) return value == nil and name .. " is missing" or ("%s is %s"):format(name, shown(value)) end

local library = debug.getinfo(1, "S").source:match "^(.*)options" -- "@.../perilune/", embedded "=perilune/"

local function is_outside(level) -- of the caller; nil above the last
  local info = debug.getinfo(level + 1, "S")
  return info and info.what ~= "C" and info.source:sub(1, #library) ~= library
end

--- Whether the function that called the one that asks is outside of the library.
--- @return boolean
function M.is_caller_outside() return is_outside(3) == true end

--- Raise an error that points at whoever called into the library, however deep that call went and whether or not
--- calls on the way were tail calls. A function outside the library that calls this one, or fill or read, for its own
--- arguments has the error point at level, as error() does.
--- @param message string
--- @param level integer?  1 (the default) is the function that calls raise
function M.raise(message, level)
  local at = 2 -- error() counts this function, so does debug.getinfo
  while debug.getinfo(at, "S") and debug.getinfo(at, "S").source == debug.getinfo(1, "S").source do at = at + 1 end
  if is_outside(at) then error(message, (level or 1) + 1) end -- of somebody's own function
  while debug.getinfo(at, "S") and not is_outside(at) do at = at + 1 end
  error(message, at)
end

--- Raise unless an argument is of one of the named types, as for value.
--- @param who string  function named in the message
--- @param name string
--- @param given any
--- @param types string  joined by " or "
function M.argument(who, name, given, types)
  if M.value(nil, types).accepts(given) then return end
  M.raise(("%s: %s, expected %s"):format(who, M.is(name, given), types))
end

--- Raise where a tensor has a number that is not finite, with the first such number and its place.
--- @param who string  function named in the message
--- @param name string  of the tensor
--- @param x perilune.Tensor
function M.finite(who, name, x)
  local good = x:isfinite()
  if good:all():item() then return end
  local left, place = good:to("u8"):argmin():item(), {} -- from 0 on
  local value = x:reshape({ -1 }):select(1, left + 1):item()
  for k = x.ndim, 1, -1 do
    table.insert(place, 1, left % x.shape[k] + 1)
    left = left // x.shape[k]
  end
  M.raise(("%s: %s is %s at (%s), expected finite numbers"):format(who, name, shown(value), table.concat(place, ", ")))
end

--- A copy of defaults with the given values in it; raises for a name that defaults lacks, a value
--- that its rule refuses and a required one that is not there.
--- @param who string  function named in the message
--- @param given table?
--- @param defaults table
--- @param level integer?  of the error; 3 = the caller of the caller
--- @return table
function M.fill(who, given, defaults, level)
  level = level or 3
  local out = {}
  if given ~= nil and type(given) ~= "table" then
    M.raise(("%s: options are %s, expected a table"):format(who, shown(given)), level)
  end
  for k, v in pairs(given or {}) do
    local entry = defaults[k]
    if entry == nil then M.raise(who .. ": " .. M.unknown("option", k, M.names(defaults)), level) end
    local problem = M.problem(k, v, entry)
    if problem then M.raise(who .. ": " .. problem, level) end
    out[k] = v
  end
  local missing
  for k, entry in next, defaults do
    if out[k] == nil and type(k) == "string" then
      local v = default_of(entry)
      if v == M.required then missing = (not missing or k < missing) and k or missing
      elseif v ~= M.none then out[k] = v end
    end
  end
  if missing then M.raise(("%s: %s is missing"):format(who, missing), level) end
  return out
end

-- ---- what help and docs read ----

local declared = setmetatable({}, { __mode = "k" })

--- Note what a function or class takes, for help() and the pages of docs/; returns it.
--- @generic T
--- @param object T  function or class
--- @param positional string[]  names of the arguments before the table of options
--- @param rules table  options of that table
--- @param text string?  what it is, for what is made in a loop and so has no comment of its own
--- @return T
function M.declare(object, positional, rules, text)
  declared[object] = { positional = positional, rules = rules, text = text }
  return object
end

--- What declare noted: { positional = { "dim" }, more = true, options = { { name, kind, default, doc }, ... } }
--- with the positional options first and the others sorted by name, more when there are others, and the text;
--- nil when nothing was noted. A default is shown as text, "required" or nil.
--- @param object any
--- @return table?
function M.declared(object)
  local known = declared[object]
  if not known then return nil end
  local list, names, positional = {}, {}, {}
  for _, name in ipairs(known.positional) do
    positional[name] = true
    if known.rules[name] ~= nil then names[#names + 1] = name end -- others are in the comment alone
  end
  local others = {}
  for _, name in ipairs(M.names(known.rules)) do
    if not positional[name] then others[#others + 1] = name end
  end
  table.move(others, 1, #others, #names + 1, names)
  for _, name in ipairs(names) do
    local entry = known.rules[name]
    local default = default_of(entry)
    local text = shown(default)
    if default == M.none then text = nil elseif default == M.required then text = "required" end
    if type(default) == "table" and getmetatable(default) == nil and (#default > 0 or next(default) == nil) then
      local items = {}
      for i, v in ipairs(default) do items[i] = shown(v) end
      text = #items > 0 and "{ " .. table.concat(items, ", ") .. " }" or "{}"
    end
    list[#list + 1] = { name = name, default = text, kind = is_rule(entry) and entry.kind or "",
      doc = is_rule(entry) and entry.doc or "" }
  end
  return { positional = known.positional, options = list, more = #others > 0, text = known.text }
end

-- A list of values is a value, such as a size for each dim, where a position is left for it.
local function is_options(v, position, positional)
  return is_plain(v) and not (v[1] ~= nil and positional[position])
end

--- Options of a constructor that takes its first values by position, or everything in one table:
--- f(2, 3, { bias = false }) or f{ in_features = 2, out_features = 3, bias = false }.
--- @param who string
--- @param positional string[]
--- @param defaults table  also of the positional ones; `M.required` where there is none
--- @param level integer?
--- @return table
function M.read(who, positional, defaults, level, ...)
  level = level or 3
  local n, given = select("#", ...), {}
  local first = ...
  if n == 1 and is_options(first, 1, positional) then
    given = first
  else
    if n > #positional + 1 then
      M.raise(("%s: %d arguments, expected at most %d and a table"):format(who, n, #positional), level)
    end
    local last = n > 0 and select(n, ...) or nil
    if is_options(last, n, positional) then
      for k, v in pairs(last) do given[k] = v end
      n = n - 1
    end
    for i = 1, n do
      local value = select(i, ...)
      if positional[i] then given[positional[i]] = value
      elseif value ~= nil then
        M.raise(("%s: argument %d is %s, expected a table of options"):format(who, i, shown(value)), level)
      end
    end
  end
  local out = M.fill(who, given, defaults, level + 1) -- no tail call: levels of errors count frames
  return out
end

return M
