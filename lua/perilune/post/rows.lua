-- rows.lua - training rows in the shapes of TRL's dataset formats, plain and conversational, as token
-- ids. A row is what a line of a JSONL file decodes to:
--   { text }  { messages }                              language modelling
--   { prompt }                                          prompts alone
--   { prompt, completion }                              prompt and completion
--   { prompt?, chosen, rejected }                       preferences; without prompt it is what both share
--   { prompt, completion, label }                       unpaired preferences
--   { prompt, completions, labels }                     stepwise supervision
-- where a text may be a list of messages { role, content }. tools and chat_template_kwargs are given to
-- the chat template.
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

local function starts_with(list, head)
  for i, id in ipairs(head) do
    if list[i] ~= id then return false end
  end
  return true
end

local function tail(list, from) return table.move(list, from, #list, 1, {}) end

local function joined(a, b)
  local out = table.move(a, 1, #a, 1, {})
  return table.move(b, 1, #b, #out + 1, out)
end

local function with_eos(tok, ids)
  if tok.eos and ids[#ids] ~= tok.eos then ids[#ids + 1] = tok.eos end
  return ids
end

-- Variables of the template that a row brings.
local function template_options(row, more)
  local o = { tools = row.tools }
  for k, v in pairs(row.chat_template_kwargs or {}) do o[k] = v end
  for k, v in pairs(more or {}) do o[k] = v end
  return o
end

-- Ids of a conversational prompt: an answer is to follow, or the last message goes on.
local function chat_prompt(tok, row, messages)
  local last = messages[#messages]
  if not last or last.role ~= "assistant" then
    return tok:encode_chat(messages, template_options(row, { add_generation_prompt = true, return_mask = false }))
  end
  local text, said, stop = tok:chat(messages, template_options(row)), last.content:match "^%s*(.-)%s*$", 0
  while said ~= "" do
    local _, found = text:find(said, stop + 1, true)
    if not found then break end
    stop = found
  end
  if stop == 0 then stop = #text end
  return tok:encode(text:sub(1, stop), { add_special = false })
end

-- Ids of an answer to a conversational prompt: what the whole says beyond the prompt.
local function chat_answer(tok, row, messages, answer, prompt)
  local whole = tok:encode_chat(joined(messages, answer), template_options(row, { return_mask = false }))
  if starts_with(whole, prompt) then return tail(whole, #prompt + 1) end
  prompt = tok:encode_chat(messages, template_options(row, { add_generation_prompt = false, return_mask = false }))
  if not starts_with(whole, prompt) then
    error("rows: the chat template writes the prompt in another way once an answer follows", 0)
  end
  return tail(whole, #prompt + 1), prompt
end

-- Ids of a plain text that follows a plain prompt, which ends with the end of text.
local function plain_answer(tok, prompt_text, text, prompt)
  local whole = tok:encode(prompt_text .. text)
  if starts_with(whole, prompt) then return with_eos(tok, tail(whole, #prompt + 1)) end
  return with_eos(tok, tok:encode(text, { add_special = false })) -- a token would cross the border
end

local function text_of(row, key)
  local v = row[key]
  if type(v) ~= "string" then
    error(("rows: %s is a %s, expected text or a list of messages"):format(key, type(v)), 0)
  end
  return v
end

-- What a chosen and a rejected answer share is their prompt.
local function implicit_prompt(row)
  local a, b = row.chosen, row.rejected
  local n = 0
  if is_messages(a) then
    while n < #a and n < #b and a[n + 1].role == b[n + 1].role and a[n + 1].content == b[n + 1].content do n = n + 1 end
    return table.move(a, 1, n, 1, {}), tail(a, n + 1), tail(b, n + 1)
  end
  while n < #a and n < #b and a:byte(n + 1) == b:byte(n + 1) do n = n + 1 end
  while n > 0 and a:sub(n, n) ~= " " do n = n - 1 end -- whole words, the blank belongs to the answers
  if a:sub(n, n) == " " then n = n - 1 end
  return a:sub(1, math.max(n, 0)), a:sub(math.max(n, 0) + 1), b:sub(math.max(n, 0) + 1)
end

local encode = {}

function encode.language_modeling(tok, row, chat, opts)
  if not chat then
    local ids = with_eos(tok, tok:encode(text_of(row, "text")))
    local mask = {}
    for i = 1, #ids do mask[i] = 1 end
    return { ids = ids, mask = mask }
  end
  local whole = opts.assistant_only == false
  local ids, mask = tok:encode_chat(row.messages, template_options(row, { return_mask = not whole }))
  if whole then
    mask = {}
    for i = 1, #ids do mask[i] = 1 end
  end
  return { ids = ids, mask = mask }
end

function encode.prompt_only(tok, row, chat)
  return { prompt = chat and chat_prompt(tok, row, row.prompt) or tok:encode(text_of(row, "prompt")) }
end

function encode.prompt_completion(tok, row, chat, opts)
  local prompt, completion, other
  if chat then
    prompt = chat_prompt(tok, row, row.prompt)
    completion, other = chat_answer(tok, row, row.prompt, row.completion, prompt)
    prompt = other or prompt
  else
    prompt = tok:encode(text_of(row, "prompt"))
    completion = plain_answer(tok, row.prompt, text_of(row, "completion"), prompt)
  end
  local ids, mask = joined(prompt, completion), {}
  for i = 1, #ids do mask[i] = (i > #prompt or opts.completion_only == false) and 1 or 0 end
  return { ids = ids, mask = mask, prompt = prompt, completion = completion }
end

function encode.unpaired_preference(tok, row, chat, opts)
  local e = encode.prompt_completion(tok, row, chat, opts)
  e.label = row.label
  return e
end

function encode.preference(tok, row, chat)
  local prompt_of, chosen, rejected = row.prompt, row.chosen, row.rejected
  if prompt_of == nil then prompt_of, chosen, rejected = implicit_prompt(row) end
  if chat then
    local prompt = chat_prompt(tok, row, prompt_of)
    return { prompt = prompt, chosen = chat_answer(tok, row, prompt_of, chosen, prompt),
             rejected = chat_answer(tok, row, prompt_of, rejected, prompt) }
  end
  local prompt = tok:encode(prompt_of)
  return { prompt = prompt, chosen = plain_answer(tok, prompt_of, chosen, prompt),
           rejected = plain_answer(tok, prompt_of, rejected, prompt) }
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
