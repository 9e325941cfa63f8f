-- rows.lua - training rows in the shapes of TRL's dataset formats, plain and conversational, as token
-- ids. A row is what a line of a JSONL file decodes to:
--   { text }  { messages }                              language modelling
--   { prompt }                                          prompts alone
--   { prompt, completion }                              prompt and completion
--   { prompt?, chosen, rejected }                       preferences; without prompt it is what both share
--   { prompt, completion, label }                       unpaired preferences
--   { prompt, completions, labels }                     stepwise supervision
-- where a text may be a list of messages { role, content, ... }, in each of these columns also as { from, value }
-- with the names of ShareGPT (human, gpt, observation, function_call ...), and { conversations } counts as
-- { messages }, beside chosen and rejected as their prompt; a list of one message may be that message. Whatever else a
-- message holds (tool_calls, reasoning_content, name ...) goes to the template as it is; nulls are absent, in columns
-- and in messages, as in TRL. tools (a list, or its JSON) and chat_template_kwargs are given to the chat template. Ids
-- and masks are those of TRL 1.16: prompt and answer are tokenised as one, and the answer begins where that differs
-- from the prompt alone, which by a token across the border or by the template may be before its end.
-- Only of a template without generation marks the assistant's tokens are others than with the marks that TRL
-- puts in: from the first byte of what it says to the mark that ends its turn, without the line breaks around.
local json = require("perilune").json
local options = require "perilune.options"

local M = {}

local function is_messages(v) return type(v) == "table" end

local function show(row)
  local names = {}
  for k in pairs(row) do names[#names + 1] = tostring(k) end
  table.sort(names)
  return table.concat(names, ", ")
end

-- ---- one form for all rows ----

-- A copy with the same order of keys.
local function copy(t)
  local out = {}
  for k, v in pairs(t) do out[k] = v end
  return setmetatable(out, getmetatable(t))
end

-- The table without members that are null, however deep; itself where there are none.
local function without_nulls(t)
  local out
  for k, v in pairs(t) do
    local kept = v
    if v == json.null then
      if type(k) == "string" then kept = nil end -- an element of a list keeps its place
    elseif type(v) == "table" then
      kept = without_nulls(v)
    end
    if kept ~= v then
      out = out or copy(t)
      out[k] = kept
    end
  end
  return out or t
end

-- Roles as data sets write them.
local ROLES = {
  human = "user", gpt = "assistant", chatgpt = "assistant", bing = "assistant", bard = "assistant",
  model = "assistant", bot = "assistant", observation = "tool", tool_response = "tool", function_response = "tool",
  function_call = "assistant", tool_call = "assistant",
}
local CALLS = { function_call = true, tool_call = true }

-- What a message of ShareGPT's role function_call says, as tool_calls: one call, or a list of them.
local function calls_of(text, where)
  local said, problem = text, "it is no JSON"
  if type(said) == "string" then said, problem = json.decode(text, { foreign = true }) end
  if type(said) ~= "table" then error(("rows: %s is a call of a function: %s"):format(where, tostring(problem)), 0) end
  local calls = json.array {}
  for i, call in ipairs(#said > 0 and said or { said }) do
    if type(call) ~= "table" or type(call.name) ~= "string" then
      error(("rows: %s is a call of a function and has no name"):format(where), 0)
    end
    calls[i] = { type = "function", ["function"] = call }
  end
  return calls
end

local function message_of(m, where)
  if type(m) ~= "table" then error(("rows: %s is a %s, expected a message"):format(where, type(m)), 0) end
  local role = m.from or m.role
  if type(role) ~= "string" then
    error(("rows: %s has no role; its keys are %s"):format(where, show(m)), 0)
  end
  if m.from == nil and m.value == nil and not ROLES[role] then return m end
  local out = copy(m)
  out.role, out.from, out.value = ROLES[role] or role, nil, nil
  if m.value ~= nil then out.content = m.value end
  if CALLS[role] and out.tool_calls == nil then
    out.tool_calls, out.content = calls_of(out.content, where), ""
  end
  return out
end

local function messages_of(list, column)
  local out, changed = json.array {}, false
  for i, m in ipairs(list) do
    out[i] = message_of(m, ("message %d of %s"):format(i, column))
    changed = changed or out[i] ~= m
  end
  return changed and out or list
end

local COLUMNS = { "prompt", "completion", "chosen", "rejected", "messages", "conversations" }

--- A row in the one form that all else here reads: nulls left out, messages as { role, content, ... } with
--- the roles of chat templates, conversations as messages or, of a preference, as its prompt. Itself where it has that
--- form.
--- @param row table
--- @return table
function M.normal(row)
  if type(row) ~= "table" then error(("rows: a row is a %s, expected a table"):format(type(row)), 0) end
  local out = without_nulls(row)
  for _, column in ipairs(COLUMNS) do
    if is_messages(out[column]) then
      local alone = #out[column] == 0 and (out[column].role or out[column].from) ~= nil
      local list = messages_of(alone and json.array { out[column] } or out[column], column)
      if list ~= out[column] then
        if out == row then out = copy(row) end
        out[column] = list
      end
    end
  end
  local as = out.chosen ~= nil and "prompt" or "messages"
  if out.conversations ~= nil and out[as] == nil then
    if out == row then out = copy(row) end
    out[as], out.conversations = out.conversations, nil
  end
  return out
end

local function kind_of(row)
  if row.messages ~= nil then return "language_modeling", true end
  if row.text ~= nil then return "language_modeling", false end
  local conversational = is_messages(row.prompt) or is_messages(row.completion) or is_messages(row.chosen)
  if row.chosen ~= nil and row.rejected ~= nil then return "preference", conversational end
  if row.prompt ~= nil then
    if row.completions ~= nil and row.labels ~= nil then return "stepwise_supervision", false end
    if row.completion ~= nil and row.label ~= nil then return "unpaired_preference", conversational end
    if row.completion ~= nil then return "prompt_completion", conversational end
    if row.chosen == nil and row.rejected == nil then return "prompt_only", conversational end
  end
  return nil, ("a row with the keys %s is in none of the known formats"):format(show(row))
end

--- The format of a row.
--- @param row table
--- @return string|nil kind  "language_modeling", "prompt_only", "prompt_completion", "preference",
--- "unpaired_preference" or "stepwise_supervision"
--- @return boolean|string conversational  or a message
function M.kind(row)
  local ok, normal = pcall(M.normal, row)
  if not ok then return nil, (normal:gsub("^rows: ", "")) end
  return kind_of(normal)
end

local function tail(list, from) return table.move(list, from, #list, 1, {}) end

local function joined(a, b)
  local out = table.move(a, 1, #a, 1, {})
  return table.move(b, 1, #b, #out + 1, out)
end

-- How many leading ids two lists share.
local function shared(a, b)
  local n = 0
  while n < #a and n < #b and a[n + 1] == b[n + 1] do n = n + 1 end
  return n
end

local function ones(n)
  local mask = {}
  for i = 1, n do mask[i] = 1 end
  return mask
end

-- Variables of the template that a row brings.
local function template_options(row, more)
  local tools = row.tools
  if type(tools) == "string" and tools:find "%S" then
    local message
    tools, message = json.decode(tools, { foreign = true })
    if tools == nil then error("rows: tools: " .. tostring(message), 0) end
  end
  if type(tools) ~= "table" or next(tools) == nil then
    tools = nil
  elseif #tools == 0 then
    error("rows: tools is an object, expected a list of them", 0)
  end
  local o = { tools = tools }
  for k, v in pairs(row.chat_template_kwargs or {}) do o[k] = v end
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

local function text_of(row, key)
  local v = row[key]
  if type(v) ~= "string" then
    error(("rows: %s is a %s, expected text or a list of messages"):format(key, type(v)), 0)
  end
  return v
end

-- Ids of a text behind another; it ends with the token that ends texts, as text where that token has one.
local function ended(tok, before, text)
  if not tok.eos then return tok:encode(before .. text) end
  if tok.token then
    local eos = tok:token(tok.eos)
    return tok:encode(before .. (text:sub(-#eos) == eos and text or text .. eos))
  end
  local ids = tok:encode(before .. text)
  ids[#ids + 1] = tok.eos
  return ids
end

-- Ids of a conversational prompt that is to be answered, or whose last message goes on.
local function chat_prompt(tok, row, messages)
  local last = messages[#messages]
  if not last or last.role ~= "assistant" then
    return tok:encode_chat(messages, template_options(row, { add_generation_prompt = true, return_mask = false }))
  end
  local content = type(last.content) == "string" and last.content or ""
  local text, said, stop = tok:chat(messages, template_options(row)), content:match "^%s*(.-)%s*$", 0
  while said ~= "" do
    local from, found = text:find(said, stop + 1, true)
    if not found then break end
    local whole = content:match "^%s*(.*)$" -- with the space behind, where the template keeps it
    stop = text:sub(from, from + #whole - 1) == whole and from + #whole - 1 or found
  end
  if stop == 0 then stop = #text end
  return tok:encode(text:sub(1, stop), { add_special = false })
end

-- Ids of a prompt, and of the whole with each answer.
local function both(tok, row, chat, prompt, answers)
  local wholes, ids = {}
  if chat then
    ids = tok:encode_chat(prompt, template_options(row, { add_generation_prompt = true, return_mask = false }))
    for i, answer in ipairs(answers) do
      wholes[i] = tok:encode_chat(joined(prompt, answer), template_options(row, { return_mask = false }))
    end
  else
    ids = tok:encode(prompt)
    for i, answer in ipairs(answers) do wholes[i] = ended(tok, prompt, answer) end
  end
  return ids, wholes
end

local function same(a, b)
  if type(a) ~= "table" or type(b) ~= "table" then return a == b end
  for k, v in pairs(a) do if not same(v, b[k]) then return false end end
  for k in pairs(b) do if a[k] == nil then return false end end
  return true
end

-- What a chosen and a rejected answer share is their prompt; something is left of each.
local function implicit_prompt(row)
  local a, b = row.chosen, row.rejected
  local n, most = 0, math.min(#a, #b) - 1
  if is_messages(a) then
    while n < most and same(a[n + 1], b[n + 1]) do n = n + 1 end
    return table.move(a, 1, n, 1, {}), tail(a, n + 1), tail(b, n + 1)
  end
  while n < most and a:byte(n + 1) == b:byte(n + 1) do n = n + 1 end
  while n > 0 and (a:byte(n + 1) or 0) & 0xC0 == 0x80 do n = n - 1 end -- whole characters
  if n > 0 and a:sub(n, n) == " " and a:byte(n + 1) ~= b:byte(n + 1) then n = n - 1 end -- the answers' blank
  return a:sub(1, n), a:sub(n + 1), b:sub(n + 1)
end

local encode = {}

function encode.language_modeling(tok, row, chat, opts)
  if not chat then
    local ids = ended(tok, "", text_of(row, "text"))
    return { ids = ids, mask = ones(#ids) }
  end
  local whole = opts.assistant_only == false
  local ids, mask = tok:encode_chat(row.messages, template_options(row, { return_mask = not whole }))
  return { ids = ids, mask = whole and ones(#ids) or mask }
end

function encode.prompt_only(tok, row, chat)
  return { prompt = chat and chat_prompt(tok, row, row.prompt) or tok:encode(text_of(row, "prompt")) }
end

function encode.prompt_completion(tok, row, chat, opts)
  if not chat then text_of(row, "prompt") text_of(row, "completion") end
  local prompt, wholes = both(tok, row, chat, row.prompt, { row.completion })
  local ids = wholes[1]
  local n, mask = shared(prompt, ids), ones(#ids)
  if opts.completion_only ~= false then
    for i = 1, n do mask[i] = 0 end
  end
  return { ids = ids, mask = mask, prompt = table.move(ids, 1, n, 1, {}), completion = tail(ids, n + 1) }
end

function encode.unpaired_preference(tok, row, chat, opts)
  local e = encode.prompt_completion(tok, row, chat, opts)
  e.label = row.label
  return e
end

function encode.preference(tok, row, chat)
  if not chat then text_of(row, "chosen") text_of(row, "rejected") end
  local prompt, chosen, rejected = row.prompt, row.chosen, row.rejected
  if prompt == nil or is_messages(prompt) ~= is_messages(chosen) then -- a prompt that the answers hold once more
    prompt, chosen, rejected = implicit_prompt(row)
  end
  local ids, wholes = both(tok, row, chat, prompt, { chosen, rejected })
  local n = math.min(shared(ids, wholes[1]), shared(ids, wholes[2]))
  return { prompt = table.move(ids, 1, n, 1, {}), chosen = tail(wholes[1], n + 1), rejected = tail(wholes[2], n + 1) }
end

function encode.stepwise_supervision(tok, row)
  local e = { prompt = tok:encode(text_of(row, "prompt")), completions = {}, labels = row.labels }
  if #row.completions ~= #row.labels then
    error(("rows: %d completions and %d labels"):format(#row.completions, #row.labels), 0)
  end
  for i, text in ipairs(row.completions) do e.completions[i] = tok:encode(text, { add_special = false }) end
  return e
end

local encode_rules = {
  assistant_only = options.boolean(true, "of messages only what the assistant says is learned"),
  completion_only = options.boolean(true, "of a prompt and a completion only the completion is learned"),
}

-- An error without the place in a file of ours that it was raised at.
local function plain(message) return (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", "")) end

-- The example of a row.
local function encoded(tok, row, o)
  row = M.normal(row)
  local kind, chat = kind_of(row)
  if not kind then error("rows: " .. tostring(chat), 0) end
  local example = encode[kind](tok, row, chat, o)
  example.kind = kind
  return example
end

--- A row as token ids.
--- @param tok table  of perilune.tokenizer
--- @param row table
--- @param opts table?
--- @return table example  kind, and by kind: ids and mask (1 = learned) for language_modeling and
--- prompt_completion; prompt, completion, chosen, rejected, completions, label, labels where the row has them
function M.encode(tok, row, opts)
  local o = options.fill("rows.encode", opts, encode_rules)
  local ok, example = pcall(encoded, tok, row, o)
  if not ok then error(plain(example), 2) end
  return example
end
options.declare(M.encode, { "tok", "row" }, encode_rules)

--- The prompt of a row as token ids, whatever else the row holds: a text, or messages that the template
--- ends with what opens the answer.
--- @param tok table
--- @param row table
--- @return integer[]
function M.prompt(tok, row)
  local ok, ids = pcall(function ()
    local normal = M.normal(row)
    if is_messages(normal.prompt) then return chat_prompt(tok, normal, normal.prompt) end
    return tok:encode(text_of(normal, "prompt"))
  end)
  if not ok then error(plain(ids), 2) end
  return ids
end

local example_rules = {
  max_length = options.integer(1024, "[2, inf)", "tokens of a row; longer ones are cut at the end"),
  assistant_only = encode_rules.assistant_only, completion_only = encode_rules.completion_only,
  bad = options.choice("error", { "error", "skip" }, "of rows that cannot be read: raise, or leave out and count"),
}

-- ids and mask of a row that is to be learned, the chosen answer of a preference.
local function learnable(tok, row, o)
  local e = encoded(tok, row, o)
  if e.kind == "preference" then
    local ids, mask = joined(e.prompt, e.chosen), {}
    for k = 1, #ids do mask[k] = k > #e.prompt and 1 or 0 end
    return { kind = e.kind, ids = ids, mask = mask }
  elseif not e.ids then
    error(("is of the format %s, which has no answer to learn"):format(e.kind), 0)
  end
  return e
end

-- "7 of 10 rows are used; 2 have nothing to learn (the first is row 3); 1 cannot be read (row 4: ...)"
local function say(r)
  local parts = { ("%d of %d rows are used"):format(r.kept, r.rows) }
  if r.empty > 0 then
    parts[#parts + 1] = ("%d have nothing to learn (the first is row %d)"):format(r.empty, r.first_empty)
  end
  if r.unread > 0 then parts[#parts + 1] = ("%d cannot be read (%s)"):format(r.unread, r.first_error) end
  if r.cut > 0 then parts[#parts + 1] = ("%d are cut at %d tokens"):format(r.cut, r.max_length) end
  return table.concat(parts, "; ")
end

--- Examples for supervised fine-tuning out of rows of any format that has an answer: of preferences the
--- chosen one. Rows longer than max_length are cut at the end; those with nothing to learn are left out,
--- and the report counts them.
--- @param tok table
--- @param list table  rows, or a stream of perilune.data
--- @param opts table?
--- @return table[] examples  each { ids, mask, learned, row (its place in the list) }
--- @return table report  rows, kept, empty (nothing to learn), unread (skipped errors), cut, dropped (empty and
--- unread together), first_error, and text, which says it in a line
function M.examples(tok, list, opts)
  local o, out = options.fill("rows.examples", opts, example_rules), {}
  options.argument("rows.examples", "list", list, "table")
  local how = { assistant_only = o.assistant_only, completion_only = o.completion_only }
  if type(list) == "table" and type(list.collect) == "function" then list = list:collect() end
  local report = { rows = #list, kept = 0, empty = 0, unread = 0, cut = 0, max_length = o.max_length }
  for i, row in ipairs(list) do
    local ok, e = pcall(learnable, tok, row, how)
    if not ok then
      local why = plain(e):gsub("^rows: ", "")
      local message = ("row %d%s %s"):format(i, why:find "^is of the format" and "" or ":", why)
      if o.bad == "error" then error("rows: " .. message, 2) end
      report.unread, report.first_error = report.unread + 1, report.first_error or message
    else
      local learned = 0
      for k = math.min(#e.ids, o.max_length), 2, -1 do learned = learned + e.mask[k] end
      if learned > 0 then
        out[#out + 1] = { ids = table.move(e.ids, 1, math.min(#e.ids, o.max_length), 1, {}), mask = e.mask,
          learned = learned, row = i }
        if #e.ids > o.max_length then report.cut = report.cut + 1 end
      else
        report.empty, report.first_empty = report.empty + 1, report.first_empty or i
      end
    end
  end
  report.kept, report.dropped = #out, report.empty + report.unread
  report.text = say(report)
  return out, report
end
options.declare(M.examples, { "tok", "list" }, example_rules)

return require "perilune.names"(M, "perilune.data.rows")
