-- image.lua - pictures and films as files, and a picture as text of a terminal.
local peri = require "perilune"
local options = require "perilune.options"

local M = {}

local film_rules = {
  fps = options.number(30, "(0, 100]", "frames a second; a GIF has at most 50"),
  loops = options.integer(0, "[0, 65535]", "how often it plays; 0: for ever"),
}
local png_rules = {
  height = options.integer(options.none, "[1, 8192]", "of a frame in pixels, with width; default its own size"),
  width = options.integer(options.none, "[1, 8192]", "see height"),
}

local function is_frame(x) return type(x) == "userdata" and getmetatable(x) == "perilune.frame" end

local function is_image(t)
  local channels = t.ndim == 3 and t.shape[3] or 1
  return (t.ndim == 2 or t.ndim == 3) and (channels == 1 or channels == 3) and t:numel() > 0
end

-- (H, W, 3) u8 of a frame or an image.
local function pixels(x, height, width) return is_frame(x) and x:tensor(height, width) or x end

--- Write an image or a frame as a PNG file.
--- @param path string
--- @param image perilune.Tensor|userdata  (H, W, 3), (H, W, 1) or (H, W) u8, or a frame of shapes
--- @param opts table?
--- @return boolean|nil ok
--- @return string? message  when the file could not be written
function M.png(path, image, opts)
  local o = options.fill("image.png", opts, png_rules)
  options.argument("image.png", "image", image, "tensor or userdata")
  if (o.height == nil) ~= (o.width == nil) then options.raise "image.png: height and width go together" end
  if o.height and not is_frame(image) then options.raise "image.png: only a frame is drawn in another size" end
  return peri._image.png(path, pixels(image, o.height, o.width))
end
options.declare(M.png, { "path", "image" }, png_rules)

-- ---- films ----

local Film = {}
Film.__index = Film
Film.__name = "perilune.film"

--- Append a frame: to a GIF an image, (H, W, 3) u8, or a frame of shapes; to an SVG a frame of shapes.
--- @param frame perilune.Tensor|userdata
--- @return self|nil
--- @return string? message  when it could not be written
function Film:add(frame)
  local ok, message = self.writer:add(self.is_svg and frame or pixels(frame))
  if not ok then return nil, message end
  self.frames = self.frames + 1
  return self
end

--- Finish the file, which appears only now.
--- @return boolean|nil ok
--- @return string? message
function Film:save() return self.writer:commit() end

-- A film that is left without :save() leaves no file.
function Film:__close() self.writer:abort() end

--- Begin an animated GIF or, where the name ends with .svg, an animated SVG: :add(frame), then :save().
--- @param path string
--- @param opts table?
--- @return table|nil film
--- @return string? message  when the file cannot be made
function M.film(path, opts)
  options.argument("image.film", "path", path, "string")
  local o = options.fill("image.film", opts, film_rules)
  local is_svg = path:lower():find "%.svg$" ~= nil
  if not is_svg and not path:lower():find "%.gif$" then
    options.raise(("image.film: %s: a name that ends with .gif or .svg is expected"):format(path))
  end
  local writer, message = peri._image[is_svg and "svg" or "gif"](path, o.fps, o.loops)
  if not writer then return nil, message end
  return setmetatable({ writer = writer, is_svg = is_svg, frames = 0 }, Film)
end
options.declare(M.film, { "path" }, film_rules)

-- ---- as text ----

-- (to, from) f32: each row averages what a pixel covers of the former ones.
local function shares(from, to)
  local rows = {}
  for i = 1, to do
    local begin, finish, row = (i - 1) * from / to, i * from / to, {}
    for j = 1, from do row[j] = math.max(0, math.min(j, finish) - math.max(j - 1, begin)) * to / from end
    rows[i] = row
  end
  return peri.tensor(rows, "f32")
end

-- Rows of a flat list of colours, 3 * width numbers each.
local function resized(image, height, width)
  if is_frame(image) then return image:tensor(height, width):reshape { height, width * 3 }:tolist() end
  if image.ndim == 2 then image = image:unsqueeze(3) end
  if image.shape[3] == 1 then image = image:expand { image.shape[1], image.shape[2], 3 } end
  local h, w = image.shape[1], image.shape[2]
  local rows = shares(h, height):matmul(image:to("f32"):reshape { h, w * 3 }):reshape { height, w, 3 }
  return shares(w, width):matmul(rows):round():reshape { height, width * 3 }:tolist()
end

-- The nearest of the 6 x 6 x 6 colours and 24 greys of xterm.
local function of_256(r, g, b)
  local function level(v) return v < 48 and 0 or v < 115 and 1 or (v - 35) // 40 end
  local function value(l) return l == 0 and 0 or 55 + 40 * l end
  local x, y, z = level(r), level(g), level(b)
  local grey = math.max(0, math.min(23, ((r + g + b) / 3 - 3) // 10))
  local shade = 8 + 10 * grey
  local function far(p, q, s) return (p - r) ^ 2 + (q - g) ^ 2 + (s - b) ^ 2 end
  if far(shade, shade, shade) < far(value(x), value(y), value(z)) then return 232 + grey end
  return 16 + 36 * x + 6 * y + z
end

local function code(colour, ground, r, g, b)
  r, g, b = math.tointeger(r), math.tointeger(g), math.tointeger(b)
  if colour == "256" then return ("\27[%d;5;%dm"):format(ground and 48 or 38, math.tointeger(of_256(r, g, b))) end
  return ("\27[%d;2;%d;%d;%dm"):format(ground and 48 or 38, r, g, b)
end

local RAMP <const> = " .:-=+*#%@"

-- Two pixels, one above the other, in each cell.
local function line_of(upper, lower, width, colour)
  local out, last_fore, last_back = {}, nil, nil
  for x = 1, 3 * width, 3 do
    if colour == "none" then
      local sum = 0
      for c, weight in ipairs { 0.299, 0.587, 0.114 } do sum = sum + weight * (upper[x + c - 1] + lower[x + c - 1]) end
      local at = math.min(#RAMP, math.floor(sum / 510 * #RAMP) + 1)
      out[#out + 1] = RAMP:sub(at, at)
    else
      local fore = code(colour, false, upper[x], upper[x + 1], upper[x + 2])
      local back = code(colour, true, lower[x], lower[x + 1], lower[x + 2])
      if fore ~= last_fore then out[#out + 1] = fore end
      if back ~= last_back then out[#out + 1] = back end
      out[#out + 1] = "\u{2580}"
      last_fore, last_back = fore, back
    end
  end
  return table.concat(out) .. (colour == "none" and "" or "\27[0m")
end

local text_rules = {
  width = options.integer(80, "[1, 1000]", "columns at most"),
  height = options.integer(24, "[1, 1000]", "lines at most"),
  colour = options.choice("rgb", { "rgb", "256", "none" }, "24 bits, xterm's 256 colours, or shades of characters"),
}

--- A picture as lines of text for a terminal, two pixels a character.
--- @param image perilune.Tensor|userdata  (H, W, 3), (H, W, 1) or (H, W) u8, or a frame of shapes
--- @param opts table?
--- @return string  lines, each with its end
function M.text(image, opts)
  local o = options.fill("image.text", opts, text_rules)
  options.argument("image.text", "image", image, "tensor or userdata")
  local h, w
  if is_frame(image) then h, w = image.height, image.width
  elseif not is_image(image) then
    options.raise(("image.text: an image of %s, expected (H, W, 3), (H, W, 1) or (H, W)"):format(options.shape(image)))
  else h, w = image.shape[1], image.shape[2] end
  local scale = math.min(o.width / w, 2 * o.height / h)
  local width = math.max(1, math.floor(w * scale + 0.5))
  local height = math.max(1, math.floor(h * scale / 2 + 0.5))
  local scope <close> = peri.scope() -- luacheck: ignore 211
  local rows, lines = resized(image, 2 * height, width), {}
  for y = 1, height do lines[y] = line_of(rows[2 * y - 1], rows[2 * y], width, o.colour) end
  return table.concat(lines, "\n") .. "\n"
end
options.declare(M.text, { "image" }, text_rules)

return require "perilune.names"(M, "perilune.image")
