"""Cases of LSTM and GRU layers. What torch.nn has, states and both directions, is checked against it here; resets inside
a sequence and rows of unequal length are the same loop with the two masks."""

import torch

import vectors
from vectors import Tensor, bools, case, f

KINDS = {"lstm": (4, torch.nn.LSTM), "gru": (3, torch.nn.GRU)}


def steps(x, reverse):
    return range(x.shape[1] - 1, -1, -1) if reverse else range(x.shape[1])


def begins(starts, lengths, t, last, reverse):
    """(B, 1): does the state begin anew before step t; is t a step of the row."""
    n = torch.full((starts.shape[0],), last) if lengths is None else lengths
    alive = t < n
    new = starts[:, t + 1] & (t + 1 < n) if reverse and t + 1 < last else starts[:, t] & (not reverse)
    return new[:, None], alive[:, None]


def run(kind, x, wi, wh, bi, bh, h, c, starts, lengths, reverse):
    """The layer, step by step: y, h and, of an LSTM, c."""
    B, T = x.shape[:2]
    H = wh.shape[1]
    zero = torch.zeros(B, H)
    h, c = zero if h is None else h, zero if c is None else c
    starts = torch.zeros(B, T, dtype=torch.bool) if starts is None else starts
    ys = [None] * T
    for t in steps(x, reverse):
        new, alive = begins(starts, lengths, t, T, reverse)
        h0, c0 = torch.where(new, 0.0, h), torch.where(new, 0.0, c)
        gx = x[:, t] @ wi.T + (0 if bi is None else bi)
        gh = h0 @ wh.T + (0 if bh is None else bh)
        if kind == "lstm":
            i, forget, g, o = (gx + gh).chunk(4, 1)
            c1 = forget.sigmoid() * c0 + i.sigmoid() * g.tanh()
            h1 = o.sigmoid() * c1.tanh()
        else:
            (xr, xz, xn), (hr, hz, hn) = gx.chunk(3, 1), gh.chunk(3, 1)
            r, z = (xr + hr).sigmoid(), (xz + hz).sigmoid()
            n = (xn + r * hn).tanh()
            c1, h1 = c0, (1 - z) * n + z * h0
        ys[t] = torch.where(alive, h1, 0.0)
        h, c = torch.where(alive, h1, h), torch.where(alive, c1, c)
    y = torch.stack(ys, 1)
    return (y, h, c) if kind == "lstm" else (y, h)


def torch_run(kind, x, wi, wh, bi, bh, h, c, lengths):
    """torch.nn's, forward in time; packed where there are lengths."""
    net = KINDS[kind][1](x.shape[2], wh.shape[1], batch_first=True)
    net.load_state_dict({"weight_ih_l0": wi, "weight_hh_l0": wh, "bias_ih_l0": bi, "bias_hh_l0": bh})
    pack = torch.nn.utils.rnn
    given = x if lengths is None else pack.pack_padded_sequence(x, lengths, True, enforce_sorted=False)
    y, state = net(given, (h[None], c[None]) if kind == "lstm" else h[None])
    if lengths is not None:
        y = pack.pad_packed_sequence(y, True, total_length=x.shape[1])[0]
    return (y, state[0][0], state[1][0]) if kind == "lstm" else (y, state[0])


def forward(kind, B=2, T=3, I=2, H=3, bias=True, state=True, starts=False, lengths=None, reverse=False):
    rows = KINDS[kind][0] * H
    inputs = [f(B, T, I), f(rows, I, lo=-1, hi=1), f(rows, H, lo=-1, hi=1)]
    inputs += [f(rows, lo=-1, hi=1), f(rows, lo=-1, hi=1)] if bias else [None, None]
    inputs += [f(B, H, lo=-1, hi=1), f(B, H)][: 2 if kind == "lstm" else 1] if state else [None] * (
        2 if kind == "lstm" else 1
    )
    inputs += [bools(B, T) if starts else None, Tensor("i64", (B,), lengths) if lengths else None]

    def fn(x, wi, wh, bi, bh, h, *rest):
        c = rest[0] if kind == "lstm" else None
        out = run(kind, x, wi, wh, bi, bh, h, c, rest[-2], rest[-1], reverse)
        if bias and state and not starts and not reverse:
            for a, b in zip(out, torch_run(kind, x, wi, wh, bi, bh, h, c, rest[-1])):
                assert torch.allclose(a, b, rtol=1e-12, atol=1e-12), kind
        return out

    case(kind, inputs, fn, {"reverse": True} if reverse else None, "sum", n=(I + H) * T)


def backward(kind, B=2, T=3, H=2, masks=False, reverse=False):
    """The gradients of a step are those of its formula, from saved values that need not fit together."""
    lstm = kind == "lstm"
    G, S = (4, 5) if lstm else (3, 4)
    inputs = [f(G * H, H, lo=-1, hi=1), f(B, T, H, lo=-1, hi=1), f(B, T, S, H, lo=0, hi=1), f(B, H)]
    inputs += [f(B, H)] if lstm else []
    inputs += [bools(B, T), Tensor("i64", (B,), [T, T - 1])] if masks else [None, None]
    inputs += [f(B, T, H), f(B, H)] + ([f(B, H)] if lstm else [])

    def fn(w, y, saved, h0, *rest):
        c0 = rest[0] if lstm else None
        starts, lengths, gy, dh = rest[lstm : 4 + lstm]
        dc = rest[-1] if lstm else None
        starts = torch.zeros(B, T, dtype=torch.bool) if starts is None else starts
        n = torch.full((B,), T) if lengths is None else lengths
        dx, dw, before = torch.zeros(B, T, G * H), torch.zeros(B, T, G * H), torch.zeros(B, T, H)
        dh, dc = dh.clone(), dc.clone() if lstm else None
        for b in range(B):
            order = list(range(int(n[b])))
            for t in order if reverse else order[::-1]:
                new, _ = begins(starts[b : b + 1], n[b : b + 1], t, T, reverse)
                prev = t + 1 if reverse else t - 1
                outside = prev < 0 or prev >= n[b]
                hp = torch.zeros(H) if new else h0[b] if outside else y[b, prev]
                s, g = saved[b, t], dh[b] + gy[b, t]
                if lstm:
                    cp = torch.zeros(H) if new else c0[b] if outside else saved[b, prev, 4]
                    i, forget, cell, o, th = s[0], s[1], s[2], s[3], s[4].tanh()
                    d = dc[b] + g * o * (1 - th**2)
                    parts = [d * cell * i * (1 - i), d * cp * forget * (1 - forget), d * i * (1 - cell**2)]
                    dx[b, t] = dw[b, t] = torch.cat(parts + [g * th * o * (1 - o)])
                    dh[b], dc[b] = w.T @ dw[b, t], d * forget
                else:
                    r, z, m, q = s
                    dm = g * (1 - z) * (1 - m**2)
                    both = [dm * q * r * (1 - r), g * (hp - m) * z * (1 - z)]
                    dx[b, t], dw[b, t] = torch.cat(both + [dm]), torch.cat(both + [dm * r])
                    dh[b] = g * z + w.T @ dw[b, t]
                before[b, t] = hp
                if new:
                    dh[b] = 0
                    if lstm:
                        dc[b] = 0
        return (dx, before, dh, dc) if lstm else (dx, dw, before, dh)

    def detached(*given):
        return fn(*(t.detach() if torch.is_tensor(t) else t for t in given))

    case(kind + "_backward", inputs, detached, {"reverse": True} if reverse else None, "sum", n=G * H * T)


def make():
    vectors._seed[0] = 20150101
    for kind in KINDS:
        forward(kind)
        forward(kind, bias=False, state=False)
        forward(kind, B=3, T=4, starts=True, reverse=True)
        forward(kind, B=3, T=4, lengths=[2, 4, 1])
        forward(kind, B=3, T=4, starts=True, lengths=[4, 1, 3])
        forward(kind, B=3, T=3, starts=True, lengths=[2, 3, 1], reverse=True)
        forward(kind, B=2, T=1, I=3, H=4)
        backward(kind)
        backward(kind, masks=True)
        backward(kind, masks=True, reverse=True)
