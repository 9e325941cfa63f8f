-- residual.lua - the block of a residual network for images (He et al. 2016), with torchvision's names.

local Module = require "perilune.nn.module"
local convolution = require "perilune.nn.convolution"
local BatchNorm2d = require("perilune.nn.batch_norm").BatchNorm2d
local Sequential = require("perilune.nn.containers").Sequential
local init = require "perilune.nn.init_weights"
local options = require "perilune.options"

local M = {}

local rules = {
  in_channels = options.integer(options.required, "[1, inf)", "C of x"),
  out_channels = options.integer(options.required, "[1, inf)", "C of y"),
  stride = options.integer(1, "[1, inf)", "of the first convolution and of the shortcut"),
  norm = options.boolean(true, "batch normalisation behind each convolution; without it convolutions have a bias"),
  residual = options.boolean(true, "add the shortcut; false: the same two layers as a plain net has them"),
  zero = options.boolean(false, "the last norm begins at 0, so that the block begins as its shortcut "
    .. "(Goyal et al. 2017, 5.1)"),
}

--- relu(F(x) + x), F being two convolutions of 3 x 3 with batch normalisation and a ReLU between (He et al. 2016,
--- eq. 1 and 2, figure 5 left). Where channels or size change, the shortcut is a convolution of 1 x 1 (option B). Its
--- tensors are those of torchvision's BasicBlock: conv1, bn1, conv2, bn2, downsample.0, downsample.1.
M.BasicBlock = Module.class("BasicBlock", function(self, ...)
  local o = options.read("BasicBlock", { "in_channels", "out_channels", "stride" }, rules, 4, ...)
  if o.zero and not (o.norm and o.residual) then
    options.raise "BasicBlock: zero needs norm and residual: else the block would give 0"
  end
  local from, to, bias = o.in_channels, o.out_channels, not o.norm
  self.conv1 = convolution.Conv2d(from, to, 3, { stride = o.stride, padding = 1, bias = bias })
  self.bn1 = o.norm and BatchNorm2d(to) or nil
  self.conv2 = convolution.Conv2d(to, to, 3, { padding = 1, bias = bias })
  self.bn2 = o.norm and BatchNorm2d(to) or nil
  if o.zero then init.zeros_(self.bn2.weight) end
  self.residual, self.in_channels, self.out_channels, self.stride = o.residual, from, to, o.stride
  if o.residual and (from ~= to or o.stride ~= 1) then
    self.downsample = Sequential(convolution.Conv2d(from, to, 1, { stride = o.stride, bias = bias }))
    if o.norm then self.downsample:add(BatchNorm2d(to)) end
  end
end)
options.declare(M.BasicBlock, { "in_channels", "out_channels", "stride" }, rules)

--- @param x perilune.Tensor  (N, in_channels, H, W)
--- @return perilune.Tensor  (N, out_channels, H', W'), H' = ceil(H / stride)
function M.BasicBlock:forward(x)
  local y = self.conv1(x)
  if self.bn1 then y = self.bn1(y) end
  y = self.conv2(y:relu())
  if self.bn2 then y = self.bn2(y) end
  if self.residual then y = y:add(self.downsample and self.downsample(x) or x) end
  return y:relu()
end

function M.BasicBlock:extra()
  return ("%d, %d%s%s"):format(self.in_channels, self.out_channels,
    self.stride > 1 and ", stride = " .. self.stride or "", self.residual and "" or ", residual = false")
end

return M
