-- markup.lua - methods of markup, MarkupSafe's text that is escaped already: those of a text, whose results
-- are markup again and whose arguments are escaped where they become part of it. format and format_map
-- are in operators.lua.

local methods = require "perilune.text.template.methods"
local params = require "perilune.text.template.params"
local text = require "perilune.text.template.text"
local values = require "perilune.text.template.values"

local M = {}

local str = methods.str

-- The text without what lies between two marks; an open mark without its end stays.
local function without(s, open, close)
  local out, i = {}, 1
  while true do
    local a = s:find(open, i, true)
    local _, b = nil, nil
    if a then _, b = s:find(close, a + #open, true) end
    if not b then break end
    out[#out + 1] = s:sub(i, a - 1)
    i = b + 1
  end
  return table.concat(out) .. s:sub(i)
end

local plain_entities = { amp = "&", lt = "<", gt = ">", quot = '"', ["#39"] = "'", ["#34"] = '"' }

local function unescape(s)
  values.charge_text(#s)
  return (s:gsub("&(#?%w%w?%w?%w?);", plain_entities))
end

--- The text without tags and comments, its white space single blanks.
function M.striptags(s)
  values.charge_chars(s)
  s = without(without(s, "<!--", "-->"), "<", ">")
  local list_of = str.split(s, { n = 0 })
  return unescape(table.concat(list_of, " ", 1, list_of.n))
end

local markup = methods.add "markup"
M.methods = markup

local function def(name, spec, fn, raw) markup[name] = params.bind(name, spec, fn, raw) end

-- Methods of a text whose result is markup, and which of their arguments is escaped.
for name, escaped in pairs { capitalize = 0, title = 0, lower = 0, upper = 0, swapcase = 0, casefold = 0, strip = 0,
  lstrip = 0, rstrip = 0, expandtabs = 0, zfill = 0, removeprefix = 0, removesuffix = 0, replace = 2, ljust = 2,
  rjust = 2, center = 2, split = 0, rsplit = 0, splitlines = 0, partition = 0, rpartition = 0 } do
  local method = str[name]
  markup[name] = function(v, args, names)
    if args and args.n >= escaped and escaped > 0 then
      args = values.copy(args, args.n)
      args[escaped] = text.escape(args[escaped])
    end
    local result = method(v.s, args, names)
    if type(result) == "string" then return values.markup(result) end
    for i = 1, result.n do result[i] = values.markup(result[i]) end
    return result
  end
end

def("join", "/iterable!", function(v, over)
  local items, n = values.iterate(over)
  local out = {}
  for i = 1, n do out[i] = text.escape(items[i]) end
  return values.markup(str.join(v.s, { n = 1, values.list(out, n) }))
end, "first")

def("escape", "/s!", function(_, s) return values.markup(text.escape(s)) end, "all")
def("striptags", "", M.striptags)
def("unescape", "", unescape)

-- All other methods are those of the text.
setmetatable(markup, { __index = function(_, name)
  local method = str[name]
  return method and function(v, args, names) return method(v.s, args, names) end
end })

return M
