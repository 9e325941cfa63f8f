-- feedback.lua - rows that say how good answers are, as token ids: preferences, answers with a label, steps with
-- labels. Each is read into a unit of what its trainer needs; what is left out, cut or not read is counted.
local options = require "perilune.options"
local rows = require "perilune.data.rows"

local M = {}

-- Columns that each format reads; tools and chat_template_kwargs go to the template.
local COLUMNS = {
  preference = { "prompt", "chosen", "rejected", "margin" },
  unpaired_preference = { "prompt", "completion", "label" },
  stepwise_supervision = { "prompt", "completions", "labels" },
}

local function flag(value, what)
  if value == true or value == 1 then return 1 end
  if value == false or value == 0 then return 0 end
  error(("%s is %s, expected true or false"):format(what, type(value) == "table" and "a table" or tostring(value)), 0)
end

-- An answer as far as it fits behind its prompt.
local function fitting(prompt, answer, most) return table.move(answer, 1, math.min(#answer, most - #prompt), 1, {}) end

local function same(a, b)
  if #a ~= #b then return false end
  for i, id in ipairs(a) do if b[i] ~= id then return false end end
  return true
end

-- fn(e, row, o) -> unit, or nil and why there is nothing to learn ("empty" or "equal"); and whether it was cut.
local read = {}

function read.preference(e, row, o)
  local chosen, rejected = fitting(e.prompt, e.chosen, o.max_length), fitting(e.prompt, e.rejected, o.max_length)
  local cut = #chosen < #e.chosen or #rejected < #e.rejected
  local least = #e.prompt == 0 and 2 or 1 -- the first token of all has nothing before it
  if #chosen < least or #rejected < least then return nil, "empty" end
  if same(chosen, rejected) then return nil, "equal" end
  if row.margin ~= nil and type(row.margin) ~= "number" then
    error(("margin is a %s, expected a number"):format(type(row.margin)), 0)
  end
  return { prompt = e.prompt, chosen = chosen, rejected = rejected, margin = row.margin,
           length = #e.prompt + math.max(#chosen, #rejected), tokens = 2 * #e.prompt + #chosen + #rejected }, cut
end

function read.unpaired_preference(e, row, o)
  local answer = fitting(e.prompt, e.completion, o.max_length)
  if #answer < (#e.prompt == 0 and 2 or 1) then return nil, "empty" end
  return { prompt = e.prompt, answer = answer, label = flag(row.label, "label"), length = #e.prompt + #answer,
           tokens = #e.prompt + #answer }, #answer < #e.completion
end

-- Steps one behind the other, each with the separator; ends are the places of their last tokens, from 1.
function read.stepwise_supervision(e, row, o)
  local ids, ends, labels, cut = table.move(e.prompt, 1, #e.prompt, 1, {}), {}, {}, false
  for i, step in ipairs(e.completions) do
    table.move(step, 1, #step, #ids + 1, ids)
    table.move(o.separator, 1, #o.separator, #ids + 1, ids)
    local label = flag(row.labels[i], ("label %d"):format(i))
    if #step + #o.separator == 0 then error(("step %d is empty"):format(i), 0) end
    if #ids > o.max_length then cut = true
    else ends[#ends + 1], labels[#labels + 1] = #ids, label end
  end
  if o.last_only and #ends > 0 then ends, labels = { ends[#ends] }, { labels[#labels] } end
  if #ends == 0 then return nil, "empty" end
  for i = #ids, o.max_length + 1, -1 do ids[i] = nil end
  return { ids = ids, ends = ends, labels = labels, length = #ids, tokens = #ids }, cut
end

-- "7 of 10 rows are used; 2 have no answer left; ..."
local function say(r)
  local parts = { ("%d of %d rows are used"):format(r.kept, r.rows) }
  local function add(n, ...) if n > 0 then parts[#parts + 1] = string.format(...) end end
  add(r.empty, "%d have no answer within %d tokens (the first is row %d)", r.empty, r.max_length, r.first_empty or 0)
  add(r.equal, "%d have two equal answers (the first is row %d)", r.equal, r.first_equal or 0)
  add(r.unread, "%d cannot be read (%s)", r.unread, r.first_error)
  add(r.cut, "%d are cut at %d tokens", r.cut, r.max_length)
  local names = options.names(r.ignored)
  for i, name in ipairs(names) do names[i] = ("%s (%d)"):format(name, r.ignored[name]) end
  add(#names, "nobody reads the columns %s", table.concat(names, ", "))
  return table.concat(parts, "; ")
end

local function plain(message) return (tostring(message):gsub("^[^%s:]+%.lua:%d+: ", ""):gsub("^rows: ", "")) end

--- Options of whoever reads such rows.
M.rules = {
  max_length = options.integer(1024, "[2, inf)", "tokens of a prompt with an answer; longer ones are cut at the end"),
  bad = options.choice("error", { "error", "skip" }, "of rows that cannot be read: raise, or leave out and count"),
}

--- Rows of one format as units.
--- @param who string  named in messages
--- @param kinds string[]  formats that are read, of COLUMNS; the rows are of one of them
--- @param tok table  tokenizer
--- @param list table  rows, or a stream of perilune.data
--- @param o table  max_length, bad; separator (ids), last_only of steps
--- @return table[] units  of preference { prompt, chosen, rejected, margin }; of unpaired_preference { prompt, answer,
--- label }; of stepwise_supervision { ids, ends, labels }; all with length (of the longest row), tokens and index
--- @return table report  rows, kept, kind, empty, equal, unread, cut, ignored (columns that nobody reads: name ->
--- rows), dropped (empty, equal and unread together), first_error, and text, which says it in a line
function M.read(who, kinds, tok, list, o)
  if type(list.collect) == "function" then list = list:collect() end
  local report = { rows = #list, kept = 0, empty = 0, equal = 0, unread = 0, cut = 0, ignored = {},
                   max_length = o.max_length }
  local out = {}
  local function one(row)
    local kind, message = rows.kind(row)
    if not kind then error(message, 0) end
    local known = false
    for _, name in ipairs(kinds) do known = known or name == kind end
    if not known then
      error(("is of the format %s, %s reads %s"):format(kind, who, table.concat(kinds, " or ")), 0)
    elseif report.kind and report.kind ~= kind then
      error(("is of the format %s, the rows before are of %s"):format(kind, report.kind), 0)
    end
    return kind, rows.encode(tok, row)
  end
  for i, row in ipairs(list) do
    local ok, kind, e = pcall(one, row)
    local unit, why
    if ok then
      ok, unit, why = pcall(read[kind], e, row, o)
      if not ok then kind = unit end
    end
    if not ok then
      local message = ("row %d%s %s"):format(i, plain(kind):find "^is of" and "" or ":", plain(kind))
      if o.bad == "error" then options.raise(("%s: %s"):format(who, message)) end
      report.unread, report.first_error = report.unread + 1, report.first_error or message
    elseif not unit then
      report[why], report["first_" .. why] = report[why] + 1, report["first_" .. why] or i
    else
      report.kind = kind
      out[#out + 1], unit.index = unit, #out + 1
      if why then report.cut = report.cut + 1 end
      local columns = { tools = true, chat_template_kwargs = true, conversations = kind == "preference" or nil }
      for _, name in ipairs(COLUMNS[kind]) do columns[name] = true end
      for name in pairs(row) do
        if not columns[name] then report.ignored[tostring(name)] = (report.ignored[tostring(name)] or 0) + 1 end
      end
    end
  end
  report.kept, report.dropped = #out, report.empty + report.equal + report.unread
  report.text = say(report)
  if #out == 0 then options.raise(("%s: no row has anything to learn; %s"):format(who, report.text)) end
  return out, report
end

return M
