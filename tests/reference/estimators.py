"""Writes tests/data/estimators.json: advantages of Stable-Baselines3's RolloutBuffer, samples of its NStepReplayBuffer,
and the V-trace of IMPALA's own test (a sum over products, in NumPy), on random episodes.

python estimators.py OUTPUT      (needs torch, stable_baselines3 and gymnasium; not part of the tests)
"""

import json
import sys

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import NStepReplayBuffer, RolloutBuffer

T, B, GAMMA, LAM = 24, 3, 0.97, 0.9
rng = np.random.default_rng(5)
box = spaces.Box(-np.inf, np.inf, (1,))

rewards, values, final_values = (rng.normal(size=(T, B)) for _ in range(3))
terminated = rng.random((T, B)) < 0.12
truncated = (rng.random((T, B)) < 0.12) & ~terminated
done = terminated | truncated
last = rng.normal(size=B)
# V of what each step led to: the final observation's where the episode was cut off
next_values = np.where(truncated, final_values, np.concatenate([values[1:], last[None]]))


def gae():
    buffer = RolloutBuffer(T, box, box, device="cpu", gae_lambda=LAM, gamma=GAMMA, n_envs=B)
    buffer.reset()
    for name in ("rewards", "values", "advantages", "returns", "episode_starts"):
        setattr(buffer, name, np.zeros((T, B), np.float64))
    start = np.ones(B)
    for t in range(T):
        # what OnPolicyAlgorithm does with infos[i]["terminal_observation"] of a truncated step
        reward = rewards[t] + GAMMA * np.where(truncated[t], final_values[t], 0)
        zero = np.zeros((B, 1))
        buffer.add(zero, zero, reward, start, torch.tensor(values[t]), torch.zeros(B))
        start = done[t]
    buffer.compute_returns_and_advantage(torch.tensor(last), done[-1])
    return {"advantages": buffer.advantages, "returns": buffer.returns}


def n_step(n):
    buffer = NStepReplayBuffer(T * B, box, box, device="cpu", n_envs=B, handle_timeout_termination=True, n_steps=n, gamma=GAMMA)
    for t in range(T):
        column = lambda x: x[t][:, None]
        # the place of the next observation, to find the value behind it
        where = np.full((B, 1), t)
        infos = [{"TimeLimit.truncated": bool(v)} for v in truncated[t]]
        buffer.add(where, where, column(rewards), rewards[t], done[t], infos)
    buffer.rewards = rewards.copy()
    out = {"returns": np.zeros((T, B)), "factors": np.zeros((T, B)), "last": np.zeros((T, B))}
    for b in range(B):
        np.random.randint = lambda *a, size, **k: np.full(size, b)  # the environment that it would choose
        s = buffer._get_samples(np.arange(T))
        out["returns"][:, b] = s.rewards[:, 0]
        out["factors"][:, b] = (s.discounts * (1 - s.dones))[:, 0]
        out["last"][:, b] = s.next_observations[:, 0]
    return out


def vtrace(log_rhos, clip_rho, clip_pg_rho):
    """_ground_truth_calculation of vtrace_test.py in deepmind/scalable_agent."""
    discounts = GAMMA * ~terminated
    vs = []
    rhos = np.exp(log_rhos)
    cs = np.minimum(rhos, 1.0)
    clipped = np.minimum(rhos, clip_rho)
    clipped_pg = np.minimum(rhos, clip_pg_rho)
    after = np.concatenate([values, last[None]])
    for s in range(T):
        v_s = np.copy(values[s])
        for t in range(s, T):
            v_s += (
                np.prod(discounts[s:t], axis=0)
                * np.prod(cs[s:t], axis=0)
                * clipped[t]
                * (rewards[t] + discounts[t] * after[t + 1] - values[t])
            )
        vs.append(v_s)
    vs = np.stack(vs)
    pg = clipped_pg * (rewards + discounts * np.concatenate([vs[1:], last[None]]) - values)
    return {"vs": vs, "pg": pg}


def rows(x):
    """(time, rows) as (rows, time)"""
    return x.T.tolist()


log_rhos = rng.uniform(-1.5, 1.5, size=(T, B))
out = {
    "gamma": GAMMA,
    "lam": LAM,
    "rewards": rows(rewards),
    "values": rows(values),
    "next_values": rows(next_values),
    "terminated": rows(terminated),
    "truncated": rows(truncated),
    "last": last.tolist(),
    "log_rhos": rows(log_rhos),
    "gae": {k: rows(v) for k, v in gae().items()},
    "vtrace": {
        f"{a}": {"rho_bar": a, "pg_rho_bar": b, **{k: rows(v) for k, v in vtrace(log_rhos, a, b).items()}}
        for a, b in ((1.0, 1.0), (3.7, 2.2))
    },
    "n_step": {str(n): {k: rows(v) for k, v in n_step(n).items()} for n in (1, 3, 7)},
}
with open(sys.argv[1], "w", encoding="utf-8") as f:
    json.dump(out, f, separators=(",", ":"))
    f.write("\n")
