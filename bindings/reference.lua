-- reference.lua - the generated parts of the pages in docs/: between
--   <!-- generated from lua/perilune/data/init.lua as data -->   and   <!-- end -->
-- stands what the file's `---` comments and the rules of its options say. A sentence has one place, the
-- source; help() shows the same. Returns function(page text, read) -> page text.
local peri = require "perilune"
local comments = require "perilune.comments"
local options = require "perilune.options"

local function code(text) return "`" .. text .. "`" end

-- The table that readers know by a prefix such as nn.init, when there is one.
local function public(prefix)
  local t = peri
  for part in prefix:gmatch "[^.]+" do
    local ok, field = pcall(function() return t[part] end) -- an unknown field raises
    t = ok and field or nil
    if type(t) ~= "table" then return nil end
  end
  return t
end

local function cell(text) return (text:gsub("%s*\n%s*", " "):gsub("|", "\\|")) end

-- The value that an item of a module's file documents, for its declared options: a field of the module, or of
-- the class that it is, or that it or the room holds.
local function value_of(item, module, room)
  if type(module) ~= "table" or not item.owner then return nil end
  if item.owner == "M" then return rawget(module, item.name) end
  local class = rawget(module, item.owner) or room and rawget(room, item.owner)
  if type(class) ~= "table" then class = module end
  return rawget(class, item.name)
end

-- How a reader writes it: nn.Linear(in_features, out_features, options), stream:map(fn).
local function call_of(item, prefix, value)
  local known, args = options.declared(value), item.args:gsub("^self,?%s*", "")
  if known and item.kind ~= "method" then
    local names = table.move(known.positional, 1, #known.positional, 1, {})
    if known.more then names[#names + 1] = "options" end
    args = table.concat(names, ", ")
  end
  local owner = item.owner
  if owner == "M" then owner = prefix
  elseif owner then
    owner = owner:gsub("^M%.", prefix .. ".")
    if not owner:find "%." then owner = owner:lower() end
  end
  local separator = item.kind == "method" and ":" or "."
  local callable = item.kind ~= "value" or known or item.args ~= "" or type(value) == "function"
  return owner .. separator .. item.name .. (callable and "(" .. args .. ")" or "")
end

local function option_table(out, known)
  if not known or #known.options == 0 then return end
  out[#out + 1] = "| option | type | default | |\n| --- | --- | --- | --- |"
  for _, o in ipairs(known.options) do
    local default = o.default and (o.default == "required" and "required" or code(cell(o.default))) or ""
    out[#out + 1] = ("| %s | %s | %s | %s |"):format(code(o.name), cell(o.kind), default, cell(o.doc))
  end
  out[#out + 1] = ""
end

local function annotations(out, item, known)
  local lines, positional = {}, {}
  for _, name in ipairs(known and known.positional or {}) do positional[name] = true end
  for _, p in ipairs(item.params) do
    -- the table of declared options is in the table above
    if known and known.more and not positional[p.name] and p.type:find "^table" and p.doc == "" then goto next end
    local doc = p.doc ~= "" and ": " .. p.doc:gsub("%s*\n%s*", " ") or ""
    lines[#lines + 1] = ("- %s (%s)%s"):format(code(p.name), code(p.type), doc)
    ::next::
  end
  for _, r in ipairs(item.returns) do
    local doc = r.doc ~= "" and ": " .. r.doc:gsub("%s*\n%s*", " ") or ""
    lines[#lines + 1] = ("- returns %s%s%s"):format(code(r.type), r.name and " " .. code(r.name) or "", doc)
  end
  if #lines > 0 then out[#out + 1] = table.concat(lines, "\n") .. "\n" end
end

-- Lines of a comment that begin with two spaces are code.
local function body(text)
  local out, inside = {}, false
  for line in (text .. "\n"):gmatch "(.-)\n" do
    local is_code = line:find "^  " ~= nil
    if is_code ~= inside then out[#out + 1] = is_code and "\n```" or "```\n" end
    inside = is_code
    out[#out + 1] = line
  end
  if inside then out[#out + 1] = "```" end
  return (table.concat(out, "\n"):gsub("%s+$", ""):gsub("\n\n\n+", "\n\n"))
end

local function section(out, item, prefix, module, room)
  local value = value_of(item, module, room)
  out[#out + 1] = "#### " .. code(call_of(item, prefix, value)) .. "\n"
  if item.text ~= "" then out[#out + 1] = body(item.text) .. "\n" end
  option_table(out, options.declared(value))
  annotations(out, item, options.declared(value))
end

local function class_section(out, item)
  if #item.fields == 0 then return end
  out[#out + 1] = ("Fields of a %s:\n"):format(code(item.class:match "[^%.]+$" or item.class))
  for _, f in ipairs(item.fields) do
    local doc = f.doc ~= "" and ": " .. f.doc:gsub("%s*\n%s*", " ") or ""
    out[#out + 1] = ("- %s (%s)%s"):format(code(f.name), code(f.type), doc)
  end
  out[#out + 1] = ""
end

local function is_shown(item)
  return item.public and (item.owner or item.kind == "class") and item.name:sub(1, 1) ~= "_"
    and not (item.owner or ""):find "^self"
end

-- What a module holds without a line of its own in the source: made in a loop, declared with a text.
local function made_in_loops(module)
  local list = {}
  for name, value in pairs(type(module) == "table" and module or {}) do
    local known = options.declared(value)
    if known and known.text then
      list[#list + 1] = { name = name, owner = "M", kind = "value", args = "", text = known.text,
        params = {}, returns = {} }
    end
  end
  table.sort(list, function(a, b) return a.name < b.name end)
  return list
end

--- A page with its generated parts made anew.
--- @param page string
--- @param read fun(path: string): string?
--- @return string
return function(page, read)
  return (page:gsub("(<!%-%- generated from (%S+) as (%S+) %-%->\n).-(<!%-%- end %-%->)",
    function(first, path, prefix, last)
      local source = read(path) or error("no " .. path .. ": a page of docs/ is generated from it")
      local name = path:gsub("^lua/", ""):gsub("%.lua$", ""):gsub("/init$", ""):gsub("/", ".")
      local out, module, known = {}, require(name), public(prefix)
      for _, item in ipairs(comments.items(source)) do
        -- a file of a room may hold what the room keeps to itself
        local own = item.owner == "M" and known and rawget(known, item.name) == nil
        if is_shown(item) and item.kind == "class" then
          -- a constructor, or what objects are
          if options.declared(value_of(item, module, known)) then section(out, item, prefix, module, known) end
          class_section(out, item)
        elseif is_shown(item) and not own then section(out, item, prefix, module, known) end
      end
      for _, item in ipairs(made_in_loops(module)) do section(out, item, prefix, module, known) end
      return first .. "\n" .. table.concat(out, "\n") .. "\n" .. last
    end))
end
