/*
** hill.h - what both mountain cars share: the valley, its bounds and its picture.
*/
#ifndef peri_env_hill_h
#define peri_env_hill_h

#include "env/classic/canvas.h"

#define HILL_LOW (-1.2)
#define HILL_HIGH 0.6
#define HILL_SPEED 0.07

static inline double hill_height (double x) { return sin(3 * x) * 0.45 + 0.55; }

static inline void hill_space (peri_env_spec *spec) {
  static const double low[] = { (float)HILL_LOW, -(float)HILL_SPEED };
  static const double high[] = { (float)HILL_HIGH, (float)HILL_SPEED };
  spec->obs = peri_space_box(PERI_F32, 0, 0, 1, (int64_t[]){ 2 });
  spec->obs.lows = low;
  spec->obs.highs = high;
}

static inline peri_status hill_text (double position, double goal, char *out, size_t size) {
  struct peri__canvas c;
  if (!canvas_begin(&c, out, size, 55, 11)) return PERI_EINVAL;
  for (int i = 0; i <= 54; i++) canvas_put(&c, i, 10 - 9 * hill_height(HILL_LOW + i / 30.0), '.');
  double flag = 30 * (goal - HILL_LOW), car = 30 * (position - HILL_LOW);
  canvas_put(&c, flag, 9 - 9 * hill_height(goal), 'F');
  canvas_put(&c, car, 9 - 9 * hill_height(position), 'O');
  return PERI_OK;
}

static inline void hill_car (peri_frame *frame, double position) {
  double angle = cos(3 * position), scale = 600 / (HILL_HIGH - HILL_LOW);
  double x = (position - HILL_LOW) * scale, y = 390 - hill_height(position) * scale, xy[8];
  const double corner[8] = { -20, 0, -20, 20, 20, 20, 20, 0 }, wheel[2] = { -10, 10 };
  for (int i = 0; i < 8; i += 2) {
    xy[i] = x + corner[i] * cos(angle) - corner[i + 1] * sin(angle);
    xy[i + 1] = y - corner[i] * sin(angle) - corner[i + 1] * cos(angle);
  }
  peri_frame_polygon(frame, 4, xy, 0x000000);
  for (int i = 0; i < 2; i++)
    peri_frame_circle(frame, x + wheel[i] * cos(angle), y - wheel[i] * sin(angle), 8, 0x808080);
}

static inline peri_status hill_render (peri_frame *frame, double position, double goal) {
  const double scale = 600 / (HILL_HIGH - HILL_LOW);
  peri_frame_size(frame, 600, 400);
  for (int i = 0; i < 99; i++)
    peri_frame_line(frame, i * 600 / 99.0, 400 - scale * hill_height(HILL_LOW + i * 1.8 / 99),
                    (i + 1) * 600 / 99.0, 400 - scale * hill_height(HILL_LOW + (i + 1) * 1.8 / 99),
                    1.5, 0x000000);
  double x = (goal - HILL_LOW) * scale, y = 400 - scale * hill_height(goal);
  const double flag[] = { x, y - 50, x + 25, y - 45, x, y - 40 };
  peri_frame_line(frame, x, y, x, y - 50, 1.5, 0x000000);
  peri_frame_polygon(frame, 3, flag, 0xcccc00);
  hill_car(frame, position);
  return peri_frame_check(frame);
}

#endif
