"""Training in three dimensions on a head: `python -m rightbatch.examples.brain_segmentation`.

A 3D U-Net tells grey matter, white matter and the rest apart. A whole head at batch size 1 may be
more than the memory holds; then an example is a patch of it, cut out as it is needed, and a batch
of several patches is one update though one patch is in memory at a time. Afterwards the whole head
is segmented with a window that slides over it.

The data is *one* head: the MNI152 template that comes with nilearn, the average of 152 people,
without the skull. Its "volumes" are that head turned, scaled, moved, and with other contrast, shade
and noise; the one that is held out is too. So what this shows is how memory behaves, and that the
training works. The Dice scores say nothing about other people's heads.
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
from typing import Any, Literal

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

# The letters of a shape: N examples, C channels, D × H × W voxels.
CLASSES = ("background", "grey", "white")
PATCH, BATCH, EPOCHS, MEMORY = 40, 4, 4, "640MiB"
VOLUMES, PATCHES = 8, 12  # of the training; a patch is an example
_LARGEST = 8  # no larger batch is tried: what fits is the question here, not how much more
_STRIDES = (2, 2)
_SHADES = torch.tensor([[0, 0, 0], [230, 159, 0], [86, 180, 233]], dtype=torch.uint8)

Norm = Literal["group", "instance", "batch"]
Shape = tuple[int, int, int]


@dataclass(frozen=True)
class Head:
    """An image (DHW, 0 to 1) and the class of each of its voxels (DHW), a few MiB together."""

    image: Tensor
    labels: Tensor

    @property
    def shape(self) -> Shape:
        """Rounded up to what the U-Net can halve so many times; beyond the image is background."""
        step = 2 ** len(_STRIDES)
        depth, height, width = (-(-side // step) * step for side in self.image.shape)
        return depth, height, width


def load_head(resolution: int = 2) -> Head:
    """The template at so many millimetres a voxel, from files inside the nilearn package.

    nilearn's masks of grey and white matter overlap, since each is cut off at 20%. A voxel here is
    of the tissue that has the larger share in it, and background where neither has half.

    Raises:
        MissingExtraError: without nilearn.
    """
    datasets = _imported("nilearn.datasets", "nilearn")
    names = ("load_mni152_template", "load_mni152_gm_template", "load_mni152_wm_template")
    images = [getattr(datasets, name)(resolution=resolution) for name in names]
    image, grey, white = (torch.tensor(each.get_fdata(), dtype=torch.float32) for each in images)
    labels = torch.where(grey >= white, 1, 2) * (torch.maximum(grey, white) > 0.5)
    return Head(image.clamp(0, 1), labels.to(torch.uint8))


class Patches(Dataset[dict[str, Tensor]]):
    """Examples cut from jittered volumes, the same ones for the same index.

    Only the voxels of the patch are computed; no jittered volume is ever held whole, unless
    `patch` is None: then an example is a volume.
    """

    def __init__(self, head: Head, patch: int | None, volumes: Sequence[int]) -> None:
        self._head = head
        self._shape: Shape = head.shape if patch is None else (patch, patch, patch)
        self._volumes = volumes
        self._each = 1 if patch is None else PATCHES

    def __len__(self) -> int:
        return len(self._volumes) * self._each

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        volume = self._volumes[index // self._each]
        generator = torch.Generator().manual_seed(1_000 * volume + index % self._each)
        room = [whole - side for whole, side in zip(self._head.shape, self._shape, strict=True)]
        start = [int(torch.randint(r + 1, (), generator=generator)) for r in room]
        return self._cut(volume, start, generator)

    def _cut(self, volume: int, start: list[int], noise: torch.Generator) -> dict[str, Tensor]:
        head, whole = self._head, torch.tensor(self._head.image.shape)
        draw = torch.Generator().manual_seed(volume)  # what all patches of a volume have in common
        turn, scale, move, shade = (torch.randn(3, generator=draw) for _ in range(4))
        contrast = 1 + 0.2 * (2 * torch.rand((), generator=draw) - 1)
        skew = torch.zeros(3, 3)
        skew[[0, 0, 1], [1, 2, 2]] = 0.1 * turn
        affine = torch.linalg.matrix_exp(skew - skew.T) * (1 + 0.05 * scale)
        axes = [torch.arange(n) + begin for n, begin in zip(self._shape, start, strict=True)]
        voxels = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1) - (whole - 1) / 2
        # From -1 at one end of the image to 1 at the other, and x first, as grid_sample wants it.
        places_DHW3 = (voxels @ affine.T + 2 * move) * 2 / (whole - 1)
        grid_NDHW3 = places_DHW3.flip(-1)[None]
        image, labels = (
            grid_sample(source[None, None].float(), grid_NDHW3, mode=mode, align_corners=True)[0]
            for source, mode in ((head.image, "bilinear"), (head.labels, "nearest"))
        )
        image = image**contrast * (1 + 0.1 * (places_DHW3 @ shade))
        image = image + 0.05 * torch.randn(image.shape, generator=noise)
        return {"image": image, "label": labels}


def network(norm: Norm = "group", checkpointing: bool = False) -> nn.Module:
    """MONAI's U-Net; with `checkpointing` its blocks are recomputed, not kept, for backward.

    BatchNorm would then count every patch twice in its running mean and variance.

    Raises:
        MissingExtraError: without MONAI.
    """
    nets = _imported("monai.networks.nets.unet", "monai")
    kind = nets.CheckpointUNet if checkpointing else nets.UNet
    # The last block normalizes its output. Groups divide 8 channels, and not 3 classes, so the
    # classes come from a convolution behind it.
    unet = kind(
        spatial_dims=3,
        in_channels=1,
        out_channels=8,
        channels=(32, 64, 128),
        strides=_STRIDES,
        num_res_units=1,
        norm=("group", {"num_groups": 8}) if norm == "group" else norm,
    )
    return nn.Sequential(unet, nn.Conv3d(8, len(CLASSES), 1))


def workload(
    head: Head | None = None,
    *,
    patch: int | None = PATCH,
    norm: Norm = "group",
    checkpointing: bool = False,
    volumes: int = VOLUMES,
) -> rb.Workload:
    """Segmentation by patches of `patch` voxels a side (a multiple of 4), or None: whole heads.

    Where `head` is None it is loaded here, and a probe counts what loading needs; that hides what
    small batches need. `functools.partial(workload, load_head())` loads it once, for all probes.

    Raises:
        MissingExtraError: without MONAI or nilearn.
    """
    head = head or load_head()
    model = network(norm, checkpointing)
    # Its Dice is taken for each example by itself and then averaged (`batch=False`); taken over
    # the batch, the gradients of parts would not add up to that of the whole.
    criterion = _imported("monai.losses", "monai").DiceCELoss(
        to_onehot_y=True, softmax=True, batch=False
    )
    held_out = Patches(head, None, [volumes])[0]

    def loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        value: Tensor = criterion(model(batch["image"]), batch["label"])
        return value

    def evaluate(model: nn.Module) -> dict[str, float]:
        predicted = segment(model, held_out["image"], patch or min(head.shape))
        return dice(predicted, held_out["label"][0])

    return rb.Workload(
        model=model,
        loss=loss,
        optimizer=torch.optim.AdamW(model.parameters(), lr=5e-3),
        data=Patches(head, patch, range(volumes)),
        size=lambda index: 1,  # all alike, so there is no need to cut some to see
        evaluate=evaluate,
        scheduler=lambda optimizer, steps: OneCycleLR(optimizer, 5e-3, total_steps=steps),
        name="brain segmentation",
    )


@torch.no_grad()
def segment(model: nn.Module, image_CDHW: Tensor, patch: int) -> Tensor:
    """The class of each voxel (DHW), by a window of `patch` voxels that slides, one at a time."""
    device = next(model.parameters()).device
    infer = _imported("monai.inferers", "monai").sliding_window_inference
    scores_NCDHW: Tensor = infer(image_CDHW[None].to(device), (patch,) * 3, 1, model, overlap=0.25)
    return scores_NCDHW[0].argmax(0).cpu()


def dice(predicted: Tensor, truth: Tensor) -> dict[str, float]:
    """Per class, twice the voxels in common over the voxels of both; 1 where neither has any."""
    scores = {}
    for value, name in enumerate(CLASSES):
        ours, theirs = predicted == value, truth == value
        both = int(ours.sum() + theirs.sum())
        scores[f"dice_{name}"] = 2 * int((ours & theirs).sum()) / both if both else 1.0
    return scores


def exactness(head: Head, norm: Norm) -> rb.Exactness | None:
    """Of an update by `BATCH` patches in micro-batches of one."""
    w = workload(head, patch=32, norm=norm)
    step = rb.Elastic(w.model, w.optimizer, w.loss, micro_batch_size=1, on_event=lambda event: None)
    step(default_collate([w.data[index] for index in range(BATCH)]))
    return step.exactness


def draw(image: Tensor, truth: Tensor, predicted: Tensor, picture: Path) -> Path:
    """The middle slice from above (all DHW): image, truth and prediction side by side."""
    middle = image.shape[2] // 2
    grey = (image[:, :, middle, None].clamp(0, 1) * 255).byte().expand(-1, -1, 3)
    panels = [grey, *(_SHADES[each[:, :, middle].long()] for each in (truth, predicted))]
    # The first axis runs to the right, the second to the front, which is up in such pictures.
    pixels = torch.cat([panel.transpose(0, 1).flip(0) for panel in panels], dim=1)
    pixels = pixels.repeat_interleave(3, 0).repeat_interleave(3, 1)
    _imported("PIL.Image", "pillow").fromarray(pixels.numpy()).save(picture)
    return picture


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--out", type=Path, default=Path("runs/brain"), help="folder for results")
    parser.add_argument("--memory", default=MEMORY, help=f"what may be used, by default {MEMORY}")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    arguments = parser.parse_args()
    console = Console(highlight=False)
    try:
        run(arguments.out, arguments.memory, arguments.epochs, console)
    except rb.RightbatchError as error:
        console.print(f"rightbatch: {error}", markup=False)
        return error.exit_code
    return 0


def run(out: Path, memory: str, epochs: int, console: Console) -> None:
    """All of it."""
    started = time.perf_counter()
    _imported("PIL.Image", "pillow")  # before the work, not after it
    torch.manual_seed(0)
    head = load_head()
    fits = Table("an example", "largest batch", "peak", title=f"what fits into {memory}")
    for patch, checkpointing in ((32, False), (64, False), (None, False), (None, True)):
        name = "the whole head" if patch is None else f"{patch} voxels a side"
        name += ", checkpointed" if checkpointing else ""
        factory = functools.partial(workload, head, patch=patch, checkpointing=checkpointing)
        try:
            found = rb.fit(factory, memory=memory, max_batch=_LARGEST)
            more = " or more" if found.batch_size == _LARGEST else ""
            fits.add_row(name, f"{found.batch_size}{more}", format_bytes(found.peak_bytes))
        except rb.NothingFitsError as error:
            fits.add_row(name, "none", format_bytes(error.measured["needed_bytes"]))
        console.print(name, time.perf_counter() - started)
    console.print(fits)
    for norm in ("group", "batch"):
        console.print(f"{norm} norm, {BATCH} patches one by one: {exactness(head, norm)}")
    done = rb.train(
        functools.partial(workload, head),
        batch=BATCH,
        micro_batch=1,
        epochs=epochs,
        out=out / "train",
        resume=(out / "train" / "last.pt").exists(),
    )
    console.print(done, markup=False)
    console.print({name: round(value, 3) for name, value in done.metrics.items()})
    model = network()
    model.load_state_dict(torch.load(out / "train" / "model.pt"))
    example = Patches(head, None, [VOLUMES])[0]
    predicted = segment(model.eval(), example["image"], PATCH)
    picture = draw(example["image"][0], example["label"][0], predicted, out / "slice.png")
    console.print(f"{picture}, after {format_seconds(time.perf_counter() - started)}")


def _imported(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(package, "medical") from error


if __name__ == "__main__":
    sys.exit(main())
