"""A fake parallel environment: each agent walks, and is out when it has come to its goal."""
from gymnasium.spaces import Box, Discrete


class parallel_env:
    def __init__(self, goals=(2, 4)):
        self.possible_agents = ["a", "b"]
        self.goals = dict(zip(self.possible_agents, goals))
        self.agents = []

    def observation_space(self, agent):
        return Box(0.0, 100.0, (1,))

    def action_space(self, agent):
        return Discrete(2)

    def reset(self, seed=None):
        self.agents = list(self.possible_agents)
        self.at = {agent: 0 for agent in self.agents}
        return {agent: [0.0] for agent in self.agents}, {agent: {} for agent in self.agents}

    def step(self, actions):
        assert set(actions) == set(self.agents), "actions of %s" % sorted(actions)
        for agent, action in actions.items():
            self.at[agent] += action
        over = {agent: self.at[agent] >= self.goals[agent] for agent in self.agents}
        obs = {agent: [float(self.at[agent])] for agent in self.agents}
        rewards = {agent: float(actions[agent]) for agent in self.agents}
        cut = {agent: False for agent in self.agents}
        self.agents = [agent for agent in self.agents if not over[agent]]
        return obs, rewards, over, cut, {agent: {} for agent in obs}
