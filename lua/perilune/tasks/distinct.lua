-- distinct.lua - different problems of a task, on one side of its held-out share.

local options = require "perilune.options"

local MOST <const> = 50000 -- draws without a new one

--- So many problems, no two with one prompt.
--- @param who string  function named in messages
--- @param n integer
--- @param draw fun(): table  a row with a prompt
--- @param fits fun(row: table): boolean  on the side that is asked for
--- @return table[] rows
return function (who, n, draw, fits)
  options.argument(who, "n", n, "number")
  local rows, seen, tries = {}, {}, 0
  while #rows < n do
    local row = draw()
    tries = tries + 1
    if tries > MOST then
      options.raise(("%s: found %d different problems, %d were asked for"):format(who, #rows, n))
    end
    if fits(row) and not seen[row.prompt] then
      seen[row.prompt], tries = true, 0
      rows[#rows + 1] = row
    end
  end
  return rows
end
