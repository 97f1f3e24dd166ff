"""A process that measures the real CPU device, and then really runs out of memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

MEASURE = """
import json, resource, time
from pathlib import Path
import torch
from torch.utils.data import DataLoader, Dataset
from rightbatch._device.cpu import CPU
from rightbatch._device.out_of_memory import is_out_of_memory

MIB = 2**20
found = {}

def status(key):
    text = Path("/proc/self/status").read_text()
    return int(text.split(key + ":")[1].split()[0]) * 1024

class Held(Dataset):  # what a worker reads stays in the worker
    def __len__(self):
        return 1

    def __getitem__(self, index):
        self.cache = b"1" * (150 * MIB)
        return index

def failing(action):
    try:
        action()
    except BaseException as error:
        return {
            "type": type(error).__name__,
            "message": str(error),
            "recognized": is_out_of_memory(error),
        }
    return None

device = CPU()
device.prepare()
found["capacity"] = device.capacity()

def transient():
    one = torch.ones(100 * MIB, dtype=torch.uint8)
    two = torch.ones(200 * MIB, dtype=torch.uint8)
    del two
    return one

device.reset_peak()
held = transient()
found["transient"] = device.read().__dict__
device.reset_peak()
found["held"] = device.read().__dict__
small = torch.ones(50 * MIB, dtype=torch.uint8)
del small
found["below an earlier peak"] = device.read().__dict__
device.reset_peak()
untouched = torch.empty(500 * MIB, dtype=torch.uint8)
found["untouched"] = device.read().__dict__
del untouched, held

device.reset_peak()
found["no worker"] = device.read().__dict__
batches = iter(DataLoader(Held(), num_workers=1))  # whose worker lives as long as it
next(batches)
for _ in range(1200):  # a minute: the sampling thread may have to wait for a processor
    if device.read().detail["children_bytes"] >= 150 * MIB:
        break
    time.sleep(0.05)
found["worker"] = device.read().__dict__
del batches

device.reset_peak()
before = status("VmData")
found["enforced"] = device.enforce(512 * MIB)
grown = []
def fill():
    while True:
        grown.append(torch.ones(16 * MIB, dtype=torch.uint8))
found["filled"] = failing(fill)
found["grown"] = status("VmData") - before
grown.clear()

found["empty"] = failing(lambda: torch.empty(2**40, dtype=torch.uint8))
found["list"] = failing(lambda: [0] * 2**40)
found["bytes"] = failing(lambda: bytearray(1024 * MIB))
found["after"] = failing(lambda: torch.ones(256 * MIB, dtype=torch.uint8))

# A convolution whose output fits, while what oneDNN needs beside it does not.
found["convolutions"] = []
image = torch.zeros(4, 64, 64, 64)
torch.nn.Conv2d(64, 64, 3)(image)
for quarters in range(1, 8):
    layer = torch.nn.Conv2d(64, 64 + quarters, 3)
    room = status("VmData") + quarters * MIB // 4
    resource.setrlimit(resource.RLIMIT_DATA, (room, resource.RLIM_INFINITY))
    with torch.no_grad():
        found["convolutions"].append(failing(lambda: layer(image)))
    resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
found["wrong shape"] = failing(lambda: layer(torch.zeros(2, 4, 8, 8)))
print(json.dumps(found, default=dict))
"""


@pytest.fixture(scope="session")
def measured_cpu() -> dict[str, Any]:
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux enforces a limit on a process and tells what it uses")
    # with the threads that torch takes by itself, whose stacks are not the workload's
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE],
        capture_output=True,
        text=True,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout)
