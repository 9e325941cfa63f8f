-- What interrupt.c interrupts: every op with inputs so large that it runs for a while, and what else does.
local measure, source = measure, source -- luacheck: globals measure source
package.path = ("%s/tests/lua/?.lua;%s/lua/?.lua;%s/lua/?/init.lua;"):format(source, source, source) .. package.path
local peri = require "perilune"
local optest = require "optest"

local LONG, TRIES, MOST = 0.15, 4, 2 ^ 27 -- seconds, interrupts, bytes of inputs and results

local worst = {}

local function wanted(name)
  if #arg == 0 then return true end
  for _, word in ipairs(arg) do if name:find(word, 1, true) then return true end end
  return false
end

-- fn runs for so many seconds when it is let alone.
local function try(name, fn, took)
  local most, missed = 0, 0
  for i = 1, TRIES do
    local late, noticed = measure(took * (i - 0.5) / TRIES * 0.9, fn)
    if late and late > most then most = late end
    if late and not noticed then missed = missed + 1 end
  end
  worst[#worst + 1] = { name = name, late = most, took = took }
  io.write(("%-36s %6.0f ms of %6.0f ms%s\n"):format(name, most * 1e3, took * 1e3,
    missed > 0 and (", %d of %d not noticed"):format(missed, TRIES) or ""))
  io.flush()
end

local function time(fn)
  local t = peri.time()
  local out = { pcall(fn) }
  t = peri.time() - t
  if not table.remove(out, 1) then return t, nil, out[1] end
  return t, out
end

-- Elements of tensors in a list and in lists in it.
local function elements(list, n)
  local sum = 0
  for i = 1, n or #list do
    local v = list[i]
    sum = sum + (peri.is_tensor(v) and v:numel() or type(v) == "table" and elements(v) or 0)
  end
  return sum
end

local function op_case(op, which)
  local fn, last = peri[op.name], nil
  local s = 1
  while s < 2 ^ 28 do
    local domain = optest.scaled(op, s, which)
    local made, args = pcall(optest.arguments, op, "f32", domain)
    if not made then return last, args end
    local function call() return fn(table.unpack(args, 1, args.n)) end
    local took, out, err = time(call)
    if not out then return last, err end
    local bytes = 4 * (elements(args, args.n) + elements(out))
    if took > LONG then took = time(call) end -- memory was fresh
    last = { call, took }
    if took > LONG or bytes > MOST then return last end
    s = s * (took < LONG / 64 and bytes < MOST / 256 and 8 or 2)
  end
  return last
end

for _, op in ipairs(peri.ops()) do
  local longest, problem = 0, nil
  for _, which in ipairs(not wanted(op.name) and {} or op.flags.elementwise and { "all" } or { "all", "first", "last" }) do
    local case, err = op_case(op, which)
    problem = problem or err
    longest = math.max(longest, case and case[2] or 0)
    if case and case[2] >= LONG / 4 then try(op.name .. (which == "all" and "" or ", long " .. which .. " dim"), case[1], case[2]) end
    case = nil -- luacheck: ignore 311
    collectgarbage()
    collectgarbage()
    peri.trim()
  end
  if wanted(op.name) and longest < LONG / 4 then
    io.write(("%-28s no long case: %.0f ms, %s\n"):format(op.name, longest * 1e3, problem or "large inputs"))
    io.flush()
  end
end

-- ---- what is no op ----

local function words(n)
  local rng, t = peri.rng(1), {}
  for i = 1, n do t[i] = string.char(97 + rng:int(0, 25), 97 + rng:int(0, 25), 97 + rng:int(0, 25)):rep(rng:int(1, 3)) end
  return table.concat(t, " ")
end

local function others()
  local folder = os.tmpname()
  os.remove(folder)
  assert(peri.files.make_folder(folder))
  local numbers, text = {}, words(2e6)
  local long = text:rep(4)
  local quoted, word = '"' .. long .. '"', ("ab"):rep(2e6)
  for i = 1, 1e6 do numbers[i] = i * 0.37 end
  local json = peri.json.encode(numbers)
  local tok = assert(peri.tokenizer.train_bpe({ text:sub(1, 1e5) }, { vocab_size = 400 }))
  local big = peri.rand { 2 ^ 12, 2 ^ 13 }
  local file, plain = folder .. "/big.safetensors", folder .. "/big.txt"
  assert(peri.safetensors.save(file, { big = big }))
  assert(peri.files.write(plain, long))
  local list = {
    ["json.encode"] = function () peri.json.encode(numbers) end,
    ["json.encode of a string"] = function () peri.json.encode(long) end,
    ["json.decode"] = function () peri.json.decode(json) end,
    ["json.decode of a string"] = function () peri.json.decode(quoted) end,
    ["train_bpe"] = function () peri.tokenizer.train_bpe({ text }, { vocab_size = 2000 }) end,
    ["encode"] = function () tok:encode(text) end,
    ["encode, one word"] = function () tok:encode(word) end,
    ["safetensors.save"] = function () assert(peri.safetensors.save(file .. ".2", { big = big })) end,
    ["safetensors.load"] = function () assert(peri.safetensors.load(file)) end,
    ["files.read"] = function () assert(peri.files.read(plain)) end,
    ["files.write"] = function () assert(peri.files.write(plain .. ".2", long)) end,
  }
  for _, quant in ipairs { "q8_0", "q4_0", "q4_K", "q6_K" } do
    list["to " .. quant] = function () return big:to(quant) end
    local small = big:to(quant)
    list["from " .. quant] = function () return small:to "f32" end
    list["pack " .. quant] = function () return peri.pack(small) end
  end
  list["pack f32"] = function () return peri.pack(big) end
  list["backward"] = function ()
    local w = big:detach():requires_grad_()
    w:exp():mul(2):sin():sum():backward()
  end
  local names = {}
  for name in pairs(list) do names[#names + 1] = name end
  table.sort(names)
  for _, name in ipairs(names) do
    if wanted(name) then
      local _ = time(list[name]) -- memory is fresh, caches are empty
      local took, out, err = time(list[name])
      if out then try(name, list[name], took) else print(name, err) end
      collectgarbage()
    end
  end
  assert(peri.files.remove_tree(folder))
end

others()

table.sort(worst, function (a, b) return a.late > b.late end)
print "\nthe longest:"
for i = 1, math.min(#worst, 12) do print(("%-28s %8.0f ms"):format(worst[i].name, worst[i].late * 1e3)) end
