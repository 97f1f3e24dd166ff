"""`train --resume` in a folder that others wrote: nothing is executed or written elsewhere."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import rightbatch as rb
from rightbatch._training.checkpoint import Checkpoints

FILE = """
import torch, rightbatch as rb
def workload():
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    data = torch.utils.data.TensorDataset(torch.randn(16, 4), torch.randint(0, 2, (16,)))
    return rb.Workload(
        model=model,
        loss=lambda model, batch: torch.nn.functional.cross_entropy(model(batch[0]), batch[1]),
        optimizer=torch.optim.AdamW(model.parameters()),
        data=data,
    )
"""


def train(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    (folder / "case.py").write_text(FILE)
    command = [sys.executable, "-m", "rightbatch", "train", "case.py:workload", "--batch", "8"]
    return subprocess.run(
        [*command, "--device", "cpu", "--out", "run", *options],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=500,  # of what hangs
    )


class Evil:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.path),)


class Plain:
    """An object whose class a checkpoint does not name."""


def tensors_and_code(path: Path, executed: Path) -> None:
    torch.save({"asked": {"batch_size": 8}, "loop": Evil(executed)}, path)


def bare_pickle(path: Path, executed: Path) -> None:
    path.write_bytes(pickle.dumps(Evil(executed)))


def old_format(path: Path, executed: Path) -> None:
    torch.save({"asked": Evil(executed)}, path, _use_new_zipfile_serialization=False)


def link_to_code(path: Path, executed: Path) -> None:
    torch.save(Evil(executed), path.with_name("elsewhere"))
    path.unlink()
    path.symlink_to("elsewhere")


def number(path: Path, executed: Path) -> None:
    torch.save(3, path)


def other_dict(path: Path, executed: Path) -> None:
    torch.save({"model": {"weight": torch.zeros(2)}}, path)


def other_model(path: Path, executed: Path) -> None:
    state = torch.load(path, weights_only=False)
    state["loop"]["model"] = {"weight": torch.zeros(3, 3)}
    torch.save(state, path)


def truncated(path: Path, executed: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path, executed: Path) -> None:
    path.write_bytes(b"")


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("genuine")
    done = train(folder, "--epochs", "1")
    assert done.returncode == 0, done.stderr
    return folder


def test_a_checkpoint_with_code_is_refused_in_one_line(genuine: Path, tmp_path: Path) -> None:
    kept = (genuine / "run" / "last.pt").read_bytes()
    try:
        tensors_and_code(genuine / "run" / "last.pt", tmp_path / "executed")
        done = train(genuine, "--epochs", "2", "--resume")
    finally:
        (genuine / "run" / "last.pt").write_bytes(kept)
    assert not (tmp_path / "executed").exists()
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "last.pt is not a checkpoint" in done.stderr
    done = train(genuine, "--epochs", "2", "--resume")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "write",
    [
        tensors_and_code,
        bare_pickle,
        old_format,
        link_to_code,
        number,
        other_dict,
        other_model,
        truncated,
        empty,
    ],
)
def test_a_file_that_is_no_checkpoint_of_the_training_is_refused(
    genuine: Path, tmp_path: Path, write: Callable[[Path, Path], None]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "last.pt").write_bytes((genuine / "run" / "last.pt").read_bytes())
    write(run / "last.pt", tmp_path / "executed")
    for batch in (8, "auto"):
        with pytest.raises(rb.UsageError, match="is not a checkpoint"):
            rb.train(
                f"{genuine / 'case.py'}:workload",
                batch=batch,
                epochs=2,
                out=run,
                resume=True,
                device="cpu",
                progress=False,
            )
    assert not (tmp_path / "executed").exists()


def test_a_checkpoint_of_other_settings_is_refused_by_their_names(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    was = {"batch_size": 8, "seed": 0}
    state = {"asked": was, "loop": {}, "observers": {}, "random": {}}
    checkpoints.write(state)
    assert checkpoints.read_same(was) == state
    words = "seed was 0, not 1. Resume it with the settings it was started with, or .*--out"
    with pytest.raises(rb.UsageError, match=words):
        checkpoints.read_same(was | {"seed": 1})


def test_the_partial_file_does_not_follow_a_link(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (tmp_path / "run" / "last.partial").symlink_to(precious)
    Checkpoints(tmp_path / "run", 0).write({"asked": {}})
    assert precious.read_text() == "mine"
    assert not (tmp_path / "run" / "last.pt").is_symlink()


@pytest.mark.parametrize("name", ["history.jsonl", "events.jsonl", "model.pt"])
def test_files_of_the_training_that_are_links_are_refused(
    genuine: Path, tmp_path: Path, name: str
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    precious = tmp_path / "precious"
    precious.write_text("mine")
    (run / name).symlink_to(precious)
    with pytest.raises(rb.UsageError, match=f"{name} is a link"):
        rb.train(
            f"{genuine / 'case.py'}:workload",
            batch=8,
            epochs=1,
            out=run,
            device="cpu",
            progress=False,
        )
    assert precious.read_text() == "mine"


def test_what_states_of_schedules_hold_is_read_again(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.Adam(model.parameters())
    lr = torch.optim.lr_scheduler
    schedules: list[Any] = [
        lr.LambdaLR(optimizer, lambda step: 1.0),
        lr.MultiStepLR(optimizer, [1, 2]),
        lr.ReduceLROnPlateau(optimizer),
        lr.OneCycleLR(optimizer, 0.1, total_steps=10, cycle_momentum=False),
        lr.SequentialLR(optimizer, [lr.ConstantLR(optimizer), lr.StepLR(optimizer, 1)], [3]),
    ]
    loop = {
        "schedules": [schedule.state_dict() for schedule in schedules],
        "numbers": [np.float64(0.5), np.int32(3), np.arange(3.0), np.array(["a"]), np.bool_(True)],
        "random": np.random.get_state(),
    }
    checkpoints.write({"asked": {}, "loop": loop, "observers": {}, "random": {}})
    read = checkpoints.read()["loop"]
    assert read["numbers"][:2] == [0.5, 3]
    assert len(read["schedules"]) == len(schedules)


def test_objects_that_could_not_be_read_again_are_refused_at_the_start(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path, 0)
    with pytest.raises(rb.UsageError, match=r"Plain.*state_dict"):
        checkpoints.write({"asked": {}, "loop": {"x": Plain()}, "observers": {}, "random": {}})
    assert not list(tmp_path.iterdir())


class Preconditioner:
    """An object in the state of an optimizer, as Shampoo's has them."""

    def __init__(self, gradient: torch.Tensor) -> None:
        self.total = gradient.square()


class WithObjects(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure: Any = None) -> None:
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["preconditioner"] = Preconditioner(parameter.grad)


def test_optimizer_state_that_could_not_be_read_again_is_refused_after_an_update(
    tmp_path: Path,
) -> None:
    """It is made by the first update, and a resume after days would find it unreadable."""

    def workload() -> rb.Workload:
        model = torch.nn.Linear(4, 2)
        return rb.Workload(
            model=model,
            loss=lambda model, batch: model(batch[0]).square().mean(),
            optimizer=WithObjects(model.parameters(), lr=0.1),
            data=torch.utils.data.TensorDataset(torch.randn(16, 4)),
        )

    options = {"batch": 8, "out": tmp_path, "device": "cpu", "progress": False}
    with pytest.raises(rb.UsageError, match=r"Preconditioner.*return numbers, text, lists"):
        rb.train(workload, epochs=100, checkpoint_seconds=3600, **options)
    state = torch.load(tmp_path / "last.pt", weights_only=False)
    assert state["loop"]["state"]["steps"] == 0


def test_a_folder_that_cannot_be_made_is_refused(genuine: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(rb.UsageError, match="cannot make the folder"):
            rb.train(
                f"{genuine / 'case.py'}:workload",
                batch=8,
                epochs=1,
                out=out,
                device="cpu",
                progress=False,
            )
