-- refusal.lua - errors about the outside world: a full disk, a damaged file, a folder that somebody else is
-- writing. No line of a script is to blame, so the program prints the message without a traceback.

local M = {}

local Refusal = { __name = "perilune.refusal" }
Refusal.__index = Refusal

--- A function whose text follows every message while it is set: where to go on, in the loop of a run.
--- @type fun(): string
M.hint = nil

function Refusal.__tostring(self)
  return M.hint and not self.whole and ("%s\n%s"):format(self.message, M.hint()) or self.message
end

--- Raise one: an object whose tostring is the message.
--- @param message string
--- @param whole boolean?  nothing is to follow
function M.raise(message, whole) error(setmetatable({ message = message, whole = whole }, Refusal), 0) end

--- The message that a function of peri.files gave, without the name of the function.
--- @param message string
--- @return string
function M.bare(message) return (message:gsub("^%w[%w_:]*[%.:][%w_]+: ", "")) end

return M
