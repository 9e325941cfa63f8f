"""Cases of elementwise ops, unary and binary."""

import math

import torch
import torch.nn.functional as F

from vectors import bools, case, f, ints, of

INF, NAN = math.inf, math.nan
SPECIAL = [0.0, -0.0, 1.0, -1.0, INF, -INF, NAN, 0.5, -2.5, 2.0**100, -(2.0**100), 1.5, 2.5, -0.5]


def unary(op, fn, lo=-2.0, hi=2.0, attr=None, exact=False, special=True, wide=None, tol=None):
    tol = tol or ("exact" if exact else "each")
    run = lambda x: fn(x)
    case(op, [f(2, 3, lo=lo, hi=hi)], run, attr, tol, n=1)
    case(op, [f(lo=lo, hi=hi)], run, attr, tol, note="0-dim", n=1)
    case(op, [f(0, 3)], run, attr, tol, note="zero size")
    case(op, [f(35, lo=lo, hi=hi)], run, attr, tol, note="more than a vector", n=1)
    if wide:
        case(op, [f(35, lo=wide[0], hi=wide[1])], run, attr, tol, note="wide", n=1)
    if special:
        no = {"sign": math.isnan, "gelu": lambda v: v == -INF}.get(op, lambda v: False)  # torch: 0 and NaN
        values = [v for v in SPECIAL if not no(v)]
        case(op, [of(values)], run, attr, tol, grad=False, note="special")


def unaries():
    unary("neg", torch.neg, exact=True)
    unary("abs", torch.abs, exact=True)
    unary("sign", torch.sign, exact=True)
    unary("exp", torch.exp, wide=(-80, 80))
    unary("expm1", torch.expm1, wide=(-60, 60))
    case("expm1", [of([1 / 1024, -1 / 1024, 2.0**-20, -(2.0**-30), 2.0**-60])], torch.expm1, note="near 0")
    unary("log", torch.log, lo=0.01, hi=3, wide=(1, 30000))
    unary("log1p", torch.log1p, lo=-0.95, hi=3, wide=(1, 30000))
    case("log1p", [of([1 / 1024, -1 / 1024, 2.0**-20, -(2.0**-30), 2.0**-60])], torch.log1p, note="near 0")
    unary("log2", torch.log2, lo=0.01, hi=3, wide=(1, 30000))
    unary("sqrt", torch.sqrt, lo=0.01, hi=3, wide=(1, 30000))
    unary("rsqrt", torch.rsqrt, lo=0.01, hi=3, wide=(1, 30000))
    unary("square", torch.square, wide=(-3000, 3000))
    unary("reciprocal", torch.reciprocal, lo=0.1, hi=3, wide=(-3000, -1))
    unary("sin", torch.sin, special=False, wide=(-900, 900))
    unary("cos", torch.cos, special=False, wide=(-900, 900))
    for op, fn in (("sin", torch.sin), ("cos", torch.cos)):
        case(op, [of([0.0, -0.0, INF, -INF, NAN])], fn, grad=False, note="special")
    unary("tanh", torch.tanh, wide=(-12, 12))
    case("tanh", [of([2.0**-20, -(2.0**-30), 2.0**-60, 0.25, 0.5, 0.75])], torch.tanh, note="near 0")
    unary("sigmoid", torch.sigmoid, wide=(-80, 80))
    unary("relu", torch.relu, exact=True)
    unary("leaky_relu", lambda x: F.leaky_relu(x, 0.25), attr={"slope": 0.25})
    unary("leaky_relu", F.leaky_relu)
    unary("elu", F.elu, wide=(-30, 30))
    unary("elu", lambda x: F.elu(x, 0.5), attr={"alpha": 0.5})
    unary("gelu", F.gelu, wide=(-5, 12), tol="sum")  # x (1 + erf) cancels: the error is that of x
    unary(
        "gelu",
        lambda x: F.gelu(x, approximate="tanh"),
        attr={"approximate": "tanh"},
        special=False,
        wide=(-3, 12),
        tol="sum",
    )
    unary("silu", F.silu, special=False, wide=(-50, 50))
    unary("softplus", F.softplus, wide=(-50, 50))
    unary("softplus", lambda x: F.softplus(x, 2, 3), attr={"beta": 2, "threshold": 3})
    unary("erf", torch.erf, wide=(-6, 6))
    for op in ("floor", "ceil", "round"):
        unary(op, getattr(torch, op), exact=True, wide=(-30, 30))
        case(op, [of([-1.5, -0.5, 0.5, 1.5, 2.5, 3.5, -2.5])], getattr(torch, op), tol="exact", note="halves")
    unary("clamp", lambda x: x.clamp(-0.5, 1), attr={"min": -0.5, "max": 1}, exact=True)
    unary("clamp", lambda x: x.clamp(max=1), attr={"max": 1}, exact=True)
    unary("clamp", lambda x: x.clamp(min=-0.5), attr={"min": -0.5}, exact=True)
    for op in ("isnan", "isinf", "isfinite", "logical_not"):
        unary(op, getattr(torch, op), exact=True)
    for op in ("neg", "abs", "sign", "square", "relu", "floor", "ceil", "round", "logical_not", "isfinite"):
        case(op, [ints(2, 3, lo=-4, hi=4)], getattr(torch, op), tol="exact", note="integers")
    case("clamp", [ints(2, 3, lo=-4, hi=4)], lambda x: x.clamp(-1, 2), {"min": -1, "max": 2}, "exact")
    for op, lo in (("exp", -4), ("log", 1), ("sqrt", 0), ("tanh", -3), ("sigmoid", -3), ("sin", -9), ("erf", -2)):
        fn = getattr(torch, op)
        case(op, [ints(2, 3, lo=lo, hi=9)], lambda x, fn=fn: fn(x.double()), dtype="f32", note="integers give f32")
    for op in ("contiguous", "clone"):
        case(op, [f(2, 3)], torch.clone, tol="exact")
        case(op, [bools(4)], torch.clone, tol="exact")
        case(op, [f(0, 2)], torch.clone, tol="exact")


def conversions():
    x = of([0.0, 1.75, -1.75, 2.5, -0.5, 100.0])
    for d, t in (("i64", torch.int64), ("i32", torch.int32), ("bool", torch.bool)):
        case("to", [x], lambda x, t=t: x.to(t), {"dtype": d}, "exact")
    case("to", [of([0.0, 1.75, 200.0])], lambda x: x.to(torch.uint8), {"dtype": "u8"}, "exact")
    case("to", [ints(2, 3, lo=-9, hi=9)], lambda x: x.double(), {"dtype": "f32"}, "exact", dtype="f32")
    case("bitcast", [ints(2, 3, lo=-9, hi=9)], lambda x: x.view(torch.uint8), {"dtype": "u8"}, "exact")
    case("to", [bools(2, 3)], lambda x: x.to(torch.int64), {"dtype": "i64"}, "exact")
    step = 2.0**-11  # half a step of f16 at 1: ties go to even
    halves = of(
        [
            1 + step,
            1 + 3 * step,
            1 + 5 * step,
            65504.0,
            65519.0,
            65520.0,
            2.0**-14,
            2.0**-24,
            2.0**-25,
            3 * 2.0**-25,
            -0.0,
            INF,
            NAN,
            -1.1 * 1024,
        ]
    )
    step = 2.0**-8
    brains = of([1 + step, 1 + 3 * step, 1 + 5 * step, 2.0**100, -(2.0**127) * 1.9921875, 2.0**-126, -0.0, INF, NAN])
    case("to", [halves], lambda x: x.to(torch.float16), {"dtype": "f16"}, "exact", grad=False, note="rounds to even")
    case("to", [brains], lambda x: x.to(torch.bfloat16), {"dtype": "bf16"}, "exact", grad=False, note="rounds to even")
    case("to", [f(5)], lambda x: x * 1, {"dtype": "f64"}, "exact", dtype="f64")


def binary(op, fn, tol="each", lo=-2.0, hi=2.0, ylo=None, yhi=None, special=True, make=f):
    ylo, yhi = lo if ylo is None else ylo, hi if yhi is None else yhi
    a = lambda *s: f(*s, lo=lo, hi=hi)
    b = lambda *s: f(*s, lo=ylo, hi=yhi)
    for s, t in (
        ((2, 3), (2, 3)),
        ((2, 3), (3,)),
        ((2, 1, 3), (4, 1)),
        ((), (2, 2)),
        ((3, 1), ()),
        ((), ()),
        ((0, 3), (3,)),
        ((37,), (37,)),
        ((3, 19), (3, 1)),
        ((3, 19), (19,)),
    ):
        case(op, [a(*s), b(*t)], fn, tol=tol)
    case(op, [a(2, 3), 1.5], lambda x, y: fn(x, torch.tensor(y)), tol=tol, note="number on the right")
    case(op, [1.5, b(2, 3)], lambda x, y: fn(torch.tensor(x), y), tol=tol, note="number on the left")
    if special:
        some = [0.0, -0.0, 1.0, -2.5, INF, -INF, NAN, 2.0**100]
        n = len(some)
        case(op, [of([[v] * n for v in some]), of([some] * n)], fn, tol=tol, grad=False, note="special")


def binaries():
    binary("add", torch.add)
    binary("sub", torch.sub)
    binary("mul", torch.mul)
    binary("div", torch.div, ylo=0.25)
    binary("floordiv", lambda x, y: torch.floor(x / y), tol="exact", lo=-7, hi=7, ylo=0.5, special=False)
    binary("mod", torch.remainder, lo=-7, hi=7, ylo=0.5, yhi=3, special=False)
    signs = [[7.5, 0.5], [-7.5, 0.5], [7.5, -2.0], [-7.5, -2.0], [6.0, 3.0], [-6.0, 3.0], [6.0, -3.0], [-6.0, -3.0]]
    x, y = [s[0] for s in signs], [s[1] for s in signs]
    case("floordiv", [of(x), of(y)], torch.floor_divide, tol="exact", grad=False, note="signs")
    case("mod", [of(x), of(y)], torch.remainder, note="signs")
    case(
        "floordiv",
        [of([int(v) for v in x], "i64"), of([1, 2, -2, -2, 3, 3, -3, -4], "i64")],
        torch.floor_divide,
        tol="exact",
        note="signs of integers",
    )
    case(
        "mod",
        [of([int(v) for v in x], "i64"), of([1, 2, -2, -2, 3, 3, -3, -4], "i64")],
        torch.remainder,
        tol="exact",
        note="signs of integers",
    )
    binary("pow", torch.pow, lo=0.125, hi=3, ylo=-2, yhi=2)
    case("pow", [of([-2.0, -1.5, -3.0, 2.0, 0.0, 0.0]), of([2.0, 3.0, -1.0, 0.0, 2.0, 0.0])], torch.pow, grad=False)
    case("pow", [f(2, 3), 2], torch.pow, note="integer exponent")
    case("pow", [f(2, 3), 3], torch.pow, note="integer exponent")
    case("pow", [f(2, 3, lo=0.25), -0.5], torch.pow)
    case("pow", [ints(2, 3, lo=-4, hi=4), ints(2, 3, lo=0, hi=5)], torch.pow, tol="exact", note="integers")
    binary("maximum", torch.maximum, tol="exact")
    binary("minimum", torch.minimum, tol="exact")
    case("maximum", [of([1.0, 2.0, 3.0]), of([1.0, 2.0, 0.0])], torch.maximum, tol="exact", note="ties share")
    case("minimum", [of([1.0, 2.0, 3.0]), of([1.0, 2.0, 0.0])], torch.minimum, tol="exact", note="ties share")
    binary("atan2", torch.atan2, lo=0.25)
    for op in ("eq", "ne", "lt", "le", "gt", "ge", "logical_and", "logical_or", "logical_xor"):
        binary(op, getattr(torch, op), tol="exact")
        case(op, [ints(9, lo=0, hi=2), ints(9, lo=0, hi=2)], getattr(torch, op), tol="exact")
        case(op, [bools(9), bools(9)], getattr(torch, op), tol="exact")
    big = 2**53
    case(
        "lt",
        [of([big, big + 1, -big], "i64"), of([big + 1, big, -big], "i64")],
        torch.lt,
        tol="exact",
        note="beyond 2^53",
    )
    case("eq", [of([big, big + 1], "i64"), of([big + 1, big + 1], "i64")], torch.eq, tol="exact", note="beyond 2^53")
    for op in ("add", "sub", "mul", "maximum", "minimum"):
        fn = getattr(torch, op)
        case(op, [ints(2, 3, lo=-9, hi=9), ints(3, lo=-9, hi=9)], fn, tol="exact", note="integers")
        case(op, [ints(2, 3, lo=-9, hi=9, dtype="i32"), ints(3, lo=-9, hi=9)], fn, tol="exact", note="i32 with i64")
        case(
            op,
            [ints(5, lo=0, hi=9, dtype="u8"), ints(5, lo=-9, hi=9, dtype="i32")],
            fn,
            tol="exact",
            note="u8 with i32",
        )
        case(op, [f(2, 3), ints(3, lo=-9, hi=9)], fn, note="floats with integers")
        case(op, [f(2, 3), 2], lambda x, y, fn=fn: fn(x, torch.tensor(y)), note="floats with a whole number")
        case(
            op,
            [ints(4), 2],
            lambda x, y, fn=fn: fn(x, torch.tensor(y)),
            tol="exact",
            note="integers with a whole number",
        )
        case(
            op, [ints(4), 0.5], lambda x, y, fn=fn: fn(x, torch.tensor(y)), dtype="f32", note="integers with a fraction"
        )
    case("add", [of([2**62, 2**63 - 1], "i64"), of([2**62, 1], "i64")], torch.add, tol="exact", note="wraps")
    case("mul", [bools(6), bools(6)], torch.mul, tol="exact")
    case("add", [bools(6), bools(6)], torch.add, tol="exact")
    case("div", [ints(5, lo=1, hi=9), ints(5, lo=1, hi=9)], torch.div, dtype="f32", note="integers give f32")


def selections():
    fn = torch.where
    for c, x, y in (
        ((2, 3), (2, 3), (2, 3)),
        ((3,), (2, 1), ()),
        ((2, 1), (3,), (2, 3)),
        ((), (2, 2), (2, 2)),
        ((0,), (0,), (1,)),
        ((37,), (37,), (37,)),
    ):
        case("where", [bools(*c), f(*x), f(*y)], fn, tol="exact")
    case("where", [bools(4), ints(4), ints(4)], fn, tol="exact")
    case("where", [of([True, False], "bool"), of([INF, NAN]), of([NAN, 1.0])], fn, tol="exact", grad=False)
    for s, m in (((2, 3), (2, 3)), ((2, 3), (3,)), ((2, 3), (2, 1)), ((), ()), ((0, 3), (3,)), ((37,), (37,))):
        case("masked_fill", [f(*s), bools(*m)], lambda x, m: x.masked_fill(m, 0.5), {"value": 0.5}, "exact")
    case("masked_fill", [f(2, 3), bools(3)], lambda x, m: x.masked_fill(m, -INF), {"value": "-inf"}, "exact")
    case("masked_fill", [ints(2, 3), bools(3)], lambda x, m: x.masked_fill(m, 7), {"value": 7}, "exact")
    lerp = lambda x, y, w: x + w * (y - x)
    for x, y, w in (
        ((2, 3), (2, 3), (2, 3)),
        ((2, 3), (3,), ()),
        ((), (2, 1), (3,)),
        ((0,), (0,), ()),
        ((37,), (37,), (37,)),
    ):
        case("lerp", [f(*x), f(*y), f(*w, lo=0, hi=1)], lerp)
    case("lerp", [f(2, 3), f(2, 3), 0.25], lerp)


def gradients_of_activations():
    def derivative(fn):
        def run(x, g):
            y = x.detach().requires_grad_()
            return torch.autograd.grad(fn(y), y, g.detach())[0]

        return run

    for op, fn in (
        ("relu", F.relu),
        ("silu", F.silu),
        ("gelu", F.gelu),
        ("gelu_tanh", lambda x: F.gelu(x, approximate="tanh")),
    ):
        for s in ((2, 3), (), (0,), (37,)):
            case(op + "_backward", [f(*s), f(*s)], derivative(fn), tol="sum", n=1)
    for s in ((2, 3), (), (0,), (37,)):
        case("tanh_backward", [f(*s, lo=-0.9, hi=0.9), f(*s)], lambda y, g: g * (1 - y * y))
        case("sigmoid_backward", [f(*s, lo=0.1, hi=0.9), f(*s)], lambda y, g: g * y * (1 - y))


def make():
    unaries()
    conversions()
    binaries()
    selections()
    gradients_of_activations()
