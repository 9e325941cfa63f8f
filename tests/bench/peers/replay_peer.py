"""Replay buffers of Stable-Baselines3 and in NumPy, for tests/bench/replay.lua: answers each line with seconds for one call.
version | PEER add ROWS | PEER sample N, with CartPole's transitions in a buffer of 100,000."""
import sys
import time

import gymnasium as gym
import numpy as np
import stable_baselines3
import torch
from stable_baselines3.common.buffers import ReplayBuffer

SIZE = 100_000
torch.set_num_threads(1)


class Plain:
    """Arrays by hand, as a careful script would: no copies but those that are needed."""

    def __init__(self, rows):
        n = SIZE // rows
        self.obs = np.zeros((n, rows, 4), np.float32)
        self.next = np.zeros((n, rows, 4), np.float32)
        self.action = np.zeros((n, rows), np.int64)
        self.reward = np.zeros((n, rows), np.float32)
        self.done = np.zeros((n, rows), bool)
        self.rng, self.at, self.n, self.rows = np.random.default_rng(1), 0, n, rows

    def add(self, obs, after, action, reward, done, _):
        t = self.at
        self.obs[t], self.next[t], self.action[t], self.reward[t], self.done[t] = obs, after, action, reward, done
        self.at = (t + 1) % self.n

    def sample(self, n):
        i = self.rng.integers(0, self.n * self.rows, n)
        flat = (x.reshape(-1, *x.shape[2:])[i] for x in (self.obs, self.next, self.action, self.reward, self.done))
        return [torch.from_numpy(x) for x in flat]


def made(peer, rows):
    if peer == "numpy":
        return Plain(rows)
    return ReplayBuffer(SIZE, gym.spaces.Box(-1, 1, (4,)), gym.spaces.Discrete(2), n_envs=rows)


def timed(fn):
    n = 1
    while True:
        start = time.perf_counter()
        for _ in range(n):
            fn()
        seconds = time.perf_counter() - start
        if seconds > 0.05:
            return seconds / n
        n *= 2


buffers = {}
for line in sys.stdin:
    words = line.split()
    if words[0] == "version":
        print(f"SB3 {stable_baselines3.__version__}, NumPy {np.__version__}", flush=True)
        continue
    peer, what, n = words[0], words[1], int(words[2])
    rows = n if what == "add" else 1
    if (peer, rows) not in buffers:
        buffers[peer, rows] = made(peer, rows)
    b = buffers[peer, rows]
    obs, action = np.ones((rows, 4), np.float32), np.zeros((rows, 1) if peer == "sb3" else rows, np.int64)
    reward, done, infos = np.ones(rows, np.float32), np.zeros(rows, bool), [{}] * rows
    if what == "add":
        print(timed(lambda: b.add(obs, obs, action, reward, done, infos)), flush=True)
    else:
        while (b.pos if peer == "sb3" else b.at) < 50_000:
            b.add(obs, obs, action, reward, done, infos)
        print(timed(lambda: b.sample(n)), flush=True)
