-- crew.lua - workers that learn or play for one learner: a Lua state each, orders to each, answers from all. One that
-- fails ends the wait for the others with its own message.

local peri = require "perilune"
local options = require "perilune.options"

local M = {}

--- Workers and their channels.
--- @class perilune.rl.Crew
--- @field n integer
--- @field workers table[]
--- @field answers table  a channel: { i, value, place } of worker i
local Crew = {}
Crew.__index = Crew
Crew.__name = "perilune.rl.Crew"

local rules = {
  n = options.integer(options.required, "[1, inf)", "workers"),
  run = options.value(options.required, "function", "run(i, orders, answers, ...) of worker i: for each order, "
    .. "{ value, place }, it answers with answers:send { i, value, place }"),
  ahead = options.integer(2, "[1, inf)", "answers of each worker that may wait, before it does"),
}

--- Start workers, each a Lua state of its own on a thread of its own (docs/threads.md). Further arguments go to each.
---
---     local crew <close> = rl.crew({ n = 2, run = function (i, orders, answers)
---       for _, order in orders:each() do answers:send { i, order[1] * i } end
---     end })
---     crew:send(10)
---     assert(crew:gather()[2] == 20)
---
--- @param opts table
--- @param ... any  further arguments of run: what a worker takes
--- @return perilune.rl.Crew  `<close>` ends it
function M.crew(opts, ...)
  local o = options.fill("rl.crew", opts, rules)
  local self = setmetatable({ n = o.n, workers = {}, orders = {}, places = {}, _resumed = {},
                              answers = peri.channel(o.n * o.ahead) }, Crew)
  for i = 1, o.n do
    self.orders[i] = peri.channel(o.ahead)
    self.workers[i] = peri.worker(o.run, i, self.orders[i], self.answers, ...)
  end
  return self
end
options.declare(M.crew, {}, rules)

-- Raise what a worker died of, if one did.
local function look(self)
  for i, worker in ipairs(self.workers) do
    local status = worker:status()
    if status == "failed" or status == "interrupted" then
      local _, why = pcall(worker.result, worker)
      self:close()
      local text = tostring(type(why) == "table" and why.message or why)
      options.raise(("rl.crew: worker %d of %d %s; the others were stopped, and the learner is as it was: %s"):format(i,
        self.n, status == "failed" and "failed" or "was interrupted", text))
    end
  end
end

--- Give an order to every worker: it gets { order, place }, place being where it was in a run that is resumed, once.
--- @param order any  what a channel takes
function Crew:send(order)
  for i = 1, self.n do self:give(i, order) end
end

--- Give an order to one worker.
--- @param i integer
--- @param order any  what a channel takes
function Crew:give(i, order)
  repeat
    local ok, why = self.orders[i]:send({ order, self._resumed[i] }, 0.2)
    if not ok then look(self) end
  until ok or why == "closed"
  self._resumed[i] = nil
end

--- The next answer, whoever gave it. Raises when a worker has failed.
--- @return any value
--- @return integer i  of the worker
function Crew:receive()
  while true do
    look(self) -- one that failed is told at once, also while others go on answering
    local answer = self.answers:receive(0.2)
    if answer then
      self.places[answer[1]] = answer[3] or self.places[answer[1]]
      return answer[2], answer[1]
    end
    local running = false
    for _, worker in ipairs(self.workers) do running = running or worker:status() == "running" end
    if not running and #self.answers == 0 then
      look(self)
      options.raise "rl.crew: every worker has ended, and there is no answer left"
    end
  end
end

--- One answer of each worker, in their order, whichever came first. Raises when a worker has failed, or answered twice.
--- @return any[]  of worker 1, 2, ...
function Crew:gather()
  local all = {}
  for _ = 1, self.n do
    local value, i = self:receive()
    if all[i] ~= nil then options.raise(("rl.crew: worker %d has answered twice to one order"):format(i)) end
    all[i] = value
  end
  return all
end

--- End all workers: those that wait for an order end by themselves, the others are interrupted. Errors of theirs were
--- told, or are dropped.
function Crew:close()
  for _, orders in ipairs(self.orders) do orders:close() end
  self.answers:close()
  for _, worker in ipairs(self.workers) do
    if worker:status() == "running" and not worker:join(1) then worker:interrupt():join() end
    pcall(worker.result, worker)
  end
end
Crew.__close = Crew.close

--- Where a worker is: the state of its environment and of its generator, for the third part of an answer.
--- @param env perilune.env.Env
--- @return table
function M.place(env)
  local tensors, plain = env:state_dict()
  return { tensors = tensors, env = plain, rng = peri.rng_state() }
end

--- Go on from there; without a place nothing happens.
--- @param env perilune.env.Env
--- @param place table?
function M.take_place(env, place)
  if not place then return end
  env:load_state_dict(place.tensors, place.env)
  peri.set_rng_state(place.rng)
end

--- Where all workers were when they last answered, for run:track.
--- @return table tensors
--- @return table plain
function Crew:state_dict()
  local tensors, plain = {}, {}
  for i = 1, self.n do
    local place = self.places[i] or { tensors = {} }
    for name, t in pairs(place.tensors) do tensors[("%d.%s"):format(i, name)] = t end
    plain[i] = { env = place.env, rng = place.rng }
  end
  return tensors, plain
end

--- Let the workers go on from there with the next order.
--- @param tensors table
--- @param plain table
function Crew:load_state_dict(tensors, plain)
  options.argument("load_state_dict", "plain", plain, "table")
  if #plain ~= self.n then
    options.raise(("load_state_dict: the state is of %d workers, expected %d"):format(#plain, self.n))
  end
  for i, p in ipairs(plain) do
    local place = p.rng and { env = p.env, rng = p.rng, tensors = {} } or nil
    for key, t in pairs(place and tensors or {}) do
      local worker, name = key:match "^(%d+)%.(.*)$"
      if worker == tostring(i) then place.tensors[name] = t end
    end
    self.places[i], self._resumed[i] = place, place
  end
end

M.Crew = Crew

return M
