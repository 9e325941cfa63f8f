-- spans.lua - where the assistant speaks in a rendered conversation, of a template without generation
-- marks: found by rendering the conversation up to each answer, and where the template writes an answer
-- otherwise once the conversation goes on, by rendering it with that answer changed.

local input = require "perilune.text.template.input"
local peri_json = require "perilune.core".json
local strings = require "perilune.text.template.strings"

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

-- What no conversation says, in place of what one said.
local CHANGED = "\u{E0A7}changed\u{E0A7}"

local function copy(t)
  local out = {}
  for key, value in pairs(t) do out[key] = value end
  return setmetatable(out, getmetatable(t))
end

-- A message that says something else in the same form: other texts, or calls of another function. all: a
-- text also where there are calls and none, for templates that write no calls.
local function changed_message(message, all)
  local out, content, calls = copy(message), message.content, message.tool_calls
  if type(content) == "table" and content ~= peri_json.null then
    out.content = copy(content)
    for i, part in ipairs(content) do
      if type(part) == "table" and part.text ~= nil then
        out.content[i] = copy(part)
        out.content[i].text = CHANGED
      end
    end
  elseif all or type(content) == "string" and content ~= "" or type(calls) ~= "table" or #calls == 0 then
    out.content = CHANGED
  end
  if type(calls) == "table" and #calls > 0 then
    out.tool_calls = copy(calls)
    for i, call in ipairs(calls) do
      local other = copy(call)
      if type(call["function"]) == "table" then
        other["function"] = copy(call["function"])
        other["function"].name = CHANGED
      else
        other.name = CHANGED
      end
      out.tool_calls[i] = other
    end
  end
  return out
end

-- First and last byte of a text that another text does not share; last is first - 1 where nothing was there.
local function difference(a, b)
  local first, most = 1, math.min(#a, #b)
  while first <= most and a:byte(first) == b:byte(first) do first = first + 1 end
  local same = 0
  while same < most - first + 1 and a:byte(#a - same) == b:byte(#b - same) do same = same + 1 end
  return first, #a - same
end

-- The last place where a text is found that ends before byte stop; its last byte.
local function last_end(text, part, stop)
  local from, found = 1, nil
  while true do
    local a, b = text:find(part, from, true)
    if not a or b >= stop then return found end
    found, from = b, a + 1
  end
end

-- The span of answer k, behind the ones before, from the text itself: what changes in the text with what is
-- said lies between the opening of the turn (its last place before that) and the end mark (what is behind it
-- both here and where the conversation ends with it).
local function span_by_change(render, messages, k, text, behind, all)
  local function both(list, count)
    local plain, changed = render(list, count, false), table.move(list, 1, count, 1, {})
    changed[k] = changed_message(list[k], all)
    return plain, render(changed, count, false)
  end
  local _, other = both(messages, #messages)
  local alone, alone_other = both(messages, k)
  local base, prompt = render(messages, k - 1, false), render(messages, k - 1, true)
  if other == text and not all then return span_by_change(render, messages, k, text, behind, true) end
  if not (other and alone and alone_other and base and prompt) or other == text then return nil end
  local first, last = difference(text, other)
  local _, alone_last = difference(alone, alone_other)
  local mark = alone:sub(alone_last + 1)
  local shared = agree(mark, text:sub(last + 1), 1)
  if shared == 0 and mark ~= "" then return nil end -- another mark ends it: which one is not known
  last = last + shared
  local opening = starts(prompt, base) and prompt:sub(#base + 1) or ""
  if opening == "" then opening = prompt:match "[^>](<[^\n]*>)$" or "" end -- it is there unasked
  while opening ~= "" do
    local before = last_end(text, opening, first)
    if before and before >= behind - 1 then
      first = before + 1
      break
    end
    opening = opening:match "^(.+)<[^<]*$" or "" -- without its last tag, as an open think tag
  end
  return first, last
end

-- The span of answer k by the text up to it, or nil and what differs.
local function span_by_prefix(render, messages, k, text, content)
  local prompt, why = render(messages, k - 1, true)
  if not prompt then return nil, ("the prompt of message %d cannot be rendered: %s"):format(k, why) end
  local first = #prompt + 1
  if not starts(text, prompt) then
    local base = render(messages, k - 1, false)
    first = base and rewritten_start(text, base, prompt, content)
  end
  if not first then
    return nil, ("the text before the assistant's message %d changes when it is answered"):format(k), true
  end
  local alone, reason = render(messages, k, false)
  if not alone then return nil, ("messages 1 to %d cannot be rendered: %s"):format(k, reason) end
  local last = starts(text, alone) and #alone or rewritten_end(text, first, alone, content)
  if not last or last < first - 1 then
    return nil, ("the assistant's message %d reads differently once the conversation goes on"):format(k), true
  end
  return first, last
end

-- The texts of a content, whatever form it has.
local function said_by(message)
  local content = input.member(message, "content")
  if type(content) == "string" then return content end
  local parts = {}
  if type(content) == "table" and (getmetatable(message) == nil or input.from_json(message)) then
    for _, part in ipairs(content) do
      if type(part) == "table" and type(part.text) == "string" then parts[#parts + 1] = part.text end
    end
  end
  return table.concat(parts)
end

--- The bytes of a text that the assistant says, end marks included.
--- @param render function  (messages, count, add_generation_prompt) -> text, or nil and a message
--- @param messages table[]
--- @param text string  of all of them
--- @return table?  list of { first byte, last byte }
--- @return string? message  where they cannot be known
return function(render, messages, text)
  local spans, behind = {}, 1
  for k, message in ipairs(messages) do
    if input.member(message, "role") == "assistant" then
      local content = said_by(message)
      local first, last, rewritten = span_by_prefix(render, messages, k, text, content)
      if not first and rewritten then
        local problem = last
        first, last = span_by_change(render, messages, k, text, behind)
        if not first or first < behind or last < first - 1 then
          return nil, problem .. ": the template rewrites history, its spans are unknown"
        end
      elseif not first then
        return nil, last
      end
      spans[#spans + 1] = { first, trimmed(text, first, last, content) }
      behind = last + 1
    end
  end
  return spans
end
