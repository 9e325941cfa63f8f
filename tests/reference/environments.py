"""Episodes of Gymnasium, for tests/lua/test_env_builtin.lua.

usage: environments.py TRAJECTORIES OUT

Writes OUT.npz and OUT.json: what Gymnasium 1.4.0 with NumPy 2.4.6 gave for a seed and a list of actions. TRAJECTORIES
is gymnasium_trajectories.json.gz (33 trajectories of ten environments), which is kept whole; the cases
below add options, long episodes and actions out of bounds. The seed is given to the first reset alone.

Arrays hold the cases one after another. Of each case: "act" (steps), "obs" (steps + 1, width) and, of the resets
that follow an end, "reset" (resets, width), in f32 where it is a Box and in i32 else; then "flags" (steps: 1 terminated,
2 truncated, 3 both) in i32; and "rew" (steps) in f64, each flat.
"""

import gzip
import json
import sys

import gymnasium
import numpy as np


def f32(x):
    return np.array([x], dtype=np.float32)


def any_of(n):
    return lambda rng, obs: int(rng.integers(n))


def balance(rng, obs):
    return int(obs[2] + 0.5 * obs[3] + 0.05 * obs[0] + 0.1 * obs[1] > 0)


def swing(rng, obs):
    return 2 if obs[1] >= 0 else 0


def push(rng, obs):
    return f32((1.7 if obs[1] >= 0 else -1.3) * rng.random())


def pump(rng, obs):
    return 2 if obs[4] > 0 else 0


def hold(rng, obs):
    if obs[0] > 0.9:
        return f32(-8 * np.arctan2(obs[1], obs[0]) - 2 * obs[2])
    return f32(2 * np.sign(obs[2]))


def draw(rng, obs):
    return int(rng.integers(2)) if obs[0] < 21 else 0


CASES = [  # id, seed, steps, policy, Gymnasium's options, ours where they differ
    ("CartPole-v1", 7, 1100, balance, {}, None),
    ("CartPole-v1", 2**40 + 3, 300, any_of(2), {"sutton_barto_reward": True}, None),
    ("CartPole-v0", 5, 450, balance, {}, None),
    ("MountainCar-v0", 11, 600, swing, {}, None),
    ("MountainCar-v0", 12, 300, any_of(3), {"goal_velocity": 0.02}, None),
    ("MountainCarContinuous-v0", 13, 1200, push, {}, None),
    ("Acrobot-v1", 14, 700, pump, {}, None),
    ("Pendulum-v1", 15, 450, hold, {"g": 9.81}, None),
    ("FrozenLake-v1", 16, 500, any_of(4), {"success_rate": 0.8}, None),
    ("FrozenLake-v1", 17, 300, any_of(4), {"is_slippery": False, "map_name": "8x8"}, None),
    ("FrozenLake-v1", 18, 300, any_of(4), {"reward_schedule": [10, -3, -0.1]}, {"reward_schedule": "10,-3,-0.1"}),
    ("FrozenLake-v1", 19, 300, any_of(4), {"desc": ["SFS", "FHF", "SFG"]}, {"desc": "SFS\nFHF\nSFG"}),
    ("FrozenLake8x8-v1", 20, 800, any_of(4), {}, None),
    ("CliffWalkingSlippery-v1", 21, 2500, any_of(4), {}, None),
    ("Taxi-v4", 22, 2000, any_of(6), {"is_rainy": True}, None),
    ("Taxi-v4", 23, 4000, any_of(6), {"fickle_passenger": True, "fickle_probability": 1.0}, None),
    ("Taxi-v4", 24, 2000, any_of(6), {"is_rainy": True, "fickle_passenger": True, "rainy_probability": 0.6}, None),
    ("Blackjack-v1", 25, 1500, draw, {"natural": True, "sab": False}, None),
    ("Blackjack-v1", 26, 1500, draw, {"natural": False, "sab": False}, None),
]


def number_or_row(x):
    return np.atleast_1d(np.asarray(x))


def trace(id, seed, steps, policy, options):
    if "reward_schedule" in options:
        options = {**options, "reward_schedule": tuple(options["reward_schedule"])}
    env = gymnasium.make(id, disable_env_checker=True, **options)
    rng = np.random.default_rng(seed + 1000)
    obs, _ = env.reset(seed=seed)
    out = {"obs": [number_or_row(obs)], "act": [], "rew": [], "flags": [], "reset": []}
    for _ in range(steps):
        action = policy(rng, obs)
        obs, reward, terminated, truncated, _ = env.step(action)
        out["act"].append(np.ravel(action)[0])
        out["obs"].append(number_or_row(obs))
        out["rew"].append(float(reward))
        out["flags"].append(terminated + 2 * truncated)
        if terminated or truncated:
            obs, _ = env.reset()
            out["reset"].append(number_or_row(obs))
    return out


def given(t):
    return {
        "obs": t["obs"],
        "act": t["act"],
        "rew": t["rew"],
        "flags": [a + 2 * b for a, b in zip(t["term"], t["trunc"])],
        "reset": [r["obs"] for r in t["reset_after"]],
    }


def main():
    trajectories, out = sys.argv[1:]
    cases = []
    flat = {"f32": [], "i32": [], "f64": []}

    def put(kind, values):
        array = np.ravel(np.array(values)).astype({"f32": np.float32, "i32": np.int32, "f64": np.float64}[kind])
        assert np.array_equal(array.astype(float), np.ravel(np.array(values, dtype=float)))
        flat[kind].append(array)

    with gzip.open(trajectories) as f:
        found = [(t["id"], t["seed"], {}, given(t)) for t in json.load(f)]
    for id, seed, steps, policy, options, ours in CASES:
        found.append((id, seed, ours or options, trace(id, seed, steps, policy, options)))
    for id, seed, options, t in found:
        env = gymnasium.make(id)
        obs, act = (
            "f32" if isinstance(space, gymnasium.spaces.Box) else "i32"
            for space in (env.observation_space, env.action_space)
        )
        put(act, t["act"])
        put(obs, t["obs"])
        put(obs, t["reset"])
        put("i32", t["flags"])
        put("f64", t["rew"])
        cases.append(
            {
                "id": id,
                "seed": seed,
                "options": options,
                "act": act,
                "obs": obs,
                "steps": len(t["act"]),
                "resets": len(t["reset"]),
                "width": len(t["obs"][0]),
            }
        )
    with open(out + ".json", "w") as f:
        f.write("[\n" + ",\n".join(map(json.dumps, cases)) + "\n]\n")
    np.savez_compressed(out + ".npz", **{kind: np.concatenate(parts) for kind, parts in flat.items()})


main()
