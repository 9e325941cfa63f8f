/* image.h - images as the writers of pictures read them: dense bytes of a u8 tensor. */
#ifndef peri_image_h
#define peri_image_h

#include "io/files.h"

#define PERI__IMAGE_MOST 32768 /* pixels of a side */

typedef struct peri__image {
  int64_t width, height;
  int channels; /* 1 or 3 */
} peri__image;

/* What t, named name in messages, is as an image; refuses what is none. */
peri_status peri__image_of (peri_ctx *ctx, const char *path, const peri_tensor *t,
                            peri__image *out);
/* Its bytes, row by row, into dst: width * height * channels of them. */
void peri__image_copy (const peri_tensor *t, const peri__image *im, uint8_t *dst);

#endif
