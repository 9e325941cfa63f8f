-- Arrows between the rooms of lua/perilune point down, as docs/design/rooms.md says.
local lu = require "luaunit"
local peri = require "perilune"

TestRooms = {}

local library = debug.getinfo(1, "S").source:match "^@(.*)tests/lua/" .. "lua/perilune"

-- A room may require rooms of its own level and of lower ones. What stands beside the rooms is free.
local level = {
  nn = 1, text = 1, weights = 1, data = 1, dist = 1,
  models = 2, peft = 2, optim = 2, loss = 2,
  decode = 3, env = 3, rl = 3, reward = 3, lm = 3, tasks = 3, tools = 3, parallel = 3,
  algo = 4,
  run = 5, serve = 5, command = 6,
}

-- Arrows that point up, each with its reason.
local allowed = {
  -- methods of a model that are whole programs over it: model:generate, model:vectors
  ["models/base.lua -> decode.generate"] = true,
  ["models/seq2seq.lua -> decode.generate"] = true,
  ["models/base.lua -> lm.embed"] = true,
}

-- fn(room, path, text) for every file in a room.
local function each_file(fn)
  local function visit(room, folder)
    for _, name in ipairs(assert(peri.files.list(folder))) do
      local path = folder .. "/" .. name
      if peri.files.exists(path) == "folder" then visit(room or name, path)
      elseif room then fn(room, path, assert(peri.files.read(path))) end
    end
  end
  visit(nil, library)
end

function TestRooms.test_every_room_has_a_level()
  each_file(function (room, path) lu.assertNotNil(level[room], path) end)
end

function TestRooms.test_arrows_point_down()
  local used, up = {}, {}
  each_file(function (room, path, text)
    for target in text:gmatch "require%s*%(?%s*[\"']perilune%.([%w_%.]+)" do
      local other = target:match "^[^%.]+"
      if (level[other] or 0) > level[room] then
        local arrow = path:sub(#library + 2) .. " -> " .. target
        used[arrow] = true
        if not allowed[arrow] then up[#up + 1] = arrow end
      end
    end
  end)
  lu.assertEquals(up, {})
  for arrow in pairs(allowed) do lu.assertTrue(used[arrow], arrow .. " is allowed and not there") end
end

-- peri.NAME and require "perilune.NAME" are one, whatever room the file stands in.
function TestRooms.test_a_public_name_is_required_under_that_name()
  local function same(name, module)
    lu.assertTrue(rawequal(require("perilune." .. name), module), name)
  end
  for name, file in pairs(peri._public) do
    if type(file) == "string" then same(name, peri[name]) end
    for part in pairs(type(file) == "table" and file or {}) do same(name .. "." .. part, peri[name][part]) end
  end
end
