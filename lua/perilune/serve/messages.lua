-- messages.lua - errors as clients read them.
local M = {}

--- A raised message without the places in our own source, as text that JSON can hold.
--- @param message any
--- @return string
function M.plain(message)
  message = tostring(message):match "^[^\n]*"
  while message:find "^[^%s:]+%.lua:%d+: " do message = message:gsub("^[^%s:]+%.lua:%d+: ", "", 1) end
  return utf8.len(message) and message or (message:gsub("[\x80-\xff]", "?"))
end

return M
