"""Flattening, for the spaces of the fake gymnasium: Box and Discrete in a Dict."""
from . import Box


def flatdim(space):
    if type(space).__name__ == "Discrete":
        return space.n
    return len(space.low)


def flatten_space(space):
    return Box(0.0, 9.0, (sum(flatdim(part) for part in space.spaces.values()),))


def flatten(space, value):
    out = []
    for name, part in space.spaces.items():
        if type(part).__name__ == "Discrete":
            out += [1.0 if i == value[name] else 0.0 for i in range(part.n)]
        else:
            out += value[name]
    return out
