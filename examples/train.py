"""A stand-in for a training program: fits y = 3 x + 2 by gradient descent, and writes how well that went."""

import argparse
import json
import random

parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, required=True)
parser.add_argument("--batch", type=int, default=20)
parser.add_argument("--momentum", type=float, default=0.0)
parser.add_argument("--seed", type=int, default=0)
given = parser.parse_args()

chance = random.Random(given.seed)
w = b = dw = db = 0.0
for _ in range(60):
    gw = gb = 0.0
    for _ in range(given.batch):
        x = chance.random()
        e = w * x + b - (3 * x + 2 + 0.1 * (chance.random() - 0.5))
        gw, gb = gw + e * x, gb + e
    dw = given.momentum * dw - given.lr * gw / given.batch
    db = given.momentum * db - given.lr * gb / given.batch
    w, b = w + dw, b + db
with open("metrics.json", "w") as file:
    json.dump({"error": ((w - 3) ** 2 + (b - 2) ** 2) ** 0.5, "fit": {"w": w, "b": b}}, file)
