-- answers.lua - answers behind their prompts as rows of ids, and what a model says of them: what the steppers of
-- preferences share.
local peri = require "perilune"
local M = {}

local IGNORED = -100

--- Rows of ids with the targets of their answers; padding is on the right, where a causal model does not look.
--- @param list table[]  { prompt, answer } ids each; a prompt may not be empty
--- @param pad integer
--- @return perilune.Tensor ids  (B, T) i64
--- @return perilune.Tensor targets  (B, T - 1) i64, -100 where there is no token of an answer
function M.rows(list, pad)
  local width, ids, targets = 0, {}, {}
  for _, row in ipairs(list) do width = math.max(width, #row[1] + #row[2]) end
  for b, row in ipairs(list) do
    local x, y, before = table.move(row[1], 1, #row[1], 1, {}), {}, #row[1]
    table.move(row[2], 1, #row[2], before + 1, x)
    for i = 1, width - 1 do y[i] = i >= before and x[i + 1] or IGNORED end
    for i = #x + 1, width do x[i] = pad end
    ids[b], targets[b] = x, y
  end
  return peri.tensor(ids, "i64"), peri.tensor(targets, "i64")
end

--- Log-probabilities of answers, summed over their tokens.
--- @param model table  causal model of perilune.models
--- @param list table[]  { prompt, answer } ids each
--- @param pad integer
--- @return perilune.Tensor sum  (B) f32
--- @return perilune.Tensor length  (B) f32, tokens
--- @return perilune.Tensor entropy  0-dim: sum of the entropies at the answers' tokens, detached
function M.logps(model, list, pad)
  local ids, targets = M.rows(list, pad)
  local hidden = model:forward(ids:narrow(2, 1, ids:size(2) - 1))
  local logp, entropy = model:token_logprob(hidden, targets)
  return logp:sum(2), targets:ne(IGNORED):to(logp.dtype):sum(2), entropy:detach():sum()
end

-- Every module of some models, and of the adapters that sit on them.
local function modules_of(models)
  local list, seen = {}, {}
  local function add(root)
    for _, module in ipairs(root.modules and root:modules() or {}) do
      if not seen[module] then
        seen[module], list[#list + 1] = true, module
        for _, guest in ipairs(module._guests and module:_guests() or {}) do add(guest) end
      end
    end
  end
  for _, model in pairs(models) do add(model) end
  return list
end

local Quiet = {}
Quiet.__index = Quiet

--- Dropout off from now on, in some models and in the adapters on them.
--- @param models table<any, table>
--- @return table quiet  to-be-closed: then it is as it was
function M.quiet(models)
  local loud = {}
  for _, module in ipairs(modules_of(models)) do
    if module.training then
      loud[#loud + 1] = module
      rawset(module, "training", false)
    end
  end
  return setmetatable(loud, Quiet)
end

function Quiet:__close()
  for _, module in ipairs(self) do rawset(module, "training", true) end
end

return M
