-- embed.lua - perilune embed MODEL [TEXT ...]: vectors of texts. Those of lines of the standard input where none is
-- given; as JSON lines on the standard output, or as a file of NumPy or safetensors.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local embed = require "perilune.lm.embed"

local about = [[
Makes a vector of each text, or of each line of the standard input. How tokens become one vector is what a
folder of sentence-transformers says, else their mean. Without --out every vector is one JSON line.
]]

local function complain(message, status)
  io.stderr:write("perilune embed: ", message, "\n")
  return status or 1
end

local function read_lines()
  local list = {}
  for line in io.lines() do list[#list + 1] = (line:gsub("\r$", "")) end
  return list
end

-- Numbers of f32, as short as reads back to the same bits.
local function numbers(vector)
  local list = {}
  for i, v in ipairs(vector) do
    if v ~= v or v == math.huge or v == -math.huge then error("a vector holds a number that JSON has not", 0) end
    list[i] = ("%.9g"):format(v)
  end
  return table.concat(list, ",")
end

local function write_json(file, texts, vectors)
  for i, vector in ipairs(vectors:tolist()) do
    local line = ('{"text":%s,"embedding":[%s]}\n'):format(peri.json.encode(texts[i]), numbers(vector))
    local ok, message = file:write(line)
    if not ok then return nil, message end
  end
  return file:flush()
end

local writers = {}

function writers.npy(path, _, vectors) return peri.npy.save(path, vectors) end

function writers.safetensors(path, _, vectors) return peri.safetensors.save(path, { embeddings = vectors }) end

function writers.jsonl(path, texts, vectors)
  local file, message = io.open(path, "wb")
  if not file then return nil, message end
  local ok
  ok, message = write_json(file, texts, vectors)
  local closed, why = file:close()
  if not ok then return nil, message end
  return closed, why
end

-- Options of the encoder and of one call that flags stand for.
local function choices(values)
  local load, call = { dtype = values.dtype }, { batch_size = values.batch_size }
  if values.pooling ~= "" then
    load.pooling = {}
    for name in values.pooling:gmatch "[^,]+" do table.insert(load.pooling, name) end
  end
  if values.normalize ~= "auto" then load.normalize = values.normalize == "true" end
  if values.max_length > 0 then call.max_length = values.max_length end
  if values.prompt ~= "" then call.prompt = values.prompt end
  if values.prompt_name ~= "" then call.prompt_name = values.prompt_name end
  call.truncation = values.truncation
  return load, call
end

return function (args)
  local spec = {
    pooling = { "", "mean, cls, last, max, mean_sqrt_len, weighted_mean, or several with commas" },
    normalize = { "auto", "vectors of length 1; auto: as the folder says", choices = { "auto", "true", "false" } },
    max_length = { 0, "tokens of a text; 0: as many as model and tokenizer take", range = "[0, inf)" },
    truncation = { true, "cut longer texts and say how many; otherwise they are an error" },
    batch_size = { 32, "texts that are read at once", range = "[1, inf)" },
    prompt = { "", "text to put before each" }, prompt_name = { "", "the same, by the folder's name for it" },
    dtype = { "f32", "of the weights: f32, bf16, f16, q8_0, ...; file: as stored" },
    out = { "", "file to write: .npy, .safetensors or .jsonl" },
  }
  local values, words = arguments.read("embed", "MODEL [TEXT ...]", 1, math.huge, spec, args, about)
  if not values then return words end
  local writer = writers[values.out:match "%.(%w+)$"]
  if values.out ~= "" and not writer then
    return complain(("--out %s: the name ends in none of .npy, .safetensors, .jsonl"):format(values.out), 2)
  end
  local load, call = choices(values)
  local ok, encoder, message = arguments.attempt("embed", embed.load, words[1], load)
  if not ok then return 2 end
  if not encoder then return complain(message) end
  local texts = table.move(words, 2, #words, 1, {})
  if #texts == 0 or #texts == 1 and texts[1] == "-" then texts = read_lines() end
  if #texts == 0 then return complain "there are no texts" end
  local vectors, report
  ok, vectors, report = arguments.attempt("embed", encoder.encode, encoder, texts, call)
  if not ok then return 1 end
  if report.truncated > 0 then
    complain(("%d of %d texts were longer than %d tokens and are cut"):format(report.truncated, #texts,
      call.max_length or encoder.max_length))
  end
  if values.out ~= "" then ok, message = writer(values.out, texts, vectors)
  else ok, message = write_json(io.stdout, texts, vectors) end
  if not ok then return complain(tostring(message)) end
  return 0
end
