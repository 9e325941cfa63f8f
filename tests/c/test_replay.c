/*
** test_replay.c - replay buffers and rollouts without Lua: what is drawn is what was added, told by a plain
** list of everything that ever was; frequencies; states; misuse; lack of memory.
*/
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "scratch.h"

/* ---- a plain list ---- */

enum { ROWS = 3, STEPS = 400 };

typedef struct moment {
  float now[2], next[2], reward;
  int64_t action;
  bool terminated, truncated, valid, follows; /* follows: begins with what the last one led to */
} moment;

static moment all[STEPS][ROWS];

static unsigned draw_state;
static unsigned draw (unsigned n) {
  draw_state = draw_state * 1664525u + 1013904223u;
  return (draw_state >> 8) % n;
}

/* Steps of random episodes with ends of each kind, rows that start anew, steps that are not valid. */
static void make_history (unsigned seed, unsigned ends, unsigned breaks, unsigned skips) {
  float value = 0;
  draw_state = seed;
  for (int row = 0; row < ROWS; row++)
    for (int t = 0; t < STEPS; t++) {
      moment *m = &all[t][row], *last = t > 0 ? &all[t - 1][row] : NULL;
      m->follows = last && !last->terminated && !last->truncated && !(breaks && draw(breaks) == 0);
      m->now[0] = m->follows ? last->next[0] : ++value;
      m->now[1] = m->follows ? last->next[1] : (float)row;
      m->next[0] = ++value;
      m->next[1] = (float)row + 0.5f;
      m->reward = (float)draw(1000) / 8;
      m->action = t * ROWS + row;
      m->terminated = ends && draw(ends) == 0;
      m->truncated = ends && draw(ends) == 0;
      m->valid = !(skips && draw(skips) == 0);
    }
}

static const peri_field Fields[] = {
  { .name = "obs", .dtype = PERI_F32, .role = PERI_FIELD_OBSERVED, .ndim = 1, .shape = { 2 } },
  { .name = "action", .dtype = PERI_I64 },
  { .name = "hidden", .dtype = PERI_I64, .role = PERI_FIELD_START },
};

enum {
  IN_OBS,
  IN_ACTION,
  IN_HIDDEN,
  IN_NEXT,
  IN_REWARD,
  IN_TERMINATED,
  IN_TRUNCATED,
  IN_VALID,
  NIN
};
enum {
  OBS,
  ACTION,
  HIDDEN,
  NEXT,
  REWARD,
  TERMINATED,
  TRUNCATED,
  DISCOUNT,
  INDEX,
  NOUT, /* mask of sequences, else weight */
};

static peri_replay_options options (int64_t capacity, int64_t n_step) {
  peri_replay_options o;
  peri_replay_options_init(&o);
  o.capacity = capacity;
  o.rows = ROWS;
  o.nfields = 3;
  o.fields = Fields;
  o.n_step = n_step;
  o.gamma = 0.9;
  return o;
}

static peri_tensor *tensor (peri_dtype d, int ndim, const int64_t *shape, const void *data) {
  peri_tensor *t = NULL;
  assert_int_equal(peri_from(C, d, ndim, shape, data, &t), PERI_OK);
  return t;
}

static peri_status add (peri_replay *r, int t) {
  float now[ROWS][2], next[ROWS][2], reward[ROWS];
  int64_t action[ROWS];
  bool over[ROWS], cut[ROWS], valid[ROWS];
  for (int row = 0; row < ROWS; row++) {
    const moment *m = &all[t][row];
    memcpy(now[row], m->now, sizeof m->now);
    memcpy(next[row], m->next, sizeof m->next);
    reward[row] = m->reward, action[row] = m->action;
    over[row] = m->terminated, cut[row] = m->truncated, valid[row] = m->valid;
  }
  const int64_t n[2] = { ROWS, 2 };
  peri_tensor *in[NIN] = {
    tensor(PERI_F32, 2, n, now),  tensor(PERI_I64, 1, n, action), tensor(PERI_I64, 1, n, action),
    tensor(PERI_F32, 2, n, next), tensor(PERI_F32, 1, n, reward), tensor(PERI_BOOL, 1, n, over),
    tensor(PERI_BOOL, 1, n, cut), tensor(PERI_BOOL, 1, n, valid),
  };
  peri_status s = peri_replay_add(r, NIN, in);
  for (int i = 0; i < NIN; i++) peri_release(in[i]);
  return s;
}

static peri_replay *filled (const peri_replay_options *o, int steps) {
  peri_replay *r = NULL;
  assert_int_equal(peri_replay_open(C, o, &r), PERI_OK);
  for (int t = 0; t < steps; t++) assert_int_equal(add(r, t), PERI_OK);
  return r;
}

static void drop (int n, peri_tensor **out) {
  for (int i = 0; i < n; i++) peri_release(out[i]), out[i] = NULL;
}

#define AT(out, type, i) (((const type *)peri_data(out))[i])

/* Whether step t of a row is one more of the episode that t - 1 is in. */
static bool goes_on (int t, int row) {
  return all[t][row].follows && all[t][row].valid && all[t - 1][row].valid;
}

/* Line i of a sample is the transition of step t: newest is the last step that was added. */
static void same (peri_tensor *const *out, int64_t i, int t, int row, int newest, int64_t n_step) {
  const moment *m = &all[t][row], *last = m;
  double sum = m->reward;
  int64_t k = 1;
  for (; k < n_step && t + k <= newest && all[t + k][row].follows && all[t + k][row].valid; k++) {
    last = &all[t + k][row];
    sum += pow(0.9, (double)k) * last->reward;
  }
  assert_int_equal(AT(out[ACTION], int64_t, i), m->action);
  assert_memory_equal(&AT(out[OBS], float, 2 * i), m->now, sizeof m->now);
  assert_memory_equal(&AT(out[NEXT], float, 2 * i), last->next, sizeof last->next);
  assert_true(AT(out[REWARD], float, i) == (float)sum);
  assert_true(AT(out[DISCOUNT], float, i) == (float)pow(0.9, (double)k));
  assert_int_equal(AT(out[TERMINATED], bool, i), last->terminated);
  assert_int_equal(AT(out[TRUNCATED], bool, i), last->truncated);
}

/* Every position of the buffer holds the step that the ring says. */
static void same_throughout (peri_replay *r, const peri_replay_options *o, int steps) {
  int64_t size = peri_replay_size(r), positions[STEPS * ROWS];
  int64_t held = steps < o->capacity ? steps : o->capacity;
  assert_int_equal(size, held * ROWS);
  for (int64_t p = 0; p < size; p++) positions[p] = p;
  peri_tensor *index = tensor(PERI_I64, 1, &size, positions), *out[NOUT + 1] = { NULL };
  int nout = NOUT + o->prioritised;
  assert_int_equal(peri_replay_gather(r, index, nout, out), PERI_OK);
  for (int t = steps - (int)held; t < steps; t++)
    for (int row = 0; row < ROWS; row++)
      same(out, t % o->capacity * ROWS + row, t, row, steps - 1, o->n_step);
  drop(nout, out);
  peri_release(index);
}

static void what_is_drawn_is_what_was_added (void **state) {
  (void)state;
  static const unsigned kinds[][3] = { { 0, 0, 0 }, { 7, 0, 0 }, { 2, 0, 0 },  { 9, 6, 0 },
                                       { 1, 0, 0 }, { 0, 3, 0 }, { 6, 11, 4 }, { 40, 0, 2 } };
  static const int64_t capacities[] = { 1, 2, 7, 64, 300 }, n_steps[] = { 1, 2, 3, 10, 70 };
  for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++)
    for (int c = 0; c < 5; c++)
      for (int n = 0; n < 5; n++) {
        make_history(k, kinds[k][0], kinds[k][1], kinds[k][2]);
        const peri_replay_options o = options(capacities[c], n_steps[n]);
        peri_replay *r = filled(&o, 0);
        for (int t = 0; t < (n < 2 ? STEPS : 90); t++) {
          assert_int_equal(add(r, t), PERI_OK);
          if (t % 23 == 0 || t < 9) same_throughout(r, &o, t + 1);
        }
        peri_replay_close(r);
      }
}

static void breaks_are_counted (void **state) {
  (void)state;
  make_history(3, 9, 6, 0);
  const peri_replay_options o = options(20, 3);
  peri_replay *r = filled(&o, 100);
  int64_t breaks = 0;
  for (int t = 1; t < 100; t++)
    for (int row = 0; row < ROWS; row++)
      breaks += !all[t][row].follows && !all[t - 1][row].terminated && !all[t - 1][row].truncated;
  assert_true(breaks > 20);
  assert_int_equal(peri_replay_breaks(r), breaks);
  peri_replay_clear(r);
  assert_int_equal(peri_replay_breaks(r), 0);
  assert_int_equal(peri_replay_size(r), 0);
  peri_replay_close(r);
}

/* ---- sequences ---- */

static void a_sequence_stays_in_its_episode (void **state) {
  (void)state;
  enum { N = 500, LENGTH = 5, BURN = 3, T = LENGTH + BURN, HELD = 60, ADDED = 100 };
  make_history(5, 9, 20, 15);
  const peri_replay_options o = options(HELD, 1);
  peri_replay *r = filled(&o, ADDED);
  peri_tensor *out[NOUT + 1] = { NULL };
  assert_int_equal(peri_replay_sequences(r, N, LENGTH, BURN, 1, NOUT + 1, out), PERI_OK);
  assert_int_equal(peri_ndim(out[OBS]), 3);
  assert_int_equal(peri_ndim(out[HIDDEN]), 1);
  int early = 0, whole = 0, short_ = 0;
  for (int i = 0; i < N; i++) {
    int64_t action = AT(out[ACTION], int64_t, i * T);
    int t = (int)(action / ROWS), row = (int)(action % ROWS), k = 0, burnt = 0;
    assert_int_equal(AT(out[HIDDEN], int64_t, i), action);
    for (; k < T && AT(out[INDEX], int64_t, i * T + k) >= 0; k++) {
      same(out, i * T + k, t + k, row, ADDED - 1, 1);
      assert_true(all[t + k][row].valid);
      if (k > 0) assert_true(goes_on(t + k, row));
      float mask = AT(out[NOUT], float, i *T + k);
      assert_true(mask == 0 || mask == 1);
      if (mask == 0) assert_int_equal(burnt++, k); /* before the first that counts */
    }
    assert_in_range(k - burnt, 1, LENGTH);
    bool ends = t + k >= ADDED || !goes_on(t + k, row);
    assert_true(k - burnt == LENGTH || ends);
    assert_true(burnt == BURN || t == ADDED - HELD || !goes_on(t, row));
    early += burnt == BURN, whole += k - burnt == LENGTH, short_ += k - burnt < LENGTH;
    for (; k < T; k++) {
      assert_int_equal(AT(out[INDEX], int64_t, i * T + k), -1);
      assert_true(AT(out[NOUT], float, i *T + k) == 0);
      assert_true(AT(out[OBS], float, 2 * (i * T + k)) == 0);
      assert_true(AT(out[DISCOUNT], float, i *T + k) == 0);
    }
  }
  assert_true(early > 20 && whole > 20 && short_ > 20);
  drop(NOUT + 1, out);
  peri_replay_close(r);
}

/* ---- frequencies ---- */

/* Chi-square of counts that should be in proportion to p; the mean is df, the deviation sqrt(2 df). */
static double chi_square (int n, const double *count, const double *p, double *df) {
  double total = 0, drawn = 0, chi = 0;
  *df = -1;
  for (int i = 0; i < n; i++) total += p[i], drawn += count[i];
  for (int i = 0; i < n; i++) {
    double want = drawn * p[i] / total;
    if (want == 0)
      assert_true(count[i] == 0);
    else
      chi += (count[i] - want) * (count[i] - want) / want, ++*df;
  }
  return chi;
}

static void count_draws (peri_replay *r, int nout, int times, double *count) {
  peri_tensor *out[NOUT + 1] = { NULL };
  for (int k = 0; k < times; k++) {
    assert_int_equal(peri_replay_sample(r, 37, 1, nout, out), PERI_OK);
    for (int i = 0; i < 37; i++) count[AT(out[INDEX], int64_t, i)]++;
  }
  drop(nout, out);
}

static void every_valid_step_is_drawn_as_often (void **state) {
  (void)state;
  make_history(6, 9, 0, 4);
  const peri_replay_options o = options(50, 1);
  peri_replay *r = filled(&o, 120);
  double count[150] = { 0 }, p[150], df;
  for (int t = 70; t < 120; t++)
    for (int row = 0; row < ROWS; row++) p[t % 50 * ROWS + row] = all[t][row].valid;
  count_draws(r, NOUT, 2000, count);
  double chi = chi_square(150, count, p, &df);
  assert_true(fabs(chi - df) < 4 * sqrt(2 * df));
  peri_replay_close(r);
}

static void priorities_are_proportions (void **state) {
  (void)state;
  enum { SIZE = 33 * ROWS };
  make_history(6, 9, 0, 5);
  peri_replay_options o = options(33, 1);
  o.prioritised = true;
  o.alpha = 0.7;
  o.epsilon = 0.01;
  peri_replay *r = filled(&o, 80);
  double count[SIZE] = { 0 }, p[SIZE], df, least = INFINITY, value[SIZE];
  int64_t index[SIZE], n = 0;
  for (int64_t t = 47; t < 80; t++)
    for (int row = 0; row < ROWS; row++) {
      int64_t at = t % 33 * ROWS + row;
      p[at] = 0;
      if (!all[t][row].valid) continue;
      index[n] = at;
      value[n] = (double)draw(400) / 100;
      p[at] = pow(value[n++] + 0.01, 0.7);
      least = p[at] < least ? p[at] : least;
    }
  peri_tensor *where = tensor(PERI_I64, 1, &n, index), *what = tensor(PERI_F64, 1, &n, value);
  assert_int_equal(peri_replay_prioritise(r, where, what), PERI_OK);
  count_draws(r, NOUT + 1, 3000, count);
  double chi = chi_square(SIZE, count, p, &df);
  assert_true(chi < df + 4 * sqrt(2 * df)); /* less than random: it is drawn from equal parts */
  peri_tensor *out[NOUT + 1] = { NULL };
  assert_int_equal(peri_replay_sample(r, 64, 0.4, NOUT + 1, out), PERI_OK);
  for (int i = 0; i < 64; i++)
    assert_true(fabs(AT(out[NOUT], float, i) - pow(p[AT(out[INDEX], int64_t, i)] / least, -0.4)) <
                1e-6);
  drop(NOUT + 1, out);
  peri_release(where);
  peri_release(what);
  peri_replay_close(r);
}

static void a_new_step_has_the_largest_priority_there_ever_was (void **state) {
  (void)state;
  make_history(7, 0, 0, 0);
  peri_replay_options o = options(4, 1);
  o.prioritised = true;
  o.alpha = 1;
  o.epsilon = 1;
  peri_replay *r = filled(&o, 4);
  int64_t n = 2, index[] = { 3, 4 };
  float value[] = { 6, 0 };
  peri_tensor *where = tensor(PERI_I64, 1, &n, index), *what = tensor(PERI_F32, 1, &n, value);
  assert_int_equal(peri_replay_prioritise(r, where, what), PERI_OK);
  assert_int_equal(add(r, 4), PERI_OK); /* positions 0 to 2 */
  const char *name;
  peri_tensor *t;
  for (int i = 0; peri_replay_state(r, i, &name, &t) == PERI_OK && t; i++) {
    if (strcmp(name, "priority") == 0) {
      assert_true(AT(t, double, 0) == 7 && AT(t, double, 2) == 7);
      assert_true(AT(t, double, 3) == 7 && AT(t, double, 4) == 1 && AT(t, double, 5) == 1);
    }
    peri_release(t);
  }
  peri_release(where);
  peri_release(what);
  peri_replay_close(r);
}

/* ---- the same again ---- */

static bool equal (int n, peri_tensor *const *a, peri_tensor *const *b) {
  for (int i = 0; i < n; i++)
    if (peri_nbytes(a[i]) != peri_nbytes(b[i]) ||
        memcmp(peri_data(a[i]), peri_data(b[i]), peri_nbytes(a[i])) != 0)
      return false;
  return true;
}

static void a_restored_buffer_goes_on_as_the_first_would (void **state) {
  (void)state;
  for (int k = 0; k < 6; k++) {
    make_history((unsigned)k, 6, k % 2 ? 8 : 0, k % 3 ? 7 : 0);
    peri_replay_options o = options(20, 1 + k);
    o.prioritised = k % 2;
    o.seeded = true;
    o.seed = 9;
    int steps = k == 0 ? 0 : k < 3 ? 13 : 57, n = 0;
    peri_replay *a = filled(&o, steps), *b = filled(&o, 31);
    const char *names[16];
    peri_tensor *t[16], *x[NOUT + 1] = { NULL }, *y[NOUT + 1] = { NULL };
    if (steps) assert_int_equal(peri_replay_sample(a, 5, 1, NOUT + o.prioritised, x), PERI_OK);
    drop(NOUT + 1, x);
    while (peri_replay_state(a, n, &names[n], &t[n]) == PERI_OK && t[n]) n++;
    assert_int_equal(peri_replay_restore(b, n, names, t), PERI_OK);
    drop(n, t);
    for (int step = steps; step < steps + 50; step++) {
      assert_int_equal(add(a, step), PERI_OK);
      assert_int_equal(add(b, step), PERI_OK);
      assert_int_equal(peri_replay_sample(a, 20, 0.5, NOUT + o.prioritised, x), PERI_OK);
      assert_int_equal(peri_replay_sample(b, 20, 0.5, NOUT + o.prioritised, y), PERI_OK);
      assert_true(equal(NOUT + o.prioritised, x, y));
      same_throughout(b, &o, step + 1);
    }
    assert_int_equal(peri_replay_breaks(a), peri_replay_breaks(b));
    drop(NOUT + 1, x);
    drop(NOUT + 1, y);
    peri_replay_close(a);
    peri_replay_close(b);
  }
}

static void a_state_that_does_not_fit_changes_nothing (void **state) {
  (void)state;
  make_history(1, 6, 0, 0);
  peri_replay_options o = options(20, 1), other = options(21, 1);
  peri_replay *a = filled(&o, 30), *b = filled(&other, 30);
  const char *names[16];
  peri_tensor *t[16], *kept;
  int n = 0;
  while (peri_replay_state(a, n, &names[n], &t[n]) == PERI_OK && t[n]) n++;
  want_failure(C, peri_replay_restore(b, n, names, t), PERI_ESHAPE,
               "the state is of 20 steps of 3 rows, the buffer has 21 of 3");
  want_failure(C, peri_replay_restore(a, n - 1, names, t), PERI_EFORMAT, "it has no cursor");
  want_failure(C, peri_replay_restore(a, n - 1, names + 1, t + 1), PERI_EINVAL,
               "the state has no field.obs");
  kept = t[0];
  t[0] = t[1];
  want_failure(C, peri_replay_restore(a, n, names, t), PERI_ESHAPE,
               "field.obs is f32 (3, 2), the buffer's is f32 (20, 3, 2)");
  t[0] = kept;
  for (int i = 0; i < n;
       i++) { /* every byte of what describes the ring, changed: refused or harmless */
    if (strcmp(names[i], "flags") != 0 && strcmp(names[i], "cursor") != 0) continue;
    kept = t[i];
    for (size_t at = 0; at < peri_nbytes(kept); at++) {
      peri_tensor *changed =
          tensor(peri_dtype_of(kept), peri_ndim(kept), peri_shape(kept), peri_data(kept));
      ((unsigned char *)peri_data(changed))[at] ^= 0x5a;
      t[i] = changed;
      peri_status s = peri_replay_restore(b, n, names, t);
      assert_int_not_equal(s, PERI_OK);
      s = peri_replay_restore(a, n, names, t);
      assert_true(s == PERI_OK || s == PERI_EFORMAT || s == PERI_ESHAPE);
      peri_release(changed);
    }
    t[i] = kept;
  }
  same_throughout(b, &other, 30);
  drop(n, t);
  peri_replay_close(a);
  peri_replay_close(b);
}

static void threads_change_nothing (void **state) {
  (void)state;
  peri_ctx *counted = C;
  uint64_t sums[2] = { 0 };
  for (int k = 0; k < 2; k++) {
    peri_options with;
    peri_options_init(&with);
    with.threads = k == 0 ? 1 : 4;
    assert_int_equal(peri_open(&with, &C), PERI_OK);
    const peri_field pixels = {
      .name = "obs", .dtype = PERI_U8, .role = PERI_FIELD_OBSERVED, .ndim = 2, .shape = { 84, 84 }
    };
    peri_replay_options o;
    peri_replay_options_init(&o);
    o.capacity = 50, o.nfields = 1, o.fields = &pixels, o.seeded = true, o.n_step = 3;
    peri_replay *r = NULL;
    assert_int_equal(peri_replay_open(C, &o, &r), PERI_OK);
    const int64_t shape[] = { 84, 84 };
    unsigned char picture[2][84 * 84] = { { 0 } };
    for (int t = 0; t < 70; t++) {
      memset(picture[1], t, sizeof picture[1]);
      bool over = t % 9 == 0, no = false;
      float reward = (float)t;
      peri_tensor *in[6] = {
        tensor(PERI_U8, 2, shape, picture[0]), tensor(PERI_U8, 2, shape, picture[1]),
        tensor(PERI_F32, 0, NULL, &reward),    tensor(PERI_BOOL, 0, NULL, &over),
        tensor(PERI_BOOL, 0, NULL, &no),       NULL
      };
      assert_int_equal(peri_replay_add(r, 6, in), PERI_OK);
      drop(6, in);
      memcpy(picture[0], picture[1], sizeof picture[0]);
    }
    peri_tensor *out[7] = { NULL };
    assert_int_equal(peri_replay_sample(r, 256, 1, 7, out), PERI_OK);
    for (int i = 0; i < 7; i++)
      for (size_t at = 0; at < peri_nbytes(out[i]); at++)
        sums[k] = sums[k] * 31 + ((unsigned char *)peri_data(out[i]))[at];
    drop(7, out);
    peri_replay_close(r);
    peri_close(C);
  }
  assert_true(sums[0] == sums[1]);
  C = counted;
}

/* ---- misuse, memory ---- */

static void misuse_is_named (void **state) {
  (void)state;
  make_history(1, 6, 0, 0);
  peri_replay_options o = options(20, 1);
  peri_replay *r = filled(&o, 0), *none = NULL;
  peri_tensor *out[NOUT + 1] = { NULL };
  want_failure(C, peri_replay_sample(r, 4, 1, NOUT, out), PERI_EINVAL, "the buffer is empty");
  assert_int_equal(add(r, 0), PERI_OK);
  want_failure(C, peri_replay_sample(r, 0, 1, NOUT, out), PERI_EINVAL, "a sample of 0");
  want_failure(C, peri_replay_sample(r, 4, 2, NOUT, out), PERI_EINVAL, "beta is 2");
  want_failure(C, peri_replay_sample(r, 4, 1, 3, out), PERI_EINVAL,
               "3 outputs are wanted, there are 9");
  const int64_t three = 3, four = 4;
  int64_t far[] = { 0, 3, 1 };
  float worse[] = { 1, -2, NAN };
  peri_tensor *index = tensor(PERI_I64, 1, &three, far),
              *priority = tensor(PERI_F32, 1, &three, worse);
  want_failure(C, peri_replay_gather(r, index, NOUT, out), PERI_EINVAL,
               "index 3 at position 1 is out of range: the buffer holds 3");
  want_failure(C, peri_replay_prioritise(r, index, priority), PERI_EINVAL, "has no priorities");
  peri_replay_close(r);

  o.prioritised = true;
  r = filled(&o, 2);
  want_failure(C, peri_replay_prioritise(r, index, priority), PERI_EINVAL,
               "the priority at position 1 (index 3) is -2");
  ((float *)peri_data(priority))[1] = 2;
  want_failure(C, peri_replay_prioritise(r, index, priority), PERI_EINVAL,
               "the priority at position 2 (index 1) is NaN");
  float wide[8] = { 0 };
  peri_tensor *four_wide = tensor(PERI_F32, 1, &four, wide);
  want_failure(C, peri_replay_prioritise(r, index, four_wide), PERI_ESHAPE,
               "priority has shape (4), the buffer's is (3)");
  out[REWARD] = four_wide; /* to be written into */
  want_failure(C, peri_replay_sample(r, 3, 1, NOUT + 1, out), PERI_ESHAPE,
               "reward is written into: it is f32 (4), f32 (3) is needed");
  assert_null(out[OBS]);
  assert_int_equal(peri_replay_sample(r, 4, 1, NOUT + 1, out), PERI_OK);
  assert_ptr_equal(out[REWARD], four_wide);
  drop(NOUT + 1, out);
  peri_release(index);
  peri_release(priority);
  peri_replay_close(r);

  peri_field twice[] = { { .name = "obs" }, { .name = "obs" } };
  o.fields = twice, o.nfields = 2;
  want_failure(C, peri_replay_open(C, &o, &none), PERI_EINVAL, "field obs is given twice");
  twice[1].name = "reward";
  want_failure(C, peri_replay_open(C, &o, &none), PERI_EINVAL,
               "field reward: the buffer has that name");
  twice[1].name = "next_obs", twice[0].role = PERI_FIELD_OBSERVED;
  want_failure(C, peri_replay_open(C, &o, &none), PERI_EINVAL,
               "field next_obs: the buffer has that name");
  twice[1].name = "a b";
  want_failure(C, peri_replay_open(C, &o, &none), PERI_EINVAL, "'a b' is no name of a field");
  twice[1].name = "b", twice[1].dtype = PERI_Q8_0;
  want_failure(C, peri_replay_open(C, &o, &none), PERI_EDTYPE, "field b: dtype q8_0");
  o = options(INT64_C(1) << 40, 1);
  o.rows = INT64_C(1) << 31;
  want_failure(C, peri_replay_open(C, &o, &none), PERI_ESHAPE, "overflow the size in bytes");
  assert_null(none);
}

static peri_status some_steps (void *ud) {
  peri_replay *r = NULL;
  peri_tensor *out[NOUT + 1] = { NULL };
  const peri_replay_options *o = (const peri_replay_options *)ud;
  peri_status s = peri_replay_open(C, o, &r);
  int64_t n = 4;
  for (int t = 0; t < 30 && s == PERI_OK; t++) { /* add() asserts that its own tensors are there */
    float z[8] = { (float)t };
    bool over[4] = { true, true, true, true };
    peri_tensor *in[6] = { NULL };
    if ((s = peri_from(C, PERI_F32, 1, &n, z, &in[0])) == PERI_OK &&
        (s = peri_from(C, PERI_F32, 1, &n, z + 1, &in[1])) == PERI_OK &&
        (s = peri_from(C, PERI_F32, 1, &n, z, &in[2])) == PERI_OK &&
        (s = peri_from(C, PERI_BOOL, 1, &n, over, &in[3])) == PERI_OK) {
      in[4] = peri_retain(in[3]);
      s = peri_replay_add(r, 6, in);
    }
    drop(6, in);
  }
  if (s == PERI_OK) s = peri_replay_sequences(r, 5, 3, 1, 1, 9, out);
  drop(9, out);
  peri_replay_close(r);
  return s;
}

static void no_memory_leaves_nothing_behind (void **state) {
  (void)state;
  const peri_field field = { .name = "x", .dtype = PERI_F32, .role = PERI_FIELD_OBSERVED };
  peri_replay_options o = options(10, 3);
  o.rows = 4, o.nfields = 1, o.fields = &field, o.prioritised = true;
  fail_every_allocation(C, &H, false, some_steps, &o);
  o.capacity = INT64_C(1) << 33;
  peri_replay *none = NULL;
  H.limit = 1 << 24;
  want_failure(C, peri_replay_open(C, &o, &none), PERI_ENOMEM, "8589934592 steps of 4 rows need ");
  H.limit = 0;
}

/* ---- rollouts ---- */

static void an_epoch_visits_every_step_once (void **state) {
  (void)state;
  enum { T = 6, N = 4 };
  const peri_field fields[] = {
    { .name = "x", .dtype = PERI_I64 },
    { .name = "two", .dtype = PERI_F32, .ndim = 1, .shape = { 2 } },
    { .name = "h", .dtype = PERI_I64, .role = PERI_FIELD_START },
  };
  peri_rollout *r = NULL;
  assert_int_equal(peri_rollout_open(C, T, N, 3, fields, &r), PERI_OK);
  const int64_t shape[] = { N, 2 };
  for (int64_t t = 0; t < T; t++) {
    int64_t x[N], h[N] = { 50, 51, 52, 53 };
    float two[N][2];
    for (int i = 0; i < N; i++) x[i] = t * N + i, two[i][0] = (float)x[i], two[i][1] = -two[i][0];
    peri_tensor *in[3] = { tensor(PERI_I64, 1, shape, x), tensor(PERI_F32, 2, shape, two),
                           t == 0 ? tensor(PERI_I64, 1, shape, h) : NULL };
    assert_int_equal(peri_rollout_set(r, t, 3, in), PERI_OK);
    want_failure(C, peri_rollout_set(r, T, 3, in), PERI_EINVAL,
                 "step 6 is out of range: there are 6");
    drop(3, in);
  }
  for (int whole = 0; whole < 2; whole++) {
    int64_t n = whole ? N : T * N, seen[T * N] = { 0 }, line = whole ? T : 1, moved = 0;
    peri_tensor *order = NULL, *out[3] = { NULL };
    assert_int_equal(peri_rollout_shuffle(r, whole, 1, 3, &order), PERI_OK);
    for (int64_t at = 0; at < n; at += 3) {
      int64_t count = n - at < 3 ? n - at : 3;
      assert_int_equal(peri_rollout_batch(r, whole, order, at, count, 3, out), PERI_OK);
      assert_int_equal(out[2] != NULL, whole);
      for (int64_t t = 0; t < line; t++)
        for (int64_t k = 0; k < count; k++) {
          int64_t x = AT(out[0], int64_t, t * count + k);
          assert_int_equal(x, AT(order, int64_t, at + k) + (whole ? t * N : 0));
          assert_true(AT(out[1], float, 2 * (t * count + k) + 1) == (float)-x);
          if (whole) assert_int_equal(AT(out[2], int64_t, k), 50 + x % N);
          seen[x]++;
          moved += x != at + k;
        }
      drop(3, out);
    }
    for (int i = 0; i < T * N; i++) assert_int_equal(seen[i], 1);
    assert_true(moved > 0);
    want_failure(C, peri_rollout_batch(r, whole, order, n - 1, 2, 3, out), PERI_EINVAL,
                 "are not in a permutation");
    peri_release(order);
  }
  peri_rollout_close(r);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    TEST(what_is_drawn_is_what_was_added),
    TEST(breaks_are_counted),
    TEST(a_sequence_stays_in_its_episode),
    TEST(every_valid_step_is_drawn_as_often),
    TEST(priorities_are_proportions),
    TEST(a_new_step_has_the_largest_priority_there_ever_was),
    TEST(a_restored_buffer_goes_on_as_the_first_would),
    TEST(a_state_that_does_not_fit_changes_nothing),
    TEST(threads_change_nothing),
    TEST(misuse_is_named),
    TEST(no_memory_leaves_nothing_behind),
    TEST(an_epoch_visits_every_step_once),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
