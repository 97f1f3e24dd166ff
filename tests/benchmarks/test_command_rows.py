"""The rows of the table of commands, and the data that public scripts get."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from benchmarks import commands, commands_public
from benchmarks.commands_headroom import compare


def found(low: int | None, high: int | None, fitted: int, reason: str) -> dict[str, Any]:
    headroom = {"low": low, "high": high, "reason": ""}
    answer = {"batch_size": fitted, "reason": reason}
    return {
        "exit_codes": [0, 0],
        "results": [["loss 1"], ["loss 1"]],
        "report": {"batch_size": 8, "noise_reason": "few"},
        "headroom": {"largest_batch_size": headroom},
        "fit": {"answer": answer, "exit_code": 0, "seconds": 12.0, "message": ""},
    }


def test_headroom_is_compared_where_memory_limits_fit() -> None:
    memory = compare(found(80, 90, 93, "measured: …; 94 ran out of memory"))
    assert memory.is_comparable and not memory.covers
    assert "**not covered**" in memory.cell
    assert compare(found(80, 90, 85, "measured: …; 94 ran out of memory")).covers
    data = compare(found(80, 90, 64, "…; it is the data set's size, so nothing larger was tried"))
    assert not data.is_comparable and data.cell == "80 to 90"
    assert compare(found(None, None, 64, "")).cell == "unknown"


def test_a_row_says_what_limited_fit_and_what_was_not_run() -> None:
    row = commands.row(
        "python a.py", found(1, 2, 64, "…; it is max_batch, so nothing larger was tried")
    )
    assert "| equal |" in row
    assert "64, the largest allowed in 12 s | not run | not run |" in row


def test_only_a_message_of_our_own_is_a_refusal() -> None:
    refused = {"exit_code": 2, "message": "rightbatch: the noise scale is unknown: …", "answer": {}}
    assert commands.is_refused(refused)
    assert not commands.is_refused(refused | {"message": "Traceback (most recent call last)"})
    assert not commands.is_refused(refused | {"exit_code": 3})


def test_lines_of_ours_are_not_compared_with_the_script_alone() -> None:
    import subprocess

    done = subprocess.CompletedProcess([], 0, "loss 1\n", "loss 2\nrightbatch: loss 3\n")
    assert commands._own_output(done).split("\n") == ["loss 1", "loss 2"]


def test_public_scripts_are_found_and_named_by_their_content(tmp_path: Path) -> None:
    script = tmp_path / "some" / "nanoGPT" / "train.py"
    script.parent.mkdir(parents=True)
    script.write_text("print()\n")
    [(public, path)] = commands_public.found_in(tmp_path)
    assert public.name == "nanoGPT, train.py" and path == script
    # What `git hash-object` says of that line.
    assert commands_public.blob_of(path) == "aec92917403fe09d962fb43a3bcef0ae21f4c217"


def test_the_data_are_what_the_scripts_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    mnist, images = tmp_path / "mnist", tmp_path / "images"
    commands_public.make_mnist(mnist)
    digits = datasets.MNIST(mnist, train=True, download=True)  # nothing is missing
    assert len(digits) == 1024 and digits.data.shape == (1024, 28, 28)
    commands_public.make_image_folder(images)
    assert len(datasets.ImageFolder(images / "train").classes) == 8


def test_a_capped_search_does_not_replace_an_answer_that_memory_gave(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(commands.VERBS, "fit", ["--memory", "600MiB", "--max-batch", "16"])
    monkeypatch.setattr(commands, "answer", lambda *_: {"answer": {"batch_size": 16}})
    by_memory = found(80, 90, 93, "measured: …; 94 ran out of memory")
    commands.measure("python a.py", ["fit"], commands.Place(), by_memory)
    assert by_memory["fit"]["answer"]["batch_size"] == 93
    capped = found(80, 90, 16, "…; it is max_batch, so nothing larger was tried")
    commands.measure("python a.py", ["fit"], commands.Place(), capped)
    assert capped["fit"]["answer"] == {"batch_size": 16}
