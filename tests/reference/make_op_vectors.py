"""Writes tests/data/op_vectors.json: reference results of the ops, computed by torch in binary64.

python make_op_vectors.py OUTPUT      (needs torch; not part of the tests)
"""

import json
import sys

import convolution
import elementwise
import layers
import learning
import policies
import recurrent
import shapes
import sums
from vectors import CASES


def main():
    for family in (elementwise, sums, shapes, layers, learning, policies, recurrent):
        family.make()

    convolution.make()
    with open(sys.argv[1], "w", encoding="utf-8") as out:
        out.write('{"cases": [\n')
        out.write(",\n".join(json.dumps(c, separators=(",", ":")) for c in CASES))
        out.write("\n]}\n")
    ops = {c["op"] for c in CASES}
    print(f"{len(CASES)} cases of {len(ops)} ops")


main()
