"""DQN of Stable-Baselines3 on CartPole with rl-zoo's settings, for tests/bench/rl/dqn.lua: answers each line.
version | learn ROUNDS THREADS: WALL/PROCESSOR seconds of so many rounds of 256 steps, beyond the first steps."""
import sys
import time

import gymnasium as gym
import stable_baselines3
import torch
from stable_baselines3 import DQN

model = None

for line in sys.stdin:
    ask = line.split()
    if ask[0] == "version":
        print(stable_baselines3.__version__ + "/" + torch.__version__, flush=True)
        continue
    rounds, threads = int(ask[1]), int(ask[2])
    torch.set_num_threads(threads)
    if model is None:
        model = DQN("MlpPolicy", gym.make("CartPole-v1"), learning_rate=2.3e-3, batch_size=64, buffer_size=100_000,
                    learning_starts=1000, target_update_interval=10, train_freq=256, gradient_steps=128,
                    exploration_fraction=0.16, exploration_final_eps=0.04, policy_kwargs={"net_arch": [256, 256]},
                    device="cpu", seed=1)
        model.learn(8 * 256)
    wall, processor = time.perf_counter(), time.process_time()
    model.learn(rounds * 256, reset_num_timesteps=False)
    print("%.4f/%.4f" % (time.perf_counter() - wall, time.process_time() - processor), flush=True)
