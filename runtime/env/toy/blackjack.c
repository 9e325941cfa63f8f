/*
** blackjack.c - Blackjack-v1: cards from an endless deck against a dealer who hits below 17 (Sutton
** and Barto, example 5.1), as Gymnasium's blackjack.py, whose draws for pictures are made, too.
*/
#include <stdio.h>

#include "env/options.h"

struct hand {
  int32_t sum, cards;
  bool ace, natural;
}; /* aces count 1 in sum */

struct game {
  struct hand player, dealer;
  int32_t up, suit, face; /* the dealer's open card; face: 0 none, or J, Q, K from 1 on */
  int32_t over;           /* the dealer's hand is open */
};

struct shared {
  bool natural, sab;
};

static const peri_env_option options[] = {
  { .name = "natural", .doc = "1.5 for a win with the first two cards, without sab", .high = 1 },
  { .name = "sab",
    .doc = "Sutton and Barto's rules: a natural wins unless the dealer has one",
    .value = 1,
    .high = 1 },
};

enum { SUMS = 32, CARDS = 11, VIEWS = SUMS * CARDS * 2 };

static peri_status configure (void *ud, const peri_env_args *args, peri_env_spec *spec) {
  (void)ud;
  static const int64_t nvec[] = { SUMS, CARDS, 2 };
  struct shared *s = peri_env_alloc(args, sizeof *s);
  if (!s) return PERI_ENOMEM;
  TRY(env_flag(args, "natural", &s->natural));
  TRY(env_flag(args, "sab", &s->sab));
  spec->obs = peri_space_multi_discrete(3, nvec);
  spec->action = peri_space_discrete(2);
  spec->state_bytes = sizeof(struct game);
  spec->shared = s;
  return PERI_OK;
}

static bool usable (const struct hand *h) { return h->ace && h->sum + 10 <= 21; }
static int value (const struct hand *h) { return h->sum + (usable(h) ? 10 : 0); }
static int score (const struct hand *h) { return value(h) > 21 ? 0 : value(h); }

static void add (struct hand *h, int card) {
  h->sum += card;
  h->cards++;
  h->ace |= card == 1;
  h->natural = h->cards == 2 && h->ace && h->sum == 11;
}

static int draw (peri_pcg64 *rng) {
  int64_t card = 1 + peri_pcg64_integer(rng, 13);
  return card > 10 ? 10 : (int)card;
}

static void observe (const struct game *g, int64_t *obs) {
  obs[0] = value(&g->player);
  obs[1] = g->up;
  obs[2] = usable(&g->player);
}

static peri_status reset (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  (void)shared;
  struct game *g = state;
  *g = (struct game){ .up = draw(rng) };
  add(&g->dealer, g->up);
  add(&g->dealer, draw(rng));
  add(&g->player, draw(rng));
  add(&g->player, draw(rng));
  g->suit = (int32_t)peri_pcg64_integer(rng, 4);
  if (g->up == 10) g->face = 1 + (int32_t)peri_pcg64_integer(rng, 3);
  observe(g, io->obs);
  return PERI_OK;
}

/* The reward of a player who sticks. */
static double outcome (const struct shared *s, const struct hand *player,
                       const struct hand *dealer) {
  int mine = score(player), theirs = score(dealer);
  double reward = (mine > theirs) - (mine < theirs);
  if (s->sab && player->natural && !dealer->natural) return 1;
  if (!s->sab && s->natural && player->natural && reward == 1) return 1.5;
  return reward;
}

static peri_status step (const void *shared, void *state, peri_pcg64 *rng, const peri_env_io *io) {
  struct game *g = state;
  if (*(const int64_t *)io->action == 1) {
    add(&g->player, draw(rng));
    *io->terminated = value(&g->player) > 21;
    *io->reward = *io->terminated ? -1 : 0;
  } else {
    while (value(&g->dealer) < 17) add(&g->dealer, draw(rng));
    *io->terminated = 1;
    *io->reward = outcome(shared, &g->player, &g->dealer);
  }
  g->over = *io->terminated;
  observe(g, io->obs);
  return PERI_OK;
}

/* ---- the model: states are what is observed, (sum * 11 + open card) * 2 + usable ace, and as many
** again for a hand of two cards that is a natural ---- */

static int64_t view (const struct hand *h, int up) {
  return ((int64_t)value(h) * CARDS + up) * 2 + usable(h) + (h->natural ? VIEWS : 0);
}

struct outcomes { /* those with one next state and reward are one */
  peri_env_outcome *out;
  int n, max;
};

static void put (struct outcomes *o, double p, double reward, int64_t next, bool terminated) {
  for (int i = 0; i < o->n && i < o->max; i++)
    if (o->out[i].next == next && o->out[i].reward == reward &&
        o->out[i].terminated == terminated) {
      o->out[i].probability += p;
      return;
    }
  if (o->n < o->max) o->out[o->n] = (peri_env_outcome){ p, reward, next, terminated };
  o->n++;
}

static double chance (int card) { return (card == 10 ? 4 : 1) / 13.0; }

static void dealer_draws (const struct shared *s, const struct hand *player, struct hand dealer,
                          double p, int64_t state, struct outcomes *o) {
  if (dealer.cards >= 2 && value(&dealer) >= 17) {
    put(o, p, outcome(s, player, &dealer), state, true);
    return;
  }
  for (int card = 1; card <= 10; card++) {
    struct hand more = dealer;
    add(&more, card);
    dealer_draws(s, player, more, p * chance(card), state, o);
  }
}

static void first_states (struct outcomes *o) {
  for (int up = 1; up <= 10; up++)
    for (int a = 1; a <= 10; a++)
      for (int b = 1; b <= 10; b++) {
        struct hand h = { 0 };
        add(&h, a);
        add(&h, b);
        put(o, chance(up) * chance(a) * chance(b), 0, view(&h, up), false);
      }
}

static int model (const void *shared, int64_t state, int64_t action, int max,
                  peri_env_outcome *out) {
  enum { MOST = 512 }; /* first states are 270 */
  peri_env_outcome found[MOST];
  struct outcomes o = { found, 0, MOST };
  if (state < -1 || state >= 2 * VIEWS || action < 0 || action > 1) return -1;
  int64_t seen = state % VIEWS;
  int sum = (int)(seen / 2 / CARDS), up = (int)(seen / 2 % CARDS);
  bool ace = seen % 2;
  struct hand player = { sum - (ace ? 10 : 0), 3, ace, state >= VIEWS };
  if (state == -1)
    first_states(&o);
  else if (up == 0 || sum < 4 || sum > 21 || (ace && sum < 12) ||
           (player.natural && !(ace && sum == 21)))
    put(&o, 1, 0, state, true); /* never seen, or over */
  else if (action == 0) {
    struct hand dealer = { 0 };
    add(&dealer, up);
    dealer_draws(shared, &player, dealer, 1, state, &o);
  } else
    for (int card = 1; card <= 10; card++) {
      struct hand more = player;
      more.cards = 2; /* what is added is the third card at least */
      add(&more, card);
      bool bust = value(&more) > 21;
      put(&o, chance(card), bust ? -1 : 0, bust ? state : view(&more, up), bust);
    }
  for (int i = 0; i < o.n && i < max; i++) out[i] = found[i];
  return o.n;
}

static const char *card_name (int card, int face) {
  static const char *const names[] = { "?", "A", "2", "3", "4", "5", "6", "7", "8", "9", "10" };
  static const char *const faces[] = { "10", "J", "Q", "K" };
  return card == 10 ? faces[face] : names[card];
}

static peri_status text (const void *shared, const void *state, char *out, size_t size) {
  (void)shared;
  const struct game *g = state;
  char dealer[24] = "";
  if (g->over) snprintf(dealer, sizeof dealer, ", in all %d", value(&g->dealer));
  int n =
      snprintf(out, size, "dealer shows %s of %s%s\nplayer has %d%s\n", card_name(g->up, g->face),
               (const char *const[]){ "clubs", "diamonds", "hearts", "spades" }[g->suit], dealer,
               value(&g->player), usable(&g->player) ? " with a usable ace" : "");
  return n > 0 && (size_t)n < size ? PERI_OK : PERI_EINVAL;
}

static void draw_card (peri_frame *frame, double x, double y, const char *name, int suit) {
  static const char *const letters[] = { "C", "D", "H", "S" };
  peri_frame_rect(frame, x, y, 90, 126, 0x404040);
  peri_frame_rect(frame, x + 2, y + 2, 86, 122, name ? 0xffffff : 0x4d7fcc);
  if (!name) return;
  uint32_t ink = suit == 1 || suit == 2 ? 0xc0392b : 0x202020;
  peri_frame_label(frame, x + 45, y + 46, 44, name, ink);
  peri_frame_label(frame, x + 45, y + 94, 28, letters[suit], ink);
}

static peri_status render (const void *shared, const void *state, peri_frame *frame) {
  (void)shared;
  const struct game *g = state;
  char line[64];
  peri_frame_size(frame, 384, 376);
  peri_frame_background(frame, 0xc4d89e);
  snprintf(line, sizeof line, g->over ? "dealer %d" : "dealer", value(&g->dealer));
  peri_frame_label(frame, 192, 34, 24, line, 0x202020);
  draw_card(frame, 92, 64, card_name(g->up, g->face), g->suit);
  draw_card(frame, 202, 64, NULL, 0);
  peri_frame_label(frame, 192, 228, 24, "player", 0x202020);
  snprintf(line, sizeof line, "%d", value(&g->player));
  peri_frame_label(frame, 192, 284, 64, line, 0x202020);
  if (usable(&g->player)) peri_frame_label(frame, 192, 344, 20, "usable ace", 0x202020);
  return peri_frame_check(frame);
}

const peri_env_def peri__env_blackjack = {
  .struct_size = sizeof(peri_env_def),
  .id = "Blackjack-v1",
  .doc = "Stick (0) or hit (1) against a dealer who hits below 17; 1 for a win, -1 for a loss.",
  .noptions = sizeof options / sizeof *options,
  .option = options,
  .configure = configure,
  .reset = reset,
  .step = step,
  .render = render,
  .text = text,
  .model = model,
};
