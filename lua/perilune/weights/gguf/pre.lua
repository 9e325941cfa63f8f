-- pre.lua - pre-tokenizers of tokenizer.json by the names of tokenizer.ggml.pre and back. The names and their
-- patterns stand in runtime/text/split_named.c.
local peri = require "perilune"

local M = {}

local step_patterns = peri._tokenizer.pre_steps()
local GPT2 = step_patterns.ByteLevel

-- Names that files are written with, before others of the same patterns.
local preferred = { "gpt-2", "llama-bpe", "dbrx", "qwen2", "smollm", "deepseek-v3", "gpt-4o", "tekken", "deepseek-llm",
  "deepseek-coder", "falcon" }

local names, by_name
local function load()
  if names then return end
  names, by_name = {}, {}
  local rank = {}
  for i, name in ipairs(preferred) do rank[name] = i end
  for i, entry in ipairs(peri._tokenizer.pre_names()) do
    names[i], by_name[entry.name] = entry, entry
    entry.rank = rank[entry.name] or #preferred + i
  end
  table.sort(names, function(a, b) return a.rank < b.rank end)
end

-- JSON writes a line feed in a class as \n or as the character: both mean the same.
local function plain(pattern) return (pattern:gsub("\\r", "\r"):gsub("\\n", "\n")) end

local function same_patterns(a, b)
  if #a ~= #b then return false end
  for i = 1, #a do if plain(a[i]) ~= plain(b[i]) then return false end end
  return true
end

local function literal(text) return (text:gsub("[%^%$%(%)%%%.%[%]%*%+%-%?{}|\\]", "\\%0")) end

-- Patterns that cut as the steps of a pre_tokenizer do, each the pieces of the one before it.
local steps = {}
function steps.Split(p, out)
  local pattern = p.pattern and (p.pattern.Regex or p.pattern.String and literal(p.pattern.String))
  -- What keeps its matches and leaves the rest out is the same where the pattern covers every text.
  local whole = p.behavior == "Isolated" and not p.invert or p.behavior == "Removed" and p.invert
  if not pattern or not whole then return ("Split with behavior %s"):format(tostring(p.behavior)) end
  out[#out + 1] = pattern
end
function steps.Digits(p, out) out[#out + 1] = step_patterns[p.individual_digits and "Digits individual" or "Digits"] end
function steps.Punctuation(p, out)
  if p.behavior ~= nil and p.behavior ~= "Isolated" and p.behavior ~= "Contiguous" then
    return ("Punctuation with behavior %s"):format(p.behavior)
  end
  out[#out + 1] = step_patterns["Punctuation " .. (p.behavior or "Isolated")]
end
function steps.ByteLevel(p, out)
  if p.use_regex ~= false then out[#out + 1] = GPT2 end
end
function steps.Sequence(p, out)
  for _, q in ipairs(p.pretokenizers or {}) do
    local what = M.step(q, out)
    if what then return what end
  end
end

function M.step(p, out)
  local step = steps[p.type]
  if not step then return tostring(p.type) end
  return step(p, out)
end

--- The name of tokenizer.ggml.pre for a pre_tokenizer of tokenizer.json.
--- @param pre table
--- @param ignore_merges boolean  of the model
--- @return table|nil entry  { name, patterns, ignore_merges ... }; its ignore_merges may be another
--- @return string? message
function M.name(pre, ignore_merges)
  load()
  local patterns = {}
  local what = M.step(pre, patterns)
  if what then return nil, ("pre_tokenizer %s has no name in GGUF"):format(what) end
  local close
  for _, entry in ipairs(names) do
    if entry.byte_level and same_patterns(entry.patterns, patterns) then
      if entry.ignore_merges == ignore_merges then return entry end
      close = close or entry
    end
  end
  if close then return close end
  return nil, "no name of tokenizer.ggml.pre is known for the patterns of its pre_tokenizer"
end

--- What a name stands for: patterns and flags, or nil.
--- @param name string
--- @return table|nil
function M.entry(name)
  load()
  return by_name[name]
end

--- The pre_tokenizer of tokenizer.json for a name.
--- @param entry table  as entry returns it
--- @return table
function M.json(entry)
  local list = {}
  local last = entry.patterns[#entry.patterns]
  for i, pattern in ipairs(entry.patterns) do
    if not (entry.byte_level and i == #entry.patterns and pattern == GPT2) then
      list[#list + 1] = { type = "Split", pattern = { Regex = pattern }, behavior = "Isolated", invert = false }
    end
  end
  if entry.byte_level then
    list[#list + 1] = { type = "ByteLevel", add_prefix_space = false, trim_offsets = true, use_regex = last == GPT2 }
  end
  return #list == 1 and list[1] or { type = "Sequence", pretokenizers = peri.json.array(list) }
end

return M
