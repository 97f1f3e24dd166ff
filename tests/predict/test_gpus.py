"""The table of GPUs: completeness, plausibility, and search by common names."""

from __future__ import annotations

import csv
from importlib.resources import files

import pytest

from rightbatch import UsageError
from rightbatch._predict.gpus import GPU, catalogue, find_gpu

KINDS = {"data-centre", "workstation", "consumer", "laptop", "jetson"}


def rows() -> list[dict[str, str]]:
    text = files("rightbatch._predict").joinpath("gpus.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def test_the_table_has_at_least_forty_gpus_of_every_kind() -> None:
    assert len(catalogue()) >= 40
    assert {gpu.kind for gpu in catalogue()} == KINDS
    assert len({gpu.name for gpu in catalogue()}) == len(catalogue())


def test_verified_gpus_have_sources() -> None:
    for row in rows():
        assert row["verified"] in ("yes", "no")
        if row["verified"] == "yes":
            assert row["memory_source"], row["name"]
            assert row["capability_source"], row["name"]


@pytest.mark.parametrize("gpu", catalogue(), ids=str)
def test_usable_memory_is_less_than_advertised_memory(gpu: GPU) -> None:
    assert 0.8 * gpu.memory_bytes <= gpu.usable_bytes <= 1.01 * gpu.memory_bytes
    assert 5.0 <= gpu.capability < 13


@pytest.mark.parametrize(
    "name", ["RTX 4090", "rtx4090", "NVIDIA GeForce RTX 4090", "rtx-4090", "GeForce RTX 4090"]
)
def test_a_gpu_is_found_by_any_of_its_spellings(name: str) -> None:
    assert find_gpu(name).name == "RTX 4090"
    assert find_gpu(name).capability == 8.9


def test_an_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"unknown GPU 'RTX 4091'.*RTX 4090.*--memory"):
        find_gpu("RTX 4091")
    with pytest.raises(UsageError, match="unknown GPU ''"):
        find_gpu("")


def test_a_name_of_several_sizes_raises_an_error_that_lists_them() -> None:
    with pytest.raises(UsageError, match=r"matches several GPUs; choose one of: .*A100 80GB"):
        find_gpu("A100")
