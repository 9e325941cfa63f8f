-- rollout.lua - `perilune bench rollout`: completions of uneven length by the engine, whose rows leave when they end and
-- whose waiting prompts enter when others have, beside the same engine with every batch padded to its longest
-- completion, interleaved in one run. Lengths are geometric, cut at a limit.
--   --model tiny|PATH (tiny: that of recipes/r1_zero.lua)  --reps N (7)  --sequences N (64)  --rows N (16: at once in
--   the second half of the table)  --mean N (12)  --most N (64)  --prompt N (8: tokens of each prompt)
-- Columns: milliseconds (least of the repetitions), tokens a second, rows stepped for each token made (1 is the ideal),
-- how much of the time that the ideal would take at the padded run's pace for a row, and the speed over padding.
local peri = require "perilune"
local batches = require "perilune.text.batch"
local engines = require "perilune.decode.engine"
local generate = require "perilune.decode.generate"
local options = require "perilune.options"

local opts = { model = "tiny", reps = 7, sequences = 64, rows = 16, mean = 12, most = 64, prompt = 8 }
for i = 1, #arg, 2 do
  local key = arg[i]:match "^%-%-(%a+)$"
  if opts[key] == nil then error("unknown option " .. arg[i], 0) end
  opts[key] = type(opts[key]) == "number" and math.tointeger(tonumber(arg[i + 1])) or arg[i + 1]
end

peri.seed(1)
local models = require "perilune.models"
local model
if opts.model == "tiny" then
  model = models.llama.new({ model_type = "llama", vocab_size = 16, hidden_size = 128, intermediate_size = 344,
    num_hidden_layers = 4, num_attention_heads = 4, num_key_value_heads = 4, max_position_embeddings = 2048 },
    { std = 0.08 })
else model = assert(models.load(opts.model, { dtype = "file", pack = true })) end

-- Lengths with the chance 1 / mean to end at each token.
local rng, lengths, total, longest = peri.rng(2), {}, 0, 0
for i = 1, opts.sequences do
  local n = 1
  while n < opts.most and rng:uniform() >= 1 / opts.mean do n = n + 1 end
  lengths[i], total, longest = n, total + n, math.max(longest, n)
end
local lists = {}
for i = 1, opts.sequences do
  lists[i] = {}
  for k = 1, opts.prompt do lists[i][k] = rng:int(1, (model.settings.vocab) - 1) end
end
local prompts = batches.pad(lists, { side = "left" })

-- Seconds and rows stepped for sequences of these lengths, so many at once.
local function run(batch, most, rows)
  local o = options.fill("rollout", { max_new_tokens = opts.most, stop = {} }, generate.defaults)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local began, stepped, made = peri.time(), 0, {}
  local engine <close> = engines.new(model, { rows = rows, wait = math.max(1, rows // 4) })
  engine:listen(function (list, ids, logp)
    stepped = stepped + #list
    made[#made + 1] = { ids, logp }
  end)
  for i, request in ipairs(engine:submit_batch(batch, o, { seed = 1, offset = 0 })) do
    request.sequences[1].most = most[i]
  end
  engine:run()
  local seconds = peri.time() - began
  for _, pair in ipairs(made) do
    pair[1]:release()
    pair[2]:release()
  end
  return seconds, stepped
end

local function leaving(rows) return run(prompts, lengths, rows) end

-- One static batch of so many rows after the other, each as long as its longest completion.
local function padded(rows)
  local seconds, stepped = 0, 0
  for first = 1, opts.sequences, rows do
    local n, most, all = math.min(rows, opts.sequences - first + 1), 0, {}
    for i = first, first + n - 1 do most = math.max(most, lengths[i]) end
    for i = 1, n do all[i] = most end
    local s, k = run(prompts:rows(first, n), all, n)
    seconds, stepped = seconds + s, stepped + k
  end
  return seconds, stepped
end

print(("%s, %s, %d threads: %d sequences of %.1f tokens in the mean, the longest %d, prompts of %d"):format(
  opts.model == "tiny" and "model of r1_zero" or opts.model:match "[^/]*$", peri.info().simd, peri.threads(),
  opts.sequences, total / opts.sequences, longest, opts.prompt))
print(("%-28s %9s %10s %14s %10s %14s"):format("", "ms", "tok/s", "rows / token", "of ideal", "over padding"))
for _, rows in ipairs { opts.sequences, opts.rows } do
  local best, steps = { math.huge, math.huge }, {}
  for _ = 1, opts.reps do
    for k, fn in ipairs { padded, leaving } do
      local seconds, stepped = fn(rows)
      best[k], steps[k] = math.min(best[k], seconds), stepped
    end
  end
  local ideal = best[1] * total / steps[1]
  for k, name in ipairs { "padded to the longest", "rows leave" .. (rows < opts.sequences and " and enter" or "") } do
    print(("%-28s %9.1f %10.0f %14.2f %9.0f %% %14s"):format(("%s, %d at once"):format(name, rows), 1e3 * best[k],
      total / best[k], steps[k] / total, 100 * ideal / best[k], k == 2 and ("%.2f"):format(best[1] / best[2]) or ""))
  end
end
