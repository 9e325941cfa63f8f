-- convolution.lua - convolutions and pooling over rows (N, C, L) and images (N, C, H, W), with PyTorch's names, layouts
-- and initial weights. Sizes, strides and the like are one integer for all dims or a list of one for each.

local peri = require "perilune"
local Module = require "perilune.nn.module"
local init = require "perilune.nn.init_weights"
local layer = require("perilune.nn.layers")._layer
local options = require "perilune.options"

local required, none = options.required, options.none

local M = {}

-- A list of one number for each dim of what is a number or such a list.
local function each(value, dims)
  if type(value) == "table" then return value end
  local list = {}
  for i = 1, dims do list[i] = value end
  return list
end

local function text(value)
  return type(value) == "table" and "{" .. table.concat(value, ", ") .. "}" or tostring(value)
end

local function conv_rules(dims)
  local function sizes(default, range, doc) return options.sizes(default, dims, range, doc) end
  return {
    in_channels = options.integer(required, "[1, inf)", "C of x"),
    out_channels = options.integer(required, "[1, inf)", "C of y"),
    kernel_size = sizes(required, "[1, inf)", "of the window"),
    stride = sizes(1, "[1, inf)", "from window to window"),
    padding = options.sizes(0, dims, "[0, inf)",
      "zeros on both sides; \"valid\" is 0, \"same\" as many as keep the size (stride 1), one more behind if odd",
      { "same", "valid" }),
    dilation = sizes(1, "[1, inf)", "from tap to tap"),
    groups = options.integer(1, "[1, inf)", "into which both channels are cut; one does not see the others"),
    bias = options.boolean(true, "add b, a number for each channel"),
  }
end

-- The op's padding: a list of what is added before and after each dim where that differs.
local function padding_of(who, o, dims)
  if o.padding == "valid" then return 0 end
  if o.padding ~= "same" then return o.padding end
  local kernel, dilation, list, even = each(o.kernel_size, dims), each(o.dilation, dims), {}, {}
  for _, s in ipairs(each(o.stride, dims)) do
    if s ~= 1 then
      options.raise(("%s: padding \"same\" with stride %s: it takes stride 1"):format(who, text(o.stride)))
    end
  end
  local uneven = false
  for i = 1, dims do
    local total = dilation[i] * (kernel[i] - 1)
    list[2 * i - 1], list[2 * i], even[i] = total // 2, total - total // 2, total // 2
    uneven = uneven or total % 2 == 1
  end
  return uneven and list or even
end

local function conv(name, dims)
  local positional, rules = { "in_channels", "out_channels", "kernel_size", "stride", "padding" }, conv_rules(dims)
  local class = layer(name, positional, rules, function(self, o)
    for _, side in ipairs { "in_channels", "out_channels" } do
      if o[side] % o.groups ~= 0 then
        options.raise(("%s: %d %s do not divide into %d groups"):format(name, o[side], side, o.groups))
      end
    end
    self.in_channels, self.out_channels, self.groups = o.in_channels, o.out_channels, o.groups
    self._kernel, self._stride, self._dilation = o.kernel_size, o.stride, o.dilation
    self._padding, self._shown = padding_of(name, o, dims), o.padding
    local shape = { o.out_channels, o.in_channels // o.groups, table.unpack(each(o.kernel_size, dims)) }
    local weight = peri.empty(shape)
    local bound = 1 / math.sqrt(weight:numel() / o.out_channels)
    self.weight = Module.parameter(init.uniform_(weight, -bound, bound))
    if o.bias then self.bias = Module.parameter(init.uniform_(peri.empty { o.out_channels }, -bound, bound)) end
  end)
  function class:extra()
    local list = { self.in_channels, self.out_channels, "kernel_size = " .. text(self._kernel),
      "stride = " .. text(self._stride) }
    if self._shown ~= 0 then list[#list + 1] = "padding = " .. text(self._shown) end
    if text(self._dilation) ~= "1" then list[#list + 1] = "dilation = " .. text(self._dilation) end
    if self.groups ~= 1 then list[#list + 1] = "groups = " .. self.groups end
    if not self.bias then list[#list + 1] = "bias = false" end
    return table.concat(list, ", ")
  end
  return class
end

--- Cross-correlation of rows with a weight (out_channels, in_channels / groups, k). Weight and bias begin uniform in
--- +- 1 / sqrt(in_channels / groups k), as PyTorch's.
M.Conv1d = conv("Conv1d", 1)

--- @param x perilune.Tensor  (N, in_channels, L) or (in_channels, L); integers and bools are read as numbers
--- @return perilune.Tensor  (N, out_channels, L')
function M.Conv1d:forward(x)
  return x:conv1d(self.weight, self.bias, self._stride, self._padding, self._dilation, self.groups)
end

--- Cross-correlation of images with a weight (out_channels, in_channels / groups, kh, kw). Weight and bias begin
--- uniform in +- 1 / sqrt(in_channels / groups kh kw), as PyTorch's.
M.Conv2d = conv("Conv2d", 2)

--- @param x perilune.Tensor  (N, in_channels, H, W) or (in_channels, H, W); integers and bools, such as pixels, are
--- read as numbers, unscaled
--- @return perilune.Tensor  (N, out_channels, H', W')
function M.Conv2d:forward(x)
  return x:conv2d(self.weight, self.bias, self._stride, self._padding, self._dilation, self.groups)
end

-- ---- pooling ----

local function pool(name, op, dims, more)
  local rules = {
    kernel_size = options.sizes(required, dims, "[1, inf)", "of the window"),
    stride = options.sizes(none, dims, "[1, inf)", "from window to window; left out, the kernel's size"),
    padding = options.sizes(0, dims, "[0, inf)", "on both sides, at most half of the kernel"),
    ceil_mode = options.boolean(false, "keep a window that begins inside and hangs over the end"),
  }
  for key, rule in pairs(more) do rules[key] = rule end
  local class = layer(name, { "kernel_size", "stride", "padding" }, rules, function(self, o) self._settings = o end)
  class.forward = function(self, x) return x[op](x, self._settings) end
  class.extra = function(self)
    local list, o = {}, self._settings
    for _, key in ipairs(options.names(o)) do list[#list + 1] = ("%s = %s"):format(key, text(o[key])) end
    return table.concat(list, ", ")
  end
  return class
end

local function max_pool(name, op, dims)
  return pool(name, op, dims, { dilation = options.sizes(1, dims, "[1, inf)", "from element to element of a window") })
end

local count = options.boolean(true, "padding counts as zeros in a mean")
local divisor = options.number(none, nil, "what sums are divided by in place of their count")

--- The largest of each window of rows (N, C, L).
M.MaxPool1d = max_pool("MaxPool1d", "max_pool1d", 1)

--- The largest of each window of images (N, C, H, W).
M.MaxPool2d = max_pool("MaxPool2d", "max_pool2d", 2)

--- The mean of each window of rows (N, C, L).
M.AvgPool1d = pool("AvgPool1d", "avg_pool1d", 1, { count_include_pad = count })

--- The mean of each window of images (N, C, H, W).
M.AvgPool2d = pool("AvgPool2d", "avg_pool2d", 2, { count_include_pad = count, divisor_override = divisor })

local function adaptive(name, op, dims)
  local rules = { output_size = options.sizes(required, dims, "[1, inf)", "windows, of nearly equal sizes") }
  local class = layer(name, { "output_size" }, rules, function(self, o)
    self._size = dims == 1 and each(o.output_size, 1)[1] or o.output_size
  end)
  class.forward = function(self, x) return x[op](x, self._size) end
  class.extra = function(self) return text(self._size) end
  return class
end

--- Means of rows (N, C, L) over a given number of windows.
M.AdaptiveAvgPool1d = adaptive("AdaptiveAvgPool1d", "adaptive_avg_pool1d", 1)

--- Means of images (N, C, H, W) over a given number of windows.
M.AdaptiveAvgPool2d = adaptive("AdaptiveAvgPool2d", "adaptive_avg_pool2d", 2)

return M
