-- rows.lua - training rows in the shapes of TRL's dataset formats, plain and conversational, as token
-- ids. A row is what a line of a JSONL file decodes to:
--   { text }  { messages }                              language modelling
--   { prompt }                                          prompts alone
--   { prompt, completion }                              prompt and completion
--   { prompt?, chosen, rejected }                       preferences; without prompt it is what both share
--   { prompt, completion, label }                       unpaired preferences
--   { prompt, completions, labels }                     stepwise supervision
-- where a text may be a list of messages { role, content }; { conversations } of { from, value } counts as
-- { messages }. tools (a list, or its JSON) and chat_template_kwargs are given to the chat template. Ids and
-- masks are those of TRL 1.16: prompt and answer are tokenised as one, and the answer begins where that
-- differs from the prompt alone, which by a token across the border or by the template may be before its end.
-- Only of a template without generation marks the assistant's tokens are others than with the marks that TRL
-- puts in: from the first byte of what it says to the mark that ends its turn, without the line breaks around.
local json = require("perilune").json

local M = {}

local function is_messages(v) return type(v) == "table" end

local function show(row)
  local names = {}
  for k in pairs(row) do names[#names + 1] = tostring(k) end
  table.sort(names)
  return table.concat(names, ", ")
end

--- The format of a row.
--- @param row table
--- @return string|nil kind  "language_modeling", "prompt_only", "prompt_completion", "preference",
--- "unpaired_preference" or "stepwise_supervision"
--- @return boolean|string conversational  or a message
function M.kind(row)
  if row.messages ~= nil or row.conversations ~= nil then return "language_modeling", true end
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

-- The messages of a row, { from, value } as { role, content }.
local function messages_of(row)
  if row.messages then return row.messages end
  local list = {}
  for i, m in ipairs(row.conversations) do
    list[i] = { role = m.role or m.from, content = m.content or m.value }
  end
  return list
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
  if type(tools) == "string" then tools = json.decode(tools) end
  local o = { tools = type(tools) == "table" and next(tools) ~= nil and tools or nil }
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

local function ended(tok, text)
  local eos = tok.eos and tok:token(tok.eos)
  if not eos or text:sub(-#eos) == eos then return text end
  return text .. eos
end

-- Ids of a conversational prompt that is to be answered, or whose last message goes on.
local function chat_prompt(tok, row, messages)
  local last = messages[#messages]
  if not last or last.role ~= "assistant" then
    return tok:encode_chat(messages, template_options(row, { add_generation_prompt = true, return_mask = false }))
  end
  local text, said, stop = tok:chat(messages, template_options(row)), last.content:match "^%s*(.-)%s*$", 0
  while said ~= "" do
    local from, found = text:find(said, stop + 1, true)
    if not found then break end
    local whole = last.content:match "^%s*(.*)$" -- with the space behind, where the template keeps it
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
    for i, answer in ipairs(answers) do wholes[i] = tok:encode(prompt .. ended(tok, answer)) end
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
    local ids = tok:encode(ended(tok, text_of(row, "text")))
    return { ids = ids, mask = ones(#ids) }
  end
  local whole = opts.assistant_only == false
  local ids, mask = tok:encode_chat(messages_of(row), template_options(row, { return_mask = not whole }))
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

--- A row as token ids.
--- @param tok table  of perilune.tokenizer
--- @param row table
--- @param opts table?  assistant_only (true: of messages only what the assistant says is learned),
--- completion_only (true: of a prompt and completion only the completion is)
--- @return table example  kind, and by kind: ids and mask (1 = learned) for language_modeling and
--- prompt_completion; prompt, completion, chosen, rejected, completions, label, labels where the row has them
function M.encode(tok, row, opts)
  local kind, chat = M.kind(row)
  if not kind then error("rows: " .. tostring(chat), 2) end
  local example = encode[kind](tok, row, chat, opts or {})
  example.kind = kind
  return example
end

--- Examples for supervised fine-tuning out of rows of any format that has an answer: of preferences the
--- chosen one. Rows longer than max_length are cut at the end; those with nothing to learn are left out.
--- @param tok table
--- @param list table[]
--- @param opts table?  max_length (1024), assistant_only, completion_only
--- @return table[] examples  each { ids, mask }
function M.examples(tok, list, opts)
  local o, out = opts or {}, {}
  local longest = o.max_length or 1024
  for i, row in ipairs(list) do
    local ok, e = pcall(M.encode, tok, row, o)
    if not ok then error(("rows: row %d: %s"):format(i, e), 2) end
    if e.kind == "preference" then
      local ids, mask = joined(e.prompt, e.chosen), {}
      for k = 1, #ids do mask[k] = k > #e.prompt and 1 or 0 end
      e = { kind = e.kind, ids = ids, mask = mask }
    elseif not e.ids then
      error(("rows: row %d is of the format %s, which has no answer to learn"):format(i, e.kind), 2)
    end
    local learned = 0
    for k = math.min(#e.ids, longest), 2, -1 do learned = learned + e.mask[k] end
    if learned > 0 then
      out[#out + 1] = { ids = table.move(e.ids, 1, math.min(#e.ids, longest), 1, {}), mask = e.mask, learned = learned }
    end
  end
  return out
end

return M
