-- perilune.help: help(x) for ops, functions, modules, tensors and names of any of them. Docs of ops
-- and C functions come from where they are registered; of Lua functions, from the comment above
-- them in the source.
local peri = require "perilune.core"

local function lines_of(source)
  local text
  if source:sub(1, 1) == "@" then
    local file = io.open(source:sub(2))
    text = file and file:read "a"
    if file then file:close() end
  elseif source:sub(1, 1) == "=" then
    text = peri._source(source:sub(2))
  end
  if not text then return nil end
  local lines = {}
  for line in (text .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = line end
  return lines
end

-- The comment lines right above line number at, without their dashes.
local function comment_above(lines, at)
  local out = {}
  for i = at - 1, 1, -1 do
    local text = lines[i]:match "^%s*%-%-%-?%s?(.*)$"
    if not text then break end
    table.insert(out, 1, text)
  end
  return table.concat(out, "\n")
end

local function comment_of(f)
  local info = debug.getinfo(f, "S")
  local lines = lines_of(info.source)
  return lines and comment_above(lines, info.linedefined) or ""
end

-- The first line of a comment that is no annotation.
local function first_line(comment)
  for line in comment:gmatch "[^\n]+" do
    if line:sub(1, 1) ~= "@" then return line end
  end
  return ""
end

local function parameters(f)
  local info, names = debug.getinfo(f, "u"), {}
  for i = 1, info.nparams do names[i] = debug.getlocal(f, i) end
  if info.isvararg then names[#names + 1] = "..." end
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
  local text = ("peri.%s(%s)\n%s"):format(op.name, table.concat(names, ", "), op.doc)
  if #rows > 0 then text = text .. "\n" .. table.concat(rows, "\n") end
  if op.flags.elementwise then text = text .. ("\nin place: x:%s_(...)"):format(op.name) end
  return text
end

local function describe_function(f, name)
  local known = peri.describe(f)
  if known and known.params then return describe_op(known) end
  if known then return ("%s(%s)\n%s"):format(known.name, known.sig, known.doc) end
  if debug.getinfo(f, "S").what == "C" then return (name or "function") .. ": a C function without docs" end
  local doc = comment_of(f)
  return ("%s(%s)\n%s"):format(name or "function", parameters(f), doc ~= "" and doc or "(no comment above it)")
end

local function wrap(names)
  local lines, line = {}, " "
  for _, name in ipairs(names) do
    if #line + #name > 96 then
      lines[#lines + 1] = line
      line = " "
    end
    line = line .. " " .. name
  end
  lines[#lines + 1] = line
  return table.concat(lines, "\n")
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
  local lines = path and lines_of("@" .. path) or lines_of(base .. ".lua") or lines_of(base .. "/init.lua")
  local last = 0
  while lines and lines[last + 1] and lines[last + 1]:find "^%-%-" do last = last + 1 end
  return lines and last > 0 and comment_above(lines, last + 1) or nil
end

-- What makes an object of a class: the function that its __call wraps has the comment.
local function constructor_comment(call)
  local comment = comment_of(call)
  for i = 1, 8 do
    local name, value = debug.getupvalue(call, i)
    if not name or comment ~= "" then break end
    if type(value) == "function" and debug.getinfo(value, "S").what ~= "C" then comment = comment_of(value) end
  end
  return comment
end

local function describe_entry(key, value)
  if type(value) == "table" then
    local meta = getmetatable(value)
    local call = type(meta) == "table" and type(meta.__call) == "function" and meta.__call
    return ("  %-28s %s"):format(key, call and first_line(constructor_comment(call)) or "")
  end
  local native = debug.getinfo(value, "S").what == "C"
  return ("  %-28s %s"):format(key .. "(" .. (native and "" or parameters(value)) .. ")",
    native and "" or first_line(comment_of(value)))
end

local function describe_table(t, name)
  local meta = getmetatable(t)
  local call = type(meta) == "table" and type(meta.__call) == "function" and meta.__call
  local title = name or type(meta) == "table" and meta.__name or rawget(t, "__name") or "table"
  for module, value in pairs(package.loaded) do
    if value == t and type(module) == "string" then title = module_comment(module) or module end
  end
  local text = { tostring(title) }
  if call then text[#text + 1] = constructor_comment(call) end
  for _, key in ipairs(sorted_keys(t)) do
    local value = t[key]
    if type(value) == "table" or type(value) == "function" and not peri.describe(value) then
      text[#text + 1] = (describe_entry(key, value):gsub("%s+$", ""))
    elseif type(value) == "function" then
      local known = peri.describe(value)
      text[#text + 1] = ("  %-28s %s"):format(known.name .. "(" .. known.sig .. ")", known.doc)
    end
  end
  return table.concat(text, "\n")
end

local function overview()
  local ops, functions = {}, {}
  for _, op in ipairs(peri.ops()) do
    if not op.name:find "_backward$" then ops[#ops + 1] = op.name end
  end
  for _, f in ipairs(peri.functions()) do
    if f.of == "perilune" then functions[#functions + 1] = f.name end
  end
  table.sort(ops)
  table.sort(functions)
  return "help(x) explains an op, a function, a module or a name: help 'softmax', help(peri.nn.Linear)\n"
    .. "ops, peri.NAME(...) and mostly x:NAME(...):\n" .. wrap(ops)
    .. "\nfunctions, peri.NAME(...):\n" .. wrap(functions)
    .. "\nmodules, peri.NAME: nn optim sched data flags log plot recipe models rl post text json safetensors"
end

local function describe_tensor(x)
  return tostring(x) .. "\nfields: shape ndim dtype device grad requires_grad is_leaf packed T\nmethods:\n"
    .. wrap(sorted_keys(peri.methods()))
end

-- Something by its name: an op, a method, a function, or a path such as nn.Linear.
local function find(name)
  name = name:gsub("^peri%.", ""):gsub("^perilune%.", "")
  local value = require "perilune"
  for part in name:gmatch "[^%.:]+" do
    if type(value) ~= "table" then return nil end
    value = value[part]
  end
  if value ~= nil and name ~= "" then return value end
  return peri.methods()[name]
end

local describe

local function describe_name(name)
  local value = find(name)
  if value ~= nil then return describe(value, name) end
  for _, f in ipairs(peri.functions()) do
    if f.name == name then return ("%s(%s)\n%s"):format(f.name, f.sig, f.doc) end
  end
  local near = {}
  for _, op in ipairs(peri.ops()) do
    if op.name:find(name, 1, true) or op.doc:lower():find(name:lower(), 1, true) then near[#near + 1] = op.name end
  end
  if #near == 0 then return ("nothing is called '%s'"):format(name) end
  return ("nothing is called '%s'; these mention it:\n%s"):format(name, wrap(near))
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
