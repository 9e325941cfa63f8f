/*
** simd_env.c - built-in environments, a vector of rows at a time. Unlike other kernels these may
** not contract a * b + c (CMakeLists.txt says so): products are fused where they are written so and
** nowhere else, for a row is the same on every level, and what Gymnasium makes of it.
*/
#include <math.h>

#include "cpu/cpu.h"
#include "cpu/env.h"
#include "cpu/vec.h"

#define LANES (PERI_VW / 2)
typedef double vd __attribute__((vector_size(PERI_VW * 4)));
typedef double vdu __attribute__((vector_size(PERI_VW * 4), aligned(8), may_alias));
typedef int64_t vl __attribute__((vector_size(PERI_VW * 4)));
typedef int64_t vlu __attribute__((vector_size(PERI_VW * 4), aligned(8), may_alias));
typedef float vh __attribute__((vector_size(PERI_VW * 2)));
typedef int8_t vb __attribute__((vector_size(LANES)));

static inline vd set (double x) { return x - (vd){ 0 }; }
static inline vd select_double (vl mask, vd a, vd b) {
  return (vd)(((vl)a & mask) | ((vl)b & ~mask));
}

/* a * b + c rounded once, and the elements k of a table of 32. */
#if PERI_VW == 16 && defined(__AVX512F__)
static inline vd fused (vd a, vd b, vd c) {
  return (vd)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
}
static inline vd look_up (const double *table, vl k) {
  __m512i i = (__m512i)k;
  __m512d low = _mm512_permutex2var_pd(_mm512_loadu_pd(table), i, _mm512_loadu_pd(table + 8));
  __m512d high =
      _mm512_permutex2var_pd(_mm512_loadu_pd(table + 16), i, _mm512_loadu_pd(table + 24));
  return (vd)_mm512_mask_blend_pd(_mm512_test_epi64_mask(i, _mm512_set1_epi64(16)), low, high);
}
#else
#if PERI_VW == 8 && defined(__FMA__)
static inline vd fused (vd a, vd b, vd c) {
  return (vd)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
}
#else
static inline vd fused (vd a, vd b, vd c) {
  vd r;
  for (int i = 0; i < LANES; i++) r[i] = __builtin_fma(a[i], b[i], c[i]);
  return r;
}
#endif
static inline vd look_up (const double *table, vl k) {
  vd r;
  for (int i = 0; i < LANES; i++) r[i] = table[k[i]];
  return r;
}
#endif

/* ---- sine and cosine ---- */

/* Of k / 128, and what the nearest doubles lack of them. tests/reference/sine_table.py prints
** these. */
/* clang-format off */
static const double sines[32] = {
  0x0.0p+0, 0x1.fffeaaaaeeeefp-8, 0x1.fffaaaaeeeed5p-7, 0x1.7ff7001033255p-6,
  0x1.ffeaaaeeee86fp-6, 0x1.3feb2b12d45d5p-5, 0x1.7fdc01032fba9p-5, 0x1.bfc6d78586dacp-5,
  0x1.ffaaaeeed4edbp-5, 0x1.1fc343d808befp-4, 0x1.3facb12d1755bp-4, 0x1.5f911fd10b737p-4,
  0x1.7f701032550e4p-4, 0x1.9f4902d55d1f9p-4, 0x1.bf1b78568391dp-4, 0x1.dee6f16c1cce6p-4,
  0x1.feaaeee86ee36p-4, 0x1.0f3378ddd71d1p-3, 0x1.1f0d3d7afceafp-3, 0x1.2ee285e4ab88fp-3,
  0x1.3eb312c5d66cbp-3, 0x1.4e7ea4dc5f27bp-3, 0x1.5e44fcfa126f3p-3, 0x1.6e05dc05a4d4cp-3,
  0x1.7dc102fbaf2b5p-3, 0x1.8d7632efaa944p-3, 0x1.9d252d0cec312p-3, 0x1.accdb297a0765p-3,
  0x1.bc6f84edc6199p-3, 0x1.cc0a6588289a3p-3, 0x1.db9e15fb5a5d0p-3, 0x1.eb2a57f8ae5a3p-3
};
static const double sines_rest[32] = {
  0x0.0p+0, -0x1.e45e2ec67b77cp-62, -0x1.2ab639a9f0776p-63, 0x1.efe2b51527336p-64,
  -0x1.cd406fb224ae2p-60, 0x1.4ec54203d1c11p-60, -0x1.599bdf46e997ap-59, 0x1.8e4fd03dbf236p-62,
  -0x1.2d16d32684b69p-59, -0x1.f3d32e6f3be4fp-58, -0x1.921915299468bp-58, -0x1.0184f02be9102p-58,
  0x1.afc2d1800501ap-60, 0x1.2696d7eac1dc1p-58, 0x1.e91841dea4cc8p-58, -0x1.50f8e2fb71673p-59,
  -0x1.afcb2bcc6f03bp-59, 0x1.d8468724f0f9ep-57, -0x1.6ef95099769a5p-57, -0x1.e4d0f05dee058p-57,
  0x1.47d666b66cb91p-57, 0x1.949db2ac072fcp-58, -0x1.6f443063f89b6p-57, -0x1.32c5c8b81c919p-66,
  0x1.5ab50e23c97c3p-59, -0x1.20fa262cbb953p-57, 0x1.9c43d80b1137dp-58, -0x1.9883b57d6cdeap-58,
  0x1.9c1a56a7b0cabp-57, -0x1.868d09bc87c6bp-57, -0x1.32e20d6cc6fc2p-57, -0x1.0be06af572cebp-57
};
static const double cosines[32] = {
  0x1.0000000000000p+0, 0x1.fffc000155552p-1, 0x1.fff000155549fp-1, 0x1.ffdc006bff7e6p-1,
  0x1.ffc00155527d3p-1, 0x1.ff9c03414a7bap-1, 0x1.ff7006bfdf99fp-1, 0x1.ff3c0c8103a31p-1,
  0x1.ff0015549f4d3p-1, 0x1.febc222a8ef9fp-1, 0x1.fe7034129ef6fp-1, 0x1.fe1c4c3c873ebp-1,
  0x1.fdc06bf7e6b9bp-1, 0x1.fd5c94b43e000p-1, 0x1.fcf0c800e99b1p-1, 0x1.fc7d078d1bc88p-1,
  0x1.fc015527d5bd3p-1, 0x1.fb7db2bfe0695p-1, 0x1.faf22263c4bd3p-1, 0x1.fa5ea641c36f2p-1,
  0x1.f9c340a7cc428p-1, 0x1.f91ff40374d01p-1, 0x1.f874c2e1eecf6p-1, 0x1.f7c1afeffde24p-1,
  0x1.f706bdf9ece1cp-1, 0x1.f643efeb82acdp-1, 0x1.f57948cff6797p-1, 0x1.f4a6cbd1e3a79p-1,
  0x1.f3cc7c3b3d16ep-1, 0x1.f2ea5d753ffedp-1, 0x1.f20073086649fp-1, 0x1.f10ec09c5873bp-1
};
static const double cosines_rest[32] = {
  0x0.0p+0, 0x1.f4a01a0196daep-55, 0x1.28a28a03a5ef3p-55, 0x1.ae6dae86977bdp-55,
  -0x1.3b54492d89b5bp-55, 0x1.991f4be6c59bfp-57, -0x1.8b3b560648d5fp-56, 0x1.4856dbddc0e66p-56,
  0x1.328387b99426fp-55, 0x1.7934934f54c77p-58, -0x1.cbf4337c96f97p-57, -0x1.5a9c9057c4a02p-60,
  0x1.31902b535f8dbp-55, -0x1.2e768cb4f92f9p-57, 0x1.ea3d786d186acp-57, 0x1.075d2447db685p-55,
  0x1.b68f35094efb8p-55, 0x1.21dadf4f65ab1p-55, -0x1.52ace133a2769p-58, 0x1.04da6ed17cc7cp-59,
  0x1.c5b6b063b7462p-55, -0x1.7d03f4d3a9e4cp-57, -0x1.c6514e1332b16p-55, -0x1.8f55bc47540b1p-56,
  -0x1.698c80c36dcb4p-55, 0x1.6b00ac1fe28acp-56, 0x1.e3a0d3e03b1d4p-57, 0x1.13df0edaebb57p-55,
  -0x1.21a3ad28a3494p-57, 0x1.cc4215f56d583p-55, 0x1.b940416c1984bp-56, 0x1.d9072762c1283p-55
};
/* clang-format on */

/* Both of |a| < 0.246, as glibc computes them on processors with fused products (the method is that
** of IBM's Accurate Mathematical Library), so that CartPole's episodes are NumPy's to the last bit:
** the values at the nearest k / 128 and short polynomials of the rest; near 0 a polynomial alone
** for the sine. */
static inline void sine_and_cosine (vd a, vd *sine, vd *cosine) {
  const vd shift = set(0x1.8p45); /* the last bit of a number of this size is 1 / 128 */
  vl sign = (vl)a & INT64_MIN;
  vd size = (vd)((vl)a ^ sign), at = size + shift, d = size - (at - shift), dd = d * d, z = a * a;
  vl k = (vl)at & 31;
  vd p = fused(set(-0x1.ADDFFC2FCDF59p-26), z, set(0x1.71DE27B9A7ED9p-19));
  p = fused(p, z, set(-0x1.A01A019DB08B8p-13));
  p = fused(p, z, set(0x1.1111111110ECEp-7));
  p = fused(p, z, set(-0x1.5555555555555p-3));
  vd near = a + p * a * z;
  vd s = fused(d * dd, fused(dd, set(8.33333214285722277e-3), set(-1.66666666666664881e-1)), d);
  vd c = fused(dd, set(1.38888874007937613e-3), set(-4.16666666666664435e-2));
  c = dd * fused(dd, c, set(0.5)); /* 1 - cosine of the rest; s is its sine */
  vd sk = look_up(sines, k), sk_rest = look_up(sines_rest, k);
  vd ck = look_up(cosines, k), ck_rest = look_up(cosines_rest, k);
  vd far = sk + fused(ck, s, fused(-sk, c, fused(s, ck_rest, sk_rest)));
  *sine = select_double(size < 0.126, near, (vd)((vl)far | sign));
  *cosine = ck + fused(-sk, s, fused(-ck, c, fused(-s, sk_rest, ck_rest)));
}

/* ---- CartPole ---- */

/* One step of 0.02 s under a force, explicit Euler: positions move with the old speeds. The cart
** has mass 1, the pole 0.1, half its length is 0.5. Terms stand in the order of Gymnasium's
** cartpole.py. */
static inline void cartpole_step (vd *x, vd *v, vd *a, vd *w, vd force) {
  vd sine, cosine;
  sine_and_cosine(*a, &sine, &cosine);
  vd temp = (force + 0.05 * (*w * *w) * sine) / 1.1;
  vd turn = (9.8 * sine - cosine * temp) / (0.5 * (4.0 / 3.0 - 0.1 * (cosine * cosine) / 1.1));
  vd push = temp - 0.05 * turn * cosine / 1.1;
  *x = *x + 0.02 * *v;
  *v = *v + 0.02 * push;
  *a = *a + 0.02 * *w;
  *w = *w + 0.02 * turn;
}

/* Rows of four from columns a, b and c, d that lie in one vector each: the first half, the second. */
#if PERI_VW == 16
#define ROWS1(ab, cd) \
  __builtin_shufflevector(ab, cd, 0, 8, 16, 24, 1, 9, 17, 25, 2, 10, 18, 26, 3, 11, 19, 27)
#define ROWS2(ab, cd) \
  __builtin_shufflevector(ab, cd, 4, 12, 20, 28, 5, 13, 21, 29, 6, 14, 22, 30, 7, 15, 23, 31)
#elif PERI_VW == 8
#define ROWS1(ab, cd) __builtin_shufflevector(ab, cd, 0, 4, 8, 12, 1, 5, 9, 13)
#define ROWS2(ab, cd) __builtin_shufflevector(ab, cd, 2, 6, 10, 14, 3, 7, 11, 15)
#else
#define ROWS1(ab, cd) __builtin_shufflevector(ab, cd, 0, 2, 4, 6)
#define ROWS2(ab, cd) __builtin_shufflevector(ab, cd, 1, 3, 5, 7)
#endif
static inline void store_rows (float *out, vd a, vd b, vd c, vd d) { /* (LANES, 4) */
  const vh column[4] = { __builtin_convertvector(a, vh), __builtin_convertvector(b, vh),
                         __builtin_convertvector(c, vh), __builtin_convertvector(d, vh) };
  vf ab, cd;
  memcpy(&ab, column, sizeof ab);
  memcpy(&cd, column + 2, sizeof cd);
  v_store(out, ROWS1(ab, cd));
  v_store(out + PERI_VW, ROWS2(ab, cd));
}

/* LANES rows from the pointers on. */
static inline __attribute__((always_inline)) void
cartpole_block (double *state, int64_t stride, const int64_t *action, float *obs, double *reward,
                uint8_t *terminated, double going, double over) {
  double *px = state, *pv = px + stride, *pa = pv + stride, *pw = pa + stride;
  vd x = *(vdu *)px, v = *(vdu *)pv, a = *(vdu *)pa, w = *(vdu *)pw;
  vl right = *(const vlu *)action == 1;
  cartpole_step(&x, &v, &a, &w, select_double(right, set(10), set(-10)));
  *(vdu *)px = x;
  *(vdu *)pv = v;
  *(vdu *)pa = a;
  *(vdu *)pw = w;
  vd far = (vd)((vl)x & INT64_MAX), tilted = (vd)((vl)a & INT64_MAX);
  vl out = (far > PERI_CARTPOLE_X) | (tilted > PERI_CARTPOLE_ANGLE);
  *(vdu *)reward = select_double(out, set(over), set(going));
  store_rows(obs, x, v, a, w);
  vb flags = __builtin_convertvector(out & 1, vb);
  memcpy(terminated, &flags, LANES);
}

/* A single row, in every lane. */
static inline void cartpole_row (double *state, int64_t stride, int64_t action, float *obs,
                                 double *reward, uint8_t *terminated, double going, double over) {
  vd x = set(state[0]), v = set(state[stride]), a = set(state[2 * stride]),
     w = set(state[3 * stride]);
  cartpole_step(&x, &v, &a, &w, set(action == 1 ? 10 : -10));
  const double after[4] = { x[0], v[0], a[0], w[0] };
  for (int k = 0; k < 4; k++) {
    state[k * stride] = after[k];
    obs[k] = (float)after[k];
  }
  *terminated = fabs(after[0]) > PERI_CARTPOLE_X || fabs(after[2]) > PERI_CARTPOLE_ANGLE;
  *reward = *terminated ? over : going;
}

static void cartpole (double *state, int64_t stride, int64_t begin, int64_t end,
                      const int64_t *action, float *obs, double *reward, uint8_t *terminated,
                      double going, double over) {
  int64_t i = begin;
  for (; i + LANES <= end; i += LANES)
    cartpole_block(state + i, stride, action + i, obs + 4 * i, reward + i, terminated + i, going,
                   over);
  for (; i < end; i++)
    cartpole_row(state + i, stride, action[i], obs + 4 * i, reward + i, terminated + i, going,
                 over);
}

extern const struct peri__env_kernels PERI_NAME(peri__env);
const struct peri__env_kernels PERI_NAME(peri__env) = { .cartpole = cartpole };
