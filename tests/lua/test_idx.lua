-- IDX files: pictures and their labels, and files that are not what they say.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

TestIdx = {}

local data = peri.data
local digits = "recipes/data/digits/"
local folder

function TestIdx:setUp() folder = scratch.folder() end
function TestIdx:tearDown() peri.files.remove_tree(folder) end

local function write(name, bytes)
  assert(peri.files.write(folder .. "/" .. name, bytes))
  return folder .. "/" .. name
end

-- The bytes of an IDX file.
local function idx(type, sizes, body) -- ORDER idx header
  return string.pack(">BBBB", 0, 0, type, #sizes) .. string.pack(">" .. ("I4"):rep(#sizes), table.unpack(sizes)) .. body
end

local function refused(want, ...)
  local x, message = data.idx(...)
  lu.assertNil(x)
  lu.assertStrContains(message, want)
end

function TestIdx:test_the_digits_are_1797_pictures_of_ten_kinds()
  local x, y = assert(data.idx(digits .. "images.idx3-ubyte.gz", digits .. "labels.idx1-ubyte.gz"))
  lu.assertEquals(x.shape, { 1797, 8, 8 })
  lu.assertEquals({ x.dtype, y.dtype }, { "u8", "i64" })
  lu.assertEquals(y:narrow(1, 1, 10):tolist(), { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 })
  lu.assertEquals(y:one_hot(10):sum(1):min():item(), 174)
  lu.assertEquals(x:to("i64"):mod(15):max():item(), 0) -- grey in steps of 15
end

function TestIdx:test_any_size_and_type_is_read_as_it_is_stored()
  local names = { [0x08] = "u8", [0x0C] = "i32", [0x0D] = "f32", [0x0E] = "f64" }
  local forms = { [0x08] = "B", [0x0C] = ">i4", [0x0D] = ">f", [0x0E] = ">d" }
  for _, sizes in ipairs { { 3 }, { 2, 3 }, { 2, 1, 4 }, { 1, 2, 2, 3 } } do
    for type, name in pairs(names) do
      local n, body, want = 1, {}, {}
      for _, size in ipairs(sizes) do n = n * size end
      for i = 1, n do body[i], want[i] = forms[type]:pack(i * 3), i * 3 end
      local x = assert(data.idx(write("x", idx(type, sizes, table.concat(body)))))
      lu.assertEquals({ x.dtype, x.shape }, { name, sizes })
      lu.assertEquals(x:reshape({ n }):to("i64"):tolist(), want)
    end
  end
end

function TestIdx:test_a_file_is_refused_at_every_length_but_its_own()
  local whole = idx(8, { 3, 2, 2 }, "abcdefghijkl")
  lu.assertNotNil(data.idx(write("x", whole)))
  for n = 0, #whole - 1 do lu.assertNil((data.idx(write("x", whole:sub(1, n)))), n) end
  for _, more in ipairs { "\0", "xx", whole } do lu.assertNil((data.idx(write("x", whole .. more)))) end
end

function TestIdx:test_headers_that_lie_are_refused_by_what_is_wrong()
  refused("begins like this", write("x", "\1" .. idx(8, { 1 }, "a"):sub(2)))
  refused("type 0x07", write("x", idx(7, { 1 }, "a")))
  refused("i8 are not supported", write("x", idx(9, { 1 }, "a")))
  refused("255 dims", write("x", "\0\0\8\255" .. ("\0"):rep(1020)))
  local huge = 2 ^ 32 - 1 | 0
  refused("overflows 64 bits", write("x", idx(8, { huge, huge, huge }, "")))
  refused("overflows 64 bits", write("x", idx(14, { huge, huge }, "")))
  refused("more than the file can hold", write("x", idx(8, { huge }, "a")))
  refused("No such file", folder .. "/none")
end

function TestIdx:test_any_byte_of_a_header_may_be_any_other_and_is_read_or_refused()
  local whole = idx(8, { 2, 2 }, "abcd")
  for at = 1, 12 do
    for byte = 0, 255, at > 4 and 15 or 1 do
      local x, message = data.idx(write("x", whole:sub(1, at - 1) .. string.char(byte) .. whole:sub(at + 1)))
      lu.assertTrue(x and x:numel() == 4 or type(message) == "string")
    end
  end
end

function TestIdx:test_labels_that_do_not_fit_the_pictures_are_named()
  local x = write("x", idx(8, { 2, 2, 2 }, "abcdefgh"))
  refused("3 labels of 2 pictures", x, write("y", idx(8, { 3 }, "\0\1\2")))
  refused("labels of shape (2, 1)", x, write("y", idx(8, { 2, 1 }, "\0\1")))
  refused("labels of f32", x, write("y", idx(13, { 2 }, (">ff"):pack(0, 1))))
  refused("a label is -1", x, write("y", idx(12, { 2 }, (">i4i4"):pack(0, -1))))
  refused("pictures of shape (2)", write("x", idx(8, { 2 }, "ab")), write("y", idx(8, { 2 }, "\0\1")))
  refused("pictures of shape (0, 8)", write("x", idx(8, { 0, 8 }, "")), write("y", idx(8, { 0 }, "")))
  refused("No such file", write("x", idx(8, { 1, 1 }, "a")), folder .. "/none")
  lu.assertErrorMsgContains("images is 3, expected string", data.idx, 3)
  lu.assertErrorMsgContains("labels is true, expected string or nil", data.idx, x, true)
end

os.exit(lu.LuaUnit.run())
