-- train_server.lua - perilune train-server MODEL: training as a service for the public tinker client, on this machine.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local http = require "perilune.serve.http"

local about = [[
MODEL is a Hugging Face folder or a GGUF file. Clients train LoRA adapters on it, several at a time, and draw from them:
  TINKER_BASE_URL=http://127.0.0.1:8473 TINKER_API_KEY=tml-local python loop.py
Only this machine can ask. Ctrl-C ends it; saved weights stay in --folder. It needs libmicrohttpd (libmicrohttpd12).]]

local spec = {
  address = { http.rules.address.default, "that is listened at" },
  port = { 8473, "0: one that is free", range = "[0, 65535]" },
  socket = { "", "a Unix socket in place of a port" },
  name = { "", "of the base model, as clients call it (default: MODEL)" },
  folder = { "runs/service", "where saved weights go" },
  tenants = { 16, "most training clients at a time", range = "[1, 10000]" },
  rows = { 32, "sequences that are drawn at once", range = "[1, 10000]" },
  most_body = { http.rules.most_body.default, "bytes of a request", range = "[1024, inf)" },
  connections = { http.rules.connections.default, "at a time", range = "[1, 65536]" },
  seconds = { http.rules.seconds.default, "that a connection may be silent", range = "[1, 86400]" },
  key = { "", "that clients must give as their API key (default: any will do)" },
}

local function refuse(message)
  io.stderr:write("perilune train-server: ", message, "\n")
  return 1
end

local LOCAL = { ["127.0.0.1"] = true, localhost = true, [""] = true }

local function serve(values, path)
  local lm = assert(peri.lm.load(path, { dtype = "f32", pack = false }))
  local serving = peri.serve.new(lm.model, lm.tok, { name = values.name ~= "" and values.name or path,
    folder = values.folder, tenants = values.tenants, rows = values.rows,
    key = values.key ~= "" and values.key or nil })
  if LOCAL[values.address] then serving.hosts = LOCAL end -- a name that a web page made up is not ours
  local server, message = http.listen { address = values.address, port = values.port,
    path = values.socket ~= "" and values.socket or nil, most_body = values.most_body,
    connections = values.connections, seconds = values.seconds }
  if not server then error(message, 0) end
  print(("serving %s at %s; Ctrl-C ends it"):format(serving.base.name, server.url))
  io.stdout:flush()
  peri.on_interrupt(true, "ending after this piece of work; Ctrl-C again ends at once")
  local ok, why = pcall(server.run, server, serving)
  server:close()
  if not ok then error(why, 0) end
  print "ended"
end

return function (args)
  local values, words = arguments.read("train-server", "MODEL", 1, 1, spec, args, about)
  if not values then return words end
  if not LOCAL[values.address] and values.key == "" then
    return refuse "others can reach that address: say --key, which they must give"
  end
  return arguments.attempt("train-server", serve, values, words[1]) and 0 or 1
end
