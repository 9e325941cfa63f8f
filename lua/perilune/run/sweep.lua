-- sweep.lua - many runs of a recipe with other flags: random, a grid, successive halving. Each trial is a process of
-- its own, so that one that fails is a row; what has ended is on the disk, so that a sweep which is killed goes on and
-- ends with the same table.

local peri = require "perilune"
local options = require "perilune.options"
local refusal = require "perilune.refusal"
local folders = require "perilune.run.folder"
local common = require "perilune.run.common"
local curves = require "perilune.run.curves"
local scores = require "perilune.run.scores"
local report = require "perilune.run.sweep_report"

local must = folders.must

local M = {}

local Sweep = {}
Sweep.__index = Sweep

local function quoted(word) return "'" .. word:gsub("'", "'\\''") .. "'" end

local function read_json(path)
  local text = peri.files.exists(path) and peri.files.read(path)
  return text and peri.json.decode(text) or nil
end

-- ---- places ----

function Sweep:run_name(trial, seed)
  return self.plan.apart and ("%03d-s%d"):format(trial, seed) or ("%03d"):format(trial)
end
function Sweep:run_folder(name) return ("%s/runs/%s"):format(self.folder, name) end
function Sweep:note_path(name, rung, what) return ("%s/trials/%s.%d.%s"):format(self.folder, name, rung, what) end

-- ---- one job: a run of a trial up to a rung ----

local function alive(self, job)
  local path = self:note_path(job.name, job.rung, "pid")
  local pid = peri.files.exists(path) and assert(peri.files.read(path)):match "^(%d+)"
  -- folder and name stand in its command line: another process with that number has them not
  local look = "tr '\\0' ' ' 2>/dev/null </proc/%s/cmdline | grep -F -e %s | grep -qF -e %s"
  local is = pid and os.execute(look:format(pid, quoted(self.folder .. "/runs"), quoted("--run " .. job.name .. " ")))
  return is == true and pid or nil
end

-- The shell command of a job. The shell leaves its number and becomes the run, so that nothing stands between the two
-- that could die alone; the run goes on when the sweep is killed.
local function command_of(self, job)
  local words = { quoted(self.program), "run", "--threads", self.threads, quoted(self.plan.recipe), "--runs",
    quoted(self.folder .. "/runs"), "--run", job.name }
  for _, pair in ipairs(job.flags) do words[#words + 1] = quoted(("--%s=%s"):format(pair[1], pair[2])) end
  local folder = self:run_folder(job.name)
  if peri.files.exists(folder) then
    if common.checkpoint(folder) then words[#words + 1] = "--resume" else must(peri.files.remove_tree(folder)) end
  end
  local pid, log = self:note_path(job.name, job.rung, "pid"), self:note_path(job.name, job.rung, "log")
  return ("echo $$ >%s; exec %s >%s 2>&1 </dev/null"):format(quoted(pid), table.concat(words, " "), quoted(log))
end

-- Why a run failed: the line that the program says it in, or the last one.
local function reason_of(self, job, status)
  local text = peri.files.read(self:note_path(job.name, job.rung, "log")) or ""
  local said, last
  for line in text:gmatch "[^\n]+" do
    if not said and line:find "^perilune: " then said = line:sub(#"perilune: " + 1) end
    if line:find "%S" then last = line end
  end
  local reason = (said or last or "it said nothing"):gsub("%c", " ")
  local at = reason:find(self.folder, 1, true)
  while at do -- where the sweep lies is no part of it
    reason = reason:sub(1, at - 1) .. "." .. reason:sub(at + #self.folder)
    at = reason:find(self.folder, 1, true)
  end
  return ("exit status %d: %s"):format(status, reason:sub(1, 200))
end

-- What a finished run measured: scores by name and the last value of each metric.
local function measured(folder)
  local list, message = scores.read(folder)
  if not list then return nil, message end
  local out = { scores = {}, order = {}, last = {}, unfinite = {} }
  for i, row in ipairs(list) do
    local flat = {}
    for _, v in ipairs(row.scores) do
      for _, s in ipairs(type(v) == "table" and v or { v }) do flat[#flat + 1] = s end
    end
    out.scores[row.name], out.order[i] = flat, row.name
  end
  local columns = curves.columns(folder .. "/metrics.jsonl")
  for name, column in pairs(columns) do
    for i = #column, 1, -1 do
      local v = column[i]
      if name ~= "step" and v == v and math.abs(v) < math.huge then
        out.last[name] = v
        break
      end
    end
    if name ~= "step" and not out.last[name] then out.unfinite[#out.unfinite + 1] = name end
  end
  table.sort(out.unfinite)
  return out
end

local function result_of(self, job, status)
  if status ~= 0 then return { failed = reason_of(self, job, status) } end
  local ok, found, message = pcall(measured, self:run_folder(job.name))
  if ok and found then return found end
  return { failed = tostring(ok and message or found) }
end

local function key_of(job) return job.name .. "." .. job.rung end

local function record(self, job, result)
  self.results[key_of(job)] = result
  local line = peri.json.encode { job = key_of(job), result = result } .. "\n"
  must(peri.files.append(self.folder .. "/results.jsonl", line))
end

-- Results of a sweep before. A line that was being written when it ended is left out, and so is what failed: it may
-- have been the disk or the memory, and is tried again.
local function load_results(folder)
  local results, text = {}, peri.files.read(folder .. "/results.jsonl") or ""
  local whole = text:match "^(.*\n)[^\n]*$" or ""
  if whole ~= text then must(peri.files.write(folder .. "/results.jsonl", whole)) end
  for line in whole:gmatch "[^\n]+" do
    local row = peri.json.decode(line)
    if type(row) == "table" and row.job then results[row.job] = not row.result.failed and row.result or nil end
  end
  return results
end

-- ---- many jobs ----

-- Run jobs, as many at a time as there are workers: true, or false and a message after Ctrl-C. What a killed sweep left
-- running is waited for.
local function run_jobs(self, jobs)
  local queue, running, stopped, problem = {}, {}, nil, nil
  for _, job in ipairs(jobs) do
    if not self.results[key_of(job)] then queue[#queue + 1] = job end
  end
  local function begin(entry)
    local function shell(command) return os.execute(command) end
    entry.worker = peri.worker({ run = shell, seed = 1 }, command_of(self, entry.job))
  end
  local function start(job)
    local entry = { job = job }
    local pid = alive(self, job)
    if pid then
      entry.waits = true
      self.say("%s is still running as process %s: waiting for it", job.name, pid)
    else begin(entry) end
    running[#running + 1] = entry
  end
  -- Whether it is over, and with which exit status: nil after a signal.
  local function ended(entry)
    if entry.waits then
      if alive(self, entry.job) then return false end
      entry.waits = nil
      begin(entry) -- where it has ended it says so at once, from its last checkpoint
      return false
    end
    if not entry.worker:join(0.05) then return false end
    local _, how, code = entry.worker:result()
    if how == "signal" and code == 2 or code == 130 then stopped = true
    elseif how == "signal" then entry.killed = code
    else return true, code end
    return true
  end
  while #running > 0 or #queue > 0 and not stopped do
    while #running < self.workers and #queue > 0 and not stopped do start(table.remove(queue, 1)) end
    local waiting = true
    for i = #running, 1, -1 do
      local entry = running[i]
      local over, status = ended(entry)
      if over then
        waiting = false
        table.remove(running, i)
        local job = entry.job
        if entry.killed then -- not written down: --resume tries again
          self.results[key_of(job)] = { failed = ("killed by signal %d"):format(entry.killed) }
        elseif status then record(self, job, result_of(self, job, status)) end
        local result = self.results[key_of(job)]
        if result then
          self.say("%s", report.progress(self, job, result))
          local judged = self:judge_result(result)
          if judged.unjudged then queue, problem = {}, judged.failed end -- none of them will have it
        end
      end
    end
    if waiting and #running > 0 and running[1].waits then os.execute "sleep 0.1" end
  end
  if problem then refusal.raise(("%s: %s"):format(self.folder, problem), true) end
  if not stopped then return true end
  return false, ("stopped; go on with: perilune sweep %s --resume%s"):format(self.plan.recipe,
    self.named and " --run " .. self.named or "")
end

-- The runs of a trial up to a rung.
local function jobs_of(self, trial, rung)
  local plan, jobs = self.plan, {}
  for s = 1, plan.apart and plan.seeds or 1 do
    local flags = {}
    for i, pair in ipairs(plan.settings[trial]) do flags[i] = pair end
    if plan.budget then flags[#flags + 1] = { plan.budget, ("%d"):format(plan.rungs[rung]) } end
    if plan.seeds > 1 and not plan.apart then flags[#flags + 1] = { "seeds", ("%d"):format(plan.seeds) } end
    flags[#flags + 1] = { "seed", ("%d"):format(plan.seed + (plan.apart and s - 1 or 0)) }
    jobs[s] = { trial = trial, rung = rung, name = self:run_name(trial, s), flags = flags }
  end
  return jobs
end

--- The scores of one run, as a list, or { failed = why }.
--- @param r table  result
--- @return table
function Sweep:judge_result(r)
  if r.failed then return r end
  local metric = self.plan.metric
  local name = metric ~= "" and metric or r.order[1]
  local list = name and (r.scores[name] or r.last[name] and { r.last[name] })
  if list then return list end
  for _, known in ipairs(r.unfinite or {}) do
    if known == metric then return { failed = ("no value of %s is finite"):format(metric) } end
  end
  local known = options.names(r.last)
  table.move(r.order, 1, #r.order, #known + 1, known)
  return { unjudged = true, failed = metric == "" and "it stored no scores (run:scores): name a --metric of "
    .. table.concat(known, ", ") or options.unknown("metric", metric, known) }
end

--- The score of a trial at a rung: { value, low, high, seeds } or { failed = why }; nil where it has not run.
--- @param trial integer
--- @param rung integer
--- @return table?
function Sweep:judge(trial, rung)
  local all = {}
  for _, job in ipairs(jobs_of(self, trial, rung)) do
    local r = self.results[key_of(job)]
    if not r then return nil end
    local list = self:judge_result(r)
    if list.failed then return list end
    table.move(list, 1, #list, #all + 1, all)
  end
  local value, low, high = peri.rl.interval(all, { samples = #all > 1 and 2000 or 1 })
  return { value = value, low = #all > 1 and low or nil, high = #all > 1 and high or nil, seeds = #all }
end

-- Trials in the order of their scores at a rung, those that failed last.
local function ranked(self, trials, rung)
  local list = {}
  for i, trial in ipairs(trials) do list[i] = { trial = trial, rung = rung, judged = self:judge(trial, rung) } end
  local sign = self.plan.mode == "min" and -1 or 1
  table.sort(list, function (a, b)
    local x, y = a.judged and a.judged.value, b.judged and b.judged.value
    if x and y and x ~= y then return sign * x > sign * y end
    if (x == nil) ~= (y == nil) then return x ~= nil end
    return a.trial < b.trial
  end)
  return list
end

--- Run what is left to run, and write the table.
--- @return table[]|nil rows  { trial, rung, judged } in the order of the table; nil after Ctrl-C
--- @return string? message
function Sweep:run()
  local trials, rows = {}, {}
  for i = 1, #self.plan.settings do trials[i] = i end
  for rung = 1, #self.plan.rungs do
    local jobs = {}
    for _, trial in ipairs(trials) do
      for _, job in ipairs(jobs_of(self, trial, rung)) do jobs[#jobs + 1] = job end
    end
    local done, message = run_jobs(self, jobs)
    if not done then return nil, message end
    local list = ranked(self, trials, rung)
    local keep = rung < #self.plan.rungs and math.max(1, #trials // self.plan.eta) or 0
    if list[1].judged.unjudged then
      refusal.raise(("%s: %s"):format(self.folder, list[1].judged.failed), true)
    end
    local out, last = {}, {}
    for i, row in ipairs(list) do
      if i <= keep and row.judged.value then out[#out + 1] = row.trial else last[#last + 1] = row end
    end
    table.move(rows, 1, #rows, #last + 1, last) -- who came further stands above
    rows, trials = last, out
    table.sort(trials)
    if #trials == 0 then break end
  end
  report.write(self, rows)
  return rows
end

-- ---- plans and folders ----

local function numbered(root, name, n)
  return n == 1 and ("%s/%s"):format(root, name) or ("%s/%s-%d"):format(root, name, n)
end

local function newest(root, name)
  local n = 1
  while peri.files.exists(numbered(root, name, n + 1) .. "/sweep.json") do n = n + 1 end
  return peri.files.exists(numbered(root, name, n) .. "/sweep.json") and n or 0
end

--- The folder of the newest sweep of a name and its plan; nil and a message when there is none.
--- @param root string
--- @param name string
--- @return string? folder
--- @return table|string plan
function M.newest(root, name)
  local n = newest(root, name)
  if n == 0 then return nil, ("--resume: there is no sweep %s/%s"):format(root, name) end
  local folder = numbered(root, name, n)
  local plan = read_json(folder .. "/sweep.json")
  if type(plan) ~= "table" then return nil, folder .. "/sweep.json is damaged" end
  return folder, plan
end

--- Open a sweep: in its folder, or a new one.
--- @param o table  root, name, folder (of one that goes on), plan, workers, program, say, named
--- @return table? sweep
--- @return string? message
function M.open(o)
  local self = setmetatable({ plan = o.plan, workers = o.workers, program = o.program, say = o.say,
    folder = o.folder or numbered(o.root, o.name, newest(o.root, o.name) + 1), named = o.named,
    threads = math.max(1, peri.threads() // o.workers) }, Sweep)
  must(peri.files.make_folder(self.folder .. "/trials"))
  local message
  self.lock, message = folders.lock(self.folder)
  if not self.lock then return nil, message end
  must(peri.files.write(self.folder .. "/sweep.json", peri.json.encode(self.plan, { indent = 2 }) .. "\n"))
  self.results = load_results(self.folder)
  return self
end

function Sweep:close() self.lock:drop() end

return M
