-- rl.lua - `perilune bench rl`: the figures of reinforcement learning beside hand-written loops and peers, in one run
-- on one machine. Each part is a file of tests/bench/rl/ that returns a function of what they share.
--   --reps N (5)   --only WORD (part of a part's name)   --peers FOLDER (virtual environment)
local peri = require "perilune"
local here = arg[0]:match "^(.*)/[^/]*$" or "."
local measure = dofile(here .. "/peers/measure.lua")
local opts = measure.flags(arg, { reps = 5, only = "", peers = measure.home })

local names = {}
for _, file in ipairs(assert(peri.files.list(here .. "/rl"))) do names[#names + 1] = file:match "^(.*)%.lua$" end
table.sort(names)
for _, name in ipairs(names) do
  if name:find(opts.only, 1, true) then
    print("== " .. name .. " ==")
    dofile(here .. "/rl/" .. name .. ".lua") { measure = measure, opts = opts, here = here }
  end
end
