"""Spaces of the fake gymnasium: the names and fields that the bridge reads, in plain Python."""


class Box:
    def __init__(self, low, high, shape, dtype="float32"):
        n = 1
        for k in shape:
            n *= k
        self.low = low if isinstance(low, list) else [low] * n
        self.high = high if isinstance(high, list) else [high] * n
        self.shape, self.dtype = shape, dtype

    def __eq__(self, other):
        return self.__dict__ == other.__dict__


class Discrete(Box):
    def __init__(self, n, start=0):
        self.n, self.start, self.shape = n, start, ()


class MultiDiscrete(Box):
    def __init__(self, nvec):
        self.nvec, self.shape = nvec, (len(nvec),)


class MultiBinary(Box):
    def __init__(self, n):
        self.n, self.shape = n, (n,)


class Dict(Box):
    def __init__(self, **spaces):
        self.spaces, self.shape = dict(sorted(spaces.items())), None


class Text(Box):
    def __init__(self):
        self.shape = None
