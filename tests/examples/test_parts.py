"""The rendered data set of machined parts."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("cv2")

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch.examples import CLASSES, Box, _scene, parts, render_frames, render_parts

SOURCE = Path(parts.__file__).parents[2]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "data.yaml"
    }


def inside(box: Box) -> tuple[slice, slice]:
    return slice(int(box.y0), int(box.y1)), slice(int(box.x0), int(box.x1))


def small(out: Path, **other: int) -> Path:
    return render_parts(out, **{"images": 3, "validation": 2, "size": 96, **other})


# What a defect is


def assert_boxes_hold_the_difference(
    spoilt: np.ndarray, clean: np.ndarray, boxes: list[Box]
) -> None:
    different = (spoilt != clean).any(axis=2)
    outside = different.copy()
    for box in boxes:
        outside[inside(box)] = False
        within = different[inside(box)]
        assert within.any()
        # Tight: the difference reaches the four sides, but for a line lost in the noise.
        rows, columns = np.flatnonzero(within.any(1)), np.flatnonzero(within.any(0))
        assert rows[0] <= 2 and columns[0] <= 2
        assert rows[-1] >= within.shape[0] - 3 and columns[-1] >= within.shape[1] - 3
    assert not outside.any()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32), size=st.sampled_from([128, 320]))
def test_defects_change_an_image_inside_their_boxes_only(seed: int, size: int) -> None:
    spoilt, boxes = _scene.render_image(np.random.default_rng(seed), size)
    clean, none = _scene.render_image(np.random.default_rng(seed), size, with_defects=False)
    assert none == []
    assert_boxes_hold_the_difference(spoilt, clean, boxes)


def test_a_defect_is_visible_above_the_noise() -> None:
    changes = {label: [] for label in CLASSES}
    for seed in range(40):
        spoilt, boxes = _scene.render_image(np.random.default_rng(seed), 320)
        clean, _ = _scene.render_image(np.random.default_rng(seed), 320, with_defects=False)
        change = np.abs(spoilt.astype(int) - clean.astype(int)).max(axis=2)
        for box in boxes:
            changes[box.label].append(np.percentile(change[inside(box)], 90))
    for label, found in changes.items():
        assert found, label
        assert min(found) > 15, label


def test_the_share_of_defective_parts_is_as_documented() -> None:
    found = []
    for number in range(150):
        lot = _scene._section(5, number, 340, 320, 1.0)
        found += [bool(part.defects) for part in lot]
    assert len(found) > 400
    assert abs(np.mean(found) - 0.35) < 0.06


def test_an_image_has_one_to_six_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    take = _scene._render

    def counting(rng, appearance, lying, *rest, **named):  # type: ignore[no-untyped-def]
        counts.append(len(lying))
        return take(rng, appearance, lying, *rest, **named)

    monkeypatch.setattr(_scene, "_render", counting)
    for seed in range(60):
        _scene.render_image(np.random.default_rng(seed), 64)
    assert set(counts) == {1, 2, 3, 4, 5, 6}


# The data set


def test_the_folder_has_yolos_layout_with_valid_labels(tmp_path: Path) -> None:
    data = render_parts(tmp_path / "set", images=24, validation=8, size=160, seed=1)
    assert data == tmp_path / "set" / "data.yaml"
    assert f'path: "{tmp_path / "set"}"' in data.read_text()
    seen, empty = set(), 0
    for split, count in (("train", 24), ("val", 8)):
        pictures = sorted((data.parent / "images" / split).iterdir())
        labels = sorted((data.parent / "labels" / split).iterdir())
        assert [p.stem for p in pictures] == [p.stem for p in labels]
        assert len(pictures) == count
        for path in labels:
            lines = path.read_text().splitlines()
            empty += not lines
            for line in lines:
                name, *box = line.split()
                x, y, width, height = map(float, box)
                assert width > 0 and height > 0
                assert x - width / 2 >= -1e-6 and x + width / 2 <= 1 + 1e-6
                assert y - height / 2 >= -1e-6 and y + height / 2 <= 1 + 1e-6
                seen.add(int(name))
    assert seen == set(range(len(CLASSES)))
    assert empty > 0


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        contents(small(tmp_path / name, seed=seed).parent)
        for name, seed in (("first", 4), ("again", 4), ("other", 5))
    )
    assert first == again
    assert first.keys() == other.keys()
    pictures = [name for name in first if name.endswith(".jpg")]
    assert len({first[name] for name in pictures} | {other[name] for name in pictures}) == 10


def test_a_larger_data_set_starts_with_the_same_images(tmp_path: Path) -> None:
    few = contents(small(tmp_path / "few").parent)
    more = contents(small(tmp_path / "more", images=5).parent)
    assert all(more[name] == few[name] for name in few if name.startswith(("images", "labels")))


def test_a_second_call_returns_at_once(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    data = small(tmp_path / "set")
    before = {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")}
    again = render_parts(
        tmp_path / "set", images=3, validation=2, size=96, progress=lambda *now: calls.append(now)
    )
    assert again == data
    assert calls == []
    assert {path: path.stat().st_mtime_ns for path in data.parent.rglob("*")} == before


def test_other_parameters_render_again(tmp_path: Path) -> None:
    first = contents(small(tmp_path / "set").parent)
    second = contents(small(tmp_path / "set", seed=1, images=2).parent)
    assert not {"images/train/00002.jpg"} & second.keys()
    assert first["images/train/00000.jpg"] != second["images/train/00000.jpg"]
    assert [path.name for path in tmp_path.iterdir()] == ["set"]


def test_a_data_set_with_a_missing_image_is_rendered_again(tmp_path: Path) -> None:
    data = small(tmp_path / "set")
    whole = contents(data.parent)
    (data.parent / "images" / "val" / "00001.jpg").unlink()
    small(tmp_path / "set")
    assert contents(data.parent) == whole


def test_a_moved_data_set_is_kept_and_its_path_updated(tmp_path: Path) -> None:
    small(tmp_path / "set").parent.rename(tmp_path / "moved")
    picture = tmp_path / "moved" / "images" / "train" / "00000.jpg"
    before = picture.stat().st_mtime_ns
    data = small(tmp_path / "moved")
    assert picture.stat().st_mtime_ns == before
    assert str(tmp_path / "moved") in data.read_text()


def test_progress_counts_every_picture(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    render_parts(
        tmp_path / "set", images=3, validation=2, size=64, progress=lambda *now: calls.append(now)
    )
    assert calls == [(done, 5) for done in range(1, 6)]


def test_an_empty_folder_is_filled(tmp_path: Path) -> None:
    assert small(tmp_path).exists()


@pytest.mark.parametrize("ours", [False, True])
def test_a_folder_with_other_files_raises_an_error(tmp_path: Path, ours: bool) -> None:
    if ours:
        small(tmp_path)
    (tmp_path / "thesis.txt").write_text("years of work")
    before = contents(tmp_path)
    with pytest.raises(UsageError, match=r"thesis\.txt"):
        small(tmp_path, seed=9)
    assert contents(tmp_path) == before


def test_a_file_instead_of_a_folder_raises_an_error(tmp_path: Path) -> None:
    (tmp_path / "set").write_text("a file")
    with pytest.raises(UsageError, match="is a file"):
        small(tmp_path / "set")


@pytest.mark.parametrize("former", [False, True])
def test_an_interrupted_render_changes_nothing(tmp_path: Path, former: bool) -> None:
    folder = tmp_path / "below" / "set"
    if former:
        small(folder)
    before = contents(tmp_path)

    def interrupt(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        render_parts(folder, images=3, validation=2, size=64, seed=7, progress=interrupt)
    assert contents(tmp_path) == before
    assert list(tmp_path.iterdir()) == ([tmp_path / "below"] if former else [])


@pytest.mark.parametrize(
    "wrong",
    [{"images": 0}, {"validation": 0}, {"size": 63}, {"seed": -1}, {"images": 2.5}, {"size": True}],
)
def test_a_number_out_of_range_raises_an_error(tmp_path: Path, wrong: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        small(tmp_path / "set", **wrong)
    assert list(tmp_path.iterdir()) == []


# The film


def test_boxes_move_steadily_and_the_picture_with_them() -> None:
    frames = list(render_frames(40, size=(320, 180), seed=2))
    step = _scene.step_of(320, 180)
    followed = 0
    for (before, old), (after, new) in itertools.pairwise(frames):
        assert before.shape == (180, 320, 3)
        assert before.dtype == np.uint8
        # The belt carries everything: shifted by one step, two frames agree but for the light.
        shifted = np.abs(before[:, :-step].astype(int) - after[:, step:]).mean()
        assert shifted < 0.6 * np.abs(before.astype(int) - after).mean()
        whole = [box for box in old if box.x0 > 0 and box.x1 + step < 320]
        for box in whole:
            assert Box(box.label, box.x0 + step, box.y0, box.x1 + step, box.y1) in new
        followed += len(whole)
    assert followed > 40


def test_defects_change_a_frame_inside_their_boxes_only() -> None:
    spoilt = _scene.render_video(3, 6, 320, 180)
    clean = _scene.render_video(3, 6, 320, 180, with_defects=False)
    for (one, boxes), (other, none) in zip(spoilt, clean, strict=True):
        assert none == []
        different = (one != other).any(axis=2)
        for box in boxes:
            assert 0 <= box.x0 < box.x1 <= 320 and 0 <= box.y0 < box.y1 <= 180
            different[inside(box)] = False
        assert not different.any()


def test_a_longer_video_starts_with_the_same_frames() -> None:
    for (one, boxes), (other, more) in zip(
        render_frames(2, size=(96, 64)), render_frames(3, size=(96, 64)), strict=False
    ):
        assert (one == other).all()
        assert boxes == more


@pytest.mark.parametrize("wrong", [{"count": 0}, {"size": (640, 10)}, {"size": 640}, {"seed": -2}])
def test_invalid_arguments_of_a_video_raise_an_error(wrong: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        render_frames(**{"count": 1, **wrong})


# What it needs


def test_importing_the_examples_imports_nothing_heavy() -> None:
    code = (
        "import sys, rightbatch.examples;"
        "print(sorted({'numpy', 'cv2', 'torch'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_without_opencv_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(MissingExtraError, match=r"opencv-python.*rightbatch\[yolo\]"):
        small(tmp_path / "set")
    with pytest.raises(MissingExtraError):
        render_frames(1)
    assert list(tmp_path.iterdir()) == []
