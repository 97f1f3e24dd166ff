"""3D segmentation of brain tissue: `python -m rightbatch.examples.brain_segmentation`.

A 3D U-Net segments grey matter, white matter and background. A single whole volume can need more
memory than available. Then an example is a patch, cut out on demand, and several patches are one
update with the activations of one in memory. Inference on the whole volume uses a sliding window.

The data is *one* head: nilearn's MNI152 template, the average of 152 people, without the skull. All
"volumes", including the validation volume, are augmentations of it (rotation, scale, translation,
contrast, shading and noise). The example shows how memory behaves; its Dice scores are not a
measure of segmentation quality on other people.
"""

from __future__ import annotations

import argparse
import functools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.nn.functional import grid_sample
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import Dataset, default_collate

import rightbatch as rb
from rightbatch._errors import MissingExtraError
from rightbatch._units import format_bytes, format_seconds

# Dimensions in suffixes: N examples, C channels, D × H × W voxels.
CLASSES = ("background", "grey", "white")
PATCH, BATCH, EPOCHS, MEMORY = 40, 4, 3, "1200MiB"
VOLUMES, PATCHES = 8, 12  # training volumes, and patches (examples) of each
_MAX_BATCH = 8  # enough to show what fits; larger batches would take longer
_STEP = 4  # the U-Net halves the sides twice
_SHADES = torch.tensor([[0, 0, 0], [230, 159, 0], [86, 180, 233]], dtype=torch.uint8)


@dataclass(frozen=True)
class Head:
    """An image (DHW, 0 to 1) and the class of each voxel (DHW); a few MiB together."""

    image: Tensor
    labels: Tensor

    @property
    def shape(self) -> list[int]:
        """The sides rounded up to a multiple of `_STEP`; outside the image is background."""
        return [-(-side // _STEP) * _STEP for side in self.image.shape]


def load_head(resolution: int = 2) -> Head:
    """Load the template with voxels of `resolution` mm, from files in the nilearn package."""
    nilearn = _imported("nilearn.datasets", "nilearn")
    loads = (getattr(nilearn, f"load_mni152_{of}template") for of in ("", "gm_", "wm_"))
    image, grey, white = (torch.tensor(load(resolution).get_fdata()).float() for load in loads)
    # nilearn's masks of the two tissues overlap, because their threshold is a share of 20%. Here a
    # voxel has the tissue with the larger share, and is background if that is below one half.
    labels = torch.where(grey >= white, 1, 2) * (torch.maximum(grey, white) > 0.5)
    return Head(image.clamp(0, 1), labels.to(torch.uint8))


class Patches(Dataset[dict[str, Tensor]]):
    """Patches of augmented volumes, computed without the whole volume; volumes if `patch` is None.

    An example has an "image" (1DHW, float) and a "label" (1DHW, float class indices).
    """

    def __init__(self, head: Head, patch: int | None, volumes: Sequence[int]) -> None:
        self._head = head
        self._shape = head.shape if patch is None else [patch] * 3
        self._volumes = volumes
        self._each = 1 if patch is None else PATCHES

    def __len__(self) -> int:
        return len(self._volumes) * self._each

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        volume = self._volumes[index // self._each]
        generator = torch.Generator().manual_seed(1_000 * (volume + 1) + index % self._each)
        room = [whole - side for whole, side in zip(self._head.shape, self._shape, strict=True)]
        start = [int(torch.randint(r + 1, (), generator=generator)) for r in room]
        return self._cut(volume, start, generator)

    def _cut(self, volume: int, start: list[int], noise: torch.Generator) -> dict[str, Tensor]:
        head, whole = self._head, torch.tensor(self._head.image.shape)
        draw = torch.Generator().manual_seed(volume)  # the same for all patches of a volume
        turn, scale, move, shade = torch.randn(4, 3, generator=draw)
        contrast = 0.8 + 0.4 * torch.rand((), generator=draw)
        skew = torch.zeros(3, 3)
        skew[[0, 0, 1], [1, 2, 2]] = 0.1 * turn
        affine = torch.linalg.matrix_exp(skew - skew.T) * (1 + 0.05 * scale)
        axes = [torch.arange(n) + begin for n, begin in zip(self._shape, start, strict=True)]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - (whole - 1) / 2
        # grid_sample expects coordinates from -1 to 1 across the image, x first.
        places_DHW3 = (voxels @ affine.T + 2 * move) * 2 / (whole - 1)
        grid = places_DHW3.flip(-1)[None]
        image, labels = (
            grid_sample(source[None, None].float(), grid, mode=mode, align_corners=True)[0]
            for source, mode in ((head.image, "bilinear"), (head.labels, "nearest"))
        )
        image = image**contrast * (1 + 0.1 * (places_DHW3 @ shade))
        return {"image": image + 0.05 * torch.randn(image.shape, generator=noise), "label": labels}


def network(norm: str = "group", checkpointing: bool = False) -> nn.Module:
    """Return MONAI's U-Net; `norm` is group, instance or batch.

    `checkpointing` recomputes its blocks in the backward pass.
    """
    nets = _imported("monai.networks.nets.unet", "monai")
    # The last block normalizes its output, and 3 classes cannot be divided into 8 groups. So the
    # U-Net has 8 output channels, and a convolution follows it.
    groups = ("group", {"num_groups": 8}) if norm == "group" else norm
    # With CheckpointUNet, BatchNorm updates its statistics twice per step.
    kind = nets.CheckpointUNet if checkpointing else nets.UNet
    unet = kind(3, 1, 8, channels=(32, 64, 128), strides=(2, 2), num_res_units=1, norm=groups)
    return nn.Sequential(unet, nn.Conv3d(8, len(CLASSES), 1))


def workload(
    head: Head | None = None, *, patch: int | None = PATCH, volumes: int = VOLUMES, **kind: Any
) -> rb.Workload:
    """Return a segmentation of cubic patches with side `patch` (a multiple of 4), or whole volumes.

    `kind` is passed to `network`. Without `head` the data is loaded here, and a probe's memory
    includes the loading; `functools.partial(workload, load_head())` loads it once for all probes.
    """
    head = head or load_head()
    model = network(**kind)
    dice_and_ce = _imported("monai.losses", "monai").DiceCELoss
    # `batch=True` computes one Dice score over all examples, so that gradients of micro-batches
    # would not add up to the batch's gradient.
    criterion = dice_and_ce(to_onehot_y=True, softmax=True, batch=False)
    held_out = Patches(head, None, [volumes])[0]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        return cast(Tensor, criterion(model(batch["image"]), batch["label"]))

    def evaluate(model: nn.Module) -> dict[str, float]:
        window = patch or min(head.shape)
        return dice(segment(model, held_out["image"], window), held_out["label"][0])

    return rb.Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3),
        data=Patches(head, patch, range(volumes)),
        size=lambda index: 1,  # all examples have one size; saves measuring a sample
        evaluate=evaluate,
        scheduler=lambda optimizer, steps: OneCycleLR(optimizer, 5e-3, total_steps=steps),
    )


@torch.no_grad()
def segment(model: nn.Module, image_CDHW: Tensor, patch: int) -> Tensor:
    """Return the class of each voxel (DHW), by a sliding window of side `patch`, one at a time."""
    infer = _imported("monai.inferers", "monai").sliding_window_inference
    image_NCDHW = image_CDHW[None].to(next(model.parameters()).device)
    return cast(Tensor, infer(image_NCDHW, (patch,) * 3, 1, model)[0].argmax(0).cpu())


def dice(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Return the Dice score of each class: 2 |A ∩ B| / (|A| + |B|)."""
    pairs = [(predicted == value, truth == value) for value in range(len(CLASSES))]
    scores = [2 * int((a & b).sum()) / max(int(a.sum() + b.sum()), 1) for a, b in pairs]
    return {f"dice_{name}": score for name, score in zip(CLASSES, scores, strict=True)}


def exactness(head: Head, norm: str, patch: int = 32) -> rb.Exactness | None:
    """Return how exact an update by `BATCH` patches in micro-batches of one is; None if unknown."""
    w = workload(head, patch=patch, norm=norm)
    step = rb.Elastic(w.model, w.optimizer, w.loss, micro_batch_size=1, on_event=lambda _: None)
    step(default_collate([w.data[index] for index in range(BATCH)]))
    return step.exactness


def draw(image: Tensor, truth: Tensor, predicted: Tensor, picture: Path) -> Path:
    """Save the middle axial slice of image, truth and prediction (each DHW) side by side."""
    middle = image.shape[2] // 2
    grey = (image[:, :, middle, None].clamp(0, 1) * 255).byte().expand(-1, -1, 3)
    panels = [grey, *(_SHADES[each[:, :, middle].long()] for each in (truth, predicted))]
    # The second axis points to the front of the head, which is up in axial images.
    pixels = torch.cat([panel.transpose(0, 1).flip(0) for panel in panels], dim=1)
    enlarged = pixels.repeat_interleave(3, 0).repeat_interleave(3, 1).numpy()
    _imported("PIL.Image", "pillow").fromarray(enlarged).save(picture)
    return picture


def main() -> int:
    """Run the example and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/brain"), help="output folder")
    parser.add_argument("--memory", default=MEMORY, help=f"memory limit, default: {MEMORY}")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"default: {EPOCHS}")
    console = Console(highlight=False)
    try:
        run(**vars(parser.parse_args()), console=console)
    except rb.RightbatchError as error:
        console.print(f"rightbatch: {error}", markup=False)
        return error.exit_code
    return 0


def run(out: Path, memory: str, epochs: int, console: Console) -> None:
    """Run all stages; `memory` limits the trials of `fit`, not the training."""
    started_at = time.perf_counter()
    _imported("PIL.Image", "pillow")  # fail now, not after the training
    torch.manual_seed(0)
    head = load_head()
    console.print(_largest_batches(head, memory))
    for norm in ("group", "batch"):
        found = exactness(head, norm) or "unknown: there are too few examples to compare"
        console.print(f"an update by {BATCH} patches in parts, {norm} norm: {found}")
    factory = functools.partial(workload, head)
    done = rb.train(factory, batch=BATCH, micro_batch=1, epochs=epochs, out=out / "train")
    scores = ", ".join(f"{name} {value:.3f}" for name, value in done.metrics.items())
    console.print(f"{done!s}\n{scores}", markup=False)
    model = network()
    model.load_state_dict(torch.load(out / "train" / "model.pt", map_location="cpu"))
    example = Patches(head, None, [VOLUMES])[0]
    predicted = segment(model.eval(), example["image"], PATCH)
    picture = draw(example["image"][0], example["label"][0], predicted, out / "slice.png")
    seconds = format_seconds(time.perf_counter() - started_at)
    console.print(f"saved the segmentation to {picture}, after {seconds}")


def _largest_batches(head: Head, memory: str) -> Table:
    table = Table("example", "largest batch", "peak memory", title=f"training within {memory}")
    for patch, checkpointing in ((32, False), (64, False), (None, False), (None, True)):
        name = f"patch of {patch}³ voxels" if patch else "whole volume"
        name += ", activation checkpointing" * checkpointing
        factory = functools.partial(workload, head, patch=patch, checkpointing=checkpointing)
        try:
            found = rb.fit(factory, memory=memory, max_batch=_MAX_BATCH)
            largest = f"{found.batch_size}" + " or more" * (found.batch_size == _MAX_BATCH)
            table.add_row(name, largest, format_bytes(found.peak_bytes))
        except rb.NothingFitsError as error:
            needed = error.measured["needed_bytes"]
            table.add_row(name, "none", f"needs {format_bytes(needed)}" if needed else "unknown")
    return table


def _imported(module: str, package: str) -> Any:
    """Import a module on use, untyped, because its package is optional."""
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "medical") from error


if __name__ == "__main__":
    sys.exit(main())
