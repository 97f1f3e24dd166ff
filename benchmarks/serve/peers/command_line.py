"""What a server of the comparison is told."""

from __future__ import annotations

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class Asked:
    """`target` and `wait` are seconds; a system takes of these what it has."""

    model: str
    port: int
    target: float
    size: int
    wait: float

    def arguments(self) -> list[str]:
        return [f"--{name}={value}" for name, value in vars(self).items()]


def asked() -> Asked:
    parser = argparse.ArgumentParser()
    for name, kind in Asked.__annotations__.items():
        parser.add_argument(
            f"--{name}", required=True, type={"str": str, "int": int}.get(kind, float)
        )
    return Asked(**vars(parser.parse_args()))
