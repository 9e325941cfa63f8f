-- files.lua - metrics in files: JSON Lines and CSV. A row is in its file when the call returns, or the
-- call is an error: a full disk ends a run as it ends a checkpoint.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local numbers = require "perilune.run.log.numbers"

local M = {}

local function finite(v) return v == v and v > -math.huge and v < math.huge end

--- What a function of peri.files gave, or an error that names the file.
--- @param value any
--- @param message string?
--- @return any
function M.must(value, message)
  if not value then refusal.raise("log: " .. refusal.bare(tostring(message))) end
  return value
end
local must = M.must

-- The text of a regular file; none when there is none. A device has no lines to keep.
local function text_of(path)
  if peri.files.exists(path) ~= "file" then return "" end
  return must(peri.files.read(path))
end

-- Complete lines for which keep(line, how many are kept) is true.
local function filter_lines(path, keep)
  local text, out = text_of(path), {}
  for line in text:gmatch "([^\n]*)\n" do if keep(line, #out) then out[#out + 1] = line .. "\n" end end
  local new = table.concat(out)
  if new ~= text then must(peri.files.write(path, new)) end
end

--- Drop the lines of a JSON Lines file after a step, and a half-written last line.
--- @param path string
--- @param step integer
function M.truncate_jsonl(path, step)
  filter_lines(path, function(line)
    local at = math.tointeger(tonumber(line:match '^{"step":(%d+)'))
    return at ~= nil and at <= step
  end)
end

--- The same for CSV; the head stays.
--- @param path string
--- @param step integer
function M.truncate_csv(path, step)
  filter_lines(path, function(line, n)
    return n == 0 or (tonumber(line:match "^%d+") or math.huge) <= step
  end)
end

-- JSON has no NaN and no bytes: such values are written as text, such texts repaired.
local function json_value(v)
  if type(v) == "string" then v = numbers.repaired(v) end
  if type(v) == "number" and not finite(v) then
    return v ~= v and '"NaN"' or v > 0 and '"Infinity"' or '"-Infinity"'
  end
  return peri.json.encode(v)
end

--- One object as a line, "step" first, the other names sorted.
--- @param step integer
--- @param values table
--- @return string
function M.json_line(step, values)
  local parts = { ('{"step":%d'):format(step) }
  for _, name in ipairs(options.names(values)) do
    parts[#parts + 1] = (',%s:%s'):format(peri.json.encode(name), json_value(values[name]))
  end
  parts[#parts + 1] = "}\n"
  return table.concat(parts)
end

-- The last line of a file of whole lines, with its end; "" when it has none.
local function last_line(text) return text:match ".*\n([^\n]*\n)$" or text end

-- Put a line in place of the last one, which says less of the same step. Where the new one is no shorter the file
-- is not written anew; a line that is half written when the process ends is of a step that a resumed run makes
-- again.
local function replace_last(path, old, new)
  local file = #new >= #old and io.open(path, "r+b")
  if not file then
    local text = text_of(path)
    return must(peri.files.write(path, text:sub(1, #text - #old) .. new))
  end
  local ok, why = file:seek("end", -#old)
  if ok then ok, why = file:write(new) end
  local closed, late = file:close()
  if not (ok and closed) then must(nil, ("%s: cannot write: %s"):format(path, (why or late):gsub("^.*: ", ""))) end
  return true
end

--- Rows as JSON Lines: step(step, values). A step that is the last one's adds to its line.
--- @param path string
function M.jsonl(path)
  must(peri.files.append(path, ""))
  local at, line, row = nil, last_line(text_of(path)), nil
  if line ~= "" then
    row = peri.json.decode(line)
    at = type(row) == "table" and row.step or nil
  end
  return { step = function(step, values)
    local before = step == at and line
    local all = {}
    for name, v in pairs(before and row or {}) do if name ~= "step" then all[name] = v end end
    for name, v in pairs(values) do all[name] = v end
    at, line, row = step, M.json_line(step, all), all
    if before then replace_last(path, before, line) else must(peri.files.append(path, line)) end
  end }
end

-- A row is a line: a break inside a text is written as \n.
local function csv_cell(v)
  if v == nil then return "" end
  if v ~= v then return "nan" end
  local s = type(v) == "number" and (math.type(v) == "integer" and ("%d"):format(v) or ("%.9g"):format(v))
    or numbers.repaired(tostring(v)):gsub("\r?\n", "\\n"):gsub("\r", "\\r")
  if s:find '[,"]' then s = '"' .. s:gsub('"', '""') .. '"' end
  return s
end

-- The cells of a line.
local function csv_cells(line)
  local list, at = {}, 1
  line = line:gsub("\n$", "")
  while at <= #line do
    local quoted, past = line:match('^"(.-)"()', at)
    while quoted and line:sub(past, past) == '"' do -- a doubled quote inside
      local more, beyond = line:match('^"(.-)"()', past)
      quoted, past = quoted .. '"' .. (more or ""), beyond or past + 1
    end
    local cell, after = line:match("^([^,]*)()", at)
    if quoted then cell, after = quoted, past end
    list[#list + 1] = cell
    at = after + 1
  end
  return list
end

--- Rows as CSV. A new metric becomes a column at the right: the file is written anew with a longer head
--- and longer rows. A step that is the last one's adds to its row.
--- @param path string
function M.csv(path)
  local columns, known = {}, { step = true }
  local text = text_of(path)
  local head, last = csv_cells(text:match "^[^\n]*\n" or ""), last_line(text)
  for i = 2, #head do columns[i - 1], known[head[i]] = head[i], true end
  local texts, at = {}, nil -- of the last row
  for i, cell in ipairs(csv_cells(last)) do
    if i == 1 then at = math.tointeger(tonumber(cell)) elseif cell ~= "" then texts[columns[i - 1]] = csv_cell(cell) end
  end
  must(peri.files.append(path, ""))
  local function extend(names)
    for _, name in ipairs(names) do columns[#columns + 1], known[name] = name, true end
    local cells = { "step" }
    for i, name in ipairs(columns) do cells[i + 1] = csv_cell(name) end
    local line, old = table.concat(cells, ",") .. "\n", text_of(path)
    if old == "" then return must(peri.files.append(path, line)) end
    last = at and last:gsub("\n$", (","):rep(#names) .. "\n") or last
    local rows = old:match "^[^\n]*\n(.*)$" or ""
    must(peri.files.write(path, line .. rows:gsub("\n", (","):rep(#names) .. "\n")))
  end
  return { step = function(step, values)
    local new = {}
    for _, name in ipairs(options.names(values)) do
      if not known[name] then new[#new + 1] = name end
    end
    if #new > 0 then extend(new) end
    local again = step == at and last
    if not again then texts = {} end
    for name, v in pairs(values) do texts[name] = csv_cell(v) end
    local row = { ("%d"):format(step) }
    for i, name in ipairs(columns) do row[i + 1] = texts[name] or "" end
    at, last = step, table.concat(row, ",") .. "\n"
    if again then replace_last(path, again, last) else must(peri.files.append(path, last)) end
  end }
end

return M
