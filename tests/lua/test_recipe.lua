-- Run folders: what a stopped and resumed run leaves is what an unbroken one leaves.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local nn, optim, data = require "perilune.nn", require "perilune.optim", require "perilune.data"
local recipe = require "perilune.recipe"

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read "a"
  file:close()
  return text
end

-- A small recipe with everything that a checkpoint must hold; stops by an error after `stop`.
local function train(flags, stop)
  local run = recipe.start { name = "demo", flags = flags, total = 9, console = false, tensorboard = false }
  local net = nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.2), nn.Linear(4, 1))
  local opt = optim.AdamW(net:parameters(), { lr = 0.01 })
  local rows = {}
  for i = 1, 10 do rows[i] = { i / 10, -i / 10 } end
  local batches = data.list(rows):shuffle(flags.seed):batch(3):repeat_()
  run:track("model", net):track("optimizer", opt):track("data", batches)
  local function loop()
    for step in run:steps() do
      local x = peri.tensor(batches(), "f32")
      local loss = net(x):add(peri.randn { 1 }):square():mean()
      loss:backward()
      opt:step { clip = 1 }:zero_grad()
      run:log(step, { loss = loss }, { seconds = peri.time() })
      run:sample(step, { text = "s" .. step, value = loss:item() })
      if step == stop then error("stopped", 0) end
    end
  end
  local ok, message = pcall(loop)
  if not ok and message ~= "stopped" then error(message, 0) end
  run:finish()
  return run, net
end

TestRecipe = {}

function TestRecipe:test_a_resumed_run_equals_an_unbroken_one()
  local root = scratch.path()
  local whole, net = train { seed = 3, runs = root, run = "whole", save_every = 2 }
  for stop = 1, 8, 3 do
    local name = "stopped" .. stop
    local flags = { seed = 3, runs = root, run = name, save_every = 2, resume = false }
    train(flags, stop)
    flags.resume = true
    local run, again = train(flags)
    for _, file in ipairs { "metrics.jsonl", "samples.jsonl" } do
      lu.assertEquals(read(run:path(file)), read(whole:path(file)))
    end
    for key, t in pairs(again:state_dict()) do
      lu.assertEquals(t:bytes(), net:state_dict()[key]:bytes())
    end
    local last = "/checkpoints/step-00000009/"
    for _, file in ipairs { "model.safetensors", "optimizer.safetensors", "state.json" } do
      lu.assertEquals(read(run.folder .. last .. file), read(whole.folder .. last .. file))
    end
  end
  peri.files.remove_tree(root)
end

function TestRecipe:test_a_second_run_gets_a_folder_of_its_own()
  local root = scratch.path()
  local flags = { runs = root, seed = 1 }
  local a = recipe.start { name = "x", flags = flags, console = false }
  local b = recipe.start { name = "x", flags = flags, console = false }
  lu.assertEquals(a.folder, root .. "/x")
  lu.assertEquals(b.folder, root .. "/x-2")
  lu.assertStrContains(read(a:path "config.json"), '"seed": 1')
  lu.assertEquals(a:path "x.svg", a.folder .. "/x.svg")
  peri.files.remove_tree(root)
end

function TestRecipe:test_resuming_with_other_flags_is_refused()
  local root = scratch.path()
  recipe.start { name = "x", flags = { runs = root, lr = 1, resume = false }, console = false }
  lu.assertErrorMsgContains("lr was 1, is 2", recipe.start,
    { name = "x", flags = { runs = root, lr = 2, resume = true }, console = false })
  peri.files.remove_tree(root)
end

function TestRecipe:test_history_gives_columns()
  local root = scratch.path()
  local run = train { runs = root, seed = 1, save_every = 0 }
  local h = run:history()
  lu.assertEquals(#h.loss, 9)
  lu.assertEquals(h.step[9], 9)
  run:plot("curves.svg", { "loss", "nothing" })
  lu.assertStrContains(read(run:path "curves.svg"), "<svg")
  peri.files.remove_tree(root)
end

function TestRecipe:test_with_flags_adds_the_common_ones()
  local spec = recipe.with_flags { lr = { 1, "rate" } }
  lu.assertNotNil(spec.resume)
  lu.assertEquals(spec.lr[1], 1)
end
