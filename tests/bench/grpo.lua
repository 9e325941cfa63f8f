-- grpo.lua - `perilune bench grpo`: one GRPO step of SmolLM2-135M, LoRA of rank 16 on all linear layers, f32,
-- 4 prompts x 8 samples x 128 new tokens (none ends early), beside TRL's on the same model and prompts.
--   --steps N (2)  --model FOLDER  --data FILE  --trl on|off (on)
-- Peer: pip install trl peft in the virtual environment of tests/bench/peers/install.sh; the model folder is
-- written by tests/bench/peers/smollm2_folder.py.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local home = os.getenv "PERILUNE_PEERS" or (os.getenv "HOME" .. "/.cache/perilune-peers")
local recipe, models, peft = require "perilune.run.recipe", require "perilune.models", require "perilune.peft"
local rl, optim, gsm8k = require "perilune.rl", require "perilune.optim", require "perilune.tasks.gsm8k"

local opts = { steps = 2, model = home .. "/models/smollm2-hf", data = "gsm8k/train.jsonl", trl = "on", micro = 2 }
for i = 1, #arg, 2 do
  local key = arg[i]:match "^%-%-(%a+)$"
  if opts[key] == nil then error("unknown option " .. arg[i], 0) end
  opts[key] = type(opts[key]) == "number" and tonumber(arg[i + 1]) or arg[i + 1]
end

local data = assert(gsm8k.rows(recipe.find(opts.data, "GSM8K's rows: --data FILE"), 4))
local PROMPTS, GROUP, NEW = 4, 8, 128

local function resident()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmHWM:%s*(%d+)"
    if kb then return tonumber(kb) / 2 ^ 20 end
  end
end

-- ---- the peer, before our model takes memory: it needs 16 to 22 GiB ------------------------------

local function trl()
  local python = home .. "/bin/python"
  if opts.trl ~= "on" or not peri.files.exists(python) then return nil end
  local path, lines, best = os.tmpname(), {}, nil
  for i, row in ipairs(data) do lines[i] = peri.json.encode { prompt = row.question .. "\n" .. gsm8k.instruction } end
  assert(peri.files.write(path, table.concat(lines, "\n") .. "\n"))
  local pipe = assert(io.popen(("%s %s/peers/trl_grpo.py %s %s %d 2>/dev/null"):format(python, here, opts.model, path,
    opts.steps)))
  for line in pipe:lines() do
    local seconds, gib = line:match "step ([%d.]+) ([%d.]+)"
    if seconds then
      best = math.min(best or math.huge, tonumber(seconds))
      print(("TRL   %6.1f s, %s GiB resident"):format(seconds, gib))
    end
  end
  pipe:close()
  os.remove(path)
  if not best then print "TRL   made no step (out of memory?)" end
  return best
end

print(peri.info().processor .. ", " .. peri.info().simd)
local theirs = trl()

-- ---- ours ---------------------------------------------------------------------------------------

local tok = assert(peri.tokenizer.load(opts.model))
local model = assert(models.load(opts.model, { pack = true }))
local adapter = peft.lora(model, { r = 16, alpha = 32 })
local opt = optim.AdamW(adapter:parameters(), { lr = 1e-5, weight_decay = 0 })
local rows = {}
for i = 1, PROMPTS do rows[i] = { prompt = gsm8k.prompt(data[i], true) } end

local function step()
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local t0 = peri.time()
  local batch = rl.rollout(model, tok, rows, function (_, text) return #text % 7 end,
    { group = GROUP, max_new_tokens = NEW, stop = {} })
  local t1 = peri.time()
  local advantage, weight = rl.advantages(batch)
  local tokens = weight:sum():item()
  for group in rl.groups(batch, advantage, weight, true) do
    local prompt = rl.shared_prompt(model, group.prompt)
    for part in group:parts(opts.micro) do
      local logp = rl.completion_logprobs(model, prompt, part.completions)
      rl.clipped(logp, part.logprobs, part.advantage, part.weight, { tokens = tokens }):backward()
    end
    prompt:backward()
  end
  opt:step { clip = 1 }:zero_grad()
  return peri.time() - t0, t1 - t0
end

local ours = {}
for i = 1, opts.steps do
  local all, sampling = step()
  ours[i] = all
  print(("ours  %6.1f s (%.1f sampling, %.1f learning), %.2f GiB resident, %.2f GiB of tensors"):format(all, sampling,
    all - sampling, resident(), peri.memory().peak / 2 ^ 30))
end

table.sort(ours)
if theirs then print(("TRL's fastest over our slowest: %.2f (4 wanted)"):format(theirs / ours[#ours])) end
