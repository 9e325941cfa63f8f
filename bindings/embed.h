/*
** embed.h - the files of lua/ as bytes inside the program and the libraries. The build generates
** the table (bindings/embed.cmake).
*/
#ifndef peri_embed_h
#define peri_embed_h

#include <stddef.h>

typedef struct peri__embedded_file {
  const char *name; /* relative to lua/: "perilune/nn.lua"; NULL ends the table */
  const unsigned char *bytes;
  size_t size;
} peri__embedded_file;

extern const peri__embedded_file peri__embedded[];

#endif
