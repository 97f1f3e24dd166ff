"""Part 1: what is here, what the device says of its memory, and whether it keeps the contract."""

from __future__ import annotations

import gc
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import nvidia
from benchmarks.gpu.internals import open_device
from benchmarks.gpu.rows import Report, missing_of

ROOT = Path(__file__).parents[2]
MIB = 2**20
USED = (
    ("torchvision", "ResNet, ViT and ConvNeXt"),
    ("transformers", "the decoder and BERT"),
    ("ultralytics", "YOLO26n"),
    ("cloudpickle", "fit, predict and tune"),
    ("rich", "fit, predict and tune"),
    ("pynvml", "energy (the package nvidia-ml-py)"),
    ("pytest", "the device tests"),
    ("hypothesis", "the device tests"),
    ("psutil", "the CPU device"),
)
TESTS = ("tests/device/test_cuda.py", "tests/memory/test_calibrate.py")


def run(report: Report) -> None:
    is_cuda = report.device == "cuda"
    driver = nvidia.ask() if is_cuda else {}
    with report.measuring("versions"):
        _versions(report, driver)
    if is_cuda:
        with report.measuring("limits"):
            _limits(report, driver)
    steps = {"device contract": _contract, "device tests": _tests}
    # The CPU's devices go on sampling the memory of this process' children, so there it is last.
    for what in steps if is_cuda else reversed(steps):
        with report.measuring(what):
            steps[what](report)


def _versions(report: Report, driver: dict[str, Any]) -> None:
    found = f"torch {torch.__version__}, Python {sys.version.split()[0]}"
    facts: dict[str, Any] = {"torch": torch.__version__, "cuda": torch.version.cuda}
    if report.device == "cuda":
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "name": properties.name,
            "capability": list(torch.cuda.get_device_capability(0)),
            "processors": properties.multi_processor_count,
            "cudnn": torch.backends.cudnn.version(),
            "driver": driver.get("driver"),
        }
        found = f"{properties.name}, driver {facts['driver']}, CUDA {facts['cuda']}, {found}"
    report.row("machine", found, "", **facts)
    missing = {name: use for name, use in USED if missing_of((name,))}
    words = ", ".join(f"{name} ({use})" for name, use in missing.items())
    report.row("packages that are not installed", words or "none", "none", missing=missing)


def _limits(report: Report, driver: dict[str, Any]) -> None:
    """`Device` beside the driver, whose `used` was asked before this process had a context."""
    device = open_device("cuda")
    device.prepare()
    total = torch.cuda.get_device_properties(0).total_memory
    report.row(
        "total memory (torch, against nvidia-smi)",
        _mib(total),
        _mib(driver.get("total")),
        torch_bytes=total,
        driver_bytes=driver.get("total"),
    )
    capacity, free = device.capacity(), nvidia.ask().get("free")
    report.row(
        "Device.capacity (against nvidia-smi's free memory now)",
        _mib(capacity),
        _mib(free),
        capacity_bytes=capacity,
        free_before_bytes=driver.get("free"),
        free_bytes=free,
    )
    device.reset_peak()
    before = nvidia.used_bytes()
    held = torch.ones(1024 * MIB, dtype=torch.uint8, device="cuda")
    reading, after = device.read(), nvidia.used_bytes()
    charged = None if before is None or after is None else after - before
    report.row(
        "1 GiB more, as Device.read charges it (against the driver)",
        _mib(reading.charged_bytes),
        _mib(charged),
        charged_bytes=reading.charged_bytes,
        driver_bytes=charged,
        **{f"reading_{key}": value for key, value in reading.detail.items()},
    )
    del held
    torch.cuda.empty_cache()


def _contract(report: Report) -> None:
    """Every test of the contract that all devices pass, without pytest, which may be missing."""
    from rightbatch.testing import DeviceContract

    class Contract(DeviceContract):
        allocation = (64 if report.tiny else 256) * MIB
        # What is reserved includes cuBLAS's workspace, 32 MiB from Hopper on.
        tolerance = (16 if report.tiny else 48) * MIB

    contract = Contract()
    names = sorted(name for name in dir(contract) if name.startswith("test_"))
    failures: dict[str, str] = {}
    took = {}
    for name in names:
        take_back = _limits_as_now(report.device)
        started = time.perf_counter()
        try:
            getattr(contract, name)(open_device(report.device))
        except Exception:
            failures[name] = traceback.format_exc()
        finally:
            take_back()
            gc.collect()
        took[name] = time.perf_counter() - started
    found = f"{len(names) - len(failures)} of {len(names)} tests"
    if failures:
        found += f"; not {', '.join(failures)}"
    report.row(
        "device contract", found, f"{len(names)} of {len(names)}", failures=failures, seconds=took
    )


def _limits_as_now(device: str) -> Callable[[], object]:
    """Takes back what a test enforces on this process."""
    if device == "cuda":

        def take_back() -> None:
            torch.cuda.set_per_process_memory_fraction(1.0, 0)
            torch.cuda.empty_cache()

        return take_back
    import resource

    before = resource.getrlimit(resource.RLIMIT_DATA)
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, before)


def _tests(report: Report) -> None:
    """The test files that skip themselves without a GPU."""
    if not report.has("device tests", "pytest", "hypothesis"):
        return
    files = TESTS[:1] if report.tiny else TESTS
    with tempfile.TemporaryDirectory() as folder:
        # Settings of their own: the project's name plug-ins that may be missing.
        settings = Path(folder) / "pytest.ini"
        settings.write_text("[pytest]\n")
        command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider"]
        command += ["-c", str(settings), "--rootdir", str(ROOT), *files]
        done = subprocess.run(
            command,
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=max(report.left - 2, 1),
        )
    lines = done.stdout.strip().splitlines()
    report.row(
        f"device tests ({', '.join(files)})",
        lines[-1].strip("= ") if lines else done.stderr.strip()[-200:],
        "all passed",
        status=done.returncode,
        output=(done.stdout + done.stderr)[-4000:],
    )


def _mib(value: float | None) -> str:
    return "unknown" if value is None else f"{value / MIB:,.0f} MiB"
