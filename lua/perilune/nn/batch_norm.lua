-- batch_norm.lua - batch normalisation (Ioffe and Szegedy 2015) with PyTorch's names, buffers and refusals.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local layer = require("perilune.nn.layers")._layer
local options = require "perilune.options"

local M = {}

local rules = {
  num_features = options.integer(options.required, "[1, inf)", "C of x"),
  eps = options.number(1e-5, "(0, inf)", "added to the variance"),
  momentum = options.value(0.1, "number or boolean",
    "share of a batch in the running statistics; false: all batches alike, a cumulative mean"),
  affine = options.boolean(true, "a learned scale and shift"),
  track_running_stats = options.boolean(true, "keep running statistics; else eval() takes the batch's, too"),
}

local function batch_norm(name, shapes, dims)
  local class = layer(name, { "num_features" }, rules, function(self, o)
    if o.momentum == true or type(o.momentum) == "number" and not (o.momentum >= 0 and o.momentum <= 1) then
      options.raise(("%s: momentum is %s, expected a number in [0, 1] or false"):format(name, tostring(o.momentum)))
    end
    self.num_features, self.eps, self.momentum = o.num_features, o.eps, o.momentum
    if o.affine then
      self.weight = Module.parameter(peri.ones { o.num_features })
      self.bias = Module.parameter(peri.zeros { o.num_features })
    end
    if o.track_running_stats then
      self.running_mean = peri.keep(peri.zeros { o.num_features })
      self.running_var = peri.keep(peri.ones { o.num_features })
      self.num_batches_tracked = peri.keep(peri.zeros({}, "i64"))
    end
  end)

  function class:forward(x)
    if not dims[x.ndim] then
      options.raise(("%s: x has shape %s, expected %s"):format(name, options.shape(x), shapes))
    end
    local mean, var = self.running_mean, self.running_var
    if mean and not self.training then return (x:batch_norm(mean, var, self.weight, self.bias, false, self.eps)) end
    local y, batch_mean, batch_var = x:batch_norm(nil, nil, self.weight, self.bias, true, self.eps)
    if mean and self.training then
      local _ <close> = peri.no_grad()
      self.num_batches_tracked:add_(1)
      local share = self.momentum or 1 / self.num_batches_tracked:item()
      mean:lerp_(batch_mean, share)
      var:lerp_(batch_var, share)
    end
    return y
  end

  function class:extra()
    return ("%d%s%s"):format(self.num_features, self.weight and "" or ", affine = false",
      self.running_mean and "" or ", track_running_stats = false")
  end
  return class
end

--- Mean 0 and variance 1 for each channel over the batch, then a learned scale and shift; in eval() by the running
--- statistics, which training moves: running_mean, running_var (unbiased) and num_batches_tracked are buffers, as
--- PyTorch's. A batch of one value for each channel is refused in training.
M.BatchNorm1d = batch_norm("BatchNorm1d", "(N, C) or (N, C, L)", { [2] = true, [3] = true })

--- The same for images (N, C, H, W).
M.BatchNorm2d = batch_norm("BatchNorm2d", "(N, C, H, W)", { [4] = true })

return M
