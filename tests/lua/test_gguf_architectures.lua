-- The facts of an architecture in GGUF files stand in one file each: lua/perilune/weights/gguf/arch/.
local lu = require "luaunit"
local peri = require "perilune"
local architectures = require "perilune.weights.gguf.arch"
local transforms = require "perilune.weights.gguf.transforms"

TestGgufArchitectures = {}

local folder = debug.getinfo(architectures.find, "S").source:match "^@(.*/)"

function TestGgufArchitectures.test_every_file_is_listed_and_every_one_listed_is_there()
  local files = {}
  for _, file in ipairs(assert(peri.files.list(folder))) do
    local name = file:match "^(.+)%.lua$"
    if name ~= "init" and name ~= "decoder" then files[#files + 1] = name end
  end
  table.sort(files)
  lu.assertEquals(architectures.names, files)
end

-- Each fact has its kind; a fact that nothing reads would be ignored in silence.
local kinds = { model_types = "table", class = "string", tensors = "table", other_names = "function",
  published = "function", read = "function", write = "function", layers = "string", needs = "table",
  embeddings = "table", tied = "boolean", turned = "boolean", holds = "table", drops_more_layers = "boolean",
  name = "string" }

function TestGgufArchitectures.test_every_fact_is_known()
  for _, name in ipairs(architectures.names) do
    for key, value in pairs(assert(architectures.find(name))) do
      if key == "causal" then lu.assertTrue(value == true or value == false or value == "either", name)
      else lu.assertEquals(type(value), kinds[key], name .. "." .. key) end
    end
  end
end

function TestGgufArchitectures.test_a_config_is_written_as_one_architecture()
  local seen = {}
  for _, name in ipairs(architectures.names) do
    for _, kind in ipairs(architectures.find(name).model_types) do
      lu.assertNil(seen[kind], kind)
      seen[kind] = name
      lu.assertEquals(architectures.of_config({ model_type = kind }).name, name)
      lu.assertNotNil((peri.models.architecture { model_type = kind }), kind)
    end
  end
  local none, message = architectures.of_config { model_type = "abacus" }
  lu.assertNil(none)
  lu.assertStrContains(message, "abacus")
end

function TestGgufArchitectures.test_a_tensor_has_one_name_and_a_transformation_that_exists()
  for _, name in ipairs(architectures.names) do
    local seen = {}
    for _, entry in ipairs(architectures.find(name).tensors) do
      lu.assertNil(seen[entry[1]], name .. ": " .. entry[1])
      seen[entry[1]] = true
      local how = entry[3]
      lu.assertTrue(how == nil or how == "k_b" or how == "v_b" or transforms[how] ~= nil, name .. ": " .. tostring(how))
    end
  end
end

-- Rows of heads there and back, of floats and of blocks.
function TestGgufArchitectures.test_what_is_written_is_read_again()
  local config = { num_attention_heads = 4, num_key_value_heads = 2 }
  for _, how in ipairs { "q", "k", "transposed", "plus_one" } do
    local x = peri.randn { 16, 32 }
    local back = transforms[how].read(transforms[how].write(x, config), config)
    lu.assertTrue(back:sub(x):abs():max():item() <= (how == "plus_one" and 1e-6 or 0), how)
  end
end
