"""Train on all GPUs of this machine, or in two processes on the CPU."""

import argparse
import hashlib
import socket

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn as nn
import torch.utils.data

parser = argparse.ArgumentParser(description="Multi-process training")
parser.add_argument("--epochs", default=2, type=int, help="number of total epochs to run")
parser.add_argument(
    "-b",
    "--batch-size",
    default=32,
    type=int,
    help="batch size (default: 32), this is the total of all processes",
)
parser.add_argument("--lr", default=0.05, type=float, help="initial learning rate")
parser.add_argument("--seed", default=3, type=int, help="seed for initializing training")
parser.add_argument("--dist-url", default=None, help="url used to set up distributed training")


class SmallResNet(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.fc = nn.Linear(16, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.stem(x)))
        x = torch.relu(x + self.bn2(self.conv(x)))
        return self.fc(x.mean(dim=(2, 3)))


def make_dataset(count):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(5, (count,), generator=generator)
    images = torch.randn(count, 3, 64, 64, generator=generator)
    images[:, 0] += labels.view(-1, 1, 1) * 0.2
    return torch.utils.data.TensorDataset(images, labels)


def find_free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def main_worker(rank, world_size, args):
    use_cuda = torch.cuda.is_available()
    dist.init_process_group(
        backend="nccl" if use_cuda else "gloo",
        init_method=args.dist_url,
        world_size=world_size,
        rank=rank,
    )
    device = torch.device(f"cuda:{rank}" if use_cuda else "cpu")
    if not use_cuda:
        torch.set_num_threads(1)
    torch.manual_seed(args.seed)

    model = SmallResNet().to(device)
    model = nn.parallel.DistributedDataParallel(model, device_ids=[rank] if use_cuda else None)
    criterion = nn.CrossEntropyLoss().to(device)
    optimizer = torch.optim.SGD(model.parameters(), args.lr, momentum=0.9, weight_decay=1e-4)

    # The batch is divided among the processes.
    batch_size = int(args.batch_size / world_size)
    dataset = make_dataset(384)
    sampler = torch.utils.data.distributed.DistributedSampler(dataset)
    loader = torch.utils.data.DataLoader(
        dataset, batch_size=batch_size, shuffle=False, sampler=sampler, pin_memory=use_cuda
    )

    for epoch in range(args.epochs):
        sampler.set_epoch(epoch)
        model.train()
        for i, (images, target) in enumerate(loader):
            images = images.to(device, non_blocking=True)
            target = target.to(device, non_blocking=True)
            output = model(images)
            loss = criterion(output, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if i % 10 == 0 and rank == 0:
                print(f"Epoch: [{epoch}][{i}/{len(loader)}]\tLoss {loss.item():.4e}", flush=True)

    if rank == 0:
        digest = hashlib.sha256()
        for tensor in model.module.state_dict().values():
            digest.update(tensor.cpu().numpy().tobytes())
        print("loss", repr(loss.item()))
        print("weights", digest.hexdigest(), flush=True)
    dist.destroy_process_group()


def main():
    args = parser.parse_args()
    world_size = torch.cuda.device_count() or 2
    if args.dist_url is None:
        args.dist_url = f"tcp://127.0.0.1:{find_free_port()}"
    mp.spawn(main_worker, nprocs=world_size, args=(world_size, args))


if __name__ == "__main__":
    main()
