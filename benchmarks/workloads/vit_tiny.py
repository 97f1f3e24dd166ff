"""timm's ViT-Tiny at 96x96, AdamW."""

import timm
import torch
from resnet18 import Images, loss

import rightbatch as rb


def workload():
    model = timm.create_model("vit_tiny_patch16_224", num_classes=10, img_size=96)
    return rb.Workload(model, loss, torch.optim.AdamW(model.parameters()), Images())
