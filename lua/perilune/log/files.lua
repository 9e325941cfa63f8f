-- files.lua - metrics in files: JSON Lines and CSV. A row is in its file when the call returns, or the
-- call is an error: a full disk ends a run as it ends a checkpoint.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local numbers = require "perilune.log.numbers"

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

--- Rows as JSON Lines: step(step, values).
--- @param path string
function M.jsonl(path)
  must(peri.files.append(path, ""))
  return { step = function(step, values) must(peri.files.append(path, M.json_line(step, values))) end }
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

-- The cells of the first line.
local function csv_head(text)
  local list, at = {}, 1
  local line = text:match "^([^\n]*)\n" or ""
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
--- and longer rows.
--- @param path string
function M.csv(path)
  local columns, known = {}, { step = true }
  local head = csv_head(text_of(path))
  for i = 2, #head do columns[i - 1], known[head[i]] = head[i], true end
  must(peri.files.append(path, ""))
  local function extend(names)
    for _, name in ipairs(names) do columns[#columns + 1], known[name] = name, true end
    local cells = { "step" }
    for i, name in ipairs(columns) do cells[i + 1] = csv_cell(name) end
    local line, old = table.concat(cells, ",") .. "\n", text_of(path)
    if old == "" then return must(peri.files.append(path, line)) end
    local rows = old:match "^[^\n]*\n(.*)$" or ""
    must(peri.files.write(path, line .. rows:gsub("\n", (","):rep(#names) .. "\n")))
  end
  return { step = function(step, values)
    local new = {}
    for _, name in ipairs(options.names(values)) do
      if not known[name] then new[#new + 1] = name end
    end
    if #new > 0 then extend(new) end
    local row = { ("%d"):format(step) }
    for i, name in ipairs(columns) do row[i + 1] = csv_cell(values[name]) end
    must(peri.files.append(path, table.concat(row, ",") .. "\n"))
  end }
end

return M
