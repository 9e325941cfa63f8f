-- environment.lua - an environment for rl.rollout in which the model calls tools: a turn that holds a call is answered
-- with its result, one that holds none ends the conversation. A call stands between two marks, and so does its result:
--
--   <tool> calculator 12*34 </tool>      <res> 408 </res>        what went wrong:  <err> "^" at byte 3 </err>
--
-- Nothing that a model writes or a tool gives is an error of the program: malformed calls, unknown names, tools that
-- fail or say too much are answered with a text, and counted.
local peri = require "perilune"
local options = require "perilune.options"
local tool = require "perilune.tools.tool"

local M = {}

local pair = "two texts, before and behind"
local rules = {
  tools = options.value(options.required, "table", "of tools.tool and its kin, one at least"),
  tokenizer = options.value(options.required, "table", "that the model speaks"),
  call = options.value({ "<tool>", "</tool>" }, "table", pair .. " a call; where the second is one token it "
    .. "ends a turn"),
  result = options.value({ "<res>", "</res>" }, "table", pair .. " a result"),
  failure = options.value(options.none, "table", pair .. " what went wrong; default: <err> and </err>, or those of "
    .. "result where that is given"),
  read = options.value(options.none, "callable", "fn(text of a call) -> name of a tool, arguments; nil and why where "
    .. "it is malformed; default: see tools.read"),
  write = options.value(options.none, "callable", "fn(text of a result) -> text, as the tokenizer has it; default: as "
    .. "it is"),
  most = options.integer(1000, "[1, inf)", "characters of a result that the model is told; the rest is cut, and "
    .. "that is said"),
  calls = options.integer(8, "[1, inf)", "calls of one turn; more of them are refused"),
  reward = options.value(options.none, "callable or table", "see rl.score"),
}

local Env = {}
Env.__index, Env.__name = Env, "perilune.tools.Environment"

-- The tool of a name, or nil and why there is none.
local function named(name, list)
  local names = {}
  for i, one in ipairs(list) do
    if one.name == name then return one end
    names[i] = one.name
  end
  return nil, ("there is no tool %s; there are: %s"):format(tostring(name):sub(1, 40), table.concat(names, ", "))
end

--- A call as most models write it: JSON { "name": ..., "arguments": ... }, or a name and behind a blank or in
--- parentheses the arguments; where there is one tool, its arguments alone.
--- @param text string
--- @param list table[]  the tools
--- @return table? tool
--- @return any arguments  or why there is none
function M.read(text, list)
  text = text:match "^%s*(.-)%s*$"
  if text:sub(1, 1) == "{" then
    local ok, call = pcall(peri.json.decode, text)
    if not ok or type(call) ~= "table" then return nil, "the call is no JSON" end
    local arguments = call.arguments
    if arguments == nil then arguments = call.parameters end
    if type(call.name) ~= "string" then return nil, "the call has no name" end
    local found, why = named(call.name, list)
    if not found then return nil, why end
    return found, arguments == nil and "" or arguments
  end
  local name, rest = text:match "^([%a_][%w_]*)%s*(.*)$"
  local found, why = named(name or text, list)
  if found then return found, rest:match "^%((.*)%)$" or rest end
  if #list == 1 then return list[1], text end
  return nil, why
end

local function want_pair(name, value)
  if value == nil then return end
  for i = 1, 2 do
    if type(value[i]) ~= "string" or value[i] == "" then
      options.raise(("tools.environment: entry %d of %s is %s, expected a text"):format(i, name,
        value[i] == nil and "missing" or "a " .. type(value[i])))
    end
  end
end

-- Raise where a mark is no text of the tokenizer: the model would be told what it cannot read.
local function want_known(name, value, tokenizer)
  for i = 1, 2 do
    local ids = tokenizer:encode_batch({ value[i] }, { add_special = false })[1]
    local unknown = #ids == 0
    for _, id in ipairs(ids) do unknown = unknown or id == tokenizer.unk end
    if unknown then
      options.raise(("tools.environment: entry %d of %s is %q, which the tokenizer has no tokens for"):format(i, name,
        value[i]))
    end
  end
end

-- The one id that a text is, or nil.
local function single(tokenizer, text)
  local ids = tokenizer:encode_batch({ text }, { add_special = false })[1]
  return #ids == 1 and ids[1] ~= tokenizer.unk and ids[1] or nil
end

--- An environment for rl.rollout, algo.grpo and algo.ppo in which the model calls tools.
--- @param opts table
--- @return table environment
function M.environment(opts)
  local o = options.fill("tools.environment", opts, rules)
  if #o.tools == 0 then options.raise "tools.environment: there are no tools" end
  local names = {}
  for i, one in ipairs(o.tools) do
    if not tool.is(one) then options.raise(("tools.environment: tool %d is none of tools.tool"):format(i)) end
    if names[one.name] then options.raise(("tools.environment: two tools are called %s"):format(one.name)) end
    names[one.name] = true
  end
  if not o.failure then o.failure = opts.result and o.result or { "<err>", "</err>" } end
  local marks = {}
  for _, name in ipairs { "call", "result", "failure" } do
    want_pair(name, o[name])
    want_known(name, o[name], o.tokenizer)
    table.move(o[name], 1, 2, #marks + 1, marks)
  end
  if o.call[1] == o.call[2] then
    options.raise(("tools.environment: both entries of call are %q, expected two that differ"):format(o.call[1]))
  end
  local self = setmetatable({ batch = true, options = o, reward = o.reward, tokenizer = o.tokenizer,
    marks = marks }, Env)
  self.from, self.to = single(o.tokenizer, o.call[1]), single(o.tokenizer, o.call[2])
  local eos = o.tokenizer.eos_ids or { o.tokenizer.eos }
  if self.to then self.stop = table.move(eos, 1, #eos, 2, { self.to }) end
  return self
end
options.declare(M.environment, {}, rules)

-- ---- what a turn asks for ----

-- The texts of the calls of a turn; false for one that is not whole.
local function calls_of(self, talk)
  local o, list = self.options, {}
  if self.from and self.to then -- by ids: decoding may leave special tokens out
    local first
    for i, id in ipairs(talk.ids) do
      if id == self.from then first = i
      elseif id == self.to then
        list[#list + 1] = first and o.tokenizer:decode(table.move(talk.ids, first + 1, i - 1, 1, {})) or false
        first = nil
      end
    end
    if first then list[#list + 1] = false end
    return list
  end
  local at = 1
  while true do
    local open, behind = talk.text:find(o.call[1], at, true)
    local close, last = talk.text:find(o.call[2], open and behind + 1 or at, true)
    if not open and not close then return list end
    if open and close then list[#list + 1] = talk.text:sub(behind + 1, close - 1) else list[#list + 1] = false end
    if not close then return list end
    at = last + 1
  end
end

-- A text of at most so many characters.
local function cut(text, most)
  text = utf8.len(text) and text or text:gsub("[\x80-\xff]", "?")
  local length = utf8.len(text)
  if length <= most then return text end
  return ("%s ... (%d more)"):format(text:sub(1, utf8.offset(text, most + 1) - 1), length - most)
end

-- The ids of a result between its marks. What a tool said is text, whatever it looks like.
local function put(self, into, result)
  local o = self.options
  local marks, text = result.failed and o.failure or o.result, cut(result.text, o.most)
  if o.write then text = o.write(text) end
  local tok = o.tokenizer
  for _, ids in ipairs { tok:encode_batch({ marks[1] }, { add_special = false })[1],
    tok:encode_batch({ text }, { add_special = false, parse_special = false })[1],
    tok:encode_batch({ marks[2] }, { add_special = false })[1] } do
    table.move(ids, 1, #ids, #into + 1, into)
  end
end

--- Call a tool by its name, as the model would: for tests, and for environments that are made of this one.
--- @param name string
--- @param arguments any  a text, or plain data
--- @return string text  what the model would be told, before it is cut
--- @return boolean failed
function Env:tool(name, arguments)
  local found, why = named(name, self.options.tools)
  if not found then return why, true end
  if arguments == nil then options.raise(("environment:tool: arguments of %s are missing"):format(name)) end
  local result = tool.call({ { tool = found, arguments = arguments } })[1]
  return result.text, result.failed
end

--- See rl.rollout: what turns are answered with. The calls of all of them are made side by side.
--- @param talks table[]
--- @return table replies  ids, or false where no call was made
function Env:reply(talks)
  local o, replies, calls, places, results = self.options, {}, {}, {}, {}
  for i, talk in ipairs(talks) do
    talk.calls, talk.failed = talk.calls or 0, talk.failed or 0
    results[i] = {}
    for k, text in ipairs(calls_of(self, talk)) do
      local found, arguments
      if not text then arguments = ("a call stands between %s and %s"):format(o.call[1], o.call[2])
      elseif k > o.calls then arguments = ("more than %d calls in one turn"):format(o.calls)
      elseif o.read then
        found, arguments = o.read(text)
        if type(found) == "string" then
          local why
          found, why = named(found, o.tools)
          arguments = found and arguments or why
        end
      else found, arguments = M.read(text, o.tools) end
      if found and talk.last then found, arguments = nil, "there is no turn left to read a result" end
      if arguments == nil then arguments = "" end
      local odd = found and found.source and tool.odd_of(arguments)
      if odd then found, arguments = nil, ("the arguments hold %s"):format(odd) end
      if found then
        calls[#calls + 1], places[#places + 1] = { tool = found, arguments = arguments }, { i, k }
      else results[i][k] = { text = tostring(arguments), failed = true } end
    end
  end
  for n, result in ipairs(tool.call(calls)) do results[places[n][1]][places[n][2]] = result end
  for i, talk in ipairs(talks) do
    replies[i] = #results[i] > 0 and {}
    for _, result in ipairs(results[i]) do
      talk.calls, talk.failed = talk.calls + 1, talk.failed + (result.failed and 1 or 0)
      put(self, replies[i], result)
    end
  end
  return replies
end

return M
