-- perilune.help: help(x) for ops, functions, constructors, modules, tensors and names of any of them.
-- Docs of ops and C functions come from where they are registered; of Lua functions, from the comment
-- above them in the source and the rules of their options.
local peri = require "perilune.core"
local comments = require "perilune.comments"
local options = require "perilune.options"
local terminal = require "perilune.terminal"

-- ---- sources ----

local function source_text(source)
  if source:sub(1, 1) == "@" then
    local file = io.open(source:sub(2), "rb")
    local text = file and file:read "a"
    if file then file:close() end
    return text
  elseif source:sub(1, 1) == "=" then
    return peri._source(source:sub(2))
  end
end

local by_source = {} -- items of each source: by the line of their definition, and by name

local function items_of(source)
  if not by_source[source] then
    local at = { lines = {}, names = {} }
    for _, item in ipairs(comments.items(source_text(source) or "")) do
      at.lines[item.line] = item
      if item.owner == "M" and item.kind == "value" then at.names[item.name] = item end
    end
    by_source[source] = at
  end
  return by_source[source]
end

-- What the source says of the function that begins at a line, or nil.
local function item_of(f)
  local info = debug.getinfo(f, "S")
  if info.what == "C" then return nil end
  return items_of(info.source).lines[info.linedefined]
end

-- The function that makes an object of a class is wrapped in its __call; where that was made by a helper
-- of its file, the comment stands above the field that has the name of the class.
local function constructor_item(class)
  local meta = getmetatable(class)
  local call = type(meta) == "table" and meta.__call
  if type(call) ~= "function" then return nil end
  local item, named = item_of(call), nil
  for i = 1, 8 do
    local name, value = debug.getupvalue(call, i)
    if not name or item and item.kind ~= "method" then break end
    if type(value) == "function" then
      item = item_of(value) or item
      local info = debug.getinfo(value, "S")
      named = named or info.what ~= "C" and items_of(info.source).names[rawget(class, "__name")]
    end
  end
  return item and item.kind ~= "method" and item or named or item
end

-- Objects can be called, too, but only classes are where methods are looked up.
local function is_class(t)
  local meta = getmetatable(t)
  return type(meta) == "table" and type(meta.__call) == "function" and rawget(t, "__index") ~= nil
end

-- ---- arguments ----

local function parameters(f)
  local info, names = debug.getinfo(f, "u"), {}
  for i = 1, info.nparams do names[i] = debug.getlocal(f, i) end
  if info.isvararg then names[#names + 1] = "..." end
  return names
end

-- How x is called: declared arguments, else those of the source.
local function arguments(x)
  local known, names = options.declared(x), {}
  if known then
    table.move(known.positional, 1, #known.positional, 1, names)
    if known.more then names[#names + 1] = "options" end
  elseif type(x) == "function" then
    names = parameters(x)
  end
  if names[1] == "self" then table.remove(names, 1) end
  return table.concat(names, ", ")
end

local kinds = {
  tensor = "tensor or number", ["tensor?"] = "tensor", tensors = "list of tensors", int = "integer",
  num = "number", bool = "boolean", str = "string", dim = "dim, counted from 1",
  pos = "position, counted from 1", dims = "dim or list of dims", shape = "list of sizes",
  ints = "list of integers",
}

local function describe_op(op)
  local names, rows = {}, {}
  for i, p in ipairs(op.params) do
    names[i] = p.optional and p.name .. "?" or p.name
    local default = p.default ~= nil and (" (default %s)"):format(p.default) or ""
    rows[i] = ("  %-14s %s%s"):format(p.name, kinds[p.kind] or p.kind, default)
  end
  local text = comments.wrap(("peri.%s(%s)"):format(op.name, table.concat(names, ", ")), terminal.width()) .. "\n"
    .. comments.wrap(op.doc, terminal.width())
  if #rows > 0 then text = text .. "\n" .. table.concat(rows, "\n") end
  if op.flags.elementwise then text = text .. ("\nin place: x:%s_(...)"):format(op.name) end
  return text
end

-- The rows of declared options, one text each: doc, type, default.
local function option_rows(known)
  local rows, positional = {}, {}
  for _, name in ipairs(known.positional) do positional[name] = true end
  for _, o in ipairs(known.options) do
    local facts = {}
    if o.kind ~= "" then facts[#facts + 1] = o.kind end
    if o.default == "required" then facts[#facts + 1] = positional[o.name] and "positional" or "required"
    elseif o.default then facts[#facts + 1] = "default " .. o.default end
    local doc = o.doc ~= "" and #facts > 0 and o.doc .. "; " or o.doc
    rows[#rows + 1] = { o.name, doc .. table.concat(facts, ", ") }
  end
  return rows
end

local function annotated_rows(list, label)
  local rows = {}
  for i, p in ipairs(list) do
    local text = p.type .. (p.type ~= "" and p.doc ~= "" and ": " or "") .. p.doc:gsub("\n", " ")
    rows[i] = { label and (label .. " " .. (p.name or "")) or p.name, text }
  end
  return rows
end

-- The annotated arguments; the table whose options are declared is shown by these alone.
local function shown_params(item, known)
  local list, positional = {}, {}
  for _, name in ipairs(known and known.positional or {}) do positional[name] = true end
  for _, p in ipairs(item.params) do
    local is_options = known and known.more and not positional[p.name] and p.type:find "^table" and p.doc == ""
    if not is_options then list[#list + 1] = p end
  end
  return list
end

-- Title, text, arguments, options and results of a function or constructor.
local function describe_item(title, item, known)
  local out = { title }
  if known and known.text then item = { text = known.text, params = {}, returns = {} } end
  if item and item.text ~= "" then out[#out + 1] = comments.wrap(item.text, terminal.width()) end
  if not (item and item.text ~= "") and not known then out[#out + 1] = "(no comment above it)" end
  local params = item and shown_params(item, known) or {}
  if #params > 0 then out[#out + 1] = comments.rows(annotated_rows(params), "  ", terminal.width()) end
  if known and #known.options > 0 then
    out[#out + 1] = "options:\n" .. comments.rows(option_rows(known), "  ", terminal.width())
  end
  if item and #item.returns > 0 then
    out[#out + 1] = comments.rows(annotated_rows(item.returns, "returns"), "  ", terminal.width())
  end
  return table.concat(out, "\n")
end

-- ---- names ----

-- The shortest name by which users reach a value: "nn.Linear", "nn.init.lsuv_"; nil when no public module has it.
local function public_name(x)
  local best
  local function look(t, path, depth)
    for key, value in next, t do
      if type(key) == "string" and key:sub(1, 1) ~= "_" then
        local name = path .. key
        if rawequal(value, x) then
          if not best or #name < #best or #name == #best and name < best then best = name end
        elseif depth < 2 and type(value) == "table" and not is_class(value) then look(value, name .. ".", depth + 1) end
      end
    end
  end
  local function look_in(file, name)
    local t = package.loaded["perilune." .. file] -- one that is not loaded has made nothing
    if type(t) == "table" then look(t, name .. ".", 0) end
  end
  for name, file in pairs(require "perilune"._public) do
    if type(file) == "string" then look_in(file, name)
    else for key, one in pairs(file) do look_in(one, name .. "." .. key) end end
  end
  return best
end

-- What the library calls a value: its public name, or what the module that has it calls it; nil when none does.
local function name_of(x)
  local best = public_name(x)
  if best then return best end
  for module, t in pairs(package.loaded) do
    local short = type(module) == "string" and module:match "^perilune%.(.+)$"
    if short and type(t) == "table" and short ~= "core" then
      for key, value in pairs(t) do
        local name = value == x and type(key) == "string" and short .. "." .. key
        if name and (not best or #name < #best or #name == #best and name < best) then best = name end
      end
    end
  end
  for key, value in pairs(best and {} or require "perilune") do
    if value == x and type(key) == "string" then return "peri." .. key end
  end
  return best
end

local function describe_function(f, name)
  local known = peri.describe(f)
  if known and known.params then return describe_op(known) end
  if known then
    return ("%s(%s)\n%s"):format(known.name, known.sig, comments.wrap(known.doc, terminal.width()))
  end
  local item = item_of(f)
  local title = name or name_of(f) or item and item.kind == "method" and item.owner .. ":" .. item.name or "function"
  if debug.getinfo(f, "S").what == "C" then return title .. ": a C function without docs" end
  return describe_item(("%s(%s)"):format(title, arguments(f)), item, options.declared(f))
end

local function wrap(names)
  return comments.wrap(table.concat(names, " "), terminal.width() - 2, "  ")
end

local function sorted_keys(t)
  local keys = {}
  for key in pairs(t) do
    if type(key) == "string" and key:sub(1, 1) ~= "_" then keys[#keys + 1] = key end
  end
  table.sort(keys)
  return keys
end

-- Comment at the head of a module's file.
local function module_comment(name)
  local path = package.searchpath(name, package.path)
  local base = "=" .. name:gsub("%.", "/")
  local text = path and source_text("@" .. path) or source_text(base .. ".lua") or source_text(base .. "/init.lua")
  local head = text and comments.head(text) or ""
  return head ~= "" and head or nil
end

-- One row of a module's list: how it is called and the first sentence of its comment.
local function entry(key, value)
  if type(value) == "function" then
    local known = peri.describe(value)
    if known then return { known.name .. "(" .. known.sig .. ")", known.doc } end
    local item = item_of(value)
    return { ("%s(%s)"):format(key, arguments(value)), item and comments.summary(item.text) or "" }
  elseif type(value) == "table" then
    local item = is_class(value) and constructor_item(value)
    local call = options.declared(value) and ("(%s)"):format(arguments(value)) or ""
    return { key .. call, item and comments.summary(item.text) or "" }
  end
  return { key, type(value) == "string" and ("%q"):format(value) or tostring(value) }
end

local function listing(t)
  local rows = {}
  for _, key in ipairs(sorted_keys(t)) do rows[#rows + 1] = entry(key, t[key]) end
  return comments.rows(rows, "  ", terminal.width())
end

-- The class of an object, when it has one with methods; one whose fields are made when they are asked for has them
-- beside its __index.
local function class_of(t)
  local meta = getmetatable(t)
  local index = type(meta) == "table" and meta.__index
  if type(index) == "function" and #sorted_keys(meta) > 0 then return meta end
  return type(index) == "table" and index or nil
end

-- What an object is, and the methods of its class and of what that is made from.
local function describe_object(t, name)
  local class, rows, seen = class_of(t), {}, {}
  local item = is_class(class) and constructor_item(class)
  local out = { name or rawget(class, "__name") or name_of(class) or "object" }
  if item and item.text ~= "" then out[2] = comments.wrap(item.text, terminal.width()) end
  while class do
    for _, key in ipairs(sorted_keys(class)) do
      local value = rawget(class, key)
      local method = type(value) == "function" and (peri.describe(value) or parameters(value)[1] == "self")
      if method and not seen[key] then rows[#rows + 1] = entry(key, value) end
      seen[key] = true
    end
    class = getmetatable(class) and class_of(class)
  end
  local fields = sorted_keys(t)
  if #fields > 0 then out[#out + 1] = comments.wrap("fields: " .. table.concat(fields, " "), terminal.width()) end
  out[#out + 1] = "methods:\n" .. comments.rows(rows, "  ", terminal.width())
  return table.concat(out, "\n")
end

local function describe_table(t, name)
  for module, value in pairs(package.loaded) do
    if value == t and type(module) == "string" then
      local out = { comments.wrap(module_comment(module) or module, terminal.width()) }
      if is_class(t) then out[#out + 1] = "" end
      return table.concat(out, "\n") .. "\n" .. listing(t)
    end
  end
  if is_class(t) then
    local title = name or name_of(t) or rawget(t, "__name") or "class"
    local text = describe_item(("%s(%s)"):format(title, arguments(t)), constructor_item(t), options.declared(t))
    local methods = listing(t)
    return methods ~= "" and text .. "\nmethods:\n" .. methods or text
  end
  if class_of(t) then return describe_object(t, name) end
  for key, value in pairs(peri) do
    if value == t and type(key) == "string" then name = "peri." .. key end
  end
  local below = name and (peri._public or {})[name:match "[^.]+$"]
  if type(below) == "table" then -- a name for modules, which are loaded when they are read
    local rows = {}
    for _, key in ipairs(sorted_keys(below)) do
      local text = (module_comment("perilune." .. below[key]) or ""):gsub("^[%w_]+%.lua %- ", "")
      rows[#rows + 1] = { key, comments.summary(text) }
    end
    return name .. "\n" .. comments.rows(rows, "  ", terminal.width())
  end
  return (name or "table") .. "\n" .. listing(t)
end

-- ---- the whole ----

-- Modules of the library that are reached as peri.NAME, those in C among them.
local function module_names()
  local names, known = {}, {}
  for name in pairs(peri._public or {}) do names[#names + 1], known[name] = name, true end
  for name, value in pairs(peri) do
    if type(value) == "table" and name:sub(1, 1) ~= "_" and not known[name] then names[#names + 1] = name end
  end
  table.sort(names)
  return names
end

local function overview()
  local ops, functions = {}, {}
  for _, op in ipairs(peri.ops()) do
    if not op.name:find "_backward_?$" then ops[#ops + 1] = op.name end
  end
  for _, f in ipairs(peri.functions()) do
    if f.of == "perilune" then functions[#functions + 1] = f.name end
  end
  local known = {}
  for _, list in ipairs { ops, functions } do
    for _, name in ipairs(list) do known[name] = true end
  end
  for name, value in pairs(peri) do -- those in Lua: split, meshgrid ...
    local public = type(value) == "function" and not known[name] and not name:find "^_" and not name:find "_backward_?$"
    if public and not name:find "_$" then functions[#functions + 1] = name end
  end
  table.sort(ops)
  table.sort(functions)
  return "help(x) explains an op, a function, a module or a name: help 'softmax', help(peri.nn.Linear)\n"
    .. "ops, peri.NAME(...) and mostly x:NAME(...):\n" .. wrap(ops)
    .. "\nfunctions, peri.NAME(...):\n" .. wrap(functions)
    .. "\nmodules, peri.NAME:\n" .. wrap(module_names())
end

local function describe_tensor(x)
  local names = {}
  for _, name in ipairs(sorted_keys(peri.methods())) do
    if not name:find "_backward_?$" then names[#names + 1] = name end
  end
  return tostring(x) .. "\nfields: shape ndim dtype device grad requires_grad is_leaf packed T\nmethods:\n"
    .. wrap(names)
end

-- A method of whatever class of the library has it: "run:plot", "stream:batch"; the class whose name is the
-- first word goes before others.
local function find_method(text)
  local owner, method = text:match "^([%w_]+):([%w_]+)$"
  if not owner then return nil end
  local found
  local function look(class, name)
    local f = type(class) == "table" and rawget(class, "__index") and rawget(class, method)
    if type(f) == "function" and (not found or name:lower() == owner:lower()) then found = f end
  end
  for _, module in ipairs(module_names()) do pcall(require, "perilune." .. module) end
  for module, t in pairs(package.loaded) do
    if type(module) == "string" and module:find "^perilune%." and type(t) == "table" then
      look(t, module:match "[^.]+$")
      for key, value in pairs(t) do look(value, tostring(key)) end
    end
  end
  return found, found and text
end

-- Something by its name: an op, a method, a function, a module, or a path such as nn.Linear; a last name
-- alone ("Linear") is looked for in every module.
local function find(name)
  name = name:gsub("^peri%.", ""):gsub("^perilune%.", "")
  local library = require "perilune"
  local value = library
  for part in name:gmatch "[^%.:]+" do
    if type(value) ~= "table" then break end
    local ok, field = pcall(function() return value[part] end) -- an unknown field raises
    value = ok and field or nil
  end
  if value ~= nil and name ~= "" then return value, name end
  if peri.methods()[name] then return peri.methods()[name], name end
  if name:find ":" then return find_method(name) end
  for _, module in ipairs(module_names()) do
    local ok, t = pcall(require, "perilune." .. module)
    if not ok then t = rawget(peri, module) end
    local found = type(t) == "table" and rawget(t, name)
    if found then return found, module .. "." .. name end
    local below = (peri._public or {})[module] -- a name for modules: peri.algo
    if type(below) == "table" and below[name] then return library[module][name], module .. "." .. name end
  end
end

local describe

local function describe_name(text)
  local value, name = find(text)
  if value ~= nil then return describe(value, name) end
  for _, f in ipairs(peri.functions()) do
    if f.name == text then return ("%s(%s)\n%s"):format(f.name, f.sig, f.doc) end
  end
  local near = {}
  for _, op in ipairs(peri.ops()) do
    if op.name:find(text, 1, true) or op.doc:lower():find(text:lower(), 1, true) then near[#near + 1] = op.name end
  end
  if #near == 0 then return ("nothing is called '%s'"):format(text) end
  return ("nothing is called '%s'; these mention it:\n%s"):format(text, wrap(near))
end

function describe(x, name)
  if peri.is_tensor(x) then return describe_tensor(x) end
  if type(x) == "function" then return describe_function(x, name) end
  if x == require "perilune" then return overview() end
  if type(x) == "table" then return describe_table(x, name) end
  if type(x) == "string" then return describe_name(x) end
  return ("%s: %s"):format(type(x), tostring(x))
end

-- Print what x is; without an argument, what there is.
return function(...)
  print(select("#", ...) == 0 and overview() or describe((...)))
end
