-- code.lua - a reward for Lua code that passes its tests, tried in the sandbox.
local options = require "perilune.options"
local sandbox = require "perilune.sandbox"

local M = {}

local rules = {
  field = options.value("tests", "string", "of the row: a list of tests (see sandbox.run), or one"),
  language = options.value("lua", "string", "of the block ```lua whose text is the code; the last one counts"),
  bare = options.boolean(false, "a completion without such a block is code as it stands"),
  partial = options.boolean(false, "the share of the tests that passed, in place of all or nothing"),
  right = options.number(1, nil, "reward where all tests pass"),
  wrong = options.number(0, nil, "reward where not, and of a completion without code"),
}
local limits = { "timeout", "wall", "memory", "output", "unprotected", "program", "workers" }
for _, name in ipairs(limits) do rules[name] = sandbox._rules[name] end

-- What stands in the last block of a language, or in the last one that names none.
local function block(text, language)
  local found, plain, at = nil, nil, 1
  while true do
    local _, open, name = text:find("```[ \t]*([%w_%+%-]*)[^\n]*\n", at)
    local close = open and text:find("```", open + 1, true)
    if not close then return found or plain end
    local inner = text:sub(open + 1, close - 1)
    if name:lower() == language then found = inner elseif name == "" then plain = inner end
    at = close + 3
  end
end

local function tests_of(row, field)
  local tests = type(row) == "table" and row[field]
  if type(tests) == "string" or type(tests) == "table" and tests.call then tests = { tests } end
  if type(tests) ~= "table" or #tests == 0 then
    error(("the row's %s, expected a list of tests, one at least"):format(options.is(field, tests)), 0)
  end
  return tests
end

local Code = {}
Code.__index, Code.__name = Code, "perilune.reward.Code"

-- The completions that have code, and where they stand.
local function jobs_of(self, rows, texts)
  local jobs, place = {}, {}
  for i, row in ipairs(rows) do
    local tests = tests_of(row, self.options.field)
    local code = block(texts[i], self.options.language:lower()) or self.options.bare and texts[i] or nil
    if code then
      jobs[#jobs + 1] = { source = code, tests = tests }
      place[#place + 1] = i
    end
  end
  return jobs, place
end

function Code:__call(rows, texts)
  local o, values = self.options, {}
  local jobs, place = jobs_of(self, rows, texts)
  local results, message = sandbox.run_many(jobs, self.limits)
  if not results then error(message, 0) end
  self.results = {}
  for i = 1, #rows do values[i] = o.wrong end
  for k, r in ipairs(results) do
    if r.status == "unprotected" then error(r.err .. "; unprotected = true runs it all the same", 0) end
    local share = r.passed / #r.tests
    self.results[place[k]] = r
    values[place[k]] = o.partial and o.wrong + share * (o.right - o.wrong) or r.ok and o.right or o.wrong
  end
  return values
end

--- A reward for Lua code that passes the row's tests, each completion tried in a process of its own (sandbox.run):
--- code that loops, eats memory or asks for files gets no reward, and the run goes on. The code is the last ```lua
--- block. The reward takes whole batches; its field results has what the sandbox said of each completion of the last
--- one.
--- @param opts table?
--- @return table reward
function M.code(opts)
  local o = options.fill("reward.code", opts, rules)
  local given = {}
  for _, name in ipairs(limits) do given[name] = o[name] end
  return setmetatable({ batch = true, options = o, limits = given, results = {} }, Code)
end
options.declare(M.code, {}, rules)

return M
