-- chat.lua - perilune chat MODEL: talk to a model, a Hugging Face folder or a GGUF file. In the terminal, or one
-- message a line from a pipe.
local peri = require "perilune"
local arguments = require "perilune.command.arguments"
local line = require "perilune.line"

local about = [[
Talks to a model. In a terminal: /help lists what can be typed, Ctrl-C stops an answer, a second one
within two seconds or Ctrl-D leaves. From a pipe every line is a message and answers are all that is printed.
]]

local help = [[
/reset         forget the conversation
/system TEXT   set the system prompt and forget the conversation; without a text show it
/save FILE     write the conversation as JSON
/quit          leave (Ctrl-D, too)
Ctrl-C stops an answer; within two seconds of another it leaves. A line that ends with \ goes on.
]]

local BEGIN <const>, END <const> = "<think>", "</think>"

-- Writes an answer as it comes; what stands between think tags is dimmed where the terminal can.
local Screen = {}
Screen.__index = Screen

local function new_screen()
  local _, out = line.interactive()
  local colour, term = os.getenv "NO_COLOR", os.getenv "TERM"
  local dims = out and (not colour or colour == "") and term and term ~= "dumb"
  return setmetatable({ terminal = out, dims = dims }, Screen)
end

function Screen:begin(thinking)
  self.held, self.thinking = "", false
  if thinking then self:think(true) end
end

function Screen:think(on)
  if self.thinking == on then return end
  self.thinking = on
  if self.dims then io.write(on and "\27[2m" or "\27[22m") end
end

-- A tag may come in pieces: what may be the begin of one is held back.
function Screen:write(piece)
  if not self.dims then
    io.write(piece)
    io.flush()
    return
  end
  local text = self.held .. piece
  while true do
    local tag = self.thinking and END or BEGIN
    local from, to = text:find(tag, 1, true)
    if not from then
      local keep = 0
      for n = math.min(#tag - 1, #text), 1, -1 do
        if text:sub(-n) == tag:sub(1, n) then
          keep = n
          break
        end
      end
      io.write(text:sub(1, #text - keep))
      self.held = keep > 0 and text:sub(-keep) or ""
      break
    end
    io.write(text:sub(1, from - 1))
    self:think(not self.thinking)
    text = text:sub(to + 1)
  end
  io.flush()
end

function Screen:finish()
  io.write(self.held)
  self.held = ""
  self:think(false)
  io.write "\n"
  io.flush()
end

function Screen:note(text)
  if self.dims then text = "\27[2m" .. text .. "\27[22m" end
  local out = self.terminal and io.stdout or io.stderr
  out:write(text, "\n")
  out:flush()
end

-- One answer. Returns the message, or nil when it failed.
local function answer(lm, screen, messages, opts)
  local result
  local began, first = peri.time(), nil
  local ok, message = line.call(function ()
    local generation = lm:submit(messages, opts)
    result = generation.results[1]
    screen:begin(generation.thinking)
    while not generation.done do
      lm:step()
      first = first or peri.time()
    end
    if generation.error ~= nil then error(generation.error, 0) end
  end, function (m) return m end) -- a Ctrl-C ends here
  if not ok then
    lm:reset()
    if not tostring(message):find "interrupted$" then
      io.stderr:write("perilune chat: ", arguments.plain(message), "\n")
      return nil
    end
  end
  screen:finish()
  local seconds, n = peri.time() - (first or began), result and #result.tokens or 0
  if n > 0 then
    local cached = result.cached_tokens or 0
    screen:note(("[%d prompt tokens%s, %d tokens%s%s]"):format(result.prompt_tokens,
      cached > 0 and (" (%d known)"):format(cached) or "", n,
      n > 1 and seconds > 0 and (", %.1f tokens/s"):format((n - 1) / seconds) or "",
      not ok and ", stopped" or result.reason == "length" and ", cut at the limit" or ""))
  end
  return n > 0 and result.message or nil, not ok
end

local commands = {}

function commands.help() io.write(help) end

function commands.reset(chat)
  chat.messages = {}
  print "The conversation is forgotten."
end

function commands.system(chat, text)
  if text == "" then
    print(chat.system ~= "" and chat.system or "There is no system prompt.")
  else
    chat.system, chat.messages = text, {}
    print "The system prompt is set, the conversation forgotten."
  end
end

function commands.save(chat, path)
  if path == "" then
    print "/save needs a file"
    return
  end
  local list = chat:all()
  local text = peri.json.encode({ messages = peri.json.array(list) }, { indent = 2 }) .. "\n"
  local ok, message = peri.files.write(path, text)
  print(ok and ("%d messages in %s"):format(#list, path) or message)
end

function commands.quit(chat) chat.over = true end

-- A message, of more lines where they end with a backslash. nil at the end of input, false at Ctrl-C.
local function read_message(terminal)
  local text = line.read(terminal and "> " or "")
  while text and terminal and text:sub(-1) == "\\" do
    local more = line.read ". "
    if not more then return more end
    text = text:sub(1, -2) .. "\n" .. more
  end
  return text
end

-- Returns the exit status.
local function converse(chat)
  local stopped = -math.huge -- when Ctrl-C was typed last
  while not chat.over do
    local text = read_message(chat.terminal)
    if text == nil then return 0 end
    if text == false then
      if not chat.terminal then return 130 end
      if peri.time() - stopped < 2 then return 0 end
      stopped = peri.time()
    elseif text:find "%S" then
      if chat.terminal then line.remember(text) end
      local name, rest = text:match "^/(%a+)%s*(.-)%s*$"
      if name and chat.terminal then
        if commands[name] then commands[name](chat, rest)
        else print(("/%s is not known; /help lists what is"):format(name)) end
      else
        table.insert(chat.messages, { role = "user", content = text })
        local message, interrupted = answer(chat.lm, chat.screen, chat:all(), chat.opts)
        if interrupted then stopped = peri.time() end
        if interrupted and not chat.terminal then return 130 end -- nobody is there to type on
        if message then table.insert(chat.messages, message) else table.remove(chat.messages) end
      end
    end
  end
  return 0
end

return function (args)
  local spec = arguments.generation_flags {
    system = { "", "system prompt" },
    max_new_tokens = { 2048, "most tokens of an answer (--max_tokens is the same)", range = "[1, inf)" },
    template = { "", "JSON object of further variables of the chat template" },
  }
  local values, words = arguments.read("chat", "MODEL", 1, 1, spec, args, about)
  if not values then return words end
  local template
  if values.template ~= "" then
    template = peri.json.decode(values.template)
    if type(template) ~= "table" then
      io.stderr:write "perilune chat: --template is no JSON object\n"
      return 2
    end
  end
  local lm = arguments.load("chat", words[1], values, { rows = 1 })
  if not lm then return 1 end
  local chat = { lm = lm, messages = {}, system = values.system, screen = new_screen(), terminal = line.interactive() }
  chat.opts = arguments.generation_options(values)
  chat.opts.template = template
  function chat.opts.on_text(piece) chat.screen:write(piece) end
  function chat:all()
    local list = {}
    if self.system ~= "" then list[1] = { role = "system", content = self.system } end
    return table.move(self.messages, 1, #self.messages, #list + 1, list)
  end
  if chat.terminal then
    print(("%s, %.4g million parameters. /help explains, Ctrl-D leaves.")
      :format(words[1], lm.model:num_parameters() / 1e6))
  end
  local status = converse(chat)
  line.close()
  return status
end
