-- config.lua - adapter_config.json as PEFT writes it: each key is done, harmless, or refused by its name;
-- and which modules are meant, by PEFT's own rules (check_target_module_exists and get_pattern_key of
-- peft/tuners/tuners_utils.py and peft/utils/other.py).
local peri = require "perilune"
local options = require "perilune.options"
local pattern = require "perilune.peft.pattern"

local M = {}

-- Keys that say how an adapter was made or where it came from, of every kind.
local harmless = { "peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode",
  "peft_version" }

-- Keys of each kind that are read, and those that change nothing once the tensors are there.
local known = {
  LORA = { "r", "lora_alpha", "lora_dropout", "fan_in_fan_out", "bias", "use_rslora", "target_modules",
    "exclude_modules", "modules_to_save", "init_lora_weights", "layers_to_transform", "layers_pattern",
    "rank_pattern", "alpha_pattern",
    "megatron_core", "qalora_group_size", "runtime_config", "eva_config", "lora_ga_config", "use_dora" },
  PREFIX_TUNING = { "num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers",
    "num_transformer_submodules", "encoder_hidden_size", "prefix_projection" },
  BOTTLENECK = { "reduction", "act", "where", "target_modules", "std" },
}

-- What a key that is not done stands for.
local meanings = {
  use_dora = "DoRA", loftq_config = "LoftQ", corda_config = "CorDA", alora_invocation_tokens = "activated LoRA",
  arrow_config = "Arrow", kasa_config = "KaSA", use_qalora = "QALoRA", megatron_config = "Megatron's layers",
  layer_replication = "layers that are repeated", lora_bias = "a bias of lora_B",
  target_parameters = "parameters that are no layers",
  trainable_token_indices = "single rows of embeddings", velora_config = "VeLoRA", monteclora_config = "MonteCLoRA",
  use_bdlora = "BD-LoRA", ensure_weight_tying = "adapters that tied weights share",
}

-- Ways to begin that change the base model's weights: an adapter of them is none without that.
local changes_base = { pissa = "PiSSA", olora = "OLoRA", loftq = "LoftQ", corda = "CorDA", lora_ga = "LoRA-GA" }
local plain_begin = { gaussian = true, eva = true, orthogonal = true, default = true }

local function is_off(v)
  return v == nil or v == false or v == peri.json.null or type(v) == "table" and next(v) == nil
end

local function as_set(...)
  local set = {}
  for _, list in ipairs { ... } do for _, name in ipairs(list) do set[name] = true end end
  return set
end

-- ---- what the keys hold ----------------------------------------------------------------------------------

local size = options.integer(options.none, "[1, 16777216]")
local layer = options.integer(options.none, "[0, inf)")
local factor = options.number(options.none)
local text = options.value(options.none, "string")
local flag = options.boolean(false)

-- Keys that hold one value, one or a list of them, or values by pattern.
local one = { r = size, lora_alpha = factor, lora_dropout = options.number(0, "[0, 1)"), use_rslora = flag,
  fan_in_fan_out = flag, bias = options.choice("none", { "none", "all", "lora_only" }) }
local some = { target_modules = text, exclude_modules = text, modules_to_save = text, layers_pattern = text,
  layers_to_transform = layer }
local by_pattern = { rank_pattern = size, alpha_pattern = factor }

-- What is wrong with the value of a key, or nil.
local function problem_of_value(key, value)
  if one[key] then return options.problem(key, value, one[key]) end
  local rule = some[key] or by_pattern[key]
  if not rule or some[key] and type(value) ~= "table" then return rule and options.problem(key, value, rule) end
  if type(value) ~= "table" then return ("%s is %s, expected an object"):format(key, tostring(value)) end
  for k, v in pairs(value) do
    local problem = options.problem(("%s of %s"):format(type(k) == "string" and ("%q"):format(k) or "entry " .. k, key),
      v, rule)
    if problem then return problem end
  end
end

-- What is wrong with init_lora_weights, or nil.
local function problem_of_begin(value)
  if value == nil or type(value) == "boolean" then return nil end
  if type(value) ~= "string" then return "init_lora_weights is no text" end
  local name = value:lower():gsub("_niter_%d+$", "")
  if plain_begin[name] then return nil end
  if changes_base[name] then
    return ("init_lora_weights is %q: %s changes the base model's weights, so this is no plain LoRA; save it converted "
      .. "(path_initial_model_for_weight_conversion)"):format(value, changes_base[name])
  end
  return ("init_lora_weights is %q, which is not known"):format(value)
end

--- What an adapter's config says that is not done here, or nil.
--- @param c table  adapter_config.json, without its nulls
--- @return string?
function M.problem(c)
  local fine = as_set(harmless, known[c.peft_type])
  for _, key in ipairs(options.names(c)) do
    local value = c[key]
    if not is_off(value) and (not fine[key] or key == "use_dora") then
      return meanings[key] and ("%s is set, which is not supported: %s"):format(key, meanings[key])
        or ("%s is set, which is not known here"):format(key)
    end
  end
  if c.peft_type ~= "LORA" then return nil end
  if c.r == nil then return "r is missing" end
  for _, key in ipairs(options.names(c)) do
    local problem = problem_of_value(key, c[key])
    if problem then return problem end
  end
  return problem_of_begin(c.init_lora_weights)
end

-- ---- which modules --------------------------------------------------------------------------------------

local function ends_with(name, want) return name == want or name:sub(-#want - 1) == "." .. want end

local function list_of(value) return type(value) == "table" and value or { value } end

-- A text is a regular expression for the whole name, a list has names and ends of names.
local function matcher(value)
  if type(value) == "string" then
    local p = pattern.compile(value)
    return function (name) return p:fullmatch(name) end
  end
  return function (name)
    for _, want in ipairs(value) do if ends_with(name, want) then return true end end
    return false
  end
end

-- The number of the layer that a module is in: the first that stands behind one of the names in patterns, else behind
-- any name that has a name before it.
local function layer_of(name, patterns)
  for _, word in ipairs(patterns or { "[^.]*" }) do
    local p, at = pattern.compile(word), 1
    while at do -- at: where a word begins
      local from, found = at, nil -- a pattern takes as much as it can
      while true do
        local dot, stop, number = name:find("%.(%d+)%.", from)
        if not dot then break end
        if (patterns or at > 1) and dot >= at and p:fullmatch(name:sub(at, dot - 1)) then
          found = math.tointeger(tonumber(number))
        end
        from = stop
      end
      if found then return found end
      local dot = name:find(".", at, true)
      at = dot and dot + 1
    end
  end
end

-- Whether a module is, or is within, one that the adapter keeps whole: re.match(rf"(^|.*\\.){m}($|\\..*)", key).
local function replaced(c)
  local list = {}
  for i, word in ipairs(is_off(c.modules_to_save) and {} or list_of(c.modules_to_save)) do
    list[i] = pattern.compile("(.*\\.)?(" .. word .. ")(\\..*)?")
  end
  return function (name)
    for _, p in ipairs(list) do if p:fullmatch(name) then return true end end
    return false
  end
end

--- Whether a module is a target by an adapter's config.
--- @param c table
--- @return fun(name: string, kind: string): boolean  kind: "linear", "head", "embedding"
function M.chooser(c)
  local wanted = c.target_modules or "all-linear"
  local everything = wanted == "all-linear"
  local is_wanted = not everything and matcher(wanted)
  local is_excluded = not is_off(c.exclude_modules) and matcher(c.exclude_modules) or function () return false end
  local is_replaced = replaced(c)
  local layers = c.layers_to_transform
  if type(layers) == "table" and #layers == 0 then layers = nil end
  local patterns = not is_off(c.layers_pattern) and c.layers_pattern ~= "" and list_of(c.layers_pattern) or nil
  local in_layers = {}
  for _, n in ipairs(layers ~= nil and list_of(layers) or {}) do in_layers[n] = true end
  local exact = type(wanted) == "table" and as_set(wanted) or {}
  return function (name, kind)
    if is_excluded(name) or is_replaced(name) then return false end
    if everything then return kind == "linear" end
    if not is_wanted(name) then return false end
    if layers == nil or type(wanted) == "string" or exact[name] then return true end
    local number = layer_of(name, patterns)
    return number ~= nil and in_layers[number] == true
  end
end

--- The value of the first key, in the order of the file, that means a module.
--- @param patterns table?  alpha_pattern or rank_pattern
--- @return fun(name: string): any
function M.lookup(patterns)
  local list = {}
  for _, key in ipairs(patterns and peri.json.keys(patterns) or {}) do
    list[#list + 1] = { pattern.compile(key), patterns[key] }
  end
  return function (name)
    for _, entry in ipairs(list) do if entry[1]:ends(name) then return entry[2] end end
  end
end

--- Whether modules_to_save names a module: PEFT takes any end of its name.
--- @param c table
--- @param name string
--- @return boolean
function M.is_saved(c, name)
  for _, want in ipairs(is_off(c.modules_to_save) and {} or list_of(c.modules_to_save)) do
    if name:sub(-#want) == want then return true end
  end
  return false
end

return M
