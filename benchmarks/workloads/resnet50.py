"""timm's ResNet-50 at 224x224, AdamW."""

import timm
import torch
from torch import nn
from torch.utils.data import Dataset

import rightbatch as rb


class Images(Dataset):
    def __len__(self):
        return 4096

    def __getitem__(self, index):
        return torch.zeros(3, 224, 224), index % 10


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def workload():
    model = timm.create_model("resnet50", num_classes=10)
    return rb.Workload(model, loss, torch.optim.AdamW(model.parameters()), Images())
