-- prompt.lua - the ids that a prompt is for a model: of a text, of messages under the chat template, of a
-- gap between two texts.
local options = require "perilune.options"

local M = {}

--- Whether a prompt is a list of messages.
--- @param prompt any
--- @return boolean
function M.is_messages(prompt)
  return type(prompt) == "table" and type(prompt[1]) == "table"
end

-- Ids of a text none of which is one of the given tokens, even where the text spells one.
local function ids_without(tok, text, tokens)
  local plain, ids, at = { add_special = false, parse_special = false }, {}, 1
  while at <= #text do
    local cut = #text
    for _, id in pairs(tokens) do -- a token that is spelled is cut behind its first character
      local name = tok:token(id)
      local from = name and text:find(name, at, true)
      if from then cut = math.min(cut, utf8.offset(text, 2, from) - 1) end
    end
    for _, id in ipairs(tok:encode(text:sub(at, cut), plain)) do ids[#ids + 1] = id end
    at = cut + 1
  end
  return ids
end

-- Fill-in-the-middle: prefix, suffix, then the model writes the middle (arXiv:2207.14255, PSM).
local function fill_in(tok, prefix, suffix)
  local fim = tok.fim
  if not (fim and fim.prefix and fim.suffix and fim.middle) then
    error("complete: this tokenizer has no tokens for fill-in-the-middle, so a suffix cannot be taken in", 0)
  end
  local ids = {}
  local empty = tok:encode("", { add_special = true })
  if empty[1] and empty[1] == tok.bos then ids[1] = tok.bos end
  ids[#ids + 1] = fim.prefix
  for _, id in ipairs(ids_without(tok, prefix, fim)) do ids[#ids + 1] = id end
  ids[#ids + 1] = fim.suffix
  for _, id in ipairs(ids_without(tok, suffix, fim)) do ids[#ids + 1] = id end
  ids[#ids + 1] = fim.middle
  return ids
end

M.render_rules = {
  tools = options.value(options.none, "table", "of the chat template"),
  template = options.value({}, "table", "further variables of the chat template"),
  add_generation_prompt = options.boolean(true, "of the chat template"),
}

M.rules = { suffix = options.value(options.none, "string", "fill-in-the-middle: the text behind the gap") }
for name, rule in pairs(M.render_rules) do M.rules[name] = rule end

--- The text that the chat template makes of messages.
--- @param tok table
--- @param messages table[]
--- @param opts table  of render_rules
--- @return string
function M.render(tok, messages, opts)
  if not tok.chat_template then error("chat: this model has no chat template; use complete", 0) end
  local vars = {}
  for k, v in pairs(opts.template) do vars[k] = v end
  vars.tools, vars.add_generation_prompt = opts.tools, opts.add_generation_prompt
  return tok:chat(messages, vars)
end

--- The ids that a prompt is.
--- @param tok table
--- @param prompt string|table  text, list of messages { role =, content = }, or list of ids
--- @param opts table  of rules
--- @return integer[]
function M.ids(tok, prompt, opts)
  if type(prompt) == "string" then
    if opts.suffix then return fill_in(tok, prompt, opts.suffix) end
    return tok:encode(prompt, { add_special = true, parse_special = true })
  elseif M.is_messages(prompt) then
    return tok:encode(M.render(tok, prompt, opts), { add_special = false, parse_special = true })
  elseif type(prompt) == "table" then
    return table.move(prompt, 1, #prompt, 1, {})
  end
  error(("lm: a prompt is a text, a list of messages or a list of ids, not a %s"):format(type(prompt)), 0)
end

return M
