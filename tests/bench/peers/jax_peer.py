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


def ppo_program(envs, updates):
    """PPO on CartPole as PureJaxRL has it, CleanRL's settings: environment, rollout and updates in one scan."""
    T, EPOCHS, MINI = 128, 4, 4
    B = envs * T
    def layer(key, i, o, gain):
        return jax.nn.initializers.orthogonal(gain)(key, (i, o)), jnp.zeros(o)
    def init(key):
        k = jax.random.split(key, 6)
        s = 2 ** 0.5
        return dict(a=[layer(k[0], 4, 64, s), layer(k[1], 64, 64, s), layer(k[2], 64, 2, 0.01)],
                    c=[layer(k[3], 4, 64, s), layer(k[4], 64, 64, s), layer(k[5], 64, 1, 1.0)])
    def net(p, x):
        for w, b in p[:-1]:
            x = jnp.tanh(x @ w + b)
        return x @ p[-1][0] + p[-1][1]
    def env_step(s, a, t, key):  # s (N,4)
        x, xd, th, thd = s[:, 0], s[:, 1], s[:, 2], s[:, 3]
        f = jnp.where(a == 1, 10.0, -10.0)
        c, sn = jnp.cos(th), jnp.sin(th)
        temp = (f + 0.05 * thd ** 2 * sn) / 1.1
        tha = (9.8 * sn - c * temp) / (0.5 * (4.0 / 3.0 - 0.1 * c ** 2 / 1.1))
        xa = temp - 0.05 * tha * c / 1.1
        n = jnp.stack([x + 0.02 * xd, xd + 0.02 * xa, th + 0.02 * thd, thd + 0.02 * tha], 1)
        t = t + 1
        done = (jnp.abs(n[:, 0]) > 2.4) | (jnp.abs(n[:, 2]) > 12 * 2 * jnp.pi / 360) | (t >= 500)
        fresh = jax.random.uniform(key, s.shape, minval=-0.05, maxval=0.05)
        return jnp.where(done[:, None], fresh, n), jnp.where(done, 0, t), jnp.ones(s.shape[0]), done
    def loss_fn(p, mb):
        obs, act, logp_old, adv, ret, val_old = mb
        logits = net(p["a"], obs); v = net(p["c"], obs)[:, 0]
        lp = jax.nn.log_softmax(logits)
        logp = jnp.take_along_axis(lp, act[:, None], 1)[:, 0]
        ent = -(jnp.exp(lp) * lp).sum(-1).mean()
        ratio = jnp.exp(logp - logp_old)
        adv = (adv - adv.mean()) / (adv.std() + 1e-8)
        pg = jnp.maximum(-adv * ratio, -adv * jnp.clip(ratio, 0.8, 1.2)).mean()
        vc = val_old + jnp.clip(v - val_old, -0.2, 0.2)
        vl = 0.5 * jnp.maximum((v - ret) ** 2, (vc - ret) ** 2).mean()
        return pg - 0.01 * ent + 0.5 * vl
    def adam(p, g, st, lr):
        m, v, n = st
        norm = jnp.sqrt(sum(jnp.sum(x * x) for x in jax.tree.leaves(g)))
        sc = jnp.minimum(1.0, 0.5 / (norm + 1e-6))
        n = n + 1
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g * sc, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * (g * sc) ** 2, v, g)
        c1, c2 = 1 - 0.9 ** n, 1 - 0.999 ** n
        p = jax.tree.map(lambda p, m, v: p - lr * (m / c1) / (jnp.sqrt(v / c2) + 1e-5), p, m, v)
        return p, (m, v, n)
    def update(carry, i):
        p, st, s, t, key = carry
        def roll(c, _):
            s, t, key = c
            key, k1, k2 = jax.random.split(key, 3)
            logits = net(p["a"], s); v = net(p["c"], s)[:, 0]
            a = jax.random.categorical(k1, logits)
            logp = jnp.take_along_axis(jax.nn.log_softmax(logits), a[:, None], 1)[:, 0]
            s2, t2, r, d = env_step(s, a, t, k2)
            return (s2, t2, key), (s, a, logp, v, r, d)
        (s, t, key), (obs, act, logp, val, rew, done) = jax.lax.scan(roll, (s, t, key), None, T)
        last = net(p["c"], s)[:, 0]
        def gae(c, x):
            a, nv = c
            v, r, d = x
            delta = r + 0.99 * nv * (1 - d) - v
            a = delta + 0.99 * 0.95 * (1 - d) * a
            return (a, v), a
        _, adv = jax.lax.scan(gae, (jnp.zeros(envs), last), (val, rew, done), reverse=True)
        ret = adv + val
        flat = [x.reshape((B,) + x.shape[2:]) for x in (obs, act, logp, adv, ret, val)]
        lr = 2.5e-4 * (1 - i / updates)
        def epoch(c, _):
            p, st, key = c
            key, k = jax.random.split(key)
            perm = jax.random.permutation(k, B)
            mbs = [x[perm].reshape((MINI, B // MINI) + x.shape[1:]) for x in flat]
            def mini(c, mb):
                p, st = c
                g = jax.grad(loss_fn)(p, mb)
                return adam(p, g, st, lr), None
            (p, st), _ = jax.lax.scan(mini, (p, st), mbs)
            return (p, st, key), None
        (p, st, key), _ = jax.lax.scan(epoch, (p, st, key), None, EPOCHS)
        return (p, st, s, t, key), done.sum()
    @jax.jit
    def train(key):
        key, k1, k2 = jax.random.split(key, 3)
        p = init(k1)
        z = jax.tree.map(jnp.zeros_like, p)
        s = jax.random.uniform(k2, (envs, 4), minval=-0.05, maxval=0.05)
        c, done = jax.lax.scan(update, (p, (z, z, 0.0), s, jnp.zeros(envs, jnp.int32), key), jnp.arange(updates))
        return c[0], done
    return train


def ppo(envs, updates):
    key = ("ppo", envs, updates)
    if key not in cached:
        cached[key] = ppo_program(envs, updates)
        jax.block_until_ready(cached[key](jax.random.PRNGKey(0)))
    t = time.perf_counter()
    jax.block_until_ready(cached[key](jax.random.PRNGKey(1)))
    return time.perf_counter() - t


COMMANDS = {
    "train": train_step,
    "generate": lambda b, n: generate(int(b), int(n)),
    "ppo": lambda n, updates: ppo(int(n), int(updates)),
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
