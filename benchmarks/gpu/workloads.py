"""Eight trainings of different kinds, from configurations: nothing is downloaded.

Each has a small form for the CPU. They need torch and torchvision, or Transformers; YOLO needs
Ultralytics, and a data set that is written here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

import rightbatch as rb

EXAMPLES = 4096


@dataclass(frozen=True)
class Case:
    """A workload by name. `batches` are measured, of the small form `tiny_batches`."""

    name: str
    make: Callable[[bool], rb.Workload]
    batches: tuple[int, int]
    tiny_batches: tuple[int, int] = (2, 4)
    requires: tuple[str, ...] = ()

    def factory(self, tiny: bool) -> Callable[[], rb.Workload]:
        """A factory that a probe's process finds again."""
        return partial(self.make, tiny)

    def sizes(self, tiny: bool) -> tuple[int, int]:
        return self.tiny_batches if tiny else self.batches


class Repeated(Dataset[Any]):
    """The same example again and again: its loading costs next to nothing."""

    def __init__(self, example: Any, length: int = EXAMPLES) -> None:
        self.example, self.length = example, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> Any:
        return self.example


def _noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def classify(model: nn.Module, batch: Any) -> Tensor:
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def _images(model: nn.Module, side: int, **more: Any) -> rb.Workload:
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return rb.Workload(model, classify, optimizer, Repeated((_noise(3, side, side), 3)), **more)


def resnet(tiny: bool, precision: Any = "fp32") -> rb.Workload:
    from torchvision.models import resnet18, resnet50

    model = (resnet18 if tiny else resnet50)(num_classes=10)
    return _images(model, 32 if tiny else 224, precision=precision)


def vit(tiny: bool) -> rb.Workload:
    from torchvision.models import VisionTransformer

    if tiny:
        model = VisionTransformer(32, 8, 2, 2, 32, 64, num_classes=10)
    else:
        model = VisionTransformer(224, 16, 12, 12, 768, 3072, num_classes=10)  # ViT-B/16
    return _images(model, 32 if tiny else 224, precision="bf16")


def convnext(tiny: bool) -> rb.Workload:
    from torchvision.models import ConvNeXt, convnext_tiny
    from torchvision.models.convnext import CNBlockConfig

    if tiny:
        model = ConvNeXt([CNBlockConfig(8, 16, 1), CNBlockConfig(16, None, 1)], num_classes=10)
    else:
        model = convnext_tiny(num_classes=10)
    return _images(model, 32 if tiny else 224)


def _language(model: nn.Module, batch: Any) -> Tensor:
    return model(**batch).loss


def decoder(tiny: bool) -> rb.Workload:
    """GPT-2's smallest form, 124 million parameters, on whole contexts."""
    from transformers import GPT2Config, GPT2LMHeadModel

    small = {"vocab_size": 200, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 32}
    config = GPT2Config(**small) if tiny else GPT2Config()
    tokens = torch.arange(config.n_positions) % config.vocab_size
    model = GPT2LMHeadModel(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    data = Repeated({"input_ids": tokens, "labels": tokens})
    return rb.Workload(model, _language, optimizer, data, precision="bf16")


def bert(tiny: bool) -> rb.Workload:
    """BERT-Base with a classifier, 128 tokens."""
    from transformers import BertConfig, BertForSequenceClassification

    small = {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2}
    small |= {"num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(**small) if tiny else BertConfig()
    model = BertForSequenceClassification(config)
    tokens = torch.arange(16 if tiny else 128) % config.vocab_size
    example = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": 1}
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-5)
    return rb.Workload(model, _language, optimizer, Repeated(example))


class UNet(nn.Module):
    """Segments volumes: two 3D convolutions a level, halved and doubled in between."""

    def __init__(self, widths: tuple[int, ...]) -> None:
        super().__init__()
        self.down = nn.ModuleList(
            self._level(before, after) for before, after in zip((1, *widths), widths, strict=False)
        )
        pairs = list(zip(widths[1:], widths, strict=False))[::-1]
        self.grow = nn.ModuleList(nn.ConvTranspose3d(b, a, 2, stride=2) for b, a in pairs)
        self.up = nn.ModuleList(self._level(2 * after, after) for _, after in pairs)
        self.head = nn.Conv3d(widths[0], 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
            x = nn.functional.max_pool3d(x, 2)
        x = kept.pop()
        for grow, level in zip(self.grow, self.up, strict=True):
            x = level(torch.cat([grow(x), kept.pop()], 1))
        return self.head(x)

    @staticmethod
    def _level(before: int, after: int) -> nn.Module:
        layers: list[nn.Module] = []
        for width in (before, after):
            layers += [nn.Conv3d(width, after, 3, padding=1), nn.InstanceNorm3d(after), nn.PReLU()]
        return nn.Sequential(*layers)


def _segment(model: nn.Module, batch: Any) -> Tensor:
    volumes, masks = batch
    return nn.functional.binary_cross_entropy_with_logits(model(volumes), masks)


def unet(tiny: bool) -> rb.Workload:
    model = UNet((4, 8) if tiny else (32, 64, 128, 256))
    volume = _noise(*((1, 8, 8, 8) if tiny else (1, 64, 64, 64)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    return rb.Workload(model, _segment, optimizer, Repeated((volume, (volume > 0).float())))


CASES = {
    case.name: case
    for case in (
        Case("ResNet-50 fp32", resnet, (64, 256), requires=("torchvision",)),
        Case("decoder 124M bf16", decoder, (4, 16), requires=("transformers",)),
        Case("ViT-B/16 bf16", vit, (64, 256), requires=("torchvision",)),
        Case("BERT-Base fp32", bert, (32, 128), requires=("transformers",)),
        Case(
            "ResNet-50 AMP fp16",
            partial(resnet, precision="fp16"),
            (64, 256),
            requires=("torchvision",),
        ),
        Case("ConvNeXt-T fp32", convnext, (32, 128), requires=("torchvision",)),
        Case("3D U-Net fp32", unet, (2, 8)),
    )
}
"""Those that are a `Workload`; the eighth is YOLO26n, which Ultralytics trains itself."""

YOLO = "YOLO26n"
YOLO_BATCHES = (16, 64)


def yolo_data(folder: Path, images: int, side: int) -> Path:
    """Write a data set in Ultralytics' layout, grey images with one box each; its description."""
    from PIL import Image

    for split in ("train", "val"):
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(images if split == "train" else max(images // 8, 1)):
            Image.new("RGB", (side, side), (100, number % 200, 50)).save(
                folder / "images" / split / f"{number}.jpg"
            )
            (folder / "labels" / split / f"{number}.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    description = folder / "data.yaml"
    description.write_text(
        f"path: {folder}\ntrain: images/train\nval: images/val\nnames:\n  0: thing\n"
    )
    return description


def yolo_factory(folder: Path, tiny: bool) -> Any:
    """The integration's factory, which needs no entry point: rightbatch may not be installed."""
    from rightbatch.integrations.ultralytics import from_spec

    side = 64 if tiny else 640
    data = yolo_data(folder, 16 if tiny else 512, side)
    return from_spec("yolo26n.yaml", data=str(data), imgsz=side)
