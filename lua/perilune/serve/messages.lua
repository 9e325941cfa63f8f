-- messages.lua - errors as clients read them: refusals with a status, and what was raised.
local peri = require "perilune"

local M = {}

local Refused = { __tostring = function (self) return self.message end }

--- Raise a refusal, which the client gets as a status and a message; of a job, as a failure that is its own fault.
--- @param status integer
--- @param format string
function M.refuse(status, format, ...)
  error(setmetatable({ status = status, message = format:format(...) }, Refused), 0)
end

--- Whether an error is a refusal: then it has status and message.
--- @param err any
--- @return boolean
function M.is_refusal(err) return getmetatable(err) == Refused end

--- A value of a request as messages show it: its JSON, cut where it is long.
--- @param v any
--- @return string
function M.shown(v)
  local ok, said = pcall(peri.json.encode, v, { nan = "literal" })
  if not ok then said = ("%q"):format(tostring(v)) end -- nil, bytes that are no UTF-8
  return #said > 60 and said:sub(1, 57) .. "..." or said
end

--- A raised message without the places in our own source, as text that JSON can hold.
--- @param message any
--- @return string
function M.plain(message)
  message = tostring(message):match "^[^\n]*"
  while message:find "^[^%s:]+%.lua:%d+: " do message = message:gsub("^[^%s:]+%.lua:%d+: ", "", 1) end
  return utf8.len(message) and message or (message:gsub("[\x80-\xff]", "?"))
end

return M
