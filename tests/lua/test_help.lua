-- help(x) and the comments that it reads: constructors with their options, wrapped to the terminal.
local lu = require "luaunit"
local comments = require "perilune.comments"
local options = require "perilune.options"
local peri = require "perilune"

local function shown(...)
  local out, real = {}, print
  print = function(text) out[#out + 1] = text end -- luacheck: ignore 121
  local ok, message = pcall(peri.help, ...)
  print = real -- luacheck: ignore 121
  assert(ok, message)
  return table.concat(out, "\n")
end

TestTitles = {}

-- Whatever users reach has its own name in the title of its help, not that of a file.
function TestTitles.test_every_public_function_is_titled_by_a_name_that_users_can_read()
  local seen, count, wrong = {}, 0, {}
  local function resolve(path)
    local value = peri
    for part in path:gmatch "[^.]+" do
      if type(value) ~= "table" then return nil end
      value = value[part]
    end
    return value
  end
  local function check(path, value)
    local title = shown(value):match "^([%w_.]+)%("
    count = count + 1
    local ok, found = pcall(resolve, title and title:gsub("^peri%.", "") or "")
    if not ok or not rawequal(found, value) then wrong[#wrong + 1] = ("%s is titled %s"):format(path, tostring(title)) end
  end
  local function walk(t, path)
    seen[t] = true
    for key, value in pairs(t) do
      local meta = type(value) == "table" and getmetatable(value)
      local class = type(meta) == "table" and type(meta.__call) == "function" and rawget(value, "__index") ~= nil
      if type(key) == "string" and key:sub(1, 1) ~= "_" then
        local name = path .. key
        if type(value) == "function" and not peri.describe(value) or class and options.declared(value) then check(name, value)
        elseif type(value) == "table" and not class and not seen[value] and not getmetatable(value) then walk(value, name .. ".")
        elseif type(value) == "table" and not class and not seen[value] and value ~= peri and path == "" then
          walk(value, name .. ".")
        end
      end
    end
  end
  for name, file in pairs(peri._public) do
    local t = peri[name]
    if type(file) == "table" then for key in pairs(file) do walk(t[key], name .. "." .. key .. ".") end
    else walk(t, name .. ".") end
  end
  lu.assertEquals(wrong, {})
  lu.assertTrue(count > 400, count)
  lu.assertStrContains(shown(peri.nn.init.lsuv_), "nn.init.lsuv_(module, batch")
end

TestComments = {}

local source = [[
-- head.lua - what it is.
-- More of it.

--- Adds a number, as in Smith et al. 2020. Raises for text.
---   f(1)
--- @param x number|fun(a: integer, b: string): boolean  what is added,
--- on two lines
--- @param opts { a: boolean? }?  a (true)
--- @return integer sum  of both
--- @return string?
function M.f(x, opts) end

-- Not public.
local function g() end

--- @class perilune.thing.Thing
--- @field size integer  in bytes
local Thing = {}

--- Goes.
function Thing:go(n) end

--- A constructor.
M.Make = class("Make", function(self, ...) end)
]]

function TestComments:test_items_are_read_with_their_annotations()
  local items = comments.items(source)
  local f = items[1]
  lu.assertEquals({ f.owner, f.name, f.kind, f.args, f.line }, { "M", "f", "function", "x, opts", 11 })
  lu.assertEquals(f.text, "Adds a number, as in Smith et al. 2020. Raises for text.\n  f(1)")
  lu.assertEquals(f.params[1], { name = "x", type = "number|fun(a: integer, b: string): boolean",
    doc = "what is added,\non two lines" })
  lu.assertEquals(f.params[2], { name = "opts", type = "{ a: boolean? }?", doc = "a (true)" })
  lu.assertEquals(f.returns, { { type = "integer", name = "sum", doc = "of both" }, { type = "string?", doc = "" } })
  lu.assertEquals({ items[2].name, items[2].public }, { "g", false })
  lu.assertEquals({ items[3].kind, items[3].class, items[3].fields[1].doc }, { "class", "perilune.thing.Thing", "in bytes" })
  lu.assertEquals({ items[4].owner, items[4].name, items[4].kind }, { "Thing", "go", "method" })
  lu.assertEquals({ items[5].owner, items[5].name, items[5].kind }, { "M", "Make", "value" })
  lu.assertEquals(comments.head(source), "head.lua - what it is.\nMore of it.")
end

function TestComments:test_a_summary_is_the_first_sentence()
  lu.assertEquals(comments.summary "Adds a\nnumber, as in Smith et al. 2020. Raises.", "Adds a number, as in Smith et al. 2020")
  lu.assertEquals(comments.summary "Ends. Here", "Ends")
  lu.assertEquals(comments.summary "{ 1, ... } and more", "{ 1, ... } and more")
  lu.assertEquals(comments.summary "", "")
end

function TestComments:test_wrapping_keeps_code_and_paragraphs()
  lu.assertEquals(comments.wrap("one two three\nfour\n\n  code   stays\nfive", 9), "one two\nthree\nfour\n\n  code   stays\nfive")
end

TestHelp = {}

function TestHelp:test_a_constructor_shows_arguments_and_options()
  local rules = { size = options.integer(options.required, "[1, inf)", "of both sides"),
    bias = options.boolean(true, "adds a constant") }
  local f = options.declare(function() end, { "size" }, rules)
  local text = shown(f)
  lu.assertStrContains(text, "function(size, options)")
  lu.assertStrContains(text, "adds a constant; true or false, default true")
  lu.assertStrContains(text, "of both sides; integer in [1, inf), positional")
end

function TestHelp:test_names_are_found_with_and_without_their_module()
  lu.assertStrContains(shown "nn.Linear", "nn.Linear(")
  lu.assertStrContains(shown "Linear", "nn.Linear(")
  lu.assertEquals(shown(peri.nn.Linear), shown "peri.nn.Linear")
end

function TestHelp:test_an_object_lists_its_methods()
  lu.assertStrContains(shown(peri.nn.Linear(2, 3)), "forward(x, decoding, act)")
  lu.assertStrContains(shown(peri.data.list { 1 }), "shuffle(seed, options)")
  local env = peri.env.make("Taxi-v4", { n = 2 }) -- its fields are made when they are asked for
  lu.assertStrContains(shown(env), "fields: action_space")
  lu.assertStrContains(shown(env), "state_dict()")
  lu.assertStrContains(shown(env.action_space), "fields: dtype kind n")
  lu.assertStrContains(shown(env.reset), "Env:reset(options)\n")
  lu.assertStrContains(shown(peri.replay), "peri.replay(options)\n")
end

function TestHelp:test_methods_are_found_by_the_word_for_their_object()
  lu.assertStrContains(shown "stream:batch", "Lists of n rows")
  lu.assertStrContains(shown "optimizer:step", "Move every parameter")
  lu.assertStrContains(shown "run:plot", "Curves of metrics")
  lu.assertStrContains(shown "run:no_such", "nothing is called")
end

function TestHelp:test_the_overview_has_modules_in_c_and_functions_in_lua()
  local text = shown()
  for _, name in ipairs { "safetensors", "npz", "split", "recipe" } do lu.assertStrMatches(text, ".*%f[%w]" .. name .. "%f[%W].*") end
  lu.assertNotStrContains(text, "_backward")
end

function TestHelp:test_the_logarithm_and_the_logger_are_told_apart()
  lu.assertStrContains(shown "log", "Natural logarithm")
  lu.assertNil(shown():match "\n[^\n]*%f[%w]log%f[%W][^\n]*recipe")
end

function TestHelp:test_no_line_is_wider_than_the_terminal()
  local width = require("perilune.terminal").width()
  for name, at in pairs(peri._public) do
    if type(at) == "table" then goto next end
    local code, file = {}, assert(io.open(assert(package.searchpath("perilune." .. at, package.path)), "rb"))
    for line in (comments.head(file:read "a") .. "\n"):gmatch "(.-)\n" do code[line] = true end
    file:close()
    for line in (shown(name) .. "\n"):gmatch "(.-)\n" do -- the code of a head and one long word stay as they are
      local whole = line:find "^  " and code[line] or line:find "^ *%S+$"
      lu.assertEvalToTrue(whole or utf8.len(line) <= width, name .. ": " .. line)
    end
    ::next::
  end
end

-- fn(path, name, function) for what a module and the classes in it offer.
local function each_function(t, path, seen, fn)
  if seen[t] then return end
  seen[t] = true
  for key, value in pairs(t) do
    if type(key) == "string" and key:sub(1, 1) ~= "_" then
      if type(value) == "function" and not seen[value] then
        seen[value] = true
        fn(path, key, value)
      elseif type(value) == "table" and rawget(value, "__index") then
        each_function(value, path .. "." .. key, seen, fn)
      end
    end
  end
end

-- What public functions take in a table is declared, so that it is checked, shown and on the pages. These hand the table on
-- to a function that does.
local hand_on = { ["embed.rows"] = true, ["nn.MultiHeadAttention.forward"] = true, ["rl.greedy_rewards"] = true }

function TestHelp:test_a_documented_table_of_options_is_declared()
  local missing, seen, items = {}, {}, {}
  for name, at in pairs(peri._public) do
    for part, file in pairs(type(at) == "table" and at or { [""] = at }) do
      local path = part == "" and name or name .. "." .. part
      each_function(require("perilune." .. file), path, seen, function(of, key, f)
        local info = debug.getinfo(f, "S")
        if info.what == "C" or peri.describe(f) then return end
        if not items[info.source] then
          items[info.source] = {}
          for _, item in ipairs(comments.items(assert(peri.files.read(info.source:sub(2))))) do
            items[info.source][item.line] = item
          end
        end
        local item = items[info.source][info.linedefined]
        for _, p in ipairs(item and item.params or {}) do
          local table_of_options = (p.name == "opts" or p.name == "given") and p.type:find "^table"
          if table_of_options and not options.declared(f) and not hand_on[of .. "." .. key] then
            missing[#missing + 1] = of .. "." .. key
          end
        end
      end)
    end
  end
  lu.assertEquals(missing, {})
end

function TestHelp:test_everything_public_has_a_sentence()
  local missing, seen, items = {}, {}, {}
  local modules = { "log", "text.chat", "text.template" }
  for name, at in pairs(peri._public) do
    if type(at) == "string" then modules[#modules + 1] = name end
    for part in pairs(type(at) == "table" and at or {}) do modules[#modules + 1] = name .. "." .. part end
  end
  for _, name in ipairs(modules) do
    each_function(require("perilune." .. name), name, seen, function(path, key, f)
      local info = debug.getinfo(f, "S")
      if info.what == "C" or peri.describe(f) then return end
      if (key == "forward" or key == "extra") and path:find "%.%u" then return end -- the class says it
      if not items[info.source] then
        items[info.source] = {}
        local file = assert(io.open(info.source:sub(2), "rb"))
        for _, item in ipairs(comments.items(file:read "a")) do items[info.source][item.line] = item end
        file:close()
      end
      local item = items[info.source][info.linedefined]
      if not item or item.text == "" then missing[#missing + 1] = path .. "." .. key end
    end)
  end
  table.sort(missing)
  lu.assertEquals(missing, {})
end

function TestHelp:test_a_name_for_modules_lists_them_and_they_are_found_by_theirs()
  for room, below in pairs(peri._public) do
    for name in pairs(type(below) == "table" and room ~= "post" and below or {}) do
      lu.assertStrContains(shown(peri[room]), "\n  " .. name .. " ")
    end
  end
  lu.assertStrContains(shown "dpo", "new(options)")
  lu.assertStrContains(shown "algo.ppo", "new(options)")
end

if arg and arg[0] and arg[0]:find "test_help" then os.exit(lu.LuaUnit.run()) end
