-- shared.lua - completions of one prompt that is read, and gets its gradient, once for all of them.
local peri = require "perilune"
local base = require "perilune.models.base"
local credit = require "perilune.rl.credit"
local options = require "perilune.options"
local phases = require "perilune.phases"

local M = {}

local Shared = {}
Shared.__index = Shared

--- A prompt read once for any number of completions, in any number of forward and backward passes: their
--- gradients with respect to what they saw of it add up, until :backward() takes them through it.
--- @param model table  causal model of perilune.models
--- @param prompt perilune.Tensor  (1, P) i64
--- @return table shared  for completion_logprobs; :backward() once, after those of all completions
function M.shared_prompt(model, prompt)
  options.argument("rl.shared_prompt", "model", model, "table")
  options.argument("rl.shared_prompt", "prompt", prompt, "tensor")
  local why = base.no_causal(model)
  if why then error("rl.shared_prompt: " .. why, 2) end
  local phase <close> = phases.open "forward" -- luacheck: ignore 211
  local self = setmetatable({ length = prompt:size(2), k = {}, v = {}, _pairs = {} }, Shared)
  local seen = { k = {}, v = {} }
  local function leaf(t) -- the graph of what follows ends here
    if not t.requires_grad then return t end
    local own = t:detach():requires_grad_()
    table.insert(self._pairs, { t, own })
    return own
  end
  self.hidden = leaf(model:forward(prompt, { collect = seen }):narrow(2, self.length, 1)) -- (1, 1, D)
  for i, k in ipairs(seen.k) do self.k[i], self.v[i] = leaf(k), leaf(seen.v[i]) end -- (1, P, Hkv, D)
  return self
end

--- The gradients that have come together, through the prompt.
--- @param opts table?  of tensor:backward
function Shared:backward(opts)
  local sum
  for _, pair in ipairs(self._pairs) do
    local grad = pair[2].grad
    if grad then
      local product = pair[1]:mul(grad):sum()
      sum = sum and sum:add(product) or product
    end
  end
  if sum then sum:backward(opts or {}) end
  self._pairs = {}
end

local logprob_rules = {
  temperature = options.number(options.none, "(0, inf)", "of the softmax; default: 1"),
  support = options.value(options.none, "table", "of the completions, see generate"),
}

--- Log-probabilities and entropies of completions of one prompt, which is read once for all of them and
--- gets its gradient once: the same numbers as model:token_logprobs of every whole sequence.
--- @param model table  causal model of perilune.models
--- @param shared table  of rl.shared_prompt
--- @param completions perilune.Tensor  (B, N) i64; -100 where there is none
--- @param opts table?
--- @return perilune.Tensor logp  (B, N) f32, 0 at -100
--- @return perilune.Tensor entropy  (B, N) f32, nats
function M.completion_logprobs(model, shared, completions, opts)
  local o = options.fill("rl.completion_logprobs", opts, logprob_rules)
  options.argument("rl.completion_logprobs", "model", model, "table")
  options.argument("rl.completion_logprobs", "shared", shared, "table")
  options.argument("rl.completion_logprobs", "completions", completions, "tensor")
  local phase <close> = phases.open "forward" -- luacheck: ignore 211
  local batch, count, length = completions:size(1), completions:size(2), shared.length
  local hidden = shared.hidden:expand { batch, -1, -1 } -- (B, 1, D)
  if count > 1 then
    local ids = completions:narrow(2, 1, count - 1):clamp(0) -- what is behind the end is never looked at
    local positions = peri.arange(length, length + count - 1)
    hidden = peri.cat({ hidden, model:forward(ids, { prefix = shared, positions = positions }) }, 2) -- (B, N, D)
  end
  return model:token_logprob(hidden, completions, o.temperature, o.support)
end
options.declare(M.completion_logprobs, { "model", "shared", "completions" }, logprob_rules)

local Group = {}
Group.__index = Group

--- for group in rl.groups(batch, advantage, weight) do: prompts with the completions of each that can teach
--- something; group.prompt (1, P) i64, and for part in group:parts(size) do. Each turn is a memory scope.
--- @param batch table  of rl.rollout
--- @param advantage perilune.Tensor  (B, N)
--- @param weight perilune.Tensor  (B, N)
--- @param all boolean?  also those whose advantage is 0
--- @param more table<string, perilune.Tensor>?  (B, N) each, of which parts have theirs
function M.groups(batch, advantage, weight, all, more)
  options.argument("rl.groups", "batch", batch, "table")
  options.argument("rl.groups", "advantage", advantage, "tensor")
  options.argument("rl.groups", "weight", weight, "tensor")
  local signal = credit.teaching(advantage, weight, all):tolist()
  local lists = {}
  for first = 1, #signal, batch.group do
    local list = {}
    for i = first, first + batch.group - 1 do
      if signal[i] then list[#list + 1] = i end
    end
    if #list > 0 then lists[#lists + 1] = list end
  end
  local starts = batch.sequences and (batch.sequences:bounds()) or batch.start and batch.start:tolist()
  local advance, state, turn, closing = peri.steps(#lists)
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local list = lists[turn]
    local pads = starts and starts[list[1]] or 0
    local prompt = batch.ids:narrow(1, list[1], 1):narrow(2, pads + 1, batch.from - 1 - pads)
    return setmetatable({ prompt = prompt, rows = list, batch = batch, advantage = advantage, weight = weight,
      more = more or {} }, Group)
  end, nil, nil, closing
end

--- for part in group:parts(size) do: at most `size` of its completions at a time; completions (n, N) i64 (-100 behind
--- the end; what the model was answered with in a conversation is there, with weight 0), support, logprobs, advantage,
--- weight (n, N), n. Each turn is a memory scope.
--- @param size integer
function Group:parts(size)
  local batch = self.batch
  size = credit.want_size("group:parts", size)
  local advance, state, turn, closing = peri.steps(math.ceil(#self.rows / size))
  return function ()
    turn = advance(state, turn)
    if not turn then return nil end
    local list = table.move(self.rows, (turn - 1) * size + 1, math.min(turn * size, #self.rows), 1, {})
    local counts, longest = {}, 0
    for k, i in ipairs(list) do
      counts[k] = #batch.tokens[i]
      longest = math.max(longest, counts[k])
    end
    local behind = peri.arange(longest):ge(peri.tensor(counts, "i64"):unsqueeze(2)) -- (n, N)
    local rows = peri.tensor(list, "i64"):sub(1)
    local function pick(t) return t:index_select(rows, 1):narrow(2, 1, longest) end
    local ids = batch.ids:narrow(2, batch.from, batch.ids:size(2) - batch.from + 1)
    local part = { n = #list, support = batch.support and batch.support:select(list),
      completions = pick(ids):masked_fill(behind, -100),
      logprobs = pick(batch.logprobs), advantage = pick(self.advantage), weight = pick(self.weight) }
    for name, t in pairs(self.more) do part[name] = pick(t) end
    return part
  end, nil, nil, closing
end

return M
