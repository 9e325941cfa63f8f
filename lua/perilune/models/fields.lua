-- fields.lua - what architectures read from a config: sizes, factors, ties, activations; each checked where it is read,
-- so that a message names the key.
local activation = require "perilune.nn.activation"

local M = {}

--- A size of a config: an integer from 1 to 2^24, or a message that names it.
--- @param config table
--- @param key string
--- @param default integer?  where it is absent; without one it must be there
--- @return integer
function M.need(config, key, default)
  local value = config[key]
  if value == nil then
    return default or error(("%s: the config lacks %q"):format(config.model_type or "model", key), 0)
  end
  local n = type(value) == "number" and math.tointeger(value)
  if n and n >= 1 and n <= 1 << 24 then return n end
  error(("%s: %s is %s, expected an integer from 1 to 2^24"):format(config.model_type, key, tostring(value)), 0)
end

--- A number of a config, or a message that names it. A key that is false is absent.
--- @param config table
--- @param key string
--- @param default number?  where it is absent
--- @param most number?  default: no bound; the least is 0
--- @return number?
function M.number(config, key, default, most)
  local value = config[key]
  if value == nil or value == false then return default end
  if type(value) == "number" and value >= 0 and value <= (most or math.maxinteger) then return value end
  error(("%s: %s is %s, expected a number from 0%s"):format(config.model_type or "model", key,
    type(value) == "string" and ("%q"):format(value) or tostring(value), most and " to " .. most or " on"), 0)
end

--- An integer of a config from 0 to 2^24.
--- @param config table
--- @param key string
--- @param default integer?
--- @return integer?
function M.count(config, key, default)
  local value = M.number(config, key, default, 1 << 24)
  return value and (math.tointeger(value)
    or error(("%s: %s is %s, expected an integer"):format(config.model_type or "model", key, value), 0))
end

--- How many layers: no more than there are tensors, so that no list is made for nothing.
function M.need_layers(config, key, has)
  local n, most = M.need(config, key), 0
  if not has then return n end
  for _ in pairs(has) do most = most + 1 end
  if n <= most then return n end
  error(("%s: %s is %d, and there are %d tensors"):format(config.model_type, key, n, most), 0)
end

--- Whether the head is the embedding: as the config says; where it says nothing and there is one of the two alone,
--- it is both.
--- @param config table
--- @param has table?  the published names that there are
--- @param embed string  names of the two
--- @param head string
--- @param default boolean  of the architecture
--- @return boolean
function M.tied(config, has, embed, head, default)
  if config.tie_word_embeddings ~= nil then return config.tie_word_embeddings end
  if has and not has[embed] ~= not has[head] then return true end
  return default
end

--- An activation of a config under the name that the op `linear` has for it.
function M.activation(config, key, default)
  local entry, message = activation.published(config[key] or default)
  if entry then return entry.name end
  error(("%s: the setting %s = %q is not supported: %s"):format(config.model_type or "model", key,
    tostring(config[key]), message), 0)
end

return M
