-- Every Lua block of the readme and of docs/ runs. The blocks of one file share their globals; peri
-- is there. (The C host of docs/embedding.md is built and run by .ci/run against the installed package.)
local peri = require "perilune"

local function blocks(path)
  local file = io.open(path, "rb")
  local list, text, from, n = {}, nil, nil, 0
  for line in file and file:lines() or function() end do
    n = n + 1
    if text and line:find "^```" then
      list[#list + 1] = { from = from, text = table.concat(text, "\n") }
      text = nil
    elseif text then
      text[#text + 1] = line
    elseif line == "```lua" then
      text, from = {}, n
    end
  end
  if file then file:close() end
  return list
end

local function documents()
  local list = { "README.md" }
  for _, name in ipairs(assert(peri.files.list "docs")) do
    if name:find "%.md$" then list[#list + 1] = "docs/" .. name end
  end
  return list
end

local tests = {}
for _, path in ipairs(documents()) do
  local env = setmetatable({ print = function() end, peri = peri }, { __index = _G })
  local list = blocks(path)
  for i, block in ipairs(list) do
    local name = ("test_%s_line_%04d"):format(path:gsub("%W", "_"), block.from)
    tests[name] = function()
      -- newlines before the block, so that messages name the line in the file
      local chunk = assert(load(("\n"):rep(block.from) .. block.text, "@" .. path, "t", env))
      chunk()
      if i < #list then return end
      for key in pairs(env) do env[key] = nil end -- tests run in order: what the file made may go
    end
  end
end
return tests
