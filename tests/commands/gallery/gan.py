"""Train a small convolutional GAN on synthetic images."""

import argparse
import hashlib
import random

import torch
from torch import nn
from torch.nn.utils import parameters_to_vector

parser = argparse.ArgumentParser()
parser.add_argument("--batch", type=int, default=32, help="input batch size")
parser.add_argument("--niter", type=int, default=2, help="number of epochs")
parser.add_argument("--nz", type=int, default=32, help="size of the latent vector z")
parser.add_argument(
    "--n-critic", type=int, default=1, help="discriminator steps per generator step"
)
parser.add_argument("--lr", type=float, default=2e-4)
parser.add_argument("--beta1", type=float, default=0.5)
parser.add_argument("--manual-seed", type=int, default=1234)
opt = parser.parse_args()
print(opt)

random.seed(opt.manual_seed)
torch.manual_seed(opt.manual_seed)
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")


def make_images(count):
    """Smooth blobs of random color, scaled to [-1, 1]."""
    low = torch.rand(count, 3, 4, 4)
    return nn.functional.interpolate(low, size=64, mode="bicubic").clamp(0, 1) * 2 - 1


dataset = torch.utils.data.TensorDataset(make_images(256))
dataloader = torch.utils.data.DataLoader(dataset, batch_size=opt.batch, shuffle=True)


def weights_init(m):
    name = m.__class__.__name__
    if name.find("Conv") != -1:
        nn.init.normal_(m.weight, 0.0, 0.02)
    elif name.find("BatchNorm") != -1:
        nn.init.normal_(m.weight, 1.0, 0.02)
        nn.init.zeros_(m.bias)


class Generator(nn.Module):
    def __init__(self, nz, ngf=8):
        super().__init__()
        self.main = nn.Sequential(
            nn.ConvTranspose2d(nz, ngf * 4, 8, 1, 0, bias=False),
            nn.BatchNorm2d(ngf * 4),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 4, ngf * 2, 4, 4, 0, bias=False),
            nn.BatchNorm2d(ngf * 2),
            nn.ReLU(True),
            nn.ConvTranspose2d(ngf * 2, ngf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ngf),
            nn.ReLU(True),
            nn.Conv2d(ngf, 3, 3, 1, 1),
            nn.Tanh(),
        )

    def forward(self, z):
        return self.main(z)


class Discriminator(nn.Module):
    def __init__(self, ndf=16):
        super().__init__()
        self.main = nn.Sequential(
            nn.Conv2d(3, ndf, 3, 1, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(ndf, ndf, 4, 2, 1, bias=False),
            nn.BatchNorm2d(ndf),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf, ndf * 2, 4, 4, 0, bias=False),
            nn.BatchNorm2d(ndf * 2),
            nn.LeakyReLU(0.2, inplace=True),
            nn.Conv2d(ndf * 2, 1, 8, 1, 0, bias=False),
        )

    def forward(self, x):
        return self.main(x).view(-1)


netG = Generator(opt.nz).to(device)
netG.apply(weights_init)
netD = Discriminator().to(device)
netD.apply(weights_init)

criterion = nn.BCEWithLogitsLoss()
fixed_noise = torch.randn(16, opt.nz, 1, 1, device=device)
optimizerD = torch.optim.Adam(netD.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))
optimizerG = torch.optim.Adam(netG.parameters(), lr=opt.lr, betas=(opt.beta1, 0.999))

errG = None
iteration = 0
for epoch in range(opt.niter):
    for i, (real,) in enumerate(dataloader):
        # (1) Update D: maximize log(D(x)) + log(1 - D(G(z)))
        netD.zero_grad()
        real = real.to(device)
        batch_size = real.size(0)
        errD_real = criterion(netD(real), torch.ones(batch_size, device=device))
        errD_real.backward()

        noise = torch.randn(batch_size, opt.nz, 1, 1, device=device)
        fake = netG(noise)
        errD_fake = criterion(netD(fake.detach()), torch.zeros(batch_size, device=device))
        errD_fake.backward()
        errD = errD_real + errD_fake
        optimizerD.step()

        # (2) Update G: maximize log(D(G(z)))
        iteration += 1
        if iteration % opt.n_critic == 0:
            netG.zero_grad()
            errG = criterion(netD(fake), torch.ones(batch_size, device=device))
            errG.backward()
            optimizerG.step()

        if i % 10 == 0:
            loss_g = float("nan") if errG is None else errG.item()
            print(f"[{epoch}/{opt.niter}][{i}/{len(dataloader)}] {errD.item():.4f} {loss_g:.4f}")
    with torch.no_grad():
        samples = netG(fixed_noise)
    print(f"samples: mean {samples.mean():.4f}, std {samples.std():.4f}")

weights = parameters_to_vector([*netG.parameters(), *netD.parameters()])
print("loss", repr((errD if errG is None else errG).item()))
print("weights", hashlib.sha256(weights.detach().cpu().numpy().tobytes()).hexdigest())
