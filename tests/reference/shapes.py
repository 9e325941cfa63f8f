"""Cases of creation, views, rearranging and indexing."""

import torch
import torch.nn.functional as F

from vectors import bools, case, f, ints, of

E = "exact"


def creation():
    for shape in ([2, 3], [], [0, 4]):
        for d, t in (("f32", torch.float32), ("i64", torch.int64), ("bool", torch.bool)):
            case("zeros", [], lambda: torch.zeros(shape, dtype=t), {"shape": shape, "dtype": d}, E)
            case("ones", [], lambda: torch.ones(shape, dtype=t), {"shape": shape, "dtype": d}, E)
        case("full", [], lambda: torch.full(shape, 2.5, dtype=torch.float32), {"shape": shape, "value": 2.5}, E)
        case("full", [], lambda: torch.full(shape, 3), {"shape": shape, "value": 3, "dtype": "i64"}, E)
    for x in (f(2, 3), ints(4), bools(2), f(0, 2), f()):
        case("zeros_like", [x], torch.zeros_like, tol=E)
        case("ones_like", [x], torch.ones_like, tol=E)
    case("zeros_like", [f(2)], lambda x: torch.zeros_like(x, dtype=torch.int64), {"dtype": "i64"}, E)
    case("full_like", [f(2, 3)], lambda x: torch.full_like(x, 1.5), {"value": 1.5}, E)
    case("full_like", [ints(2)], lambda x: torch.full_like(x, 7), {"value": 7}, E)
    for a in (
        {"start": 5},
        {"start": 2, "stop": 7},
        {"start": 7, "stop": 2, "step": -2},
        {"start": 0},
        {"start": 3, "stop": 3},
    ):
        args = [a["start"]] + ([a["stop"]] if "stop" in a else []) + ([a["step"]] if "step" in a else [])
        case("arange", [], lambda: torch.arange(*args), a, E)
    case("arange", [], lambda: torch.arange(0, 1, 0.25, dtype=torch.float32), {"start": 0, "stop": 1, "step": 0.25}, E)
    case("arange", [], lambda: torch.arange(4, dtype=torch.float64), {"start": 4, "dtype": "f64"}, E, dtype="f64")
    for a, b, n in ((0, 1, 5), (2, -3, 11), (1, 1, 3), (0, 5, 1), (0, 1, 0)):
        case(
            "linspace",
            [],
            lambda: torch.linspace(a, b, n),
            {"start": a, "stop": b, "n": n, "dtype": "f64"},
            dtype="f64",
        )
    for n, m in ((3, None), (2, 4), (4, 2), (0, None)):
        case("eye", [], lambda: torch.eye(n, m or n).float(), {"n": n, "m": m} if m else {"n": n}, E)
    for x in (ints(5, lo=0, hi=3), ints(2, 3, lo=0, hi=3), of(2, "i64"), ints(0)):
        case("one_hot", [x], lambda x: F.one_hot(x, 4).float(), {"classes": 4}, E)
    case("one_hot", [ints(3)], lambda x: F.one_hot(x, 6), {"classes": 6, "dtype": "i64"}, E)


def views():
    for s, t in (
        ((2, 3), [3, 2]),
        ((2, 3), [-1]),
        ((6,), [2, -1]),
        ((), [1, 1]),
        ((1,), []),
        ((0, 3), [3, 0]),
        ((2, 3, 4), [6, 4]),
    ):
        case("reshape", [f(*s)], lambda x: x.reshape(t), {"shape": t}, E)
    for s, a, b in (
        ((2, 3, 4), None, None),
        ((2, 3, 4), 2, 3),
        ((2, 3, 4), 1, 2),
        ((), None, None),
        ((2, 0), None, None),
        ((2, 3, 4), -2, -1),
    ):
        attr = {"first": a, "last": b} if a else None
        case("flatten", [f(*s)], lambda x: x.flatten(*((a - (a > 0), b - (b > 0)) if a else (0, -1))), attr, E)
    for s, a, b in (((2, 3), None, None), ((2, 3, 4), 1, 3), ((2, 3, 4), -3, 2), ((0, 2), None, None)):
        attr = {"dim0": a, "dim1": b} if a else None
        case("transpose", [f(*s)], lambda x: x.transpose(*((a - (a > 0), b - (b > 0)) if a else (-2, -1))), attr, E)
    for s, d in (((2, 3), [2, 1]), ((2, 3, 4), [3, 1, 2]), ((2, 3, 4), [-1, 1, -2]), ((), []), ((2, 0, 3), [2, 3, 1])):
        case("permute", [f(*s)], lambda x: x.permute([v - (v > 0) for v in d]), {"dims": d}, E)
    for s, d, a, n in (((2, 5), 2, 2, 3), ((5,), 1, 1, 5), ((5, 2), 1, -2, 2), ((4, 2), -2, 4, 1), ((3,), 1, 1, 0)):
        start = a - 1 if a > 0 else a % s[d - (d > 0)]
        case("narrow", [f(*s)], lambda x: x.narrow(d - (d > 0), start, n), {"dim": d, "start": a, "length": n}, E)
    for s, d, i in (((2, 3), 1, 2), ((2, 3), 2, -1), ((4,), 1, 1), ((2, 3, 4), -2, 3)):
        case("select", [f(*s)], lambda x: x.select(d - (d > 0), i - (i > 0)), {"dim": d, "index": i}, E)
    for s, t in (((2, 1), [2, 3]), ((3,), [2, 3]), ((), [2, 2]), ((2, 1), [4, -1, 3]), ((1,), [0])):
        case("expand", [f(*s)], lambda x: x.expand(t), {"shape": t})
    for s, d in (((1, 3, 1), None), ((1, 3, 1), 1), ((1, 3, 1), -1), ((2, 3), 1), ((), None), ((1, 0), None)):
        case("squeeze", [f(*s)], lambda x: x.squeeze(d - (d > 0)) if d else x.squeeze(), {"dim": d} if d else None, E)
    for s, d in (((2, 3), 1), ((2, 3), 3), ((2, 3), -1), ((), 1), ((0,), 1)):
        case("unsqueeze", [f(*s)], lambda x: x.unsqueeze(d - (d > 0)), {"dim": d}, E)
    for s, d in (((2, 3), None), ((2, 3), [1]), ((2, 3, 4), [-1, 1]), ((), None), ((0, 2), [1])):
        case(
            "flip",
            [f(*s)],
            lambda x: x.flip([v - (v > 0) for v in d] if d else list(range(len(s)))),
            {"dims": d} if d else None,
            E,
        )
    for s in ((3, 3), (2, 4), (2, 3, 2)):
        for k in (0, 1, -1):
            case("diagonal", [f(*s)], lambda x: x.diagonal(k, -2, -1), {"k": k} if k else None, E)
    case("unpack_qkv", [f(2, 4, 3)], lambda x: (x[:, :2], x[:, 2:3], x[:, 3:]), {"heads": 2, "kv_heads": 1}, E)
    case(
        "unpack_qkv",
        [f(2, 3, 8, 2)],
        lambda x: (x[:, :, :4], x[:, :, 4:6], x[:, :, 6:]),
        {"heads": 4, "kv_heads": 2},
        E,
    )


def joining():
    for shapes, d in (
        (((2, 3), (4, 3)), None),
        (((2, 3), (2, 1), (2, 2)), 2),
        (((3,), (0,)), 1),
        (((2, 1, 3), (2, 2, 3)), -2),
    ):
        case(
            "cat",
            [[f(*s) for s in shapes]],
            lambda xs: torch.cat(xs, d - (d > 0) if d else 0),
            {"dim": d} if d else None,
            E,
        )
    case("cat", [[ints(2), ints(3)]], torch.cat, None, E)
    for s, d in (((2, 3), None), ((2, 3), 3), ((2, 3), -1), ((), 1), ((0, 2), 2)):
        case(
            "stack",
            [[f(*s), f(*s), f(*s)]],
            lambda xs: torch.stack(xs, d - (d > 0) if d else 0),
            {"dim": d} if d else None,
            E,
        )
    for s, p, v in (
        ((2, 3), [1, 2], None),
        ((2, 3), [1, 0, 0, 2], 1.5),
        ((2, 3), [-1, 1], None),
        ((2, 3), [0, -1, -1, 0], None),
        ((0, 2), [1, 1, 1, 1], None),
        ((4,), [2, 3], -1),
    ):
        case("pad", [f(*s)], lambda x: F.pad(x, p, value=v or 0), {"pads": p, "value": v} if v else {"pads": p}, E)
    for s, c in (((2, 3), [2, 1]), ((3,), [2, 2]), ((2, 3), [1, 3]), ((), [3]), ((2,), [0])):
        case("tile", [f(*s)], lambda x: x.repeat(c), {"counts": c})
    for s, n, d in (((2, 3), 2, 1), ((2, 3), 3, -1), ((4,), 1, 1), ((2,), 0, 1), ((2, 3, 2), 2, 2)):
        case("repeat_interleave", [f(*s)], lambda x: x.repeat_interleave(n, d - (d > 0)), {"n": n, "dim": d})
    for s, n, d in (((5,), 2, 1), ((2, 5), -1, 2), ((4, 2), 9, 1), ((2, 3), 0, -1), ((0,), 1, 1)):
        case("roll", [f(*s)], lambda x: x.roll(n, d - (d > 0)), {"shift": n, "dim": d}, E)
    for s in ((3, 3), (2, 4), (4, 2), (2, 3, 3), (0, 3)):
        for k in (0, 1, -1, 5):
            for op in ("tril", "triu"):
                case(op, [f(*s)], lambda x, op=op: getattr(torch, op)(x, k), {"k": k} if k else None, E)
    for s, k in (((3,), 0), ((2, 3), 1), ((2,), -2), ((0,), 1)):
        case("diag_embed", [f(*s)], lambda x: torch.diag_embed(x, k), {"k": k} if k else None, E)
    for s, k in (((3,), 0), ((2,), 1), ((3, 3), 0), ((3, 4), -1), ((2, 4), 2)):
        case("diag", [f(*s)], lambda x: torch.diag(x, k), {"k": k} if k else None, E)


def indexing():
    for s, i, d in (
        ((3, 4), (2, 4), 1),
        ((3, 4), (3, 6), 2),
        ((5,), (9,), 1),
        ((2, 3, 4), (2, 2, 4), -2),
        ((3, 4), (0, 4), 1),
        ((2, 50), (2, 37), 2),
    ):
        case(
            "gather", [f(*s), ints(*i, lo=0, hi=s[d - (d > 0)] - 1)], lambda x, i: x.gather(d - (d > 0), i), {"dim": d}
        )
    for s, n, d in (((4, 3), 5, 1), ((2, 4), 3, 2), ((2, 4, 3), 6, -2), ((4,), 0, 1)):
        case(
            "index_select",
            [f(*s), ints(n, lo=0, hi=s[d - (d > 0)] - 1)],
            lambda x, i: x.index_select(d - (d > 0), i),
            {"dim": d},
        )
        case(
            "index_add",
            [
                f(*s),
                ints(n, lo=0, hi=s[d - (d > 0)] - 1),
                f(*[n if k == (d - (d > 0)) % len(s) else v for k, v in enumerate(s)]),
            ],
            lambda x, i, y: x.index_add(d - (d > 0), i, y),
            {"dim": d},
            "sum",
        )
    for ids in ((4,), (2, 3), (), (0,), (2, 1, 3)):
        case("embedding", [f(6, 3), ints(*ids, lo=0, hi=5)], lambda w, i: F.embedding(i, w))
    case(
        "embedding",
        [f(6, 17), of([1, 2, 2, 0, 2], "i64")],
        lambda w, i: F.embedding(i, w, padding_idx=2),
        {"padding_idx": 2},
    )
    case(
        "embedding_backward",
        [f(4, 3), of([1, 0, 1, 5], "i64")],
        lambda g, i: torch.zeros(6, 3).index_add(0, i, g),
        {"rows": 6},
        "sum",
    )
    case(
        "embedding_backward",
        [f(2, 2, 17), of([[1, 2], [1, 0]], "i64")],
        lambda g, i: torch.zeros(4, 17).index_add(0, i.reshape(-1), g.reshape(-1, 17) * (i.reshape(-1, 1) != 2)),
        {"rows": 4, "padding_idx": 2},
        "sum",
    )
    for s, m in (((2, 3), (2, 3)), ((2, 3), (3,)), ((7,), (7,)), ((0,), (0,)), ((), ())):
        case("masked_select", [f(*s), bools(*m)], torch.masked_select, tol=E)
        x = bools(*m)
        n = int(x.torch().expand(s).sum())
        case("masked_scatter", [f(*s), x, f(n + 2)], torch.masked_scatter, tol=E)
    for x in (
        ints(3, 4, lo=0, hi=2),
        bools(5),
        of([0.0, -0.0, 2.5, float("nan")]),
        of(3, "i64"),
        of(0, "i64"),
        f(0, 2),
        ints(2, 2, 2, lo=0, hi=1),
    ):
        case("nonzero", [x], torch.nonzero, tol=E)
    rows = lambda n, k, m: Column(n, k, m)
    for s, i, d in (((3, 4), rows(2, 4, 3), 1), ((5, 3), rows(5, 3, 5), 1)):
        case("scatter", [f(*s), i, f(*i.shape)], lambda x, i, y: x.scatter(d - 1, i, y), {"dim": d}, E)
    case(
        "scatter",
        [f(2, 5), of([[0, 2, 4], [4, 3, 1]], "i64"), f(2, 3)],
        lambda x, i, y: x.scatter(1, i, y),
        {"dim": -1},
        E,
    )
    case("scatter", [f(5), of([3, 1], "i64"), 2.5], lambda x, i, y: x.scatter(0, i, y), {"dim": 1}, E, note="a number")
    case(
        "scatter",
        [f(5), of([3, 3, 3], "i64"), of([1.0, 2.0, 3.0])],
        lambda x, i, y: torch.cat([x[:3], y[2:], x[4:]]),
        {"dim": 1},
        E,
        note="the last of equal indices wins",
    )
    for s, i, d in (((3, 4), (2, 4), 1), ((3, 4), (3, 7), 2), ((5,), (9,), 1), ((2, 3, 4), (2, 5, 4), -2)):
        case(
            "scatter_add",
            [f(*s), ints(*i, lo=0, hi=s[d - (d > 0)] - 1), f(*i)],
            lambda x, i, y: x.scatter_add(d - (d > 0), i, y),
            {"dim": d},
            "sum",
        )
    case("scatter_add", [ints(4), of([0, 0, 3], "i64"), ints(3)], lambda x, i, y: x.scatter_add(0, i, y), {"dim": 1}, E)


def Column(n, k, m):
    """Indices (n, k) below m of which no column repeats one."""
    order = [[(r * 2 + c * 3) % m if m % 2 else (r + c) % m for c in range(k)] for r in range(n)]
    return of(order, "i64")


def make():
    creation()
    views()
    joining()
    indexing()
