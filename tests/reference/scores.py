"""What tests/lua/test_statistics.lua compares with: SciPy's and NumPy's statistics of the scores there, as rliable
takes them.

python scores.py      (needs numpy and scipy; not part of the tests)
"""

import numpy as np
from scipy import stats

X = np.array([[1.5, 2.0, 9.0, 0.5, 3.0, 2.5, 4.0], [0.1, 0.9, 0.4, 0.35, 0.7, 0.2, 0.8]])
Y = np.array([[1.0, 2.0, 3.5, 2.5, 1.25], [0.2, 0.6, 0.5, 0.9, 0.1]])

print("iqm, one task", stats.trim_mean(X[0], 0.25), "two", stats.trim_mean(X, 0.25, axis=None))
print("gap", 1 - np.minimum(X, 1).mean())
print("median of means", np.median(X.mean(1)))
wins = [stats.mannwhitneyu(x, y, alternative="greater").statistic / (len(x) * len(y)) for x, y in zip(X, Y)]
print("improvement", np.mean(wins))
rng = np.random.default_rng(0)


def percentiles(fn, n=200000):
    values = []
    for _ in range(n):
        values.append(fn(np.stack([rng.choice(x, len(x)) for x in X])))
    return np.percentile(values, [2.5, 97.5])


print("interval of the mean", percentiles(np.mean), "of the iqm", percentiles(lambda x: stats.trim_mean(x, 0.25, axis=None), 50000))
