"""MONAI's 3D U-Net on volumes of 48 voxels a side, Adam, Dice loss."""

import torch
from monai.losses import DiceLoss
from monai.networks.nets import UNet
from torch.utils.data import Dataset

import rightbatch as rb

EXAMPLES, SIDE = 120, 48
_dice = DiceLoss(sigmoid=True)


class Volumes(Dataset):
    def __len__(self):
        return EXAMPLES

    def __getitem__(self, index):
        generator = torch.Generator().manual_seed(index)
        volume = torch.randn(1, SIDE, SIDE, SIDE, generator=generator)
        return {"image": volume, "label": (volume > 1).float()}


def loss(model, batch):
    return _dice(model(batch["image"]), batch["label"])


def workload():
    model = UNet(3, 1, 1, channels=(16, 32, 64, 128), strides=(2, 2, 2), num_res_units=2)
    return rb.Workload(model, loss, torch.optim.Adam(model.parameters()), Volumes())
