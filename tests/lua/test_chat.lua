-- perilune chat and complete: the programs from a pipe with a tiny model whose tokenizer and template
-- are written here, and the terminal's side with a line editor and a model that are stubs.
local lu = require "luaunit"
local peri = require "perilune"
local shared = require "shared"

local program = arg[-2] or "build/perilune"

-- ---- from a pipe ----------------------------------------------------------------------------------

-- A folder of a real layout: hf_tiny's Llama (61 ids), a vocabulary of as many words, a template.
local function make_folder()
  local folder = os.tmpname()
  os.remove(folder)
  assert(peri.files.make_folder(folder))
  for _, name in ipairs { "config.json", "model.safetensors" } do
    assert(peri.files.write(folder .. "/" .. name, assert(peri.files.read("tests/data/hf_tiny/llama/" .. name))))
  end
  local vocab, added = {}, { { id = 0, content = "<unk>" }, { id = 1, content = "<s>" }, { id = 2, content = "</s>" } }
  for i, a in ipairs(added) do
    vocab[a.content] = a.id
    added[i] = { id = a.id, content = a.content, special = true, normalized = false, lstrip = false, rstrip = false,
                 single_word = false }
  end
  for i, word in ipairs { "user", "assistant", "system", "hi", "there", "be", "nice" } do vocab[word] = i + 2 end
  for id = 10, 60 do vocab["w" .. id] = id end
  assert(peri.files.write(folder .. "/tokenizer.json", peri.json.encode {
    version = "1.0", added_tokens = added, pre_tokenizer = { type = "Whitespace" },
    model = { type = "WordLevel", vocab = vocab, unk_token = "<unk>" } }))
  assert(peri.files.write(folder .. "/tokenizer_config.json", peri.json.encode {
    bos_token = "<s>", eos_token = "</s>", unk_token = "<unk>",
    chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
      .. "{% if add_generation_prompt %}assistant{% endif %}" }))
  return folder
end

-- Standard output, standard error and status of the program.
local function run(arguments, input)
  local paths = { os.tmpname(), os.tmpname(), os.tmpname() }
  assert(peri.files.write(paths[1], input or ""))
  local _, _, status = os.execute(("%s %s <%s >%s 2>%s"):format(program, arguments, table.unpack(paths)))
  local out, err = peri.files.read(paths[2]), peri.files.read(paths[3])
  for _, path in ipairs(paths) do os.remove(path) end
  return out, err, status
end

TestPipe = {}

function TestPipe:setUp() self.folder = make_folder() end
function TestPipe:tearDown() peri.files.remove_tree(self.folder) end

function TestPipe:test_every_line_is_a_message_and_gets_an_answer()
  local out, err, status = run(("chat %s --max-new-tokens 4 --temperature 0"):format(self.folder), "hi there\nbe nice\n")
  lu.assertEquals(status, 0, err)
  local answers = {}
  for answer in out:gmatch "([^\n]*)\n" do answers[#answers + 1] = answer end
  lu.assertEquals(#answers, 2)
  local lm = assert(peri.lm.load(self.folder, { dtype = "f32", pack = false, prefix_cache_bytes = 0 }))
  local messages = { { role = "user", content = "hi there" } }
  for i, content in ipairs { "be nice", "" } do
    local r = lm:chat(messages, { max_new_tokens = 4 })
    lu.assertEquals(answers[i], r.text)
    table.insert(messages, r.message)
    table.insert(messages, { role = "user", content = content })
  end
  lu.assertStrContains(err, "[4 prompt tokens, 4 tokens")
  lu.assertStrMatches(err, ".*prompt tokens %(%d+ known%).*") -- the second turn begins as the first
  lu.assertNotStrContains(out, "\27")
end

function TestPipe:test_system_prompts_seeds_and_stops_are_taken()
  local base = ("chat %s --max-tokens 8 --temperature 1 --seed 5"):format(self.folder)
  local a, err = run(base, "hi\n")
  lu.assertEquals(run(base, "hi\n"), a, err)
  lu.assertStrContains(err, "[3 prompt tokens")
  lu.assertStrContains(select(2, run(base .. " --system 'be nice'", "hi\n")), "[6 prompt tokens")
  lu.assertNotEquals((run(("chat %s --max-tokens 8 --temperature 1 --seed 6"):format(self.folder), "hi\n")), a)
  local first, second = a:match "(%w+) (%w+)"
  lu.assertStrContains(run(base .. " --stop ' " .. second .. "'", "hi\n"), first)
  lu.assertNotStrContains(run(base .. " --stop ' " .. second .. "'", "hi\n"), second)
end

function TestPipe:test_complete_prints_the_continuation()
  local out, err, status = run(("complete %s 'hi there' --max_new_tokens 5 --temperature 0"):format(self.folder))
  lu.assertEquals(status, 0, err)
  local lm = assert(peri.lm.load(self.folder, { dtype = "f32", pack = false, prefix_cache_bytes = 0 }))
  local text = lm:complete("hi there", { max_new_tokens = 5 }).text
  lu.assertEquals(out, text .. "\n")
  lu.assertEquals((run(("complete %s - --max-tokens 5 --temperature 0 --echo"):format(self.folder), "hi there")),
    "hi there" .. text .. "\n")
  out = run(("complete %s hi --n 3 --temperature 1 --seed 1 --max-tokens 3 --json"):format(self.folder))
  local n = 0
  for row in out:gmatch "[^\n]+" do
    n = n + 1
    row = peri.json.decode(row)
    lu.assertEquals(row.sample, n)
    lu.assertTrue(#row.tokens <= 3)
    lu.assertEquals(#row.logprobs, #row.tokens)
  end
  lu.assertEquals(n, 3)
  lu.assertEquals((run(("complete --echo --temperature 0 %s --max-tokens 5 'hi there'"):format(self.folder))),
    "hi there" .. text .. "\n")
  out, err = run(("complete %s hi --n 3 --max_new_tokens 2 --json"):format(self.folder))
  lu.assertStrContains(err, "without --temperature answers are greedy: all 3 are the same")
  lu.assertEquals(select(2, out:gsub("\n", "")), 3)
  out, err = run(("complete %s hi --samples 2 --max_new_tokens 2 --temperature 1"):format(self.folder))
  lu.assertEquals(err, "")
  lu.assertStrContains(out, "--- 2 ---")
  out = run(("complete %s hi --max-tokens 9 --regex '( w1[0-9]){3}'"):format(self.folder))
  lu.assertStrMatches(out, " ?w1%d w1%d w1%d\n")
end

function TestPipe:test_what_is_wrong_is_said_in_a_line()
  for arguments, want in pairs {
    ["chat /no/such/model"] = "/no/such/model", ["chat"] = "expected MODEL", ["chat m --sistem x"] = 'did you mean "system"',
    ["chat m n"] = "one word too many", ["complete m"] = "MODEL TEXT", ["chat m --top_k x"] = "not an integer",
    ["chat m --template 3"] = "no JSON object",
    [("complete %s hi --suffix x"):format(self.folder)] = "fill-in-the-middle",
    [("complete %s hi --regex '('"):format(self.folder)] = "character 3",
  } do
    local out, err, status = run(arguments)
    lu.assertTrue(status == 1 or status == 2, arguments)
    lu.assertEquals(out, "")
    lu.assertStrContains(err, want)
    lu.assertNotStrContains(err, "traceback")
  end
  for _, command in ipairs { "chat", "complete", "eval" } do
    local out, err, status = run(command .. " --help")
    lu.assertEquals(status, 0)
    lu.assertEquals(err, "")
    lu.assertStrContains(out, "--temperature")
  end
end

function TestPipe:test_smollm2_knows_the_capital_of_france()
  local path = shared.need "data/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
  local vectors = assert(peri.json.decode(assert(peri.files.read(shared.need "vectors/smollm2.json"))))
  local case = vectors.chat[1]
  local out, err, status = run("chat " .. path, case.messages[1].content .. "\n")
  lu.assertEquals(status, 0, err)
  lu.assertEquals(out, (case.greedy_text:gsub("<|im_end|>", "")) .. "\n")
  lu.assertStrContains(err, ("[%d prompt tokens, %d tokens"):format(#case.prompt_ids, #case.greedy_ids))
end

-- ---- in a terminal --------------------------------------------------------------------------------

TestTerminal = {}

-- What a conversation prints: lines typed (false is Ctrl-C), what the model says to each message (a list
-- of pieces, or a function that raises), the environment.
local function converse(typed, answers, env)
  package.preload["perilune.line"] = package.preload["perilune.line"] or function () return {} end
  local line, lm_module, command = require "perilune.line", require "perilune.lm", require "perilune.command.chat"
  local saved = { line = {}, load = lm_module.load, write = io.write, print = print, getenv = os.getenv, time = peri.time,
                  stdout = io.stdout, flush = io.flush }
  local out, asked, resets, n = {}, {}, 0, 0
  local function put(...)
    for i = 1, select("#", ...) do out[#out + 1] = tostring((select(i, ...))) end
  end
  local stub = { read = function () n = n + 1 return typed[n] end, interactive = function () return true, true, true end }
  for _, name in ipairs { "remember", "close" } do stub[name] = function () end end
  stub.call = xpcall
  for name, fn in pairs(stub) do saved.line[name], line[name] = line[name] or false, fn end
  local lm = { model = { num_parameters = function () return 1e6 end } }
  function lm.submit(_, messages, o)
    local list = {}
    for i, m in ipairs(messages) do list[i] = m.role .. ": " .. m.content end
    asked[#asked + 1] = table.concat(list, "; ")
    local pieces, result = answers[#asked], { tokens = {}, prompt_tokens = 1, reason = "stop" }
    local generation, k, text = { results = { result }, thinking = pieces.thinking, done = false }, 0, {}
    function lm.step()
      k = k + 1
      local piece = pieces[k]
      if piece == "^C" then error "interrupted" end
      result.tokens[k], text[k] = k, piece
      result.message = { role = "assistant", content = table.concat(text) }
      o.on_text(piece)
      generation.done = k == #pieces
    end
    return generation
  end
  function lm.reset() resets = resets + 1 end
  local clock = 0
  lm_module.load = function () return lm end
  io.write = put -- luacheck: ignore 122
  io.flush = function () end -- luacheck: ignore 122
  io.stdout = { write = function (_, ...) put(...) end, flush = function () end } -- luacheck: ignore 122
  print = function (s) put(s, "\n") end -- luacheck: ignore 121
  os.getenv = function (name) return (env or { TERM = "xterm" })[name] end -- luacheck: ignore 122
  peri.time = function () clock = clock + (typed.slow and 3 or 0.5) return clock end -- luacheck: ignore 122
  local ok, status = pcall(command, { "model" })
  for name, fn in pairs(saved.line) do line[name] = fn or nil end
  lm_module.load, io.write, print, os.getenv = saved.load, saved.write, saved.print, saved.getenv -- luacheck: ignore 121 122
  peri.time, io.stdout, io.flush = saved.time, saved.stdout, saved.flush -- luacheck: ignore 122
  assert(ok, status)
  lu.assertEquals(status, 0)
  return table.concat(out), asked, resets, n
end

function TestTerminal.test_thoughts_are_dimmed_wherever_the_tags_are_cut()
  local out = converse({ "hi" }, { { "<th", "ink>we", "ll</thi", "nk>Yes", " <b>." } })
  lu.assertStrContains(out, "\27[2mwell\27[22mYes <b>.\n")
  out = converse({ "hi" }, { { thinking = true, "hm</think>", "Yes" } })
  lu.assertStrContains(out, "\27[2mhm\27[22mYes\n")
  for _, env in ipairs { { TERM = "dumb" }, { TERM = "xterm", NO_COLOR = "1" }, {} } do
    out = converse({ "hi" }, { { "<think>a</think>b" } }, env)
    lu.assertStrContains(out, "<think>a</think>b\n")
    lu.assertNotStrContains(out, "\27")
  end
end

function TestTerminal.test_an_interrupt_stops_the_answer_only()
  local out, asked, resets = converse({ "one", "two", slow = true }, { { "so", " far", "^C" }, { "fine" } })
  lu.assertStrContains(out, "so far\n")
  lu.assertStrContains(out, "stopped")
  lu.assertStrContains(out, "fine\n")
  lu.assertEquals(resets, 1)
  lu.assertEquals(asked[2], "user: one; assistant: so far; user: two")
  asked = select(2, converse({ "one", "two", slow = true }, { { "^C" }, { "fine" } })) -- nothing was said: forgotten
  lu.assertEquals(asked[2], "user: two")
end

function TestTerminal.test_two_interrupts_leave()
  local _, asked, _, reads = converse({ false, false, "hi" }, { { "x" } })
  lu.assertEquals({ #asked, reads }, { 0, 2 })
  _, asked = converse({ false, false, "hi", slow = true }, { { "x" } })
  lu.assertEquals(#asked, 1)
  _, asked = converse({ "one", false, "two" }, { { "a", "^C" }, { "x" } })
  lu.assertEquals(#asked, 1)
end

function TestTerminal.test_commands()
  local path = os.tmpname()
  local out, asked, _, reads = converse({ "/help", "/system be nice", "hi \\", "you", "/save " .. path, "/system", "/reset", "ho", "/nope",
    "", "/quit", "never" }, { { "yes" }, { "no" } })
  lu.assertEquals(asked, { "system: be nice; user: hi \nyou", "system: be nice; user: ho" })
  lu.assertEquals(reads, 11)
  for _, want in ipairs { "/reset", "3 messages", "be nice", "/nope is not known" } do lu.assertStrContains(out, want) end
  local saved = peri.json.decode(peri.files.read(path))
  lu.assertEquals(saved.messages[3], { role = "assistant", content = "yes" })
  os.remove(path)
end

os.exit(lu.LuaUnit.run())
