"""Writes tests/data/distributions.json: log-probabilities, entropies, means and divergences of torch.distributions and
of Stable-Baselines3's policies on random arrays, in binary64.

python distributions.py OUTPUT      (needs torch and stable_baselines3; not part of the tests)
"""

import json
import sys

import torch
import torch.distributions as D
from stable_baselines3.common import distributions as S

torch.set_default_dtype(torch.float64)
torch.manual_seed(0)
OUT = {}


def numbers(t):
    return {"shape": list(t.shape), "values": [float(v) for v in t.reshape(-1)]}


def record(name, given, **results):
    OUT[name] = {
        "given": {k: numbers(v) for k, v in given.items()},
        "want": {k: numbers(v.double()) for k, v in results.items() if v is not None},
    }


def sb3(cls, size, *params, **keywords):
    return cls(size, **keywords).proba_distribution(*params)


x, y = torch.randn(5, 4), torch.randn(5, 4)
a = torch.tensor([0, 3, 1, 2, 3])
p, q = D.Categorical(logits=x), D.Categorical(logits=y)
s = sb3(S.CategoricalDistribution, 4, x)
assert torch.allclose(s.log_prob(a), p.log_prob(a)) and torch.allclose(s.entropy(), p.entropy())
record("Categorical", {"logits": x, "other": y, "value": a}, log_prob=s.log_prob(a), entropy=s.entropy(),
       mode=s.mode(), kl=D.kl_divergence(p, q))

x, y = torch.randn(5, 7), torch.randn(5, 7)
a = torch.stack([torch.randint(n, (5,)) for n in (2, 4, 1)], -1)
s, t = (sb3(S.MultiCategoricalDistribution, [2, 4, 1], z) for z in (x, y))
record("MultiCategorical", {"logits": x, "other": y, "value": a}, log_prob=s.log_prob(a), entropy=s.entropy(),
       mode=s.mode(), kl=S.kl_divergence(s, t))

x, y = torch.randn(5, 3), torch.randn(5, 3)
a = torch.randint(2, (5, 3)).double()
s, t = (sb3(S.BernoulliDistribution, 3, z) for z in (x, y))
record("Bernoulli", {"logits": x, "other": y, "value": a}, log_prob=s.log_prob(a), entropy=s.entropy(),
       mode=s.mode(), mean=torch.sigmoid(x), kl=S.kl_divergence(s, t).sum(-1))

mean, log_std, other, other_std, a = torch.randn(5, 3), torch.randn(3), torch.randn(5, 3), torch.randn(3), torch.randn(5, 3)
s, t = sb3(S.DiagGaussianDistribution, 3, mean, log_std), sb3(S.DiagGaussianDistribution, 3, other, other_std)
record("Normal", {"mean": mean, "log_std": log_std, "other_mean": other, "other_log_std": other_std, "value": a},
       log_prob=s.log_prob(a), entropy=s.entropy(), mode=s.mode(), mean=mean,
       kl=S.kl_divergence(s, t).sum(-1))

u = torch.randn(5, 3)
squash = [D.transforms.TanhTransform(cache_size=1)]
n = D.Normal(mean, log_std.exp().expand(5, 3))
d = D.TransformedDistribution(n, squash)
act = torch.tanh(u)
s = sb3(S.SquashedDiagGaussianDistribution, 3, mean, log_std, epsilon=0.0)
assert torch.allclose(s.log_prob(act, u), d.log_prob(act).sum(-1), atol=1e-9)
record("SquashedNormal", {"mean": mean, "log_std": log_std, "value": act, "before": u},
       log_prob=s.log_prob(act, u), deterministic=s.mode())
high, low = 2.0, -1.0
wide = D.TransformedDistribution(n, [D.transforms.TanhTransform(), D.AffineTransform((low + high) / 2, (high - low) / 2)])
record("SquashedNormal wide", {"mean": mean, "log_std": log_std, "value": low + (high - low) * (act + 1) / 2, "before": u},
       log_prob=wide.log_prob(low + (high - low) * (act + 1) / 2).sum(-1))

alpha, beta, oa, ob, v = (torch.rand(5, 3) * 4 + 0.2 for _ in range(5))
v = v / 4.5
p, q = D.Beta(alpha, beta), D.Beta(oa, ob)
record("Beta", {"alpha": alpha, "beta": beta, "other_alpha": oa, "other_beta": ob, "value": v},
       log_prob=p.log_prob(v).sum(-1), entropy=p.entropy().sum(-1), mean=p.mean, kl=D.kl_divergence(p, q).sum(-1))

logits, mean, log_std, v = torch.randn(5, 4), torch.randn(5, 4, 2), torch.randn(5, 4, 2) / 2, torch.randn(5, 2)
m = D.MixtureSameFamily(D.Categorical(logits=logits), D.Independent(D.Normal(mean, log_std.exp()), 1))
record("Mixture", {"logits": logits, "mean": mean, "log_std": log_std, "value": v}, log_prob=m.log_prob(v), mean=m.mean)

with open(sys.argv[1], "w", encoding="utf-8") as out:
    out.write("{\n" + ",\n".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in OUT.items()) + "\n}\n")
