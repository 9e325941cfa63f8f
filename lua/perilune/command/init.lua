-- command - the command line of the program. A command is one file of this folder and nothing else: its first line says
-- `-- NAME.lua - perilune NAME WHAT: about it.`, which --help shows, and it returns
--   function (args, place) -> status, or a function that is the program's and its arguments (what `run` runs)
-- args are the words behind the name, place what is around: program (its path), root (the checkout, none outside one),
-- enter(folder), words (all of them), script() (args[1] is one: arg is set as for it). Words behind "[ARG ...]" are not
-- the program's: no option is looked for there.
-- This file runs before perilune is loaded, so that --threads and --max_bytes reach the context that opens then.
local ERROR, USAGE = 1, 2
local width = 80

-- "chat.lua - perilune chat MODEL: talk to a model." of a file -> { name =, what =, about = }
local function header_of(name, text)
  local head = {}
  for line in text:gmatch "[^\n]*" do
    local comment = line:match "^%-%- ?(.*)"
    if not comment then break end
    head[#head + 1] = comment
  end
  local typed = name:gsub("_", "-") -- check_env.lua is perilune check-env
  local own = ("%s.lua - perilune %s"):format(name, typed):gsub("[%.%-]", "%%%0")
  local what, about = table.concat(head, " "):match("^" .. own .. " ?(.-): (.-)%.%f[%s\0]")
  return what and { name = typed, what = what, about = about }
end

-- The first lines of a command's file, wherever the library's files are.
local function header_of_command(name, place)
  local path, text = package.searchpath("perilune.command." .. name, package.path), nil
  if path then
    local file <close> = assert(io.open(path, "r"))
    text = file:read(2048)
  end
  return header_of(name, text or place.source("perilune/command/" .. name .. ".lua") or "")
end

-- What is known of a command, false where there is none of that name; read when it is asked for.
local function commands_of(place)
  return setmetatable({}, { __index = function (all, name)
    local known = name:find "^%l[%l%d_%-]*$" and header_of_command((name:gsub("%-", "_")), place) or false
    all[name] = known
    return known
  end })
end

-- Names in order. Files without such a first line are parts of others.
local function names_of(all, place)
  local names = {}
  for _, name in ipairs(place.list "command") do
    if all[name] then names[#names + 1] = all[name].name end
  end
  table.sort(names)
  return names
end

-- Text in lines of a width, each but the first behind an indent.
local function wrap(text, indent)
  local lines, at = {}, ""
  for word in text:gmatch "%S+" do
    if at ~= "" and indent + #at + 1 + #word > width then
      lines[#lines + 1], at = at, word
    else
      at = at == "" and word or at .. " " .. word
    end
  end
  lines[#lines + 1] = at
  return table.concat(lines, "\n" .. (" "):rep(indent))
end

local function row(first, text)
  if #first > 20 then return ("  %s\n%s%s\n"):format(first, (" "):rep(23), wrap(text, 23)) end
  return ("  %-20s %s\n"):format(first, wrap(text, 23))
end

local function usage_of(all, place)
  local out = { "usage: perilune [OPTION ...] COMMAND [ARG ...]\n" }
  local function add(first, text) out[#out + 1] = row(first, text) end
  for _, name in ipairs(names_of(all, place)) do
    local command = all[name]
    add(command.what == "" and name or name .. " " .. command.what, command.about)
  end
  add("COMMAND --help", "what a command takes")
  add("--version", "print the version")
  add("--help", "print this text")
  out[#out + 1] = "options:\n"
  add("-e CODE", "run this Lua first, or only this; peri is there as a global")
  add("--threads N", "threads of the ops, 1 to 1024 (default, and 0: one for each processor)")
  add("--max_bytes SIZE", "limit on the memory of tensors: 4G, 512M, none (default: 7/8 of the machine's or the "
    .. "container's memory)")
  out[#out + 1] = "environment: " .. wrap("PERI_SIMD=portable|avx2|avx512, PERI_THREADS=N, PERI_SEED=N, "
    .. "PERI_MAX_BYTES=SIZE, PERI_SANDBOX=FILE, PERILUNE_LUA=FOLDER", 13) .. "\n"
  return table.concat(out)
end

-- ---- options of every command ----

local function is_thread_count(text)
  local n = text:match "^%d+$" and math.tointeger(tonumber(text))
  return n ~= nil and n <= 1024
end

-- name -> { what a value is, whether one will do, the variable that the context reads }
local own_options = {
  ["--threads"] = { "a number from 0 to 1024 (0: one for each processor)", is_thread_count, "PERI_THREADS" },
  ["--max_bytes"] = { "a size such as 4G, 512M or none", function (text) return text ~= "" end, "PERI_MAX_BYTES" },
  ["-e"] = { "Lua code", function () return true end },
}

-- Take an option out of words[at]: true, or nil when there is none, or false and a message.
local function take_option(words, at, found)
  local word = words[at] or ""
  local name, value = word:match "^(%-%-[%w_]+)=(.*)$"
  name = name or word
  local option = own_options[name]
  if not option then return nil end
  local taken = value and 1 or 2
  value = value or words[at + 1]
  if not value or value == "" and name ~= "-e" then return false, ("%s needs %s"):format(name, option[1]) end
  if not option[2](value) then return false, ("%s %s: expected %s"):format(name, value, option[1]) end
  if option[3] then found[option[3]] = value else found[#found + 1] = value end
  for _ = 1, math.min(taken, #words - at + 1) do table.remove(words, at) end
  return true
end

-- Options before the command, and behind it where they are the program's.
local function take_options(words, all, found)
  local took, message
  repeat took, message = take_option(words, 1, found) until not took
  local command = words[1] and all[words[1]]
  if took == false or not command then return message end
  local others, at = command.what:find "%[ARG %.%.%.%]" ~= nil, 2
  while words[at] and words[at] ~= "--" do
    took = nil
    if words[at] ~= "-e" then took, message = take_option(words, at, found) end
    if took == false then return message end
    if not took and others and not words[at]:find "^%-%-" then break end
    if not took then at = at + 1 end
  end
end

-- ---- what is run ----

local function complain(text, status)
  io.stderr:write("perilune: ", text, "\n")
  return status
end

-- The global arg as lua has it: word `script` at 0, what stands before it at negative places.
local function set_arg(place, script)
  local list = { [-script] = place.program }
  for i, word in ipairs(place.words) do list[i - script] = word end
  rawset(_G, "arg", list)
end

-- Chunks of -e, compiled before any runs.
local function code_of(found)
  local chunks = {}
  for i, text in ipairs(found) do
    local chunk, message = load(text, "=(command line)", "t")
    if not chunk then return nil, message end
    chunks[i] = chunk
  end
  return chunks
end

local function unknown(name, names, readable)
  local near = require("perilune.options").nearest(name, names) -- what starts well does not read it here
  if not near and readable then near = "run " .. name end
  return ("no command is called '%s'%s (perilune --help lists them)"):format(name,
    near and ("; did you mean '%s'?"):format(near) or "")
end

--- What a command line asks for. start() of the place loads perilune.
--- @param words string[]  without the program
--- @param place table  program, root and enter as above; setenv(name, value), start(), version, and list(room) and
--- source(file) of the library's own files
--- @return integer|function[]  status, or chunks to be run first
--- @return function? command
--- @return string[]? args
--- @return table? place
return function (words, place)
  local all = commands_of(place)
  local found = {}
  local message = take_options(words, all, found)
  if message then return complain(message, USAGE) end
  local name = words[1]
  if name == "--version" then
    print("perilune " .. place.version)
    return 0
  elseif name == "--help" or name == "-h" then
    io.write(usage_of(all, place))
    return 0
  elseif not name and #found == 0 then
    io.stderr:write(usage_of(all, place))
    return USAGE
  end
  if name and not all[name] and (#found == 0 or name:find "^%-") then
    local file = io.open(name, "r")
    if file then file:close() end
    return complain(unknown(name, names_of(all, place), file ~= nil), USAGE)
  end
  local chunks
  chunks, message = code_of(found)
  if not chunks then return complain(message, ERROR) end
  for variable, value in pairs(found) do
    if type(variable) == "string" then place.setenv(variable, value) end
  end
  place.start()
  if #chunks > 0 then rawset(_G, "peri", require "perilune") end
  place.words = words
  set_arg(place, name and 1 or 0)
  if not name then return chunks end
  local args = table.move(words, all[name] and 2 or 1, #words, 1, {})
  function place.script() set_arg(place, #words - #args + 1) end -- args[1] is a script
  local file = all[name] and name:gsub("%-", "_") or "run" -- -e CODE FILE
  return chunks, require("perilune.command." .. file), args, place
end
