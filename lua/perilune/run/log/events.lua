-- events.lua - TensorBoard: scalars, text, histograms and hyper-parameters as Event messages
-- (tensorflow/core/util/event.proto, framework/summary.proto; tensorboard/plugins/hparams/*.proto),
-- encoded by hand. peri.files.tfevents frames and writes them.

local peri = require "perilune"
local options = require "perilune.options"
local numbers = require "perilune.run.log.numbers"
local must = require("perilune.run.log.files").must

local M = {}

-- ---- protocol buffers: a message is the concatenation of its fields ----

local function varint(n)
  local bytes = {}
  repeat
    local low = n & 0x7f
    n = n >> 7
    bytes[#bytes + 1] = string.char(n ~= 0 and low | 0x80 or low)
  until n == 0
  return table.concat(bytes)
end

local function integer(field, n) return varint(field << 3) .. varint(n) end
local function double(field, v) return varint(field << 3 | 1) .. ("<d"):pack(v) end
local function bytes(field, s) return varint(field << 3 | 2) .. varint(#s) .. s end
local function doubles(field, list) -- packed
  local out = {}
  for i, v in ipairs(list) do out[i] = ("<d"):pack(v) end
  return bytes(field, table.concat(out))
end

--- An Event: wall_time = 1, step = 2, summary = 5, session_log = 7.
--- @param wall number  seconds since 1970
--- @param step integer
--- @param field integer
--- @param message string
--- @return string
function M.event(wall, step, field, message) return double(1, wall) .. integer(2, step) .. bytes(field, message) end

-- SummaryMetadata: plugin_data = 1 { plugin_name = 1, content = 2 }, data_class = 4.
local function metadata(plugin, content, class)
  return bytes(1, bytes(1, plugin) .. (content ~= "" and bytes(2, content) or ""))
    .. (class and integer(4, class) or "")
end

--- A summary with one text: Value { tag = 1, tensor = 8 { dtype = 1 (7: string), shape = 2 of one dim,
--- string_val = 8 }, metadata = 9 }.
--- @param tag string
--- @param text string  Markdown
--- @return string
function M.text(tag, text)
  local tensor = integer(1, 7) .. bytes(2, bytes(2, integer(1, 1))) .. bytes(8, numbers.repaired(text))
  return bytes(1, bytes(1, tag) .. bytes(8, tensor) .. bytes(9, metadata("text", "", 2)))
end

--- A summary with one histogram: Value { tag = 1, histo = 5 { min = 1, max = 2, num = 3, sum = 4,
--- sum_squares = 5, bucket_limit = 6 (right edges), bucket = 7 (counts) } }.
--- @param tag string
--- @param h table  min, max, num, sum, sum_squares, limits, counts
--- @return string
function M.histogram(tag, h)
  local histo = double(1, h.min) .. double(2, h.max) .. double(3, h.num) .. double(4, h.sum)
    .. double(5, h.sum_squares) .. doubles(6, h.limits) .. doubles(7, h.counts)
  return bytes(1, bytes(1, tag) .. bytes(5, histo))
end

local BUCKETS = 30

--- Counts of the finite values in equal buckets from the least to the greatest.
--- @param x perilune.Tensor
--- @return table? h  nil when no value is finite
--- @return integer left_out  values that are not
function M.count(x)
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local _ <close> = peri.no_grad()
  local all = x:detach():to("f64"):flatten()
  local good = all:masked_select(all:isfinite())
  local n = good:numel()
  if n == 0 then return nil, all:numel() end
  local low, high = good:min():item(), good:max():item()
  local h = { min = low, max = high, num = n, sum = good:sum():item(), sum_squares = good:square():sum():item(),
    limits = {}, counts = {} }
  local parts = low < high and BUCKETS or 1
  local below = 0
  for i = 1, parts do
    local edge = i == parts and high or low + (high - low) * (i / parts)
    local upto = i == parts and n or good:le(edge):count_nonzero():item()
    h.limits[i], h.counts[i] = edge, upto - below
    below = upto
  end
  return h, all:numel() - n
end

-- ---- hyper-parameters: three summaries without values whose metadata says everything ----

-- google.protobuf.Value: number_value = 2, string_value = 3, bool_value = 4.
local function value(v)
  if type(v) == "number" then return double(2, v) end
  if type(v) == "boolean" then return integer(4, v and 1 or 0) end
  return bytes(3, tostring(v))
end

local types = { string = 1, boolean = 2, number = 3 } -- hparams.DataType

local function plugin(tag, data) -- HParamsPluginData { version = 1 (0 is left out), data }
  return bytes(1, bytes(1, tag) .. bytes(9, metadata("hparams", data)))
end

-- HParamInfo { name = 1, type = 4 }; MetricInfo { name = 1 { tag = 2 } }; Experiment { hparam_infos = 4,
-- metric_infos = 5, time_created_secs = 3 }; SessionStartInfo { hparams = 1 (map), start_time_secs = 5 };
-- SessionEndInfo { status = 1, end_time_secs = 2 }. In HParamsPluginData they are 2, 3 and 4.

--- What opens a session: flags, and the metrics that it will be compared by.
--- @param flags table
--- @param metrics string[]
--- @param wall number
--- @return string[] summaries
function M.session(flags, metrics, wall)
  local experiment, start = { double(3, wall) }, {}
  for _, name in ipairs(options.names(flags)) do
    local v = flags[name]
    local kind = types[type(v)] or 1
    if kind == 1 then v = type(v) == "table" and peri.json.encode(v) or tostring(v) end
    experiment[#experiment + 1] = bytes(4, bytes(1, name) .. integer(4, kind))
    start[#start + 1] = bytes(1, bytes(1, name) .. bytes(2, value(v)))
  end
  for _, name in ipairs(metrics) do experiment[#experiment + 1] = bytes(5, bytes(1, bytes(2, name))) end
  start[#start + 1] = double(5, wall)
  local summaries = { plugin("_hparams_/session_start_info", bytes(3, table.concat(start))) }
  if #metrics > 0 then -- without an experiment TensorBoard takes every scalar
    table.insert(summaries, 1, plugin("_hparams_/experiment", bytes(2, table.concat(experiment))))
  end
  return summaries
end

--- What ends it; ok: it did what it was to do.
--- @param ok boolean
--- @param wall number
--- @return string
function M.session_end(ok, wall)
  return plugin("_hparams_/session_end_info", bytes(4, integer(1, ok and 1 or 2) .. double(2, wall)))
end

-- ---- the file ----

local Events = {}
Events.__index = Events

--- A new event file in a folder.
--- @param folder string
--- @param resume integer?  a step: TensorBoard drops what older files say of later ones
--- @return table
function M.open(folder, resume)
  local path = ("%s/events.out.tfevents.%d.perilune"):format(folder, os.time())
  local self = setmetatable({ file = must(peri.files.tfevents(path)) }, Events)
  if resume and resume > 0 then -- SessionLog { status = 1 (1: start) }
    must(self.file:event(M.event(os.time(), resume + 1, 7, integer(1, 1))))
  end
  return self
end

function Events:step(step, values, live)
  local now = os.time()
  for _, t in ipairs { values, live } do
    for _, name in ipairs(options.names(t)) do
      if type(t[name]) == "number" then must(self.file:scalar(name, step, t[name], now)) end
    end
  end
end

--- @param step integer
--- @param summary string
function Events:summary(step, summary) must(self.file:event(M.event(os.time(), step, 5, summary))) end

function Events:close() self.file:close() end

return M
