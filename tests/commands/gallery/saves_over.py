"""Train a classifier; its checkpoint is overwritten after every epoch."""

import argparse
import hashlib
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def parse_opt():
    parser = argparse.ArgumentParser()
    parser.add_argument("--bs", type=int, default=32, help="batch size")
    parser.add_argument("--epochs", type=int, default=2, help="total number of epochs")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--out", default="last.pt", help="checkpoint file")
    parser.add_argument("--resume", action="store_true", help="continue from the checkpoint file")
    return parser.parse_args()


def build_loader(batch_size):
    g = torch.Generator().manual_seed(11)
    images = torch.randn(512, 3, 64, 64, generator=g)
    labels = (images.mean(dim=(1, 2, 3)) > 0).float()
    return DataLoader(TensorDataset(images, labels), batch_size, shuffle=True, generator=g)


def build_model():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3, padding=1),
        nn.Hardswish(),
        nn.Conv2d(24, 24, 4, stride=4, groups=24),
        nn.Hardswish(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(24, 1),
    )


def save_checkpoint(path, epoch, model, optimizer):
    torch.save(
        {"epoch": epoch, "model": model.state_dict(), "optimizer": optimizer.state_dict()}, path
    )
    print(f"saved {path} ({Path(path).stat().st_size} bytes)")


def main():
    opt = parse_opt()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)

    loader = build_loader(opt.bs)
    model = build_model().to(device)
    optimizer = torch.optim.RMSprop(model.parameters(), lr=opt.lr)
    start_epoch = 0
    if opt.resume:
        ckpt = torch.load(opt.out, map_location=device)
        model.load_state_dict(ckpt["model"])
        optimizer.load_state_dict(ckpt["optimizer"])
        start_epoch = ckpt["epoch"] + 1
        print(f"resuming at epoch {start_epoch}")

    loss = None
    for epoch in range(start_epoch, opt.epochs):
        loader.generator.manual_seed(epoch)
        for imgs, targets in loader:
            pred = model(imgs.to(device)).squeeze(1)
            loss = nn.functional.binary_cross_entropy_with_logits(pred, targets.to(device))
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        print(f"epoch {epoch}: loss {loss.item():.4f}")
        save_checkpoint(opt.out, epoch, model, optimizer)

    if loss is None:
        print(f"nothing to do: the checkpoint has all {opt.epochs} epochs")
        return
    weights = hashlib.sha256()
    for tensor in model.state_dict().values():
        weights.update(tensor.cpu().numpy().tobytes())
    print("loss", repr(loss.item()))
    print("weights", weights.hexdigest())


if __name__ == "__main__":
    main()
