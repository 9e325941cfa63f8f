-- comments.lua - what Lua sources say of themselves: the `---` comments above functions, classes and
-- constructors, as data. help() shows them, bindings/gen.lua writes the pages of docs/ from them.

local M = {}

--- @class perilune.comments.Item
--- @field name string
--- @field owner string?  what it is a field of in its file: M, Stream, M.Linear
--- @field kind string  "function", "method", "value" or "class"
--- @field args string  parameters as the source writes them
--- @field text string  the comment without its annotations
--- @field params { name: string, type: string, doc: string }[]
--- @field returns { type: string, name: string?, doc: string }[]
--- @field fields { name: string, type: string, doc: string }[]  of a class
--- @field class string?  full name of a class
--- @field line integer  of the definition
--- @field public boolean  three dashes above it

local function split_lines(text)
  local lines = {}
  for line in (text .. "\n"):gmatch "(.-)\r?\n" do lines[#lines + 1] = line end
  return lines
end

-- A type and what follows it: types may hold spaces inside of brackets, after a colon, a comma or a bar.
local function split_type(text)
  local depth, i = 0, 1
  while i <= #text do
    local c = text:sub(i, i)
    if c:find "[%(%[{<]" then depth = depth + 1
    elseif c:find "[%)%]}>]" then depth = depth - 1
    elseif c == " " and depth <= 0 and not text:sub(1, i - 1):find "[:,|]$" then break end
    i = i + 1
  end
  return text:sub(1, i - 1), (text:sub(i):gsub("^%s+", ""))
end

local function add(list, entry)
  list[#list + 1] = entry
  return entry
end

-- One line of a block that begins with @; returns what following lines go on with.
local function annotation(item, line)
  local tag, rest = line:match "^@(%w+)%s*(.*)$"
  if tag == "param" or tag == "field" then
    local name, more = rest:match "^(%S+)%s*(.*)$"
    local kind, doc = split_type(more or "")
    return add(tag == "param" and item.params or item.fields, { name = name or "", type = kind, doc = doc })
  elseif tag == "return" then
    local kind, doc = split_type(rest)
    local name, more = doc:match "^([%a_][%w_]*)  +(.*)$"
    name = name or doc:match "^[%a_][%w_]*$"
    return add(item.returns, { type = kind, name = name, doc = name and more or not name and doc or "" })
  elseif tag == "class" then
    item.class = rest:match "^%S+"
    return { doc = "" }
  end
  return { doc = "" }
end

local function read_block(block, item)
  local text, going = {}, nil
  for _, line in ipairs(block) do
    if line:find "^@%w" then going = annotation(item, line)
    elseif going then going.doc = going.doc .. (going.doc ~= "" and "\n" or "") .. line:gsub("^%s+", "")
    else text[#text + 1] = line end
  end
  item.text = table.concat(text, "\n")
end

-- Name, owner, kind and arguments that a line of code defines.
local function definition(line)
  local owner, separator, name, args = line:match "^%s*function%s+([%w_%.]-)([%.:])([%w_]+)%s*%((.-)%)"
  if name then return name, owner, separator == ":" and "method" or "function", args end
  name, args = line:match "^%s*local%s+function%s+([%w_]+)%s*%((.-)%)"
  if name then return name, nil, "function", args end
  name = line:match "^%s*local%s+([%w_]+)%s*="
  if name then return name, nil, "value", line:match "function%s*%((.-)%)" or "" end
  args = line:match "^%s*return%s+function%s*%((.-)%)"
  if args then return "function", nil, "function", args end
  owner, name = line:match "^%s*([%w_%.]-)%.([%w_]+)%s*="
  if name then return name, owner, "value", line:match "function%s*%((.-)%)" or "" end
  return nil
end

--- Everything documented in a source, in its order.
--- @param source string
--- @return perilune.comments.Item[]
function M.items(source)
  local lines, list, at = split_lines(source), {}, 1
  while at <= #lines do
    local block, public = {}, lines[at]:find "^%s*%-%-%-" ~= nil
    while lines[at] and lines[at]:find "^%s*%-%-" do
      block[#block + 1] = lines[at]:gsub("^%s*%-%-+%s?", "", 1)
      public = public or lines[at]:find "^%s*%-%-%-" ~= nil
      at = at + 1
    end
    if #block > 0 and lines[at] then
      local name, owner, kind, args = definition(lines[at])
      local item = { params = {}, returns = {}, fields = {}, name = name, owner = owner, kind = kind, args = args,
        line = at, public = public }
      read_block(block, item)
      if item.class then item.kind = "class" end
      if name then list[#list + 1] = item end
    end
    if #block == 0 then at = at + 1 end
  end
  return list
end

--- The comment at the head of a source.
--- @param source string
--- @return string
function M.head(source)
  local out = {}
  for _, line in ipairs(split_lines(source)) do
    local text = line:match "^%-%-+%s?(.*)$"
    if not text then break end
    out[#out + 1] = text
  end
  return table.concat(out, "\n")
end

--- The first sentence of a text, on one line.
--- @param text string
--- @return string
function M.summary(text)
  local flat = text:match "^%s*(.-)%s*$":gsub("\n%s*\n.*", ""):gsub("%s+", " ")
  local at = 1
  while true do
    local stop = flat:find("%.%s", at)
    if not stop then break end
    -- "et al. 2021", "e.g. this" and initials end no sentence
    local before = flat:sub(1, stop - 1):match "(%S+)$" or ""
    local short = before == "al" or before == "e.g" or before == "i.e" or before == "eq"
    if not (short or before:find "%.$" or before:find "^%(?%u$") then
      return flat:sub(1, stop - 1)
    end
    at = stop + 1
  end
  return (flat:gsub("%.$", ""))
end

--- Paragraphs broken at a width. Lines that begin with two spaces, such as code, stay as they are.
--- @param text string
--- @param width integer
--- @param indent string?  before every line
--- @return string
function M.wrap(text, width, indent)
  indent = indent or ""
  local out, line = {}, nil
  local function flush()
    if line then out[#out + 1] = indent .. line end
    line = nil
  end
  for _, source in ipairs(split_lines(text)) do
    if source == "" or source:find "^  " then
      flush()
      out[#out + 1] = source == "" and "" or indent .. source
    else
      for word in source:gmatch "%S+" do
        if line and utf8.len(line .. " " .. word, 1, -1, true) + #indent > width then flush() end
        line = line and line .. " " .. word or word
      end
    end
  end
  flush()
  return table.concat(out, "\n")
end

--- Lines of { name, text }, the text broken in a column of its own; below a name that is longer than 28.
--- @param rows string[][]
--- @param indent string  before every name
--- @param columns integer  of a line
--- @return string
function M.rows(rows, indent, columns)
  local width, out = 0, {}
  for _, row in ipairs(rows) do if #row[1] <= 28 then width = math.max(width, #row[1]) end end
  local hang = (" "):rep(#indent + width + 2)
  for _, row in ipairs(rows) do
    local text = M.wrap(row[2], math.max(columns - #hang, 30))
    local left = indent .. row[1] .. (" "):rep(width - #row[1]) .. "  "
    if #row[1] > width and text ~= "" then left = indent .. row[1] .. "\n" .. hang end
    out[#out + 1] = (left .. text:gsub("\n", "\n" .. hang)):gsub("%s+$", "")
  end
  return table.concat(out, "\n")
end

return M
