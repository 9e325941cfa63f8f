/*
** split_named.c - the names of GGUF's tokenizer.ggml.pre (llama.cpp, src/llama-vocab.cpp) and what
** they stand for. Where llama.cpp rewrites a model's own pattern for the sake of its engine, the
** pattern here is the model's. Each pattern of a list cuts the pieces of the one before it.
*/
#include "text/split_code.h"

#define SUFFIX "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
#define SPACES "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"
#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"
#define PUNCTUATION "[\\p{P}\\$\\+<=>\\^~\\|`]" /* what a Punctuation step cuts at */
#define WORD "[^\\r\\n\\p{L}\\p{N}]?\\p{L}+"
#define SIGNS " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*"
#define LLAMA3 SUFFIX "|" WORD "|\\p{N}{1,3}|" SIGNS "|" SPACES
#define QWEN2 SUFFIX "|" WORD "|\\p{N}|" SIGNS "|" SPACES
#define HIGH "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}]"
#define LOW "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}]"
#define LEAD "[^\\r\\n\\p{L}\\p{N}]?"
#define CASED(end, digits)                                           \
  LEAD HIGH "*" LOW "+" end "|" LEAD HIGH "+" LOW "*" end "|" digits \
            "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]*|" SPACES
#define GPT4O CASED(SUFFIX "?", "\\p{N}{1,3}")
#define DEEPSEEK_TAIL   \
  "[!\"#$%&'()*+,\\-./" \
  ":;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\\r\\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+"
#define DEEPSEEK3 DEEPSEEK_TAIL "| ?[\\p{P}\\p{S}]+[\\r\\n]*|" SPACES
#define CJK "[一-龥぀-ゟ゠-ヿ]+"
#define LINES "[^\\n]+|[\\n]+"
#define NOT_SENTENCE " ?[^(\\s|.,!?…。，、।۔،)]+"
/* Upper- and lower-case letters with two cases, as DeepSeek's first vocabulary lists them. */
#define CASES                                                                             \
  "A-Za-z\\x{B5}\\x{C0}-\\x{D6}\\x{D8}-\\x{F6}\\x{F8}-\\x{1BA}\\x{1BC}-\\x{1BF}"          \
  "\\x{1C4}-\\x{293}\\x{295}-\\x{2AF}\\x{370}-\\x{373}\\x{376}\\x{377}\\x{37B}-\\x{37D}"  \
  "\\x{37F}\\x{386}\\x{388}-\\x{38A}\\x{38C}\\x{38E}-\\x{3A1}\\x{3A3}-\\x{3F5}"           \
  "\\x{3F7}-\\x{481}\\x{48A}-\\x{52F}\\x{531}-\\x{556}\\x{10A0}-\\x{10C5}"                \
  "\\x{13A0}-\\x{13F5}\\x{13F8}-\\x{13FD}\\x{1C90}-\\x{1CBA}\\x{1CBD}-\\x{1CBF}"          \
  "\\x{1D00}-\\x{1D2B}\\x{1D6B}-\\x{1D77}\\x{1D79}-\\x{1D9A}\\x{1E00}-\\x{1F15}"          \
  "\\x{1F18}-\\x{1F1D}\\x{1F20}-\\x{1F45}\\x{1F48}-\\x{1F4D}\\x{1F50}-\\x{1F57}\\x{1F59}" \
  "\\x{1F5B}\\x{1F5D}\\x{1F5F}-\\x{1F7D}\\x{1F80}-\\x{1FB4}\\x{1FB6}-\\x{1FBC}\\x{1FBE}"  \
  "\\x{1FC2}-\\x{1FC4}\\x{1FC6}-\\x{1FCC}\\x{1FD0}-\\x{1FD3}\\x{1FD6}-\\x{1FDB}"          \
  "\\x{1FE0}-\\x{1FEC}\\x{1FF2}-\\x{1FF4}\\x{1FF6}-\\x{1FFC}\\x{2102}\\x{2107}"           \
  "\\x{210A}-\\x{2113}\\x{2115}\\x{2119}-\\x{211D}\\x{2124}\\x{2126}\\x{2128}"            \
  "\\x{212A}-\\x{212D}\\x{212F}-\\x{2134}\\x{2139}\\x{213C}-\\x{213F}\\x{2145}-\\x{2149}" \
  "\\x{214E}\\x{2183}\\x{2184}\\x{2C00}-\\x{2C7B}\\x{2C7E}-\\x{2CE4}\\x{2CEB}-\\x{2CEE}"  \
  "\\x{2CF2}\\x{2CF3}\\x{A640}-\\x{A66D}\\x{A680}-\\x{A69B}\\x{A722}-\\x{A76F}"           \
  "\\x{A771}-\\x{A787}\\x{A78B}-\\x{A78E}\\x{AB70}-\\x{ABBF}\\x{FB00}-\\x{FB06}"          \
  "\\x{FB13}-\\x{FB17}\\x{FF21}-\\x{FF3A}\\x{FF41}-\\x{FF5A}\\x{10400}-\\x{1044F}"        \
  "\\x{104B0}-\\x{104D3}\\x{104D8}-\\x{104FB}\\x{10C80}-\\x{10CB2}\\x{10CC0}-\\x{10CF2}"  \
  "\\x{118A0}-\\x{118DF}\\x{1E900}-\\x{1E943}"
/* Scripts that AFMoE keeps apart: Han, kana, Thai, Lao, Khmer, Myanmar, Hangul. */
#define ASIAN                                                                    \
  "\\x{4E00}-\\x{9FFF}\\x{3400}-\\x{4DBF}\\x{8C48}-\\x{FAFF}\\x{3040}-\\x{309F}" \
  "\\x{30A0}-\\x{30FF}\\x{FF65}-\\x{FF9F}\\x{2F00}-\\x{2FDF}\\x{E40}-\\x{E7F}"   \
  "\\x{E80}-\\x{EFF}\\x{1780}-\\x{17FF}\\x{1000}-\\x{109F}\\x{AA60}-\\x{AA7F}"   \
  "\\x{A9E0}-\\x{A9FF}\\x{AC00}-\\x{D7AF}\\x{1100}-\\x{11FF}"
/* Kimi K2: as GPT-4o, but its letters are those that are not Han. */
#define NOT_HAN "&&[^\\p{Han}]]"
#define K2_HIGH "[\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}" NOT_HAN
#define K2_LOW "[\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}" NOT_HAN
#define KIMI                                                                                \
  "[\\p{Han}]+|" LEAD K2_HIGH "*" K2_LOW "+" SUFFIX "?|" LEAD K2_HIGH "+" K2_LOW "*" SUFFIX \
  "?|\\p{N}{1,3}|" SIGNS "|" SPACES

/* ORDER pre: the same in lists[] */
typedef enum pre {
  P_DEFAULT,
  P_GPT2,
  P_LLAMA3,
  P_QWEN2,
  P_QWEN35,
  P_GPT4O,
  P_TEKKEN,
  P_DEEPSEEK_LLM,
  P_DEEPSEEK_CODER,
  P_DEEPSEEK3,
  P_STARCODER,
  P_FALCON,
  P_BLOOM,
  P_VIKING,
  P_CHAMELEON,
  P_TINY_AYA,
  P_KIMI,
  P_SUPERBPE,

  P_SEED_CODER,
  P_UFAKZEKA,
  P_AFMOE,
  P_LAGUNA,
  P_EXAONE_MOE,
  P_LINES,
  P_MINICPM5,
  P_WHITESPACE,
  P_JAIS2,
  P_SPARK,
  P_YOUTU,
  P_COUNT
} pre;

#define PATTERNS 6

static const char *const lists[P_COUNT][PATTERNS] = {
  [P_DEFAULT] = { "[\\p{P}\\$\\+<=>\\^~\\|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]" },
  [P_GPT2] = { GPT2 },
  [P_LLAMA3] = { LLAMA3 },
  [P_QWEN2] = { QWEN2 },
  [P_QWEN35] = { SUFFIX "|[^\\r\\n\\p{L}\\p{N}]?[\\p{L}\\p{M}]+|\\p{N}"
                        "| ?[^\\s\\p{L}\\p{M}\\p{N}]+[\\r\\n]*|" SPACES },
  [P_GPT4O] = { GPT4O },
  [P_TEKKEN] = { CASED("", "\\p{N}") },
  [P_DEEPSEEK_LLM] = { "[\r\n]", "\\s?[" CASES "]+", "\\s?[!-/:-~！-／：-～‘-‟　-。]+", "\\s+$",
                       "[一-龥ࠀ-一가-퟿]+", "\\p{N}+" },
  [P_DEEPSEEK_CODER] = { "[\r\n]", "\\s?\\p{L}+", "\\s?\\p{P}+", "[一-龥ࠀ-一가-퟿]+",
                         "\\p{N}" },
  [P_DEEPSEEK3] = { "\\p{N}{1,3}", CJK, DEEPSEEK3 },
  [P_STARCODER] = { "\\p{N}", GPT2 },
  [P_FALCON] = { PUNCTUATION "+", GPT2, "[0-9][0-9][0-9]" },
  [P_BLOOM] = { NOT_SENTENCE },
  [P_VIKING] = { NOT_SENTENCE, "\\p{N}" },
  [P_CHAMELEON] = { "<sentinel:[0-9]+>", "(IMGIMG)((A|B|C|D|E|F|G|H|I){1,4})Z",
                    "([\\t\\n]|    |  )", "\\p{N}", "[\\p{P}!-/:-@\\[-`{-~]", GPT2 },
  [P_TINY_AYA] = { "\\d{1,3}(?=(?:\\d{3})*\\b)", GPT4O },
  [P_KIMI] = { KIMI },
  [P_SUPERBPE] = { "\\p{N}+", "(?=(\\d{3})+(?!\\d))" },
  [P_SEED_CODER] = { SUFFIX "|" WORD "|\\p{N}{1}| ?[^\\s\\p{L}\\p{N}\\r\\n]+|" SPACES },
  [P_UFAKZEKA] = { WORD "|\\p{N}|" SIGNS "|" SPACES },
  [P_AFMOE] = { "\\p{N}{1,3}(?=(?:\\p{N}{3})*(?!\\p{N}))", "[" ASIAN "]+", DEEPSEEK3 },
  [P_LAGUNA] = { LINES, QWEN2 },
  [P_EXAONE_MOE] = { SUFFIX "|[^\\r\\n\\p{L}\\p{N}]?(?:\\p{L}\\p{M}*(?: \\p{L}\\p{M}*)*)+|\\p{N}"
                            "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n/]?|\\s*[\\r\\n]|\\s+(?!\\S)|\\s+" },
  [P_LINES] = { LINES },
  [P_MINICPM5] = { "\\p{N}{1,3}", SUFFIX "|" WORD "|\\p{N}+|" SIGNS "|" SPACES },
  [P_WHITESPACE] = { "\\S+" },
  [P_JAIS2] = { SUFFIX
                "|" WORD "|\\p{N}{1,3}|" SIGNS
                "|\\s*[\\r\\n]+|\\s{512}(?!\\S)|\\s{256}(?!\\S)|\\s{128}(?!\\S)|\\s{64}(?!\\S)"
                "|\\s{32}(?!\\S)|\\s{16}(?!\\S)|\\s{8}(?!\\S)|\\s{4}(?!\\S)|\\s{1,2}(?!\\S)"
                "|\\s{1}" },
  [P_SPARK] = { "\\p{N}{1,3}", CJK, DEEPSEEK_TAIL "| ?[\\p{P}\\p{S}]+|[\\r\\n]|\\s+(?!\\S)|\\s+",
                "\\p{N}" },
  [P_YOUTU] = { "[가-힣ㄱ-ㆎ]+|[！…“”‘’—：；，、-〿︰-﹏]+|[ㄅ-ㄯ]+|[一-"
                "龥぀-"
                "ゟ゠-"
                "ヿ]"
                "+",
                CASED(SUFFIX "?", "\\p{N}") },
};

/* What a name says besides its patterns. */
enum { MERGELESS = 1, BOS = 2, SEP = 4, RAW = 8, ESCAPE = 16, FEEDS = 32 };

static const struct {
  const char *name;
  pre pre;
  int flags;
} names[] = {
  { "default", P_DEFAULT, 0 },
  { "llama3", P_LLAMA3, MERGELESS | BOS },
  { "llama-v3", P_LLAMA3, MERGELESS | BOS },
  { "llama-bpe", P_LLAMA3, MERGELESS | BOS },
  { "falcon3", P_LLAMA3, MERGELESS | BOS },
  { "falcon-h1", P_LLAMA3, MERGELESS | BOS },
  { "pixtral", P_LLAMA3, MERGELESS | BOS },
  { "midm-2.0", P_LLAMA3, MERGELESS | BOS },
  { "lfm2", P_LLAMA3, MERGELESS | BOS },
  { "jina-v5-nano", P_LLAMA3, MERGELESS | BOS },
  { "dbrx", P_LLAMA3, 0 },
  { "smaug-bpe", P_LLAMA3, 0 },
  { "chatglm-bpe", P_LLAMA3, 0 },
  { "glm4", P_LLAMA3, MERGELESS },
  { "glm5", P_LLAMA3, MERGELESS },
  { "qwen2", P_QWEN2, 0 },
  { "deepseek-r1-qwen", P_QWEN2, 0 },
  { "kormo", P_QWEN2, 0 },
  { "f2llmv2", P_QWEN2, 0 },
  { "megrez", P_QWEN2, 0 },
  { "stablelm2", P_QWEN2, 0 },
  { "hunyuan", P_QWEN2, 0 },
  { "solar-open", P_QWEN2, 0 },
  { "grok-2", P_QWEN2, 0 },
  { "qwen35", P_QWEN35, 0 },
  { "gpt-2", P_GPT2, 0 },
  { "phi-2", P_GPT2, 0 },
  { "mpt", P_GPT2, 0 },
  { "olmo", P_GPT2, 0 },
  { "jais", P_GPT2, 0 },
  { "trillion", P_GPT2, 0 },
  { "granite-docling", P_GPT2, 0 },
  { "exaone4", P_GPT2, 0 },
  { "jina-es", P_GPT2, 0 },
  { "jina-de", P_GPT2, 0 },
  { "jina-v2-es", P_GPT2, 0 },
  { "jina-v2-de", P_GPT2, 0 },
  { "gigachat", P_GPT2, 0 },
  { "a.x-4.0", P_GPT2, 0 },
  { "mellum", P_GPT2, 0 },
  { "modern-bert", P_GPT2, 0 },
  { "jina-v1-en", P_GPT2, SEP },
  { "jina-v2-code", P_GPT2, SEP },
  { "roberta-bpe", P_GPT2, SEP },
  { "gpt-4o", P_GPT4O, 0 },
  { "llama4", P_GPT4O, 0 },
  { "kanana2", P_GPT4O, 0 },
  { "talkie", P_GPT4O, 0 },
  { "minimax-m2", P_GPT4O, 0 },
  { "granite-embed-multi-97m", P_GPT4O, MERGELESS },
  { "tekken", P_TEKKEN, MERGELESS | BOS },
  { "deepseek-llm", P_DEEPSEEK_LLM, 0 },
  { "deepseek-coder", P_DEEPSEEK_CODER, 0 },
  { "deepseek-v3", P_DEEPSEEK3, 0 },
  { "hunyuan-dense", P_DEEPSEEK3, 0 },
  { "hy_v4", P_DEEPSEEK3, 0 },
  { "joyai-llm", P_DEEPSEEK3, 0 },
  { "starcoder", P_STARCODER, 0 },
  { "refact", P_STARCODER, 0 },
  { "command-r", P_STARCODER, 0 },
  { "smollm", P_STARCODER, 0 },
  { "codeshell", P_STARCODER, 0 },
  { "exaone", P_STARCODER, 0 },
  { "minerva-7b", P_STARCODER, 0 },
  { "mellum2", P_STARCODER, 0 },
  { "falcon", P_FALCON, 0 },
  { "bloom", P_BLOOM, 0 },
  { "poro-chat", P_BLOOM, 0 },
  { "gpt3-finnish", P_BLOOM, 0 },
  { "viking", P_VIKING, 0 },
  { "chameleon", P_CHAMELEON, BOS },
  { "tiny_aya", P_TINY_AYA, 0 },
  { "cohere2moe", P_TINY_AYA, 0 },
  { "kimi-k2", P_KIMI, 0 },
  { "superbpe", P_SUPERBPE, 0 },
  { "bailingmoe", P_QWEN2, 0 }, /* its \s*[\r\n] ends where \s*[\r\n]+ does */
  { "bailingmoe2", P_QWEN2, 0 },
  { "llada-moe", P_QWEN2, 0 },
  { "seed-coder", P_SEED_CODER, 0 },
  { "ufakzeka", P_UFAKZEKA, 0 },
  { "afmoe", P_AFMOE, 0 },
  { "laguna", P_LAGUNA, 0 },
  { "exaone-moe", P_EXAONE_MOE, 0 },
  { "gemma4", P_LINES, RAW | ESCAPE | FEEDS | BOS },
  { "granite-embed-multi-311m", P_LINES, RAW | ESCAPE | FEEDS | BOS },
  { "sarvam-moe", P_LINES, RAW | ESCAPE },
  { "minicpm5", P_MINICPM5, MERGELESS },
  { "whitespace", P_WHITESPACE, RAW },
  { "jais-2", P_JAIS2, 0 },
  { "spark2_5", P_SPARK, 0 },
  { "youtu", P_YOUTU, MERGELESS },
};

/* Patterns that cut as steps of a tokenizer.json do which name none. */
static const peri__pre_step steps[] = {
  { "ByteLevel", GPT2 },
  { "Digits", "\\p{N}+" },
  { "Digits individual", "\\p{N}" },
  { "Punctuation Contiguous", PUNCTUATION "+" },
  { "Punctuation Isolated", PUNCTUATION },
};

const peri__pre_step *peri__pre_step_at (size_t i) {
  return i < sizeof steps / sizeof *steps ? &steps[i] : NULL;
}

bool peri__pre_name_at (size_t i, peri__pre_name *out) {
  if (i >= sizeof names / sizeof *names) return false;
  const char *const *patterns = lists[names[i].pre];
  int flags = names[i].flags, n = 0;
  while (n < PATTERNS && patterns[n] != NULL) n++;
  *out = (peri__pre_name){ .name = names[i].name, .patterns = patterns, .n = n };
  out->facts = (peri__pre_facts){ .byte_level = !(flags & RAW),
                                  .ignore_merges = flags & MERGELESS,
                                  .escape_spaces = flags & ESCAPE,
                                  .whole_lines = flags & FEEDS,
                                  .add_bos = flags & BOS,
                                  .add_sep = flags & SEP };
  return true;
}

peri_status peri__splitter_named (peri_ctx *ctx, const char *name, peri__splitter **out,
                                  peri__pre_facts *facts) {
  peri__pre_name found;
  size_t k = 0;
  while (peri__pre_name_at(k, &found) && strcmp(found.name, name) != 0) k++;
  if (!peri__pre_name_at(k, &found))
    return peri__fail(ctx, PERI_EFORMAT, "unknown pre-tokenizer \"%.100s\" (tokenizer.ggml.pre)",
                      name);
  peri__splitter *s;
  TRY(peri__splitter_new(ctx, &s));
  for (int i = 0; i < found.n; i++) {
    const char *pattern = found.patterns[i];
    peri_status status = peri__add_pattern(s, pattern, strlen(pattern), PERI__ISOLATED, false);
    if (status != PERI_OK) {
      peri__splitter_free(s);
      return status;
    }
  }
  s->byte_level = found.facts.byte_level;
  if (facts != NULL) *facts = found.facts;
  *out = s;
  return PERI_OK;
}
