-- play.lua - perilune play ENV [MODEL]: an environment under your hands, or under those of a trained policy. With
-- pictures in the terminal or in files.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local environment = require "perilune.command.environment"
local line = require "perilune.line"
local terminal = require "perilune.terminal"

local about = [[
ENV is an environment's id (FrozenLake-v1), a Lua file that returns or registers one, or gymnasium:ID. MODEL is a
policy's file. Without one, keys play: those that do something are shown. Ctrl-C and q leave. Of several agents keys
play whoever is to move, or --seat against MODEL: perilune play TicTacToe-v0 policy.safetensors --seat 1.]]

local spec = {
  random = { false, "random actions play" },
  seat = { 0, "of several agents, the one that keys play, against MODEL or --random; 0: they play all or none",
    range = "[0, inf)" },
  stochastic = { false, "a policy's actions are drawn, not its likeliest ones" },
  episodes = { 1, "how many", range = "[1, inf)" },
  seed = { -1, "of the first episode; -1: another one each time", range = "[-1, inf)" },
  fps = { -1.0, "steps a second; 0 waits for a key; -1: 0 (films 4) for boards, else 15", range = "[-1, 100]" },
  max_steps = { -1, "of an episode in place of the environment's own limit; 0: none", range = "[-1, inf)" },
  option = { "", "options of the environment, name=value,name=value" },
  gif = { "", "write the episodes as an animated GIF" },
  svg = { "", "write the episodes as an animated SVG" },
  png = { "", "write the last picture" },
}

-- ---- what keys do ----

local arrows = { ["\27[A"] = "up", ["\27[B"] = "down", ["\27[C"] = "right", ["\27[D"] = "left", ["\27OA"] = "up",
  ["\27OB"] = "down", ["\27OC"] = "right", ["\27OD"] = "left", [" "] = "space" }

-- Which action an arrow is: of environments whose actions have directions, else by how many there are.
local directions = {
  ["CliffWalking-v1"] = { up = 0, right = 1, down = 2, left = 3 },
  ["CliffWalkingSlippery-v1"] = { up = 0, right = 1, down = 2, left = 3 },
  ["Taxi-v4"] = { down = 0, up = 1, right = 2, left = 3, space = 4 },
  ["Blackjack-v1"] = { left = 0, right = 1 },
}
local by_count = { [2] = { left = 0, right = 1 }, [3] = { left = 0, down = 1, space = 1, right = 2 },
  [4] = { left = 0, down = 1, right = 2, up = 3 } }

-- key -> action, what a pause does (nil: the last action goes on), a line that says so.
local function keys_of(env)
  local space, map, shown = env.action_space, {}, {}
  if space.kind == "discrete" then
    for name, action in pairs(directions[env.id] or by_count[space.n] or {}) do
      map[name] = space.start + action
      shown[#shown + 1] = ("%s %d"):format(name, map[name])
    end
    for k = 0, math.min(space.n, 10) - 1 do map[tostring(k)] = space.start + k end
    table.sort(shown)
    shown[#shown + 1] = ("0-%d"):format(math.min(space.n, 10) - 1)
    return map, nil, table.concat(shown, "  ")
  end
  if space.kind == "box" and space:size() == 1 then
    local function bound(v, otherwise)
      v = type(v) == "table" and v[1] or v
      return math.abs(v) < math.huge and v or otherwise
    end
    map.left, map.right = bound(space.low, -1), bound(space.high, 1)
    return map, 0, ("left %g  right %g  none 0"):format(map.left, map.right)
  end
  error(("actions of %s are %s: keys play discrete ones and a box of one number; give a MODEL or --random")
    :format(env.id, tostring(space)), 0)
end

-- ---- the screen ----

local Screen = {}
Screen.__index = Screen

local function new_screen(colour)
  io.write "\27[?1049h\27[?25l\27[2J"
  return setmetatable({ colour = colour }, Screen)
end

function Screen.__close() io.write "\27[0m\27[?25h\27[?1049l" io.flush() end

function Screen:show(picture, status)
  local columns, rows = terminal.size()
  local text = type(picture) == "string" and picture
    or peri.image.text(picture, { width = columns, height = math.max(1, rows - #status - 1), colour = self.colour })
  local lines = {}
  for one in (text:gsub("\n$", "") .. "\n"):gmatch "(.-)\n" do lines[#lines + 1] = one end
  for _, one in ipairs(status) do lines[#lines + 1] = one:sub(1, columns) end
  io.write("\27[H", table.concat(lines, "\27[K\n"), "\27[K\27[J")
  io.flush()
end

local function colour_of()
  local none, term, more = os.getenv "NO_COLOR", os.getenv "TERM" or "", os.getenv "COLORTERM"
  if none and none ~= "" then return "none" end
  return (more == "truecolor" or more == "24bit" or term:find "direct") and "rgb" or "256"
end

-- ---- playing ----

-- Who plays: act(obs, env) -> action.
local function player(values, path)
  if path then
    local policy = assert(peri.rl.policy.load(path))
    local function act(obs, env)
      return policy:act(obs, { deterministic = not values.stochastic, mask = env.mask })
    end
    return act, policy
  end
  local rng = peri.env.rng(values.seed >= 0 and values.seed or os.time())
  return function (_, env) return env:sample(rng) end
end

-- What the episode looks like: a frame of shapes, or text where there is none.
local function look(env)
  if env.has_frame then return env:frame() end
  return env.has_text and env:text() or nil
end

-- Films of the flags, to which every picture is added.
local function films_of(values, fps)
  local films = {}
  for _, kind in ipairs { "gif", "svg" } do
    local path = values[kind]
    if path ~= "" then
      if not path:lower():find("%." .. kind .. "$") then
        error(("%s: a name that ends with .%s is expected"):format(path, kind), 0)
      end
      films[#films + 1] = assert(peri.image.film(path, { fps = math.min(50, fps > 0 and fps or 4) }))
    end
  end
  return films
end

local Stop = {} -- a player's wish to leave

-- A key's action, or nil; raises Stop.
local function pressed(keys, seconds, map)
  local text = keys:read(seconds)
  if text == nil or text:find "[qQ\4]" then error(Stop) end
  local found
  for key, name in pairs(arrows) do if text:find(key, 1, true) and map[name] then found = map[name] end end
  local digit = text:gsub("\27[%[O].", ""):match "%d"
  if digit and map[digit] then found = map[digit] end
  return found
end

local function action_of(env, number)
  if env.action_space.kind == "discrete" then return number end
  return peri.tensor({ number }, env.action_space.dtype):reshape(env.action_space.shape)
end

-- Of several agents: who is to move, as far as it is the player's to say; nil: nobody.
local function to_move(env, seat)
  local live = env.live:tolist()
  if seat > 0 then return live[seat] and seat or nil end
  for i = 1, env.agents do
    if live[i] then return i end
  end
end

local function legal(env, row, action)
  local mask = env.mask
  if not mask or action == nil then return true end
  if row then mask = mask:select(1, row) end
  return mask:tolist()[action - env.action_space.start + 1]
end

-- Actions of all agents, that of one of them as a key has it.
local function with_others(play, obs, row, number)
  local env = play.env
  local list = (play.act and play.act(obs, env) or env:sample()):tolist()
  list[row] = number
  return peri.tensor(list, "i64")
end

-- One episode; its return and length.
local function episode(play, number)
  local env, values = play.env, play.values
  local many = env.agents > 1
  local obs = env:reset(values.seed >= 0 and { seed = values.seed + number - 1 } or nil)
  if play.policy then play.policy:restart() end
  local total, length, over, held, reward = 0, 0, false, play.rest, 0
  local next_at = peri.time()
  while true do
    local picture = (play.screen or #play.films > 0 or values.png ~= "") and look(env)
    for _, film in ipairs(play.films) do
      if type(picture) ~= "userdata" then error(("%s has no picture for a film"):format(env.id), 0) end
      assert(film:add(picture))
    end
    if picture then play.last = picture end
    if play.screen then
      play.screen:show(picture or "no picture", { ("%s  episode %d  step %d  reward %g  return %g")
        :format(env.id, number, length, reward, total), play.help })
    end
    if over then return total, length end
    local action
    local row = many and play.map and to_move(env, values.seat) or nil
    if play.keys and play.map and (row or not many) then
      local fps = play.fps
      repeat
        local wait = fps > 0 and math.max(0, next_at + 1 / fps - peri.time()) or 3600
        action = pressed(play.keys, wait, play.map)
        if not legal(env, row, action) then action = nil end
      until action or fps > 0
      if action == nil then action = play.rest or held or play.map.left or play.map["0"] end
      held = action
      action = many and with_others(play, obs, row, action) or action_of(env, action)
    else
      action = play.act(obs, env)
      if play.screen then pressed(play.keys, math.max(0, next_at + 1 / math.max(play.fps, 1) - peri.time()), {}) end
    end
    if play.screen and play.fps > 0 then
      local left = next_at + 1 / play.fps - peri.time()
      if left > 0 and play.keys then pressed(play.keys, left, {}) end
    end
    next_at = peri.time()
    local terminated, truncated
    obs, reward, terminated, truncated = env:step(action)
    over = terminated
    if many then -- the episode is over when the last agent is out; what counts is the seat's reward
      reward, over = reward:tolist()[math.max(values.seat, 1)], not env.live:any():item()
    end
    total, length, over = total + reward, length + 1, over or not many and truncated
  end
end

local function run(values, words)
  local make = environment.maker(words[1])
  local o = environment.options(values.option)
  if environment.is_python(words[1]) then o = { options = o, render = true } end
  if values.max_steps >= 0 then o.max_steps = values.max_steps end
  local env = make(o)
  local input, output = line.interactive()
  if values.seat > env.agents then error(("--seat %d: %s has %d agents"):format(values.seat, env.id, env.agents), 0) end
  if values.seat > 0 and env.agents == 1 then error("--seat is for environments with several agents", 0) end
  if values.seat > 0 and env.action_space.kind ~= "discrete" then error("--seat is for discrete actions", 0) end
  local hands = not words[2] and not values.random or values.seat > 0
  env:reset()
  local board = env.obs_space.kind ~= "box" or env.mask or not env.has_frame -- waits for its player
  local fps = hands and board and 0 or board and 4 or 15
  local play = { env = env, values = values, fps = values.fps >= 0 and values.fps or fps }
  if hands then
    if not (input and output) then
      error("keys need a terminal: give a MODEL or --random, and --gif, --svg or --png for pictures", 0)
    end
    play.map, play.rest, play.help = keys_of(env)
    play.help = play.help .. "  q leaves"
    if words[2] or values.random then play.act, play.policy = player(values, words[2]) end
  else
    play.act, play.policy = player(values, words[2])
    play.help = "q leaves"
  end
  play.films = films_of(values, play.fps)
  local results, ok, message = {}
  do
    local keys <close> = input and output and line.keys() or nil
    local screen <close> = keys and terminal.live() and new_screen(colour_of()) or nil
    play.keys, play.screen = keys, screen
    ok, message = pcall(function ()
      for i = 1, values.episodes do results[i] = { episode(play, i) } end
    end)
  end
  for i, r in ipairs(results) do print(("episode %d: return %g, length %d"):format(i, r[1], r[2])) end
  if not ok and message ~= Stop then error(message, 0) end
  for _, film in ipairs(play.films) do if film.frames > 0 then assert(film:save()) end end
  if values.png ~= "" then
    if type(play.last) ~= "userdata" then error(("%s has no picture for a file"):format(env.id), 0) end
    assert(peri.image.png(values.png, play.last))
  end
  if #results > 1 then
    local sum = 0
    for _, r in ipairs(results) do sum = sum + r[1] end
    print(("mean return of %d episodes: %g"):format(#results, sum / #results))
  end
end

return function (args)
  local values, words = arguments.read("play", "ENV [MODEL]", 1, 2, spec, args, about)
  if not values then return words end
  return arguments.attempt("play", run, values, words) and 0 or 1
end
