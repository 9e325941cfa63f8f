-- post_training.lua - `perilune bench post_training`: optimizer steps of SFT, DPO and GRPO on SmolLM2-135M with LoRA of
-- rank 16 on all linear layers, f32, beside TRL's on the same rows in the same run. SFT: 8 questions of GSM8K with
-- their answers; DPO: 4 questions with the right answer and another's; GRPO: 4 questions x 8 answers of 128 tokens
-- (none ends early). Medians of the steps behind the first, one process after the other with the same threads. Where the
-- machine has other work the ratio of processor times (user and system, of all threads) says more than that of seconds.
--   --methods sft,dpo,grpo  --steps N (3)  --model FOLDER  --data FILE  --trl on|off (on)  --checkpointing on|off (off)
--   --python PATH (that of tests/bench/peers/install.sh)
-- Peer: pip install trl peft in that environment; the model folder is one that `perilune convert FILE.gguf FOLDER
-- --type f32` writes. TRL runs in its default (activations computed again), and with them kept where that fits.
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local home = os.getenv "PERILUNE_PEERS" or (os.getenv "HOME" .. "/.cache/perilune-peers")
local recipe, models, peft = require "perilune.run.recipe", require "perilune.models", require "perilune.peft"
local rl, optim, gsm8k = require "perilune.rl", require "perilune.optim", require "perilune.tasks.gsm8k"

local opts = { methods = "sft,dpo,grpo", steps = 3, model = home .. "/models/smollm2-hf", data = "gsm8k/train.jsonl",
  trl = "on", checkpointing = "off", python = home .. "/bin/python", micro = 2 }
for i = 1, #arg, 2 do
  local key = arg[i]:match "^%-%-(%a+)$"
  if opts[key] == nil then error("unknown option " .. arg[i], 0) end
  opts[key] = type(opts[key]) == "number" and tonumber(arg[i + 1]) or arg[i + 1]
end

local data = assert(gsm8k.rows(recipe.find(opts.data, "GSM8K's rows: --data FILE"), 9))

local function answered(row, other)
  return { prompt = gsm8k.prompt(row, true), completion = { { role = "assistant", content = gsm8k.solution(other) } } }
end

-- What each method learns from: rows, rows of an update, rows of a pass of TRL.
local jobs = {
  sft = { rows = {}, batch = 8, micro = 8, wanted = 3 },
  dpo = { rows = {}, batch = 4, micro = 4, wanted = 3 },
  grpo = { rows = {}, batch = 32, micro = 8, group = 8, tokens = 128, wanted = 4 },
}
for i = 1, 8 do
  jobs.sft.rows[i] = answered(data[i], data[i])
  if i <= 4 then
    local right, wrong = answered(data[i], data[i]), answered(data[i], data[i + 1])
    jobs.dpo.rows[i] = { prompt = right.prompt, chosen = right.completion, rejected = wrong.completion }
    jobs.grpo.rows[i] = { prompt = right.prompt }
  end
end

local function resident()
  for line in io.lines "/proc/self/status" do
    local kb = line:match "^VmHWM:%s*(%d+)"
    if kb then return tonumber(kb) / 2 ^ 20 end
  end
end

-- The median of all but the first; of one, itself.
local function median(list)
  local rest = table.move(list, math.min(2, #list), #list, 1, {})
  table.sort(rest)
  return rest[(#rest + 1) // 2]
end

-- ---- the peer -----------------------------------------------------------------------------------

-- Medians of seconds and of processor seconds, GiB resident.
local function trl(method, checkpointing)
  local path, seconds, cpu, most = os.tmpname(), {}, {}, 0
  local job = jobs[method]
  assert(peri.files.write(path, peri.json.encode { rows = job.rows, batch = job.batch, micro = job.micro,
    group = job.group, tokens = job.tokens }))
  local threads = peri.info().threads
  local pipe = assert(io.popen(("CHECKPOINTING=%d PEER_THREADS=%d OMP_NUM_THREADS=%d %s %s/peers/trl_post.py %s %s %s "
    .. "%d 2>%s.log"):format(checkpointing and 1 or 0, threads, threads, opts.python, here, method, opts.model, path,
    opts.steps, path)))
  for line in pipe:lines() do
    local s, c, gib = line:match "step ([%d.]+) ([%d.]+) ([%d.]+)"
    if s then
      seconds[#seconds + 1], cpu[#cpu + 1], most = tonumber(s), tonumber(c), math.max(most, tonumber(gib))
    end
  end
  pipe:close()
  if #seconds == 0 then
    print(("TRL   %-4s made no step: %s"):format(method, (peri.files.read(path .. ".log") or ""):match "([^\n]*)\n?$"))
    return nil
  end
  os.remove(path)
  os.remove(path .. ".log")
  return { seconds = median(seconds), cpu = median(cpu), resident = most }
end

-- ---- ours ---------------------------------------------------------------------------------------

local tok, model, adapter, opt
local function fresh()
  model = assert(models.load(opts.model, { pack = true }))
  adapter = peft.lora(model, { r = 16, alpha = 32 })
  model:checkpointing(opts.checkpointing == "on")
  opt = optim.AdamW(adapter:parameters(), { lr = 1e-5, weight_decay = 0 })
end

local steps = {}

function steps.sft()
  local stepper = peri.algo.sft.new { model = model, tokenizer = tok, rows = jobs.sft.rows, optimizer = opt,
    batch_size = 2, accumulate = 4, max_length = 1024, probe = false }
  return function () stepper:step() end
end

function steps.dpo()
  local stepper = peri.algo.dpo.new { model = model, tokenizer = tok, rows = jobs.dpo.rows, optimizer = opt,
    adapter = adapter, batch_size = 4, micro = 1, max_length = 1024, probe = false }
  return function () stepper:step() end
end

function steps.grpo()
  return function ()
    local batch = rl.rollout(model, tok, jobs.grpo.rows, function (_, text) return #text % 7 end,
      { group = jobs.grpo.group, max_new_tokens = jobs.grpo.tokens, stop = {} })
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
  end
end

local function ours(method)
  fresh()
  local step, seconds, cpu = steps[method](), {}, {}
  peri.reset_peak()
  for i = 1, opts.steps do
    local scope <close> = peri.scope() -- luacheck: ignore 211
    local t0, c0 = peri.time(), os.clock()
    step()
    seconds[i], cpu[i] = peri.time() - t0, os.clock() - c0
  end
  return { seconds = median(seconds), cpu = median(cpu), resident = resident(), tensors = peri.memory().peak / 2 ^ 30 }
end

-- ---- the table ----------------------------------------------------------------------------------

local function load_average()
  local file = io.open "/proc/loadavg"
  local text = file and file:read "l" or "unknown"
  if file then file:close() end
  return text:match "^%S+"
end

local function row(name, r, ratio, wanted)
  print(("%-22s %9.1f %9.1f %9.2f %9s %9s"):format(name, r.seconds, r.cpu, r.resident,
    r.tensors and ("%.2f"):format(r.tensors) or "", ratio and ("%.2f (%g wanted)"):format(ratio, wanted) or ""))
end

tok = assert(peri.tokenizer.load(opts.model))
local info = peri.info()
print(("%s, %s, %d threads; load %s"):format(info.processor, info.simd, info.threads, load_average()))
print(("%-22s %9s %9s %9s %9s %9s"):format("a step of", "seconds", "processor", "GiB", "tensors", "TRL / ours"))
for method in opts.methods:gmatch "[^,]+" do
  if not steps[method] then error("unknown method " .. method, 0) end
  local peers = {}
  if opts.trl == "on" and peri.files.exists(opts.python) then
    peers[1] = trl(method, true)
    if peers[1] then row(method .. ", TRL", peers[1]) end
    peers[2] = method ~= "grpo" and trl(method, false) or nil -- of which that needs 16 to 22 GiB
    if peers[2] then row(method .. ", TRL, all kept", peers[2]) end
  end
  local mine, wall, cpu = ours(method), math.huge, math.huge
  for _, peer in pairs(peers) do wall, cpu = math.min(wall, peer.seconds), math.min(cpu, peer.cpu) end
  row(method .. ", ours", mine, wall < math.huge and wall / mine.seconds or nil, jobs[method].wanted)
  if cpu < math.huge then print(("%-22s processor time: %.2f; load %s"):format("", cpu / mine.cpu, load_average())) end
end
