"""Logistic regression in NumPy."""

import argparse
import hashlib

import numpy as np


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.1)
    args = parser.parse_args()

    rng = np.random.default_rng(0)
    x = rng.standard_normal((2000, 50))
    y = (x @ rng.standard_normal(50) + rng.standard_normal(2000) > 0).astype(float)
    w = np.zeros(50)
    b = 0.0

    for epoch in range(args.epochs):
        order = rng.permutation(len(x))
        for start in range(0, len(x), args.batch_size):
            rows = order[start : start + args.batch_size]
            p = sigmoid(x[rows] @ w + b)
            error = p - y[rows]
            w -= args.lr * x[rows].T @ error / len(rows)
            b -= args.lr * error.mean()
        p = np.clip(sigmoid(x @ w + b), 1e-12, 1 - 1e-12)
        loss = -np.mean(y * np.log(p) + (1 - y) * np.log(1 - p))
        print(f"epoch {epoch}: loss {loss:.4f}, accuracy {np.mean((p > 0.5) == y):.3f}")

    print("loss", repr(float(loss)))
    print("weights", hashlib.sha256(w.tobytes()).hexdigest())


if __name__ == "__main__":
    main()
