"""The benchmarks' peer PyTorch: reads lines "name arg ..." and answers each with one line, the
seconds that one repetition took (or "skip reason"). Started by tests/bench/core.lua."""

import os
import resource
import sys
import time

import torch
import torch.nn.functional as F
from torch import nn

THREADS = int(os.environ.get("PEER_THREADS", "2"))
torch.set_num_threads(THREADS)
torch.manual_seed(0)


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.heads = heads
        self.n1, self.n2 = nn.LayerNorm(d), nn.LayerNorm(d)
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.up, self.down = nn.Linear(d, 4 * d), nn.Linear(4 * d, d)

    def forward(self, x, cache=None):
        b, t, d = x.shape
        q, k, v = self.qkv(self.n1(x)).view(b, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        if cache is not None:
            kc, vc, at = cache
            kc[:, :, at:at + t], vc[:, :, at:at + t] = k, v
            k, v = kc[:, :, :at + t], vc[:, :, :at + t]
        a = F.scaled_dot_product_attention(q, k, v, is_causal=cache is None)
        x = x + self.out(a.transpose(1, 2).reshape(b, t, d))
        return x + self.down(F.gelu(self.up(self.n2(x)), approximate="tanh"))


class GPT(nn.Module):
    def __init__(self, layers, d, heads, vocab, context, tied):
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocab, d), nn.Embedding(context, d)
        self.blocks = nn.ModuleList(Block(d, heads) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(d), nn.Linear(d, vocab, bias=False)
        if tied:
            self.head.weight = self.wte.weight
        self.d, self.heads = d, heads

    def forward(self, ids, caches=None, at=0):
        x = self.wte(ids) + self.wpe(torch.arange(at, at + ids.shape[1]))
        for i, block in enumerate(self.blocks):
            x = block(x, None if caches is None else (*caches[i], at))
        return self.head(self.norm(x))


MODELS = {"demo": (4, 128, 4, 32, 64, False), "gpt2": (12, 768, 12, 50257, 1024, True)}
BATCH = {"demo": (64, 64), "gpt2": (4, 64)}
cached = {}


def once(key, make):
    if key not in cached:
        cached[key] = make()
    return cached[key]


def timed(fn):
    t = time.perf_counter()
    fn()
    return time.perf_counter() - t


def loop(fn, least=0.02):
    n = 1
    while True:
        t = timed(lambda: [fn() for _ in range(n)])
        if t > least:
            return t / n
        n = max(2 * n, int(n * least * 1.2 / max(t, 1e-9)))


def train_step(which, compiled=False):
    def make():
        model = GPT(*MODELS[which])
        opt = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        b, t = BATCH[which]
        ids = torch.randint(MODELS[which][3], (b, t + 1))
        forward = torch.compile(model) if compiled else model

        def step():
            logits = forward(ids[:, :-1])
            loss = F.cross_entropy(logits.reshape(-1, logits.shape[-1]), ids[:, 1:].reshape(-1))
            opt.zero_grad()
            loss.backward()
            opt.step()

        step()
        step()
        return step

    return timed(once(("train", which, compiled), make))


@torch.no_grad()
def generate(batch, n):
    def make():
        return GPT(*MODELS["demo"]).eval()

    model = once("generate", make)
    head = model.d // model.heads

    def run():
        caches = [tuple(torch.empty(batch, model.heads, n, head) for _ in "kv") for _ in model.blocks]
        ids = torch.zeros(batch, 1, dtype=torch.long)
        for at in range(n):
            logits = model(ids, caches, at)[:, -1]
            ids = torch.multinomial(F.softmax(logits, -1), 1)

    return timed(run)


def mm(m, k, n):
    a, b, c = once(("mm", m, k, n), lambda: (torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)))
    return loop(lambda: torch.mm(a, b, out=c))


def linear(m, k, n):
    a, w = once(("linear", m, k, n), lambda: (torch.randn(m, k), torch.randn(n, k)))
    with torch.no_grad():
        return loop(lambda: F.linear(a, w))


UNARY = {
    "exp": lambda x, y: torch.exp(x, out=y),
    "tanh": lambda x, y: torch.tanh(x, out=y),
    "gelu": lambda x, y: F.gelu(x, approximate="tanh"),
    "softmax": lambda x, y: F.softmax(x, -1),
    "layer_norm": lambda x, y: F.layer_norm(x, (1024,)),
}


def unary(name):
    x, y = once("unary", lambda: (torch.randn(1024, 1024), torch.empty(1024, 1024)))
    with torch.no_grad():
        return loop(lambda: UNARY[name](x, y))


def cross_entropy():
    x, t = once("ce", lambda: (torch.randn(256, 50257, requires_grad=True), torch.randint(50257, (256,))))

    def run():
        x.grad = None
        F.cross_entropy(x, t).backward()

    return loop(run)


def adamw():
    def make():
        p = [torch.randn(10_000_000, requires_grad=True)]
        p[0].grad = torch.randn(10_000_000)
        return torch.optim.AdamW(p, lr=1e-4, fused=True)

    opt = once("adamw", make)
    return loop(opt.step)


def conv(*words):
    """Convolutions with ReLU between, both passes: inner, dims, x's shape, then six numbers for each layer."""

    def make():
        inner, dims, *n = map(int, words)
        kind = nn.Conv1d if dims == 1 else nn.Conv2d
        layers = []
        for i in range(dims + 2, len(n), 6):
            c, o, k, s, p, g = n[i : i + 6]
            layers += [nn.ReLU()] * (i > dims + 2) + [kind(c, o, k, s, p, groups=g)]
        net, x = nn.Sequential(*layers), torch.randn(n[: dims + 2], requires_grad=bool(inner))
        g = torch.randn_like(net(x))

        def step():
            x.grad = None
            net.zero_grad()
            net(x).backward(g)

        step()
        step()
        return step

    return loop(once(("conv", words), make))


def add8():
    a, b = torch.randn(8), torch.randn(8)
    return loop(lambda: a + b)


def recurrent(kind, what, batch, time, hidden):
    """One layer, forward and backward of the sum of y; a step: no_grad forward, or both passes."""

    def make():
        net = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](hidden, hidden, batch_first=True)
        x = torch.randn(batch, time, hidden, requires_grad=what == "train")
        h = torch.zeros(1, batch, hidden)
        state = (h, torch.zeros_like(h)) if kind == "lstm" else h

        def act():
            with torch.no_grad():
                net(x, state)

        def train():
            x.grad = None
            net.zero_grad()
            net(x, state)[0].sum().backward()

        return act if what == "act" else train

    return loop(once(("recurrent", kind, what, batch, time, hidden), make))


COMMANDS = {
    "recurrent": lambda kind, what, *sizes: recurrent(kind, what, *map(int, sizes)),
    "train": lambda which: train_step(which),
    "train_compiled": lambda which: train_step(which, True),
    "generate": lambda b, n: generate(int(b), int(n)),
    "mm": lambda *s: mm(*map(int, s)),
    "linear": lambda *s: linear(*map(int, s)),
    "unary": unary,
    "cross_entropy": cross_entropy,
    "adamw": adamw,
    "add8": add8,
    "conv": lambda *words: conv(*words),
    "forget": lambda: cached.clear() or 0.0,
    "rss": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "version": lambda: f"torch {torch.__version__}",
}

for line in sys.stdin:
    words = line.split()
    try:
        print(COMMANDS[words[0]](*words[1:]), flush=True)
    except Exception as e:  # a peer that cannot do one thing still does the others
        print("skip", " ".join(str(e).split())[:200], flush=True)
