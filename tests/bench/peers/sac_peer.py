"""SAC and TD3 of Stable-Baselines3 with rl-zoo's settings on Pendulum, for tests/bench/rl/sac.lua: answers each line.
sac_peer.py THREADS: version | sac FEW MANY | td3 FEW MANY, seconds of MANY steps less those of FEW."""
import sys
import time

import gymnasium as gym
import stable_baselines3
import torch
from stable_baselines3 import SAC, TD3
from stable_baselines3.common.noise import NormalActionNoise

torch.set_num_threads(int(sys.argv[1]))


def model(name):
    env = gym.make("Pendulum-v1")
    if name == "sac":
        return SAC("MlpPolicy", env, learning_rate=1e-3, learning_starts=100, seed=1, device="cpu")
    return TD3("MlpPolicy", env, learning_rate=1e-3, learning_starts=100, gamma=0.98, buffer_size=200_000,
               action_noise=NormalActionNoise([0.0], [0.1]), train_freq=1, gradient_steps=1,
               policy_kwargs={"net_arch": [400, 300]}, seed=1, device="cpu")


for line in sys.stdin:
    words = line.split()
    if words[0] == "version":
        print(stable_baselines3.__version__)
    else:
        learner, few, many = model(words[0]), int(words[1]), int(words[2])
        learner.learn(few)
        began = time.perf_counter()
        learner.learn(many - few, reset_num_timesteps=False)
        print(time.perf_counter() - began)
    sys.stdout.flush()
