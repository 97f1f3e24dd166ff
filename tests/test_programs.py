"""Programs that the tests of the pages and of MQTT use.

Without them those tests skip themselves, which a newcomer may want and CI may not: `.ci/run` says
there that everything is to be tested.
"""

from __future__ import annotations

import os
import shutil
from importlib import import_module

import pytest

EVERYTHING = "RIGHTBATCH_TEST_EVERYTHING"

pytestmark = pytest.mark.skipif(not os.environ.get(EVERYTHING), reason=f"{EVERYTHING} is not set")


@pytest.mark.parametrize(
    "names",
    [
        ("chromium", "chromium-browser"),
        ("mosquitto", "/usr/sbin/mosquitto"),
        ("mosquitto_passwd",),
        ("openssl",),
    ],
    ids=lambda names: names[0],
)
def test_a_program_is_installed(names: tuple[str, ...]) -> None:
    assert any(shutil.which(name) for name in names), f"install {names[0]}, as .ci/run does as root"


@pytest.mark.parametrize("module", ["playwright.sync_api", "paho.mqtt.client", "uvicorn", "plotly"])
def test_a_package_can_be_imported(module: str) -> None:
    import_module(module)
