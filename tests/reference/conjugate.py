"""Writes tests/data/conjugate.json: what sb3-contrib's conjugate gradient solver finds on random systems, in binary64,
begun at 0 and elsewhere.

python conjugate.py OUTPUT      (needs torch and sb3_contrib; not part of the tests)
"""

import json
import sys

import torch
from sb3_contrib.common.utils import conjugate_gradient_solver

torch.set_default_dtype(torch.float64)
torch.manual_seed(3)
cases = []
for n, iterations, tol, started in ((5, 10, 1e-10, False), (5, 3, 1e-10, True), (12, 5, 1e-10, False), (12, 15, 1e-2, True)):
    m = torch.randn(n, n)
    a, b = m @ m.T + 0.1 * torch.eye(n), torch.randn(n)
    start = torch.randn(n) if started else torch.zeros(n)
    torch.randn_like = lambda _, start=start: start * 1e4  # the solver's own start is 1e-4 of this
    x = conjugate_gradient_solver(lambda v: a @ v, b, iterations, tol)
    cases.append({"a": a.tolist(), "b": b.tolist(), "start": start.tolist(), "iterations": iterations, "tolerance": tol,
                  "x": x.tolist()})
with open(sys.argv[1], "w", encoding="utf-8") as out:
    json.dump(cases, out, separators=(",", ":"))
    out.write("\n")
