"""One job under the ceiling, in a process of its own: `python -m benchmarks._in_process`.

The peers run inside the product's own mechanism: the same base, the same limit enforced by the
operating system, the same session whose step they call. The job is read from standard input, the
answer is the last line on standard output.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
import traceback
from typing import Any

from rightbatch._device import is_out_of_memory, open_device
from rightbatch._training.protocol import LoopPlan, Training
from rightbatch._training.resolve import resolve
from rightbatch._training.workload_training import WorkloadTraining
from rightbatch._worker.bootstrap import warm_up

STEPS_PER_TRIAL = 3  # Lightning's default


def main() -> None:
    job: dict[str, Any] = pickle.load(sys.stdin.buffer)
    import torch

    warm_up(torch)
    torch.manual_seed(job["seed"])
    training = resolve(job["factory"]).load()
    if job["kind"].startswith("lightning"):
        import lightning  # noqa: F401  what a script would have imported is in the base
    if job["kind"] == "accelerate":
        import accelerate  # noqa: F401
    device = open_device("cpu")
    device.prepare()
    device.enforce(job["limit"])
    started = time.perf_counter()
    answer: dict[str, Any] = {}
    try:
        answer |= _KINDS[job["kind"]](training, job)
        answer["outcome"] = "ok"
    except BaseException as error:
        answer["outcome"] = "out_of_memory" if is_out_of_memory(error) else "failed"
        answer["error"] = f"{type(error).__name__}: {error}"[:500]
        answer["traceback"] = traceback.format_exc()[-3000:]
    answer["seconds"] = time.perf_counter() - started
    print("\n" + json.dumps(answer), flush=True)


def epochs(training: Training, job: dict[str, Any]) -> dict[str, Any]:
    """So many whole epochs, each in an order of its own and with an evaluation at its end.

    A user's own loop, without anything of the product's.
    """
    import torch

    if not isinstance(training, WorkloadTraining):  # Ultralytics trains itself
        from pathlib import Path

        from rightbatch._training.distributed import Processes

        plan = LoopPlan(
            batch_size=job["batch_size"],
            micro_batch_size=job["batch_size"],
            epochs=job["epochs"],
            seed=job["seed"],
            out=Path(job["scratch"]) / "train",
            settings={"plots": False, "save": True},
        )
        with training.loop(plan, Processes(torch.device("cpu")), []) as loop:
            at = loop.run()
        if at.out_of_memory_events:
            # It survives some by itself, at half the batch: that is no survival here.
            raise MemoryError(f"{at.out_of_memory_events} out-of-memory events")
        return {}
    from torch.utils.data import DataLoader

    workload = training.build()
    model, optimizer = workload.model, workload.optimizer
    loader = DataLoader(workload.data, job["batch_size"], shuffle=True, collate_fn=workload.collate)
    for _ in range(job["epochs"]):
        model.train()
        for batch in loader:
            optimizer.zero_grad()
            loss = workload.loss(model, batch)
            loss.backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            workload.loss(model, batch)
    return {"steps": len(loader) * job["epochs"]}


def lightning(training: Training, job: dict[str, Any]) -> dict[str, Any]:
    """Lightning's `Tuner.scale_batch_size`; its module's step is the session's step."""
    import warnings

    import torch
    from lightning.pytorch import LightningModule, Trainer
    from lightning.pytorch.tuner import Tuner
    from torch.utils.data import DataLoader

    warnings.simplefilter("ignore")
    session = training.session("cpu", seed=job["seed"], inference=False)
    trials: list[int] = []

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.automatic_optimization = False
            self.batch_size = 2  # Lightning's init_val
            self.weight = torch.nn.Parameter(torch.zeros(1))

        def training_step(self, batch: Any, index: int) -> None:
            trials.append(self.batch_size)
            session.step(self.batch_size)
            # Lightning counts a trial's steps by its optimizer's; without one it runs an epoch.
            self.optimizers().step()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.0)

        def train_dataloader(self) -> Any:
            return DataLoader(range(session.examples or 10**6), batch_size=self.batch_size)

    module = Module()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=job["scratch"],
    )
    found = Tuner(trainer).scale_batch_size(
        module, mode=job["mode"], steps_per_trial=STEPS_PER_TRIAL, max_trials=25
    )
    return {"batch_size": found, "trials": trials}


def accelerate(training: Training, job: dict[str, Any]) -> dict[str, Any]:
    """Accelerate's `find_executable_batch_size`, from the data set's size downward."""
    from accelerate.utils import find_executable_batch_size

    session = training.session("cpu", seed=job["seed"], inference=False)
    trials: list[int] = []

    @find_executable_batch_size(starting_batch_size=session.examples)
    def run(batch_size: int) -> int:
        for _ in range(STEPS_PER_TRIAL):
            trials.append(batch_size)
            session.step(batch_size)
        return batch_size

    return {"batch_size": run(), "trials": trials}


_KINDS = {
    "epochs": epochs,
    "lightning": lightning,
    "accelerate": accelerate,
}

if __name__ == "__main__":
    main()
