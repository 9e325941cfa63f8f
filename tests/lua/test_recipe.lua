-- Run folders: what a stopped and resumed run leaves is what an unbroken one leaves.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local nn, optim, data = require "perilune.nn", require "perilune.optim", require "perilune.data"
local recipe, flags_module = require "perilune.run.recipe", require "perilune.run.flags"

local function read(path) return assert(peri.files.read(path)) end

-- A small recipe with everything that a checkpoint must hold; stops by an error after `stop`, or as how.leave
-- says. The validation loss is made up, so that its best is known: least at step 4.
local VAL = { 9, 7, 5, 1, 2, 3, 1.5, 4, 6 }
local function train(flags, stop, how)
  how = how or {}
  local run = recipe.start { name = "demo", flags = flags, total = how.total or 9, console = false,
    tensorboard = false }
  local net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1))
  local opt = optim.AdamW(net:parameters(), { lr = 0.01 })
  local rows = {}
  for i = 1, 10 do rows[i] = { i / 10, -i / 10 } end
  local batches = data.list(rows):shuffle(flags.seed):batch(3):repeat_()
  run:track("model", net):track("optimizer", opt):track("data", batches)
  if how.best then run:best("val_loss", how.best) end
  local function loop()
    for step in run:steps() do
      local x = peri.tensor(batches(), "f32")
      local loss = net(x):add(peri.randn { 1 }):square():mean()
      loss:backward()
      opt:step { clip = 1 }:zero_grad()
      run:log(step, { loss = loss, val_loss = VAL[step] }, { seconds = peri.time() })
      run:sample(step, { text = "s" .. step, value = loss:item() })
      if step == stop and how.leave == "break" then break end
      if step == stop and how.leave == "return" then return end
      if step == stop and how.leave == "stop" then run:stop "enough" end
      if step == stop and not how.leave then error("stopped", 0) end
    end
  end
  local ok, message = pcall(loop)
  if not ok and message ~= "stopped" then error(message, 0) end
  run:finish()
  return run, net
end

local function weights(net)
  local list = {}
  for key, t in pairs(net:state_dict()) do list[key] = t:bytes() end
  return list
end

local CHECKPOINT = { "model.safetensors", "optimizer.safetensors", "state.json" }

local function assert_same_run(run, net, whole, whole_net)
  for _, file in ipairs { "metrics.jsonl", "samples.jsonl" } do
    lu.assertEquals(read(run:path(file)), read(whole:path(file)))
  end
  lu.assertEquals(weights(net), weights(whole_net))
  local last = ("/checkpoints/step-%08d/"):format(whole.saved)
  for _, file in ipairs(CHECKPOINT) do
    lu.assertEquals(read(run.folder .. last .. file), read(whole.folder .. last .. file))
  end
end

TestRecipe = {}
local root
scratch.each(TestRecipe, function(path) root = path end)

function TestRecipe:test_a_resumed_run_equals_an_unbroken_one()
  local whole, net = train { seed = 3, runs = root, run = "whole", save_every = 2 }
  for stop = 3, 9, 3 do
    local flags = { seed = 3, runs = root, run = "stopped" .. stop, save_every = 2, resume = false }
    train(flags, stop)
    flags.resume = true
    local run, again = train(flags)
    assert_same_run(run, again, whole, net)
  end
end

function TestRecipe:test_a_loop_that_is_left_has_a_checkpoint_of_its_last_step()
  local whole, net = train { seed = 3, runs = root, run = "whole", save_every = 2 }
  for _, leave in ipairs { "break", "return", "stop" } do
    for stop = 1, 7, 3 do
      local flags = { seed = 3, runs = root, run = leave .. stop, save_every = 0, resume = false }
      local run = train(flags, stop, { leave = leave })
      lu.assertEquals(run.saved, stop)
      lu.assertEquals(peri.files.exists(("%s/checkpoints/step-%08d"):format(run.folder, stop)), "folder")
      flags.resume = true
      if leave == "stop" then -- is over; more budget begins again
        lu.assertEquals(train(flags).saved, stop)
      else
        local again, after = train(flags)
        lu.assertEquals(weights(after), weights(net))
        lu.assertEquals(read(again:path "metrics.jsonl"), read(whole:path "metrics.jsonl"))
      end
    end
  end
end

function TestRecipe:test_the_best_weights_come_back_and_patience_ends_the_loop()
  local at_four = select(2, train({ seed = 3, runs = root, run = "four", save_every = 0 }, 4, { leave = "break" }))
  local best = { patience = 4 }
  local flags = { seed = 3, runs = root, run = "whole", save_every = 2 }
  local whole, net = train(flags, nil, { best = best })
  lu.assertEquals(whole.saved, 8) -- step 4 was the best, 5 to 8 were not
  lu.assertStrContains(whole.stopped, "val_loss has not improved in 4 measurements (best 1 at step 4)")
  local before_load = weights(net)
  lu.assertEquals({ whole:load_best() }, { 4, 1 })
  lu.assertEquals(weights(net), weights(at_four))
  lu.assertNotEquals(weights(net), before_load)
  for stop = 3, 8 do -- stopped before and after the best one, and resumed
    local cut = { seed = 3, runs = root, run = "cut" .. stop, save_every = 2, resume = false }
    train(cut, stop, { best = best })
    cut.resume = true
    local run, again = train(cut, nil, { best = best })
    lu.assertEquals(run.saved, 8)
    lu.assertEquals(read(run:path "metrics.jsonl"), read(whole:path "metrics.jsonl"))
    lu.assertEquals(weights(again), before_load)
    lu.assertEquals(read(run:path "checkpoints/step-00000008/state.json"),
      read(whole:path "checkpoints/step-00000008/state.json"))
    lu.assertEquals(run:load_best "val_loss", 4)
    lu.assertEquals(weights(again), weights(at_four))
    lu.assertEquals(peri.files.list(run:path "best/val_loss"), { "step-00000004" })
  end
end

function TestRecipe:test_what_is_better_is_as_the_options_say()
  local function best_step(opts)
    local run = train({ seed = 3, runs = root, save_every = 0 }, nil, { best = opts })
    return (run:load_best())
  end
  lu.assertEquals(best_step {}, 4)
  lu.assertEquals(best_step { mode = "max" }, 1)
  lu.assertEquals(best_step { min_delta = 5 }, 4)
  lu.assertEquals(best_step { min_delta = 7 }, 4)
  lu.assertEquals(best_step { min_delta = 8 }, 1)
  lu.assertEquals(best_step { objects = { "model" } }, 4)
  local run = recipe.start { name = "x", flags = { runs = root }, console = false }
  for _, bad in ipairs { { mode = "least" }, { patience = 0 }, { min_delta = -1 }, { patiense = 3 } } do
    lu.assertErrorMsgContains("best: ", run.best, run, "m", bad)
  end
  run:best("m"):best("n")
  lu.assertErrorMsgContains("watched already", run.best, run, "m")
  lu.assertErrorMsgContains("which of m, n?", run.load_best, run)
  lu.assertErrorMsgContains("unknown metric", run.load_best, run, "z")
  lu.assertErrorMsgContains('"m" was never logged', run.load_best, run, "m")
  run:finish()
end

function TestRecipe:test_a_measurement_that_is_not_finite_is_never_the_best()
  local run = recipe.start { name = "x", flags = { runs = root }, console = false, total = 9 }
  run:track("model", nn.Linear(1, 1)):best("acc", { mode = "max", patience = 2 })
  local seen = {}
  for step in run:steps() do
    run:log(step, { acc = step == 2 and 0.5 or step == 3 and math.huge or 0 / 0 })
    seen[step] = true
  end
  lu.assertEquals(#seen, 4)
  lu.assertEquals({ run:load_best() }, { 2, 0.5 })
  run:finish()
end

function TestRecipe:test_a_second_run_gets_a_folder_of_its_own()
  local flags = { runs = root, seed = 1 }
  local a = recipe.start { name = "x", flags = flags, console = false }
  local b = recipe.start { name = "x", flags = flags, console = false }
  lu.assertEquals(a.folder, root .. "/x")
  lu.assertEquals(b.folder, root .. "/x-2")
  lu.assertStrContains(read(a:path "config.json"), '"seed": 1')
  lu.assertEquals(a:path "x.svg", a.folder .. "/x.svg")
  for _, run in ipairs { a, b } do run:finish() end
end

function TestRecipe:test_resuming_follows_the_newest_run_of_the_name()
  local function flags(name, resume) return { seed = 3, runs = root, run = name, save_every = 2, resume = resume } end
  for _ = 1, 10 do train(flags("two", false), 4, { leave = "break" }) end
  train(flags("two-30", false), 4, { leave = "break" }) -- called so by its user
  train(flags("two-30", false), 4, { leave = "break" })
  lu.assertEquals(train(flags("two", true)).folder, root .. "/two-10") -- by number, not by name
  lu.assertEquals(train(flags("two-1", true)).folder, root .. "/two")
  lu.assertEquals(train(flags("two-3", true)).folder, root .. "/two-3")
  lu.assertEquals(train(flags("two-30", true)).folder, root .. "/two-30-2")
  lu.assertEquals(train(flags("two", false)).folder, root .. "/two-11")
  lu.assertErrorMsgContains("no run " .. root .. "/three to resume", train, flags("three", true))
end

function TestRecipe:test_resuming_with_other_flags_is_refused()
  train({ runs = root, seed = 1, lr = 1, save_every = 2, resume = false }, 4)
  lu.assertErrorMsgContains("lr was 1, is 2", train, { runs = root, seed = 1, lr = 2, save_every = 2, resume = true })
  train { runs = root, seed = 1, lr = 1, save_every = 3, log_every = 5, resume = true }
end

function TestRecipe:test_a_budget_may_be_prolonged()
  local function flags(steps, resume) return { seed = 3, runs = root, steps = steps, save_every = 2, resume = resume } end
  local whole, net = train({ seed = 3, runs = root, run = "whole", steps = 9, save_every = 2 })
  train(flags(5, false), nil, { total = 5 })
  local run, again = train(flags(9, true), nil, { total = 9 })
  assert_same_run(run, again, whole, net)
  lu.assertStrContains(read(run:path "config.json"), '"steps": 9')
  train(flags(9, true)) -- and is what it was prolonged to
  lu.assertErrorMsgContains("rounds was 1, is 2", function() -- a recipe says what its budget is
    for rounds = 1, 2 do
      local r = recipe.start { name = "y", flags = { runs = root, rounds = rounds, resume = rounds == 2 },
        console = false, tensorboard = false, total = rounds }
      for step in r:steps() do r:log(step, { a = 1 }) end
      r:finish()
    end
  end)
  local r = recipe.start { name = "y", flags = { runs = root, rounds = 2, resume = true }, budget = { "rounds" },
    console = false, tensorboard = false, total = 2 }
  lu.assertEquals(r:restore(), 1)
  r:finish()
end

function TestRecipe:test_a_run_is_not_shortened_below_what_it_has_done()
  local flags = { seed = 3, runs = root, run = "long", steps = 6, save_every = 0 }
  train(flags, nil, { total = 6 })
  local before = peri.files.read(root .. "/long/config.json")
  flags.steps, flags.resume = 4, true
  lu.assertErrorMsgContains("has done 6 steps, --steps 4 makes 4 of them; nothing was changed",
    function() local ok, why = pcall(train, flags, nil, { total = 4 }) error(ok and "it ran" or tostring(why), 0) end)
  lu.assertEquals(peri.files.read(root .. "/long/config.json"), before)
end

function TestRecipe:test_a_state_that_cannot_be_saved_is_said_before_the_first_step()
  local run = recipe.start { name = "holes", flags = { runs = root, seed = 1 }, total = 9, console = false }
  run:track("env", { state = function() return { [7] = 1 } end, set_state = function() end })
  local steps = 0
  lu.assertErrorMsgContains('the state of "env" cannot be written',
    function()
      local ok, why = pcall(function() for _ in run:steps() do steps = steps + 1 end end)
      error(ok and "it ran" or tostring(why), 0)
    end)
  lu.assertEquals(steps, 0)
end

function TestRecipe:test_what_stopped_early_goes_on_with_a_longer_budget()
  local function flags(steps, resume) return { seed = 3, runs = root, steps = steps, save_every = 2, resume = resume } end
  local best = { patience = 1 }
  lu.assertEquals(train(flags(8, false), nil, { total = 8, best = best }).saved, 5)
  lu.assertEquals(train(flags(8, true), nil, { total = 8, best = best }).saved, 5) -- is over
  lu.assertEquals(train(flags(9, true), nil, { total = 9, best = best }).saved, 6) -- one more that is no better
  lu.assertEquals(train(flags(9, false), 3, { leave = "stop" }).saved, 3)
  lu.assertEquals(train(flags(9, true)).saved, 3)
  lu.assertEquals(train(flags(10, true), nil, { total = 9 }).saved, 9)
end

local function quiet(fn, ...)
  warn "@off"
  local results = table.pack(pcall(fn, ...))
  warn "@on"
  lu.assertTrue(results[1], tostring(results[2]))
  return table.unpack(results, 2, results.n)
end

local function start(name, total)
  return recipe.start { name = name or "x", flags = { runs = root }, total = total, console = false, tensorboard = false }
end

function TestRecipe:test_a_watched_metric_that_is_never_logged_is_warned_of_however_the_loop_ends()
  for _, way in ipairs { "end", "break", "stop" } do
    local run = start("w", 3)
    run:best("val_los")
    local function loop()
      for step in run:steps() do
        run:log(step, { val_loss = 1 })
        if step == 2 and way == "break" then break end
        if step == 2 and way == "stop" then run:stop "enough" end
      end
    end
    quiet(loop)
    run:finish()
    local _, count = read(run:path "log.txt"):gsub('warning: best: "val_los" was never logged, so no weights are kept; '
      .. 'logged: val_loss; did you mean "val_loss"%?', "")
    lu.assertEquals(count, 1, way)
    lu.assertErrorMsgContains('load_best: "val_los" was never logged', run.load_best, run)
    lu.assertEquals(run.stopped, ({ stop = "enough", ["break"] = "the loop was left" })[way])
  end
end

function TestRecipe:test_what_is_prolonged_counts_patience_from_there()
  local function flags(steps, resume) return { seed = 3, runs = root, steps = steps, save_every = 2, resume = resume } end
  train(flags(9, false), nil, { best = { patience = 2 } })
  local run = train(flags(20, true), nil, { best = { patience = 2 } })
  lu.assertEquals(run.stopped, "val_loss has not improved in 2 measurements since the run was prolonged after step 6 "
    .. "(best 1 at step 4)")
end

function TestRecipe:test_the_best_weights_are_found_from_outside()
  local run, net = train({ seed = 3, runs = root }, nil, { best = {} })
  local path, step, value = recipe.best(run.folder, "val_loss")
  lu.assertEquals({ path, step, value }, { run.folder .. "/best/val_loss/step-00000004", 4, 1 })
  lu.assertEquals({ recipe.best(run.folder) }, { path, step, value })
  net:load_state_dict(assert(peri.safetensors.load(path .. "/model.safetensors")))
  local from_file = weights(net)
  run:load_best()
  lu.assertEquals(from_file, weights(net))
  lu.assertStrContains(select(2, recipe.best(run.folder, "val_los")), 'did you mean "val_loss"?')
  lu.assertStrContains(select(2, recipe.best(root .. "/none")), "no best weights")
end

function TestRecipe:test_find_looks_beside_the_script_and_in_the_folder_above_before_elsewhere()
  local script = arg[0]
  local place = root .. "/recipes/"
  for _, folder in ipairs { "data", "nets", "nets/data" } do assert(peri.files.make_folder(place .. folder)) end
  assert(peri.files.write(place .. "data/a", "above"))
  rawset(arg, 0, place .. "nets/fit.lua")
  lu.assertEquals(read(recipe.find("a", "a file")), "above")
  assert(peri.files.write(place .. "nets/data/a", "beside"))
  lu.assertEquals(read(recipe.find("a", "a file")), "beside")
  lu.assertEquals(recipe.find("README.md", "a file"), "README.md")
  local ok, err = pcall(recipe.find, "b", "a file called b")
  rawset(arg, 0, script)
  lu.assertFalse(ok)
  lu.assertStrContains(tostring(err), "it needs a file called b")
end

-- ---- what cannot be resumed ----

function TestRecipe:test_what_does_not_fit_a_checkpoint_is_named_with_it()
  local path = root .. "/demo/checkpoints/step-00000002"
  local function list(n)
    local rows = {}
    for i = 1, n do rows[i] = i end
    return data.list(rows):shuffle(1)
  end
  local run = start("demo", 2)
  run:track("net", nn.Linear(2, 2)):track("data", list(4))
  for step in run:steps() do run:log(step, { a = 1 }) end
  run:finish()
  for want, objects in pairs {
    [path .. ' does not fit "net": load_state_dict: '] = { net = nn.Linear(2, 3), data = list(4) },
    [path .. ' does not fit "data": '] = { net = nn.Linear(2, 2), data = list(5) },
    [path .. ' has no "more"'] = { net = nn.Linear(2, 2), data = list(4), more = peri.rng(1) },
    [path .. ' has "data", which is not tracked now'] = { net = nn.Linear(2, 2) },
  } do
    local again = recipe.start { name = "demo", flags = { runs = root, resume = true }, console = false, total = 2 }
    for name, object in pairs(objects) do again:track(name, object) end
    local ok, err = pcall(again.restore, again)
    again:finish()
    lu.assertFalse(ok)
    lu.assertStrContains(tostring(err), want)
    lu.assertNil(tostring(err):find "%.lua:%d")
  end
end

-- Every file below a folder with its content, but the lock.
local function snapshot(folder, into, prefix)
  into, prefix = into or {}, prefix or ""
  for _, name in ipairs(peri.files.list(folder)) do
    local path = folder .. "/" .. name
    if peri.files.exists(path) == "folder" then snapshot(path, into, prefix .. name .. "/")
    elseif name ~= ".lock" then into[prefix .. name] = read(path) end
  end
  return into
end

function TestRecipe:test_resuming_without_a_whole_checkpoint_changes_nothing()
  local checkpoints = root .. "/r/checkpoints"
  local function damage()
    for _, name in ipairs(peri.files.list(checkpoints)) do
      assert(peri.files.write(("%s/%s/state.json"):format(checkpoints, name), "{"))
    end
  end
  local function empty() for _, n in ipairs(peri.files.list(checkpoints)) do peri.files.remove_tree(checkpoints .. "/" .. n) end end
  local function gone() assert(peri.files.remove_tree(checkpoints)) end
  local function config(text) return function() assert(peri.files.write(root .. "/r/config.json", text)) end end
  for want, change in pairs { ["2 damaged: step-00000004, step-00000006"] = damage, ["before the first was due"] = empty,
    ["r has no whole checkpoint"] = gone, ["r/config.json: is a number"] = config "3",
    ["r/config.json: is an array"] = config "[1]", ["r/config.json: "] = config '{"seed": 3' } do
    peri.files.remove_tree(root .. "/r")
    train({ seed = 3, runs = root, run = "r", save_every = 2, resume = false }, 7)
    change()
    local before = snapshot(root .. "/r")
    warn "@off"
    lu.assertErrorMsgContains(want, train, { seed = 3, runs = root, run = "r", save_every = 2, resume = true })
    warn "@on"
    lu.assertEquals(snapshot(root .. "/r"), before)
  end
end

-- A run of two steps with the objects of a table tracked.
local function tracked(objects, flags)
  local run = recipe.start { name = "t", flags = flags, total = flags.steps, console = false, tensorboard = false }
  for name, object in pairs(objects) do run:track(name, object) end
  local ok, message = pcall(function() for step in run:steps() do run:log(step, { a = step }) end end)
  run:finish()
  if not ok then error(message, 0) end
end

function TestRecipe:test_a_checkpoint_that_does_not_fit_what_is_tracked_is_refused_and_nothing_changes()
  local function flags(steps, resume) return { runs = root, steps = steps, resume = resume, save_every = 1 } end
  local function refusing() error("set_state: no", 0) end
  local plain = { state = function() return { 1 } end, set_state = refusing }
  tracked({ model = nn.Linear(2, 1), rng = peri.rng(1), plain = plain }, flags(2, false))
  plain.set_state = function() end
  for want, objects in pairs {
    ['has no "more": it was not tracked then'] = { model = nn.Linear(2, 1), rng = peri.rng(1), plain = plain, more = peri.rng(2) },
    ['has "rng", which is not tracked now'] = { model = nn.Linear(2, 1), plain = plain },
    ['has "model", which is not tracked now'] = { rng = peri.rng(1), plain = plain },
    ['does not fit "model": load_state_dict: wrong shape: weight has (1, 2), expected (1, 3)'] =
      { model = nn.Linear(3, 1), rng = peri.rng(1), plain = plain },
    ['does not fit "plain": set_state: no'] = { model = nn.Linear(2, 1), rng = peri.rng(1),
      plain = { state = plain.state, set_state = refusing } },
  } do
    local before = snapshot(root .. "/t")
    lu.assertErrorMsgContains(want, tracked, objects, flags(9, true))
    lu.assertEquals(snapshot(root .. "/t"), before)
  end
end

function TestRecipe:test_a_state_holds_every_number_and_what_it_cannot_hold_is_named()
  local got
  local function object(state)
    return { mine = { state = function() return state end, set_state = function(_, s) got = s end } }
  end
  tracked(object { best = math.huge, low = -math.huge, mean = 0 / 0 }, { runs = root, steps = 1 })
  tracked(object {}, { runs = root, steps = 2, resume = true })
  lu.assertEquals({ got.best, got.low }, { math.huge, -math.huge })
  lu.assertTrue(got.mean ~= got.mean)
  for _, state in ipairs { print, "\xff", { [3] = 1, a = 2 }, peri.ones { 1 } } do
    lu.assertErrorMsgContains('the state of "mine" cannot be written', tracked, object(state), { runs = root, steps = 1 })
  end
  lu.assertErrorMsgContains('the state of "mine" is nil', tracked, object(nil), { runs = root, steps = 1 })
end

function TestRecipe:test_slashes_behind_a_folder_are_no_part_of_its_name()
  for i, runs in ipairs { root, root .. "/", root .. "//" } do
    local run = recipe.start { name = "x", flags = { runs = runs, run = ("a/b"):sub(1, 2 * i) .. "/" }, console = false }
    lu.assertEquals(run.folder, ("%s/%s"):format(root, i == 1 and "a" or i == 2 and "a/b" or "a/b-2"))
    run:finish()
  end
  lu.assertErrorMsgContains("expected names of folders", recipe.start, { name = "x", flags = { runs = "" } })
end

function TestRecipe:test_a_damaged_newest_checkpoint_is_passed_over_with_a_warning()
  local whole, net = train { seed = 3, runs = root, run = "whole", save_every = 2 }
  local flags = { seed = 3, runs = root, run = "r", save_every = 2, resume = false }
  train(flags, 7)
  assert(peri.files.write(root .. "/r/checkpoints/step-00000006/model.safetensors", "x"))
  peri.warnings()
  warn "@off"
  flags.resume = true
  local run, again = train(flags)
  warn "@on"
  assert_same_run(run, again, whole, net)
  local text = read(run:path "log.txt")
  lu.assertStrContains(text, "warning: checkpoint passed over")
  lu.assertStrContains(text, "step-00000006")
  lu.assertStrContains(text, "resuming " .. run.folder .. " after step 4 of 9")
end

function TestRecipe:test_a_run_folder_has_one_writer()
  local flags = { seed = 3, runs = root, run = "r", save_every = 2, resume = false }
  train(flags, 4)
  flags.resume = true
  local run = recipe.start { name = "r", flags = flags, console = false, tensorboard = false, total = 9 }
  lu.assertErrorMsgContains("this process (", train, flags)
  lu.assertErrorMsgContains("is writing this run", train, flags)
  run:finish()
  train(flags)
end

function TestRecipe:test_a_finished_run_says_so_and_what_follows_the_loop_has_its_numbers()
  local flags = { seed = 3, runs = root, save_every = 2, steps = 9, resume = false }
  local whole = train(flags)
  lu.assertEquals({ whole:last "val_loss" }, { 6, 9 })
  flags.resume = true
  local run = train(flags)
  lu.assertEquals({ run:last "val_loss" }, { 6, 9 })
  lu.assertNil(run:last "nothing")
  local text = read(run:path "log.txt")
  lu.assertStrContains(text, "is finished; prolong it, beyond 9 steps, with: ")
  lu.assertStrContains(text, "--resume --steps N")
end

-- ---- metrics ----

function TestRecipe:test_a_skipped_step_is_said_once()
  local w = nn.parameter(peri.ones { 2 })
  local opt = optim.SGD({ w }, { lr = 1 })
  local run = recipe.start { name = "x", flags = { runs = root }, console = false, tensorboard = false, total = 4 }
  run:track("optimizer", opt)
  for step in run:steps() do
    local loss = step == 2 and w:mul(1 / 0):sum() or w:sum()
    loss:backward()
    opt:step { clip = 1 }:zero_grad()
    run:log(step, { loss = 1 })
  end
  run:finish()
  lu.assertEquals(read(run:path "metrics.jsonl"), '{"step":1,"loss":1}\n{"step":2,"loss":1,"skipped":1}\n'
    .. '{"step":3,"loss":1}\n{"step":4,"loss":1}\n')
  lu.assertStrContains(read(run:path "log.txt"), "step 2: step skipped: gradients not finite")
end

function TestRecipe:test_what_is_no_metric_is_refused_by_name()
  local run = start("x", 1)
  for step in run:steps() do
    for want, call in pairs {
      ["log: a is a table, expected a number"] = { run.log, step, { a = { b = 1 } } },
      ["log: t is a tensor of shape (2), expected one element"] = { run.log, step, { t = peri.ones { 2 } } },
      ["log: 1 is no name of a metric"] = { run.log, step, { 0.5 } },
      ["log: l is a function"] = { run.log, step, { a = 1 }, { l = print } },
      ['log: step is the number of the row'] = { run.log, step, { step = 2 } },
      ["log: the table of metrics is missing"] = { run.log, step },
      ["log: step is 2, but the loop is at step 1"] = { run.log, 2, { a = 1 } },
      ["log: step is 0, but"] = { run.log, 0, { a = 1 } },
      ['log: step is "x", expected an integer'] = { run.log, "x", { a = 1 } },
      ["sample: step is 2, but"] = { run.sample, 2, { a = 1 } },
      ["sample: f is a function"] = { run.sample, step, { f = print } },
      ["histogram: step is 2, but"] = { run.histogram, 2, { a = { 1 } } },
      ["histogram: h is 3, expected a tensor"] = { run.histogram, step, { h = 3 } },
    } do
      lu.assertErrorMsgContains(want, call[1], run, table.unpack(call, 2, 4))
    end
  end
  lu.assertErrorMsgContains("the run is closed", function () run:finish() run:log(2, { a = 1 }) end)
  lu.assertEquals(read(run:path "metrics.jsonl"), "")
end

function TestRecipe:test_a_step_is_one_line_and_a_metric_has_one_value()
  local run = recipe.start { name = "x", flags = { runs = root }, total = 2, console = false, csv = true }
  for step in run:steps() do
    run:log(step, { b = step })
    run:log(step, { a = 0.5, ["c,d"] = "x" })
    lu.assertErrorMsgContains(("b of step %d is logged already"):format(step), run.log, run, step, { b = 3 })
  end
  run:log(2, { test = 1 })
  lu.assertErrorMsgContains("step 1 comes after step 2", run.log, run, 1, { test = 1 })
  run:finish()
  lu.assertEquals(read(run:path "metrics.jsonl"), '{"step":1,"a":0.5,"b":1,"c,d":"x"}\n{"step":2,"a":0.5,"b":2,"c,d":"x","test":1}\n')
  lu.assertEquals(read(run:path "metrics.csv"), 'step,b,a,"c,d",test\n1,1,0.5,x,\n2,2,0.5,x,1\n')
  local again = recipe.start { name = "x", flags = { runs = root, resume = true }, total = 2, console = false, csv = true }
  for step in again:steps() do again:log(step, {}) end
  again:log(2, { test = 7 }) -- what follows the loop is done again
  again:finish()
  lu.assertEquals(again:history().test[2], 7)
  lu.assertEquals(#again:history().step, 2)
  lu.assertStrContains(read(run:path "metrics.csv"), "\n2,2,0.5,x,7\n")
end

function TestRecipe:test_what_stands_before_the_loop_does_the_same_in_a_resumed_run()
  local function go(resume, total)
    local run = recipe.start { name = "x", flags = { runs = root, resume = resume, steps = total }, total = total,
      console = false, tensorboard = false }
    run:text "loading"
    for _, call in ipairs { { run.log, 0, { a = 1 } }, { run.sample, 0, { a = 1 } }, { run.histogram, 0, { a = { 1 } } } } do
      lu.assertErrorMsgContains("are not open yet", call[1], run, call[2], call[3])
    end
    run:track("net", nn.Linear(1, 1)):restore()
    run:log(0, { base = 1 }):sample(0, { s = 1 }):histogram(0, { a = { 1 } })
    for step in run:steps() do run:log(step, { a = step }) end
    run:finish()
    return read(run:path "metrics.jsonl") .. read(run:path "samples.jsonl") .. (read(run:path "log.txt"):match "loading" or "")
  end
  go(false, 2)
  local resumed = go(true, 4)
  peri.files.remove_tree(root .. "/x")
  lu.assertEquals(resumed, go(false, 4))
end

function TestRecipe:test_a_chart_of_what_was_never_logged_or_with_unknown_keys_is_refused()
  local run = train { runs = root, seed = 1, save_every = 0 }
  for want, metrics in pairs {
    ['unknown metric "val_los"; did you mean "val_loss"?'] = { "val_los" }, ["unknown metric \"zzzzz\""] = { { "loss", "zzzzz" } },
    ['metrics is "loss", expected a list'] = "loss", ['unknown option "ylable"; did you mean "ylabel"?'] = { { "loss", ylable = "x" } },
    ["yscale is"] = { { "loss", yscale = "lgo" } }, ["title is a key of the list of charts"] = { "loss", title = "x" },
    ["no metric is named"] = { {} }, ["a metric is 3"] = { 3 }, ["metrics is missing"] = false,
  } do
    lu.assertErrorMsgContains(want, run.plot, run, "c.svg", metrics or nil)
  end
  lu.assertFalse(peri.files.exists(run:path "c.svg"))
  local empty = start("empty", 0)
  for step in empty:steps() do empty:log(step, { loss = 1 }) end
  empty:plot("c.svg", { "loss" }) -- no step, no curve
  empty:finish()
end

function TestRecipe:test_a_chart_of_a_declared_metric_that_never_came_is_said_once()
  local run = recipe.start { name = "hollow", flags = { runs = root }, total = 2, console = false, columns = { "loss", "eval" } }
  for step in run:steps() do
    run:log(step, { loss = step })
    run:plot("c.svg", { "loss", { "eval", "loss" } })
  end
  run:finish()
  local _, n = assert(peri.files.read(run:path "log.txt")):gsub('c%.svg: "eval" was never logged, so it has no curve', "")
  lu.assertEquals(n, 1)
end

function TestRecipe:test_history_gives_columns()
  local run = train { runs = root, seed = 1, save_every = 0 }
  local h = run:history()
  lu.assertEquals(#h.loss, 9)
  lu.assertEquals(h.step[9], 9)
  run:plot("curves.svg", { "loss", { "loss", "val_loss", ylabel = "nats", title = "both" }, "skipped" })
  local svg = read(run:path "curves.svg")
  for _, want in ipairs { "<svg", ">both<", ">nats<", ">val_loss<", ">step<", "no values" } do lu.assertStrContains(svg, want) end
  assert(peri.files.append(run:path "metrics.jsonl", "{\n"))
  lu.assertErrorMsgContains("metrics.jsonl: line 10", run.history, run)
end

function TestRecipe:test_what_is_tracked_has_a_name_and_a_state()
  local run = recipe.start { name = "x", flags = { runs = root }, console = false, tensorboard = false }
  lu.assertErrorMsgContains("neither state_dict nor state", run.track, run, "a", {})
  lu.assertErrorMsgContains("neither state_dict nor state", run.track, run, "a", 3)
  lu.assertErrorMsgContains("has state, but no set_state", run.track, run, "a", { state = print })
  lu.assertErrorMsgContains("has state_dict, but no load_state_dict", run.track, run, "a", { state_dict = print })
  lu.assertErrorMsgContains("cannot name a file", run.track, run, "a/b", peri.rng(1))
  run:track("a", peri.rng(1))
  lu.assertErrorMsgContains('there is a "a" already', run.track, run, "a", peri.rng(1))
  run:restore()
  lu.assertErrorMsgContains("before restore()", run.track, run, "b", peri.rng(1))
  lu.assertErrorMsgContains("before restore()", run.best, run, "loss")
  run:finish()
end

function TestRecipe:test_options_are_checked_before_a_folder_is_made()
  for _, bad in ipairs { { total = -3 }, { total = 1.5 }, { keep = 0 }, { every = 0 }, { nmae = "y" } } do
    local given = { name = "x", flags = { runs = root } }
    for k, v in pairs(bad) do given[k] = v end
    lu.assertErrorMsgContains("recipe.start: ", recipe.start, given)
  end
  lu.assertEquals(peri.files.list(root), {})
end

-- ---- flags of the command line ----

local spec = { steps = { 9, "steps" }, lr = { 0.5, "rate" }, name = "n", big = { math.huge, "no limit" } }

local function parse(...)
  return flags_module.parse(recipe.with_flags(spec, "demo"), { "--runs", root, "--seed", "3", ... })
end

function TestRecipe:test_with_flags_adds_the_common_ones()
  local merged = recipe.with_flags { lr = { 1, "rate" } }
  lu.assertNotNil(merged.resume)
  lu.assertEquals(merged.lr[1], 1)
end

function TestRecipe:test_resume_takes_the_flags_of_the_run()
  train(parse("--lr", "0.25", "--steps", "20", "--save_every", "2"), 4, { total = 20 })
  local flags = assert(parse "--resume")
  lu.assertEquals({ flags.lr, flags.steps, flags.save_every, flags.big, flags.resume },
    { 0.25, 20, 2, math.huge, true })
  flags = assert(parse("--resume", "--lr", "0.25", "--steps", "30", "--save_every", "5")) -- agrees, prolongs
  lu.assertEquals({ flags.lr, flags.steps, flags.save_every }, { 0.25, 30, 5 })
  train(flags, 6, { total = 30 })
  lu.assertEquals(assert(parse "--resume").steps, 30)
  for _, wrong in ipairs { { "--lr", "1" }, { "--name", "m" }, { "--big", "3" }, { "--seed", "4" } } do
    local values, message = parse("--resume", table.unpack(wrong))
    lu.assertNil(values)
    lu.assertStrContains(message, "was begun with other flags: " .. wrong[1])
    lu.assertStrContains(message, "--steps may be prolonged")
  end
end

function TestRecipe:test_a_recipe_declares_its_budget_and_what_is_free()
  local own = recipe.with_flags({ rounds = { 5, "r", budget = true }, steps = 9, device = { "a", "", free = true } }, "demo")
  local function own_parse(...) return flags_module.parse(own, { "--runs", root, ... }) end
  train(own_parse("--save_every", "2"), 4)
  lu.assertNotNil(own_parse("--resume", "--rounds", "8", "--device", "b"))
  lu.assertStrContains(select(2, own_parse("--resume", "--steps", "8")), "--steps is 8, was 9")
  lu.assertStrContains(select(2, own_parse("--rounds", "-1")), "--rounds is -1, expected an integer in [0, inf)")
  lu.assertStrContains(select(2, own_parse("--log_every", "0")), "--log_every is 0")
end

function TestRecipe:test_a_flag_that_is_gone_or_of_another_type_is_named()
  train(parse("--save_every", "2"), 4)
  local config = root .. "/demo/config.json"
  local text = read(config)
  for wrong, want in pairs { ['"steps": -5'] = "--steps is -5, expected an integer in [0, inf)",
    ['"steps": [1]'] = "steps is an array, expected an integer", ['"steps": {}'] = "steps is an object, expected an integer",
    ['"steps": 1.5'] = "steps is 1.5, expected an integer" } do
    assert(peri.files.write(config, (text:gsub('"steps": 9', wrong))))
    lu.assertEquals({ parse "--resume" }, { nil, ("--resume: %s: %s"):format(config, want) }, wrong)
  end
  assert(peri.files.write(config, (text:gsub('"lr": 0.5', '"lr": "fast"'))))
  lu.assertStrContains(select(2, parse "--resume"), "config.json: lr is fast, expected a number")
  assert(peri.files.write(config, (text:gsub('"lr": 0.5', '"rate": 0.5'))))
  lu.assertStrContains(select(2, parse "--resume"), "config.json has rate, which is no flag of this recipe any more")
  lu.assertStrContains(select(2, parse("--resume", "--run", "none")), "there is no run " .. root .. "/none")
end

