-- derived.lua - weights that are computed from parameters alone: LoRA's stacked matrices, Gemma's 1 + w, the table that
-- a tied head reads once more. While an update holds them, each is made once for all passes, and its gradient is
-- collected where the passes meet it, in one chain of additions (see tensor:backward's chain), before it goes on to the
-- parameters. So how the rows of an update are cut into passes changes no bit of a gradient.
local peri = require "perilune"

local M = {}

local held -- of the update in progress: by[owner][key] -> leaf; list of { made, leaf }

--- A weight that `make` computes from parameters.
--- @param owner table  whose it is
--- @param key string  which of its
--- @param make fun(owner: table): perilune.Tensor
--- @return perilune.Tensor
function M.weight(owner, key, make)
  if not held or not peri.grad_enabled() then return make(owner) end
  local own = held.by[owner] or {}
  held.by[owner] = own
  if not own[key] then
    local made = make(owner)
    if not made.requires_grad then return made end
    local leaf = peri.keep(made:detach():requires_grad_())
    if not made.is_leaf then peri.keep(made) end
    own[key], held.list[#held.list + 1] = leaf, { made, leaf }
  end
  return own[key]
end

local Hold = {}
Hold.__index = Hold

--- Whether an update holds derived weights now.
--- @return boolean
function M.is_held() return held ~= nil end

--- Hold derived weights from now on: for updates of several passes.
--- @return table hold  to-be-closed; :flow() once, behind the last pass
function M.hold()
  if held then error("an update is in progress already", 2) end
  held = { by = setmetatable({}, { __mode = "k" }), list = {} }
  return setmetatable({ of = held }, Hold)
end

--- The gradients that have come together, on to the parameters.
function Hold:flow()
  for _, pair in ipairs(self.of.list) do
    if pair[2].grad then pair[1]:backward(pair[2].grad) end
  end
end

function Hold:__close()
  held = nil
  for _, pair in ipairs(self.of.list) do
    if not pair[1].is_leaf then pair[1]:release() end
    pair[2]:release()
  end
end

return M
