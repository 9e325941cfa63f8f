"""Cases of the ops that layers are made of: softmax, norms, gates, rotary positions, attention."""

import torch
import torch.nn.functional as F

from vectors import Tensor, bools, case, f, ints, of

INF, NAN = float("inf"), float("nan")


def gradient_of(fn, n=1):
    """Derivatives of fn for its first n inputs, the last input being the gradient of its result."""

    def run(*given):
        x = [t.detach().requires_grad_() if i < n else t for i, t in enumerate(given[:-1])]
        got = torch.autograd.grad(fn(*x), x[:n], given[-1].detach())
        return got if n > 1 else got[0]

    return run


def softmaxes():
    for s, dim in (
        ((2, 3), None),
        ((2, 3), 1),
        ((2, 3, 4), 2),
        ((0, 3), None),
        ((3, 37), None),
        ((37, 3), 1),
        ((1, 300), None),
    ):
        d = -1 if dim is None else dim - 1
        attr = {"dim": dim} if dim else None
        n = s[d] if s else 1
        for op in ("softmax", "log_softmax"):
            fn = getattr(torch, op)
            case(op, [f(*s, lo=-4, hi=4)], lambda x, fn=fn: fn(x, d), attr, "sum", n=n)
            case(
                op + "_backward",
                [f(*s, lo=0 if op == "softmax" else -4, hi=1), f(*s)],
                (
                    (lambda y, g: y * (g - (g * y).sum(d, True)))
                    if op == "softmax"
                    else (lambda y, g: g - y.exp() * g.sum(d, True))
                ),
                attr,
                "sum",
                n=n,
            )
    for op in ("softmax", "log_softmax"):
        fn = getattr(torch, op)
        case(
            op,
            [of([[900.0, 901.0, -900.0], [-INF, 0.0, 1.0], [INF, 0.0, 1.0], [-INF, -INF, -INF], [NAN, 0.0, 1.0]])],
            lambda x, fn=fn: fn(x, -1),
            tol="each",
            grad=False,
            note="special",
        )


def rms_norm(x, w, eps=1e-6):
    y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
    return y if w is None else y * w


def layer_norm(x, w, b, eps=1e-5):
    return F.layer_norm(x, x.shape[-1:], w, b, eps)


def norms():
    for s in ((2, 5), (7,), (2, 3, 4), (0, 5), (3, 37), (2, 130)):
        d = s[-1]
        for w, b in ((True, True), (True, False), (False, False)):
            weight = lambda: f(d, lo=0.5, hi=1.5) if w else None
            case("layer_norm", [f(*s), weight(), f(d) if b else None], layer_norm, tol="sum", n=d * 8)
            case(
                "add_layer_norm",
                [f(*s), f(*s), weight(), f(d) if b else None],
                lambda x, r, w, b: (layer_norm(x + r, w, b), x + r),
                tol="sum",
                n=d * 8,
            )
            if not b:
                case("rms_norm", [f(*s), weight()], rms_norm, tol="sum", n=d * 8)
                case(
                    "add_rms_norm",
                    [f(*s), f(*s), weight()],
                    lambda x, r, w: (rms_norm(x + r, w), x + r),
                    tol="sum",
                    n=d * 8,
                )
        zeros = torch.zeros(d)

        def layer_back(x, g, w, add):
            x, w, b = (t.detach().requires_grad_() for t in (x, torch.ones(d) if w is None else w, zeros))
            dx, dw, db = torch.autograd.grad(layer_norm(x, w, b), (x, w, b), g.detach())
            return dx if add is None else dx + add, dw, db

        def rms_back(x, g, w, add):
            x, w = (t.detach().requires_grad_() for t in (x, torch.ones(d) if w is None else w))
            dx, dw = torch.autograd.grad(rms_norm(x, w), (x, w), g.detach())
            return dx if add is None else dx + add, dw

        if s[0] > 0:
            case("layer_norm_backward", [f(*s), f(*s), f(d), f(*s)], layer_back, tol="sum", grad=False, n=d * 16)
            case("layer_norm_backward", [f(*s), f(*s), f(d), None], layer_back, tol="sum", grad=False, n=d * 16)
            case("rms_norm_backward", [f(*s), f(*s), f(d), f(*s)], rms_back, tol="sum", grad=False, n=d * 16)
            case("rms_norm_backward", [f(*s), f(*s), f(d), None], rms_back, tol="sum", grad=False, n=d * 16)
    case("layer_norm", [f(2, 5), None, None], lambda x, w, b: layer_norm(x, w, b, 0.5), {"eps": 0.5}, "sum")
    case("rms_norm", [f(2, 5), None], lambda x, w: rms_norm(x, w, 0.5), {"eps": 0.5}, "sum")
    for s, groups in (((2, 4), 2), ((2, 6, 3), 3), ((1, 4, 2, 3), 1), ((2, 4, 5), 4), ((0, 4, 2), 2)):
        for w in (True, False):
            case(
                "group_norm",
                [f(*s), f(s[1]) if w else None, f(s[1]) if w else None],
                lambda x, w, b: F.group_norm(x, groups, w, b),
                {"groups": groups},
                "sum",
                n=5000,
            )  # 1 / std is large


def gates():
    for s in ((2, 3), (), (0, 4), (37,)):
        fn = lambda a, b: F.silu(a) * b
        case("silu_mul", [f(*s), f(*s)], fn)
        case(
            "gated_mul_backward", [f(*s), f(*s), f(*s)], gradient_of(fn, 2), {"act": "silu"}, "sum", grad=False, n=1
        )
    for s in ((2, 6), (8,), (0, 4), (2, 3, 70)):
        h = s[-1] // 2
        fn = lambda x: F.silu(x[..., :h]) * x[..., h:]
        case("swiglu", [f(*s)], fn)
        case("gated_backward", [f(*s), f(*s[:-1], h)], gradient_of(fn), {"act": "silu"}, "sum", grad=False, n=1)
    case("dropout", [f(2, 3)], lambda x: x * 1, {"training": False}, "exact")
    case("dropout", [f(2, 3)], lambda x: x * 1, {"p": 0}, "exact")
    case("dropout_backward", [f(3, 4), ints(3, 4, lo=0, hi=1, dtype="u8")], lambda g, m: g * m * 1.25, {"scale": 1.25})


def rope(x, positions, inv_freq, interleaved=False, scale=1.0, sign=1.0):
    n = inv_freq.numel()
    angle = positions.double().unsqueeze(-1) * inv_freq.detach()
    cos, sin = (t * scale for t in (angle.cos(), sign * angle.sin()))
    if positions.dim() == 1:
        cos, sin = cos.unsqueeze(0), sin.unsqueeze(0)
    cos, sin = cos.unsqueeze(2), sin.unsqueeze(2)
    r, rest = x[..., : 2 * n], x[..., 2 * n :]
    if interleaved:
        a, b = r[..., 0::2], r[..., 1::2]
        out = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    else:
        a, b = r[..., :n], r[..., n:]
        out = torch.cat((a * cos - b * sin, b * cos + a * sin), -1)
    return torch.cat((out, rest), -1)


def ropes():
    freq = lambda n: of([2.0**-i for i in range(n)], "f32")
    for s, n in (((2, 3, 2, 4), 2), ((1, 5, 1, 6), 2), ((2, 4, 3, 16), 8)):
        for batched in (False, True):
            positions = ints(*((s[0], s[1]) if batched else (s[1],)), lo=0, hi=50)
            for inter in (False, True):
                case(
                    "rope",
                    [f(*s), positions, freq(n)],
                    lambda x, p, q: rope(x, p, q, inter),
                    {"interleaved": True} if inter else None,
                    "sum",
                    n=1,
                )
    case(
        "rope",
        [f(2, 3, 2, 4), ints(3, lo=0, hi=9), freq(2)],
        lambda x, p, q: rope(x, p, q, scale=1.25),
        {"scale": 1.25},
        "sum",
        n=1,
    )
    case(
        "rope",
        [f(2, 3, 2, 4), ints(3, lo=0, hi=9), freq(2)],
        lambda x, p, q: rope(x, p, q, sign=-1.0),
        {"inverse": True},
        "sum",
        n=1,
    )


def rope_qkv(x, positions, inv_freq, heads, kv_heads, **more):
    q, k, v = x[:, :, :heads], x[:, :, heads : heads + kv_heads], x[:, :, heads + kv_heads :]
    return rope(q, positions, inv_freq, **more), rope(k, positions, inv_freq, **more), v * 1


def fused_ropes():
    freq = of([1.0, 0.5], "f32")
    for h, kv, batched, more in (
        (2, 1, False, {}),
        (4, 2, True, {"interleaved": True}),
        (2, 2, False, {"scale": 1.25}),
    ):
        positions = ints(*((2, 3) if batched else (3,)), lo=0, hi=50)
        case(
            "rope_qkv",
            [f(2, 3, h + 2 * kv, 6), positions, freq],
            lambda x, p, q: rope_qkv(x, p, q, h, kv, **more),
            {"heads": h, "kv_heads": kv, **more},
            "sum",
            n=1,
        )

        def back(gq, gk, gv, p, q):
            x = torch.zeros(2, 3, h + 2 * kv, 6, requires_grad=True)
            return torch.autograd.grad(rope_qkv(x, p, q, h, kv, **more), x, (gq.detach(), gk.detach(), gv.detach()))[0]

        case(
            "rope_qkv_backward",
            [f(2, 3, h, 6), f(2, 3, kv, 6), f(2, 3, kv, 6), positions, freq],
            back,
            more or None,
            "sum",
            grad=False,
            n=1,
        )


def steps():
    """New tokens over a cache: rope, kv_append_ and causal attention."""
    for b, t, h, kv, pos, rotate, start, attr in (
        (2, 1, 2, 1, 3, True, None, {}),
        (1, 2, 4, 2, 1, False, None, {}),
        (2, 3, 2, 2, 2, True, [0, 1], {"interleaved": True}),
        (1, 1, 2, 1, 5, True, None, {"window": 2, "scale": 0.25}),
    ):
        positions = ints(t, lo=0, hi=20) if rotate else None
        freq = of([1.0, 0.5], "f32") if rotate else None

        def step(ck, cv, x, p, q, st):
            q_, k_, v_ = (
                rope_qkv(x, p, q, h, kv, interleaved="interleaved" in attr)
                if rotate
                else (x[:, :, :h], x[:, :, h : h + kv], x[:, :, h + kv :])
            )
            ck, cv = ck.clone(), cv.clone()
            ck[:, pos - 1 : pos - 1 + t], cv[:, pos - 1 : pos - 1 + t] = k_, v_
            n = pos - 1 + t
            y = attention(
                q_, ck[:, :n], cv[:, :n], None, st, causal=True, scale=attr.get("scale"), window=attr.get("window", 0)
            )
            return [y, ck, cv, x] + [u for u in (p, q, st) if u is not None]

        case(
            "attention_step_",
            [
                f(b, 6, kv, 4),
                f(b, 6, kv, 4),
                f(b, t, h + 2 * kv, 4),
                positions,
                freq,
                of(start, "i64") if start else None,
            ],
            step,
            {"pos": pos, **attr},
            "sum",
            grad=False,
            n=64,
        )


def visible(q, k, causal, window, offset, start, mask):
    """Which keys a query sees, (B, Hq, Tq, Tk), and what is added to its scores."""
    (b, tq, h, _), tk = q.shape, k.shape[1]
    see = torch.ones(b, h, tq, tk, dtype=torch.bool)
    i, j = torch.arange(tq).unsqueeze(1), torch.arange(tk).unsqueeze(0)
    offset = tk - tq if offset is None else offset
    if causal:
        see = see & (j <= i + offset)
    if window:
        see = see & (j > i + offset - window)
    if start is not None:
        see = see & (torch.arange(tk) >= start.reshape(-1, 1, 1, 1))
    added = torch.zeros(b, h, tq, tk)
    if mask is not None:
        m = mask if mask.dim() == 4 else mask.reshape(mask.shape[0], 1, 1, -1)
        if m.dtype == torch.bool:
            see = see & m
        else:
            added = added + m.detach()
    return see, added


def attention(q, k, v, mask, start, causal=False, scale=None, window=0, offset=None):
    see, added = visible(q, k, causal, window, offset, start, mask)
    groups = q.shape[2] // k.shape[2]
    qh, kh, vh = (t.transpose(1, 2) for t in (q, k.repeat_interleave(groups, 2), v.repeat_interleave(groups, 2)))
    bias = added.masked_fill(~see, -INF)
    nothing = ~see.any(-1, keepdim=True)
    out = F.scaled_dot_product_attention(qh, kh, vh, attn_mask=bias.masked_fill(nothing, 0.0), scale=scale)
    return out.masked_fill(nothing, 0.0).transpose(1, 2)


def log_sums(q, k, mask, start, causal=False, scale=None, window=0, offset=None):
    see, added = visible(q, k, causal, window, offset, start, mask)
    groups = q.shape[2] // k.shape[2]
    s = torch.einsum("bihd,bjhd->bhij", q, k.repeat_interleave(groups, 2)) * (scale or q.shape[-1] ** -0.5) + added
    return torch.logsumexp(s.masked_fill(~see, -INF), -1)


ATTENTION = [  # q shape, Tk, Hkv, attributes, mask, start
    ((2, 3, 2, 4), 3, 2, {}, None, None),
    ((2, 3, 2, 4), 3, 2, {"causal": True}, None, None),
    ((1, 5, 4, 8), 5, 2, {"causal": True}, None, None),
    ((2, 2, 4, 4), 6, 1, {"causal": True}, None, None),
    ((1, 1, 2, 4), 7, 2, {"causal": True}, None, None),
    ((1, 6, 2, 4), 6, 2, {"causal": True, "window": 2}, None, None),
    ((1, 4, 2, 4), 6, 1, {"causal": True, "window": 3, "scale": 0.25}, None, None),
    ((1, 3, 1, 4), 5, 1, {"causal": True, "offset": 0}, None, None),
    ((2, 4, 2, 4), 4, 2, {"causal": True}, None, [0, 2]),
    ((2, 3, 2, 4), 3, 2, {}, "keys", None),
    ((2, 3, 2, 4), 3, 2, {}, "all", None),
    ((2, 3, 2, 4), 3, 2, {"causal": True}, "added", None),
    ((2, 3, 4, 4), 3, 2, {"scale": 1.5}, "rows", [1, 0]),
    ((1, 9, 2, 16), 9, 2, {"causal": True}, None, None),
    ((1, 70, 1, 8), 70, 1, {"causal": True}, None, None),
    ((0, 3, 2, 4), 3, 2, {"causal": True}, None, None),
]


def attentions():
    for s, tk, hkv, attr, mask, start in ATTENTION:
        b, tq, h, d = s
        make = {
            None: lambda: None,
            "keys": lambda: bools(b, tk),
            "all": lambda: bools(b, h, tq, tk),
            "rows": lambda: bools(b, 1, tq, tk),
            "added": lambda: Added(b, h, tq, tk),
        }[mask]
        start = None if start is None else of(start, "i64")
        q, k, v = f(*s), f(b, tk, hkv, d), f(b, tk, hkv, d)
        m = make()
        case(
            "attention",
            [q, k, v, m, start],
            lambda q, k, v, m, t: attention(q, k, v, m, t, **attr),
            attr,
            "sum",
            n=64 * max(d, tk),
        )
        if b == 0 or tq > 10:
            continue
        qt, kt, vt = q.torch(), k.torch(), v.torch()
        mt, st = m.torch() if m else None, start.torch() if start else None
        out, lse = attention(qt, kt, vt, mt, st, **attr), log_sums(qt, kt, mt, st, **attr)
        back = gradient_of(lambda q, k, v: attention(q, k, v, mt, st, **attr), 3)
        rest = [x for x in (m, start)] if (m or start) else []
        case(
            "attention_backward",
            [q, k, v, of(out.tolist()), of(lse.tolist()), f(*s)] + rest,
            lambda q, k, v, out, lse, g, *more: back(q, k, v, g),
            attr,
            "sum",
            grad=False,
            n=256 * max(d, tk),
        )


def Added(b, h, tq, tk):
    """A mask to be added: like other floats, but no input that has a gradient."""
    t = f(b, h, tq, tk)
    t.dtype = "f32"
    return t


def caches():
    def append(pos):
        def run(ck, cv, k, v):
            ck, cv = ck.clone(), cv.clone()
            n = k.shape[1]
            ck[:, pos - 1 : pos - 1 + n], cv[:, pos - 1 : pos - 1 + n] = k, v
            return ck, cv, k, v

        return run

    for t, pos in ((1, 1), (2, 3), (5, 1)):
        case(
            "kv_append_",
            [f(2, 5, 2, 3), f(2, 5, 2, 3), f(2, t, 2, 3), f(2, t, 2, 3)],
            append(pos),
            {"pos": pos},
            "exact",
            grad=False,
        )
    def move(x, source, to):
        y = x.clone()
        for a, b in zip(source.tolist(), to.tolist()):
            y[b] = x[a]
        return y, source, to

    for s, source, to, seed in (
        ((4, 3), [2, 3], [0, 1], 11),
        ((3, 2, 2), [1, 0, 2], [0, 1, 1], 12),
        ((5,), [4, 0], [0, 4], 13),
    ):
        at = [Tensor("i64", (len(ids),), ids) for ids in (source, to)]
        x = Tensor("f", s, gen=(seed, -2048, 2048))
        case("move_rows_", [x] + at, move, tol="exact", grad=False)
    for s, pos in (((3,), None), ((2, 3), None)):
        case("copy_", [f(*s), f(3)], lambda a, b: (b.expand(a.shape), b), tol="exact", grad=False)
    case("copy_", [ints(3), f(3)], lambda a, b: (b.to(torch.int64), b), tol="exact", grad=False)
    case("fill_", [f(2, 3)], lambda x: torch.full_like(x, 1.5), {"value": 1.5}, "exact", grad=False)
    case("fill_", [ints(4)], lambda x: torch.full_like(x, 3), {"value": 3}, "exact", grad=False)


def make():
    softmaxes()
    norms()
    gates()
    ropes()
    fused_ropes()
    steps()
    attentions()
    caches()
