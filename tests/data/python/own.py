"""An environment of a file, for file:PATH:FUNCTION."""
from gymnasium import Counter


def make(most=2):
    return Counter(most)


def broken():
    return 1 // 0
