-- report.lua - what of the code the tests reached, by folder.
--   lua5.4 tests/coverage/report.lua BUILD ATLEAST [FILE_PREFIX]
-- BUILD is a build folder with counters whose tests have run (tests/coverage/run.sh). Prints the share
-- of lines (C, by gcov) and of statements (Lua, by statements.lua) that ran, folder by folder; with a
-- prefix, the lines that did not run in the files whose names begin so. Fails when a folder has less
-- than ATLEAST percent, and names its worst files.
-- A line of C that is compiled several times (once a SIMD level) has run when one of them ran.

local build, least, prefix = arg[1], tonumber(arg[2]), arg[3]
local files = {} -- name -> { folder, lines = { [line] = ran }, [line number or statement] = ran }

local function note(name, folder, at, line, ran)
  local file = files[name] or { folder = folder, parts = {}, lines = {} }
  files[name] = file
  file.parts[at] = file.parts[at] or ran
  if not ran then file.lines[#file.lines + 1] = { at, line } end
end

-- ---- C ----

-- Objects by target: those of a SIMD level that this processor has not got never ran, and are no gap.
local function objects(target)
  local list = io.popen(("cd %s && find . -path '*/%s.dir/*' -name '*.gcno'"):format(build, target))
  local text = list:read("a"):gsub("\n", " ")
  list:close()
  return text
end

local function count(target, only_if_run)
  local list = objects(target)
  if list == "" then return end
  local source, folder, rows, any = nil, nil, {}, false
  local gcov = assert(io.popen(("cd %s && gcov -t %s 2>/dev/null"):format(build, list))) -- "cannot open data": never linked in
  for row in gcov:lines() do
    local times, line, text = row:match "^ *([^:]+): *(%d+):(.*)$"
    if line == "0" then
      local path = text:match "^Source:(.*)$"
      if path then
        source = path:match "runtime/%w+/[%w_]+%.[ch]$" or path:match "bindings/[%w_]+%.[ch]$"
        folder = source and source:match "^(.*)/"
      end
    elseif source and times and times ~= "-" then
      local ran = times:find "^%d" ~= nil and not times:find "^0"
      rows[#rows + 1] = { source, folder, tonumber(line), tonumber(line), ran }
      any = any or ran
    end
  end
  gcov:close()
  if any or not only_if_run then
    for _, row in ipairs(rows) do note(table.unpack(row)) end
  end
end

for _, target in ipairs { "perilune_testing_objects", "perilune_testing_bindings", "perilune_main", "perilune_portable" } do
  count(target)
end
for _, target in ipairs { "perilune_avx2", "perilune_avx512", "perilune_vnni", "perilune_dotprod" } do -- ORDER simd
  count(target, true)
end

-- ---- Lua ----

local ran = {}
for number in io.lines(build .. "/counted/hits.txt") do ran[number] = true end
for row in io.lines(build .. "/counted/lua/statements.txt") do
  local number, name, line = row:match "^(%d+) (%S+) (%d+)$"
  name = "lua/" .. name
  note(name, name:match "^(lua/perilune/[^/]+)/" or name:match "^(.*)/", number, tonumber(line), ran[number] or false)
end

-- ---- the table ----

local folders, order = {}, {}
for name, file in pairs(files) do
  local all, hit = 0, 0
  for _, yes in pairs(file.parts) do
    all = all + 1
    if yes then hit = hit + 1 end
  end
  local folder = folders[file.folder]
  if not folder then
    folder = { name = file.folder, all = 0, hit = 0 }
    folders[file.folder] = folder
    order[#order + 1] = folder
  end
  folder.all, folder.hit = folder.all + all, folder.hit + hit
  folder[#folder + 1] = { name = name, all = all, hit = hit }
end
table.sort(order, function(a, b) return a.name < b.name end)

local function percent(x) return 100 * x.hit / x.all end
local low = {}
for _, folder in ipairs(order) do
  table.sort(folder, function(a, b) return percent(a) < percent(b) end)
  if prefix then
    for _, file in ipairs(folder) do print(("    %-44s %6d of %6d  %5.1f %%"):format(file.name, file.hit, file.all, percent(file))) end
  end
  print(("%-28s %6d of %6d  %5.1f %%   least: %s %.0f %%"):format(folder.name, folder.hit, folder.all, percent(folder),
    folder[1].name:match "[^/]+$", percent(folder[1])))
  if percent(folder) < least then low[#low + 1] = folder end
end

if prefix then
  local names = {}
  for name in pairs(files) do
    if name:sub(1, #prefix) == prefix then names[#names + 1] = name end
  end
  table.sort(names)
  for _, name in ipairs(names) do
    local file, lines, seen = files[name], {}, {}
    for _, at in ipairs(file.lines) do
      if not file.parts[at[1]] and not seen[at[2]] then
        seen[at[2]] = true
        lines[#lines + 1] = at[2]
      end
    end
    table.sort(lines)
    print(name .. ": " .. table.concat(lines, " "))
  end
end

for _, folder in ipairs(low) do
  print(("%s: %.1f %% ran, at least %d %% are to"):format(folder.name, percent(folder), least))
  table.sort(folder, function(a, b) return a.all - a.hit > b.all - b.hit end)
  for i = 1, math.min(5, #folder) do
    print(("  %-44s %5d of %5d did not"):format(folder[i].name, folder[i].all - folder[i].hit, folder[i].all))
  end
end
os.exit(#low == 0)
