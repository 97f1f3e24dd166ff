"""Data-parallel training; start it with torchrun."""

import argparse
import hashlib
import os

import torch
import torch.distributed as dist
import torch.nn as nn
from torch.nn.parallel import DistributedDataParallel as DDP
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.data.distributed import DistributedSampler


class Trainer:
    def __init__(self, model, train_data, optimizer, device):
        self.rank = int(os.environ["RANK"])
        self.device = device
        self.train_data = train_data
        self.optimizer = optimizer
        self.model = DDP(model, device_ids=[device.index] if device.type == "cuda" else None)
        self.criterion = nn.CrossEntropyLoss()

    def run_batch(self, source, targets):
        self.optimizer.zero_grad()
        output = self.model(source)
        loss = self.criterion(output, targets)
        loss.backward()
        self.optimizer.step()
        return loss.item()

    def run_epoch(self, epoch):
        self.train_data.sampler.set_epoch(epoch)
        for source, targets in self.train_data:
            loss = self.run_batch(source.to(self.device), targets.to(self.device))
        print(f"[rank {self.rank}] epoch {epoch} | steps {len(self.train_data)} | loss {loss:.4f}")
        return loss

    def train(self, epochs):
        for epoch in range(epochs):
            loss = self.run_epoch(epoch)
        return loss


def load_dataset(count):
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(count, 3, 64, 64, generator=generator)
    labels = (images[:, 0, :32].mean(dim=(1, 2)) > images[:, 0, 32:].mean(dim=(1, 2))).long()
    return TensorDataset(images, labels)


def build_model():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(32 * 16, 2),
    )


def main(args):
    use_cuda = torch.cuda.is_available()
    dist.init_process_group("nccl" if use_cuda else "gloo")
    if use_cuda:
        device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(device)
    else:
        device = torch.device("cpu")

    torch.manual_seed(args.seed)
    model = build_model().to(device)
    dataset = load_dataset(args.examples)
    loader = DataLoader(
        dataset,
        batch_size=args.batch,
        pin_memory=use_cuda,
        shuffle=False,
        sampler=DistributedSampler(dataset, seed=args.seed),
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=args.lr, momentum=0.9)
    trainer = Trainer(model, loader, optimizer, device)
    loss = trainer.train(args.total_epochs)

    if dist.get_rank() == 0:
        digest = hashlib.sha256()
        for tensor in trainer.model.module.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        print("loss", repr(loss))
        print("weights", digest.hexdigest())
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="distributed training job")
    parser.add_argument("--total-epochs", type=int, default=2, help="total epochs to train")
    parser.add_argument("--batch", type=int, default=16, help="batch size on each process")
    parser.add_argument("--examples", type=int, default=640)
    parser.add_argument("--lr", type=float, default=0.01)
    parser.add_argument("--seed", type=int, default=42)
    main(parser.parse_args())
