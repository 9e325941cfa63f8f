"""Cases of reductions, scans, sorting and products."""

import math

import torch
import torch.nn.functional as F

from vectors import bools, case, distinct, f, ints, of

INF, NAN = math.inf, math.nan


def zero_based(dims):
    return tuple(d - 1 if d > 0 else d for d in dims)


# shape, our dims (None = all), keep
FORMS = [
    ((2, 3), None, False),
    ((2, 3), None, True),
    ((2, 3), [1], False),
    ((2, 3), [2], True),
    ((2, 3), [-1], False),
    ((2, 3, 4), [1, 3], False),
    ((2, 3, 4), [2, -1], True),
    ((), None, False),
    ((3, 37), [2], False),
    ((37, 3), [1], False),
    ((1000,), None, False),
    ((130, 17), [1], False),
    ((2, 5, 33), [1, 3], False),
]


def attributes(dims, keep, **more):
    a = dict(more)
    if dims:
        a["dims"] = dims
    if keep:
        a["keep"] = True
    return a


def reduction(op, fn, tol="sum", make=f, empty=True):
    for shape, dims, keep in FORMS:
        over = zero_based(dims) if dims else tuple(range(len(shape)))
        n = math.prod(shape[d] for d in over)
        case(op, [make(*shape)], lambda x: fn(x, over, keep), attributes(dims, keep), tol, n=n)
    if empty:
        case(op, [f(0, 3)], lambda x: fn(x, (0,), False), {"dims": [1]}, tol, grad=False, note="of nothing")
        case(op, [f(0)], lambda x: fn(x, (0,), False), None, tol, grad=False, note="of nothing")
    case(op, [f(2, 0)], lambda x: fn(x, (0,), False), {"dims": [1]}, tol, note="empty result")


def prod(x, dims, keep):
    for d in sorted((d % max(x.dim(), 1) for d in dims), reverse=True):
        x = x.prod(dim=d, keepdim=keep)
    return x


def last(fn):
    """fn over one dim applied to several: they are brought together at the end."""

    def run(x, dims, keep):
        dims = [d % x.dim() for d in dims]
        if not dims:
            return fn(x.reshape(1), 0)
        rest = [d for d in range(x.dim()) if d not in dims]
        y = fn(x.permute(*rest, *dims).reshape(*[x.shape[d] for d in rest], -1), -1)
        return y.reshape([1 if d in dims else x.shape[d] for d in range(x.dim())]) if keep else y

    return run


def reductions():
    reduction("sum", lambda x, d, k: x.sum(d, k) if d else x.sum())
    reduction("mean", lambda x, d, k: x.mean(d, k) if d else x.mean())
    reduction("prod", prod, "each", make=lambda *s: f(*s, lo=0.8, hi=1.25))
    case("prod", [of([2.0, 0.0, 3.0])], lambda x: x.prod(), tol="each", note="one zero")
    case("prod", [of([2.0, 0.0, 0.0])], lambda x: x.prod(), tol="each", note="two zeros")
    reduction("max", lambda x, d, k: x.amax(d, k) if d else x.max(), "exact", empty=False)
    reduction("min", lambda x, d, k: x.amin(d, k) if d else x.min(), "exact", empty=False)
    for op, fn in (("max", torch.amax), ("min", torch.amin)):
        case(op, [of([3.0, 1.0, 3.0, 1.0])], lambda x, fn=fn: fn(x, 0), tol="exact", note="ties share")
        case(
            op, [of([[1.0, NAN, 2.0], [INF, -INF, 0.0]])], lambda x, fn=fn: fn(x, 1), {"dims": [2]}, "exact", grad=False
        )
        case(op, [ints(3, 4, lo=-9, hi=9)], lambda x, fn=fn: fn(x, 0), {"dims": [1]}, "exact")
    for op, fn in (("sum", torch.sum), ("prod", torch.prod)):
        case(op, [ints(3, 4, lo=-3, hi=3)], lambda x, fn=fn: fn(x, 0), {"dims": [1]}, "exact", note="integers")
        case(op, [ints(5, lo=0, hi=3, dtype="i32")], fn, tol="exact", note="i32 gives i64")
        case(op, [bools(7)], fn, tol="exact", note="bool gives i64")
        case(
            op,
            [of([[INF, 1.0], [NAN, 1.0], [INF, -INF]])],
            lambda x, fn=fn: fn(x, 1),
            {"dims": [2]},
            "exact",
            grad=False,
        )
    case("mean", [ints(3, 4, lo=-3, hi=3)], lambda x: x.double().mean(0), {"dims": [1]}, dtype="f32")
    for ddof in (1, 0, 2):
        attr = {} if ddof == 1 else {"ddof": ddof}
        for shape, dims, keep in FORMS:
            over = zero_based(dims) if dims else tuple(range(len(shape)))
            n = math.prod(shape[d] for d in over)
            if n - ddof < 1 or (ddof == 2 and shape != (2, 3, 4)):
                continue
            for op, fn in (("var", torch.var), ("std", torch.std)):
                case(
                    op,
                    [f(*shape)],
                    lambda x, fn=fn: fn(x, over, correction=ddof, keepdim=keep),
                    attributes(dims, keep, **attr),
                    "sum",
                    n=n,
                )
    for op, fn in (("var", torch.var), ("std", torch.std)):
        case(op, [of([1.5])], lambda x, fn=fn: fn(x), tol="sum", grad=False, note="of one")
        case(op, [of([1000.0, 1001.0, 1002.0, 1003.0])], lambda x, fn=fn: fn(x), tol="each", note="far from 0")
        case(op, [f(3, 0)], lambda x, fn=fn: fn(x, 1), {"dims": [2]}, tol="sum", grad=False, note="of nothing")
    reduction("logsumexp", lambda x, d, k: torch.logsumexp(x, d, k) if d else x * 1)
    case(
        "logsumexp",
        [of([[900.0, 900.0], [-INF, 1.0], [-INF, -INF], [INF, 1.0]])],
        lambda x: torch.logsumexp(x, 1),
        {"dims": [2]},
        "each",
        grad=False,
    )
    for p in (1, 2, 3, 0.5, INF, 0):
        for shape, dims, keep in FORMS[:8] + FORMS[8:9]:
            over = zero_based(dims) if dims else tuple(range(len(shape)))
            n = math.prod(shape[d] for d in over)
            case(
                "norm",
                [distinct(*shape, step=48)],
                lambda x: torch.linalg.vector_norm(x, p, over or None, keep),
                attributes(dims, keep, p="inf" if p == INF else p),
                "sum",
                grad=p in (1, 2, 3),
                n=n,
            )
    case("norm", [of([3.0, 4.0])], torch.linalg.vector_norm, tol="each")
    case("norm", [of([0.0, 0.0])], torch.linalg.vector_norm, tol="each", grad=False)


def decisions():
    for shape, dim, keep in (
        ((2, 3), 1, False),
        ((2, 3), -1, True),
        ((2, 3, 4), 2, False),
        ((3, 37), 2, False),
        ((37, 3), 1, False),
        ((5,), 1, False),
    ):
        d = dim - 1 if dim > 0 else dim
        for op in ("argmax", "argmin"):
            attr = {"dim": dim, "keep": True} if keep else {"dim": dim}
            case(op, [distinct(*shape)], lambda x, op=op: getattr(torch, op)(x, d, keep), attr, "exact")
    for op in ("argmax", "argmin"):
        fn = getattr(torch, op)
        case(op, [distinct(3, 4)], fn, tol="exact", note="flattened")
        case(op, [of(2.5)], fn, tol="exact", note="0-dim")
        case(op, [of([1.0, 2.0, 2.0, 1.0])], fn, tol="exact", note="the first of equal ones")
        case(op, [of([1.0, NAN, 7.0, NAN])], fn, tol="exact", note="NaN wins")
        case(op, [ints(9, lo=-4, hi=400)], lambda x, fn=fn: fn(x, 0), {"dim": 1}, "exact")
    for make in (bools, lambda *s: ints(*s, lo=0, hi=1), lambda *s: f(*s)):
        for shape, dims, keep in FORMS:
            over = zero_based(dims) if dims else tuple(range(len(shape)))
            attr = attributes(dims, keep)
            x = make(*shape)
            if not over:
                for op in ("all", "any"):
                    case(op, [x], getattr(torch, op), attr, "exact")
            else:
                for op in ("all", "any"):
                    case(op, [x], lambda x, op=op: getattr(torch, op)(x, over, keep), attr, "exact")
            if not keep:
                case(
                    "count_nonzero",
                    [x],
                    lambda x: torch.count_nonzero(x, over) if over else torch.count_nonzero(x),
                    attr,
                    "exact",
                )
    case("all", [f(0, 2)], lambda x: torch.all(x, 0), {"dims": [1]}, "exact", note="of nothing")
    case("any", [f(0, 2)], lambda x: torch.any(x, 0), {"dims": [1]}, "exact", note="of nothing")
    case("all", [of([NAN, 1.0])], torch.all, tol="exact", note="NaN is not 0")


def scans():
    for shape, dim in (
        ((5,), None),
        ((2, 3), 1),
        ((2, 3, 4), 2),
        ((2, 3), -1),
        ((), None),
        ((0, 3), 1),
        ((3, 37), 2),
        ((37, 3), 1),
    ):
        d = -1 if dim is None else dim - 1 if dim > 0 else dim
        attr = {"dim": dim} if dim else None
        case("cumsum", [f(*shape)], lambda x: x.cumsum(d), attr, "sum")
        case("cumprod", [f(*shape, lo=0.75, hi=1.3)], lambda x: x.cumprod(d), attr, "sum")
        case("cummax", [distinct(*shape)], lambda x: tuple(x.cummax(d)), attr, "exact")
    case("cumsum", [ints(2, 4)], lambda x: x.cumsum(1), {"dim": 2}, "exact")
    case("cumsum", [bools(7)], lambda x: x.cumsum(0), None, "exact")
    case("cumprod", [ints(6, lo=-3, hi=3)], lambda x: x.cumprod(0), None, "exact")
    case("cumprod", [of([2.0, 0.0, 3.0, 0.0, 1.5])], lambda x: x.cumprod(0), note="zeros")
    case("cummax", [of([1.0, 2.0, 2.0, 1.0, NAN, 5.0])], lambda x: tuple(x.cummax(0)), None, "exact", grad=False)
    case("cummax", [ints(7, lo=-9, hi=9)], lambda x: tuple(x.cummax(0)), None, "exact")


def orders():
    for shape, dim, down in (
        ((7,), None, False),
        ((2, 5), 2, True),
        ((4, 3), 1, False),
        ((2, 3, 4), -2, True),
        ((3, 37), 2, False),
        ((), None, False),
        ((0, 3), 2, False),
        ((3, 0), 2, False),
    ):
        d = -1 if dim is None else dim - 1 if dim > 0 else dim
        attr = {"dim": dim} if dim else {}
        if down:
            attr["descending"] = True
        x = distinct(*shape)
        case("sort", [x], lambda x: tuple(x.sort(dim=d, descending=down, stable=True)), attr, "exact")
        case("argsort", [x], lambda x: x.argsort(dim=d, descending=down, stable=True), attr, "exact")
    for down in (False, True):
        attr = {"descending": True} if down else None
        for x in (of([2.0, 1.0, 2.0, NAN, 1.0, INF, -INF, NAN, -0.0, 0.0]), ints(12, lo=0, hi=3), bools(6)):
            case(
                "sort",
                [x],
                lambda x: tuple(x.sort(descending=down, stable=True)),
                attr,
                "exact",
                grad=False,
                note="stable, NaN is the largest",
            )
            case("argsort", [x], lambda x: x.argsort(descending=down, stable=True), attr, "exact")
    for shape, dim, k, largest in (
        ((7,), None, 3, True),
        ((2, 5), 2, 5, True),
        ((4, 3), 1, 2, False),
        ((2, 3, 4), -2, 1, True),
        ((3, 37), 2, 9, False),
        ((4,), None, 0, True),
    ):
        d = -1 if dim is None else dim - 1 if dim > 0 else dim
        attr = {"k": k}
        if dim:
            attr["dim"] = dim
        if not largest:
            attr["largest"] = False
        case("topk", [distinct(*shape)], lambda x: tuple(x.topk(k, d, largest)), attr, "exact")
    case("topk", [of([5, 2, 9, 7], "i64")], lambda x: tuple(x.topk(2)), {"k": 2}, "exact")


def products():
    for a, b in (
        ((3,), (3,)),
        ((2, 3), (3,)),
        ((3,), (3, 4)),
        ((2, 3), (3, 4)),
        ((5, 2, 3), (3, 4)),
        ((2, 3), (5, 3, 4)),
        ((5, 2, 3), (5, 3, 4)),
        ((2, 1, 2, 3), (4, 3, 2)),
        ((2, 4, 3), (3,)),
        ((0, 3), (3, 4)),
        ((2, 0), (0, 4)),
        ((0, 2, 3), (3, 4)),
        ((1, 1), (1, 1)),
        ((17, 33), (33, 19)),
        ((7, 130), (130, 5)),
        ((1, 64), (64, 33)),
        ((40, 3), (3, 50)),
    ):
        case("matmul", [f(*a), f(*b)], torch.matmul, tol="sum", n=max(a[-1], 1) * 8)
    case("matmul", [ints(2, 3, lo=-9, hi=9), ints(3, 4, lo=-9, hi=9)], torch.matmul, tol="exact", note="integers")
    acts = {
        None: lambda x: x,
        "relu": F.relu,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "silu": F.silu,
        "gelu": F.gelu,
        "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    }
    for name, act in acts.items():
        attr = {"act": name} if name else None
        for x, o in (((4,), 5), ((3, 4), 5), ((2, 3, 4), 5), ((0, 4), 5), ((9, 35), 21)):
            for bias in (True, False):
                case(
                    "linear",
                    [f(*x), f(o, x[-1]), f(o) if bias else None],
                    lambda x, w, b: act(F.linear(x, w, b)),
                    attr,
                    "sum",
                    n=x[-1] * 8,
                )
    for a, b in ((3, 4), (1, 1), (0, 3), (17, 19)):
        case("outer", [f(a), f(b)], torch.outer)
    for eq, shapes in (
        ("ij,jk->ik", ((2, 3), (3, 4))),
        ("ij,jk", ((2, 3), (3, 4))),
        ("bij,bjk->bik", ((2, 3, 4), (2, 4, 5))),
        ("ij->ji", ((2, 3),)),
        ("ij->i", ((2, 3),)),
        ("ij->", ((2, 3),)),
        ("i,i->", ((5,), (5,))),
        ("i,j->ij", ((2,), (3,))),
        ("bhid,bhjd->bhij", ((2, 2, 3, 4), (2, 2, 5, 4))),
        ("ijk,k->ij", ((2, 3, 4), (4,))),
        ("ab,bc,cd->ad", ((2, 3), (3, 4), (4, 2))),
        ("ij,ij->ij", ((2, 3), (2, 3))),
        ("bi,oi->bo", ((2, 3), (4, 3))),
    ):
        case("einsum", [[f(*s) for s in shapes]], lambda xs: torch.einsum(eq, *xs), {"equation": eq}, "sum", n=64)


def make():
    reductions()
    decisions()
    scans()
    orders()
    products()
