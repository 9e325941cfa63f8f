"""Cases of losses, advantages and optimizer steps."""

import torch
import torch.nn.functional as F

from vectors import bools, case, f, ints, of


def ids(n, v, *ignored, ignore=-100):
    t = ints(n, lo=0, hi=v - 1)
    for i in ignored:
        t.values[i] = ignore
    return t


def cross_entropies():
    for s, ignored in (((4, 5), ()), ((4, 5), (1,)), ((2, 3, 4), ()), ((3, 37), (0,)), ((5,), ()), ((2, 300), ())):
        n = 1
        for k in s[:-1]:
            n *= k
        for smooth in (0, 0.1):
            for red in ("mean", "sum", "none"):
                t = ids(n, s[-1], *ignored)
                t.shape = list(s[:-1])
                attr = {"reduction": red} if red != "mean" else {}
                if smooth:
                    attr["label_smoothing"] = smooth

                def loss(x, t):
                    y = F.cross_entropy(x.reshape(-1, s[-1]), t.reshape(-1), label_smoothing=smooth, reduction=red)
                    return y.reshape(t.shape) if red == "none" else y

                case("cross_entropy", [f(*s), t], loss, attr or None, "sum", n=4 * s[-1] * n)
    t = of([1, 3, 2, 3], "i64")
    case("cross_entropy", [f(4, 5), t], lambda x, t: F.cross_entropy(x, t, ignore_index=3), {"ignore_index": 3}, "sum")
    case(
        "cross_entropy",
        [f(2, 5), of([-100, -100], "i64")],
        F.cross_entropy,
        tol="sum",
        grad=False,
        note="nothing counts",
    )
    case(
        "cross_entropy",
        [f(0, 5), ints(0)],
        lambda x, t: F.cross_entropy(x, t, reduction="sum"),
        {"reduction": "sum"},
        "sum",
    )
    case("cross_entropy", [of([[900.0, -900.0, 0.0]]), of([1], "i64")], F.cross_entropy, tol="each", note="far apart")
    for red in ("mean", "sum", "none"):
        x, t = f(4, 5), ids(4, 5, 2)
        m = x.torch().amax(-1)
        stats = torch.stack((m, (x.torch() - m[:, None]).exp().sum(-1).log()), -1)
        g = f(4) if red == "none" else f()

        def back(g, x, t, stats):
            y = x.detach().requires_grad_()
            return torch.autograd.grad(F.cross_entropy(y, t, reduction=red, label_smoothing=0.2), y, g.detach())[0]

        case(
            "cross_entropy_backward",
            [g, x, t, of(stats.tolist())],
            back,
            {"reduction": red, "label_smoothing": 0.2},
            "sum",
            grad=False,
        )


def token_logprob(h, w, t, b, temperature=1.0):
    logits = F.linear(h, w, b) / temperature
    logp = torch.log_softmax(logits, -1)
    on = (t != -100).double()
    picked = logp.gather(-1, (t * (t != -100)).unsqueeze(-1)).squeeze(-1)
    return picked * on, -(logp.exp() * logp).sum(-1) * on


def token_logprobs():
    for s, v, ignored in (((3, 4), 5, ()), ((2, 3, 4), 7, (1,)), ((5, 9), 70, (0, 4))):
        n = 1
        for k in s[:-1]:
            n *= k
        for bias in (True, False):
            for temperature in (1, 0.5):
                t = ids(n, v, *ignored)
                t.shape = list(s[:-1])
                attr = {"temperature": temperature} if temperature != 1 else None
                case(
                    "token_logprob",
                    [f(*s, lo=-1, hi=1), f(v, s[-1], lo=-1, hi=1), t, f(v) if bias else None],
                    lambda h, w, t, b: token_logprob(h, w, t, b, temperature),
                    attr,
                    "sum",
                    n=16 * v * s[-1],
                )
    h, w, t, b = f(3, 4), f(5, 4), ids(3, 5), f(5)
    logits = F.linear(h.torch(), w.torch(), b.torch())
    m = logits.amax(-1)
    stats = torch.stack((m, (logits - m[:, None]).exp().sum(-1).log()), -1)

    def back(g1, g2, h, w, t, b, stats):
        h, w, b = (x.detach().requires_grad_() for x in (h, w, b))
        return torch.autograd.grad(token_logprob(h, w, t, b), (h, w, b), (g1.detach(), g2.detach()))

    case("token_logprob_backward", [f(3), f(3), h, w, t, b, of(stats.tolist())], back, tol="sum", grad=False)


def reduce(x, how):
    return x.mean() if how == "mean" else x.sum() if how == "sum" else x


def pointwise():
    for s in ((2, 3), (), (37,)):
        for red in ("mean", "sum", "none"):
            attr = {"reduction": red} if red != "mean" else {}
            case("mse", [f(*s), f(*s)], lambda x, y: F.mse_loss(x, y, reduction=red), attr or None, "sum")
            for delta in (1, 0.5):
                more = {**attr, "delta": delta} if delta != 1 else attr
                case(
                    "huber",
                    [f(*s), f(*s)],
                    lambda x, y: F.huber_loss(x, y, reduction=red, delta=delta),
                    more or None,
                    "sum",
                )
            case(
                "bce_with_logits",
                [f(*s, lo=-6, hi=6), f(*s, lo=0, hi=1)],
                lambda x, y: F.binary_cross_entropy_with_logits(x, y, reduction=red),
                attr or None,
                "sum",
            )
            case(
                "bce_with_logits",
                [f(*s), f(*s, lo=0, hi=1), f(*s, lo=0, hi=2)],
                lambda x, y, w: reduce(F.binary_cross_entropy_with_logits(x, y, reduction="none") * w, red),
                attr or None,
                "sum",
            )
            if s:
                case(
                    "kl_div",
                    [f(*s, lo=-4, hi=-0.5), f(*s, lo=0.01, hi=0.9)],
                    lambda x, y: F.kl_div(x, y, reduction=red),
                    {"reduction": red},
                    "sum",
                )
                case(
                    "kl_div",
                    [f(*s, lo=-4, hi=-0.5), f(*s, lo=-4, hi=-0.5)],
                    lambda x, y: F.kl_div(x, y, reduction=red, log_target=True),
                    {"reduction": red, "log_target": True},
                    "sum",
                )
    case(
        "kl_div",
        [f(2, 3, lo=-4, hi=-0.5), f(2, 3, lo=0.01, hi=0.9)],
        lambda x, y: F.kl_div(x, y, reduction="batchmean"),
        None,
        "sum",
    )
    case(
        "kl_div",
        [f(2, 2, lo=-4, hi=-0.5), of([[0.0, 1.0], [0.5, 0.5]])],
        lambda x, y: F.kl_div(x, y, reduction="sum"),
        {"reduction": "sum"},
        "sum",
        grad=False,
        note="0 log 0 is 0",
    )
    case(
        "mse",
        [f(0), f(0)],
        lambda x, y: F.mse_loss(x, y, reduction="sum"),
        {"reduction": "sum"},
        "sum",
        note="of nothing",
    )
    case(
        "bce_with_logits",
        [of([900.0, -900.0]), of([0.0, 1.0])],
        F.binary_cross_entropy_with_logits,
        tol="each",
        note="far",
    )


def choices():
    for s, t in (((3, 5), 1.0), ((4,), 1.0), ((2, 2, 37), 0.5)):
        attr = {"greedy": True, "temperature": t} if t != 1 else {"greedy": True}
        case(
            "sample", [f(*s)], lambda x: (x.argmax(-1), torch.log_softmax(x / t, -1).amax(-1)), attr, "sum", grad=False
        )
    case("bernoulli", [of([0.0, 1.0, 1.0, 0.0])], lambda p: p * 1, tol="exact", grad=False)
    case(
        "categorical",
        [of([[0.0, -float("inf")], [-float("inf"), 3.0]])],
        lambda x: torch.tensor([[0, 0, 0], [1, 1, 1]]),
        {"n": 3},
        "exact",
    )


def discounted(r, done, gamma, reverse):
    n, out, total = r.shape[-1], [None] * r.shape[-1], torch.zeros(r.shape[:-1])
    for k in range(n):
        t = k if reverse else n - 1 - k
        at = t - 1 if reverse else t
        keep = 1.0 if done is None or at < 0 else 1.0 - done[..., at].double()
        total = r[..., t] + gamma * keep * total
        out[t] = total
    return torch.stack(out, -1)


def advantages():
    for s in ((5,), (2, 4), (3, 37)):
        for reverse in (False, True):
            attr = {"gamma": 0.75, "reverse": True} if reverse else {"gamma": 0.75}
            case("discounted_sum", [f(*s), bools(*s)], lambda r, d: discounted(r, d, 0.75, reverse), attr, "sum")
            case("discounted_sum", [f(*s), None], lambda r, d: discounted(r, d, 0.75, reverse), attr, "sum")

    def gae(r, v, nv, term, trunc, gamma=0.99, lam=0.95):
        n, total, out = r.shape[-1], torch.zeros(r.shape[:-1]), [None] * r.shape[-1]
        for t in reversed(range(n)):
            nxt = nv[..., t] if nv is not None else v[..., t + 1] if t + 1 < n else torch.zeros(r.shape[:-1])
            end = torch.zeros(r.shape[:-1]) if term is None else term[..., t].double()
            cut = end if trunc is None else torch.maximum(end, trunc[..., t].double())
            total = r[..., t] + gamma * (1 - end) * nxt - v[..., t] + gamma * lam * (1 - cut) * total
            out[t] = total
        a = torch.stack(out, -1)
        return a, a + v

    for s in ((6,), (2, 5)):
        case("gae", [f(*s), f(*s)], lambda r, v: gae(r, v, None, None, None), tol="sum", grad=False)
        case(
            "gae",
            [f(*s), f(*s), f(*s), bools(*s), bools(*s)],
            lambda r, v, nv, a, b: gae(r, v, nv, a, b, 0.9, 0.8),
            {"gamma": 0.9, "lam": 0.8},
            "sum",
            grad=False,
        )
    for std in ("sample", "population", "none"):

        def group(r):
            x = r.reshape(2, 4, -1)
            d = x - x.mean(1, keepdim=True)
            scale = 1 if std == "none" else x.std(1, keepdim=True, correction=1 if std == "sample" else 0) + 1e-4
            return (d / scale).reshape(r.shape)

        for s in ((8,), (8, 3)):
            case(
                "group_advantage",
                [f(*s)],
                group,
                {"group": 4} if std == "sample" else {"group": 4, "std": std},
                "sum",
                grad=False,
            )
    case(
        "group_advantage",
        [of([1.0, 1.0, 0.0, 2.0])],
        lambda r: torch.tensor([0.0, 0.0, -1.0, 1.0]) / (2**0.5 + 1e-4) * 1.0 * torch.tensor([1.0, 1.0, 1.0, 1.0]),
        {"group": 2},
        "sum",
        grad=False,
        note="equal rewards give 0",
    )


SHAPES = ((2, 3), (19,))


def optimizer(op, make, state, attr, scale=1.0, only=None):
    """One step of a torch optimizer from given buffers; the results are every list afterwards."""
    shapes = only or SHAPES
    lists = [[f(*s) for s in shapes], [f(*s) for s in shapes]] + [[f(*s, lo=0.1, hi=1) for s in shapes] for _ in state]

    def run(params, grads, *buffers):
        p = [x.detach().clone().requires_grad_() for x in params]
        for x, g in zip(p, grads):
            x.grad = g.detach() * scale
        opt = make(p)
        for i, x in enumerate(p):
            opt.state[x].update({name: b[i].detach().clone() for name, b in zip(state, buffers)})
            if "exp_avg" in state or "square_avg" in state:
                opt.state[x]["step"] = torch.tensor(2.0)
        opt.step()
        after = [[opt.state[x][name] for x in p] for name in state]
        return [x.detach() for x in p] + [g.detach() for g in grads] + [t for b in after for t in b]

    case(op, lists, run, attr, "sum", grad=False)


def steps():
    o = torch.optim
    optimizer("sgd_", lambda p: o.SGD(p, lr=0.1, momentum=0.9), ["momentum_buffer"], {"lr": 0.1, "momentum": 0.9})
    optimizer(
        "sgd_",
        lambda p: o.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        ["momentum_buffer"],
        {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
    )
    optimizer(
        "sgd_",
        lambda p: o.SGD(p, lr=0.1, momentum=0.8, dampening=0.5),
        ["momentum_buffer"],
        {"lr": 0.1, "momentum": 0.8, "dampening": 0.5, "grad_scale": 0.5},
        0.5,
    )
    moments = ["exp_avg", "exp_avg_sq"]
    optimizer("adam_", lambda p: o.Adam(p, lr=0.01), moments, {"lr": 0.01, "step": 3})
    optimizer(
        "adam_",
        lambda p: o.Adam(p, lr=0.01, betas=(0.8, 0.9), weight_decay=0.1, eps=1e-3),
        moments,
        {"lr": 0.01, "step": 3, "beta1": 0.8, "beta2": 0.9, "weight_decay": 0.1, "eps": 1e-3},
    )
    optimizer("adamw_", lambda p: o.AdamW(p, lr=0.01), moments, {"lr": 0.01, "step": 3})
    optimizer(
        "adamw_",
        lambda p: o.AdamW(p, lr=0.01, weight_decay=0.2),
        moments,
        {"lr": 0.01, "step": 3, "weight_decay": 0.2, "grad_scale": 0.25},
        0.25,
    )
    optimizer(
        "rmsprop_",
        lambda p: o.RMSprop(p, lr=0.01, momentum=0.9, weight_decay=0.1),
        ["square_avg", "momentum_buffer"],
        {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.1},
    )

    def lamb(params, grads, m, v):  # You et al. 2020, as apex's RefLAMB
        norm = torch.cat([g.reshape(-1) for g in grads]).norm()
        clip = torch.clamp(norm, min=1.0)
        ps, ms, vs = [], [], []
        for p, g, m1, v1 in zip(params, grads, m, v):
            g = g / clip
            m1, v1 = 0.9 * m1 + 0.1 * g, 0.999 * v1 + 0.001 * g * g
            u = (m1 / (1 - 0.9**3)) / ((v1 / (1 - 0.999**3)).sqrt() + 1e-6) + 0.01 * p
            ps.append(p - 0.01 * p.norm() / u.norm() * u)
            ms.append(m1)
            vs.append(v1)
        return ps + list(grads) + ms + vs

    case(
        "lamb_",
        [
            [f(*s) for s in SHAPES],
            [f(*s) for s in SHAPES],
            [f(*s) for s in SHAPES],
            [f(*s, lo=0.1, hi=1) for s in SHAPES],
        ],
        lamb,
        {"lr": 0.01, "step": 3},
        "sum",
        grad=False,
    )

    def muon(params, grads, bufs):  # Jordan et al. 2024
        ps, bs = [], []
        for p, g, b in zip(params, grads, bufs):
            b = 0.95 * b + 0.05 * g
            u = 0.05 * g + 0.95 * b
            x = u.T if u.shape[0] > u.shape[1] else u
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                a = x @ x.T
                x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
            u = x.T if u.shape[0] > u.shape[1] else x
            ps.append(p - 0.02 * max(1.0, p.shape[0] / p.shape[1]) ** 0.5 * u)
            bs.append(b)
        return ps + list(grads) + bs

    shapes = ((3, 4), (5, 2))
    case("muon_", [[f(*s) for s in shapes] for _ in range(3)], muon, {"lr": 0.02}, "sum", grad=False)
    case("global_norm", [[f(3), f(2, 3), f()]], lambda xs: torch.cat([x.reshape(-1) for x in xs]).norm(), None, "sum")
    for limit in (1, 100):

        def clip(xs):
            norm = torch.cat([x.reshape(-1) for x in xs]).norm()
            k = torch.clamp(limit / (norm + 1e-6), max=1.0)
            return [norm] + [x * k for x in xs]

        case("clip_grad_norm_", [[f(3), f(2, 3), f(40)]], clip, {"max_norm": limit}, "sum", grad=False)
    case(
        "ema_",
        [[f(3), f(37)], [f(3), f(37)]],
        lambda a, b: [0.9 * x + 0.1 * y for x, y in zip(a, b)] + list(b),
        {"decay": 0.9},
        "sum",
        grad=False,
    )


def make():
    cross_entropies()
    token_logprobs()
    pointwise()
    choices()
    advantages()
    steps()
