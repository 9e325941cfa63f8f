-- Frames of shapes, pictures and films from Lua, pictures as text. What the files hold: tests/c/test_frame.c.
local lu = require "luaunit"
local peri = require "perilune"
local scratch = require "scratch"

local image = peri.image
local folder

TestImage = {}

function TestImage:setUp() folder = scratch.folder() end
function TestImage:tearDown() peri.files.remove_tree(folder) end

local function picture()
  return peri.frame(40, 20, 0x000000):rect(0, 0, 20, 20, 0xff0000):circle(30, 10, 5, 0x0000ff)
    :line(0, 0, 40, 20, 1, 0x00ff00):polygon({ 20, 0, 40, 0, 40, 2 }, 0xffffff):label(20, 10, 8, "ab", 0x888888)
end

local function fails(part, f, ...)
  local ok, message = pcall(f, ...)
  lu.assertFalse(ok)
  lu.assertStrContains(message, part)
  lu.assertStrContains(message, "test_image.lua")
end

function TestImage:test_a_frame_is_drawn_in_any_size()
  local f = picture()
  lu.assertEquals({ f.width, f.height, tostring(f) }, { 40, 20, "frame 40 x 20" })
  lu.assertEquals({ f:tensor().shape[1], f:tensor().shape[2], f:tensor().shape[3] }, { 20, 40, 3 })
  local t = f:tensor(10, 5)
  lu.assertEquals({ t.shape[1], t.shape[2], t.dtype }, { 10, 5, "u8" })
  lu.assertEquals(f:tensor():tolist()[20][1], { 255, 0, 0 })
  f:size(2, 2, 0x010203)
  lu.assertEquals(f:tensor():tolist(), { { { 1, 2, 3 }, { 1, 2, 3 } }, { { 1, 2, 3 }, { 1, 2, 3 } } })
end

function TestImage:test_what_a_frame_refuses_blames_the_caller()
  local f = picture()
  fails("argument 6 (rgb)", f.rect, f, 1, 2, 3, 4, -1)
  fails("argument 3 (y)", f.rect, f, 1, nil, 3, 4, 0)
  fails("rect: -3 x 4", f.rect, f, 1, 2, -3, 4, 0)
  fails("x and y in turn", f:size(9, 9).polygon, f, { 1, 2, 3 }, 0)
  fails("entry 2 of the list is string", f.polygon, f, { 1, "x", 2, 3, 4, 5 }, 0)
  fails("polygon: 2 corners", f.polygon, f, { 1, 2, 3, 4 }, 0)
  fails("a frame of 0 x 4", peri.frame, 0, 4)
  fails("a frame in 9 x 0 pixels", function () f:size(9, 9):tensor(0, 9) end)
  fails("frame", f.rect, 7, 1, 2, 3, 4, 0)
end

function TestImage:test_files_are_written_or_say_why()
  local f = picture()
  for _, x in ipairs { f, f:tensor(), peri.zeros({ 3, 4 }, "u8") } do
    lu.assertTrue(image.png(folder .. "/a.png", x))
  end
  lu.assertTrue(image.png(folder .. "/b.png", f, { height = 7, width = 9 }))
  lu.assertStrContains(peri.files.read(folder .. "/b.png"), "IHDR\0\0\0\9\0\0\0\7")
  local ok, message = image.png(folder .. "/none/a.png", f)
  lu.assertNil(ok)
  lu.assertStrContains(message, "none")
  fails("an image of f32, expected u8", image.png, folder .. "/a.png", peri.zeros { 2, 2, 3 })
  fails("an image of (4)", image.png, folder .. "/a.png", peri.zeros({ 4 }, "u8"))
  fails("go together", image.png, folder .. "/a.png", f, { height = 3 })
  fails("ends with .gif or .svg", image.film, folder .. "/a.avi")
  fails("fps is 0", image.film, folder .. "/a.gif", { fps = 0 })
  fails("60 frames a second", image.film, folder .. "/a.gif", { fps = 60 })
end

function TestImage:test_a_film_appears_when_it_is_saved()
  for _, name in ipairs { "a.gif", "a.svg" } do
    local path = folder .. "/" .. name
    local film = assert(image.film(path, { fps = 20 }))
    for i = 1, 3 do lu.assertEquals(film:add(picture():rect(i, i, 3, 3, 0x777777)).frames, i) end
    lu.assertFalse(peri.files.exists(path))
    lu.assertTrue(film:save())
    lu.assertEquals(peri.files.exists(path), "file")
    fails("closed", film.add, film, picture())
    do
      local left <close> = assert(image.film(folder .. "/left" .. name)) -- luacheck: ignore 211
      left:add(picture())
    end
    lu.assertFalse(peri.files.exists(folder .. "/left" .. name))
  end
  local film = image.film(folder .. "/b.svg")
  fails("frame", film.add, film, picture():tensor())
end

function TestImage:test_text_has_two_pixels_a_character()
  local t = peri.tensor({ { { 255, 0, 0 }, { 0, 0, 0 } }, { { 0, 0, 255 }, { 0, 0, 0 } } }, "u8")
  lu.assertEquals(image.text(t, { width = 2, height = 1 }),
    "\27[38;2;255;0;0m\27[48;2;0;0;255m\u{2580}\27[38;2;0;0;0m\27[48;2;0;0;0m\u{2580}\27[0m\n")
  lu.assertEquals(image.text(t, { width = 2, height = 1, colour = "256" }),
    "\27[38;5;196m\27[48;5;21m\u{2580}\27[38;5;16m\27[48;5;16m\u{2580}\27[0m\n")
  lu.assertEquals(image.text(t, { width = 2, height = 1, colour = "none" }), ": \n")
  for _, x in ipairs { picture(), picture():tensor(), picture():tensor():mean(3):to("u8") } do
    for width = 1, 90, 11 do
      for line in image.text(x, { width = width, height = 7 }):gmatch "(.-)\n" do
        lu.assertTrue(utf8.len((line:gsub("\27%[[%d;]*m", ""))) <= width)
      end
      local _, lines = image.text(x, { width = width, height = 7 }):gsub("\n", "")
      lu.assertTrue(lines <= 7)
    end
  end
  fails("an image of (4)", image.text, peri.zeros({ 4 }, "u8"))
  fails("width is 0", image.text, t, { width = 0 })
end

-- Averaged, not sampled: a board of black and white is grey when it shrinks.
function TestImage:test_a_smaller_picture_is_an_average()
  local rows = {}
  for i = 1, 40 do
    rows[i] = {}
    for j = 1, 40 do rows[i][j] = (i + j) % 2 * 255 end
  end
  local text = image.text(peri.tensor(rows, "u8"), { width = 5, height = 24 })
  lu.assertStrContains(text, "38;2;128;128;128")
  lu.assertNil(text:find "38;2;255")
end
