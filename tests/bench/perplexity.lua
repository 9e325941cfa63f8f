-- perplexity.lua - `perilune bench perplexity FILE ...`: models on the first 64 KiB of tinyshakespeare by
-- llama-perplexity's definition: windows of 512 tokens, of each only tokens 257 to 511 scored. A file may be
-- followed by =DTYPE (default: as stored). Weights are packed, as chat uses them.
--   --text FILE (tinyshakespeare.txt under PERILUNE_DATA)   --windows N (all)
local peri = require "perilune"
local recipe, models = require "perilune.run.recipe", require "perilune.models"

local files, text, most = {}, "text/tinyshakespeare.txt", math.huge
do
  local i = 1
  while i <= #arg do
    if arg[i] == "--text" then text, i = arg[i + 1], i + 1
    elseif arg[i] == "--windows" then most, i = tonumber(arg[i + 1]), i + 1
    else files[#files + 1] = arg[i] end
    i = i + 1
  end
end

local WINDOW, FIRST = 512, 257
local body = assert(peri.files.read(recipe.find(text, "a text: --text FILE"))):sub(1, 65536)

for _, given in ipairs(files) do
  local path, dtype = given:match "^(.-)=([%w_]+)$"
  path, dtype = path or given, dtype or "file"
  local model, tok = assert(models.load(path, { dtype = dtype, pack = true })), assert(peri.tokenizer.load(path))
  local ids = tok:encode(body, { add_special = false })
  local sum, n, began = 0, 0, peri.time()
  peri.no_grad(function ()
    for w = 1, math.min(#ids // WINDOW, most) do
      local scope <close> = peri.scope() -- luacheck: ignore 211
      local window = peri.tensor({ table.move(ids, (w - 1) * WINDOW + 1, w * WINDOW, 1, {}) }, "i64")
      local logp = model:token_logprobs(window, FIRST + 1) -- of tokens 257 .. 511, counted from 0
      sum, n = sum - logp:sum():item(), n + logp:numel()
    end
  end)
  print(("%-60s %-5s perplexity %.4f (%d tokens scored, %.1f s)"):format(path:match "[^/]+$", dtype, math.exp(sum / n), n,
    peri.time() - began))
end
