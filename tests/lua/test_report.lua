-- perilune report: a run folder as one HTML file that needs nothing else, whatever the folder holds.
local lu = require "luaunit"
local peri = require "perilune"
local child = require "child"
local scratch = require "scratch"
local recipe = peri.recipe

TestReport = {}

local root
scratch.each(TestReport, function (folder) root = folder end)

local function write(name, text) assert(peri.files.write(root .. "/" .. name, text)) end
local function read(path) return assert(peri.files.read(path)) end

-- A run of three steps; more(run, step) is called in its loop.
local function make(name, more, options)
  local o = { name = name, total = 3, console = false, columns = { "loss" }, tensorboard = false,
    flags = { runs = root, run = name, lr = 0.5, log_every = 1 } }
  for k, v in pairs(options or {}) do o[k] = v end
  local run = recipe.start(o)
  for step in run:steps() do
    run:log(step, { loss = 1 / step, other = step * step, still = 4 })
    if more then more(run, step) end
  end
  run:finish()
  return root .. "/" .. name
end

local function report(folder, options) return read(assert(recipe.report(folder, options))) end

-- What a page may hold: elements of the page itself, valid UTF-8, no control characters, nothing from elsewhere.
local elements = {}
for name in ("html head meta title style body h1 h2 p span div table thead tbody tr th td figure figcaption img svg rect "
  .. "path text circle details summary pre b"):gmatch "%S+" do elements[name] = true end

local function assert_safe(page)
  lu.assertNotNil(utf8.len(page))
  lu.assertNil(page:find "[%z\1-\8\11-\31\127]")
  lu.assertEquals(page:sub(1, 16), "<!DOCTYPE html>\n")
  local open = 0
  for slash, name in page:sub(16):gmatch "<(/?)([^%s>/]*)" do
    lu.assertTrue(elements[name], ("<%s%s"):format(slash, name))
    open = open + 1
  end
  lu.assertTrue(open > 20)
  for quoted in page:gmatch '[%w-]+="([^"]*)"' do lu.assertNil(quoted:find "<") end
  lu.assertNil(page:gsub('xmlns="http://www.w3.org/2000/svg"', ""):find 'src="[^d]')
  lu.assertNil(page:find "<%s*script")
  lu.assertNil(page:find "url%(")
  lu.assertStrContains(page, "default-src 'none'")
end

function TestReport.test_a_finished_run_has_its_parts()
  local folder = make("fit", function (run, step)
    run:sample(step, { prompt = "1 + 2 =", completion = " 3", reward = step / 4, parts = { 1, "x" } })
    if step == 2 then run:text("a line for people") end
    if step == 3 then run:scores("greedy", { 1, 2, 3 }) end
  end)
  write("fit/curves.svg", peri.plot.svg { series = { { y = { 1, 2 } } } })
  local page = report(folder)
  assert_safe(page)
  for _, want in ipairs { "finished</span> step 3 of 3", ">Curves<", ">Samples<", "1 + 2 =", ">Alarms and warnings<",
    "None went off", ">Metrics<", ">Configuration<", "--lr", ">Environment<", peri.info().version, ">began<",
    (peri.info().processor:gsub("[&<>]", "")), "greedy", "IQM", 'src="data:image/svg+xml;base64,', "a line for people",
    "prefers-color-scheme: dark", "The same at every step: still 4" } do
    lu.assertStrContains(page, want)
  end
  lu.assertEquals(select(2, page:gsub("<svg", "")), 2) -- loss and other
  lu.assertTrue(page:find(">loss</text>", 1, true) < page:find(">other</text>", 1, true)) -- what it is judged by first
  lu.assertEquals(#read(folder .. "/report.html"), #page)
  local status, text = child.shell(("%s report %s --out %s/x.html --samples 0"):format(child.program, folder, root))
  lu.assertEquals({ status, text }, { 0, root .. "/x.html\n" })
  lu.assertNotStrContains(read(root .. "/x.html"), "1 + 2 =")
end

local hostile = {
  "<script>alert(1)</script>", "</pre></div></body><img src=x onerror=alert(1)>", "\"' onmouseover='x",
  "<!-- ", "]]>", "&lt;b&gt; &amp; &", "\u{1F600}\u{20BB7}", "\0\1\8\27[31mred\27[0m\127", "\u{202E}evil\u{2066}",
  "\u{85}\u{9b}31m", "a\r\nb\tc", ("\u{1F600}"):rep(3000), ("x"):rep(100000), "%s %d %n %", "javascript:alert(1)",
  "</style><style>*{display:none}</style>", "<svg onload=alert(1)>", "",
}

function TestReport.test_whatever_text_the_folder_holds_stays_text()
  local folder = make("safe")
  local function row(t) return peri.json.encode(t) .. "\n" end
  for i, text in ipairs(hostile) do
    local samples, metrics = {}, {}
    for _, name in ipairs { "completion", text } do
      samples[#samples + 1] = row { step = 1, [name ~= "step" and name or "x"] = text, list = { text, { text } } }
    end
    metrics[1] = row { step = 1, [text] = 0.5, loss = 1, stage = text }
    metrics[2] = row { step = 2, [text] = 0.75, loss = 2, stage = "b" }
    write("safe/samples.jsonl", table.concat(samples) .. text:gsub("\n", " ") .. "\n")
    write("safe/metrics.jsonl", table.concat(metrics))
    write("safe/config.json", row { lr = text, [text] = 1, list = { text } })
    write("safe/run.json", row { recipe = text, script = text, judged = { text } })
    write("safe/log.txt", ("2026-01-01 00:00:00  step 1: ALARM %s: %s; ALARM two: %s\n2026-01-01 00:00:00  warning: %s\n")
      :format(text, text, text, text))
    write("safe/sessions.jsonl", row { event = "begin", step = 0, total = 9, processor = text, commit = text, time = text,
      threads = 2 } .. row { event = "end", ok = false, why = text, step = 2 })
    local page = report(folder)
    assert_safe(page)
    lu.assertNil(page:find("onerror=alert(1)>", 1, true), i)
    lu.assertNil(page:find("\u{202E}", 1, true))
    lu.assertTrue(#page < 120000, #page)
  end
  write("safe/samples.jsonl", '{"step":1,"completion":"' .. hostile[1] .. '"}\n')
  lu.assertStrContains(report(folder), "&lt;script&gt;alert(1)&lt;/script&gt;")
  write("safe/samples.jsonl", "{\"step\":1,\"completion\":\"\xff\xfe\"}\n") -- no JSON: bytes that are no text
  assert_safe(report(folder))
end

function TestReport.test_a_picture_of_the_folder_cannot_act()
  local folder = make("pictures")
  write("pictures/evil.svg", '<svg xmlns="http://www.w3.org/2000/svg"><script>alert(1)</script></svg>')
  write('pictures/"><b>.svg', "<svg/>")
  write("pictures/large.png", ("x"):rep(600 * 1024))
  local page = report(folder)
  assert_safe(page) -- an image of a data: address runs no scripts
  lu.assertStrContains(page, 'alt="evil.svg"')
  lu.assertNotStrContains(page, "large.png")
end

function TestReport.test_a_long_run_makes_a_small_file()
  local folder = make("long")
  local rows, samples, rng = {}, {}, peri.rng(1)
  for i = 1, 100000 do
    rows[i] = ('{"step":%d,"loss":%.6f,"reward":%.4f,"other":%d}'):format(i, 1 / i + rng:uniform(), rng:uniform(), i % 7)
    samples[i] = ('{"step":%d,"completion":"sample %d"}'):format(i, i)
  end
  write("long/metrics.jsonl", table.concat(rows, "\n") .. "\n")
  write("long/samples.jsonl", table.concat(samples, "\n") .. "\n")
  local page = report(folder, { samples = 5 })
  assert_safe(page)
  lu.assertTrue(#page < 200000, #page)
  for _, i in ipairs { 1, 25000, 50000, 75000, 100000 } do lu.assertStrContains(page, (">sample %d<"):format(i)) end
  lu.assertStrContains(page, "5 of 100000")
end

function TestReport.test_it_says_how_far_a_run_is()
  local folder = root .. "/cut"
  local function open(resume)
    return recipe.start { name = "cut", total = 9, console = false, tensorboard = false,
      flags = { runs = root, run = "cut", resume = resume, save_every = 2, steps = 9 } }
  end
  local run = open(false)
  run:track("rng", peri.rng(1))
  for step in run:steps() do
    run:log(step, { loss = step })
    if step == 2 then
      lu.assertStrContains(report(folder), "running</span> process")
      break
    end
  end
  lu.assertStrContains(report(folder), "running</span>")
  run._lock:drop() -- as if its process were killed
  local page = report(folder)
  lu.assertStrContains(page, "cut</span> its process is gone after step 2 of 9")
  assert_safe(page)
  run = open(true)
  run:track("rng", peri.rng(1))
  lu.assertErrorMsgContains("boom <b>", function ()
    for step in run:steps() do
      run:log(step, { loss = step })
      if step == 5 then error "boom <b>" end
    end
  end)
  run._lock:drop()
  page = report(folder)
  lu.assertStrContains(page, "Resumed once after step 2.")
  lu.assertStrContains(page, "boom &lt;b&gt;")
  lu.assertStrContains(page, 'class="state cut"')
  run = open(true)
  run:track("rng", peri.rng(1))
  for step in run:steps() do
    run:log(step, { loss = step })
    if step == 6 then run:stop "enough" end
  end
  run:finish()
  page = report(folder)
  lu.assertStrContains(page, "Resumed 2 times after step 2, 4.")
  lu.assertStrContains(page, "stopped</span> after step 6 of 9: enough")
  write("cut/metrics.jsonl", read(folder .. "/metrics.jsonl") .. '{"step":7,"lo')
  page = report(folder)
  lu.assertStrContains(page, "it was left out")
  assert_safe(page)
  peri.files.remove_tree(folder .. "/sessions.jsonl") -- of a version that noted no sessions
  os.remove(folder .. "/sessions.jsonl")
  lu.assertStrContains(report(folder), "the folder does not say how it ended")
end

function TestReport.test_damaged_lines_anywhere_are_left_out_and_counted()
  local folder = make "odd"
  local rows = {}
  for line in read(folder .. "/metrics.jsonl"):gmatch "[^\n]+" do rows[#rows + 1] = line end
  local garbage = { "garbage", '{"step":7,"lo', "\0\1\255", "[1,2]", "1", "null", '"x"', "<b>", "" }
  for place = 1, #rows + 1 do
    for _, text in ipairs(garbage) do
      local with = table.move(rows, 1, #rows, 1, {})
      table.insert(with, place, text)
      write("odd/metrics.jsonl", table.concat(with, "\n") .. "\n")
      local page = report(folder)
      lu.assertStrContains(page, ("line %d: "):format(place))
      lu.assertStrContains(page, "; it was left out")
      lu.assertNil(page:match "line %d+: [^;]*line %d", text) -- one number, that of the file
      lu.assertStrContains(page, "finished</span> step 3 of 3")
      assert_safe(page)
    end
  end
  write("odd/metrics.jsonl", table.concat(garbage, "\n") .. "\n" .. table.concat(rows, "\n") .. "\n")
  lu.assertStrContains(report(folder), ("%d such lines were left out"):format(#garbage))
  write("odd/samples.jsonl", table.concat(garbage, "\n") .. "\n")
  assert_safe(report(folder))
  lu.assertErrorMsgContains("metrics.jsonl: line 1", require("perilune.run.curves").columns, folder .. "/metrics.jsonl")
end

function TestReport.test_alarms_and_warnings_are_listed_once()
  local folder = make("alarm")
  write("alarm/log.txt", [[
2026-01-01 00:00:00  step 4: step skipped: gradients not finite; ALARM flat: all rewards are one; ALARM kl: 12 nats
2026-01-01 00:00:00  warning: best: "x" was never logged
2026-01-01 00:00:01  resuming alarm after step 3
2026-01-01 00:00:02  step 4: ALARM flat: all rewards are one
2026-01-01 00:00:03  warning: best: "x" was never logged
]])
  local page = report(folder)
  local _, count = page:gsub("<td>flat</td>", "")
  lu.assertEquals(count, 1)
  lu.assertStrContains(page, "<td>kl</td><td>12 nats</td>")
  lu.assertEquals(select(2, page:gsub(">warning: best", "")), 1)
end

function TestReport.test_what_is_no_run_is_refused()
  make("one")
  local path, message = recipe.report(root .. "/nowhere")
  lu.assertEquals({ path, message }, { nil, root .. "/nowhere: is no run folder: it has no config.json" })
  path, message = recipe.report(root)
  lu.assertEquals({ path, message }, { nil, root .. ": is no run folder: it has no config.json; runs in it: one" })
  path, message = recipe.report(root .. "/one", { path = root .. "/no/where.html" })
  lu.assertNil(path)
  lu.assertStrContains(message, "no/where.html")
  write("one/config.json", "[1]")
  path, message = recipe.report(root .. "/one/")
  lu.assertNil(path)
  lu.assertStrContains(message, "is an array, expected an object of flags")
  lu.assertErrorMsgContains("unknown option", recipe.report, root, { sample = 1 })
  local status, text = child.shell(("%s report %s"):format(child.program, root))
  lu.assertEquals(status, 1)
  lu.assertStrContains(text, "perilune report: " .. root .. ": is no run folder")
end

function TestReport.test_the_commit_is_that_of_the_checkout()
  local commit = require("perilune.run.sessions").commit
  local hash, other = ("ab12"):rep(10), ("cd34"):rep(10)
  assert(peri.files.make_folder(root .. "/repo/.git/refs/heads/h"))
  assert(peri.files.make_folder(root .. "/repo/recipes/deep"))
  write("repo/.git/HEAD", "ref: refs/heads/h/x\n")
  write("repo/.git/packed-refs", "# pack-refs with: peeled\n" .. other .. " refs/heads/h/x\n")
  lu.assertEquals(commit(root .. "/repo/recipes/deep/a.lua"), other)
  write("repo/.git/refs/heads/h/x", hash .. "\n")
  lu.assertEquals(commit(root .. "/repo/recipes/a.lua"), hash)
  write("repo/.git/HEAD", other .. "\n")
  lu.assertEquals(commit(root .. "/repo/a.lua"), other)
  assert(peri.files.make_folder(root .. "/tree"))
  assert(peri.files.make_folder(root .. "/repo/.git/worktrees/t"))
  write("tree/.git", "gitdir: ../repo/.git/worktrees/t\n")
  write("repo/.git/worktrees/t/HEAD", "ref: refs/heads/h/x\n")
  write("repo/.git/worktrees/t/commondir", "../..\n")
  lu.assertEquals(commit(root .. "/tree/a.lua"), hash)
  write("repo/.git/HEAD", "ref: refs/heads/../../../etc/passwd\n")
  lu.assertNil(commit(root .. "/repo/a.lua"))
end
