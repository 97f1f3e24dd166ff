"""timm's ResNet-18 at 96x96, AdamW."""

import timm
import torch
from torch import nn
from torch.utils.data import Dataset

import rightbatch as rb

EXAMPLES = 700


class Images(Dataset):
    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        return torch.randn(3, 96, 96, generator=generator), index % 10


def loss(model, batch):
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


def workload():
    model = timm.create_model("resnet18", num_classes=10)
    return rb.Workload(model, loss, torch.optim.AdamW(model.parameters()), Images())
