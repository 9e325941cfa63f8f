-- lsuv.lua - initial weights whose scale comes from a batch: each layer's output gets unit variance, measured and set
-- layer by layer on the way through the net.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  std = options.number(1, "(0, inf)", "standard deviation that every layer's output gets"),
  orthogonal = options.boolean(true,
    "begin with orthogonal matrices, as the paper does; false: with the weights as they are"),
}

local function name_of(path) return path == "" and "the module" or path end

-- { path, layer } of every linear layer and convolution; raises for one whose weight is no tensor that may be scaled.
local function layers_of(module)
  local nn, list, seen = require "perilune.nn", {}, {}
  local known = { [nn.Linear] = true, [nn.Conv1d] = true, [nn.Conv2d] = true }
  for _, entry in ipairs(module:named_modules()) do
    local path, layer = entry[1], entry[2]
    local class = getmetatable(layer)
    if class == nn.Copies then
      options.raise(("init.lsuv_: %s is of several networks: give each its weights where it is made")
        :format(name_of(path)))
    end
    if known[class] then
      local weight = layer.weight
      local problem = not weight and "has several weights" or weight.packed and "is packed"
        or not weight.dtype:find "^b?f" and "is " .. weight.dtype or layer.adapter and "has an adapter"
        or seen[weight] and "shares the weight of " .. seen[weight]
      if problem then options.raise(("init.lsuv_: %s %s"):format(name_of(path), problem)) end
      seen[weight], list[#list + 1] = name_of(path), { path = path, layer = layer }
    end
  end
  if #list == 0 then options.raise "init.lsuv_: there is no Linear, Conv1d or Conv2d below the module" end
  return list
end

-- What is overwritten, and buffers that a pass in training mode moves, as they were.
local function remember(module, list)
  local kept = {}
  local function keep(t) if t then kept[#kept + 1] = { t, t:clone() } end end
  for _, entry in ipairs(list) do
    keep(entry.layer.weight)
    keep(entry.layer.bias)
  end
  local buffers = {}
  for _, t in ipairs(module:buffers()) do buffers[#buffers + 1] = { t, t:clone() } end
  return kept, buffers
end

local function put_back(kept)
  for _, pair in ipairs(kept) do pair[1]:copy_(pair[2]) end
end

-- Scale a layer's weight for what comes in; the spread of its output before.
local function fit(entry, std, ...)
  local layer = entry.layer
  local y = getmetatable(layer).forward(layer, (...), nil, "none") -- before an activation of its own
  local spread = y:to("f32"):std { ddof = 0 }:item()
  if not (spread > 0 and spread < math.huge) then
    options.raise(("init.lsuv_: the output of %s has standard deviation %s on this batch"):format(name_of(entry.path),
      spread ~= spread and "nan" or tostring(spread)))
  end
  layer.weight:mul_(std / spread)
  entry.std = spread
end

--- Layer-sequential unit variance (Mishkin and Matas 2016, arXiv 1511.06422, algorithm 1): every Linear, Conv1d and
--- Conv2d below a module gets orthogonal weights and biases of 0, then, in the order in which a batch passes them, each
--- weight is divided by the standard deviation of the layer's output, before an activation of its own. Behind the
--- ones before it a layer sees what it will see, and without a bias its output follows the factor, so that one pass
--- is exact where the paper repeats. Other weights (norms, embeddings, recurrent layers) stay, and so do running
--- statistics. A layer that is used twice is scaled at its first use. An error (a layer that the batch does not
--- reach, an output without variance) leaves every weight as it was.
---   nn.init.lsuv_(net, batch)
---   nn.init.lsuv_(net, function (net) return net(ids, { mask = mask }) end)
--- @param module perilune.nn.Module
--- @param batch perilune.Tensor|fun(module: perilune.nn.Module)  what forward takes, or what runs it
--- @param opts table?
--- @return perilune.nn.Module module
--- @return table[] layers  { path, std }: each layer and its standard deviation before it was scaled, in order
function M.lsuv_(module, batch, opts)
  options.argument("init.lsuv_", "module", module, "module")
  options.argument("init.lsuv_", "batch", batch, "tensor or callable")
  local o = options.fill("init.lsuv_", opts, rules)
  local _ <close> = peri.no_grad()
  local list, init, order, hooks = layers_of(module), require "perilune.nn.init_weights", {}, {}
  local kept, buffers = remember(module, list)
  for i, entry in ipairs(list) do
    if o.orthogonal then init.orthogonal_(entry.layer.weight) end
    if entry.layer.bias then init.zeros_(entry.layer.bias) end
    hooks[i] = entry.layer:hook_before(function (_, ...)
      if entry.std then return end
      fit(entry, o.std, ...)
      order[#order + 1] = { path = entry.path, std = entry.std }
    end)
  end
  local pass = peri.is_tensor(batch) and function () module(batch) end or batch
  local ok, err = pcall(pass, module)
  for _, hook in ipairs(hooks) do hook:remove() end
  put_back(buffers)
  if ok and #order < #list then
    for _, entry in ipairs(list) do
      if ok and not entry.std then ok, err = false, ("init.lsuv_: the batch does not reach %s"):format(entry.path) end
    end
  end
  if not ok then
    put_back(kept)
    options.raise((tostring(err):gsub("^[^%s]+:%d+: ", "")))
  end
  return module, order
end
options.declare(M.lsuv_, { "module", "batch" }, rules)

return M
