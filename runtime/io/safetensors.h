/*
** safetensors.h - what reading and writing safetensors share. The layout: u64 N little-endian, N
** bytes of JSON {"name": {"dtype", "shape", "data_offsets": [begin, end]}, "__metadata__": {...}},
** the data. Offsets count from the data; sorted, they leave no hole and no overlap and end with the
** file (format specification in the README of huggingface/safetensors).
*/
#ifndef peri_safetensors_h
#define peri_safetensors_h

#include "io/files.h"

#define ST_MAX_HEADER 100000000u /* of the format */
#define ST_MAX_TENSORS 1048576
#define ST_MAX_PAIRS 65536

/* Name of a dtype in the format. */
const char *peri__st_dtype_name (peri_dtype d);

/* Takes a header of n bytes (peri__malloc'd, owned from here on, freed on failure) of a file with
** data_bytes bytes behind it. path, for messages, is copied. */
peri_status peri__st_parse (peri_ctx *ctx, const char *path, char *header, size_t n,
                            uint64_t data_bytes, peri_safetensors **out);

#endif
