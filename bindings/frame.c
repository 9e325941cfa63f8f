/*
** frame.c - frames of shapes (peri.frame) and the files of pictures behind perilune.image (peri._image). What
** the outside world does wrong comes back as nil and a message, misuse raises.
*/
#include <math.h>
#include <string.h>

#include "keep.h"

#define FRAME "perilune.frame"
#define GIF "perilune.gif"
#define SVG "perilune.svg"

/* ---- frames ---- */

peri_frame *peri__frame_push (lua_State *L) {
  peri_frame *f;
  peri_handle *h = peri__handle_new(L, FRAME, 0);
  peri__check(L, "frame", peri_frame_open(peri_lua_ctx(L), &f));
  h->p = f;
  return f;
}

peri_frame *peri__want_frame (lua_State *L, int arg, const char *fn) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, arg, FRAME);
  if (!h) peri__type_error(L, fn, arg, "frame", "a frame");
  if (!h->p) luaL_error(L, "%s: the frame is closed", fn);
  return (peri_frame *)h->p;
}

static int whole_at (lua_State *L, int arg, const char *fn, const char *name) {
  int ok;
  lua_Integer v = lua_tointegerx(L, arg, &ok);
  if (!ok) peri__type_error(L, fn, arg, name, "an integer");
  return v < -1 || v > PERI_FRAME_MOST + 1 ? -1 : (int)v; /* what is refused stays refused */
}

static double number_at (lua_State *L, int arg, const char *fn, const char *name) {
  int ok;
  lua_Number v = lua_tonumberx(L, arg, &ok);
  if (!ok) peri__type_error(L, fn, arg, name, "a number");
  return v;
}

static uint32_t colour_at (lua_State *L, int arg, const char *fn) {
  int ok;
  lua_Integer v = lua_tointegerx(L, arg, &ok);
  if (!ok || v < 0 || v > 0xffffff)
    peri__type_error(L, fn, arg, "rgb", "an integer, 0x000000 to 0xFFFFFF");
  return (uint32_t)v;
}

/* The frame is the first argument; it is the result, too. */
static int drawn (lua_State *L, const char *fn, peri_frame *f) {
  peri__check(L, fn, peri_frame_check(f));
  lua_settop(L, 1);
  return 1;
}

static int set_size (lua_State *L, const char *fn, peri_frame *f, int arg) {
  int w = whole_at(L, arg, fn, "width"), h = whole_at(L, arg + 1, fn, "height");
  uint32_t rgb = lua_isnoneornil(L, arg + 2) ? 0xffffff : colour_at(L, arg + 2, fn);
  peri_frame_size(f, w, h);
  peri_frame_background(f, rgb);
  peri__check(L, fn, peri_frame_check(f));
  return 1;
}

static int l_frame (lua_State *L) {
  lua_settop(L, 3);
  return set_size(L, "frame", peri__frame_push(L), 1);
}

static int l_size (lua_State *L) {
  peri_frame *f = peri__want_frame(L, 1, "frame:size");
  set_size(L, "frame:size", f, 2);
  lua_settop(L, 1);
  return 1;
}

static int l_background (lua_State *L) {
  peri_frame *f = peri__want_frame(L, 1, "frame:background");
  peri_frame_background(f, colour_at(L, 2, "frame:background"));
  return drawn(L, "frame:background", f);
}

static int l_rect (lua_State *L) {
  static const char fn[] = "frame:rect";
  peri_frame *f = peri__want_frame(L, 1, fn);
  peri_frame_rect(f, number_at(L, 2, fn, "x"), number_at(L, 3, fn, "y"), number_at(L, 4, fn, "w"),
                  number_at(L, 5, fn, "h"), colour_at(L, 6, fn));
  return drawn(L, fn, f);
}

static int l_circle (lua_State *L) {
  static const char fn[] = "frame:circle";
  peri_frame *f = peri__want_frame(L, 1, fn);
  peri_frame_circle(f, number_at(L, 2, fn, "x"), number_at(L, 3, fn, "y"), number_at(L, 4, fn, "r"),
                    colour_at(L, 5, fn));
  return drawn(L, fn, f);
}

static int l_line (lua_State *L) {
  static const char fn[] = "frame:line";
  peri_frame *f = peri__want_frame(L, 1, fn);
  peri_frame_line(f, number_at(L, 2, fn, "x0"), number_at(L, 3, fn, "y0"),
                  number_at(L, 4, fn, "x1"), number_at(L, 5, fn, "y1"),
                  number_at(L, 6, fn, "width"), colour_at(L, 7, fn));
  return drawn(L, fn, f);
}

static int l_polygon (lua_State *L) {
  static const char fn[] = "frame:polygon";
  peri_frame *f = peri__want_frame(L, 1, fn);
  if (lua_type(L, 2) != LUA_TTABLE) peri__type_error(L, fn, 2, "xy", "a list of x and y in turn");
  uint32_t rgb = colour_at(L, 3, fn);
  size_t n = (size_t)lua_rawlen(L, 2);
  if (n % 2 != 0 || n > (1 << 20))
    luaL_error(L, "%s: a list of %d numbers, expected x and y in turn", fn, (int)n);
  double *xy = (double *)lua_newuserdatauv(L, (n + 1) * sizeof *xy, 0);
  for (size_t i = 0; i < n; i++) {
    int ok;
    lua_rawgeti(L, 2, (lua_Integer)i + 1);
    xy[i] = lua_tonumberx(L, -1, &ok);
    if (!ok)
      luaL_error(L, "%s: entry %d of the list is %s, expected a number", fn, (int)i + 1,
                 luaL_typename(L, -1));
    lua_pop(L, 1);
  }
  peri_frame_polygon(f, (int)(n / 2), xy, rgb);
  return drawn(L, fn, f);
}

static int l_label (lua_State *L) {
  static const char fn[] = "frame:label";
  peri_frame *f = peri__want_frame(L, 1, fn);
  if (lua_type(L, 5) != LUA_TSTRING) peri__type_error(L, fn, 5, "text", "a string");
  size_t n;
  const char *text = lua_tolstring(L, 5, &n);
  if (strlen(text) != n) luaL_error(L, "%s: argument 5 (text) holds a zero byte", fn);
  peri_frame_label(f, number_at(L, 2, fn, "x"), number_at(L, 3, fn, "y"),
                   number_at(L, 4, fn, "size"), text, colour_at(L, 6, fn));
  return drawn(L, fn, f);
}

/* The bytes of a dense tensor, or of a copy that takes its place on the stack. */
static int l_image (lua_State *L) {
  static const char fn[] = "frame:image";
  peri_frame *f = peri__want_frame(L, 1, fn);
  peri_tensor *t = peri__want_tensor(L, 6, fn, "image");
  double x = number_at(L, 2, fn, "x"), y = number_at(L, 3, fn, "y"), w = number_at(L, 4, fn, "w"),
         h = number_at(L, 5, fn, "h");
  const int64_t *shape = peri_shape(t);
  if (peri_dtype_of(t) != PERI_U8 || peri_ndim(t) != 3 || shape[2] != 3 || peri_numel(t) == 0 ||
      shape[0] > PERI_FRAME_MOST || shape[1] > PERI_FRAME_MOST) {
    peri__push_shape_text(L, peri_ndim(t), shape);
    luaL_error(L, "%s: an image of %s %s, expected (H, W, 3) u8", fn, lua_tostring(L, -1),
               peri_dtype_name(peri_dtype_of(t)));
  }
  const void *data = peri_data(t);
  if (!peri_is_dense(t)) {
    size_t n = (size_t)peri_numel(t);
    void *copy = lua_newuserdatauv(L, n, 0);
    peri__check(L, fn, peri_copy_out(t, copy, n));
    data = copy;
  }
  peri_frame_image(f, x, y, w, h, (int)shape[0], (int)shape[1], (const uint8_t *)data);
  return drawn(L, fn, f);
}

static int l_tensor (lua_State *L) {
  static const char fn[] = "frame:tensor";
  peri_frame *f = peri__want_frame(L, 1, fn);
  int h = 0, w = 0, tries = 0;
  peri_status s;
  if (!lua_isnoneornil(L, 2) || !lua_isnoneornil(L, 3))
    h = whole_at(L, 2, fn, "height"), w = whole_at(L, 3, fn, "width");
  peri_tensor **out = peri__box_new(L);
  do s = peri_frame_tensor(f, h, w, out);
  while (peri__retry(L, s, &tries));
  peri__check(L, fn, s);
  peri__charge(L);
  return 1;
}

static int frame_close (lua_State *L) {
  peri_frame_close((peri_frame *)peri__handle_take(L, FRAME));
  return 0;
}

/* .width, .height, or a method from the table in the first upvalue. */
static int frame_index (lua_State *L) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, FRAME);
  const char *key = lua_type(L, 2) == LUA_TSTRING ? lua_tostring(L, 2) : "";
  bool width = strcmp(key, "width") == 0, height = strcmp(key, "height") == 0;
  if (h && h->p && (width || height)) {
    const peri_frame *f = (const peri_frame *)h->p;
    lua_pushinteger(L, width ? peri_frame_width(f) : peri_frame_height(f));
    return 1;
  }
  lua_settop(L, 2);
  lua_rawget(L, lua_upvalueindex(1));
  return 1;
}

static int frame_tostring (lua_State *L) {
  peri_handle *h = (peri_handle *)luaL_testudata(L, 1, FRAME);
  const peri_frame *f = h ? (const peri_frame *)h->p : NULL;
  if (f)
    lua_pushfstring(L, "frame %d x %d", peri_frame_width(f), peri_frame_height(f));
  else
    lua_pushliteral(L, "frame (closed)");
  return 1;
}

/* ---- files ---- */

/* Shapes and dtypes that do not fit are misuse, too. */
static int written (lua_State *L, const char *fn, peri_status s) {
  if (s == PERI_ESHAPE || s == PERI_ENOMEM) peri__check(L, fn, s);
  return peri__done_or_raise(L, fn, s);
}

static int l_png (lua_State *L) {
  static const char fn[] = "image.png";
  const char *path = peri__want_path(L, 1, fn);
  peri_tensor *t = peri__want_tensor(L, 2, fn, "image");
  return written(L, fn, peri_png_save(peri_lua_ctx(L), path, t));
}

/* (path, fps, loops) */
static int loops_at (lua_State *L, int arg, const char *fn) {
  int ok;
  lua_Integer n = lua_tointegerx(L, arg, &ok);
  if (!ok || n < 0 || n > 65535) peri__type_error(L, fn, arg, "loops", "an integer, 0 to 65535");
  return (int)n;
}

static int l_gif (lua_State *L) {
  static const char fn[] = "image.gif";
  const char *path = peri__want_path(L, 1, fn);
  double fps = number_at(L, 2, fn, "fps");
  int loops = loops_at(L, 3, fn);
  peri_gif *g;
  peri_handle *h = peri__handle_new(L, GIF, 0);
  peri_status s = peri_gif_create(peri_lua_ctx(L), path, fps, loops, &g);
  if (s != PERI_OK) return written(L, fn, s);
  h->p = g;
  return 1;
}

static int gif_add (lua_State *L) {
  static const char fn[] = "gif:add";
  peri_gif *g = (peri_gif *)peri__handle_open(L, GIF, fn);
  return written(L, fn, peri_gif_add(g, peri__want_tensor(L, 2, fn, "image")));
}

static int gif_commit (lua_State *L) {
  peri__handle_open(L, GIF, "gif:commit");
  return written(L, "gif:commit", peri_gif_commit((peri_gif *)peri__handle_take(L, GIF)));
}

static int gif_abort (lua_State *L) {
  peri_gif_abort((peri_gif *)peri__handle_take(L, GIF));
  return 0;
}

static int l_svg (lua_State *L) {
  static const char fn[] = "image.svg";
  const char *path = peri__want_path(L, 1, fn);
  double fps = number_at(L, 2, fn, "fps");
  int loops = loops_at(L, 3, fn);
  peri_svg *g;
  peri_handle *h = peri__handle_new(L, SVG, 0);
  peri_status s = peri_svg_create(peri_lua_ctx(L), path, fps, loops, &g);
  if (s != PERI_OK) return written(L, fn, s);
  h->p = g;
  return 1;
}

static int svg_add (lua_State *L) {
  static const char fn[] = "svg:add";
  peri_svg *g = (peri_svg *)peri__handle_open(L, SVG, fn);
  return written(L, fn, peri_svg_add(g, peri__want_frame(L, 2, fn)));
}

static int svg_commit (lua_State *L) {
  peri__handle_open(L, SVG, "svg:commit");
  return written(L, "svg:commit", peri_svg_commit((peri_svg *)peri__handle_take(L, SVG)));
}

static int svg_abort (lua_State *L) {
  peri_svg_abort((peri_svg *)peri__handle_take(L, SVG));
  return 0;
}

/* ---- opening ---- */

static const peri_reg frame_meta[] = { { "__gc", NULL, NULL, frame_close },
                                       { "__close", NULL, NULL, frame_close },
                                       { "__tostring", NULL, NULL, frame_tostring },
                                       { NULL, NULL, NULL, NULL } };

static const peri_reg frame_methods[] = {
  { "size", "self, width, height, background?", "Begin anew: no shapes, units of a size.", l_size },
  { "background", "self, rgb", "The colour behind all shapes, 0xRRGGBB.", l_background },
  { "rect", "self, x, y, w, h, rgb", "A filled rectangle.", l_rect },
  { "circle", "self, x, y, r, rgb", "A filled circle.", l_circle },
  { "line", "self, x0, y0, x1, y1, width, rgb", "A line.", l_line },
  { "polygon", "self, xy, rgb", "A filled polygon; xy lists x and y of its corners in turn.",
    l_polygon },
  { "label", "self, x, y, size, text, rgb",
    "Text of one line whose middle is at x, y; letters are 0.7 size high and 0.6 size apart.",
    l_label },
  { "image", "self, x, y, w, h, image",
    "An image, (H, W, 3) u8, in a rectangle; a frame with one cannot become an SVG.", l_image },
  { "tensor", "self, height?, width?",
    "Drawn with smooth edges, (height, width, 3) u8; by default in its own size.", l_tensor },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg gif_meta[] = { { "__gc", NULL, NULL, gif_abort },
                                     { "__close", NULL, NULL, gif_abort },
                                     { NULL, NULL, NULL, NULL } };

static const peri_reg gif_methods[] = {
  { "add", "self, image", "Append an image.", gif_add },
  { "commit", "self", "Finish the file; true, or nil and a message.", gif_commit },
  { "abort", "self", "Leave no file.", gif_abort },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg svg_meta[] = { { "__gc", NULL, NULL, svg_abort },
                                     { "__close", NULL, NULL, svg_abort },
                                     { NULL, NULL, NULL, NULL } };

static const peri_reg svg_methods[] = {
  { "add", "self, frame", "Append a frame.", svg_add },
  { "commit", "self", "Finish the file; true, or nil and a message.", svg_commit },
  { "abort", "self", "Leave no file.", svg_abort },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg functions[] = {
  { "frame", "width, height, background?",
    "A frame for shapes, in units of its own size (0, 0 is the left upper corner), white by "
    "default. Colours are integers, 0xRRGGBB. Methods: size, background, rect, circle, line, "
    "polygon, label, image, tensor.",
    l_frame },
  { NULL, NULL, NULL, NULL }
};

static const peri_reg files[] = {
  { "png", "path, image", "Write an image; true, or nil and a message.", l_png },
  { "gif", "path, fps, loops", "Begin an animated GIF; a writer, or nil and a message.", l_gif },
  { "svg", "path, fps, loops", "Begin an animated SVG; a writer, or nil and a message.", l_svg },
  { NULL, NULL, NULL, NULL }
};

void peri__open_frame (lua_State *L) {
  peri__metatable(L, FRAME, frame_meta, frame_methods);
  lua_getfield(L, -1, "__index");
  lua_pushcclosure(L, frame_index, 1);
  lua_setfield(L, -2, "__index");
  peri__metatable(L, GIF, gif_meta, gif_methods);
  peri__metatable(L, SVG, svg_meta, svg_methods);
  lua_pop(L, 3);
  peri__register(L, functions);
  lua_newtable(L);
  peri__register(L, files);
  lua_setfield(L, -2, "_image");
}
