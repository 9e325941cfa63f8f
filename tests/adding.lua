-- adding.lua - the blocks of docs/design/adding.md, for tests/adding.sh.
--   adding.lua PAGE COPY   put them into a copy of the sources
--   adding.lua PAGE        run those that are marked as runs, in this folder
local page, copy = ...

-- { how = what the comment before a block says, text = the block } each.
local function blocks()
  local list, how, text = {}, nil, nil
  for line in io.lines(page) do
    if text and line == "```" then
      list[#list + 1] = { how = how, text = table.concat(text, "\n") .. "\n" }
      how, text = nil, nil
    elseif text then
      text[#text + 1] = line
    elseif line:find "^```" then
      if not how then error(page .. ": a block without a comment that says where it goes") end
      text = {}
    else
      how = line:match "^<!%-%- (.-) %-%->$" or how
    end
  end
  return list
end

local function read(path)
  local file <close> = assert(io.open(path, "r"))
  return file:read "a"
end

local function write(path, text)
  local file <close> = assert(io.open(path, "w"))
  assert(file:write(text))
end

-- text put beside the one place where mark stands in a file.
local function insert(path, side, mark, text, inline)
  local source = read(path)
  local from, to = source:find(mark, 1, true)
  if not from then error(("%s: there is no %s"):format(path, mark)) end
  if source:find(mark, to + 1, true) then error(("%s: %s stands there more than once"):format(path, mark)) end
  if inline then write(path, source:sub(1, to) .. " " .. text:gsub("\n$", "") .. source:sub(to + 1))
  elseif side == "behind" then write(path, source:sub(1, to) .. "\n" .. text:gsub("\n$", "") .. source:sub(to + 1))
  else write(path, source:sub(1, from - 1) .. text .. source:sub(from)) end
end

local runs = 0
for _, block in ipairs(blocks()) do
  local new = block.how:match "^new (%S+)$"
  local path, side, mark, inline = block.how:match '^(%S+), (%l+) "(.*)"(.*)$'
  if block.how == "run" then
    if not copy then
      local env = setmetatable({ peri = require "perilune" }, { __index = _G })
      assert(load(block.text, "=" .. block.text:match "[^\n]*", "t", env))()
      runs = runs + 1
    end
  elseif copy and new then write(copy .. "/" .. new, block.text)
  elseif copy and path then
    insert(copy .. "/" .. path, side, (mark:gsub('\\"', '"')), block.text, inline:find "in the line" ~= nil)
  elseif not (new or path) then error(("%s: %q says nothing"):format(page, block.how)) end
end
if not copy then print(("%d blocks ran"):format(runs)) end
