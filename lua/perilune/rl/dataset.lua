-- dataset.lua - logged steps as files: what a replay buffer holds, in one safetensors file, to be learned from without
-- the environment. The tensors are those of the buffer's state_dict, which name its fields, so that it opens by itself.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local KEY <const> = "perilune.dataset" -- in the metadata of the file

local save_rules = {
  env = options.value(options.none, "table", "the environment that the steps are of: its id is kept"),
  info = options.value(options.none, "table", "what else is to be known of them: plain values"),
}

--- Write a replay buffer as a data set: every step that it holds, what truncated episodes ended with included.
---   rl.save_dataset("cartpole.safetensors", buffer, { env = env, info = { policy = "mixed" } })
--- @param path string
--- @param buffer perilune.Replay
--- @param opts table?
--- @return boolean? ok  true, or nil
--- @return string? message
function M.save_dataset(path, buffer, opts)
  local o = options.fill("rl.save_dataset", opts, save_rules)
  options.argument("rl.save_dataset", "path", path, "string")
  options.argument("rl.save_dataset", "buffer", buffer, "userdata")
  if buffer:size() == 0 then options.raise "rl.save_dataset: the buffer is empty" end
  return peri.safetensors.save(path, buffer:state_dict(), { [KEY] = peri.json.encode {
    version = 1, environment = o.env and o.env.id, info = o.info } })
end
options.declare(M.save_dataset, { "path", "buffer" }, save_rules)

local load_rules = {
  groups = options.integer(options.none, "[1, inf)", "learners that share out its rows, as peri.replay has them"),
  n_step = options.integer(1, "[1, 65536]", "rewards that a sample sums"),
  gamma = options.number(0.99, "[0, 1]", "their discount"),
}

-- Options of peri.replay for a state: its fields by the names of its tensors, "field.obs" and, where it is observed
-- before and after a step, "after.obs".
local function layout(tensors)
  local observed, fields = {}, {}
  for name, t in pairs(tensors) do
    local field = name:match "^field%.(.+)$"
    if field then
      local list = tensors["after." .. field] and observed or fields
      list[field] = { t.dtype, table.unpack(t.shape, 3) }
    end
  end
  local cursor = tensors.cursor:tolist() -- capacity, rows, filled, next, breaks, seeded, seed, offset
  return { capacity = cursor[1], rows = cursor[2], observed = observed, fields = fields,
    prioritised = tensors.priority ~= nil }, cursor
end

--- Open a data set as a replay buffer, or nil and a message. It is sampled as any buffer is, by the generator of the
--- random ops.
---   local buffer, about = assert(rl.load_dataset("cartpole.safetensors"))
---   local batch = buffer:sample(64)
--- @param path string
--- @param opts table?
--- @return perilune.Replay? buffer
--- @return table|string about  environment (its id), rows, steps (of each row), info (what was saved with it)
function M.load_dataset(path, opts)
  local o = options.fill("rl.load_dataset", opts, load_rules)
  options.argument("rl.load_dataset", "path", path, "string")
  local tensors, metadata = peri.safetensors.load(path)
  if not tensors then return nil, metadata end
  local text = metadata and metadata[KEY]
  local about = text and peri.json.decode(text)
  if type(about) ~= "table" or not tensors.cursor or tensors.cursor.ndim ~= 1 or tensors.cursor.shape[1] ~= 8 then
    return nil, path .. " is no data set of rl.save_dataset"
  end
  if about.version ~= 1 then
    return nil, ("%s is a data set of version %s, this reads 1"):format(path, tostring(about.version))
  end
  local how, cursor = layout(tensors)
  if o.groups and how.rows % o.groups ~= 0 then
    options.raise(("rl.load_dataset: groups is %d, which does not share out %d rows"):format(o.groups, how.rows))
  end
  how.groups, how.n_step, how.gamma = o.groups, o.n_step, o.gamma
  cursor[6], cursor[7], cursor[8] = 0, 0, 0 -- whatever generator it was filled with
  tensors.cursor = peri.tensor(cursor, "i64")
  local buffer = peri.replay(how)
  buffer:load_state_dict(tensors)
  return buffer, { environment = about.environment, rows = how.rows, steps = cursor[3], info = about.info }
end
options.declare(M.load_dataset, { "path" }, load_rules)

return M
