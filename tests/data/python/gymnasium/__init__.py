"""A fake gymnasium for the tests of the bridge: no package is needed. Counter counts what happens to it."""
import os
import signal
import sys
import time

from . import spaces


class Counter:
    """obs: seed of the episode, its number, steps in it. Ends when the count reaches `most`."""

    spec = None

    def __init__(self, most=5, render_mode=None):
        self.observation_space = spaces.Box(-1.0, 1e6, (3,))
        self.action_space = spaces.Discrete(3)
        self.most, self.seed, self.episode, self.render_mode = most, -1.0, 0, render_mode

    def obs(self):
        return [float(self.seed), float(self.episode), float(self.at)]

    def reset(self, seed=None):
        self.seed = -1.0 if seed is None else seed
        self.episode, self.at = self.episode + 1, 0
        return self.obs(), {}

    def step(self, action):
        self.at += 1
        return self.obs(), 0.5 * action, self.at >= self.most, False, {}

    def render(self):
        return [[[self.at, 10 * x, 20 * y] for x in range(3)] for y in range(2)]


class TimeLimit(Counter):
    """A limit that the runtime is to keep: the wrapped one alone never ends."""

    def __init__(self):
        self.env = Counter(most=10**9)
        self.observation_space, self.action_space = self.env.observation_space, self.env.action_space
        self._max_episode_steps = 4

    def step(self, action):
        raise RuntimeError("the limit was not taken off")


class Faulty(Counter):
    """fault at step `when`."""

    def __init__(self, fault, when=3, most=100):
        super().__init__(most)
        self.fault, self.when = fault, when

    def step(self, action):
        obs, reward, over, cut, info = super().step(action)
        if self.at == self.when:
            print("about to " + self.fault, flush=True)
            if self.fault == "raise":
                raise ValueError("no such move")
            if self.fault == "exit":
                os._exit(3)
            if self.fault == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.fault == "hang":
                time.sleep(1000)
            if self.fault == "nan":
                obs[1] = float("nan")
            if self.fault == "inf":
                reward = float("inf")
            if self.fault == "shape":
                obs = obs[:2]
            if self.fault == "junk":
                for i in range(5000):
                    print("junk", i, "x" * 40)
                    print("more junk", file=sys.stderr)
        return obs, reward, over, cut, info


class Masked(Counter):
    """Action `at` is legal alone."""

    def reset(self, seed=None):
        obs, info = super().reset(seed)
        return obs, {"action_mask": [i == self.at % 3 for i in range(3)]}

    def step(self, action):
        obs, reward, over, cut, info = super().step(action)
        return obs, reward, over, cut, {"action_mask": [i == self.at % 3 for i in range(3)]}


class Mixed(Counter):
    """A Dict seen, several actions."""

    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Dict(where=spaces.Box(0.0, 9.0, (2,)), card=spaces.Discrete(3))
        self.action_space = spaces.MultiDiscrete([3, 2])
        self.last = [0, 0]

    def obs(self):
        return {"where": [float(v) for v in self.last], "card": self.at % 3}

    def step(self, action):
        self.last = list(action)
        return super().step(sum(action))


class Texts(Counter):
    def __init__(self):
        super().__init__()
        self.observation_space = spaces.Text()


known = {"Counter-v0": Counter, "TimeLimit-v0": TimeLimit, "Faulty-v0": Faulty, "Masked-v0": Masked, "Mixed-v0": Mixed,
         "Texts-v0": Texts}


def make(id, disable_env_checker=False, **options):
    if id not in known:
        raise KeyError("environment %s does not exist" % id)
    return known[id](**options)
