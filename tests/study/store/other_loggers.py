"""Runs as the loggers of Ultralytics, Transformers and Lightning write them into MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mlflow.entities import Metric, Param
from mlflow.tracking import MlflowClient
from study_stores import folder_with_database

from rightbatch._study.store.database import DATABASE, uri_of

STARTED = 1_700_000_000_000
"""Of runs of other loggers, in milliseconds."""

# What Ultralytics logs of its arguments, as its callback logs them: all as text.
YOLO = {
    "task": "detect",
    "mode": "train",
    "epochs": 3,
    "batch": 16,
    "nbs": 64,
    "imgsz": 640,
    "seed": 7,
    "optimizer": "SGD",
    "lr0": 0.01,
    "cls": 0.5,
}
# As `TrainingArguments.to_dict` has them, among many more.
TRAINING_ARGUMENTS = {
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "learning_rate": 5e-05,
    "seed": 42,
    "num_train_epochs": 2,
}


class Others:
    """Runs as other loggers write them."""

    def __init__(self, folder: Path, experiment: str = "theirs") -> None:
        self.folder = folder_with_database(folder)
        self.client = MlflowClient(tracking_uri=uri_of(folder / DATABASE))
        self.experiment = self.client.create_experiment(experiment)

    def begin(self, parameters: dict[str, Any], name: str = "train") -> str:
        run = self.client.create_run(self.experiment, start_time=STARTED, run_name=name).info.run_id
        texts = [Param(key, str(value)) for key, value in parameters.items()]
        self.client.log_batch(run, params=texts)
        return str(run)

    def log(self, run: str, step: int, seconds: float, **values: float) -> None:
        at = STARTED + round(1000 * seconds)
        metrics = [
            Metric(name.replace("__", "/"), value, at, step) for name, value in values.items()
        ]
        self.client.log_batch(run, metrics=metrics)

    def ultralytics(self) -> str:
        """Three epochs, and then the best weights once more, at the step of the last epoch."""
        run = self.begin(YOLO)
        for epoch in range(3):
            self.log(run, epoch, 10 * epoch + 8, lr__pg0=0.01, train__box_loss=2.0 - epoch / 2)
            self.log(run, epoch, 10 * epoch + 10, metrics__mAP50B=(0.5, 0.7, 0.6)[epoch])
        self.log(run, 2, 33, metrics__mAP50B=0.7)
        self.client.set_terminated(run)
        return run

    def transformers(self) -> str:
        """200 examples in batches of 8: 25 steps an epoch."""
        run = self.begin(TRAINING_ARGUMENTS)
        for step in (10, 20, 30, 40, 50):
            self.log(run, step, step / 10, loss=1 / step, grad_norm=1.0, epoch=step / 25)
            if step in (20, 40):
                self.log(run, step, step / 10 + 0.5, eval_loss=2 / step, epoch=step / 25)
        self.log(run, 50, 6, train_runtime=6.0, epoch=2.0)
        self.client.set_terminated(run)
        return run

    def lightning(self) -> str:
        """Ten steps an epoch, the first being step 0, logged every four; then the validation."""
        run = self.begin({"data/batch_size": 8, "lr": 0.1})
        for step in range(30):
            if step % 4 == 3:
                self.log(run, step, step + 1, train_loss=1 / (step + 1), epoch=step // 10)
            if step % 10 == 9:
                self.log(run, step, step + 1.5, val_loss=2 / (step + 1), epoch=step // 10)
        self.client.set_terminated(run)
        return run
