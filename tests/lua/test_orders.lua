-- Couplings that grep finds: where a dtype has a place, the line or the one above says ORDER dtype, or the head of the
-- file does. A dtype that is added is added there.
local lu = require "luaunit"
local peri = require "perilune"

local root = debug.getinfo(1, "S").source:match "^@(.*)tests/lua/" or ""

local function each_file(folder, ending, fn)
  for _, name in ipairs(peri.files.list(root .. folder) or {}) do
    local path = folder .. "/" .. name
    if peri.files.exists(root .. path) == "folder" then each_file(path, ending, fn)
    elseif name:find(ending) then fn(path, assert(peri.files.read(root .. path))) end
  end
end

local function lines_of(text)
  local list = {}
  for line in (text .. "\n"):gmatch "(.-)\n" do list[#list + 1] = line end
  return list
end

-- Names in C and in Lua of every dtype.
local constants, names = {}, {}
for _, d in ipairs(peri.dtypes()) do
  constants["PERI_" .. d.name:upper()], names[d.name] = true, true
end

-- Is there a mark at line i, up to three above it, or in the comment that the file opens with?
local function marked(lines, i)
  for k = math.max(1, i - 3), math.min(#lines, i + 1) do if lines[k]:find("ORDER dtype", 1, true) then return true end end
  for k = 1, math.min(8, #lines) do
    if lines[k]:find("ORDER dtype", 1, true) then return true end
    if lines[k]:find "%*/" or lines[k] == "" then break end
  end
  return false
end

-- Different dtypes that labels or designators of a block name: cases of one switch, entries of one table.
local function places(lines)
  local list, open = {}, nil
  for i, line in ipairs(lines) do
    local starts = line:find "switch %(" or line:find "%] = {%s*$" or line:find "%] = { "
    if starts then
      open = { line = i, seen = {}, n = 0 }
      list[#list + 1] = open
    end
    for word in line:gmatch "case (PERI_%w+)" do
      if open and constants[word] and not open.seen[word] then open.seen[word], open.n = true, open.n + 1 end
    end
    for word in line:gmatch "%[(PERI_%w+)%]" do
      if open and constants[word] and not open.seen[word] then open.seen[word], open.n = true, open.n + 1 end
    end
    if line:find "%[PERI_NDTYPE%]" or line:find "PERI_DTYPE_END %- PERI" then
      list[#list + 1] = { line = i, seen = {}, n = math.huge }
    end
  end
  return list
end

TestOrders = {}

function TestOrders.test_places_of_dtypes_in_C_carry_the_mark()
  local missing, found = {}, 0
  for _, folder in ipairs { "runtime", "bindings" } do
    each_file(folder, "%.[ch]$", function (path, text)
      local lines = lines_of(text)
      for _, place in ipairs(places(lines)) do
        if place.n >= 4 then
          found = found + 1
          if not marked(lines, place.line) then missing[#missing + 1] = ("%s:%d"):format(path, place.line) end
        end
      end
    end)
  end
  lu.assertEquals(missing, {})
  lu.assertTrue(found > 8, "only " .. found)
end

-- Lua has one list, which asks the runtime; what a format numbers for itself carries the mark.
function TestOrders.test_no_Lua_file_lists_dtypes()
  local lists = {}
  each_file("lua/perilune", "%.lua$", function (path, text)
    local lines = lines_of(text)
    for at, list in text:gmatch "()(%b{})" do
      local n, seen = 0, {}
      for word in list:gsub('"([%w_]+)"', "%1 ="):gmatch "([%w_]+) =" do
        if names[word] and not seen[word] then seen[word], n = true, n + 1 end
      end
      local _, line = text:sub(1, at):gsub("\n", "")
      if n >= 4 and not marked(lines, line + 1) then lists[#lists + 1] = ("%s:%d"):format(path, line + 1) end
    end
  end)
  lu.assertEquals(lists, {})
end

function TestOrders.test_the_table_of_dtypes_is_whole()
  local seen = {}
  for _, d in ipairs(peri.dtypes()) do
    lu.assertTrue(d.name ~= "unknown" and not seen[d.name], d.name)
    seen[d.name] = true
    lu.assertTrue(d.elements > 0 and d.bytes > 0, d.name)
    lu.assertEquals(d.kind == "quantised", d.elements > 1)
    if d.kind == "quantised" then
      local x = peri.ones { 1, d.elements }
      lu.assertEquals(#x:to(d.name):bytes(), d.bytes, d.name)
    else
      lu.assertEquals(#peri.ones({ 1 }, d.name):bytes(), d.bytes)
      lu.assertEquals(peri.ones({ 1 }, d.alias).dtype, d.name)
    end
  end
end

os.exit(lu.LuaUnit.run())
