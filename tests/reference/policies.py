"""Cases of the ops of policies and their targets: choices by logits, n-step and lambda returns, V-trace (the loops of
the papers, written down step by step)."""

import mpmath
import torch

from vectors import bools, case, f, ints, of


def choices():
    def evaluate(x, a, m):
        d = torch.distributions.Categorical(logits=x if m is None else x.masked_fill(~m, float("-inf")))
        p = d.probs
        entropy = -(p * torch.where(p > 0, d.logits, torch.zeros_like(p))).sum(-1)
        return d.logits.gather(-1, a[..., None]).squeeze(-1), entropy

    for s in ((5,), (3, 2), (2, 3, 7), (4, 33)):
        case("categorical_logprob", [f(*s), ints(*s[:-1], lo=0, hi=s[-1] - 1), None], evaluate, tol="sum")
        case(
            "categorical_logprob", [f(*s, lo=-9, hi=9), ints(*s[:-1], lo=0, hi=s[-1] - 1), None], evaluate, tol="sum"
        )
    # the action taken is legal: others are tested by their laws
    mask = of([[True, False, True], [False, True, False], [True, True, True]], "bool")
    case("categorical_logprob", [f(3, 3), of([2, 1, 0], "i64"), mask], evaluate, tol="sum")

    def gradient(x, a, m, g_logp, g_entropy):
        x = x if m is None else torch.where(m, x, torch.tensor(-1e30))
        p, logp = torch.softmax(x, -1), torch.log_softmax(x, -1)
        w = logp - (p * logp).sum(-1, keepdim=True)
        out = torch.zeros_like(x)
        if g_logp is not None:
            out = out + (torch.nn.functional.one_hot(a, x.shape[-1]) - p) * g_logp[..., None]
        return out if g_entropy is None else out - p * w * g_entropy[..., None]

    name = "categorical_logprob_backward"
    for s in ((5,), (3, 4), (2, 33)):
        x, a, g = f(*s), ints(*s[:-1], lo=0, hi=s[-1] - 1), f(*s[:-1])
        for ins in ([x, a, None, g, f(*s[:-1])], [x, a, None, g, None], [x, a, None, None, g]):
            case(name, ins, gradient, tol="sum")
    case(name, [f(3, 3), of([2, 1, 0], "i64"), mask, f(3), f(3)], gradient, tol="sum")


class Psi(torch.autograd.Function):
    """Digamma's n-th derivative by mpmath: torch's trigamma has eleven digits."""

    @staticmethod
    def forward(ctx, x, n):
        ctx.save_for_backward(x)
        ctx.n = n
        return torch.tensor([float(mpmath.psi(n, v)) for v in x.reshape(-1).tolist()]).reshape(x.shape)

    @staticmethod
    def backward(ctx, g):
        return g * Psi.apply(ctx.saved_tensors[0], ctx.n + 1), None


def gamma_functions():
    def all_of(op, fn, attr=None, below=True):
        case(op, [f(2, 3, lo=0.25, hi=6)], fn, attr, "sum")
        case(op, [f(20, lo=6, hi=60)], fn, attr, "sum")
        case(op, [f(8, lo=1000, hi=30000)], fn, attr, "sum")
        case(op, [f(0, 3)], fn, attr, "sum")
        if below:  # the second derivative is not given below 0
            case(op, [of([-0.5, -1.25, -2.75, -30.5])], fn, attr, "sum", grad=op == "lgamma")

    all_of("lgamma", torch.lgamma)
    case("lgamma", [of([1.0, 2.0, 0.0, -1.0, torch.inf, torch.nan])], torch.lgamma, grad=False, note="special")
    all_of("digamma", lambda x: Psi.apply(x, 0))
    case("digamma", [of([0.0, -2.0, torch.inf, torch.nan])], torch.digamma, grad=False, note="special")
    for n in (0, 1, 2, 5):
        all_of("polygamma", lambda x: Psi.apply(x, n), {"n": n}, below=n < 2)


def flag(t, at):
    return torch.zeros(()) if t is None else t[at].double()


def rows(fn, nout):
    """fn(*row, ...) over one row of time, applied to each row of the inputs."""

    def run(*tensors):
        first = tensors[0]
        flat = [None if t is None else t.reshape(-1, first.shape[-1]) for t in tensors]
        outs = [fn(*[None if t is None else t[i] for t in flat]) for i in range(flat[0].shape[0])]
        return tuple(torch.stack([o[k] for o in outs]).reshape(first.shape) for k in range(nout))

    return run


def n_step(n, gamma):
    def one(r, nv, term, trunc, mask):
        sums, factors, used = [], [], []
        for t in range(len(r)):
            if mask is not None and not mask[t]:
                sums.append(0.0), factors.append(0.0), used.append(0.0)
                continue
            total, m, k = 0.0, 0, t
            while True:
                if mask is None or mask[k]:
                    total += gamma**m * float(r[k])
                    m, last = m + 1, k
                    if m == n or flag(term, k) or flag(trunc, k):
                        break
                if k == len(r) - 1:
                    break
                k += 1
            factor = 0.0 if flag(term, last) else gamma**m
            sums.append(total + (0.0 if nv is None else factor * float(nv[last])))
            factors.append(factor), used.append(float(m))
        return torch.tensor(sums), torch.tensor(factors), torch.tensor(used)

    return rows(one, 3)


def lambda_return(gamma, lam):
    def one(r, nv, term, trunc, mask, trace):
        assert mask is None
        out = [None] * len(r)
        for t in reversed(range(len(r))):
            if flag(term, t):
                out[t] = r[t]
            elif flag(trunc, t) or t == len(r) - 1:
                out[t] = r[t] + gamma * nv[t]
            else:
                w = lam * (1.0 if trace is None else trace[t + 1])
                out[t] = r[t] + gamma * ((1 - w) * nv[t] + w * out[t + 1])
        return (torch.stack(out),)

    return lambda *a: rows(one, 1)(*a)[0]


def vtrace(gamma, lam, rho_bar, c_bar, pg_rho_bar):
    """vs_s = V_s + sum_t gamma^(t-s) (prod c) delta_t, eq. 1 of IMPALA as it is printed, with the sum ended where the
    episode is."""

    def one(r, v, lr, nv, term, trunc, mask):
        assert mask is None
        n = len(r)

        def after(t):
            if flag(term, t):
                return torch.zeros(())
            if nv is not None:
                return nv[t]
            return v[t + 1] if t + 1 < n else torch.zeros(())

        rho = torch.exp(lr).clamp(max=rho_bar)
        c = lam * torch.exp(lr).clamp(max=c_bar)
        delta = [rho[t] * (r[t] + gamma * after(t) - v[t]) for t in range(n)]
        vs = []
        for s in range(n):
            total, weight = torch.zeros(()), 1.0
            for t in range(s, n):
                total = total + weight * delta[t]
                weight = weight * gamma * c[t]
                if flag(term, t) or flag(trunc, t):
                    break
            vs.append(v[s] + total)
        pg = []
        for s in range(n):
            stop = s == n - 1 or flag(term, s) or flag(trunc, s)
            target = after(s) if stop else vs[s + 1]
            pg.append(torch.exp(lr[s]).clamp(max=pg_rho_bar) * (r[s] + gamma * target - v[s]))
        vs = torch.stack(vs)
        return vs, torch.stack(pg), vs - v

    return rows(one, 3)


def targets():
    for s in ((6,), (2, 11)):
        for n, gamma in ((1, 0.99), (3, 0.9), (50, 1.0)):
            attr = {"n": n, "gamma": gamma}
            fn = n_step(n, gamma)
            case("n_step_returns", [f(*s), None, None, None, None], fn, attr, "sum", grad=False)
            case("n_step_returns", [f(*s), f(*s), bools(*s), bools(*s), None], fn, attr, "sum", grad=False)
            case("n_step_returns", [f(*s), f(*s), bools(*s), None, bools(*s)], fn, attr, "sum", grad=False)
        for lam in (0.0, 0.7, 1.0):
            attr, fn = {"gamma": 0.9, "lam": lam}, lambda_return(0.9, lam)
            case("lambda_returns", [f(*s), f(*s), None, None, None, None], fn, attr, "sum", grad=False)
            case("lambda_returns", [f(*s), f(*s), bools(*s), bools(*s), None, bools(*s)], fn, attr, "sum", grad=False)
        for attr in (
            {"gamma": 0.99, "lam": 1.0, "rho_bar": 1.0, "c_bar": 1.0, "pg_rho_bar": 1.0},
            {"gamma": 0.9, "lam": 0.8, "rho_bar": 1.5, "c_bar": 0.7, "pg_rho_bar": 2.0},
        ):
            fn = vtrace(**attr)
            case("vtrace", [f(*s), f(*s), f(*s), None, None, None, None], fn, attr, "sum", grad=False)
            case("vtrace", [f(*s), f(*s), f(*s), f(*s), bools(*s), bools(*s), None], fn, attr, "sum", grad=False)


def make():
    choices()
    targets()
    gamma_functions()
