/* gguf_types.c - the numbers that GGUF files give to types of values and of tensors. */
#include "io/gguf.h"

/* ORDER gguf type */
static const struct {
  const char *name;
  uint8_t size;
} types[PERI_GGUF_NTYPE] = { { "u8", 1 },   { "i8", 1 },    { "u16", 2 }, { "i16", 2 },
                             { "u32", 4 },  { "i32", 4 },   { "f32", 4 }, { "bool", 1 },
                             { "text", 0 }, { "array", 0 }, { "u64", 8 }, { "i64", 8 },
                             { "f64", 8 } };

size_t peri__gguf_size (peri_gguf_type t) { return types[t].size; }
const char *peri__gguf_type_name (peri_gguf_type t) { return types[t].name; }

/* enum ggml_type of ggml.h with the blocks of ggml-common.h */
const gguf_kind peri__gguf_kind[GGUF_NKIND] = {
  [0] = { "F32", 1, 4, PERI_F32 },
  [1] = { "F16", 1, 2, PERI_F16 },
  [2] = { "Q4_0", 32, 18, PERI_Q4_0 },
  [3] = { "Q4_1", 32, 20, PERI_Q4_1 },
  [6] = { "Q5_0", 32, 22, PERI_Q5_0 },
  [7] = { "Q5_1", 32, 24, PERI_Q5_1 },
  [8] = { "Q8_0", 32, 34, PERI_Q8_0 },
  [9] = { "Q8_1", 32, 36, -1 },
  [10] = { "Q2_K", 256, 84, -1 },
  [11] = { "Q3_K", 256, 110, -1 },
  [12] = { "Q4_K", 256, 144, PERI_Q4_K },
  [13] = { "Q5_K", 256, 176, PERI_Q5_K },
  [14] = { "Q6_K", 256, 210, PERI_Q6_K },
  [15] = { "Q8_K", 256, 292, -1 },
  [16] = { "IQ2_XXS", 256, 66, -1 },
  [17] = { "IQ2_XS", 256, 74, -1 },
  [18] = { "IQ3_XXS", 256, 98, -1 },
  [19] = { "IQ1_S", 256, 50, -1 },
  [20] = { "IQ4_NL", 32, 18, -1 },
  [21] = { "IQ3_S", 256, 110, -1 },
  [22] = { "IQ2_S", 256, 82, -1 },
  [23] = { "IQ4_XS", 256, 136, -1 },
  [24] = { "I8", 1, 1, -1 },
  [25] = { "I16", 1, 2, -1 },
  [26] = { "I32", 1, 4, PERI_I32 },
  [27] = { "I64", 1, 8, PERI_I64 },
  [28] = { "F64", 1, 8, PERI_F64 },
  [29] = { "IQ1_M", 256, 56, -1 },
  [30] = { "BF16", 1, 2, PERI_BF16 },
  [34] = { "TQ1_0", 256, 54, -1 },
  [35] = { "TQ2_0", 256, 66, -1 },
  [39] = { "MXFP4", 32, 17, -1 },
  [40] = { "NVFP4", 64, 36, -1 },
};
