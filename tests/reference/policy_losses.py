"""Writes tests/data/policy_losses.json: losses, gradients, statistics and advantages of TRL 1.16.0 and verl 0.9.1 on
random inputs, by running their own code.

python policy_losses.py VERL OUTPUT      (VERL: an unpacked verl-0.9.1 wheel; needs torch and trl; not part of the tests)
"""

import ast
import inspect
import json
import math
import pathlib
import sys
import textwrap
import types
from collections import defaultdict

import numpy as np
import torch
from trl.experimental.gmpo import GMPOTrainer
from trl.trainer import grpo_trainer, rloo_trainer
from trl.trainer.utils import nanstd

torch.set_default_dtype(torch.float64)
rng = np.random.default_rng(11)
B, N, G = 8, 6, 4


def rounded(x):
    return torch.tensor(np.round(np.asarray(x), 5))


def listed(t, digits=10):
    return np.round(np.asarray(t.detach() if torch.is_tensor(t) else t, dtype=np.float64), digits).tolist()


lengths = [6, 4, 1, 6, 5, 2, 6, 3]
mask = torch.tensor([[1.0 if t < n else 0.0 for t in range(N)] for n in lengths])
holes = mask.clone()  # a tool's tokens inside of answers
holes[0, 2:4] = 0
holes[3, 1] = 0
holes[6, 0] = 0
old = rounded(-rng.exponential(1.5, (B, N)) - 0.02)
logp = rounded(old.numpy() + rng.normal(0, 0.35, (B, N))).clamp(max=-0.001)
sampled = rounded(old.numpy() + rng.normal(0, 0.25, (B, N))).clamp(max=-0.001)
ref = rounded(old.numpy() + rng.normal(0, 0.5, (B, N))).clamp(max=-0.001)
entropy = rounded(rng.gamma(2, 0.6, (B, N)))
advantage = rounded(rng.normal(0, 1, B))
rewards = {"accuracy": rounded(rng.integers(0, 2, B)), "format": rounded(rng.normal(0, 0.5, B))}
weights = [1.0, 0.5]
rewards["accuracy"][:G] = torch.tensor([1.0, 0.0, 0.0, 1.0])
rewards["accuracy"][G:] = torch.tensor([0.0, 0.0, 1.0, 0.0])
token_rewards = rounded(rng.normal(0, 0.5, (B, N)))
values, new_values = rounded(rng.normal(0, 1, (B, N))), rounded(rng.normal(0, 1, (B, N)))
greedy = rounded(rng.normal(0, 0.5, B))

out = {
    "inputs": {
        name: listed(t)
        for name, t in dict(mask=mask, holes=holes, old=old, logp=logp, sampled=sampled, ref=ref, entropy=entropy,
                            advantage=advantage, token_rewards=token_rewards, values=values, new_values=new_values,
                            greedy=greedy, **rewards).items()
    }
    | {"group": G, "weights": weights},
}


# ---- TRL ----

class Accelerator:
    num_processes, sync_gradients = 1, True
    gather = gather_for_metrics = staticmethod(lambda t: t)
    reduce = staticmethod(lambda t, reduction=None: t)
    pad_across_processes = staticmethod(lambda t, dim=0, pad_index=0: t)


def trl_loss(loss_type, level="token", delta=None, beta=0.0, bias=False, off_policy=None, top_entropy=1.0, coef=0.0,
             factor=None, low=0.2, high=0.28, max_length=16, cls=grpo_trainer.GRPOTrainer):
    x, h = logp.clone().requires_grad_(), entropy.clone().requires_grad_()
    args = types.SimpleNamespace(delta=delta, use_bias_correction_kl=bias, sapo_temperature_pos=1.0,
                                 sapo_temperature_neg=1.05, steps_per_generation=1)
    self = types.SimpleNamespace(
        _get_per_token_logps_and_entropies=lambda *a, **k: (x, h, None), aux_loss_enabled=False,
        top_entropy_quantile=top_entropy, off_policy_mask_threshold=off_policy, importance_sampling_level=level,
        beta=beta, args=args, loss_type=loss_type, epsilon_low=low, epsilon_high=high, use_vllm=factor is not None,
        vllm_importance_sampling_correction=True, model=types.SimpleNamespace(training=True),
        current_gradient_accumulation_steps=1, max_completion_length=max_length, accelerator=Accelerator,
        _entropy_bonus_enabled=coef != 0, use_adaptive_entropy=False, entropy_coef=coef,
        _metrics={"train": defaultdict(list)})
    self.get_high_entropy_mask = types.MethodType(cls.get_high_entropy_mask, self)
    self.get_off_policy_mask = cls.get_off_policy_mask
    ids = torch.zeros(B, N, dtype=torch.long)
    inputs = dict(prompt_ids=ids[:, :1], prompt_mask=ids[:, :1] + 1, completion_ids=ids, completion_mask=mask,
                  advantages=advantage, old_per_token_logps=old, ref_per_token_logps=ref, sampling_per_token_logps=sampled,
                  num_items_in_batch=mask.sum())
    if factor is not None:
        inputs["importance_sampling_ratio"] = factor
    loss = cls._compute_loss(self, self.model, inputs)
    loss.backward()
    stats = {name: v[0] for name, v in self._metrics["train"].items() if name != "policy_loss"}
    result = {"loss": loss.item(), "grad": listed(x.grad * mask), "stats": stats}
    assert x.grad[mask == 0].abs().max() == 0
    if h.grad is not None:
        result["grad_entropy"] = listed(h.grad)
    return result


def block(function, first, last):
    """Lines of a function from the one that begins with first up to the one before that which begins with last."""
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    begin = next(i for i, line in enumerate(lines) if line.strip().startswith(first))
    end = next(i for i, line in enumerate(lines) if i > begin and line.strip().startswith(last))
    return compile(textwrap.dedent("\n".join(lines[begin:end])), "trl", "exec")


def trl_importance(mode, high, low):
    scope = dict(torch=torch, math=math, old_per_token_logps=old, sampling_per_token_logps=sampled, completion_mask=mask,
                 tool_mask=None, self=types.SimpleNamespace(
                     vllm_importance_sampling_mode=mode, vllm_importance_sampling_clip_max=high,
                     vllm_importance_sampling_clip_min=low))
    exec(block(grpo_trainer.GRPOTrainer._generate_and_score_completions, "mask = completion_mask if tool_mask is None",
               "# Compute the per-token log probabilities for the reference"), scope)
    return scope["vllm_importance_sampling_ratio"].expand(B, N)


def trl_advantages(how, scale, table):
    scope = dict(torch=torch, nanstd=nanstd, rewards_per_func=table, device="cpu", num_generations=G,
                 self=types.SimpleNamespace(multi_objective_aggregation=how, scale_rewards=scale,
                                            reward_weights=torch.tensor(weights), reward_funcs=weights))
    exec(block(grpo_trainer.GRPOTrainer._generate_and_score_completions, "unscorable_mask = torch.isnan",
               "# Slice to keep only the local part of the data"), scope)
    return listed(scope["advantages"])


def trl_rloo(table, beta):
    scope = dict(torch=torch, nanstd=nanstd, rewards_per_func=table, device="cpu", num_generations=G, gather=lambda t: t,
                 old_per_token_logps=old, ref_per_token_logps=ref, completion_mask=mask, mode="train",
                 self=types.SimpleNamespace(reward_weights=torch.tensor(weights), reward_clip_range=None, beta=beta,
                                            normalize_advantages=False, _metrics={"train": defaultdict(list)}))
    exec(block(rloo_trainer.RLOOTrainer._generate_and_score_completions, "unscorable_mask = torch.isnan",
               "# Slice to keep only the local part of the data"), scope)
    return listed(scope["advantages"])


trl = {}
for name, options in {
    "grpo": dict(loss_type="grpo"),
    "grpo_kl": dict(loss_type="grpo", beta=0.04),
    "grpo_unbiased_kl": dict(loss_type="grpo", beta=0.04, bias=True),
    "grpo_delta": dict(loss_type="grpo", delta=1.5),
    "grpo_off_policy": dict(loss_type="grpo", off_policy=0.05, beta=0.04),
    "grpo_top_entropy": dict(loss_type="grpo", top_entropy=0.4, beta=0.04),
    "grpo_entropy": dict(loss_type="grpo", coef=0.05),
    "grpo_top_entropy_bonus": dict(loss_type="grpo", coef=0.05, top_entropy=0.4),
    "gspo": dict(loss_type="grpo", level="sequence", low=0.03, high=0.04),
    "gspo_kl": dict(loss_type="grpo", level="sequence", low=0.03, high=0.04, beta=0.04),
    "bnpo": dict(loss_type="bnpo"),
    "dapo": dict(loss_type="dapo"),
    "dr_grpo": dict(loss_type="dr_grpo"),
    "cispo": dict(loss_type="cispo", high=1.5),
    "sapo": dict(loss_type="sapo"),
    "luspo": dict(loss_type="luspo", level="sequence", low=0.03, high=0.04),
    "gmpo": dict(loss_type="grpo", low=0.1, high=0.15, beta=0.04, cls=GMPOTrainer),
}.items():
    trl[name] = trl_loss(**options)
importance = {}
for mode, high, low in [("token_truncate", 1.2, None), ("token_mask", 1.3, 0.8), ("sequence_truncate", 1.2, None),
                        ("sequence_mask", 1.5, 0.5)]:
    factor = trl_importance(mode, high, low)
    importance[mode] = {"max": high, "min": low or 0, "factor": listed(factor), "dapo": trl_loss("dapo", factor=factor)}
table = torch.stack([rewards["accuracy"], rewards["format"]], 1)
hole = table.clone()
hole[1] = math.nan  # nobody scored it
hole[6, 1] = math.nan
out["trl"] = {
    "losses": trl, "importance": importance,
    "advantages": {
        "group": trl_advantages("sum_then_normalize", "group", table),
        "none": trl_advantages("sum_then_normalize", "none", table),
        "batch": trl_advantages("sum_then_normalize", "batch", table),
        "gdpo": trl_advantages("normalize_then_sum", "group", table),
        "rloo": trl_rloo(table, 0.0), "rloo_kl": trl_rloo(table, 0.05),
    },
    "abstained": {
        "group": trl_advantages("sum_then_normalize", "group", hole),
        "batch": trl_advantages("sum_then_normalize", "batch", hole),
        "gdpo": trl_advantages("normalize_then_sum", "group", hole),
        "rloo": trl_rloo(hole, 0.0),
    },
}


# ---- verl: its functions without its package, which wants Ray ----

def verl_module(root):
    source = (root / "verl/utils/torch_functional.py").read_text()
    wanted = {"masked_sum", "masked_mean", "masked_var", "masked_whiten", "clip_by_value"}
    tree = ast.parse(source)
    tree.body = [n for n in tree.body if isinstance(n, ast.FunctionDef) and n.name in wanted]
    helpers = types.ModuleType("verl.utils.torch_functional")
    helpers.torch = torch
    exec(compile(ast.fix_missing_locations(tree), "torch_functional", "exec"), helpers.__dict__)

    class Config(dict):
        __getattr__ = dict.get

    stubs = {"omegaconf": dict(DictConfig=Config), "verl": {}, "verl.utils": dict(
        torch_functional=helpers, as_torch_index=None, group_mean_std=None), "verl.utils.torch_functional": helpers.__dict__,
        "verl.trainer": {}, "verl.trainer.config": dict(AlgoConfig=type("AlgoConfig", (), {})),
        "verl.utils.import_utils": dict(deprecated=lambda *a: lambda f: f), "verl.workers": {},
        "verl.workers.config": dict(ActorConfig=Config)}
    for name, content in stubs.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        sys.modules[name] = module
    core = types.ModuleType("core_algos")
    exec(compile((root / "verl/trainer/ppo/core_algos.py").read_text(), "core_algos", "exec"), core.__dict__)
    return core, Config


core, Config = verl_module(pathlib.Path(sys.argv[1]))
index = np.repeat(np.arange(B // G), G)
spread = advantage.unsqueeze(1) * mask


def verl_loss(mode, how, **config):
    x = logp.clone().requires_grad_()
    c = Config(clip_ratio=0.2, clip_ratio_low=0.2, clip_ratio_high=0.28, global_batch_info={}, tau_pos=1.0, tau_neg=1.05)
    c.update(config)
    loss, metrics = core.get_policy_loss_fn(mode)(old, x, spread, mask, how, c)
    loss.backward()
    return {"loss": loss.item(), "grad": listed(x.grad), "stats": {k.split("/")[1]: v for k, v in metrics.items()}}


def verl_reinforce():
    x = logp.clone().requires_grad_()
    loss, _ = core.compute_policy_loss_reinforce(old, x, spread, mask, "seq-mean-token-sum", Config(global_batch_info={}))
    loss.backward()
    return {"loss": loss.item(), "grad": listed(x.grad)}


def at_end(scores, m=mask):
    t = torch.zeros(B, N)
    for i in range(B):
        t[i, int(m[i].nonzero()[-1])] = scores[i]
    return t


total = rewards["accuracy"] * weights[0] + rewards["format"] * weights[1]
x = new_values.clone().requires_grad_()
value_loss, value_clipped = core.compute_value_loss(x, token_rewards, values, mask, 0.2)
value_loss.backward()
kl = {}
for name in ["k1", "k2", "k3", "k3+"]:
    y = logp.clone().requires_grad_()
    e = core.kl_penalty(y, ref, name)
    (e * mask).sum().backward()
    kl[name] = {"value": listed(e * mask), "grad": listed(y.grad)}
carried, carried_returns = core.compute_gae_advantage_return(token_rewards, values, holes, 0.97, 0.9)
plus = core.compute_reinforce_plus_plus_outcome_advantage(at_end(total, holes) - 0.05 * (old - ref) * holes, holes,
                                                          Config(gamma=0.97))
out["verl"] = {
    "losses": {
        "vanilla": verl_loss("vanilla", "token-mean", clip_ratio_c=1.5),
        "vanilla_sequence": verl_loss("vanilla", "seq-mean-token-mean", clip_ratio_c=3.0),
        "vanilla_constant": verl_loss("vanilla", "seq-mean-token-sum-norm", clip_ratio_c=3.0),
        "vanilla_sum": verl_loss("vanilla", "seq-mean-token-sum", clip_ratio_c=3.0),
        "dppo_tv": verl_loss("dppo_tv", "token-mean", clip_ratio_low=0.05, clip_ratio_high=0.06, clip_ratio_c=1.5),
        "gspo": verl_loss("gspo", "seq-mean-token-mean", clip_ratio_low=0.03, clip_ratio_high=0.04),
        "sapo": verl_loss("sapo", "seq-mean-token-mean"),
        "cispo": verl_loss("cispo", "token-mean"),
        "geo_mean": verl_loss("geo_mean", "", clip_ratio_low=0.1, clip_ratio_high=0.15),
        "reinforce": verl_reinforce(),
    },
    "advantages": {
        "grpo": listed(core.compute_grpo_outcome_advantage(at_end(total), mask, index)[0]),
        "rloo": listed(core.compute_rloo_outcome_advantage(at_end(total), mask, index)[0]),
        "opo": listed(core.compute_opo_outcome_advantage(at_end(total), mask, index)[0]),
        "remax": listed(core.compute_remax_outcome_advantage(at_end(total), greedy, mask)[0]),
        "reinforce_plus_plus": listed(plus[0]), "reinforce_plus_plus_returns": listed(plus[1]),
        "reinforce_plus_plus_baseline": listed(
            core.compute_reinforce_plus_plus_baseline_outcome_advantage(at_end(total), mask, index)[0]),
        "gae": listed(carried * holes), "gae_returns": listed(carried_returns * holes),
    },
    "value": {"loss": value_loss.item(), "grad": listed(x.grad), "clipped": float(value_clipped)}, "kl": kl,
}

pathlib.Path(sys.argv[2]).write_text(json.dumps(out, separators=(",", ":")) + "\n")
