-- idx.lua - pictures and their labels from IDX files, as MNIST, Fashion-MNIST and their kin are published. The files
-- are read by peri.idx; what two of them must share is checked here.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

-- What is wrong with the labels of so many pictures, or nil.
local function labels_problem(labels, rows)
  if labels.ndim ~= 1 then return ("labels of shape %s, expected (N)"):format(options.shape(labels)) end
  if labels:size(1) ~= rows then return ("%d labels of %d pictures"):format(labels:size(1), rows) end
  if labels.dtype:find "^f" then return ("labels of %s, expected integers"):format(labels.dtype) end
  local least = labels:min():item()
  if least < 0 then return ("a label is %d, expected numbers from 0"):format(least) end
end

--- Pictures and their labels from two IDX files, plain or gzipped, that belong together; or what one file holds.
---   local pictures, labels = assert(data.idx("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"))
--- Pictures come as they are stored, bytes of 0 to 255 as a rule. Files that cannot be opened, are damaged, hold more
--- or less than they say, or do not fit each other give nil and a message.
--- @param images string  path; (N, ...)
--- @param labels string?  path; (N) integers from 0
--- @return perilune.Tensor|nil images
--- @return perilune.Tensor|string labels  (N) i64; or the message
function M.idx(images, labels)
  options.argument("data.idx", "images", images, "string")
  options.argument("data.idx", "labels", labels, "string or nil")
  local x, message = peri.idx.load(images)
  if not x then return nil, message end
  if labels == nil then return x end
  if x.ndim < 2 or x:numel() == 0 then
    return nil, ("data.idx: %s: pictures of shape %s, expected (N, ...), N from 1"):format(images, options.shape(x))
  end
  local y
  y, message = peri.idx.load(labels)
  if not y then return nil, message end
  local problem = labels_problem(y, x:size(1))
  if problem then return nil, ("data.idx: %s: %s (%s)"):format(labels, problem, images) end
  return x, y:to "i64"
end

return M
