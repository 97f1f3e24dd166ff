"""Segment spheres in random volumes with a small 3D UNet."""

import hashlib
import logging
import sys
from argparse import ArgumentParser

import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from monai.metrics import DiceMetric
from monai.networks.nets import UNet
from monai.transforms import (
    Activations,
    AsDiscrete,
    Compose,
    EnsureChannelFirstd,
    RandFlipd,
    RandGaussianNoised,
    ScaleIntensityd,
)
from monai.utils import set_determinism


def make_volume(index, size=32):
    """Return a noisy volume with a bright sphere, and the mask of the sphere."""
    rng = np.random.default_rng(index)
    center = rng.uniform(10, size - 10, 3)
    radius = rng.uniform(4, 9)
    grid = np.stack(np.meshgrid(*[np.arange(size)] * 3, indexing="ij"), -1)
    label = (np.linalg.norm(grid - center, axis=-1) < radius).astype(np.float32)
    image = label + 0.3 * rng.standard_normal(label.shape)
    return {"img": image.astype(np.float32), "seg": label}


def main(args):
    logging.basicConfig(stream=sys.stdout, level=logging.INFO)
    set_determinism(seed=args.seed)

    train_transforms = Compose(
        [
            EnsureChannelFirstd(keys=["img", "seg"], channel_dim="no_channel"),
            ScaleIntensityd(keys="img"),
            RandFlipd(keys=["img", "seg"], prob=0.5, spatial_axis=0),
            RandGaussianNoised(keys="img", prob=0.2),
        ]
    )
    val_transforms = Compose(
        [
            EnsureChannelFirstd(keys=["img", "seg"], channel_dim="no_channel"),
            ScaleIntensityd(keys="img"),
        ]
    )
    train_ds = Dataset([make_volume(i) for i in range(128)], transform=train_transforms)
    val_ds = Dataset([make_volume(1000 + i) for i in range(4)], transform=val_transforms)
    train_loader = DataLoader(train_ds, batch_size=args.batch_size, shuffle=True, num_workers=0)
    val_loader = DataLoader(val_ds, batch_size=1, num_workers=0)

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = UNet(
        spatial_dims=3,
        in_channels=1,
        out_channels=1,
        channels=(8, 16, 32),
        strides=(2, 2),
        num_res_units=1,
    ).to(device)
    loss_function = DiceLoss(sigmoid=True)
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    dice_metric = DiceMetric(include_background=True, reduction="mean")
    post_trans = Compose([Activations(sigmoid=True), AsDiscrete(threshold=0.5)])

    val_interval = 1
    epoch_loss_values = []
    for epoch in range(args.max_epochs):
        model.train()
        epoch_loss = 0
        step = 0
        for batch_data in train_loader:
            step += 1
            inputs, labels = batch_data["img"].to(device), batch_data["seg"].to(device)
            optimizer.zero_grad()
            outputs = model(inputs)
            loss = loss_function(outputs, labels)
            loss.backward()
            optimizer.step()
            epoch_loss += loss.item()
        epoch_loss_values.append(epoch_loss / step)
        print(f"epoch {epoch + 1} average loss: {epoch_loss_values[-1]:.4f}")

        if (epoch + 1) % val_interval == 0:
            model.eval()
            with torch.no_grad():
                for val_data in val_loader:
                    val_images, val_labels = val_data["img"].to(device), val_data["seg"].to(device)
                    val_outputs = sliding_window_inference(val_images, (32, 32, 32), 4, model)
                    val_outputs = [post_trans(i) for i in decollate_batch(val_outputs)]
                    dice_metric(y_pred=val_outputs, y=val_labels)
                print(f"epoch {epoch + 1} mean dice: {dice_metric.aggregate().item():.4f}")
                dice_metric.reset()

    weights = torch.cat([p.detach().flatten() for p in model.state_dict().values()])
    print("loss", repr(loss.item()))
    print("weights", hashlib.sha256(weights.cpu().numpy().tobytes()).hexdigest())


if __name__ == "__main__":
    parser = ArgumentParser()
    parser.add_argument("--batch_size", type=int, default=4)
    parser.add_argument("--max_epochs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    main(parser.parse_args())
