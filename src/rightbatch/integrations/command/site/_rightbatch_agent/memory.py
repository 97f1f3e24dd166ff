"""The memory of this process: its limit and its peak, above what it held before the model.

The figures are those of `rightbatch._device`, whose file for the CPU needs no other module.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .live import LivePeak, reader
from .settings import Settings

_ROOT = Path(__file__).resolve().parents[4]  # the package rightbatch


def shared(name: str) -> Any:
    """Load a module of rightbatch by its path: one that imports the standard library only."""
    full = "_rightbatch_agent." + name.rpartition("/")[2]
    if full not in sys.modules:
        spec = importlib.util.spec_from_file_location(full, _ROOT / f"{name}.py")
        assert spec is not None and spec.loader is not None
        sys.modules[full] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return sys.modules[full]


class Memory:
    """Sets a limit for this process, once, and reads its peaks since then."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self._cpu: Any = None
        self.ceiling: int | None = None
        self.limit: int | None = None
        self.shared_limit: int | None = None
        """What all ranks of this machine have together, on the CPU."""
        self.is_enforced = False
        self._has_cuda = False
        self._is_trial = False
        self._live: Any = None  # reads the bytes that malloc has given out
        self._base_live = 0
        self._peak: LivePeak | None = None

    def start(self, settings: Settings) -> None:
        """Take the baseline; in a trial, let allocations beyond the limit less the margin fail."""
        cuda = self._torch.cuda
        self._has_cuda, self._is_trial = cuda.is_available(), settings.trial
        self._cpu = shared("_device/proc").ProcessMemory()
        self._cpu.start()
        if not self._has_cuda and not self._is_trial:
            self._live = reader()
            self._base_live = self._live() if self._live else 0
        if self._has_cuda:
            self.limit = settings.memory
            cuda._lazy_call(lambda: self._limit_cuda(settings.margin, settings.trial))
        elif settings.free is not None:
            ranks = max(int(os.environ.get("LOCAL_WORLD_SIZE", "1") or 1), 1)
            self.shared_limit = min(settings.memory or settings.free, settings.free)
            self.limit = self.shared_limit // ranks
        if settings.trial:
            self._cpu.reset_peak()  # a watched run may itself print the peak that this resets
            if not self._has_cuda:
                self._limit_cpu(settings.margin)

    @contextmanager
    def loading(self) -> Iterator[None]:
        """Code and buffers that torch loads inside the context are not the training's memory.

        They are up to 150 MiB, so the limit holds only before and after.
        """
        if self._cpu is None:  # the agent has stopped observing
            yield
            return
        proc = shared("_device/proc")
        is_limited = self.is_enforced and not self._has_cuda
        if is_limited:
            self._cpu.lift()
        resident, private = proc.resident_bytes(), proc.private_bytes()
        live = self._live() if self._live else 0
        yield
        self._base_live += max(self._live() - live, 0) if self._live else 0
        self._cpu.move_base(proc.resident_bytes() - resident, proc.private_bytes() - private)
        if self._is_trial:
            self._cpu.reset_peak()
        if is_limited:
            self._cpu.enforce(self.ceiling)

    def start_step(self) -> None:
        """Measure what malloc gives out from here to `end_step`, where that can be known."""
        if self._live is not None:
            self._peak = LivePeak(self._live)

    @property
    def is_measuring(self) -> bool:
        """Whether the memory in use is being measured."""
        return self._peak is not None

    def end_step(self) -> dict[str, int] | None:
        """Return the bytes in use at the step's start and at its peak; None if unknown."""
        peak, self._peak = self._peak, None
        if peak is None:
            return None
        highest = peak.stop()
        return {"start": peak.start_bytes - self._base_live, "peak": highest - self._base_live}

    def _limit_cpu(self, margin: float) -> None:
        if self.limit is not None:
            self.ceiling = int(self.limit * (1 - margin))
            self.is_enforced = self._cpu.enforce(self.ceiling)

    def _limit_cuda(self, margin: float, limits: bool) -> None:
        cuda = self._torch.cuda
        index = int(os.environ.get("LOCAL_RANK", "0") or 0) % cuda.device_count()
        free, total = cuda.mem_get_info(index)
        self.limit = min(self.limit or free, free)
        if limits:
            self.ceiling = int(self.limit * (1 - margin))
            total = max(total, cuda.get_device_properties(index).total_memory)
            cuda.set_per_process_memory_fraction(min(self.ceiling / total, 1.0), index)
            self.is_enforced = True

    def read(self) -> dict[str, Any]:
        """Return peaks and limit of this process, in bytes; on CUDA of the most used device."""
        limits = {
            "limit": self.limit,
            "shared_limit": self.shared_limit,
            "ceiling": self.ceiling,
            "enforced": self.is_enforced,
        }
        cuda = self._torch.cuda
        if cuda.is_available() and cuda.is_initialized():
            devices = map(self._read_cuda, range(cuda.device_count()))
            return {**limits, **max(devices, key=lambda reading: reading["peak"])}
        resident, private = self._cpu.read()
        return {**limits, "device": "cpu", "peak": resident, "charged": max(resident, private)}

    def _read_cuda(self, index: int) -> dict[str, Any]:
        cuda = self._torch.cuda
        reserved = cuda.max_memory_reserved(index)
        return {
            "device": f"cuda:{index}",
            "peak": reserved,
            "charged": reserved,
            "allocated": cuda.max_memory_allocated(index),
        }
