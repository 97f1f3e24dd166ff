"""Small models of many kinds, for comparing a fake step with a real one: `GALLERY[name]()`."""

import math

import monai.networks.nets
import peft
import timm
import torch
import transformers
from torch import nn
from torch.utils.data import Dataset

SIDE, LENGTH, VOCABULARY = 64, 48, 200


class Repeated(Dataset):
    def __init__(self, item):
        self.item = item

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return self.item


def image(channels=3, side=SIDE):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(channels, side, side, generator=generator)


def classified(name, **options):
    model = timm.create_model(name, num_classes=10, **options)
    return model, Repeated((image(), 3)), _classify


def _classify(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def language(model):
    tokens = torch.arange(LENGTH) % VOCABULARY
    return model, Repeated({"input_ids": tokens, "labels": tokens}), _language


def _language(model, batch):
    return model(**batch).loss


def bert():
    config = transformers.BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
    )
    return language(transformers.BertForMaskedLM(config))


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=VOCABULARY, n_embd=64, n_layer=2, n_head=4, n_positions=64
    )
    return language(transformers.GPT2LMHeadModel(config))


def llama():
    return language(_llama())


def adapted():
    """The same with LoRA adapters, as people fine-tune it."""
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=["q_proj", "v_proj"])
    return language(peft.get_peft_model(_llama(), config))


def _llama():
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config)


def unet3d():
    model = monai.networks.nets.UNet(3, 1, 1, channels=(8, 16, 32), strides=(2, 2), num_res_units=2)
    volume = torch.randn(1, 16, 16, 16, generator=torch.Generator().manual_seed(0))
    return model, Repeated((volume, (volume > 0).float())), _segment


def _segment(model, batch):
    return nn.functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 32)
        self.cells = nn.LSTM(32, 64, 2, batch_first=True)
        self.head = nn.Linear(64, VOCABULARY)

    def forward(self, tokens):
        return self.head(self.cells(self.embed(tokens))[0])


def lstm():
    return Recurrent(), Repeated(torch.arange(LENGTH) % VOCABULARY), _next


def _next(model, tokens):
    logits = model(tokens[:, :-1]).flatten(0, 1)
    return nn.functional.cross_entropy(logits.float(), tokens[:, 1:].flatten())


class Denoiser(nn.Module):
    """A diffusion U-Net in small: time embedding, residual blocks, attention at the bottom."""

    def __init__(self, width=32):
        super().__init__()
        self.width = width
        self.time = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, 64))
        self.start = nn.Conv2d(3, width, 3, padding=1)
        self.norm = nn.GroupNorm(8, width)
        self.down = nn.Conv2d(width, 64, 3, stride=2, padding=1)
        self.middle = nn.GroupNorm(8, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.up = nn.ConvTranspose2d(64, width, 2, stride=2)
        self.end = nn.Conv2d(2 * width, 3, 3, padding=1)

    def forward(self, x, t):
        half = self.width // 2
        rates = torch.exp(-math.log(10_000.0) * torch.arange(half, device=x.device) / half)
        angles = t[:, None].float() * rates
        time = self.time(torch.cat([angles.sin(), angles.cos()], -1))
        first = self.start(x)
        h = self.down(nn.functional.silu(self.norm(first))) + time[:, :, None, None]
        tokens = self.middle(h).flatten(2).transpose(1, 2)
        h = h + self.attention(tokens, tokens, tokens)[0].transpose(1, 2).reshape(h.shape)
        return self.end(torch.cat([self.up(h), first], 1))


def diffusion():
    return Denoiser(), Repeated((image(side=16), 7)), _denoise


def _denoise(model, batch):
    images, t = batch
    noise = torch.randn_like(images)
    return nn.functional.mse_loss(model(images + noise, t).float(), noise)


class Detector(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = timm.create_model("resnet18", features_only=True, out_indices=(3,))
        self.head = nn.Conv2d(256, 5, 1)

    def forward(self, x):
        return self.head(self.body(x)[0])


def detection():
    """A loss that looks at numbers: only cells that hold an object have a box."""
    side = SIDE // 16
    holds = torch.arange(side * side).view(side, side) % 3 == 0
    boxes = torch.rand(4, side, side, generator=torch.Generator().manual_seed(0))
    return Detector(), Repeated((image(), holds, boxes)), _detect


def _detect(model, batch):
    images, holds, boxes = batch
    found = model(images).float()
    objectness, sides = found[:, 0], found[:, 1:].permute(0, 2, 3, 1)[holds]
    target = boxes.permute(0, 2, 3, 1)[holds]
    classified = nn.functional.binary_cross_entropy_with_logits(objectness, holds.float())
    return classified + (sides - target).abs().sum() / max(int(holds.sum()), 1)


GALLERY = {
    "timm resnet18": lambda: classified("resnet18"),
    "timm convnext_atto": lambda: classified("convnext_atto"),
    "timm vit_tiny": lambda: classified("vit_tiny_patch16_224", img_size=SIDE),
    "transformers BERT": bert,
    "transformers GPT-2": gpt2,
    "transformers Llama": llama,
    "PEFT LoRA on Llama": adapted,
    "MONAI 3D U-Net": unet3d,
    "LSTM": lstm,
    "diffusion U-Net": diffusion,
    "detection loss": detection,
}
