-- recipes.lua - perilune recipes: the recipes that there are, a line each.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"

local usage = "Lists the recipes of a folder, by default those that came with the program: how to run each and what it "
  .. "is about."

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

return function(args, place)
  local values, words = arguments.read("recipes", "[FOLDER]", 0, 1, {}, args, usage)
  if not values then return words end
  local folder = words[1] or own_folder(place)
  local files, message = nil, "no recipes came with this program; they are in recipes/ of a source checkout"
  if folder then files, message = peri.files.list(folder) end
  if not files then
    io.stderr:write("perilune recipes: ", message, "\n")
    return 1
  end
  -- As short as one would type it: from the folder that one is in.
  local here = os.getenv "PWD"
  if here and folder:sub(1, #here + 1) == here .. "/" then folder = folder:sub(#here + 2) end
  local rows, width = {}, 0
  for _, file in ipairs(files) do
    if file:find "%.lua$" then
      local path = folder .. "/" .. file
      rows[#rows + 1] = { path, first_line(path) }
      width = math.max(width, #path)
    end
  end
  for _, row in ipairs(rows) do print(("%-" .. width .. "s  %s"):format(row[1], row[2])) end
  io.stderr:write(#rows > 0 and "perilune run FILE --help says what a recipe takes\n"
    or "no Lua file in " .. folder .. "\n")
  return 0
end
