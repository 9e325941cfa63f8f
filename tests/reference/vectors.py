"""Cases of the op reference: inputs that binary32 holds exactly, outputs and gradients in binary64.

A case is {op, in, attr, out, grad, tol}. An input is a tensor {d, s, v} (dtype, shape, flat values) or
{d, s, g} (values from a generator that the reader has too), a number, null, or a list of tensors. The
dtype "f" stands for the float dtype under test. The gradients are those of the sum of out * w over all
float outputs, w[i] of output k = ((7 i + 3 k) % 13 - 6.5) / 8. tol says how a result may differ:
"exact", "each" (some ULP of the element, for each of n factors) or "sum" (with n, the number of terms of the
longest sum, and scale, a bound of a term).
"""

import math

import torch

torch.set_default_dtype(torch.float64)
CASES = []


class Tensor:
    """An input: made of given values or by the generator."""

    def __init__(self, dtype, shape, values=None, gen=None):
        self.dtype, self.shape, self.gen = dtype, list(shape), gen
        n = math.prod(shape)
        if values is None:
            seed, lo, hi = gen
            values, x = [], seed
            for _ in range(n):
                x = (x * 1664525 + 1013904223) & 0xFFFFFFFF
                values.append((lo + (x >> 8) % (hi - lo + 1)) / 1024)
        self.values = values
        assert len(values) == n, (shape, len(values))

    def torch(self):
        kind = {
            "f": torch.float64,
            "f32": torch.float64,
            "i64": torch.int64,
            "i32": torch.int32,
            "u8": torch.uint8,
            "bool": torch.bool,
        }[self.dtype]
        values = [int(v) for v in self.values] if self.dtype not in ("f", "f32") else self.values
        return torch.tensor(values, dtype=kind).reshape(self.shape)

    def json(self):
        out = {"d": self.dtype, "s": self.shape}
        if self.gen:
            out["g"] = list(self.gen)
        else:
            out["v"] = [number(v) for v in self.values]
        return out


_seed = [1]


def f(*shape, lo=-2.0, hi=2.0):
    """Floats on a grid of 1/1024, so that binary32 holds them."""
    _seed[0] = (_seed[0] * 69069 + 12345) % 1000003
    return Tensor("f", shape, gen=(_seed[0], round(lo * 1024), round(hi * 1024)))


def ints(*shape, lo=0, hi=4, dtype="i64"):
    """Whole numbers lo..hi."""
    t = f(*shape, lo=0, hi=64)
    return Tensor(dtype, shape, [lo + round(v * 1024) % (hi - lo + 1) for v in t.values])


def bools(*shape):
    return ints(*shape, lo=0, hi=1, dtype="bool")


def of(values, dtype="f"):
    """A tensor of the given nested lists or number."""
    t = torch.tensor(values)
    return Tensor(dtype, t.shape, t.reshape(-1).tolist())


def distinct(*shape, step=32):
    """Floats of which no two are equal."""
    n = math.prod(shape)
    order = sorted(range(n), key=f(n).values.__getitem__)
    return Tensor("f", shape, [(v - n // 2) * step / 1024 for v in order])


def number(v):
    if isinstance(v, bool) or isinstance(v, int):
        return v
    if math.isnan(v):
        return "nan"
    if math.isinf(v):
        return "inf" if v > 0 else "-inf"
    if v == int(v) and abs(v) < 2**53 and not (v == 0 and math.copysign(1, v) < 0):
        return int(v)
    return v


def result(t, dtype=None):
    t = t.detach()
    name = {
        torch.float64: "f",
        torch.float32: "f32",
        torch.int64: "i64",
        torch.int32: "i32",
        torch.uint8: "u8",
        torch.bool: "bool",
        torch.float16: "f16",
        torch.bfloat16: "bf16",
    }[t.dtype]
    values = t.reshape(-1).tolist()
    return {"d": dtype or name, "s": list(t.shape), "v": [number(v) for v in values]}


def weight(t, k):
    i = torch.arange(t.numel(), dtype=torch.float64)
    return (((7 * i + 3 * k) % 13 - 6.5) / 8).reshape(t.shape)


def case(op, inputs, fn, attr=None, tol="each", grad=True, n=None, dtype=None, note=None):
    """One case: fn gets the inputs as torch tensors and returns the outputs."""
    given, leaves = [], []

    def take(x):
        if isinstance(x, list):
            return [take(e) for e in x]
        if not isinstance(x, Tensor):
            return x
        t = x.torch()
        if x.dtype == "f":
            t.requires_grad_()
        leaves.append(t)
        return t

    for x in inputs:
        given.append(take(x))
    outs = fn(*given)
    outs = list(outs) if isinstance(outs, (tuple, list)) else [outs]
    c = {"op": op, "in": [as_json(x) for x in inputs], "tol": tol}
    if attr:
        c["attr"] = attr
    c["out"] = [result(t, dtype if t.is_floating_point() else None) for t in outs]
    loss = [(t * weight(t, k)).sum() for k, t in enumerate(outs) if t.requires_grad]
    if grad and loss and sum(t.numel() for t in leaves) <= 400:
        floats = [t for t in leaves if t.requires_grad]
        g = torch.autograd.grad(sum(loss), floats, allow_unused=True)
        c["grad"] = [
            [number(v) for v in (torch.zeros_like(t) if d is None else d).reshape(-1).tolist()]
            for d, t in zip(g, floats)
        ]
    if n and tol == "each":
        c["n"] = n
    if tol == "sum":
        finite = [abs(v) for t in leaves for v in t.detach().double().reshape(-1).tolist() if math.isfinite(v)]
        c["n"] = n or max([t.numel() for t in leaves] + [1])
        c["scale"] = max([1.0] + finite) ** 2
    if note:
        c["note"] = note
    CASES.append(c)


def as_json(x):
    if isinstance(x, Tensor):
        return x.json()
    if isinstance(x, list):
        return [as_json(e) for e in x]
    return x
