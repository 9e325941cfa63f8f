/* palette.h - at most 256 colours for an image. */
#ifndef peri_palette_h
#define peri_palette_h

#include <stdbool.h>
#include <stdint.h>

/* Colours and which of them a colour becomes. */
typedef struct peri__palette {
  uint8_t rgb[256][3];
  int n;
  bool exact;               /* every colour is among them: found in slot, by hash */
  int16_t slot[1024];       /* index into rgb, -1: free */
  uint8_t nearest[1 << 15]; /* not exact: by the upper five bits of each channel */
  uint32_t count[1 << 15];  /* scratch: pixels by those bits */
  uint64_t sum[3][1 << 15]; /* scratch: of their channels */
  uint16_t bins[1 << 15];   /* scratch: those that occur */
} peri__palette;

/* Exact where n pixels have at most 256 colours, else by median cut (Heckbert, 1982). */
void peri__palette_of (peri__palette *p, const uint8_t *rgb, int64_t n);
/* The index of a colour; -1: an exact palette lacks it. */
int peri__palette_find (const peri__palette *p, const uint8_t *rgb);

#endif
