-- Stages of a run: each begins from what another left, and a run that was stopped in the middle of one ends as it would
-- have ended.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local algo, models, optim, recipe, text = peri.algo, peri.models, peri.optim, peri.recipe, peri.text

local dir
TestStages = {}
scratch.each(TestStages, function (path) dir = path end)

local tok = text.words { "a", "b", "c" }
local SHAPE = { architectures = { "LlamaForCausalLM" }, model_type = "llama", vocab_size = tok.size, hidden_size = 16,
  intermediate_size = 24, num_hidden_layers = 1, num_attention_heads = 2, max_position_embeddings = 32,
  rms_norm_eps = 1e-6, initializer_range = 0.1 }

-- Learns a text for some steps; `drawn` is what the generator gave the stage.
local function learn(words, drawn)
  return function (model, rng)
    drawn[#drawn + 1] = rng:uniform()
    local ids = tok:encode(words)
    local opt = optim.AdamW(model:parameters(), { lr = 1e-2 })
    return algo.sft.new { model = model, optimizer = opt, batch_size = 1, probe = false,
      examples = { { ids = ids, mask = { 1, 1, 1 } }, { ids = { ids[3], ids[2] }, mask = { 1, 1 } } } }
  end
end

local function measure(model) return { norm = model:parameters()[1]:square():sum():item() } end

local function base()
  peri.seed(7)
  return models.llama.new(SHAPE)
end

-- Two stages from the base and one from the first of them; the run stops after `stop`.
local function train(name, stop, flags, only)
  local drawn, at = {}, {}
  local stages = recipe.stages({
    { "one", from = "base", steps = 3, begin = learn("a b c", drawn) },
    { "two", from = "base", steps = 2, begin = learn("b b a", drawn) },
    { "three", from = "one", steps = 2, begin = learn("c a c", drawn) },
  }, { seed = 4, only = only, measure = measure })
  local run = recipe.start { name = name, flags = flags, total = stages.total, console = false, tensorboard = false }
  run:track("stages", stages:place(only and dir .. "/whole/models" or run:path "models"))
  if not flags.resume and not only then stages:keep("base", base()) end
  for step in run:steps() do
    local row = stages:step()
    at[#at + 1] = row.stage
    run:log(step, { loss = row.loss, stage = row.stage, noise = peri.rand({ 1 }):item() })
    if step == stop then break end
  end
  run:finish()
  return run, at, drawn, stages
end

local function flags(more)
  local f = { runs = dir, save_every = 1, seed = 1 }
  for k, v in pairs(more or {}) do f[k] = v end
  return f
end

local function read(...) return assert(peri.files.read(table.concat({ ... }, "/"))) end

function TestStages.test_each_begins_from_the_model_it_names_and_leaves_its_own_with_scores()
  local run, at, drawn, stages = train("whole", nil, flags())
  lu.assertEquals(at, { "one", "one", "one", "two", "two", "three", "three" })
  lu.assertEquals(#drawn, 3)
  lu.assertTrue(drawn[1] ~= drawn[2] and drawn[2] ~= drawn[3])
  local norms, seen = {}, {}
  for _, name in ipairs { "base", "one", "two", "three" } do
    local model = assert(models.load(run:path("models/" .. name)))
    norms[name] = peri.json.decode(read(run.folder, "models", name, "scores.json")).norm
    lu.assertEquals(norms[name], measure(model).norm)
    lu.assertNil(seen[norms[name]])
    seen[norms[name]] = true
  end
  local lines = {}
  for line in (stages:table { "norm", "other" }):gmatch "[^\n]+" do lines[#lines + 1] = line end
  lu.assertEquals(#lines, 5)
  lu.assertStrMatches(lines[1], "stage%s+norm%s+other")
  lu.assertStrMatches(lines[2], "base%s+" .. ("%.3f"):format(norms.base):gsub("%.", "%%.") .. "%s+%-")
end

function TestStages.test_a_run_stopped_at_any_step_ends_with_the_same_bytes()
  local whole = train("whole", nil, flags())
  for stop = 1, 6 do
    local name = "cut" .. stop
    local first, before = train(name, stop, flags())
    local second, after = train(name, nil, flags { resume = true })
    lu.assertEquals(#before + #after, 7)
    lu.assertEquals(first.folder, second.folder)
    for _, file in ipairs { "metrics.jsonl", "models/one/model.safetensors", "models/two/model.safetensors",
      "models/three/model.safetensors", "models/three/scores.json" } do
      lu.assertEquals(read(second.folder, file), read(whole.folder, file), ("%s, stopped after %d"):format(file, stop))
    end
  end
end

function TestStages.test_a_stage_alone_ends_as_it_does_among_all()
  local whole = train("whole", nil, flags())
  local want = read(whole.folder, "models/three/model.safetensors")
  peri.files.remove_tree(whole:path "models/three")
  local _, at = train("alone", nil, flags(), "three")
  lu.assertEquals(at, { "three", "three" })
  lu.assertEquals(read(whole.folder, "models/three/model.safetensors"), want)
end

function TestStages.test_curves_are_cut_by_stage()
  local run = train("whole", nil, flags())
  local drawn = read(run:plot("one.svg", { { "loss", by = "stage" } }))
  for _, name in ipairs { "one", "two", "three" } do lu.assertStrContains(drawn, ">" .. name .. "<") end
  lu.assertStrContains(read(run:plot("two.svg", { { "loss", "noise", by = "stage" } })), "noise, three")
  lu.assertStrContains(read(run:plot("whole.svg", { "loss" })), "loss")
  lu.assertErrorMsgContains("plot: chart 1: by: unknown metric of texts \"stag\"; did you mean \"stage\"?", run.plot, run,
    "x.svg", { { "loss", by = "stag" } })
end

function TestStages.test_what_is_wrong_with_a_stage_is_said()
  local function begin() return {} end
  for want, list in pairs {
    ["stage 1 has no name of its own"] = { { "a b", steps = 1, begin = begin } },
    ["stage 2 has no name of its own"] = { { "a", steps = 1, begin = begin }, { "a", steps = 1, begin = begin } },
    ["a: unknown field \"form\"; did you mean \"from\"?"] = { { "a", steps = 1, begin = begin, form = "b" } },
    ["a: steps is 0, expected an integer from 1"] = { { "a", steps = 0, begin = begin } },
    ["begin"] = { { "a", steps = 1 } },
  } do
    lu.assertErrorMsgContains(want, recipe.stages, list, { measure = measure })
  end
  local one = { { "a", steps = 1, begin = begin } }
  lu.assertErrorMsgContains("measure", recipe.stages, one, {})
  lu.assertErrorMsgContains("did you mean \"a\"", recipe.stages, one, { measure = measure, only = "aa" })
  local stages = recipe.stages(one, { measure = measure })
  lu.assertErrorMsgContains("a: begin returned no stepper, something with :step(), model and optimizer", stages.step, stages:place(dir))
  lu.assertErrorMsgContains("the state is of step 1 of stage 1", stages.load_state_dict, stages, {},
    { index = 1, done = 1, parts = {} })
  lu.assertErrorMsgContains("call place(folder) first", function ()
    return recipe.stages(one, { measure = measure }):at "a"
  end)
  local function stepper()
    local model = base()
    return { step = function () return {} end, model = model, optimizer = optim.SGD(model, { lr = 1 }) }
  end
  for want, more in pairs { ["a: other has no state"] = { other = {} }, ["a: stepper has no state"] = {},
    ["the stepper has a model, begin named another one"] = { model = base() } } do
    local one_more = recipe.stages({ { "a", steps = 1, begin = function () return stepper(), more end } },
      { measure = measure }):place(dir)
    lu.assertErrorMsgContains(want, one_more.step, one_more)
  end
end

-- Of a stage's first step, its last and every few between them; it is resumed as it was.
function TestStages.test_a_watch_adds_metrics_now_and_then()
  local function stages_of(more)
    local o, seen = { seed = 4, measure = measure }, {}
    for k, v in pairs(more) do o[k] = v end
    o.watch = more.every and function (model, name)
      seen[#seen + 1] = name
      return { size = #model:parameters() }
    end or nil
    return recipe.stages({ { "one", from = "base", steps = 5, begin = learn("a b c", {}) },
      { "two", from = "one", steps = 1, begin = learn("c a c", {}) } }, o), seen
  end
  local stages, seen = stages_of { every = 2 }
  stages:place(dir .. "/watched"):keep("base", base())
  local at = {}
  for step = 1, 6 do if stages:step().size then at[#at + 1] = step end end
  lu.assertEquals(at, { 1, 2, 4, 5, 6 })
  lu.assertEquals(seen, { "one", "one", "one", "one", "two" })
  lu.assertErrorMsgContains("every is 3, and there is no watch", recipe.stages,
    { { "one", from = "base", steps = 1, begin = learn("a", {}) } }, { measure = measure, every = 3 })
end

os.exit(lu.LuaUnit.run())
