-- arguments.lua - the command line of every command that has flags: words and flags in any order, the flags that
-- some share, the model that they name.
local peri = require "perilune"
local flags = require "perilune.run.flags"

local M = {}

--- Flags of generation, for a command to add its own to. -1 stands for what the model's own
--- generation_config says.
--- @param more table  see perilune.flags
--- @return table
function M.generation_flags(more)
  local spec = {
    max_new_tokens = { 512, "most tokens of an answer (--max_tokens is the same)", range = "[1, inf)" },
    temperature = { -1.0, "0 takes the likeliest token; -1: the model's own setting", range = "[-1, inf)" },
    top_k = { -1, "draw from the k likeliest tokens; 0: all", range = "[-1, inf)" },
    top_p = { -1.0, "draw from the likeliest tokens that have this probability together", range = "[-1, 1]" },
    min_p = { -1.0, "draw from tokens with at least this share of the likeliest one's probability", range = "[-1, 1]" },
    repetition_penalty = { -1.0, "more than 1 makes tokens that occurred less likely", range = "[-1, inf)" },
    seed = { -1, "same seed, same text; -1: another one each time", range = "[-1, inf)" },
    stop = { "", "text that ends the answer" },
    dtype = { "auto", "of the weights: f32, bf16, f16, q8_0, ...; file: as stored; auto: f32 up to 2^28 of them" },
  }
  for name, entry in pairs(more or {}) do spec[name] = entry end
  return spec
end

--- Options of perilune.lm from these flags.
--- @param values table
--- @return table
function M.generation_options(values)
  local o = { max_new_tokens = values.max_new_tokens }
  for _, name in ipairs { "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed" } do
    if values[name] ~= -1 then o[name] = values[name] end -- what lies between is refused where it is used
  end
  if values.stop ~= "" then o.stop = values.stop end
  return o
end

-- Flags as other programs call them.
local other_names = { max_tokens = "max_new_tokens", n = "samples", overwrite = "force" }

-- Words that are no flags, and the rest. A flag that is no boolean takes the word behind it.
local function separate(spec, args)
  local words, rest, i = {}, {}, 1
  while i <= #args do
    local word = args[i]
    if word == "--" then
      table.move(args, i + 1, #args, #words + 1, words)
      break
    elseif word:find "^%-%-." or word == "-h" then
      local name = word:match "^%-%-([^=]+)"
      name = name and name:gsub("%-", "_")
      local own = name and not spec[name] and other_names[name]
      if own and spec[own] then word, name = "--" .. own .. word:sub(#name + 3), own end
      rest[#rest + 1] = word
      local entry = spec[name]
      local default = entry
      if type(entry) == "table" then default = entry[1] end
      local takes = entry ~= nil and type(default) ~= "boolean" or word == "--config"
      if takes and not word:find "=" and args[i + 1] then
        i = i + 1
        rest[#rest + 1] = args[i]
      end
    else
      words[#words + 1] = word
    end
    i = i + 1
  end
  return words, rest
end

--- Read a command line. On --help or a mistake it prints and returns nil and the exit status.
--- @param command string
--- @param usage string  what follows the command, as "MODEL [TEXT]"
--- @param least integer  words that there must be
--- @param most integer  words that there may be
--- @param spec table
--- @param args string[]
--- @param about string
--- @return table|nil values
--- @return string[]|integer words or status
function M.read(command, usage, least, most, spec, args, about)
  local words, rest = separate(spec, args)
  local line = ("usage: perilune %s %s%s"):format(command, usage, next(spec) and " [--FLAG VALUE ...]" or "")
  local values, message, is_help = flags.parse(spec, rest, line .. "\n" .. about)
  if is_help then
    print(message)
    return nil, 0
  end
  if values and #words < least then message = ("expected %s"):format(usage)
  elseif values and #words > most then
    message = ("%q is one word too many%s"):format(words[most + 1], usage:find "TEXT" and "; quote texts" or "")
  elseif values then return values, words end
  io.stderr:write(("perilune %s: %s\n%s\n"):format(command, message, line))
  return nil, 2
end

--- A raised message without the place in our own source.
--- @param message any
--- @return string
function M.plain(message)
  message = tostring(message)
  while message:find "^[^%s:]+%.lua:%d+: " do message = message:gsub("^[^%s:]+%.lua:%d+: ", "", 1) end
  return (message:gsub("\nstack traceback:.*$", ""))
end

--- Do a part of a command's work; what it raises is one line on the standard error, but Ctrl-C goes on.
--- @param command string
--- @param work function
--- @return boolean ok
--- @return any ...  what work returns
function M.attempt(command, work, ...)
  local results = table.pack(pcall(work, ...))
  if results[1] then return table.unpack(results, 1, results.n) end
  local message = M.plain(results[2]):gsub("^" .. command .. ": ", "")
  if message:find "interrupted$" then error("interrupted", 0) end
  io.stderr:write(("perilune %s: %s\n"):format(command, message))
  return false
end

--- Load the model that a command names; says why it cannot, in one line on the standard error.
--- @param command string
--- @param path string
--- @param values table  with dtype
--- @param opts table?  further options of perilune.lm.load
--- @return perilune.lm.Model|nil
function M.load(command, path, values, opts)
  local o = { dtype = values.dtype, pack = true }
  for k, v in pairs(opts or {}) do o[k] = v end
  local ok, lm, message = M.attempt(command, peri.lm.load, path, o)
  if not ok then return nil end
  if not lm then
    io.stderr:write(("perilune %s: %s\n"):format(command, message))
  elseif lm.widened then
    io.stderr:write(("perilune %s: the weights are %s and run as f32; --dtype file is faster and takes less memory\n")
      :format(command, lm.widened))
  end
  return lm
end

return M
