"""Handwritten digits: a study of batch sizes that takes a few minutes on a CPU, without a download.

`python -m rightbatch.examples.digits` trains six sizes with three seeds each into `runs/digits`.
The data are the 1,797 scans of 8 × 8 pixels in scikit-learn's package (Alpaydin and Kaynak 1998,
UCI Machine Learning Repository).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import TensorDataset

import rightbatch as rb

BATCHES = (16, 32, 64, 128, 256, 512)
TARGET = "evaluation_loss=0.2"
HELD_OUT = 360
"""Scans for the evaluation: a fifth, the same in every run."""


def workload() -> rb.Workload:
    """Return a network with one hidden layer, and SGD with the learning rate for batch size 16.

    Raises:
        MissingExtraError: if scikit-learn is not installed; mlflow depends on it.
    """
    train, held_out = _data()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    def evaluate(model: nn.Module) -> Mapping[str, float]:
        device = next(model.parameters()).device
        images, labels = (tensor.to(device) for tensor in held_out.tensors)
        return {"accuracy": float((model(images).argmax(1) == labels).float().mean())}

    return rb.Workload(
        model=model,
        loss=_loss,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data=train,
        evaluation_data=held_out,
        evaluate=evaluate,
        name="digits",
    )


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    images, labels = batch
    return functional.cross_entropy(model(images), labels)


def _data() -> tuple[TensorDataset, TensorDataset]:
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        raise rb.MissingExtraError("scikit-learn", "study") from None

    images, labels = load_digits(return_X_y=True)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    x = torch.tensor(images, dtype=torch.float32)[order] / 16
    y = torch.tensor(labels)[order]
    return TensorDataset(x[HELD_OUT:], y[HELD_OUT:]), TensorDataset(x[:HELD_OUT], y[:HELD_OUT])


def main(arguments: list[str] | None = None) -> None:
    """Run the study and print its results."""
    parser = argparse.ArgumentParser(
        prog="python -m rightbatch.examples.digits", description=main.__doc__
    )
    parser.add_argument("--out", default="runs/digits", help="default: runs/digits")
    parser.add_argument("--seeds", type=int, default=3, help="default: 3")
    options = parser.parse_args(arguments)
    print(
        rb.study(
            f"{__file__}:workload",
            batches=BATCHES,
            seeds=options.seeds,
            epochs=200,
            target=TARGET,
            out=options.out,
        )
    )


if __name__ == "__main__":
    main()
