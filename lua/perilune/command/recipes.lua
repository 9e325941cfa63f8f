-- recipes.lua - perilune recipes: the recipes that there are, a line each.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"

local usage = "Lists the recipes of a folder and of those in it, by default the ones that came with the program: how "
  .. "to run each and what it is about."

-- "-- name.lua - what it is about": the last part.
local function first_line(path)
  for text in peri.files.lines(path) do
    if not text:find "^#!" then
      local about = text:match "^%-%-+%s*(.-)%s*$"
      return about and (about:gsub("^[%w_]+%.lua%s*%-%s*", "")) or ""
    end
  end
  return ""
end

-- Beside the checkout's library, or where an installation has them.
local function own_folder(place)
  if place.root then return place.root .. "/recipes" end
  local prefix = place.program and place.program:match "^(.*)/bin/[^/]+$"
  local folder = prefix and prefix .. "/share/perilune/recipes"
  return folder and peri.files.exists(folder) == "folder" and folder or nil
end

-- Paths of the Lua files below a folder, its own first.
local function scripts(folder, found)
  local files, message = peri.files.list(folder)
  if not files then return nil, message end
  local deeper = {}
  for _, file in ipairs(files) do
    local path = folder .. "/" .. file
    if peri.files.exists(path) == "folder" then deeper[#deeper + 1] = path
    elseif file:find "%.lua$" then found[#found + 1] = path end
  end
  for _, path in ipairs(deeper) do
    local ok, why = scripts(path, found)
    if not ok then return nil, why end
  end
  return found
end

return function(args, place)
  local values, words = arguments.read("recipes", "[FOLDER]", 0, 1, {}, args, usage)
  if not values then return words end
  local folder = words[1] or own_folder(place)
  local files, message = nil, "no recipes came with this program; they are in recipes/ of a source checkout"
  if folder then files, message = scripts(folder, {}) end
  if not files then
    io.stderr:write("perilune recipes: ", message, "\n")
    return 1
  end
  -- As short as one would type it: from the folder that one is in.
  local here = os.getenv "PWD"
  local rows, width = {}, 0
  for _, path in ipairs(files) do
    local about = first_line(path)
    if here and path:sub(1, #here + 1) == here .. "/" then path = path:sub(#here + 2) end
    rows[#rows + 1] = { path, about }
    width = math.max(width, #path)
  end
  for _, row in ipairs(rows) do print(("%-" .. width .. "s  %s"):format(row[1], row[2])) end
  io.stderr:write(#rows > 0 and "perilune run FILE --help says what a recipe takes\n"
    or "no Lua file in " .. folder .. "\n")
  return 0
end
