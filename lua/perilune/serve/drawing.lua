-- drawing.lua - samples for the training service: requests that wait for the same weights draw together, a token of
-- each at a step, and each gives what it would give alone.
local peri = require "perilune"
local queues = require "perilune.serve.queue"

local M = {}

local function prompt_logprobs(model, prompt)
  if #prompt < 2 then return {} end
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local guard <close> = peri.no_grad() -- luacheck: ignore 211
  return model:token_logprobs(peri.tensor({ prompt }, "i64"), 2):tolist()[1]
end

local function submit(lm, job)
  local b = job.body
  local p = b.sampling_params
  local stop = p.stop
  local none = type(stop) == "table" and #stop == 0
  job.generation = lm:submit(b.prompt, { max_new_tokens = p.max_tokens, samples = b.num_samples,
    temperature = p.temperature, top_k = math.max(p.top_k, 0), top_p = p.top_p, seed = p.seed, min_p = 0,
    repetition_penalty = 1, greedy = p.temperature == 0, ignore_stop = stop ~= nil, stop = not none and stop or nil,
    remember = false })
  if b.prompt_logprobs then job.scores = prompt_logprobs(lm.model, b.prompt) end
end

local function drawn(job)
  job.generation:check()
  local result = { sequences = {}, prompt_logprobs = job.scores }
  for i, r in ipairs(job.generation.results) do
    result.sequences[i] = { tokens = r.tokens, logprobs = r.logprobs,
      stop_reason = r.reason == "length" and "length" or "stop" }
  end
  return result
end

-- Begin a job, or say to its client why it cannot.
local function begin(lm, job)
  local ok, message = pcall(submit, lm, job)
  if not ok then queues.fail(job.future, message, true) end
end

-- Whether a job has come to its end; then its future has what it is.
local function ended(job)
  if job.future.done then return true end
  if not job.generation.done then return false end
  local ok, result = pcall(drawn, job)
  if ok then queues.settle(job.future, "sample", result) else queues.fail(job.future, result, false) end
  return true
end

--- The steps of a request for samples, and of all that join it.
--- @param base perilune.serve.Base
--- @param lm perilune.lm.Model
--- @param queue perilune.serve.Queue
--- @param first table  the job: sampler, body
--- @param adapter table?  that its weights are in; nil: the base model
--- @return fun(): table|nil
function M.steps(base, lm, queue, first, adapter)
  local running = {}
  local function is_ours(job) return job.sampler == first.sampler end
  local function join(job)
    begin(lm, job)
    running[#running + 1] = job
  end
  local function step()
    local begun = #running > 0
    if not begun then join(first) end
    if not (begun and queue:has(function (job) return not is_ours(job) end)) then -- others wait: they come next
      for _, job in ipairs(queue:take_all(is_ours)) do join(job) end
    end
    local ok, message = pcall(lm.step, lm)
    if not ok then -- the pass that all share
      lm:reset()
      for i = 2, #running do queues.fail(running[i].future, message, false) end
      error(message, 0)
    end
    local left, open = { first }, not ended(first)
    for i = 2, #running do
      if not ended(running[i]) then left[#left + 1], open = running[i], true end
    end
    running = left
    return not open and first.future.result or nil
  end
  return function () return base:with(adapter, step) end
end

return M
