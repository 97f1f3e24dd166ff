"""A workload's pilot, and branches that start where it ended; runs in a probe's process."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from rightbatch._device.caches import synchronize
from rightbatch._errors import UsageError
from rightbatch._noise import Part
from rightbatch._training.scaling import scale_optimizer
from rightbatch._training.session import move_state
from rightbatch._tune.pilot import Pilot, PilotPlan, PilotReport, facts
from rightbatch._workload.batch import Batch, to_device
from rightbatch._workload.normalization import min_examples
from rightbatch._workload.precision import autocast, scaler
from rightbatch._workload.workload import Workload

_HELD_OUT = 512
"""Examples that branches are compared on, where the workload has no data for evaluation."""


class WorkloadPilot:
    """Trains a workload that nobody else holds."""

    def __init__(self, workload: Workload, device: str, plan: PilotPlan) -> None:
        if isinstance(workload.data, IterableDataset) or not hasattr(workload.data, "__len__"):
            raise UsageError(
                "tune takes a map-style data set, of which it knows how many steps are an epoch; "
                "for a stream, use rightbatch.NoiseScale in your own loop"
            )
        self._workload, self._device, self._plan = workload, torch.device(device), plan
        self.model = workload.model.to(device)
        move_state(workload.optimizer, device)
        self._scaler = scaler(workload, device)
        self._generator = torch.Generator().manual_seed(plan.seed)
        self._scheduled = -(-self.population // plan.batch_size) * plan.epochs
        self._scheduler = (
            workload.scheduler(workload.optimizer, self._scheduled) if workload.scheduler else None
        )

    @property
    def population(self) -> int:
        return len(self._workload.data)  # type: ignore[arg-type]

    def run(self, show: Callable[[str], object]) -> PilotReport:
        """Train until the plan's time is spent."""
        pilot = Pilot(self, self._plan, show)
        self.model.train()
        for batch, examples in self._batches(self._plan.batch_size):
            loss = self._step(batch, examples, self._plan.micro_batch_size)
            if self._scheduler is not None and pilot.report.steps < self._scheduled - 1:
                self._scheduler.step()  # some schedules refuse to go on beyond their end
            if pilot.after_step(loss, examples):
                break
        w = self._workload
        about = {"workers": w.workers, "precision": w.precision, "drop_last": w.drop_last}
        pilot.report.facts = facts(self.model, w.optimizer, **about)
        return pilot.report

    def parts(self) -> Iterator[Part]:
        w = self._workload
        # A window holds several parts, and no example twice, where the data set is small, too.
        least = max(min_examples(self.model), self.population // 8)
        size = min(self._plan.batch_size, self._plan.micro_batch_size, max(least, 1))
        for batch, examples in self._batches(size):
            here, count = to_device(batch, self._device), float(w.count(batch))
            if count:  # times the scale that keeps fp16's gradients from vanishing
                yield partial(self._loss, here), examples, count * self._scaler.get_scale()

    def evaluate(self) -> Mapping[str, float]:
        w = self._workload
        found = {} if w.evaluation_data is None else {"evaluation_loss": self._unseen_loss()}
        if w.evaluate is None:
            return found
        self.model.eval()
        try:
            with torch.no_grad():
                return found | dict(w.evaluate(self.model))
        finally:
            self.model.train()

    def branches(
        self, tries: list[dict[str, Any]], examples: int, show: Callable[[str], object]
    ) -> list[dict[str, Any]]:
        """Each of `tries` trains `examples` from here, at its `batch_size` and learning rate.

        Returns the loss on unseen examples, and the seconds, of each. The training is then as it
        was.
        """
        w = self._workload
        model = copy.deepcopy(self.model.state_dict())
        optimizer = copy.deepcopy(w.optimizer.state_dict())
        results = []
        for number, one in enumerate(tries, start=1):
            show(f"branch {number} of {len(tries)}: batch size {one['batch_size']}")
            self.model.load_state_dict(model)
            w.optimizer.load_state_dict(copy.deepcopy(optimizer))
            scale_optimizer(w.optimizer, one["batch_factor"], one["learning_rate_factor"])
            self._generator.manual_seed(self._plan.seed)
            seen, began = 0, time.perf_counter()
            for batch, count in self._batches(one["batch_size"]):
                self._step(batch, count, one["micro_batch_size"])
                seen += count
                if seen >= examples:
                    break
            synchronize(self._device)
            seconds = time.perf_counter() - began
            loss = self._unseen_loss()
            results.append(one | {"loss": loss, "seconds": seconds, "examples": seen})
        self.model.load_state_dict(model)
        w.optimizer.load_state_dict(optimizer)
        return results

    def _batches(self, size: int) -> Iterator[tuple[Batch, int]]:
        """Epoch after epoch, each in an order of its own, without the smaller last batch."""
        w = self._workload
        while True:
            order = torch.randperm(self.population, generator=self._generator).tolist()
            cuts = [order[start : start + size] for start in range(0, len(order), size)]
            if len(cuts) > 1 and len(cuts[-1]) < size:
                cuts.pop()
            loader: DataLoader[Any] = DataLoader(
                w.data, batch_sampler=cuts, num_workers=w.workers, collate_fn=w.collate
            )
            for batch, cut in zip(loader, cuts, strict=True):
                yield batch, len(cut)

    def _step(self, batch: Batch, examples: int, micro: int) -> float:
        w = self._workload
        w.optimizer.zero_grad()
        parts = [batch] if examples <= micro else list(w.split(batch, micro))
        counts = [float(w.count(part)) for part in parts]
        whole, loss = sum(counts), torch.zeros((), device=self._device)
        for part, count in zip(parts, counts, strict=True):
            if count:
                one = self._loss(to_device(part, self._device)) * (count / whole)
                self._scaler.scale(one).backward()
                loss = loss + one.detach()
        if w.clip_norm is not None:
            self._scaler.unscale_(w.optimizer)
            nn.utils.clip_grad_norm_(self.model.parameters(), w.clip_norm)
        self._scaler.step(w.optimizer)
        self._scaler.update()
        return float(loss)

    def _loss(self, batch: Batch) -> Tensor:
        with autocast(self._workload, self._device):
            return self._workload.loss(self.model, batch)

    def _unseen_loss(self) -> float:
        """On evaluation data, or a fixed sample of the training data where there is none."""
        w = self._workload
        data: Any = w.data if w.evaluation_data is None else w.evaluation_data
        generator = torch.Generator().manual_seed(0)
        chosen = torch.randperm(len(data), generator=generator)[:_HELD_OUT].tolist()
        size = min(self._plan.micro_batch_size, 64)
        total, weight = 0.0, 0.0
        self.model.eval()
        with torch.no_grad():
            for start in range(0, len(chosen), size):
                batch = w.collate([data[index] for index in chosen[start : start + size]])
                count = float(w.count(batch))
                total += float(self._loss(to_device(batch, self._device))) * count
                weight += count
        self.model.train()
        return total / weight
