-- measure.lua - what the benchmarks share: their flags, programs that answer each line with one line, times and
-- medians. local measure = dofile(here .. "/peers/measure.lua")
local peri = require "perilune"

local M = {}

--- Where the peers are installed (tests/bench/peers/install.sh) when no flag says otherwise.
M.home = os.getenv "PERILUNE_PEERS" or (os.getenv "HOME" .. "/.cache/perilune-peers")

--- The flags of a command line over their defaults: --reps 3 --only WORD.
function M.flags(args, opts)
  for i = 1, #args, 2 do
    local key = args[i]:match "^%-%-(%a+)$"
    if opts[key] == nil then error("unknown option " .. args[i], 0) end
    opts[key] = type(opts[key]) == "number" and tonumber(args[i + 1]) or args[i + 1]
  end
  return opts
end

local Server = {}
Server.__index = Server

--- A program that answers each line with one line.
function M.server(command)
  local fifo = os.tmpname()
  os.remove(fifo)
  assert(os.execute("mkfifo " .. fifo))
  local to = assert(io.popen(command .. " > " .. fifo .. " 2>/dev/null", "w"))
  local from = assert(io.open(fifo, "r"))
  os.remove(fifo)
  return setmetatable({ to = to, from = from }, Server)
end

--- The number or text that it answers; nil and why where it skips or has ended.
function Server:ask(...)
  self.to:write(table.concat({ ... }, " "), "\n")
  self.to:flush()
  local line = self.from:read "l"
  if not line then return nil, "ended" end
  if line:find "^skip" then return nil, line:sub(6) end
  return tonumber(line) or line
end

function Server:close()
  self.to:close()
  self.from:close()
end

--- The program that measures the machine's limits.
function M.probe(here)
  return M.server((os.getenv "PERILUNE_BUILD" or here .. "/../../build") .. "/tests/bench/probe")
end

-- A peer gets the vectors that we are held to: PERI_SIMD=avx2 perilune bench NAME.
local level = os.getenv "PERI_SIMD" == "avx2"
  and "ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 " or ""

--- PyTorch and JAX of a virtual environment (JAX), else Debian's PyTorch, each with its version; and the
--- names of those that are missing.
function M.peers(here, home, names)
  local python, commands = home .. "/bin/python", {}
  if peri.files.exists(python) then
    commands.torch = level .. python .. " " .. here .. "/peers/torch_peer.py"
    commands.jax = "JAX_PLATFORMS=cpu " .. python .. " " .. here .. "/peers/jax_peer.py"
  elseif peri.files.exists "/usr/lib/python3/dist-packages/torch/__init__.py" then
    commands.torch = level .. "/usr/bin/python3 " .. here .. "/peers/torch_peer.py"
  end
  local peers, missing = {}, {}
  for _, name in ipairs(names) do
    local p = commands[name] and M.server(commands[name])
    local version = p and p:ask "version"
    if type(version) == "string" then peers[name], p.version = p, version else missing[#missing + 1] = name end
  end
  return peers, missing
end

--- nil where there are none.
function M.median(t)
  local s = table.move(t, 1, #t, 1, {})
  table.sort(s)
  local n = #s
  if n == 0 then return nil end
  return n % 2 == 1 and s[n // 2 + 1] or (s[n // 2] + s[n // 2 + 1]) / 2
end

--- Seconds of one call.
function M.timed(fn)
  local t = peri.time()
  fn()
  return peri.time() - t
end

--- Seconds of one call, repeated until it takes long enough to be measured.
function M.loop(fn, least)
  local n = 1
  while true do
    local t = M.timed(function () for _ = 1, n do fn() end end)
    if t > (least or 0.02) then return t / n end
    n = n * 2
  end
end

return M
