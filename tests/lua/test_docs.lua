-- Every Lua block of the readme and of docs/ runs. The blocks of one file share their globals, or are one
-- chunk where the page says <!-- one recipe -->; peri is there, there are no arguments, and run folders lie
-- in a scratch folder. (The C blocks are programs: tests/CMakeLists.txt builds them, tests/run.sh runs them.)
local peri = require "perilune"
local recipe = require "perilune.run.recipe"
local scratch = require "scratch"

-- Blocks as one, each on the lines where it stands in the file.
local function joined(list)
  local text, at = {}, list[1].from
  for _, block in ipairs(list) do
    text[#text + 1] = ("\n"):rep(block.from - at) .. block.text
    at = block.from + select(2, block.text:gsub("\n", ""))
  end
  return { { from = list[1].from, text = table.concat(text) } }
end

local function blocks(path)
  local file = io.open(path, "rb")
  local list, text, from, n, whole = {}, nil, nil, 0, false
  for line in file and file:lines() or function() end do
    n = n + 1
    if text and line:find "^```" then
      list[#list + 1] = { from = from, text = table.concat(text, "\n") }
      text = nil
    elseif text then
      text[#text + 1] = line
    elseif line == "```lua" then
      text, from = {}, n
    elseif line == "<!-- one recipe -->" then
      whole = true
    end
  end
  if file then file:close() end
  return whole and joined(list) or list
end

local function documents()
  local list = { "README.md" }
  for _, name in ipairs(assert(peri.files.list "docs")) do
    if name:find "%.md$" then list[#list + 1] = "docs/" .. name end
  end
  return list
end

local runs = recipe.flags.runs[1]

-- fn() as a recipe that was started without arguments and keeps its runs in a folder.
local function as_recipe(folder, fn)
  local given = arg
  recipe.flags.runs[1], arg = folder, { [0] = "recipe.lua" } -- luacheck: ignore 121
  local ok, message = xpcall(fn, debug.traceback)
  recipe.flags.runs[1], arg = runs, given -- luacheck: ignore 121
  assert(ok, message)
end

local function here() return table.concat(assert(peri.files.list "."), "\n") end

local tests = {}
for _, path in ipairs(documents()) do
  local env = setmetatable({ print = function() end, peri = peri }, { __index = _G })
  local list, folder = blocks(path), nil
  for i, block in ipairs(list) do
    local name = ("test_%s_line_%04d"):format(path:gsub("%W", "_"), block.from)
    tests[name] = function()
      -- newlines before the block, so that messages name the line in the file
      local chunk = assert(load(("\n"):rep(block.from) .. block.text, "@" .. path, "t", env))
      folder = folder or scratch.path()
      local before = here()
      as_recipe(folder, chunk)
      assert(here() == before, "the block leaves a file in the current folder")
      if i < #list then return end
      for key in pairs(env) do env[key] = nil end -- tests run in order: what the file made may go
      assert(peri.files.remove_tree(folder))
    end
  end
end
return tests
