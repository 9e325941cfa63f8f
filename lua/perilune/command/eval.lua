-- eval.lua - perilune eval MODEL: measure a model on a task. Answers to its problems, how many are right.
local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local line = require "perilune.line"
local arguments = require "perilune.command.arguments"
local metrics = require "perilune.tasks.metrics"

local tasks = { "gsm8k" } -- modules of perilune.tasks

local about = [[
Lets a model answer the problems of a task and counts. pass@k is the unbiased estimate; the majority is
of all samples. Strict takes an answer only in the form asked for, lenient the last number as well.
Tasks: gsm8k.
]]

local function complain(status, message)
  io.stderr:write("perilune eval: ", message, "\n")
  return status
end

local function find_task(name)
  for _, known in ipairs(tasks) do
    if known == name then return require("perilune.tasks." .. name) end
  end
  return nil, options.unknown("task", name, tasks) .. "; tasks are " .. table.concat(tasks, ", ")
end

-- "1,4" as numbers; nil and a message when one is none, or over the number of samples.
local function read_ks(text, samples)
  local list = {}
  for word in (text .. ","):gmatch "([^,]*)," do
    local k = math.tointeger(tonumber(word))
    if not k or k < 1 then return nil, ("--k: %q is no list of numbers such as 1,4"):format(text) end
    if k > samples then return nil, ("--k: %d is more than --samples %d"):format(k, samples) end
    list[#list + 1] = k
  end
  return list
end

local kinds = { "strict", "lenient" }

-- What one problem's samples are worth.
local function score(task, row, generation, ks)
  local results = generation.results
  local out = { question = row.question, gold = row.gold, samples = peri.json.array {} }
  for _, kind in ipairs(kinds) do
    local answers, correct = {}, 0
    for i, result in ipairs(results) do
      answers[i] = task[kind](result.text)
      if answers[i] == row.gold then correct = correct + 1 end
      out.samples[i] = out.samples[i] or { text = result.text, tokens = #result.tokens, reason = result.reason }
      out.samples[i][kind] = answers[i]
    end
    local vote = metrics.majority(answers, #results)
    local answered = 0
    for i = 1, #results do if answers[i] ~= nil then answered = answered + 1 end end
    out[kind] = { correct = correct, majority = vote == row.gold and 1 or 0, answered = answered / #results }
    for _, k in ipairs(ks) do out[kind]["pass@" .. k] = metrics.pass_at_k(#results, correct, k) end
  end
  return out
end

local function column(scores, kind, name)
  local list = {}
  for i, s in ipairs(scores) do list[i] = s[kind][name] end
  return metrics.mean(list)
end

local function percent(mean, err)
  if err ~= err then return ("%5.1f %%"):format(100 * mean) end
  return ("%5.1f %% +- %.1f"):format(100 * mean, 100 * err)
end

local function print_table(scores, ks, samples)
  print(("%-14s %-18s %s"):format("", "strict", "lenient"))
  local function show(title, name)
    print(("%-14s %-18s %s"):format(title, percent(column(scores, "strict", name)),
      percent(column(scores, "lenient", name))))
  end
  for _, k in ipairs(ks) do show("pass@" .. k, "pass@" .. k) end
  if samples > 1 then show("majority@" .. samples, "majority") end
  show("answered", "answered")
end

-- One line that is written over in a terminal, else ten lines in all.
local function progress(done, total, scores, tokens, began)
  local _, _, terminal = line.interactive()
  if not terminal and done % math.max(1, total // 10) ~= 0 and done ~= total then return end
  local text = ("%d/%d  pass@1 strict %.1f %% lenient %.1f %%  %.0f tokens/s"):format(done, total,
    100 * column(scores, "strict", "pass@1"), 100 * column(scores, "lenient", "pass@1"),
    tokens / math.max(peri.time() - began, 1e-9))
  local last = terminal and done == total and "\n" or ""
  io.stderr:write(terminal and "\r" or "", text, terminal and "\27[K" or "\n", last)
end

-- The generation options of a run: with several samples there has to be chance.
local function how(values, task)
  local o = arguments.generation_options(values)
  o.samples, o.remember = values.samples, values.shots > 0
  if values.samples > 1 and values.temperature < 0 then o.temperature, o.top_p = 0.6, o.top_p or 0.95 end
  if not o.stop then o.stop = task.stop end
  return o
end

local function run(lm, task, rows, shots, values, ks, out)
  local generations, scores, tokens, began = {}, {}, 0, peri.time()
  local chats = lm.tok.chat_template ~= nil and not values.plain
  for i, row in ipairs(rows) do
    local o = how(values, task)
    if chats then o.stop = values.stop ~= "" and values.stop or nil end
    o.seed = (o.seed or 0) + i * 1000003 -- a problem's samples are the same whatever runs beside it
    generations[i] = lm:submit(task.prompt(row, chats, shots), o)
  end
  local waiting = #rows
  while waiting > 0 do
    lm:step()
    for i, row in ipairs(rows) do
      local generation = generations[i]
      if generation and generation.done then
        if generation.error ~= nil then error(generation.error, 0) end
        local s = score(task, row, generation, ks)
        s.index = i
        for _, sample in ipairs(s.samples) do tokens = tokens + sample.tokens end
        generations[i], waiting = false, waiting - 1
        scores[#scores + 1] = s
        if out then
          local written, why = out:write(peri.json.encode(s), "\n")
          if written then written, why = out:flush() end
          if not written then error(("%s: %s"):format(values.out, why), 0) end
        end
        progress(#scores, #rows, scores, tokens, began)
      end
    end
  end
  return scores, tokens, peri.time() - began
end

return function (args)
  local spec = arguments.generation_flags {
    task = { "gsm8k", "what to answer" },
    n = { 50, "problems, from the start of the data; 0: all", range = "[0, inf)" },
    samples = { 1, "answers to each problem", range = "[1, inf)" }, k = { "1", "list of k for pass@k" },
    shots = { 0, "solved examples before each problem: the data's last rows", range = "[0, inf)" },
    data = { "", "file with the task's rows" }, out = { "", "file for one JSON line a problem" },
    batch = { 16, "answers that are made at once", range = "[1, inf)" },
    plain = { false, "ask with plain text although the model has a chat template" },
  }
  local values, words = arguments.read("eval", "MODEL", 1, 1, spec, args, about)
  if not values then return words end
  local task, message = find_task(values.task)
  if not task then return complain(2, message) end
  local ks
  ks, message = read_ks(values.k, values.samples)
  if not ks then return complain(2, message) end
  if ks[1] ~= 1 then table.insert(ks, 1, 1) end
  if values.data == "" then
    return complain(2, ("--data FILE is missing: %s: %s"):format(task.name, task.where))
  end
  local all
  all, message = task.rows(values.data)
  if not all then return complain(1, refusal.bare(message)) end
  if values.shots >= #all then return complain(2, ("--shots %d, but there are %d rows"):format(values.shots, #all)) end
  local shots = table.move(all, #all - values.shots + 1, #all, 1, {})
  local most = #all - values.shots
  local rows = table.move(all, 1, values.n > 0 and math.min(values.n, most) or most, 1, {})
  local lm = arguments.load("eval", words[1], values, { rows = values.batch })
  if not lm then return 1 end
  local out
  if values.out ~= "" then
    out, message = io.open(values.out, "wb")
    if not out then return complain(1, message) end
  end
  local ok, scores, tokens, seconds = arguments.attempt("eval", run, lm, task, rows, shots, values, ks, out)
  if out then out:close() end
  if not ok then return 1 end
  print(("%s: %d problems, %d sample%s each, %d tokens in %.0f s (%.0f tokens/s)"):format(task.name, #rows,
    values.samples, values.samples == 1 and "" or "s", tokens, seconds, tokens / seconds))
  print_table(scores, ks, values.samples)
  return 0
end
