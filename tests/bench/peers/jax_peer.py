"""The benchmarks' peer JAX: the demo GPT jitted, training and generation. Same protocol as
torch_peer.py."""

import os
import resource
import sys
import time

THREADS = os.environ.get("PEER_THREADS", "2")
if THREADS == "1":
    os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"

import jax
import jax.numpy as jnp
from functools import partial

MODELS = {"demo": (4, 128, 4, 32, 64), "gpt2": (12, 768, 12, 50257, 1024)}
BATCH = {"demo": (64, 64), "gpt2": (4, 64)}
cached = {}


def init(which):
    layers, d, heads, vocab, context = MODELS[which]
    keys = iter(jax.random.split(jax.random.PRNGKey(0), 8 * layers + 8))

    def w(*shape):
        return jax.random.normal(next(keys), shape) * 0.02

    def block():
        return dict(g1=jnp.ones(d), b1=jnp.zeros(d), qkv=w(d, 3 * d), qkvb=jnp.zeros(3 * d), out=w(d, d),
                    outb=jnp.zeros(d), g2=jnp.ones(d), b2=jnp.zeros(d), up=w(d, 4 * d), upb=jnp.zeros(4 * d),
                    down=w(4 * d, d), downb=jnp.zeros(d))

    p = dict(wte=w(vocab, d), wpe=w(context, d), gf=jnp.ones(d), bf=jnp.zeros(d),
             blocks=[block() for _ in range(layers)])
    if which == "demo":
        p["head"] = w(vocab, d)
    return p


def norm(x, g, b):
    m = x.mean(-1, keepdims=True)
    v = ((x - m) ** 2).mean(-1, keepdims=True)
    return (x - m) * jax.lax.rsqrt(v + 1e-5) * g + b


def heads_of(y, p, heads):
    b, t, d = y.shape
    qkv = (y @ p["qkv"] + p["qkvb"]).reshape(b, t, 3, heads, d // heads)
    return qkv[:, :, 0], qkv[:, :, 1], qkv[:, :, 2]


def mlp(x, p):
    return jax.nn.gelu(norm(x, p["g2"], p["b2"]) @ p["up"] + p["upb"], approximate=True) @ p["down"] + p["downb"]


def logits_of(params, ids, heads):
    b, t = ids.shape
    x = params["wte"][ids] + params["wpe"][:t]
    mask = jnp.tril(jnp.ones((t, t), bool))
    for p in params["blocks"]:
        q, k, v = heads_of(norm(x, p["g1"], p["b1"]), p, heads)
        s = jnp.einsum("bqhd,bkhd->bhqk", q, k) / q.shape[-1] ** 0.5
        a = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(jnp.where(mask, s, -1e30), -1), v)
        x = x + a.reshape(x.shape) @ p["out"] + p["outb"]
        x = x + mlp(x, p)
    return norm(x, params["gf"], params["bf"]) @ params.get("head", params["wte"]).T


def train_step(which):
    if which not in cached:
        heads = MODELS[which][2]
        params = init(which)
        b, t = BATCH[which]
        ids = jax.random.randint(jax.random.PRNGKey(1), (b, t + 1), 0, MODELS[which][3])

        def loss(p):
            logp = jax.nn.log_softmax(logits_of(p, ids[:, :-1], heads))
            return -jnp.take_along_axis(logp, ids[:, 1:, None], -1).mean()

        @partial(jax.jit, donate_argnums=0)
        def step(state):
            p, m, v, n = state
            g = jax.grad(loss)(p)
            n = n + 1
            m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
            v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
            c1, c2 = 1 - 0.9 ** n, 1 - 0.999 ** n
            p = jax.tree.map(lambda p, m, v: p * (1 - 1e-6) - 1e-4 * (m / c1) / (jnp.sqrt(v / c2) + 1e-8), p, m, v)
            return p, m, v, n

        zeros = lambda: jax.tree.map(jnp.zeros_like, params)
        state = [(params, zeros(), zeros(), 0.0)]

        def run():
            state[0] = jax.block_until_ready(step(state[0]))

        run()
        run()
        cached[which] = run
    t = time.perf_counter()
    cached[which]()
    return time.perf_counter() - t


def generate(batch, n):
    key = ("generate", batch, n)
    if key not in cached:
        layers, d, heads, vocab, _ = MODELS["demo"]
        params = init("demo")

        @jax.jit
        def run(params, rng):
            shape = (layers, batch, n, heads, d // heads)

            def step(carry, at):
                ids, ks, vs, rng = carry
                x = params["wte"][ids] + params["wpe"][at]
                x = x[:, None]
                for i, p in enumerate(params["blocks"]):
                    q, k, v = heads_of(norm(x, p["g1"], p["b1"]), p, heads)
                    ks = jax.lax.dynamic_update_slice(ks, k[None], (i, 0, at, 0, 0))
                    vs = jax.lax.dynamic_update_slice(vs, v[None], (i, 0, at, 0, 0))
                    s = jnp.einsum("bqhd,bkhd->bhqk", q, ks[i]) / (d // heads) ** 0.5
                    s = jnp.where(jnp.arange(n) <= at, s, -1e30)
                    a = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(s, -1), vs[i])
                    x = x + a.reshape(x.shape) @ p["out"] + p["outb"]
                    x = x + mlp(x, p)
                logits = (norm(x, params["gf"], params["bf"]) @ params["head"].T)[:, 0]
                rng, sub = jax.random.split(rng)
                ids = jax.random.categorical(sub, logits)
                return (ids, ks, vs, rng), ids

            start = (jnp.zeros(batch, jnp.int32), jnp.zeros(shape), jnp.zeros(shape), rng)
            return jax.lax.scan(step, start, jnp.arange(n))[1]

        jax.block_until_ready(run(params, jax.random.PRNGKey(0)))
        cached[key] = lambda: jax.block_until_ready(run(params, jax.random.PRNGKey(0)))
    t = time.perf_counter()
    cached[key]()
    return time.perf_counter() - t


COMMANDS = {
    "train": train_step,
    "generate": lambda b, n: generate(int(b), int(n)),
    "forget": lambda: cached.clear() or 0.0,
    "rss": lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    "version": lambda: f"jax {jax.__version__}",
}

for line in sys.stdin:
    words = line.split()
    try:
        print(COMMANDS[words[0]](*words[1:]), flush=True)
    except Exception as e:
        print("skip", " ".join(str(e).split())[:200], flush=True)
