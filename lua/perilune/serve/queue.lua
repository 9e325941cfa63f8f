-- queue.lua - what a service has been asked to do and has not done: jobs one after the other, each client's in its
-- order, and futures that keep what came of them for a while.
local peri = require "perilune"
local messages = require "perilune.serve.messages"

--- @class perilune.serve.Queue
local Queue = {}
Queue.__index = Queue

local M = {}

--- @param most integer  jobs that wait
--- @param kept integer  results that are kept
--- @return perilune.serve.Queue
function M.new(most, kept)
  return setmetatable({ most = most, kept = kept, jobs = {}, futures = {}, order = {}, count = 0, oldest = 1 }, Queue)
end

-- ---- futures ----

local function future_of(self, model_id)
  self.count = self.count + 1
  local future = { id = ("%d"):format(self.count), model_id = model_id }
  self.futures[future.id], self.order[self.count] = future, future
  while self.count - self.oldest >= self.kept + #self.jobs and self.order[self.oldest].done do
    self.futures[self.order[self.oldest].id] = nil
    self.order[self.oldest] = nil
    self.oldest = self.oldest + 1
  end
  return future
end

--- A future by its id; refuses what is not there, or no longer.
--- @param id string
--- @return table
function Queue:find(id)
  local n = math.tointeger(tonumber(id))
  if not self.futures[id] and n and n >= 1 and n <= self.count then
    messages.refuse(410, "request_id: the result of %s is no longer kept", id)
  end
  return self.futures[id] or messages.refuse(404, "request_id: there is no request %q", id)
end

--- Whether a value is a future of this queue.
--- @param value table
--- @return boolean
function Queue:is_future(value) return value.id ~= nil and self.futures[value.id] == value end

--- What became of a future: a result of a kind, or a message. What was said first stands.
function M.settle(future, what, result)
  if not future.done then future.done, future.what, future.result = true, what, result end
end

--- @param future table
--- @param message any
--- @param user boolean?  the client's fault, as every refusal is
function M.fail(future, message, user)
  user = user or messages.is_refusal(message)
  M.settle(future, nil, { error = messages.plain(message), category = user and "user" or "server" })
end

-- ---- jobs ----

--- Put a job { what, step() -> result or nil } behind those that wait.
--- @param job table
--- @return table future
function Queue:add(job)
  if #self.jobs >= self.most then messages.refuse(429, "%d requests wait already: try later", #self.jobs) end
  job.future = future_of(self, job.model and job.model.id)
  self.jobs[#self.jobs + 1] = job
  return job.future
end

--- A training client's order: its places are done one after the other, whatever order they come in.
--- @return table
function M.order() return { next = 1, asked = {}, passed = {} } end

--- Put a job of a client at its place; a place that was asked for before has its future already.
--- @param model table  with order
--- @param place integer?  nil: at once
--- @param make fun(): table
--- @return table future
function Queue:add_at(model, place, make)
  local order = model.order
  local again = place and order.asked[place]
  if again then return again end
  if place and place < order.next then messages.refuse(409, "seq_id %d was done before", place) end
  local job = make()
  job.model, job.place = model, place
  local future = self:add(job)
  if place then order.asked[place] = future end
  return future
end

--- A place of a client that will not be done: those behind it need not wait for it.
--- @param order table
--- @param place integer
function M.pass_over(order, place)
  if place < order.next then return end
  order.passed[place] = true
  while order.passed[order.next] do
    order.passed[order.next] = nil
    order.next = order.next + 1
  end
end

local REPEATS <const> = 256 -- a client sends again what it sent last, not what is long done

local function over(job)
  if not job.place then return end
  job.model.order.asked[job.place - REPEATS] = nil
  M.pass_over(job.model.order, job.place)
end

-- The first job whose turn it is, taken off the queue.
local function take(self)
  for i, job in ipairs(self.jobs) do
    if not job.place or job.place == job.model.order.next then return table.remove(self.jobs, i) end
  end
end

--- Whether a job waits that is meant.
--- @param means fun(job: table): boolean
--- @return boolean
function Queue:has(means)
  for _, job in ipairs(self.jobs) do if means(job) then return true end end
  return false
end

--- Take the jobs that wait and are wanted.
--- @param wants fun(job: table): boolean
--- @return table[]
function Queue:take_all(wants)
  local list, left = {}, {}
  for _, job in ipairs(self.jobs) do table.insert(wants(job) and list or left, job) end
  self.jobs = left
  return list
end

--- Do a step of the job that is at work, or of the next.
--- @return boolean  whether there was any
function Queue:work()
  local job = self.current or take(self)
  if not job then return false end
  self.current = job
  local ok, result = pcall(job.step)
  if ok and result == nil then return true end
  if not ok and peri.interrupted() then error(result, 0) end
  self.current = nil
  over(job)
  if ok then M.settle(job.future, job.what, result) else M.fail(job.future, result, false) end
  return true
end

return M
