"""Writes tests/data/preferences.json: losses and gradients of TRL 1.16's own trainers (dpo_trainer, kto_trainer, orpo, cpo,
reward_trainer, gkd) on random log-probabilities, scores and logits. tests/lua/test_preference.lua and test_distill.lua read
them. The methods run as they are; the models around them give stored log-probabilities.

Run: python tests/reference/preferences.py tests/data/preferences.json (needs torch and trl==1.16.0)."""
import collections
import contextlib
import json
import sys
from types import SimpleNamespace as Space

import torch
import trl.trainer.dpo_trainer as dpo_module
import trl.trainer.kto_trainer as kto_module
from trl import DPOTrainer, KTOTrainer, RewardTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.gkd import GKDTrainer
from trl.experimental.orpo import ORPOTrainer

torch.manual_seed(11)
B, N = 5, 6
same = lambda x: x  # noqa: E731
accelerator = Space(gather=same, gather_for_metrics=same, device="cpu", unwrap_model=same)


def plain(x):
    return [round(v, 9) for v in x.tolist()] if x.dim() == 1 else [plain(row) for row in x]


def logps(rows):
    return -torch.rand(rows, N, dtype=torch.float32) * 2 - 0.05


lengths = torch.tensor([6, 4, 3, 6, 1, 2, 6, 5, 3, 4])  # chosen, then rejected
mask = (torch.arange(N) < lengths[:, None]).long()
policy, ref = logps(2 * B) * mask, logps(2 * B) * mask
out = {"lengths": lengths.tolist(), "mask": mask.tolist(), "policy": plain(policy), "ref": plain(ref), "dpo": [], "kto": [],
       "odds": [], "cpo": [], "reward": [], "gkd": []}
inputs = {"input_ids": torch.cat([torch.zeros(2 * B, 1, dtype=torch.long), torch.ones(2 * B, N, dtype=torch.long)], 1),
          "attention_mask": torch.cat([torch.ones(2 * B, 1, dtype=torch.long), mask], 1),
          "completion_mask": torch.cat([torch.zeros(2 * B, 1, dtype=torch.long), mask], 1)}


class Model(torch.nn.Module):
    """Gives what was stored, as TRL's fused head would."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, **kwargs):
        rows = self.values.shape[0]
        zeros = torch.zeros(rows, N)
        return Space(log_probs=self.values, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(), log_sum_sq_probs=zeros)


def trainer(**more):
    fields = dict(accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None, precompute_ref_logps=False, _tp_size=1,
                  _total_train_tokens=0, use_weighting=False, ref_model=Model(ref), f_divergence_type="reverse_kl",
                  f_alpha_divergence_coef=0.5, label_smoothing=0.0, loss_weights=[1.0],
                  args=Space(discopop_tau=0.05, gradient_checkpointing_kwargs=None),
                  _metrics={"train": collections.defaultdict(list)})
    fields.update(more)
    return Space(**fields)


def record(where, given, loss, leaf, **more):
    loss.backward()
    if leaf.shape == mask.shape:
        leaf.grad *= mask  # the stored log-probabilities are 0 behind an answer, as of labels -100
    out[where].append({"given": given, "loss": loss.item(), "grad": plain(leaf.grad), **more})


dpo_module.disable_gradient_checkpointing = kto_module.disable_gradient_checkpointing = lambda *a: contextlib.nullcontext()

ours = {"sigmoid": "dpo", "exo_pair": "exo", "nca_pair": "nca", "bco_pair": "bco", "sppo_hard": "sppo"}
cases = [("sigmoid", {}), ("sigmoid", dict(beta=0.5)), ("hinge", {}), ("hinge", dict(beta=1.5)), ("ipo", {}), ("ipo", dict(beta=0.7)),
         ("exo_pair", dict(label_smoothing=0.1)), ("nca_pair", {}), ("robust", dict(label_smoothing=0.2)), ("bco_pair", {}),
         ("sppo_hard", {}), ("apo_zero", {}), ("apo_down", {}), ("discopop", {}), ("sigmoid_norm", {}),
         ("sigmoid", dict(f_divergence="forward_kl")), ("sigmoid", dict(f_divergence="js")),
         ("sigmoid", dict(f_divergence="alpha", alpha=0.3)), ("ipo", dict(f_divergence="js")),
         ("hinge", dict(f_divergence="forward_kl"))]
divergences = {"reverse_kl": "reverse_kl", "forward_kl": "forward_kl", "js": "js_divergence", "alpha": "alpha_divergence"}
for name, given in cases:
    leaf = policy.clone().requires_grad_()
    beta = given.get("beta", 0.1)
    self = trainer(model=Model(leaf), loss_types=[name], beta=beta, label_smoothing=given.get("label_smoothing", 0.0),
                   f_divergence_type=divergences[given.get("f_divergence", "reverse_kl")],
                   f_alpha_divergence_coef=given.get("alpha", 0.5))
    loss = DPOTrainer._compute_loss(self, self.model, inputs, False)
    metrics = {k: v[0] for k, v in self._metrics["train"].items() if k.startswith("rewards/") or k.startswith("logps/")}
    mine = dict(given, beta=beta, loss=ours.get(name, name))
    if name == "sigmoid_norm":
        mine.update(loss="dpo", average=True)
    record("dpo", mine, loss, leaf, metrics=metrics)

# unpaired: the ten answers, some desirable; the mismatched ones are stored beside them
label = torch.tensor([True, False, True, True, False, False, True, False, False, True])
kl_policy, kl_ref = logps(2 * B) * mask, logps(2 * B) * mask
out["label"], out["kl_policy"], out["kl_ref"] = label.long().tolist(), plain(kl_policy), plain(kl_ref)
for swap in (False, True):
    for loss_type, d, u in (("kto", 1.0, 1.0), ("kto", 1.33, 0.8), ("apo_zero_unpaired", 1.0, 1.0)):
        leaf = policy.clone().requires_grad_()
        a, b = (kl_ref, kl_policy) if swap else (kl_policy, kl_ref)
        self = trainer(model=Model(leaf), beta=0.3, loss_type=loss_type, desirable_weight=d, undesirable_weight=u,
                       calculate_KL=loss_type == "kto")
        kls = iter([a.sum(-1), b.sum(-1)])
        self._compute_kl_logps = lambda model, batch: next(kls)  # noqa: B023
        loss = KTOTrainer._compute_loss(self, self.model, dict(inputs, label=label), False)
        record("kto", dict(beta=0.3, desirable_weight=d, undesirable_weight=u, swapped=swap, zero=loss_type != "kto"), loss, leaf,
               metrics={k: v[0] for k, v in self._metrics["train"].items() if k.split("/")[0] in ("rewards", "logps", "kl")})

# without a reference: sums or means per answer, and the likelihood of the chosen a token
n = lengths.float()
for beta in (0.1, 0.6):
    leaf = policy.clone().requires_grad_()
    mean = (leaf * mask).sum(-1) / n
    terms, good, bad, _, _ = ORPOTrainer.odds_ratio_loss(Space(beta=beta, accelerator=accelerator), mean[:B], mean[B:])
    nll = -(leaf * mask)[:B].sum() / n[:B].sum()
    record("odds", dict(beta=beta), nll - terms.mean(), leaf, rewards=[plain(good), plain(bad)])
for loss_type, given in (("sigmoid", {}), ("sigmoid", dict(label_smoothing=0.2)), ("simpo", {}),
                         ("simpo", dict(gamma=1.2, beta=2.0, label_smoothing=0.1))):
    leaf = policy.clone().requires_grad_()
    s = (leaf * mask).sum(-1)
    if loss_type == "simpo":
        s = s / n
    beta = given.get("beta", 0.1)
    fake = Space(alpha=0.0, loss_type=loss_type, beta=beta, simpo_gamma=given.get("gamma", 0.5),
                 label_smoothing=given.get("label_smoothing", 0.0), accelerator=accelerator)
    terms, good, bad = CPOTrainer.cpo_loss(fake, s[:B], s[B:])
    nll = -(leaf * mask)[:B].sum() / n[:B].sum() if loss_type == "sigmoid" else 0
    record("cpo", dict(given, beta=beta, loss="simpo" if loss_type == "simpo" else "cpo"), terms.mean() + nll, leaf,
           rewards=[plain(good), plain(bad)])

scores, margin = torch.randn(2 * B), torch.rand(B)
out["scores"], out["margin"] = plain(scores), plain(margin)
for with_margin in (False, True):
    for center in (None, 0.01, 0.5):
        leaf = scores.clone().requires_grad_()
        self = trainer(model=Model(leaf), args=Space(center_rewards_coefficient=center))
        model = lambda **kw: Space(logits=leaf.unsqueeze(-1))  # noqa: E731, B023
        given = dict(inputs, margin=margin) if with_margin else dict(inputs)
        loss = RewardTrainer.compute_loss(self, model, given)
        record("reward", dict(margin=with_margin, center=center or 0), loss, leaf,
               metrics={k: v[0] for k, v in self._metrics["train"].items() if k in ("accuracy", "margin")})

student, teacher = torch.randn(2, 4, 7) * 2, torch.randn(2, 4, 7) * 2
labels = torch.tensor([[1, 2, -100, 3], [4, -100, -100, 5]])
out["student"], out["teacher"], out["labels"] = plain(student), plain(teacher), labels.tolist()
for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
    for temperature in (1.0, 0.7, 2.5):
        leaf = student.clone().requires_grad_()
        loss = GKDTrainer.generalized_jsd_loss(leaf, teacher, labels=labels, beta=beta, temperature=temperature)
        record("gkd", dict(beta=beta, temperature=temperature), loss, leaf)

with open(sys.argv[1], "w") as f:
    json.dump(out, f)
