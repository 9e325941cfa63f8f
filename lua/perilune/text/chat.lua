-- chat.lua - conversations to text by a model's chat template, with the variables that transformers
-- gives: messages, tools, documents, add_generation_prompt, the special tokens, and whatever else the
-- caller names (enable_thinking, ...). Also says which bytes of the text are the assistant's.

local input = require "perilune.text.template.input"
local peri_json = require "perilune.core".json
local spans_of = require "perilune.text.spans"
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
  if getmetatable(message) ~= nil and not input.from_json(message) then return message end
  for _, name in ipairs(reasoning_names) do
    local reasoning = message[name]
    if reasoning ~= nil and reasoning ~= peri_json.null then
      local out = { reasoning_content = reasoning, thinking = reasoning }
      for key, value in pairs(message) do if key ~= "reasoning_content" then out[key] = value end end
      return setmetatable(out, getmetatable(message))
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
  local function again(l, count, prompt) return render(t, vars, bounds, l, count, prompt) end
  local spans, why = spans_of(again, list, text)
  if not spans then return nil, t.name .. ": " .. why end
  return text, spans
end

return M
