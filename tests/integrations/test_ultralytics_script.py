"""The script of the README, which people already have, after one added line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snippets import ROOT, blocks

pytestmark = pytest.mark.yolo
pytest.importorskip("ultralytics")

(SCRIPT,) = [
    block.text
    for block in blocks(ROOT / "README.md", "python")
    if block.text.startswith("import rightbatch.integrations.ultralytics")
]
SAVE_WEIGHTS = "from ultralytics import YOLO; YOLO('yolo26n.yaml').save('yolo26n.pt')"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with yolo26n.pt, and a rendered coco8 where Ultralytics looks for data sets."""
    from rightbatch.examples import render_parts

    place = tmp_path_factory.mktemp("script")
    datasets = place / "datasets"
    render_parts(datasets / "coco8", images=4, validation=4, size=160)
    configuration = place / "configuration"
    places = {"datasets_dir": str(datasets), "runs_dir": str(place / "runs")}
    tell = f"from ultralytics import settings; settings.update({places!r})"
    run(place, configuration, "-c", tell)
    run(place, configuration, "-c", SAVE_WEIGHTS)
    return place


def run(
    place: Path, configuration: Path, *arguments: str, **more: str
) -> subprocess.CompletedProcess[str]:
    # Ultralytics behaves otherwise where it sees that tests run: no trackers, another folder.
    plain = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    environment = plain | {
        "YOLO_CONFIG_DIR": str(configuration),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "MLFLOW_TRACKING_URI": (place / "tracked").as_uri(),
        # mlflow 3 refuses its file store otherwise; any store would do, this one can be counted.
        "MLFLOW_ALLOW_FILE_STORE": "true",
    }
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environment | more,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done


@pytest.mark.slow
@pytest.mark.parametrize("batch", ["16", "-1"])
def test_the_script_trains_unchanged_after_one_added_line(place: Path, batch: str) -> None:
    script = place / f"script{batch}.py"
    script.write_text(
        SCRIPT.replace("batch=-1", f"batch={batch}")
        + "print('TRAINED', model.trainer.args.batch)\n"
    )
    before = {path.name for path in (place / "runs" / "detect").glob("*")}
    settings = (place / "configuration" / "Ultralytics" / "settings.json").read_text()

    done = run(place, place / "configuration", script.name)

    expected = 4 if batch == "-1" else 16
    assert f"TRAINED {expected}" in done.stdout, done.stdout[-3000:]
    runs = {path.name for path in (place / "runs" / "detect").glob("*")} - before
    assert len(runs) == 1, "one run folder for the training, none for the probes"
    assert (place / "configuration" / "Ultralytics" / "settings.json").read_text() == settings
    tracked = [
        path for path in (place / "tracked").rglob("meta.yaml") if "run_id" in path.read_text()
    ]
    assert len(tracked) == len(before) + 1, (
        "one tracker entry for the training, none for the probes"
    )
