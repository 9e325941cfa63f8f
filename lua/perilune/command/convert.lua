-- convert.lua - perilune convert FROM TO: between Hugging Face folders and GGUF files, with quantisation. The command
-- line of perilune.weights.convert: asks before it overwrites, shows how far it is, says what it wrote and what was
-- lost.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local dtypes = require "perilune.dtypes"
local options = require "perilune.options"

local about = [[
FROM is a Hugging Face folder, a .gguf file or a llama2.c .bin file, TO a name that ends in .gguf, or a folder.
Norms and vectors stay f32; some matrices of q4_0 and the _K types get more bits, as in llama.cpp; rows that a type's
blocks do not divide get another type, which is said. A folder gets quantised weights as f32.]]

local types = dtypes.weights
local aliases = { q4_k = "q4_K", q5_k = "q5_K", q6_k = "q6_K", q4_k_m = "q4_K", q5_k_m = "q5_K" }

local spec = {
  type = { "", ("of the weights: %s; folders take the floats; as stored when left out"):format(
    table.concat(types, " ")) },
  shard_bytes = { 5000000000, "the most that one safetensors file holds", range = "[1, inf)" },
  no_tokenizer = { false, "leave the tokenizer out" },
  allow_loss = { false, "write a tokenizer that gives other ids than before; without it that is an error" },
  force = { false, "overwrite what is there (--overwrite is the same)" },
}

local function parse(args)
  local values, words = arguments.read("convert", "FROM TO", 2, 2, spec, args, about)
  if not values then return nil, words end
  local o = { from = words[1], to = words[2], shard_bytes = values.shard_bytes, no_tokenizer = values.no_tokenizer,
    allow_loss = values.allow_loss, force = values.force }
  if values.type == "" then return o end
  local lower = values.type:lower()
  o.type = aliases[lower] or lower
  for _, known in ipairs(types) do if known == o.type then return o end end
  io.stderr:write("perilune convert: --type: ", options.unknown("type", values.type, types), "\n")
  return nil, 2
end

-- ---- before and while ----------------------------------------------------------------------------

local function is_terminal(fd) return os.execute(("test -t %d"):format(fd)) == true end

-- Whether TO may be written: it is not there, --force, or somebody says yes.
local function may_write(o)
  local function same(path) return (path:gsub("/+$", "")) end
  if same(o.from) == same(o.to) then return nil, "FROM and TO are the same" end
  local kind = peri.files.exists(o.to)
  if not kind or o.force or (kind == "folder" and #(peri.files.list(o.to) or {}) == 0) then return true end
  if kind == "folder" and o.to:find "%.gguf$" then return nil, o.to .. " is a folder" end
  if kind ~= "folder" and not o.to:find "%.gguf$" then return nil, o.to .. " is a file, and no name of a .gguf file" end
  if not is_terminal(0) then return nil, ("%s exists; --force overwrites it"):format(o.to) end
  io.stderr:write(("%s exists. Overwrite it? [y/N] "):format(o.to))
  local answer = io.stdin:read "l"
  if not answer then io.stderr:write "\n" end -- Ctrl-D
  if (answer or ""):find "^%s*[yY]" then
    o.force = true
    return true
  end
  return nil, o.to .. " stays as it is"
end

-- A line that is written over, on a terminal alone: what shows it, and what takes it away when it closes.
local function progress_line()
  if not is_terminal(2) then return nil, nil end
  local said = -1
  local function show(done, total, name)
    local percent = total > 0 and math.floor(100 * done / total) or 100
    if percent == said then return end
    said = percent
    io.stderr:write(("\r%3d%%  %-50.50s"):format(percent, name))
  end
  return show, setmetatable({}, { __close = function()
    if said >= 0 then io.stderr:write("\r", (" "):rep(56), "\r") end
  end })
end

-- ---- afterwards ----------------------------------------------------------------------------------

local function grouped(n)
  local s, k = tostring(n), 1
  while k > 0 do s, k = s:gsub("^(%d+)(%d%d%d)", "%1,%2") end
  return s
end

local function size(bytes)
  if bytes < 1e6 then return ("%.1f kB"):format(bytes / 1e3) end
  return bytes < 1e9 and ("%.1f MB"):format(bytes / 1e6) or ("%.2f GB"):format(bytes / 1e9)
end

local function say(o, report)
  local out = { ("%s: %d tensors, %s parameters, %s"):format(o.to, report.tensors, grouped(report.parameters),
    size(report.bytes)) }
  if report.parameters > 0 then
    out[1] = out[1] .. (", %.2f bits a parameter"):format(8 * report.bytes / report.parameters)
  end
  local names, counts = {}, {}
  for dtype in pairs(report.types) do names[#names + 1] = dtype end
  table.sort(names, function(a, b)
    if report.types[a] ~= report.types[b] then return report.types[a] > report.types[b] end
    return a < b
  end)
  for i, dtype in ipairs(names) do counts[i] = ("%s %d"):format(dtype, report.types[dtype]) end
  if #counts > 0 then out[2] = "types: " .. table.concat(counts, ", ") end
  for _, f in ipairs(report.fallbacks) do
    out[#out + 1] = ("%s %s and not %s, whose blocks do not divide rows of %d: %s%s"):format(
      f.count == 1 and "1 tensor is" or f.count .. " tensors are", f.dtype, f.wanted, f.columns, f.first,
      f.count > 1 and " ..." or "")
  end
  io.stdout:write(table.concat(out, "\n"), "\n")
  for _, note in ipairs(report.notes) do io.stderr:write("perilune convert: ", note, "\n") end
end

return function(args)
  local o, status = parse(args)
  if not o then return status end
  local ok, err = may_write(o)
  local report
  if ok then
    local _ <close> = peri.no_grad()
    local show, line = progress_line()
    local shown <close> = line -- luacheck: ignore 211
    o.progress = show
    report, err = require("perilune.weights.convert").run(o)
  end
  if not report then
    io.stderr:write("perilune convert: ", err, "\n")
    return 1
  end
  say(o, report)
  return 0
end
