/*
** taxi.c - Taxi-v4: fetch a passenger and bring them to their stop (Dietterich, 2000), as
** Gymnasium's taxi.py, in dry and in rainy weather, with steady and with fickle passengers.
*/
#include <stdio.h>
#include <string.h>

#include "env/options.h"
#include "env/toy/table.h"

enum { SIDE = 5, STOPS = 4, IN_TAXI = 4, STATES = SIDE * SIDE * (STOPS + 1) * STOPS, ACTIONS = 6 };
enum { SOUTH, NORTH, EAST, WEST, PICKUP, DROPOFF };
static const char map[] = "+---------+\n"
                          "|R: | : :G|\n"
                          "| : | : : |\n"
                          "| : : : : |\n"
                          "| | : | : |\n"
                          "|Y| : |B: |\n"
                          "+---------+\n";
enum { LINE = 12 };
static const int stop_cell[STOPS] = { 0, 4, 20, 23 };

struct place {
  int row, column, passenger, stop;
};

struct shared {
  struct peri__table *table;
  bool fickle;
  double fickle_p;
};

struct taxi {
  int64_t state;
  int32_t unsure;      /* a fickle passenger will change their mind on the first move */
  int32_t last_action; /* -1: none */
};

static const peri_env_option options[] = {
  { .name = "is_rainy", .doc = "moves may go astray to either side", .high = 1 },
  { .name = "fickle_passenger",
    .doc = "the passenger may choose another stop on the first move",
    .high = 1 },
  { .name = "rainy_probability",
    .doc = "probability that a move in the rain goes as intended",
    .value = 0.8,
    .high = 1 },
  { .name = "fickle_probability",
    .doc = "probability that a passenger is fickle",
    .value = 0.3,
    .high = 1 },
};

static int64_t encode (struct place p) {
  return ((p.row * SIDE + p.column) * (STOPS + 1) + p.passenger) * STOPS + p.stop;
}

static struct place decode (int64_t s) {
  int64_t cell = s / (STOPS * (STOPS + 1));
  return (struct place){ (int)(cell / SIDE), (int)(cell % SIDE), (int)(s / STOPS % (STOPS + 1)),
                         (int)(s % STOPS) };
}

static int stop_at (struct place p) { /* the stop where the taxi is, or -1 */
  for (int i = 0; i < STOPS; i++)
    if (stop_cell[i] == p.row * SIDE + p.column) return i;
  return -1;
}

/* Whether walls and the edge let the taxi move. */
static bool passable (struct place p, int move) {
  const char *east = map + (p.row + 1) * LINE + 2 * p.column + 2;
  switch (move) {
  case SOUTH: return p.row < SIDE - 1;
  case NORTH: return p.row > 0;
  case EAST: return *east == ':';
  default: return east[-2] == ':';
  }
}

static struct place moved (struct place p, int move) {
  if (!passable(p, move)) return p;
  if (move == SOUTH) p.row++;
  if (move == NORTH) p.row--;
  if (move == EAST) p.column++;
  if (move == WEST) p.column--;
  return p;
}

static void add_stop_action (struct peri__table *t, int64_t s, int action) {
  struct place p = decode(s);
  int here = stop_at(p);
  double reward = -10;
  bool delivered = false;
  if (action == PICKUP && p.passenger < IN_TAXI && p.passenger == here) {
    p.passenger = IN_TAXI;
    reward = -1;
  } else if (action == DROPOFF && p.passenger == IN_TAXI && here >= 0) {
    delivered = here == p.stop;
    p.passenger = here;
    reward = delivered ? 20 : -1;
  }
  peri__table_add(t, s, action, 1, encode(p), reward, delivered);
}

static void add_move (struct peri__table *t, int64_t s, int action, bool rainy, double p) {
  static const int left[] = { EAST, WEST, NORTH, SOUTH }, right[] = { WEST, EAST, SOUTH, NORTH };
  struct place at = decode(s);
  bool free = passable(at, action); /* else there is no drift either */
  peri__table_add(t, s, action, rainy ? p : 1, encode(moved(at, action)), -1, false);
  if (!rainy) return;
  double aside = (1.0 - p) / 2.0;
  peri__table_add(t, s, action, aside, encode(free ? moved(at, left[action]) : at), -1, false);
  peri__table_add(t, s, action, aside, encode(free ? moved(at, right[action]) : at), -1, false);
}

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  bool rainy;
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  TRY(env_flag(args, "is_rainy", &rainy));
  TRY(env_flag(args, "fickle_passenger", &s->fickle));
  s->fickle_p = peri_env_number(args, "fickle_probability");
  s->table = peri__table_new(args, STATES, ACTIONS, 3);
  if (!s->table) return PERI_ENOMEM;
  double first[STATES];
  for (int64_t i = 0; i < STATES; i++) {
    struct place p = decode(i);
    first[i] = p.passenger < IN_TAXI && p.passenger != p.stop;
    for (int a = SOUTH; a <= WEST; a++)
      add_move(s->table, i, a, rainy, peri_env_number(args, "rainy_probability"));
    for (int a = PICKUP; a <= DROPOFF; a++) add_stop_action(s->table, i, a);
  }
  peri__table_first(s->table, first);
  spec->obs = peri_space_discrete(STATES);
  spec->action = peri_space_discrete(ACTIONS);
  spec->max_steps = 200;
  spec->reward_threshold = 8;
  spec->state_bytes = sizeof(struct taxi);
  spec->shared = s;
  return PERI_OK;
}

/* Actions that change the state. */
static void observe (int64_t state, const peri_env_io *io) {
  struct place p = decode(state);
  *(int64_t *)io->obs = state;
  for (int a = SOUTH; a <= WEST; a++) io->mask[a] = passable(p, a);
  io->mask[PICKUP] = p.passenger < IN_TAXI && stop_at(p) == p.passenger;
  io->mask[DROPOFF] = p.passenger == IN_TAXI && stop_at(p) >= 0;
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct taxi *t = state;
  t->state = peri__table_start(s->table, rng);
  t->unsure = s->fickle && peri_pcg64_double(rng) < s->fickle_p;
  t->last_action = -1;
  observe(t->state, io);
  return PERI_OK;
}

/* Whether from -> to is the move on which an unsure passenger changes their mind. */
static bool changes_mind (int64_t from, int64_t to) {
  return decode(from).passenger == IN_TAXI &&
         from / (STOPS * (STOPS + 1)) != to / (STOPS * (STOPS + 1));
}

/* The same state with the i-th of the other stops. */
static int64_t with_other_stop (int64_t state, int64_t i) {
  struct place p = decode(state);
  p.stop = (int)(i < p.stop ? i : i + 1);
  return encode(p);
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  const struct shared *s = shared;
  struct taxi *t = state;
  int64_t action = *(const int64_t *)io->action;
  const peri_env_outcome *o = peri__table_draw(s->table, t->state, action, rng);
  int64_t next = o->next;
  if (t->unsure && changes_mind(t->state, next)) {
    t->unsure = 0;
    next = with_other_stop(next, peri_pcg64_integer(rng, STOPS - 1));
  }
  t->state = next;
  t->last_action = (int32_t)action;
  *io->reward = o->reward;
  *io->terminated = o->terminated;
  observe(next, io);
  return PERI_OK;
}

/* With fickle passengers a state of the model is the observed one, and 500 more while they are
** unsure. */
static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  const struct shared *s = shared;
  peri_env_outcome found[STATES], *at = found;
  if (state >= STATES * (s->fickle ? 2 : 1)) return -1;
  bool unsure = state >= STATES;
  int n = peri__table_model(s->table, unsure ? state - STATES : state, action, STATES, found),
      m = 0;
  if (n < 0) return n;
#define OUTCOME(p, to)                                                             \
  do {                                                                             \
    if (m < max) out[m] = (peri_env_outcome){ p, at->reward, to, at->terminated }; \
    m++;                                                                           \
  } while (0)
  for (; at < found + n; at++) {
    if (state == -1 && s->fickle) {
      if (s->fickle_p < 1) OUTCOME(at->probability * (1 - s->fickle_p), at->next);
      if (s->fickle_p > 0) OUTCOME(at->probability * s->fickle_p, at->next + STATES);
    } else if (unsure && changes_mind(state - STATES, at->next))
      for (int i = 0; i < STOPS - 1; i++)
        OUTCOME(at->probability / (STOPS - 1), with_other_stop(at->next, i));
    else
      OUTCOME(at->probability, at->next + (unsure ? STATES : 0));
  }
#undef OUTCOME
  return m;
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  static const char *const action[] = { "south", "north", "east", "west", "pickup", "dropoff" };
  static const char stops[] = "RGYB";
  const struct taxi *t = state;
  struct place p = decode(t->state);
  char picture[sizeof map];
  memcpy(picture, map, sizeof map);
  picture[(p.row + 1) * LINE + 2 * p.column + 1] = p.passenger == IN_TAXI ? 'T' : 't';
  char at[4] = "T";
  if (p.passenger < IN_TAXI) at[0] = stops[p.passenger];
  int n = snprintf(out, size, "%spassenger %s, to %c%s%s\n", picture, at, stops[p.stop],
                   t->last_action < 0 ? "" : "; last ",
                   t->last_action < 0 ? "" : action[t->last_action]);
  return n > 0 && (size_t)n < size ? PERI_OK : PERI_EINVAL;
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  enum { CELL = 80 };
  static const uint32_t colour[STOPS] = { 0xd9534f, 0x5cb85c, 0xf0c419, 0x4d7fcc };
  const struct taxi *t = state;
  struct place p = decode(t->state);
  peri_frame_size(frame, SIDE * CELL, SIDE * CELL);
  peri_frame_background(frame, 0xf4f1ea);
  for (int i = 0; i < STOPS; i++) {
    double x = stop_cell[i] % SIDE * CELL, y = stop_cell[i] / SIDE * CELL;
    peri_frame_rect(frame, x + 4, y + 4, CELL - 8, CELL - 8, colour[i]);
    if (i == p.stop) peri_frame_label(frame, x + CELL / 2, y + 20, 20, "to", 0xffffff);
  }
  for (int row = 0; row < SIDE; row++)
    for (int column = 0; column + 1 < SIDE; column++)
      if (map[(row + 1) * LINE + 2 * column + 2] == '|')
        peri_frame_rect(frame, (column + 1) * CELL - 3, row * CELL, 6, CELL, 0x404040);
  double x = (p.column + 0.5) * CELL, y = (p.row + 0.5) * CELL;
  peri_frame_rect(frame, x - 26, y - 2, 52, 22, 0xf5a623);
  peri_frame_rect(frame, x - 14, y - 16, 28, 16, 0xf5a623);
  peri_frame_circle(frame, x - 15, y + 20, 7, 0x303030);
  peri_frame_circle(frame, x + 15, y + 20, 7, 0x303030);
  if (p.passenger < IN_TAXI) {
    x = (stop_cell[p.passenger] % SIDE + 0.5) * CELL;
    y = (stop_cell[p.passenger] / SIDE + 0.5) * CELL;
    peri_frame_line(frame, x + 22, y, x + 22, y + 24, 10, 0x7b4ea3);
  } else
    y += 4;
  peri_frame_circle(frame, p.passenger < IN_TAXI ? x + 22 : x, y - 12, 8, 0x7b4ea3);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_taxi = {
  .struct_size = sizeof(peri_env_def),
  .flags = PERI_ENV_MASK,
  .id = "Taxi-v4",
  .doc = "Fetch a passenger and bring them to their stop; -1 a step, 20 for it, -10 for a mistake.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
  .model = model,
};
