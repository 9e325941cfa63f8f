-- params.lua - arguments of a call against a list of parameter names, as Python binds them.

local values = require "perilune.text.template.values"

local M = {}

--- Makes fn, which takes its arguments in a row (nil where left out), callable with (first, args,
--- names): args has n, names is a dict or nil.
--- A "/" before the parameters: they are given by position alone.
--- @param who string
--- @param spec string  parameter names in order, "!" behind those that must be given
--- @param fn function  (first, ...)
--- @param raw string?  "first" or "all": what comes as markup where it is markup; the rest as plain text
--- @return function
function M.bind(who, spec, fn, raw)
  local plain = values.plain
  local list, required, index = {}, 0, {}
  local by_position = spec:find("^/") ~= nil
  for name, must in spec:gmatch "([%w_]+)(!?)" do
    list[#list + 1] = name
    index[name] = #list
    if must == "!" then required = #list end
  end
  local count = #list
  return function(first, args, names)
    local n = args and args.n or 0
    if n > count then values.raise("%s takes at most %d arguments, got %d", who, count, n) end
    if not raw then first = plain(first) end
    if n == 0 and required == 0 and not names then return fn(first) end
    local a, b, c, d, e = nil, nil, nil, nil, nil
    if n > 0 then a, b, c, d, e = args[1], args[2], args[3], args[4], args[5] end
    if names then
      if by_position then values.raise("%s takes no keyword arguments", who) end
      local all = { a, b, c, d, e }
      for i = 1, names.n do
        local name, value = values.pair(names, i)
        local k = index[name]
        if not k then values.raise("%s takes no argument '%s'", who, tostring(name)) end
        if k <= n then values.raise("%s: argument '%s' is given twice", who, name) end
        all[k] = value
      end
      a, b, c, d, e = all[1], all[2], all[3], all[4], all[5]
    end
    if required > 0 then
      local have = { a, b, c, d, e }
      for k = 1, required do
        if have[k] == nil then values.raise("%s: argument '%s' is missing", who, list[k]) end
      end
    end
    if raw ~= "all" then a, b, c, d, e = plain(a), plain(b), plain(c), plain(d), plain(e) end
    return fn(first, a, b, c, d, e)
  end
end

return M
