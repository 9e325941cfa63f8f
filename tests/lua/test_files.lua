-- peri.files and peri.safetensors: what is written is read back; the outside world's faults come
-- back as nil and a message, misuse raises.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"
local files, st = peri.files, peri.safetensors

local tests, dir = {}, nil

scratch.each(tests, function (path) dir = path end)

local function fails(part, value, message)
  lu.assertNil(value)
  lu.assertStrContains(message, part)
end

function tests.test_files_and_folders()
  lu.assertTrue(files.write(dir .. "/f", "a\0b"))
  lu.assertEquals(files.read(dir .. "/f"), "a\0b")
  lu.assertTrue(files.make_folder(dir .. "/x/y"))
  lu.assertEquals(files.list(dir), { "f", "x" })
  lu.assertEquals(files.exists(dir .. "/f"), "file")
  lu.assertEquals(files.exists(dir .. "/x"), "folder")
  lu.assertFalse(files.exists(dir .. "/none"))
  lu.assertTrue(files.rename(dir .. "/f", dir .. "/x/g"))
  lu.assertEquals(files.read(dir .. "/x/g", 3), "a\0b")
  fails("has 3 bytes, the limit is 2", files.read(dir .. "/x/g", 2))
  fails("No such file", files.read(dir .. "/f"))
  fails("No such file", files.list(dir .. "/f"))
  fails("No such file", files.write(dir .. "/none/f", "x"))
  fails("is a folder", files.read(dir))
  fails("will not be removed", files.remove_tree "/")
  lu.assertErrorMsgContains("zero byte", files.read, "a\0b")
  lu.assertErrorMsgContains("must be a string", files.read, 1)
end

function tests.test_safetensors_round_trip()
  local t = {
    w = peri.tensor { { 1.5, -2 }, { 3, 4 } }, i = peri.tensor { 1, 2 }, b = peri.tensor { true, false },
    z = peri.zeros { 0, 3 }, s = peri.tensor(2.5),
  }
  t.strided = t.w:transpose(1, 2)
  local path = dir .. "/t.safetensors"
  lu.assertTrue(st.save(path, t, { format = "pt", note = "é" }))
  for _, options in ipairs { {}, { map = true } } do
    local back, meta = st.load(path, options)
    lu.assertEquals(meta, { format = "pt", note = "é" })
    local names = 0
    for name, x in pairs(back) do
      names = names + 1
      lu.assertEquals(x.dtype, t[name].dtype)
      lu.assertEquals(x.shape, t[name].shape)
      lu.assertEquals(x:tolist(), t[name]:tolist())
    end
    lu.assertEquals(names, 6)
  end
  local info = st.info(path)
  lu.assertEquals(#info.tensors, 6)
  lu.assertEquals(info.tensors[1].name, "i") -- the largest elements first
  lu.assertEquals(info.tensors[1].dtype, "i64")
  lu.assertEquals(info.tensors[1].shape, { 2 })
  lu.assertEquals(info.tensors[1].bytes, 16)
  -- the same tensors give the same bytes, whatever the order of the table
  local first = files.read(path)
  lu.assertTrue(st.save(path, { s = t.s, b = t.b, z = t.z, strided = t.strided, i = t.i, w = t.w },
    { note = "é", format = "pt" }))
  lu.assertEquals(files.read(path), first)
end

function tests.test_a_mapped_file_is_not_changed_in_place()
  local path = dir .. "/m.safetensors"
  assert(st.save(path, { x = peri.tensor { 1.0, 2.0 } }))
  local bytes = files.read(path)
  local x = assert(st.load(path, { map = true })).x
  x:add_(1)
  lu.assertEquals(x:tolist(), { 2, 3 })
  lu.assertEquals(files.read(path), bytes)
  assert(st.save(path, { x = x })) -- over the mapped file
  lu.assertEquals(x:tolist(), { 2, 3 })
end

function tests.test_bad_safetensors_are_refused()
  local path = dir .. "/bad.safetensors"
  fails("No such file", st.load(path))
  for text, part in pairs {
    [""] = "0 bytes are no safetensors file",
    [string.pack("<s8", "[]")] = "does not begin with '{'",
    [string.pack("<s8", "{}") .. "x"] = "end at byte 0 of 1",
    [string.pack("<I8", 1 << 40)] = "the limit is 100000000",
    [string.pack("<s8", '{"a":{"dtype":"F8_E4M3","shape":[1],"data_offsets":[0,1]}}') .. "x"] =
      "dtype F8_E4M3 of tensor \"a\" is not supported",
    [string.pack("<s8", '{"m":{"dtype":"BOOL","shape":[1],"data_offsets":[0,1]}}') .. "x"] = "is no BOOL",
  } do
    assert(files.write(path, text))
    fails(part, st.load(path))
    fails(path, st.load(path))
  end
  lu.assertErrorMsgContains("'a' is number, a tensor is expected", st.save, path, { a = 1 })
  lu.assertErrorMsgContains("strings as keys", st.save, path, { peri.tensor(1) })
  lu.assertErrorMsgContains("metadata 'k' is a number", st.save, path, {}, { k = 1 })
  lu.assertErrorMsgContains("unknown option 'mmap', did you mean 'map'?", st.load, path, { mmap = true })
end

function tests.test_checkpoints()
  local root = dir .. "/ck"
  lu.assertNil(files.checkpoint.latest(root))
  for i = 1, 4 do
    local c = assert(files.checkpoint.begin(root))
    assert(files.write(c.path .. "/n", tostring(i)))
    lu.assertTrue(c:commit("step-" .. i, 2))
    lu.assertErrorMsgContains("it is closed", c.commit, c, "again")
  end
  lu.assertEquals(files.list(root), { "step-3", "step-4" })
  lu.assertEquals(files.checkpoint.latest(root), root .. "/step-4")
  lu.assertEquals(files.checkpoint.verify(root .. "/step-4"), 4)
  assert(files.write(root .. "/step-4/n", "5"))
  fails("the manifest says", files.checkpoint.verify(root .. "/step-4"))
  lu.assertEquals(files.checkpoint.latest(root), root .. "/step-3")
  do
    local c <close> = files.checkpoint.begin(root)
    fails("cannot name a checkpoint", c:commit "../x")
    lu.assertEquals(files.exists(c.path), "folder")
  end
  lu.assertEquals(files.list(root), { "step-3", "step-4" })
  fails("make the folder", files.checkpoint.begin(root .. "/step-3/n/x"))
end

function tests.test_event_files()
  local path = dir .. "/events.out.tfevents.1.host"
  for run = 1, 2 do
    local w <close> = assert(files.tfevents(path))
    lu.assertTrue(w:scalar("loss", run, 0.5, 1e9))
    fails("a tag of 0 bytes", w:scalar("", run, 0.5, 1e9))
    w:close()
    lu.assertErrorMsgContains("it is closed", w.scalar, w, "loss", 1, 1, 1)
  end
  lu.assertEquals(#files.read(path), 40 + 2 * 42) -- the version, two values
  fails("cannot open", files.tfevents(dir))
end

return tests
