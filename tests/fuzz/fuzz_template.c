/*
** fuzz_template.c - any bytes as a chat template: refused with a message, or rendered within the
** bounds of steps, output and memory, in under a second. Seeds: tests/data/chat_templates.
**   fuzz/fuzz_template            two thousand mutations of the seeds
**   fuzz/fuzz_template -n COUNT   more of them
**   fuzz/fuzz_template FILE...    replays files
*/
#define _GNU_SOURCE /* scandir */
#include <dirent.h>
#include <lauxlib.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "mutate.h"
#include "perilune_lua.h"

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);

/* One template against three conversations. What our own code does wrong shows as an error with one of
** our files in it: that is a failure here, as is a text longer than its bound. */
static const char program[] =
    "local template = require 'perilune.text.template'\n"
    "local call = { type = 'function', id = 'c0', ['function'] = { name = 'f', arguments = { a = 1 "
    "} } }\n"
    "local tool = { type = 'function', ['function'] = { name = 'f', description = 'd',\n"
    "  parameters = { type = 'object', properties = { a = { type = 'integer' } }, required = { 'a' "
    "} } } }\n"
    "local talks = {\n"
    "  { messages = { { role = 'user', content = 'Hi é' } }, add_generation_prompt = true },\n"
    "  { messages = { { role = 'system', content = 'S' }, { role = 'user', content = ' U ' },\n"
    "    { role = 'assistant', content = '<think>\\nx\\n</think>\\n\\n\\\"y\\\"' } } },\n"
    "  { messages = { { role = 'user', content = 'U' }, { role = 'assistant', content = '',\n"
    "    tool_calls = { call } }, { role = 'tool', content = '{}', name = 'f', tool_call_id = 'c0' "
    "} },\n"
    "    tools = { tool }, add_generation_prompt = true },\n"
    "}\n"
    "for _, vars in ipairs(talks) do vars.bos_token, vars.eos_token = '<s>', '</s>' end\n"
    "function one (source)\n"
    "  local t, message = template.compile(source)\n"
    "  for i = 1, t and #talks or 0 do\n"
    "    local text\n"
    "    text, message = t:render(talks[i], { output_bytes = 1 << 20 })\n"
    "    if text and #text > 1 << 20 then error('a text over the bound') end\n"
    "    if message and message:find('%.lua:%d') then break end\n"
    "    compiled = (compiled or 0) + (text and 1 or 0)\n"
    "  end\n"
    "  if message and message:find('%.lua:%d') then error(message) end\n"
    "end\n";

enum { SIZE_MAX_IN = 1 << 16, MEMORY_MAX = 256 << 20 };

static lua_State *state (void) {
  static lua_State *L;
  if (L == NULL) {
    peri_ctx *ctx;
    peri_options o;
    peri_options_init(&o);
    o.threads = 1;
    if (peri_open(&o, &ctx) != PERI_OK || peri_lua_new(ctx, &L) != PERI_OK) abort();
    if (peri_lua_run_string(L, program, "fuzz_template") != PERI_OK) {
      fprintf(stderr, "%s\n", peri_message(ctx));
      abort();
    }
  }
  return L;
}

int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size) {
  lua_State *L = state();
  clock_t start = clock();
  lua_getglobal(L, "one");
  lua_pushlstring(L, (const char *)data, size);
  bool failed = lua_pcall(L, 1, 0, 0) != LUA_OK;
  double seconds = (double)(clock() - start) / CLOCKS_PER_SEC;
  if (!failed && seconds < 1 && (size_t)lua_gc(L, LUA_GCCOUNT) < MEMORY_MAX >> 10) return 0;
  fprintf(stderr, "%s, %.2f s, %d KiB, for the template:\n",
          failed ? lua_tostring(L, -1) : "over a bound", seconds, lua_gc(L, LUA_GCCOUNT));
  fwrite(data, 1, size, stderr);
  abort();
}

#ifndef PERI_LIBFUZZER

/* What mutations of bytes alone would not find. */
static const char *const words[] = { "{% for i in range(99999) %}",
                                     "{% endfor %}",
                                     "{% if x %}",
                                     "{% else %}",
                                     "{% endif %}",
                                     "{% set x = x ~ x %}",
                                     "{% set ns.x = [ns.x, ns.x] %}",
                                     "{% macro m(x) %}",
                                     "{% endmacro %}",
                                     "{{ m(m) }}",
                                     "{% call m() %}",
                                     "{% endcall %}",
                                     "{% filter upper %}",
                                     "{% endfilter %}",
                                     "{% generation %}",
                                     "{% endgeneration %}",
                                     "{% raw %}",
                                     "{% endraw %}",
                                     "{#",
                                     "#}",
                                     "{{",
                                     "}}",
                                     "{%-",
                                     "-%}",
                                     "+%}",
                                     "|tojson",
                                     "|length",
                                     "|list",
                                     "|map('upper')",
                                     "|map(attribute='role')",
                                     "|selectattr('role', 'in', x)",
                                     "|sort",
                                     "|groupby('role')",
                                     "|batch(3)",
                                     "|slice(3)",
                                     "|join",
                                     "|indent(9)",
                                     "|int",
                                     "|float",
                                     "|round(3)",
                                     "|format(1)",
                                     "|replace('', 'x')",
                                     "|wordcount",
                                     "|truncate(3)",
                                     "|from_json",
                                     "|dictsort",
                                     "|unique",
                                     "|sum",
                                     "|max",
                                     "|first",
                                     "|last",
                                     "|reverse",
                                     " is defined",
                                     " is string",
                                     " is divisibleby 0",
                                     " in ",
                                     " not in ",
                                     "[1:]",
                                     "[::-1]",
                                     "[::0]",
                                     "[-1]",
                                     ".items()",
                                     ".split()",
                                     ".rsplit('a', 1)",
                                     ".format(*x)",
                                     ".strip('<')",
                                     ".splitlines()",
                                     ".center(999)",
                                     ".expandtabs(3)",
                                     ".__class__",
                                     "namespace()",
                                     "loop",
                                     "loop.length",
                                     "loop(x)",
                                     "loop.changed(x)",
                                     "cycler(1)",
                                     "joiner()",
                                     "dict(**x)",
                                     "caller()",
                                     "varargs",
                                     "messages",
                                     "tools",
                                     "'%*d' % ",
                                     "'{:{}}'.format(1, 2)",
                                     " ** ",
                                     " * 99999",
                                     " // 0",
                                     " % 0",
                                     "9223372036854775807",
                                     "1e308",
                                     "(",
                                     ")",
                                     "[",
                                     "]",
                                     "{",
                                     "}",
                                     "not ",
                                     "-",
                                     "~",
                                     "\"",
                                     "'",
                                     "\\",
                                     "\\u12",
                                     "\xff",
                                     "\xe4\xb8" };

static size_t change (uint64_t which, const unsigned char *seed, size_t n, unsigned char *out) {
  n = mutate(which, seed, n, out, SIZE_MAX_IN);
  dice d = { .which = which | UINT64_C(1) << 63 };
  for (uint32_t k = draw(&d) % 4; k > 0; k--) {
    const char *word = words[below(&d, sizeof words / sizeof *words)];
    n = replace(out, n, SIZE_MAX_IN, below(&d, n + 1), 0, word, strlen(word));
  }
  return n;
}

static size_t read_file (const char *path, unsigned char *out) {
  FILE *f = fopen(path, "rb");
  if (f == NULL) {
    fprintf(stderr, "%s: cannot be read\n", path);
    exit(1);
  }
  size_t n = fread(out, 1, SIZE_MAX_IN, f);
  fclose(f);
  return n;
}

static bool is_template (const char *name) {
  size_t n = strlen(name);
  return n > 6 && strcmp(name + n - 6, ".jinja") == 0;
}

static void run_seeds (unsigned long count) {
  static unsigned char seed[SIZE_MAX_IN], out[SIZE_MAX_IN];
  static const char folder[] = PERI_SOURCE_DIR "/tests/data/chat_templates";
  struct dirent **names;
  int n = scandir(folder, &names, NULL, alphasort);
  unsigned long seeds = 0, done = 0;
  for (int i = 0; i < n; i++) seeds += is_template(names[i]->d_name);
  for (int i = 0; i < n; i++) {
    if (is_template(names[i]->d_name)) {
      char path[1024];
      snprintf(path, sizeof path, "%s/%s", folder, names[i]->d_name);
      size_t size = read_file(path, seed);
      LLVMFuzzerTestOneInput(seed, size);
      for (unsigned long k = 0; k < count / seeds; k++, done++)
        LLVMFuzzerTestOneInput(out, change(k | (uint64_t)(i + 1) << 40, seed, size, out));
    }
    free(names[i]);
  }
  if (n >= 0) free(names);
  if (seeds == 0) {
    fprintf(stderr, "%s: no templates\n", folder);
    exit(1);
  }
  lua_getglobal(state(), "compiled");
  printf("%lu templates, %d texts\n", done, (int)lua_tointeger(state(), -1));
  lua_pop(state(), 1);
}

int main (int argc, char **argv) {
  static unsigned char data[SIZE_MAX_IN];
  if (argc == 3 && strcmp(argv[1], "-n") == 0)
    run_seeds(strtoul(argv[2], NULL, 10));
  else if (argc == 1)
    run_seeds(2000);
  for (int i = argc == 3 && argv[1][0] == '-' ? argc : 1; i < argc; i++)
    LLVMFuzzerTestOneInput(data, read_file(argv[i], data));
  peri_ctx *ctx = peri_lua_ctx(state());
  lua_close(state());
  peri_close(ctx);
  return 0;
}

#endif
