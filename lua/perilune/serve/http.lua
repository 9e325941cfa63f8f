-- http.lua - a socket in front of something that answers requests: handle(request) -> response, work() -> whether it
-- did anything. The loop is the one thread of the Lua state; the library's own thread reads and writes meanwhile.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local rules = {
  address = options.value("127.0.0.1", "string", "that is listened at: this machine alone"),
  port = options.integer(0, "[0, 65535]", "0: one that is free"),
  path = options.value(options.none, "string", "a Unix socket in place of a port"),
  most_body = options.integer(64 << 20, "[1, inf)", "bytes of a request"),
  connections = options.integer(256, "[1, 65536]", "at a time"),
  seconds = options.integer(60, "[1, 86400]", "that a connection may be silent"),
  patience = options.number(20, "[0, 3600]", "seconds that a request may wait for its answer"),
}
M.rules = rules

--- Listen. Nothing is answered before run().
--- @param opts table?
--- @return perilune.serve.Server|nil  nil and a message where the address is taken or libmicrohttpd is not installed
--- @return string? message
function M.listen(opts)
  local o = options.fill("http.listen", opts, rules, 3)
  local socket, port = peri._http(o.address, o.port, o.path, o.most_body, o.connections, o.seconds)
  if not socket then return nil, port end
  local url = o.path and "unix:" .. o.path or ("http://%s:%d"):format(o.address, port)
  return setmetatable({ socket = socket, port = port, url = url, options = o, waiting = {} }, { __index = M.Server })
end
options.declare(M.listen, {}, rules)

--- @class perilune.serve.Server
M.Server = {}

local function reply(self, id, r) self.socket:reply(id, r.status, r.type, r.body) end

local unwritten = { status = 500, type = "application/json", body = '{"error":"the answer cannot be written"}' }

-- Requests whose answer has come, or will not come in time.
local function look(self)
  local left, now = {}, os.time()
  for _, w in ipairs(self.waiting) do
    local ok, response = pcall(w.wait)
    if not ok then response = unwritten end
    if response then reply(self, w.id, response)
    elseif now >= w.deadline then reply(self, w.id, w.otherwise)
    else left[#left + 1] = w end
  end
  self.waiting = left
end

--- Answer what comes in `seconds`, or at once what is there, and do a piece of work.
--- @param service table  :handle(request), :work()
--- @param seconds number
--- @return boolean  whether there was anything to do
function M.Server:turn(service, seconds)
  local worked = service:work()
  look(self)
  local request = self.socket:next(worked and 0 or seconds)
  local any = worked or request ~= nil
  while request do
    local response = service:handle(request)
    if response.wait then
      self.waiting[#self.waiting + 1] = { id = request.id, wait = response.wait, otherwise = response.otherwise,
        deadline = os.time() + self.options.patience }
    else reply(self, request.id, response) end
    request = self.socket:next(0)
  end
  return any
end

--- Serve until Ctrl-C, or until stop() says so.
--- @param service table
--- @param stop (fun(): boolean)?
function M.Server:run(service, stop)
  while not peri.interrupted() and not (stop and stop()) do self:turn(service, 0.05) end
end

--- Answer all that waits with 503 and stop listening.
function M.Server:close() self.socket:close() end

return M
