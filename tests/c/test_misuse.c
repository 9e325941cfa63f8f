/*
** test_misuse.c - what a host gets wrong is answered: NULL for each pointer of each function of
** perilune.h and of the headers that it includes, tensors of another context, released tensors, indices and struct sizes out of range, a vjp
** that fails without a word. They are read themselves: a function that the table below lacks fails.
*/
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "env/env.h"
#include "headers.h"
#include "misuse_calls.h"
#include "untrusted.h"
#include "run_op.h"
#include "memory_of.h"

static heap all;
static peri_ctx *ctx, *other;
static char dir[256], path[400], spare[400];
static peri_tensor *t, *leaf, *root, *out[4], *made;
static peri_safetensors *st;
static peri_safetensors_writer *stw;
static peri_gguf *gg;
static peri_gguf_writer *ggw;
static peri_npz *npz;
static peri_lines *lines;
static peri_checkpoint *cp;
static peri_lock *lock;
static peri_tfevents *events;
static peri_tokenizer *tok;
static peri_token_stream *stream;
static peri_replay *replay, *replay2;
static peri_rollout *rollout, *rollout2;
static peri_tensor *position, *sampled[8];
static peri_gguf_value value;
static peri_frame *frame;
static peri_gif *gif;
static peri_svg *svg;
static peri_tensor *image;
static const peri_op *neg, *sum_op;
static peri_env *env;
static peri_policy *policy;

static const char *at_path (const char *name) {
  snprintf(path, sizeof path, "%s/%s", dir, name);
  return path;
}

static const char *byte_json (void **json, size_t *size) {
  peri_bpe_options o;
  peri_bpe_options_init(&o);
  assert_int_equal(peri_tokenizer_train_bpe(ctx, 0, NULL, &o, json, size), PERI_OK);
  return *json;
}

static int open_all (void **state) {
  const char *const names[] = { "a" };
  const int64_t shape[] = { 2 };
  const float data[] = { 1, 2 };
  int64_t answer = 42;
  void *json;
  size_t size;
  (void)state;
  ctx = open_counted(&all);
  assert_int_equal(peri_open(NULL, &other), PERI_OK);
  scratch_folder(dir);
  assert_int_equal(peri_from(ctx, PERI_F32, 1, shape, data, &t), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 1, shape, data, &leaf), PERI_OK);
  assert_int_equal(peri_set_requires_grad(leaf, true), PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("sum"), 1, &leaf, NULL, &root), PERI_OK);
  neg = peri_op_find("neg");
  sum_op = peri_op_find("sum");
  const peri_text_pair pair = { "k", "v" };
  assert_int_equal(peri_safetensors_save(ctx, at_path("a.st"), 1, names, &t, 1, &pair), PERI_OK);
  assert_int_equal(peri_safetensors_open(ctx, path, false, &st), PERI_OK);
  assert_int_equal(peri_npz_save(ctx, at_path("a.npz"), 1, names, &t), PERI_OK);
  assert_int_equal(peri_npz_open(ctx, path, &npz), PERI_OK);
  peri_safetensors_entry entry = { .name = "a", .dtype = PERI_F32, .ndim = 1, .shape = { 2 } };
  assert_int_equal(peri_safetensors_create(ctx, at_path("b.st"), 1, &entry, 0, NULL, &stw),
                   PERI_OK);
  assert_int_equal(peri_gguf_create(ctx, at_path("a.gguf"), &ggw), PERI_OK);
  assert_int_equal(peri_gguf_put(ggw, "n", PERI_GGUF_I32, true, 1, &answer), PERI_OK);
  assert_int_equal(peri_gguf_declare(ggw, "a", PERI_F32, 1, shape), PERI_OK);
  assert_int_equal(peri_gguf_write(ggw, t), PERI_OK);
  assert_int_equal(peri_gguf_commit(ggw), PERI_OK);
  assert_int_equal(peri_gguf_open(ctx, path, false, &gg), PERI_OK);
  value = peri_gguf_at(gg, 0);
  assert_int_equal(peri_gguf_create(ctx, at_path("b.gguf"), &ggw), PERI_OK);
  assert_int_equal(peri_file_write(ctx, at_path("a.txt"), "one\ntwo\n", 8), PERI_OK);
  assert_int_equal(peri_lines_open(ctx, path, 0, &lines), PERI_OK);
  assert_int_equal(peri_checkpoint_begin(ctx, at_path("cps"), &cp), PERI_OK);
  assert_int_equal(peri_lock_take(ctx, at_path("lock"), &lock), PERI_OK);
  assert_int_equal(peri_tfevents_open(ctx, at_path("tfevents"), &events), PERI_OK);
  byte_json(&json, &size);
  assert_int_equal(peri_tokenizer_parse(ctx, json, size, &tok), PERI_OK);
  peri_file_free(ctx, json, size);
  assert_int_equal(peri_token_stream_open(tok, false, &stream), PERI_OK);
  assert_int_equal(peri_env_make(ctx, "CartPole-v1", NULL, &env), PERI_OK);
  assert_int_equal(peri_env_reset(env, NULL, NULL), PERI_OK);
  const peri_text_pair acts = {
    "perilune.policy",
    "{\"version\":1,\"environment\":\"\",\"observation\":{\"kind\":\"box\",\"shape\":[2]},"
    "\"action\":{\"kind\":\"discrete\",\"n\":2},"
    "\"program\":[{\"op\":\"mul\",\"in\":[\"obs\",\"a\"],\"out\":[\"y\"]}],"
    "\"head\":{\"kind\":\"greedy\",\"in\":[\"y\"]}}"
  };
  assert_int_equal(peri_safetensors_save(ctx, at_path("policy"), 1, names, &t, 1, &acts), PERI_OK);
  assert_int_equal(peri_policy_load(ctx, path, &policy), PERI_OK);
  const int64_t pixels[] = { 2, 2, 3 };
  assert_int_equal(peri_frame_open(ctx, &frame), PERI_OK);
  assert_int_equal(peri_empty(ctx, PERI_U8, 3, pixels, &image), PERI_OK);
  assert_int_equal(peri_gif_create(ctx, at_path("a.gif"), 10, 0, &gif), PERI_OK);
  assert_int_equal(peri_svg_create(ctx, at_path("a.svg"), 10, 0, &svg), PERI_OK);
  const peri_field field = { .name = "a", .dtype = PERI_F32, .ndim = 1, .shape = { 2 } };
  peri_replay_options replay_options;
  peri_replay_options_init(&replay_options);
  replay_options.capacity = 4;
  replay_options.nfields = 1;
  replay_options.fields = &field;
  assert_int_equal(peri_replay_open(ctx, &replay_options, &replay), PERI_OK);
  assert_int_equal(peri_rollout_open(ctx, 1, 1, 1, &field, &rollout), PERI_OK);
  answer = 0;
  assert_int_equal(peri_from(ctx, PERI_I64, 1, (int64_t[]){ 1 }, &answer, &position), PERI_OK);
  snprintf(spare, sizeof spare, "%s/spare", dir);
  return 0;
}

static int close_all (void **state) {
  (void)state;
  peri_policy_close(policy);
  peri_env_close(env);
  peri_svg_abort(svg);
  peri_gif_abort(gif);
  peri_frame_close(frame);
  peri_release(image);
  peri_release(position);
  peri_rollout_close(rollout);
  peri_replay_close(replay);
  peri_token_stream_close(stream);
  peri_tokenizer_close(tok);
  peri_tfevents_close(events);
  peri_lock_drop(lock);
  peri_checkpoint_abort(cp);
  peri_lines_close(lines);
  peri_gguf_close(gg);
  peri_gguf_abort(ggw);
  peri_npz_close(npz);
  peri_safetensors_close(st);
  peri_safetensors_abort(stw);
  peri_release(root);
  peri_release(leaf);
  peri_release(t);
  peri_close(other);
  assert_int_equal(peri_remove_tree(ctx, dir), PERI_OK);
  close_counted(ctx, &all);
  return 0;
}

/* ---- NULL everywhere ---- */

static int which, seen;

/* The next pointer's number: in whatever order the arguments of a call are made, each has one. */
static int number (void) { return seen++; }

/* A pointer that may not be NULL; one that may. */
#define NN(p) (number() == which ? NULL : (p))
#define MAY(p) (p)

typedef enum kind { STATUS, NOTHING, NONE } kind; /* NONE: 0, false, NULL, -1 */

static long long nothing;
#define ST(f, call) { #f, #call, STATUS, f##_st },
#define VO(f, call) { #f, #call, NOTHING, f##_st },
#define NO(f, call) { #f, #call, NONE, f##_st },

static int64_t n1[1] = { 2 };
static const float floats[2];
static peri_tensor *list[1];
static peri_attr attrs[4];
static peri_arg args[2];
static double num;
static void *data;
static size_t size;
static char *names_out, buf[400];
static const char *const names[] = { "a" };
static peri_safetensors *st2;
static peri_safetensors_writer *stw2;
static peri_safetensors_entry entries[1] = { { .name = "a", .dtype = PERI_F32 } };
static const peri_text_pair pairs[1] = { { "k", "v" } };
static peri_gguf *gg2;
static peri_gguf_writer *ggw2;
static peri_gguf_cursor cursor;
static peri_gguf_value item;
static peri_gguf_text gtext;
static int64_t whole, ends[4];
static bool flag;
static peri_npz *npz2;
static peri_lines *lines2;
static const char *line;
static peri_checkpoint *cp2;
static peri_lock *lock2;
static peri_tfevents *events2;
static peri_frame *frame2;
static peri_python_options python;
static peri_gif *gif2;
static peri_svg *svg2;
static const double corners[6];
static const uint8_t pixel[3];
static peri_tokenizer *tok2;
static peri_token_stream *stream2;
static const int32_t *ids;
static const int32_t some_ids[1] = { 65 };
static int ia, ib;
static peri_text text, texts[1] = { { "ab", 2 } };
static peri_bpe_options bpe = { .struct_size = sizeof bpe, .vocab_size = 256 };
static peri_added_token added = { .struct_size = sizeof added };
static peri_memory memory = { .struct_size = sizeof memory };
static peri_profile_row row = { .struct_size = sizeof row };
static peri_alloc_fn alloc_fn;
static void *alloc_ud;
static peri_dtype dt;
static peri_ctx *ctx2;
static const uint32_t four[4];
static uint32_t words[4];
static peri_options options;
static peri_replay_options replay_options;
static peri_field fields[1] = { { .name = "a", .dtype = PERI_F32 } };
static const char *state_name;
static peri_shared *handle;
static peri_task task;
static peri_pcg64 pcg;
static peri_space box;
static peri_env_options env_options = { .struct_size = sizeof env_options, .n = 1, .threads = 1 };
static peri_env_io env_io;
static peri_env_episode episode;
static peri_env *env2;
static peri_policy *policy2;
static uint64_t env_seed;
static uint8_t env_mask[1] = { 1 };

static peri_status no_vjp (void *ud, peri_ctx *c, int nout, peri_tensor *const *gout, int nin,
                           peri_tensor **gin) {
  (void)ud, (void)c, (void)nout, (void)gout, (void)nin, (void)gin;
  return PERI_OK;
}

#define DEFINE_ST(f, call) \
  static peri_status f##_st(void) { return call; }
#define DEFINE_VO(f, call)          \
  static peri_status f##_st(void) { \
    call;                           \
    return PERI_OK;                 \
  }
#define DEFINE_NO(f, call)                 \
  static peri_status f##_st(void) {        \
    nothing = (long long)(intptr_t)(call); \
    return PERI_OK;                        \
  }
CALLS(DEFINE_ST, DEFINE_VO, DEFINE_NO)

static const struct {
  const char *name, *call;
  kind kind;
  peri_status (*fn)(void);
} calls[] = { CALLS(ST, VO, NO) };

enum { NCALLS = sizeof calls / sizeof *calls };

static int count (const char *s, const char *word) {
  int n = 0;
  for (const char *p = s; (p = strstr(p, word)) != NULL; p += strlen(word)) n++;
  return n;
}

static void null_for_any_pointer_is_answered (void **state) {
  (void)state;
  list[0] = t;
  args[0] = peri_in(t);
  args[1] = peri_out(out);
  box = peri_space_box(PERI_F32, -1, 1, 0, NULL);
  for (int i = 0; i < NCALLS; i++)
    for (which = 0; which < count(calls[i].call, "NN("); which++) {
      seen = 0;
      nothing = 0;
      snprintf(ctx->message, sizeof ctx->message, "old");
      peri_status s = calls[i].fn();
      bool said = strcmp(ctx->message, "old") == 0 || strstr(ctx->message, "NULL") != NULL;
      if (calls[i].kind == STATUS ? s != PERI_EINVAL || !said : nothing != 0 && nothing != -1)
        fail_msg("%s with pointer %d NULL: %s, %lld, %s", calls[i].name, which, peri_status_name(s),
                 nothing, ctx->message);
    }
}

/* Parameters that are pointers, but for callbacks and what is handed to them. */
static int pointers (const char *p, const char *end) {
  int n = 0, depth = 0;
  for (bool pointer = false, callback = false; p <= end; p++) {
    if (*p == '(') depth++, callback = true;
    if (*p == '*' || *p == '[') pointer = true;
    if (strncmp(p, "vjp_fn", 6) == 0) pointer = true;
    if (strncmp(p, "*ud", 3) == 0 && depth == 0) callback = p[-1] != '*';
    if (*p == ')' && p < end) depth--;
    if ((*p == ',' && depth == 0) || p == end) {
      n += pointer && !callback;
      pointer = callback = false;
    }
  }
  return n;
}

static void the_table_has_every_function_of_the_headers (void **state) {
  (void)state;
  char *s = public_headers(ctx);
  for (char *p = s; (p = strstr(p, "/*")) != NULL;) /* comments out */
    for (char *end = strstr(p, "*/") + 2; p < end; p++) *p = ' ';
  int functions = 0;
  for (char *p = s; (p = strstr(p, "PERI_API ")) != NULL; p++) {
    char *name = strstr(p, "peri_"), *open, *close;
    if (name > strchr(p, '\n') && strchr(p, ';') == NULL) break; /* the macro itself */
    open = strstr(p, " (");
    if (open == NULL || open > strchr(p, ';')) continue;
    close = strchr(p, ';');
    char *wrapped = strstr(open, "PERI_PRINTF");
    if (wrapped != NULL && wrapped < close) close = wrapped;
    while (*close != ')') close--;
    for (name = open; name[-1] == '_' || (name[-1] >= 'a' && name[-1] <= 'z') ||
                      (name[-1] >= '0' && name[-1] <= '9');)
      name--;
    int want = pointers(open + 2, close), have = -1;
    for (int i = 0; i < NCALLS; i++)
      if (strlen(calls[i].name) == (size_t)(open - name) &&
          strncmp(calls[i].name, name, (size_t)(open - name)) == 0)
        have = count(calls[i].call, "NN(") + count(calls[i].call, "MAY(");
    functions++;
    if (want > 0 && have != want)
      fail_msg("%.*s has %d pointers, the table %d", (int)(open - name), name, want, have);
  }
  free(s);
  assert_in_range(functions, 150, 400);
}

/* ---- contexts, lifetimes ---- */

static void a_tensor_of_another_context_is_refused (void **state) {
  (void)state;
  peri_tensor *foreign = NULL, *in[4], *mine[1] = { t };
  assert_int_equal(peri_from(other, PERI_F32, 1, n1, floats, &foreign), PERI_OK);
  int tried = 0;
  for (int i = 0; i < peri_op_count(); i++) { /* at each place of each op */
    const peri_op *op = peri_op_at(i);
    const char *sig = peri_op_signature(op);
    if (strchr(sig, ':') != NULL || count(sig, ",") > 3 || sig[0] == '\0') continue;
    int n = count(sig, ",") + 1;
    for (int k = 0; k < n; k++) {
      for (int j = 0; j < n; j++) in[j] = j == k ? foreign : t;
      want_failure(ctx, run_op(ctx, op, n, in, NULL, out), PERI_EINVAL, "another context");
      tried++;
    }
  }
  assert_true(tried > 60);
  in[0] = t, in[1] = foreign;
  want_failure(ctx, run_op(ctx, peri_op_find("cat"), 2, in, NULL, out), PERI_EINVAL,
               "input 1 is a tensor of another context");
  want_failure(ctx, peri_set_grad(leaf, foreign), PERI_EINVAL, "another context");
  want_failure(ctx, peri_backward(ctx, foreign, NULL, true), PERI_EINVAL, "another context");
  want_failure(ctx, peri_backward(ctx, root, foreign, true), PERI_EINVAL, "another context");
  want_failure(ctx, peri_gradients(ctx, root, NULL, 1, &foreign, false, out), PERI_EINVAL,
               "another context");
  want_failure(ctx, peri_record_custom(ctx, "c", 1, &foreign, 1, mine, no_vjp, NULL, NULL),
               PERI_EINVAL, "another context");
  want_failure(ctx, peri_record_custom(ctx, "c", 1, mine, 1, &foreign, no_vjp, NULL, NULL),
               PERI_EINVAL, "another context");
  want_failure(ctx, peri_safetensors_save(ctx, spare, 1, names, &foreign, 0, NULL), PERI_EINVAL,
               "another context");
  want_failure(ctx, peri_npz_save(ctx, spare, 1, names, &foreign), PERI_EINVAL, "another context");
  want_failure(ctx, peri_npy_save(ctx, spare, foreign), PERI_EINVAL, "another context");
  want_failure(ctx, peri_gguf_write(ggw, foreign), PERI_EINVAL, "another context");
  want_failure(ctx, peri_safetensors_write(stw, foreign), PERI_EINVAL, "another context");
  peri_release(foreign);
}

static void a_second_release_is_none (void **state) {
  (void)state;
  peri_tensor *x = NULL;
  assert_int_equal(peri_from(ctx, PERI_F32, 1, n1, floats, &x), PERI_OK);
  peri_memory before = memory_of(ctx);
  peri_release(x);
  peri_release(x);
  peri_release(x);
  assert_int_equal(memory_of(ctx).tensors, before.tensors - 1);
  want_failure(ctx, run_op(ctx, neg, 1, &x, NULL, out), PERI_EINVAL, "released before");
  want_failure(ctx, peri_backward(ctx, x, NULL, false), PERI_EINVAL, "released before");
  assert_int_equal(peri_item(x, 0, &num), PERI_EINVAL);
}

/* ---- lists, numbers, sizes ---- */

static void a_gap_in_a_list_is_named (void **state) {
  (void)state;
  static const char *const ops[] = { "cat", "stack", "einsum", "global_norm" };
  for (size_t k = 0; k < sizeof ops / sizeof *ops; k++)
    for (int gap = 0; gap < 3; gap++) {
      peri_tensor *in[3] = { t, t, t };
      peri_attr a = { .s = "i,i,i->i" };
      char want[32];
      in[gap] = NULL;
      snprintf(want, sizeof want, " %d is missing", gap);
      bool attr = strcmp(ops[k], "einsum") == 0;
      want_failure(ctx, run_op(ctx, peri_op_find(ops[k]), 3, in, attr ? &a : NULL, out),
                   PERI_EINVAL, want);
    }
  for (int gap = 0; gap < 8; gap++) { /* params, grads, m, v of two tensors each */
    peri_tensor *in[8] = { t, t, t, t, t, t, t, t };
    peri_attr a[7] = { { .f = 0.1 }, { .f = 0.9 }, { .f = 0.9 }, { .f = 1e-8 },
                       { .f = 0 },   { .i = 1 },   { .f = 1 } };
    in[gap] = NULL;
    want_failure(ctx, run_op(ctx, peri_op_find("adamw_"), 8, in, a, NULL), PERI_EINVAL,
                 "is missing");
  }
  peri_tensor *none[4] = { NULL, NULL, NULL, NULL };
  want_failure(ctx, run_op(ctx, peri_op_find("cat"), 2, none, NULL, out), PERI_EINVAL,
               "xs 0 is missing");
}

static void indices_out_of_range_are_answered (void **state) {
  (void)state;
  static const int64_t far[] = { -1, 1, 2, 1 << 20, INT64_MAX, INT64_MIN };
  for (size_t i = 0; i < sizeof far / sizeof *far; i++) {
    peri_tensor *x = NULL;
    assert_null(peri_safetensors_at(st, far[i]).name);
    assert_null(peri_safetensors_pair(st, far[i]).key);
    assert_int_equal(peri_safetensors_tensor(st, far[i], &x), PERI_EINVAL);
    assert_null(peri_gguf_at(gg, far[i]).key.s);
    assert_null(peri_gguf_entry_at(gg, far[i]).name.s);
    assert_false(peri_gguf_int(gg, &value, far[i], &whole));
    assert_false(peri_gguf_num(gg, &value, far[i], &num));
    assert_int_equal(peri_gguf_tensor(gg, far[i], &x), PERI_EINVAL);
    assert_null(peri_npz_name(npz, far[i], &size));
    assert_int_equal(peri_npz_tensor(npz, far[i], &x), PERI_EINVAL);
    assert_null(
        peri_tokenizer_token(tok, far[i] > 0 && far[i] < 256 ? 255 + far[i] : far[i], &size));
    assert_false(peri_tokenizer_is_special(tok, far[i]));
    assert_int_equal(peri_item(t, far[i] == 1 ? 2 : far[i], &num), PERI_EINVAL);
    assert_null(x);
  }
  assert_null(peri_op_at(-1));
  assert_null(peri_op_at(peri_op_count()));
  assert_int_equal(peri_tokenizer_role(tok, (peri_token_role)99), -1);
  assert_int_equal(peri_tokenizer_role(tok, (peri_token_role)-1), -1);
  assert_int_equal(peri_dtype_size((peri_dtype)-1), 0);
  assert_string_equal(peri_dtype_name((peri_dtype)99), "unknown");
  assert_string_equal(peri_status_name((peri_status)1234), "unknown");
}

static void sizes_of_structs_are_those_that_were (void **state) {
  (void)state;
  int taken = 0;
  for (uint32_t n = 0; n < 2 * sizeof(peri_options); n++) {
    peri_options o;
    peri_ctx *c = (peri_ctx *)&taken;
    peri_options_init(&o);
    o.struct_size = n;
    peri_status s = peri_open(&o, &c);
    if (n > sizeof o || n < 16 || n % 4 != 0) assert_int_equal(s, PERI_EINVAL);
    if (s != PERI_OK) {
      assert_null(c);
      continue;
    }
    taken++;
    peri_close(c);
  }
  assert_in_range(taken, 1, 9);
}

static void options_out_of_range_are_refused (void **state) {
  (void)state;
  for (int i = 0; i < 6; i++) {
    peri_options o;
    peri_ctx *c = NULL;
    peri_options_init(&o);
    if (i == 0) o.threads = -1;
    if (i == 1) o.simd = (peri_simd)99;
    if (i == 2) o.simd = (peri_simd)-1;
    if (i == 3) o.log_level = (peri_log_level)-1;
    if (i == 4) o.log_level = (peri_log_level)4;
    if (i == 5) o.threads = INT32_MIN;
    assert_true(peri_open(&o, &c) != PERI_OK);
    assert_null(c);
  }
}

static void attributes_of_no_meaning_are_refused (void **state) {
  (void)state;
  static const int64_t dtypes[] = { -2, -1, 8, 15, 24, 99, INT64_MAX, INT64_MIN, (1LL << 32) + 6 };
  for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++) {
    peri_attr a = { .i = dtypes[i] };
    want_failure(ctx, run_op(ctx, peri_op_find("to"), 1, &t, &a, out), PERI_EDTYPE,
                 "does not exist");
  }
  peri_attr shape[2] = { { .v = NULL, .n = 2 }, { .i = PERI_F32 } };
  want_failure(ctx, run_op(ctx, peri_op_find("zeros"), 0, NULL, shape, out), PERI_EINVAL,
               "shape is NULL");
  shape[0].n = -2;
  want_failure(ctx, run_op(ctx, peri_op_find("zeros"), 0, NULL, shape, out), PERI_EINVAL,
               "shape has -2 entries");
  peri_attr equation = { .s = NULL };
  want_failure(ctx, run_op(ctx, peri_op_find("einsum"), 1, &t, &equation, out), PERI_EINVAL,
               "equation is NULL");
  want_failure(ctx, run_op(ctx, neg, -1, &t, NULL, out), PERI_EINVAL, "-1 tensors");
  want_failure(ctx, peri_apply(ctx, (const peri_op *)&which, 1, &t, 0, NULL, 1, out), PERI_EINVAL,
               "no op of the table");
}

static void strided_memory_of_the_host_is_measured (void **state) {
  (void)state;
  float room[6] = { 0 };
  int64_t two[2] = { 2, 3 }, huge[2] = { INT64_MAX / 2, 1 }, back[2] = { 3, -1 },
          none[2] = { 0, 5 }, far[2] = { INT64_MIN, INT64_MAX };
  peri_tensor *x = NULL, *v = NULL;
  want_failure(ctx, peri_import(ctx, PERI_F32, 2, two, huge, room, NULL, NULL, &x), PERI_EINVAL,
               "beyond all memory");
  want_failure(ctx, peri_import(ctx, PERI_F32, 2, two, far, room, NULL, NULL, &x), PERI_EINVAL,
               "beyond all memory");
  want_failure(ctx, peri_import(ctx, PERI_F32, 2, two, NULL, (char *)room + 1, NULL, NULL, &x),
               PERI_EINVAL, "not aligned");
  /* what lies before the first element is reached too: flipped twice it is as it was */
  assert_int_equal(peri_import(ctx, PERI_F32, 2, two, back, room + 2, NULL, NULL, &x), PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("flip"), 1, &x, NULL, &v), PERI_OK);
  assert_ptr_equal(peri_data(v), room + 3);
  peri_release(v);
  peri_release(x);
  assert_int_equal(peri_import(ctx, PERI_F32, 2, none, far, NULL, NULL, NULL, &x), PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("flip"), 1, &x, NULL, &v), PERI_OK);
  assert_int_equal(peri_numel(v), 0);
  peri_release(v);
  peri_release(x);
}

static void sums_that_wrap_give_no_view (void **state) {
  (void)state;
  int64_t shape[4] = { 2, 10, 8, 4 };
  static const int64_t heads[][2] = {
    { INT64_MAX - 5, (1LL << 62) + 8 }, { INT64_MIN, INT64_MAX }, { 10, 0 }, { -2, 6 }, { 12, -1 },
    { INT64_MAX, INT64_MAX },           { 8, 1LL << 62 },         { 0, 5 }
  };
  for (int rank = 3; rank <= 4; rank++) {
    peri_tensor *x = NULL;
    if (rank == 4) shape[1] = 3, shape[2] = 10;
    assert_int_equal(peri_empty(ctx, PERI_F32, rank, shape, &x), PERI_OK);
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
      peri_attr a[5] = {
        { .i = heads[i][0] }, { .i = heads[i][1] }, { .i = 0 }, { .f = 1 }, { .i = 0 }
      };
      peri_tensor *in[3] = { x, NULL, NULL };
      assert_int_equal(run_op(ctx, peri_op_find("unpack_qkv"), 1, in, a, out), PERI_ESHAPE);
      if (rank == 3) continue;
      int64_t three[1] = { 3 };
      assert_int_equal(peri_empty(ctx, PERI_I64, 1, three, &in[1]), PERI_OK);
      assert_int_equal(peri_empty(ctx, PERI_F32, 1, n1, &in[2]), PERI_OK);
      assert_int_equal(run_op(ctx, peri_op_find("rope_qkv"), 3, in, a, out), PERI_ESHAPE);
      peri_release(in[1]);
      peri_release(in[2]);
    }
    peri_release(x);
  }
}

/* ---- gradients ---- */

static void a_gradient_has_the_dtype_of_its_tensor (void **state) {
  (void)state;
  peri_tensor *wide = NULL, *whole_numbers = NULL;
  assert_int_equal(peri_empty(ctx, PERI_F64, 1, n1, &wide), PERI_OK);
  assert_int_equal(peri_empty(ctx, PERI_I64, 1, n1, &whole_numbers), PERI_OK);
  want_failure(ctx, peri_set_grad(leaf, wide), PERI_EDTYPE, "f64");
  want_failure(ctx, peri_set_grad(leaf, whole_numbers), PERI_EDTYPE, "i64");
  want_failure(ctx, peri_set_grad(whole_numbers, whole_numbers), PERI_EINVAL, "own gradient");
  want_failure(ctx, peri_set_grad(leaf, leaf), PERI_EINVAL, "own gradient");
  assert_null(peri_grad(leaf));
  peri_release(wide);
  peri_release(whole_numbers);
}

static peri_status answer_of; /* what the vjp below does */
static peri_status odd_vjp (void *ud, peri_ctx *c, int nout, peri_tensor *const *gout, int nin,
                            peri_tensor **gin) {
  (void)c, (void)nout, (void)gout, (void)nin;
  if (answer_of == PERI_OK) gin[0] = ud;
  return answer_of;
}

static void a_vjp_that_fails_without_a_word_is_spoken_for (void **state) {
  (void)state;
  static const int answers[] = { 1234, -1, PERI_EHOST, PERI_ENOMEM, PERI_EINVAL };
  for (size_t i = 0; i < sizeof answers / sizeof *answers; i++) {
    peri_tensor *y = NULL, *sum = NULL;
    assert_int_equal(peri_from(ctx, PERI_F32, 1, n1, floats, &y), PERI_OK);
    assert_int_equal(peri_record_custom(ctx, "odd", 1, &leaf, 1, &y, odd_vjp, NULL, NULL), PERI_OK);
    assert_int_equal(run_op(ctx, peri_op_find("sum"), 1, &y, NULL, &sum), PERI_OK);
    answer_of = (peri_status)answers[i];
    assert_int_equal(peri_item(t, 99, &num), PERI_EINVAL); /* an older message */
    peri_status want = answers[i] < 0 || answers[i] > PERI_EHOST ? PERI_EHOST : answer_of;
    want_failure(ctx, peri_backward(ctx, sum, NULL, true), want, "the vjp of odd failed");
    assert_null(strstr(peri_message(ctx), "element 99"));
    assert_null(peri_grad(leaf));
    peri_release(sum);
    peri_release(y);
  }
  peri_tensor *y = NULL, *sum = NULL, *foreign = NULL;
  answer_of = PERI_OK;
  assert_int_equal(peri_from(other, PERI_F32, 1, n1, floats, &foreign), PERI_OK);
  assert_int_equal(peri_from(ctx, PERI_F32, 1, n1, floats, &y), PERI_OK);
  assert_int_equal(peri_record_custom(ctx, "odd", 1, &leaf, 1, &y, odd_vjp, NULL, foreign),
                   PERI_OK);
  assert_int_equal(run_op(ctx, peri_op_find("sum"), 1, &y, NULL, &sum), PERI_OK);
  want_failure(ctx, peri_backward(ctx, sum, NULL, false), PERI_EINVAL, "another context");
  peri_release(foreign);
  peri_release(sum);
  peri_release(y);
}

static void what_a_custom_function_records_makes_sense (void **state) {
  (void)state;
  peri_tensor *y[2] = { NULL, NULL };
  assert_int_equal(peri_from(ctx, PERI_F32, 1, n1, floats, &y[0]), PERI_OK);
  y[1] = y[0];
  want_failure(ctx, peri_record_custom(ctx, "c", 1, &leaf, 2, y, no_vjp, NULL, NULL), PERI_EINVAL,
               "one tensor");
  want_failure(ctx, peri_record_custom(ctx, "c", 1, y, 1, y, no_vjp, NULL, NULL), PERI_EINVAL,
               "input 0 itself");
  want_failure(ctx, peri_record_custom(ctx, "c", -1, y, 1, y, no_vjp, NULL, NULL), PERI_EINVAL,
               "-1 inputs");
  want_failure(ctx, peri_record_custom(ctx, "c", 1, &leaf, 0, y, no_vjp, NULL, NULL), PERI_EINVAL,
               "0 outputs");
  peri_release(y[0]);
}

int main (void) {
  const struct CMUnitTest tests[] = {
    cmocka_unit_test(null_for_any_pointer_is_answered),
    cmocka_unit_test(the_table_has_every_function_of_the_headers),
    cmocka_unit_test(a_tensor_of_another_context_is_refused),
    cmocka_unit_test(a_second_release_is_none),
    cmocka_unit_test(a_gap_in_a_list_is_named),
    cmocka_unit_test(indices_out_of_range_are_answered),
    cmocka_unit_test(sizes_of_structs_are_those_that_were),
    cmocka_unit_test(options_out_of_range_are_refused),
    cmocka_unit_test(attributes_of_no_meaning_are_refused),
    cmocka_unit_test(strided_memory_of_the_host_is_measured),
    cmocka_unit_test(sums_that_wrap_give_no_view),
    cmocka_unit_test(a_gradient_has_the_dtype_of_its_tensor),
    cmocka_unit_test(a_vjp_that_fails_without_a_word_is_spoken_for),
    cmocka_unit_test(what_a_custom_function_records_makes_sense),
  };
  return cmocka_run_group_tests(tests, open_all, close_all);
}
