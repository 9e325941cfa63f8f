-- products.lua - products that a small model cannot work out and a calculator can: "1 2 3 * 4 5 6 7 =" is answered
-- "ans 5 6 1 7 4 1", or by a call, "<tool> 1 2 3 * 4 5 6 7 </tool>", whose result the environment writes:
-- "<res> 5 6 1 7 4 1 </res>", and "ans" behind it. A quarter of the problems have one digit each and can be known by
-- heart. The corpus calls seldom, copies carelessly, and guesses otherwise.
local options = require "perilune.options"
local text = require "perilune.text"
local tools = require "perilune.tools"

local M = {}

M.name = "products"
M.about = "products of numbers, with a calculator or without"

--- A tokenizer of digits, signs and marks.
--- @return perilune.text.Units
function M.tokenizer()
  local words = { "*", "=", "ans", "<tool>", "</tool>", "<res>", "</res>", "<err>" }
  for digit = 0, 9 do words[#words + 1] = tostring(digit) end
  return text.words(words)
end

--- The config of a small model of this vocabulary, as a Llama of heads of 32.
--- @param layers integer
--- @param width integer  a multiple of 32
--- @return table  for models.llama.new
function M.config(layers, width)
  local tok = M.tokenizer()
  return { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = width,
    intermediate_size = width * 8 // 3 // 8 * 8, num_hidden_layers = layers, num_attention_heads = width // 32,
    num_key_value_heads = width // 32, rms_norm_eps = 1e-6, rope_theta = 10000, max_position_embeddings = 256,
    eos_token_id = tok.eos, pad_token_id = tok.pad }
end

local function spaced(s) return (tostring(s):gsub(".", "%0 "):sub(1, -2)) end

-- ---- problems ----

local function is_held_out(a, b) return (a * 2654435761 + b * 40503) % 1000003 % 10 == 0 end

local function row_of(a, b, easy)
  return { prompt = spaced(("%d*%d="):format(a, b)), a = a, b = b, answer = tostring(a * b), easy = easy }
end

--- The products of two digits, all hundred: what a model can know by heart. They are never held out.
--- @return table[] rows  as of problems
function M.easy()
  local rows = {}
  for a = 0, 9 do for b = 0, 9 do rows[#rows + 1] = row_of(a, b, true) end end
  return rows
end

local problem_rules = {
  easy = options.number(0.25, "[0, 1]", "share of products of two digits"),
  digits = options.integer(5, "[3, 9]", "most of a factor of the others; the least is 3"),
  held_out = options.boolean(false, "of the tenth of the hard problems that training never sees"),
}

--- Problems.
--- @param rng table  of peri.rng
--- @param count integer
--- @param opts table?
--- @return table[] rows  prompt, a, b, answer (digits), easy (whether it is a product of two digits)
function M.problems(rng, count, opts)
  local o = options.fill("tasks.products.problems", opts, problem_rules)
  local rows = {}
  local function factor()
    local digits = rng:int(3, o.digits)
    return rng:int(math.tointeger(10 ^ (digits - 1)), math.tointeger(10 ^ digits) - 1)
  end
  while #rows < count do
    local easy = rng:uniform() < o.easy
    local a, b = easy and rng:int(0, 9) or factor(), easy and rng:int(0, 9) or factor()
    if easy or is_held_out(a, b) == o.held_out then rows[#rows + 1] = row_of(a, b, easy) end
  end
  return rows
end
options.declare(M.problems, { "rng", "count" }, problem_rules)

-- ---- a corpus ----

-- One digit of a text is another one.
local function slip(s, rng)
  local places = {}
  for at in s:gmatch "()%d" do places[#places + 1] = at end
  local at = rng:choice(places)
  local other = (tonumber(s:sub(at, at)) + rng:int(1, 9)) % 10
  return ("%s%d%s"):format(s:sub(1, at - 1), other, s:sub(at + 1))
end

local corpus_rules = {
  calls = options.number(0.1, "[0, 1]", "share of the answers that call"),
  copy = options.number(0.3, "[0, 1]", "share of the calls with a wrong digit"),
  answer = options.number(0.2, "[0, 1]", "share of the answers behind a call with a wrong digit"),
  digit = options.number(0.12, "[0, 1]", "share of the digits of direct answers that are wrong"),
}
for name, rule in pairs(problem_rules) do corpus_rules[name] = rule end

--- Rows to learn a base model from.
--- @param rng table  of peri.rng
--- @param count integer
--- @param opts table?  those of problems as well
--- @return table[] rows  as of problems, with said: texts, the second of which is what a call was answered with
function M.corpus(rng, count, opts)
  local o = options.fill("tasks.products.corpus", opts, corpus_rules)
  local rows = M.problems(rng, count, { easy = o.easy, digits = o.digits, held_out = o.held_out })
  for _, row in ipairs(rows) do
    if rng:uniform() < o.calls then
      local expression = ("%d*%d"):format(row.a, row.b)
      if rng:uniform() < o.copy then expression = slip(expression, rng) end
      local a, b = expression:match "(%d+)%*(%d+)"
      local result = tostring(math.tointeger(a) * math.tointeger(b))
      local answer = rng:uniform() < o.answer and slip(result, rng) or result
      row.said = { ("<tool> %s </tool>"):format(spaced(expression)), ("<res> %s </res>"):format(spaced(result)),
        "ans " .. spaced(answer) }
    else
      local answer = row.answer:gsub("%d", function (d)
        if rng:uniform() < o.digit then return ("%d"):format((tonumber(d) + rng:int(1, 9)) % 10) end
      end)
      row.said = { "ans " .. spaced(answer) }
    end
  end
  return rows
end
options.declare(M.corpus, { "rng", "count" }, corpus_rules)

--- Rows of a corpus as examples for algo.sft: what a call was answered with is read and not learned.
--- @param tok perilune.text.Units
--- @param rows table[]  of corpus
--- @return table[] examples  { ids, mask }
function M.examples(tok, rows)
  local list = {}
  for i, row in ipairs(rows) do
    local ids = tok:encode(row.prompt)
    local mask = {}
    for k = 1, #ids do mask[k] = 0 end
    for k, said in ipairs(row.said) do
      for _, id in ipairs(tok:encode(said)) do ids[#ids + 1], mask[#mask + 1] = id, k % 2 end
    end
    ids[#ids + 1], mask[#mask + 1] = tok.eos, 1
    list[i] = { ids = ids, mask = mask }
  end
  return list
end

-- ---- the environment ----

--- Whether a conversation ends with the right product: what it says last is "ans" and its digits, and nothing else.
--- @param row table
--- @param talk table  of the environment
--- @return boolean
function M.right(row, talk)
  return talk.over == "stop" and talk.text == "ans " .. spaced(row.answer)
end

local environment_rules = {
  tool = options.boolean(true, "with the calculator; without it a call ends the conversation"),
  price = options.number(0, "[0, inf)", "taken off the reward for each call"),
}

--- The environment of products: a calculator, and the reward, 1 for the exact answer less the price of calls.
--- @param tok perilune.text.Units
--- @param opts table?
--- @return table environment  for rl.rollout, with max_turns = 2 for one call
function M.environment(tok, opts)
  local o = options.fill("tasks.products.environment", opts, environment_rules)
  local env = tools.environment { tools = { tools.calculator() }, tokenizer = tok, failure = { "<err>", "</res>" },
    read = function (call) return "calculator", (call:gsub(" ", "")) end,
    write = function (result) return result:find "^%-?%d+$" and spaced(result) or "" end,
    reward = function (row, _, _, talk) return (M.right(row, talk) and 1 or 0) - o.price * (talk.calls or 0) end }
  if o.tool then return env end
  return { stop = env.stop, reward = env.reward, reply = function () end }
end
options.declare(M.environment, { "tok" }, environment_rules)

return require "perilune.names"(M, "perilune.tasks.products")
