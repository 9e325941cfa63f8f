-- Unknown fields of the module and its parts, and where errors of constructors point.
local lu = require "luaunit"
local peri = require "perilune"
local options = require "perilune.options"

local here = debug.getinfo(1, "S").short_src

TestNames = {}

local parts = { "flags", "nn", "optim", "sched", "data", "plot", "image", "gguf", "recipe", "serve", "rl", "loss", "text",
  "tokenizer", "models", "lm", "dist", "peft", "batch", "embed", "env", "reward", "sandbox", "tools", "algo", "post", "tasks", "json",
  "files", "safetensors", "npy", "npz", "idx" }

function TestNames.test_every_part_is_covered()
  local known = {}
  for _, name in ipairs(parts) do known[name] = true end
  for name in pairs(peri._public) do
    lu.assertTrue(known[name], name)
  end
end

local function reads(t, name) return function() local _ = t[name] end end

-- One letter is left out, doubled, or two are swapped: the message names what was meant, or something as near.
function TestNames.test_an_unknown_field_raises_and_names_the_nearest()
  for _, part in ipairs { "", table.unpack(parts) } do
    local t = part == "" and peri or peri[part]
    local title = part == "" and "perilune" or "perilune." .. part
    local some = {}
    for name in next, t do
      if type(name) == "string" and #name > 4 and name:sub(1, 1) ~= "_" then some[#some + 1] = name end
    end
    for _, name in ipairs(some) do
      for _, slip in ipairs { name:sub(1, -2), name .. name:sub(-1), name:sub(1, -3) .. name:sub(-1) .. name:sub(-2, -2) } do
        if rawget(t, slip) == nil and not (part == "" and pcall(reads(t, slip))) then
          local ok, message = pcall(reads(t, slip))
          lu.assertFalse(ok, title .. "." .. slip)
          lu.assertStrContains(message, ("%s:%d: %s has no '%s'; did you mean '"):format(here,
            debug.getinfo(reads, "S").linedefined, title, slip))
        end
      end
    end
  end
  lu.assertErrorMsgContains("perilune has no 'softmx'; did you mean 'softmax'?", reads(peri, "softmx"))
  lu.assertErrorMsgContains("perilune.nn has no 'Liner'; did you mean 'Linear'?", reads(peri.nn, "Liner"))
  lu.assertErrorMsgContains("perilune.post has no 'grop'; did you mean 'grpo'?", reads(peri.post, "grop"))
  lu.assertErrorMsgContains("perilune.models has no 'lama'; did you mean 'llama'?", reads(peri.models, "lama"))
  lu.assertErrorMsgContains("perilune has no 'optimm'; did you mean 'optim'?", reads(peri, "optimm")) -- not loaded yet
  lu.assertErrorMsgContains("perilune has no 'xyzzy_plugh'; help() lists what there is", reads(peri, "xyzzy_plugh"))
  lu.assertErrorMsgContains("help(peri.nn) lists what there is", reads(peri.nn, "xyzzy_plugh"))
end

function TestNames.test_one_may_ask_without_an_error()
  for _, part in ipairs { "", table.unpack(parts) } do
    local t = part == "" and peri or peri[part]
    lu.assertNil(rawget(t, "xyzzy_plugh"))
    lu.assertNil(t._private)
    lu.assertNil(t[1])
    lu.assertFalse((pcall(reads(t, "xyzzy_plugh"))))
  end
end

-- What our own files and pages read is there: a slip in a line that seldom runs would be found by a user.
function TestNames.test_every_name_in_the_sources_and_the_docs_exists()
  local missing, n = {}, 0
  local list = io.popen "find lua recipes docs tests/bench README.md -name '*.lua' -o -name '*.md'"
  for path in list:lines() do
    for line in io.lines(path) do
      for name, field in line:gmatch "%f[%w_]peri%.(%l[%w_]*)%.?(%a*[%w_]*)" do
        local ok, value = pcall(reads(peri, name))
        local there = ok and (type(value or peri[name]) ~= "table" or field == "" or pcall(reads(peri[name], field)))
        n = n + 1
        if not there and not (name == "name" and path:find "lua_api") then missing[#missing + 1] = path .. ": " .. line end
      end
    end
  end
  list:close()
  lu.assertEquals(missing, {})
  lu.assertTrue(n > 1000)
end

-- ---- where errors point ----

-- Every function and class whose arguments are declared, by its path.
local function constructors()
  local list, seen = {}, {}
  local function add(path, t, depth)
    for name in next, t do
      local value = rawget(t, name)
      if type(name) == "string" and name:sub(1, 1) ~= "_" and not seen[value] then
        if type(value) == "function" or type(value) == "table" then seen[value] = true end
        local method = rawget(t, "__index") ~= nil
        if options.declared(value) and not method then list[#list + 1] = { path .. "." .. name, value } end
        if type(value) == "table" and depth < 2 and name ~= "package" then add(path .. "." .. name, value, depth + 1) end
      end
    end
  end
  for _, part in ipairs(parts) do add("peri." .. part, peri[part], 0) end
  for _, name in ipairs { "grpo", "sft", "rows" } do add("peri.post." .. name, peri.post[name], 0) end
  table.sort(list, function(a, b) return a[1] < b[1] end)
  return list
end

local function plain(f, ...)
  local result = f(...)
  return result
end
local function tail(f, ...) return f(...) end
local function through(f, ...)
  local result = tail(f, ...)
  return result
end
local function in_a_coroutine(f, ...)
  local args = table.pack(...)
  local co = coroutine.create(function()
    local result = f(table.unpack(args, 1, args.n))
    return result
  end)
  local ok, message = coroutine.resume(co)
  if not ok then error(message, 0) end
  return message
end

-- What a user gets wrong blames the user's file, also where the call was a tail call.
function TestNames.test_constructors_blame_the_line_that_calls_them()
  local list, raised = constructors(), 0
  lu.assertTrue(#list > 30)
  for _, entry in ipairs(list) do
    for _, args in ipairs { { { xyzzy_plugh = 1 } }, { 1, { xyzzy_plugh = 1 } }, { true, true, true, true, true }, {} } do
      for how, call in pairs { plain = plain, ["tail call"] = through, coroutine = in_a_coroutine } do
        local ok, message = pcall(call, entry[2], table.unpack(args))
        local lua_own = tostring(message):find "attempt to " -- of a value in a place that takes any
        if not ok and not lua_own then
          raised = raised + 1
          lu.assertEquals(tostring(message):match "^(.-):%d+: ", here, ("%s, %s: %s"):format(entry[1], how, message))
        end
      end
    end
  end
  lu.assertTrue(raised > 300)
end

os.exit(lu.LuaUnit.run())
