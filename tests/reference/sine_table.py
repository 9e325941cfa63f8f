"""The tables of runtime/cpu/simd_env.c: sine and cosine of k / 128, and what the nearest doubles lack of them."""

import mpmath

mpmath.mp.prec = 300


def pair(value):
    nearest = float(value)
    return nearest, float(value - mpmath.mpf(nearest))


rows = [pair(mpmath.sin(mpmath.mpf(k) / 128)) + pair(mpmath.cos(mpmath.mpf(k) / 128)) for k in range(32)]
for i, name in enumerate(("sines", "sines_rest", "cosines", "cosines_rest")):
    print(f"static const double {name}[32] = {{")
    for j in range(0, 32, 4):
        print("  " + ", ".join(float.hex(row[i]) for row in rows[j : j + 4]) + ("," if j < 28 else ""))
    print("};")
