/* test_frame.c - pictures: frames of shapes as pixels, PNG, GIF and SVG files, read back by readers of their own. */
#include <math.h>

#include "pictures.h"
#include "scratch.h"

static peri_frame *new_frame (int w, int h) {
  peri_frame *f;
  assert_int_equal(peri_frame_open(C, &f), PERI_OK);
  peri_frame_size(f, w, h);
  return f;
}

static uint8_t *draw (peri_frame *f, int h, int w) {
  uint8_t *p = malloc((size_t)h * (size_t)w * 3);
  assert_int_equal(peri_frame_pixels(f, h, w, p), PERI_OK);
  return p;
}

static peri_tensor *image_of (int h, int w, const uint8_t *rgb) {
  const int64_t shape[] = { h, w, 3 };
  peri_tensor *t;
  assert_int_equal(peri_from(C, PERI_U8, 3, shape, rgb, &t), PERI_OK);
  return t;
}

static unsigned char *whole_file (size_t *n) {
  void *data;
  assert_int_equal(peri_file_read(C, Path, 0, &data, n), PERI_OK);
  unsigned char *copy = malloc(*n + 1);
  memcpy(copy, data, *n);
  copy[*n] = 0;
  peri_file_free(C, data, *n);
  return copy;
}

/* Numbers that look like noise, the same each time. */
static uint32_t noise (uint32_t *s) { return (*s = *s * 1664525u + 1013904223u) >> 8; }

/* ---- drawing ---- */

static void pixels_of_a_rect_are_exact (void **state) {
  (void)state;
  peri_frame *f = new_frame(8, 6);
  peri_frame_background(f, 0x102030);
  peri_frame_rect(f, 2, 1, 3, 4, 0xff8000);
  uint8_t *p = draw(f, 6, 8);
  for (int y = 0; y < 6; y++)
    for (int x = 0; x < 8; x++) {
      const uint8_t in[3] = { 0xff, 0x80, 0 }, out[3] = { 0x10, 0x20, 0x30 };
      bool inside = x >= 2 && x < 5 && y >= 1 && y < 5;
      assert_memory_equal(p + 3 * (8 * y + x), inside ? in : out, 3);
    }
  free(p);
  peri_frame_close(f);
}

static void what_a_shape_covers_of_a_pixel_is_its_share (void **state) {
  (void)state;
  peri_frame *f = new_frame(4, 4);
  const double triangle[] = { 0, 0, 4, 0, 0, 4 };
  peri_frame_rect(f, 0.25, 0.5, 1.5, 1, 0);
  uint8_t *p = draw(f, 4, 4);
  assert_int_equal(p[0], 159);     /* 3/4 x 1/2 is covered: 255 * 5/8 */
  assert_int_equal(p[3 * 1], 159); /* 3/4 x 1/2 */
  assert_int_equal(p[3 * 4], 159); /* the row below, the same */
  assert_int_equal(p[3 * 2], 255);
  free(p);
  peri_frame_size(f, 4, 4);
  peri_frame_polygon(f, 3, triangle, 0);
  p = draw(f, 4, 4);
  for (int y = 0; y < 4; y++)
    for (int x = 0; x < 4; x++)
      assert_int_equal(p[3 * (4 * y + x)], x + y < 3 ? 0 : x + y == 3 ? 128 : 255);
  free(p);
  peri_frame_close(f);
}

/* However a shape lies, its dark pixels sum up to its area. */
static void areas_add_up (void **state) {
  (void)state;
  peri_frame *f = new_frame(200, 100);
  const double star[] = { 100, 10, 130, 90, 60, 40, 140, 40, 70, 90 };
  struct {
    int kind;
    double area, error;
  } cases[] = {
    { 0, 3.14159265358979 * 30 * 30, 1 }, { 1, 100 * 7, 1 }, { 2, 33.3 * 21.7, 1 }, { 3, 0, 0 }
  };
  for (int i = 0; i < 3; i++) {
    peri_frame_size(f, 200, 100);
    if (i == 0) peri_frame_circle(f, 70.3, 50.7, 30, 0);
    if (i == 1) peri_frame_line(f, 20.1, 20.2, 100.1, 80.2, 7, 0);
    if (i == 2) peri_frame_rect(f, 11.11, 22.22, 33.3, 21.7, 0);
    uint8_t *p = draw(f, 100, 200);
    double sum = 0;
    for (int k = 0; k < 200 * 100; k++) sum += 1 - p[3 * k] / 255.0;
    if (fabs(sum - cases[i].area) > cases[i].error)
      fail_msg("shape %d covers %g, expected %g", i, sum, cases[i].area);
    free(p);
  }
  peri_frame_size(f, 200, 100); /* one that crosses itself: nothing is darker than its colour */
  peri_frame_polygon(f, 5, star, 0x808080);
  uint8_t *p = draw(f, 100, 200);
  for (int k = 0; k < 200 * 100; k++) assert_true(p[3 * k] >= 0x80);
  free(p);
  peri_frame_close(f);
}

static void shapes_are_scaled_to_the_pixels (void **state) {
  (void)state;
  peri_frame *f = new_frame(10, 10), *g = new_frame(30, 20);
  peri_frame_rect(f, 1, 2, 5, 3, 0x336699);
  peri_frame_rect(g, 3, 4, 15, 6, 0x336699);
  uint8_t *a = draw(f, 20, 30), *b = draw(g, 20, 30);
  assert_memory_equal(a, b, 20 * 30 * 3);
  free(a);
  free(b);
  peri_frame_close(f);
  peri_frame_close(g);
}

/* Outside of the frame, far away, empty: drawn where it can be seen, and nothing breaks. */
static void shapes_may_lie_anywhere (void **state) {
  (void)state;
  const double far[] = { -1e300, -5, 0, 3, 7.5, 1e9, 1e300 };
  enum { N = sizeof far / sizeof *far };
  peri_frame *f = new_frame(16, 8);
  for (int i = 0; i < N; i++)
    for (int j = 0; j < N; j++) {
      const double corners[] = { far[i], far[j], far[j], far[i], 3, 3, far[i], 2 };
      peri_frame_size(f, 16, 8);
      peri_frame_rect(f, far[i], far[j], fabs(far[j]), fabs(far[i]), 0);
      peri_frame_circle(f, far[i], far[j], fabs(far[i]), 0);
      peri_frame_line(f, far[i], 1, far[j], 5, 2, 0);
      peri_frame_line(f, 1, 1, 1, 1, 2, 0);
      peri_frame_polygon(f, 4, corners, 0);
      peri_frame_label(f, far[i], far[j], 7, "far", 0);
      free(draw(f, 8, 16));
      free(draw(f, 1, 1));
    }
  peri_frame_size(f, 16, 8);
  peri_frame_rect(f, -1e9, -1e9, 2e9, 2e9, 0x010203); /* all of it */
  uint8_t *p = draw(f, 8, 16);
  for (int k = 0; k < 16 * 8; k++) assert_memory_equal(p + 3 * k, "\1\2\3", 3);
  free(p);
  peri_frame_close(f);
}

static void images_are_scaled (void **state) {
  (void)state;
  static const uint8_t four[12] = { 10, 0, 0, 20, 0, 0, 30, 0, 0, 40, 0, 0 };
  static const int want[4][6] = { { 255, 255, 255, 255, 255, 255 },
                                  { 255, 10, 10, 20, 20, 255 },
                                  { 255, 10, 10, 20, 20, 255 },
                                  { 255, 30, 30, 40, 40, 255 } };
  peri_frame *f = new_frame(6, 4);
  peri_svg *s;
  peri_frame_image(f, 1, 1, 4, 4, 2, 2, four); /* a row of it lies outside */
  uint8_t *p = draw(f, 4, 6);
  for (int y = 0; y < 4; y++)
    for (int x = 0; x < 6; x++) assert_int_equal(p[3 * (6 * y + x)], want[y][x]);
  free(p);
  peri_frame_size(f, 1, 1);
  peri_frame_image(f, 0, 0, 1, 1, 2, 2, four);
  p = draw(f, 1, 1);
  assert_int_equal(p[0], 25);
  free(p);
  assert_int_equal(peri_svg_create(C, Path, 10, 0, &s), PERI_OK);
  want_failure(C, peri_svg_add(s, f), PERI_ENOSUP, "frame 0 has an image");
  peri_svg_abort(s);
  peri_frame_size(f, 1, 1);
  peri_frame_image(f, 0, 0, 1, 1, 0, 2, four);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "image: 0 rows of 2 pixels");
  peri_frame_close(f);
}

static void letters_are_seen (void **state) {
  (void)state;
  static const char *const rows[7] = {
    "10001", "10001", "10001", "11111", "10001", "10001", "10001"
  };
  peri_frame *f = new_frame(15, 9);
  peri_frame_label(f, 7.5, 4.5, 10, "H", 0);
  uint8_t *p = draw(f, 9, 15);
  for (int y = 0; y < 9; y++)
    for (int x = 0; x < 15; x++) {
      bool on = y >= 1 && y < 8 && x >= 5 && x < 10 && rows[y - 1][x - 5] == '1';
      assert_int_equal(p[3 * (15 * y + x)], on ? 0 : 255);
    }
  free(p);
  for (char c = 33; c < 127; c++) { /* every character has a picture, no two the same but none */
    char text[2] = { c, 0 };
    peri_frame_size(f, 15, 9);
    peri_frame_label(f, 7.5, 4.5, 10, text, 0);
    p = draw(f, 9, 15);
    int dark = 0;
    for (int k = 0; k < 15 * 9; k++) dark += p[3 * k] == 0;
    assert_in_range(dark, 2, 30);
    free(p);
  }
  peri_frame_close(f);
}

static void errors_stay_until_the_next_size (void **state) {
  (void)state;
  peri_frame *f = new_frame(8, 8);
  peri_tensor *t = NULL;
  const double corners[] = { 0, 0, 1, NAN, 2, 2 };
  peri_frame_rect(f, 1, 2, -3, 4, 0);
  peri_frame_circle(f, 1, NAN, 2, 0); /* the first one counts */
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "rect: -3 x 4");
  want_failure(C, peri_frame_tensor(f, 0, 0, &t), PERI_EINVAL, "rect: -3 x 4");
  assert_null(t);
  peri_frame_size(f, 8, 8);
  assert_int_equal(peri_frame_check(f), PERI_OK);
  peri_frame_circle(f, 1, INFINITY, 2, 0);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "circle: a coordinate is inf");
  peri_frame_size(f, 8, 8);
  peri_frame_polygon(f, 3, corners, 0);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "polygon: a coordinate is nan");
  peri_frame_size(f, 8, 8);
  peri_frame_polygon(f, 2, corners, 0);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "polygon: 2 corners");
  peri_frame_size(f, 8, 8);
  peri_frame_line(f, 0, 0, 1, 1, 1, 0x1000000);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "line: the colour is 0x1000000");
  peri_frame_size(f, 8, 8);
  peri_frame_label(f, 0, 0, 1, "\xff", 0);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "printable UTF-8");
  peri_frame_size(f, 8, 0);
  want_failure(C, peri_frame_check(f), PERI_EINVAL, "a frame of 8 x 0");
  peri_frame_size(f, 8, 8);
  want_failure(C, peri_frame_tensor(f, 9000, 1, &t), PERI_EINVAL, "a frame in 1 x 9000 pixels");
  assert_int_equal(peri_frame_tensor(f, 4, 2, &t), PERI_OK);
  assert_int_equal(peri_shape(t)[0], 4);
  peri_release(t);
  peri_frame_close(f);
}

/* ---- files ---- */

/* Sides of one and of odd numbers, flat and noisy content. */
static void a_png_holds_its_pixels (void **state) {
  (void)state;
  static const int sides[][2] = { { 1, 1 }, { 1, 7 }, { 13, 1 }, { 64, 65 }, { 300, 211 } };
  uint32_t seed = 1;
  for (size_t k = 0; k < 10; k++) {
    int h = sides[k / 2][0], w = sides[k / 2][1];
    uint8_t *rgb = malloc((size_t)(h * w) * 3);
    for (int i = 0; i < h * w * 3; i++)
      rgb[i] = (uint8_t)(k % 2 ? noise(&seed) : (uint32_t)(i / w / 3 + i % 3 * 40));
    peri_tensor *t = image_of(h, w, rgb);
    assert_int_equal(peri_png_save(C, Path, t), PERI_OK);
    size_t n;
    unsigned char *data = whole_file(&n);
    picture p = read_png(data, n);
    assert_int_equal(p.width, w);
    assert_int_equal(p.height, h);
    assert_int_equal(p.channels, 3);
    assert_memory_equal(p.pixels, rgb, (size_t)(h * w) * 3);
    if (k % 2 == 0 && h > 60) assert_true(n < (size_t)(h * w) / 20); /* filters do their work */
    free(p.pixels);
    free(data);
    free(rgb);
    peri_release(t);
  }
}

static void a_png_takes_views_and_shades_of_grey (void **state) {
  (void)state;
  uint8_t grey[6 * 4];
  for (int i = 0; i < 24; i++) grey[i] = (uint8_t)(10 * i);
  const int64_t shape[] = { 6, 4 };
  peri_tensor *t, *turned = NULL, *list[1];
  assert_int_equal(peri_from(C, PERI_U8, 2, shape, grey, &t), PERI_OK);
  list[0] = t;
  const peri_attr dims[] = { { .i = 0 }, { .i = 1 } };
  assert_int_equal(peri_apply(C, peri_op_find("transpose"), 1, list, 2, dims, 1, &turned), PERI_OK);
  assert_int_equal(peri_png_save(C, Path, turned), PERI_OK);
  size_t n;
  unsigned char *data = whole_file(&n);
  picture p = read_png(data, n);
  assert_int_equal(p.channels, 1);
  assert_int_equal(p.width, 6);
  for (int y = 0; y < 4; y++)
    for (int x = 0; x < 6; x++) assert_int_equal(p.pixels[6 * y + x], 10 * (4 * x + y));
  free(p.pixels);
  free(data);
  peri_release(turned);
  peri_release(t);
}

static void what_is_no_image_is_refused (void **state) {
  (void)state;
  const int64_t flat[] = { 4 }, four[] = { 2, 2, 4 }, none[] = { 0, 2, 3 }, fine[] = { 2, 2, 3 };
  peri_tensor *t;
  assert_int_equal(peri_empty(C, PERI_F32, 3, fine, &t), PERI_OK);
  want_failure(C, peri_png_save(C, Path, t), PERI_EDTYPE, "an image of f32, expected u8");
  peri_release(t);
  const struct {
    int ndim;
    const int64_t *shape;
    const char *say;
  } bad[] = { { 1, flat, "an image of (4)" }, { 3, four, "(2, 2, 4)" }, { 3, none, "(0, 2, 3)" } };
  for (int i = 0; i < 3; i++) {
    assert_int_equal(peri_empty(C, PERI_U8, bad[i].ndim, bad[i].shape, &t), PERI_OK);
    want_failure(C, peri_png_save(C, Path, t), PERI_ESHAPE, bad[i].say);
    peri_release(t);
  }
  peri_gif *g;
  peri_svg *s;
  want_failure(C, peri_gif_create(C, Path, 51, 0, &g), PERI_EINVAL, "51 frames a second");
  want_failure(C, peri_gif_create(C, Path, NAN, 0, &g), PERI_EINVAL, "frames a second");
  want_failure(C, peri_svg_create(C, Path, 0, 0, &s), PERI_EINVAL, "0 frames a second");
  want_failure(C, peri_gif_create(C, Path, 10, -1, &g), PERI_EINVAL, "plays -1 times");
  assert_int_equal(peri_gif_create(C, Path, 10, 0, &g), PERI_OK);
  want_failure(C, peri_gif_commit(g), PERI_EINVAL, "no frame was added");
  assert_int_equal(peri_gif_create(C, Path, 10, 0, &g), PERI_OK);
  assert_int_equal(peri_empty(C, PERI_U8, 3, fine, &t), PERI_OK);
  assert_int_equal(peri_gif_add(g, t), PERI_OK);
  peri_release(t);
  const int64_t other[] = { 3, 2, 3 };
  assert_int_equal(peri_empty(C, PERI_U8, 3, other, &t), PERI_OK);
  want_failure(C, peri_gif_add(g, t), PERI_ESHAPE,
               "frame 1 is 2 x 3 pixels, those before are 2 x 2");
  peri_release(t);
  peri_gif_abort(g);
  void *data;
  size_t n;
  assert_int_equal(peri_file_read(C, Path, 0, &data, &n), PERI_EIO); /* nothing was left behind */
}

/* frames of a film with so many colours, as shown; flat: long runs, else noise. */
static void film (int colours, bool flat, int frames, double fps, int loops) {
  enum { WIDE = 61, HIGH = 47 };
  uint32_t seed = (uint32_t)colours;
  uint8_t *all = malloc((size_t)frames * WIDE * HIGH * 3);
  peri_gif *g;
  assert_int_equal(peri_gif_create(C, Path, fps, loops, &g), PERI_OK);
  for (int f = 0; f < frames; f++) {
    uint8_t *rgb = all + (size_t)f * WIDE
    *HIGH * 3;
    for (int i = 0; i < WIDE * HIGH; i++) {
      uint32_t k =
          flat ? (uint32_t)(i / 97 + f) % (uint32_t)colours : noise(&seed) % (uint32_t)colours;
      if (f > 0 && i < WIDE * 20) { /* the upper rows stay */
        memcpy(rgb + 3 * i, rgb - WIDE * HIGH * 3 + 3 * i, 3);
        continue;
      }
      rgb[3 * i] = (uint8_t)(k * 37);
      rgb[3 * i + 1] = (uint8_t)(k * 101);
      rgb[3 * i + 2] = (uint8_t)(k >> 8 << 4);
    }
    peri_tensor *t = image_of(HIGH, WIDE, rgb);
    assert_int_equal(peri_gif_add(g, t), PERI_OK);
    peri_release(t);
  }
  assert_int_equal(peri_gif_commit(g), PERI_OK);
  size_t n;
  unsigned char *data = whole_file(&n);
  picture p = read_gif(data, n);
  assert_int_equal(p.width, WIDE);
  assert_int_equal(p.height, HIGH);
  assert_int_equal(p.frames, frames);
  assert_int_equal(p.loops, loops == 1 ? -1 : loops == 0 ? 0 : loops - 1);
  assert_int_equal(p.hundredths, (int64_t)floor(frames * 100 / fps + 0.5));
  int worst = 0;
  for (int i = 0; i < frames * WIDE * HIGH * 3; i++) {
    int d = abs((int)p.pixels[i] - all[i]);
    worst = d > worst ? d : worst;
  }
  if (colours <= 256) assert_int_equal(worst, 0);
  assert_in_range(worst, 0, 80);
  free(p.pixels);
  free(data);
  free(all);
}

static void a_gif_holds_its_frames (void **state) {
  (void)state;
  for (int c = 1; c <= 256; c = c < 16 ? c + 1 : c * 2) { /* widths of codes from 2 to 8 */
    film(c, true, 3, 30, 0);
    film(c, false, 3, 12.5, 1);
  }
  film(255, false, 12, 50, 3);
  film(4096, false, 2, 10, 0); /* more than fit: near them */
  film(1000, true, 4, 7, 2);
}

static void colours_of_later_frames_are_their_own (void **state) {
  (void)state;
  enum { N = 16 * 16 };
  uint8_t rgb[2][N * 3];
  for (int i = 0; i < N; i++) {
    const uint8_t a[3] = { (uint8_t)i, 0, 0 }, b[3] = { 0, (uint8_t)i, 9 };
    memcpy(rgb[0] + 3 * i, a, 3);
    memcpy(rgb[1] + 3 * i, b, 3);
  }
  peri_gif *g;
  assert_int_equal(peri_gif_create(C, Path, 10, 0, &g), PERI_OK);
  for (int f = 0; f < 4; f++) {
    peri_tensor *t = image_of(16, 16, rgb[f % 2]);
    assert_int_equal(peri_gif_add(g, t), PERI_OK);
    assert_int_equal(peri_gif_add(g, t), PERI_OK); /* nothing changes: a frame nevertheless */
    peri_release(t);
  }
  assert_int_equal(peri_gif_commit(g), PERI_OK);
  size_t n;
  unsigned char *data = whole_file(&n);
  picture p = read_gif(data, n);
  assert_int_equal(p.frames, 8);
  assert_int_equal(p.local, 4); /* frames with b; a is the first one's */
  for (int f = 0; f < 8; f++)
    assert_memory_equal(p.pixels + (size_t)f * N * 3, rgb[f / 2 % 2], N * 3);
  free(p.pixels);
  free(data);
}

static int occurrences (const char *text, const char *word) {
  int n = 0;
  for (const char *p = text; (p = strstr(p, word)) != NULL; p += strlen(word)) n++;
  return n;
}

static void an_svg_writes_each_shape_once (void **state) {
  (void)state;
  peri_frame *f = new_frame(100, 50);
  peri_svg *s;
  assert_int_equal(peri_svg_create(C, Path, 20, 0, &s), PERI_OK);
  for (int k = 0; k < 40; k++) {
    const double corners[] = { 0, 0, 1.5, -2, 3.14159, 1e-9 };
    peri_frame_size(f, 100, 50);
    peri_frame_rect(f, 1, 2, 3, 4, 0x00ff00);
    peri_frame_circle(f, k, 20, 5, 0xff);
    peri_frame_line(f, 0, 0, 1, 1, 0.5, 0x123456);
    peri_frame_polygon(f, 3, corners, 0);
    peri_frame_label(f, 10, 10, 8, "a<b & \xc3\xa4", 0);
    assert_int_equal(peri_svg_add(s, f), PERI_OK);
  }
  assert_int_equal(peri_svg_commit(s), PERI_OK);
  size_t n;
  char *text = (char *)whole_file(&n);
  assert_int_equal(occurrences(text, "<g "), 40);
  assert_int_equal(occurrences(text, "</g>"), 40);
  assert_int_equal(occurrences(text, "<circle "), 40);
  assert_int_equal(occurrences(text, "<rect "), 2); /* the background, too */
  assert_int_equal(occurrences(text, "<path "), 1);
  assert_int_equal(occurrences(text, "<use href=\"#s0\"/>"), 39);
  assert_non_null(strstr(text, "d=\"M0 0L1.5 -2 3.14 0z\""));
  assert_non_null(strstr(text, ">a&lt;b &amp; \xc3\xa4</text>"));
  assert_non_null(strstr(text, "animation-delay:1950ms"));
  assert_non_null(strstr(text, "animation:k 2000ms step-end infinite"));
  assert_non_null(strstr(text, "2.500000%{visibility:hidden}"));
  assert_true(n < 40 * 250);
  free(text);
  peri_frame_size(f, 10, 50);
  assert_int_equal(peri_svg_create(C, Path, 20, 2, &s), PERI_OK);
  assert_int_equal(peri_svg_add(s, f), PERI_OK);
  peri_frame_size(f, 10, 51);
  want_failure(C, peri_svg_add(s, f), PERI_ESHAPE, "frame 1 is 10 x 51, those before are 10 x 50");
  peri_frame_rect(f, NAN, 0, 0, 0, 0);
  want_failure(C, peri_svg_add(s, f), PERI_EINVAL, "rect: a coordinate is nan");
  assert_int_equal(peri_svg_commit(s), PERI_OK);
  peri_frame_close(f);
}

/* ---- memory ---- */

static peri_status all_of_it (void *ud) {
  peri_frame *f = NULL;
  peri_tensor *t = NULL;
  peri_gif *g = NULL;
  peri_svg *v = NULL;
  (void)ud;
  peri_status s = peri_frame_open(C, &f);
  for (int k = 0; k < 100; k++) peri_frame_rect(f, k, k, 3, 3, (uint32_t)k);
  peri_frame_label(f, 10, 10, 10, "abc", 0);
  if (s == PERI_OK) s = peri_frame_tensor(f, 40, 30, &t);
  if (s == PERI_OK) s = peri_png_save(C, Path, t);
  if (s == PERI_OK) s = peri_gif_create(C, Path, 10, 0, &g);
  if (s == PERI_OK) s = peri_gif_add(g, t);
  if (s == PERI_OK) {
    s = peri_gif_commit(g);
    g = NULL;
  }
  if (s == PERI_OK) s = peri_svg_create(C, Path, 10, 0, &v);
  if (s == PERI_OK) s = peri_svg_add(v, f);
  if (s == PERI_OK) {
    s = peri_svg_commit(v);
    v = NULL;
  }
  peri_svg_abort(v);
  peri_gif_abort(g);
  peri_release(t);
  peri_frame_close(f);
  return s;
}

static void no_memory_is_answered (void **state) {
  (void)state;
  fail_every_allocation(C, &H, false, all_of_it, NULL);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(pixels_of_a_rect_are_exact),
    TEST(what_a_shape_covers_of_a_pixel_is_its_share),
    TEST(areas_add_up),
    TEST(shapes_are_scaled_to_the_pixels),
    TEST(shapes_may_lie_anywhere),
    TEST(images_are_scaled),
    TEST(letters_are_seen),
    TEST(errors_stay_until_the_next_size),
    TEST(a_png_holds_its_pixels),
    TEST(a_png_takes_views_and_shades_of_grey),
    TEST(what_is_no_image_is_refused),
    TEST(a_gif_holds_its_frames),
    TEST(colours_of_later_frames_are_their_own),
    TEST(an_svg_writes_each_shape_once),
    TEST(no_memory_is_answered),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
