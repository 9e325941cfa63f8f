-- chat.lua - conversations to text by a model's chat template, with the variables that transformers
-- gives: messages, tools, documents, add_generation_prompt, the special tokens, and whatever else the
-- caller names (enable_thinking, ...). Also says which bytes of the text are the assistant's.

local input = require "perilune.text.template.input"
local peri_json = require "perilune.core".json
local strings = require "perilune.text.template.strings"
local template = require "perilune.text.template"

local M = {}

--- @class perilune.Chat
local Chat = {}
Chat.__index = Chat

-- The named templates of a source: a text, { name = text } or a list of { name =, template = }.
local function named(source)
  if type(source) == "string" then return { default = source } end
  if type(source) ~= "table" then error("chat.new: the template must be a string or a table of named ones", 3) end
  local out = {}
  for key, value in pairs(source) do
    if type(key) == "string" and type(value) == "string" then
      out[key] = value
    elseif type(value) == "table" and type(value.name) == "string" and type(value.template) == "string" then
      out[value.name] = value.template
    else
      error("chat.new: a list of templates needs { name =, template = } in each place", 3)
    end
  end
  return out
end

--- A chat template with the tokenizer's special tokens.
--- @param source string|table  the template; or named ones as tokenizer_config.json lists them: "tool_use"
---   is taken where tools are given, "default" otherwise
--- @param variables table?  of every rendering: bos_token, eos_token, ... (their text)
--- @return perilune.Chat?  nil where a template is not supported
--- @return string? message  with line and column
function M.new(source, variables)
  local self = setmetatable({ templates = {}, variables = {} }, Chat)
  for key, value in pairs(variables or {}) do self.variables[key] = value end
  for name, text in pairs(named(source)) do
    local label = name == "default" and "chat template" or "chat template " .. name
    local t, message = template.compile(text, { name = label })
    if not t then return nil, message end
    self.templates[name] = t
  end
  if not next(self.templates) then return nil, "chat template: there is none" end
  return self
end

-- Reasoning goes by several names: templates find it under each.
local reasoning_names = { "reasoning_content", "thinking", "reasoning" }

local function with_reasoning(message)
  if getmetatable(message) ~= nil then return message end
  for _, name in ipairs(reasoning_names) do
    local reasoning = message[name]
    if reasoning ~= nil and reasoning ~= peri_json.null then
      local out = { reasoning_content = reasoning, thinking = reasoning }
      for key, value in pairs(message) do if key ~= "reasoning_content" then out[key] = value end end
      return out
    end
  end
  return message
end

local function list_of(who, messages)
  local list = input.unboxed_list(messages) or messages
  if type(list) ~= "table" then
    error(("%s: messages must be a list of tables, not a %s"):format(who, type(messages)), 3)
  end
  local out = {}
  for i, message in ipairs(list) do
    if type(message) ~= "table" then error(("%s: message %d is a %s"):format(who, i, type(message)), 3) end
    out[i] = with_reasoning(message)
  end
  return out
end

local limits = { steps = true, output_bytes = true, now = true }

-- Template, variables and limits of a rendering.
local function prepare(self, who, opts)
  local vars = { tools = peri_json.null, documents = peri_json.null, add_generation_prompt = false }
  local bounds = {}
  for key, value in pairs(self.variables) do vars[key] = value end
  for key, value in pairs(opts or {}) do
    if key == "messages" or type(key) ~= "string" then
      error(("%s: '%s' is no option: messages come first, options are names"):format(who, tostring(key)), 3)
    end
    if limits[key] then bounds[key] = value else vars[key] = value end
  end
  local t = vars.tools ~= peri_json.null and self.templates.tool_use or self.templates.default
  if not t then
    local name = next(self.templates)
    if next(self.templates, name) then error(who .. ": no template is named 'default'", 3) end
    t = self.templates[name]
  end
  return t, vars, bounds
end

local function render(t, vars, bounds, messages, count, prompt)
  local all = {}
  for key, value in pairs(vars) do all[key] = value end
  all.messages = peri_json.array(table.move(messages, 1, count, 1, {}))
  if prompt ~= nil then all.add_generation_prompt = prompt end
  return t:render(all, bounds)
end

--- The text of a conversation.
--- @param messages table[]  { role =, content =, ... } each; or one value of template.json
--- @param opts table?  add_generation_prompt (false), tools, documents, now, steps, output_bytes (as for
---   a template's render); any other name is a variable of the template, such as enable_thinking
--- @return string?
--- @return string? message  where the template raises an error
function Chat:render(messages, opts)
  local list = list_of("chat:render", messages)
  local t, vars, bounds = prepare(self, "chat:render", opts)
  return render(t, vars, bounds, list, #list)
end

local function starts(text, prefix) return text:sub(1, #prefix) == prefix end

-- The last byte of an answer that ends a text at byte last: white space behind the end mark is the
-- template's, white space of the content is the assistant's.
local function trimmed(text, first, last, content)
  local body = text:sub(first, last)
  local short, said = strings.strip(body, "right"), strings.strip(content, "right")
  if said ~= "" and short:sub(-#said) == said then return last end
  return first - 1 + #short
end

-- What a template may show of a content: all, or what stands behind the reasoning; white space off.
local function shown(content)
  local all = strings.strip(content)
  local answer = strings.strip(content:match "^.*</think>(.*)$" or content)
  return all, answer ~= all and answer or nil
end

-- How far two texts agree from byte first on, stopping before a tag or character that is cut: the last
-- byte that they share.
local function agree(a, b, first)
  local last = first - 1
  while last < #a and a:byte(last + 1) == b:byte(last + 1) and last < #b do last = last + 1 end
  if last < #a or last < #b then
    local cut = a:sub(first, last):match "()<[^<>]*$"
    if cut then last = first + cut - 2 end
    while last >= first and (a:byte(last + 1) or 0) & 0xC0 == 0x80 do last = last - 1 end
  end
  return last
end

-- Where a past answer ends in the text although the template wrote it otherwise when it was the last one
-- (without its reasoning, as Qwen 3 does, or with a final mark): behind its content and its end mark.
local function rewritten_end(text, first, alone, content)
  for _, said in ipairs { shown(content) } do
    local from, behind = 1, nil
    while said ~= "" do
      local a, b = alone:find(said, from, true)
      if not a then break end
      behind, from = b, a + 1
    end
    local _, last = text:find(said, first, true)
    if behind and last then
      local mark, rest = alone:sub(behind + 1), text:sub(last + 1)
      local shared = agree(mark, rest, 1)
      if shared > 0 or mark == "" then return last + shared end
    end
  end
  return nil
end

-- Where an answer starts whose prompt ends otherwise in the text (with an open think tag, say): where
-- the two part, but never inside the content.
local function rewritten_start(text, base, prompt, content)
  if not starts(text, base) or not starts(prompt, base) then return nil end
  local first = agree(prompt, text, #base + 1) + 1
  local found = content == ""
  for _, said in ipairs { shown(content) } do
    local a = not found and text:find(said, #base + 1, true)
    if a then found, first = true, math.min(first, a) end
  end
  return found and first or nil
end

-- Spans by rendering the conversation up to each answer, without and with it.
local function spans_by_prefix(t, vars, bounds, messages, text)
  local spans = {}
  for k, message in ipairs(messages) do
    if input.member(message, "role") == "assistant" then
      local content = input.member(message, "content")
      content = type(content) == "string" and content or ""
      local prompt, why = render(t, vars, bounds, messages, k - 1, true)
      if not prompt then return nil, ("the prompt of message %d cannot be rendered: %s"):format(k, why) end
      local first = #prompt + 1
      if not starts(text, prompt) then
        local base = render(t, vars, bounds, messages, k - 1, false)
        first = base and rewritten_start(text, base, prompt, content)
      end
      if not first then
        return nil, ("the text before the assistant's message %d changes when it is answered: the template "
          .. "rewrites history, its spans are unknown"):format(k)
      end
      local alone, reason = render(t, vars, bounds, messages, k, false)
      if not alone then return nil, ("messages 1 to %d cannot be rendered: %s"):format(k, reason) end
      local last = starts(text, alone) and #alone or rewritten_end(text, first, alone, content)
      if not last or last < first - 1 then
        return nil, ("the assistant's message %d reads differently once the conversation goes on: the "
          .. "template rewrites history, its spans are unknown"):format(k)
      end
      spans[#spans + 1] = { first, trimmed(text, first, last, content) }
    end
  end
  return spans
end

--- The text of a conversation and where the assistant speaks in it, end mark included: by the
--- template's {% generation %} marks, or, without them, by rendering up to each answer.
--- @param messages table[]
--- @param opts table?  as for render
--- @return string?  nil where the template raises an error or its spans cannot be known
--- @return table|string  list of { first byte, last byte }; the message where there is no text
function Chat:spans(messages, opts)
  local list = list_of("chat:spans", messages)
  local t, vars, bounds = prepare(self, "chat:spans", opts)
  if t.marks then
    vars.messages = peri_json.array(list)
    return t:render_spans(vars, bounds)
  end
  local text, message = render(t, vars, bounds, list, #list)
  if not text then return nil, message end
  local spans, why = spans_by_prefix(t, vars, bounds, list, text)
  if not spans then return nil, t.name .. ": " .. why end
  return text, spans
end

return M
