"""The brain segmentation example: data, gradients and training, at tiny settings."""

from __future__ import annotations

import functools
import json
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.data import default_collate

pytest.importorskip("monai.networks.nets.unet")
pytest.importorskip("monai.losses")
pytest.importorskip("monai.inferers")
pytest.importorskip("nilearn.datasets")

import rightbatch as rb
from rightbatch.examples import brain_segmentation as brain

GREY, WHITE = 1, 2


@pytest.fixture(scope="module")
def head() -> brain.Head:
    return brain.load_head(resolution=4)


def gradients(w: rb.Workload, micro_batch_size: int) -> torch.Tensor:
    step = rb.Elastic(w.model, w.optimizer, w.loss, micro_batch_size=micro_batch_size, check=False)
    step.gradients(default_collate([w.data[index] for index in range(4)]))
    return torch.cat([p.grad.flatten() for p in w.model.parameters() if p.grad is not None])


def test_the_head_has_the_tissues_where_the_image_is_bright(head: brain.Head) -> None:
    means = [float(head.image[head.labels == value].mean()) for value in range(3)]
    assert means == sorted(means)
    assert head.labels.shape == head.image.shape
    assert all(side % 4 == 0 for side in head.shape)


def test_an_index_is_the_same_example_every_time_and_no_other(head: brain.Head) -> None:
    data = brain.Patches(head, 16, range(2))
    assert len(data) == 2 * brain.PATCHES
    assert torch.equal(data[3]["image"], data[3]["image"])
    assert not torch.equal(data[3]["image"], data[4]["image"])
    assert data[3]["image"].shape == data[3]["label"].shape == (1, 16, 16, 16)


def test_a_patch_equals_the_same_region_of_the_whole_volume(head: brain.Head) -> None:
    volumes, patches = brain.Patches(head, None, [5]), brain.Patches(head, 16, [5])
    whole = volumes[0]["label"]
    patch = patches._cut(5, [8, 4, 12], torch.Generator())["label"]
    assert torch.equal(patch, whole[:, 8:24, 4:20, 12:28])


@pytest.mark.parametrize(
    ("norm", "is_same"), [("group", True), ("instance", True), ("batch", False)]
)
def test_patches_one_by_one_have_the_gradient_of_the_batch(
    head: brain.Head, norm: str, is_same: bool
) -> None:
    w = brain.workload(head, patch=16, norm=norm)
    whole, parts = gradients(w, 4), gradients(w, 1)
    # Rounding differs by up to 3e-4 with the number of threads, BatchNorm by 0.1 and more.
    assert (float((parts - whole).norm() / whole.norm()) < 5e-3) == is_same
    found = brain.exactness(head, norm, patch=16)
    assert found is not None and found.is_exact == is_same


def test_recomputed_blocks_give_the_same_gradients(head: brain.Head) -> None:
    kept, recomputed = (
        brain.workload(head, patch=16, checkpointing=checkpointing)
        for checkpointing in (False, True)
    )
    weights = zip(recomputed.model.parameters(), kept.model.parameters(), strict=True)
    with torch.no_grad():
        for ours, theirs in weights:
            ours.copy_(theirs)
    torch.testing.assert_close(gradients(recomputed, 2), gradients(kept, 2))


def test_dice_is_one_for_the_truth_and_counts_the_overlap() -> None:
    truth = torch.tensor([[[0, GREY, GREY, WHITE]]])
    assert set(brain.dice(truth, truth).values()) == {1.0}
    scores = brain.dice(torch.tensor([[[0, GREY, WHITE, WHITE]]]), truth)
    assert scores["dice_grey"] == pytest.approx(2 / 3)
    assert scores["dice_white"] == pytest.approx(2 / 3)


def test_training_lowers_the_loss_and_the_picture_has_three_panels(
    head: brain.Head, tmp_path: Path
) -> None:
    image_module = pytest.importorskip("PIL.Image")
    factory = functools.partial(brain.workload, head, patch=16, volumes=1)
    done = rb.train(
        factory, batch=4, micro_batch=1, epochs=3, out=tmp_path / "train", progress=False
    )
    lines = (tmp_path / "train" / "history.jsonl").read_text().splitlines()
    assert done.metrics["loss"] < json.loads(lines[0])["loss"]
    assert {f"dice_{name}" for name in brain.CLASSES} < set(done.metrics)

    example = brain.Patches(head, None, [1])[0]
    image, truth = example["image"][0], example["label"][0]
    picture = brain.draw(image, truth, truth, tmp_path / "slice.png")
    with image_module.open(picture) as opened:
        width, height = opened.size
    assert (width, height) == (3 * 3 * image.shape[0], 3 * image.shape[1])


def test_without_monai_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "monai.networks.nets.unet", None)
    with pytest.raises(rb.MissingExtraError, match=r"monai is not installed.*\[medical\]"):
        brain.network()
