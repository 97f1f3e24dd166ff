"""Public training scripts, unmodified, on tiny data that is made for them here.

`python -m benchmarks.commands --scripts DIR` runs those that it finds in DIR, at any depth: the
folders of their repositories, as they are cloned. Nothing of them is kept. A script whose packages
are not installed is skipped.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
import pickle
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

SEED = 0


@dataclass(frozen=True)
class PublicScript:
    """A script, and how it is started.

    `file` is the end of its path. `{data}` in `arguments` is the folder that `make_data` has
    filled; the script runs in a folder `work` beside it, or in its own one. Each match of `losses`
    in its output is a loss.
    """

    name: str
    file: str
    arguments: str
    make_data: Callable[[Path], None]
    losses: str
    packages: tuple[str, ...] = ()
    runs_in_its_folder: bool = False
    takes_a_seed: bool = True

    def find(self, folder: Path) -> Path | None:
        """The script in a folder that the user gives; None if it is not there."""
        return next(iter(sorted(folder.rglob(self.file))), None)

    def missing_packages(self) -> list[str]:
        """Those of its packages that are not installed."""
        return [name for name in self.packages if importlib.util.find_spec(name) is None]


def found_in(folder: Path) -> Iterator[tuple[PublicScript, Path]]:
    """Scripts of `SCRIPTS` in a folder, with their paths."""
    for script in SCRIPTS:
        path = script.find(folder)
        if path is not None:
            yield script, path


def blob_of(path: Path) -> str:
    """Git's name of a file's content, which says which version of a script was run."""
    content = path.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def make_image_folder(folder: Path) -> None:
    """`train/CLASS/N.jpg` and `val/CLASS/N.jpg`: random images of 64x64 in eight classes."""
    from PIL import Image

    random = np.random.default_rng(SEED)
    for part, count in (("train", 64), ("val", 2)):
        for level in range(55, 200, 20):
            place = folder / part / f"level{level:03}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = random.integers(level - 50, level + 50, (64, 64, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number:03}.jpg")


def make_mnist(folder: Path) -> None:
    """MNIST's four files, in its idx format, with a bright row that is the digit."""
    random = np.random.default_rng(SEED)
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, count in (("train", 1024), ("t10k", 128)):
        labels = random.integers(0, 10, count, dtype=np.uint8)
        images = random.integers(0, 90, (count, 28, 28), dtype=np.uint8)
        images[np.arange(count), 4 + 2 * labels] = 250
        for kind, array in (("images-idx3-ubyte", images), ("labels-idx1-ubyte", labels)):
            head = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape)
            (raw / f"{part}-{kind}").write_bytes(head + array.tobytes())
            with gzip.open(raw / f"{part}-{kind}.gz", "wb") as packed:
                packed.write(head + array.tobytes())


def make_tokens(folder: Path) -> None:
    """`train.bin` and `val.bin`: 16-bit tokens that mostly count up; `meta.pkl` says how many."""
    random = np.random.default_rng(SEED)
    for part, count in (("train", 100_000), ("val", 10_000)):
        tokens = (np.arange(count) + random.integers(0, 3, count)) % 256
        tokens.astype(np.uint16).tofile(folder / f"{part}.bin")
    (folder / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 256}))


def make_texts(folder: Path) -> None:
    """`train.txt`, `valid.txt` and `test.txt`, of sentences of 200 different words."""
    random = np.random.default_rng(SEED)
    for part, count in (("train", 3500), ("valid", 100), ("test", 100)):
        lines = (" ".join(f"w{word}" for word in random.integers(0, 200, 12)) for _ in range(count))
        (folder / f"{part}.txt").write_text("\n".join(lines) + "\n")


def make_language_model(folder: Path) -> None:
    """The texts, a tokenizer of their words, and the configuration of a small GPT-2."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import GPT2Config, PreTrainedTokenizerFast

    make_texts(folder)
    words = {f"w{number}": number for number in range(200)} | {"<unk>": 200}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", model_max_length=64
    )
    fast.save_pretrained(folder / "model")
    config = GPT2Config(vocab_size=201, n_positions=64, n_embd=64, n_layer=2, n_head=2)
    (folder / "model" / "config.json").write_text(
        json.dumps(config.to_dict() | {"model_type": "gpt2"})
    )


_NUMBER = r"([-+\d.einfa]+)"

SCRIPTS = (
    PublicScript(
        "pytorch/examples, mnist",
        "mnist/main.py",
        "--batch-size {batch} --epochs 1 --no-accel --log-interval 1 --test-batch-size 64",
        make_mnist,
        rf"Loss: {_NUMBER}",
        ("torchvision",),
    ),
    PublicScript(
        "pytorch/examples, dcgan",
        "dcgan/main.py",
        "--dataset folder --dataroot {data}/train --batchSize {batch} --niter 1 --workers 2 "
        "--ngf 16 --ndf 16 --manualSeed 1 --outf {out}",
        make_image_folder,
        rf"Loss_[DG]: {_NUMBER}",
        ("torchvision",),
    ),
    PublicScript(
        "pytorch/examples, word_language_model",
        "word_language_model/main.py",
        "--data {data} --model LSTM --batch_size {batch} --epochs 1 --log-interval 1 "
        "--emsize 320 --nhid 320 --bptt 64 "
        "--save {out}/model.pt",
        make_texts,
        rf"loss +{_NUMBER}",
    ),
    PublicScript(
        "nanoGPT, train.py",
        "nanoGPT/train.py",
        "--dataset={data} --out_dir={out} --device=cpu --compile=False --dtype=float32 "
        "--batch_size={batch} --block_size=64 --n_layer=2 --n_head=2 --n_embd=64 "
        "--gradient_accumulation_steps=2 --max_iters=40 --eval_iters=2 --eval_interval=20",
        make_tokens,
        rf"loss {_NUMBER}",
        runs_in_its_folder=True,
    ),
    PublicScript(
        "timm, train.py",
        "pytorch-image-models/train.py",
        "--data-dir {data} --train-split train --val-split val --model test_resnet "
        "--num-classes 8 --img-size 96 --batch-size {batch} --epochs 1 --workers 2 --device cpu "
        "--no-prefetcher --log-interval 1 --output {out} --opt sgd --lr 0.05",
        make_image_folder,
        rf"Loss: +{_NUMBER}",
        ("torchvision", "yaml", "huggingface_hub", "safetensors"),
    ),
    PublicScript(
        "torchvision, references/classification/train.py",
        "references/classification/train.py",
        "--data-path {data} --model resnet18 --device cpu --batch-size {batch} --epochs 1 "
        "--workers 2 --print-freq 1 --train-crop-size 64 --val-resize-size 64 "
        "--val-crop-size 64 --output-dir {out} --lr 0.01",
        make_image_folder,
        rf"loss: {_NUMBER}",
        ("torchvision",),
        takes_a_seed=False,
    ),
    PublicScript(
        "Transformers, run_clm_no_trainer.py",
        "language-modeling/run_clm_no_trainer.py",
        "--train_file {data}/train.txt --validation_file {data}/valid.txt --config_name "
        "{data}/model --tokenizer_name {data}/model --block_size 64 --num_train_epochs 1 "
        "--per_device_train_batch_size {batch} --output_dir {out} --seed 1",
        make_language_model,
        rf"(?:perplexity|eval_loss|loss): {_NUMBER}",
        ("datasets", "accelerate", "transformers"),
    ),
)


def variables(script: PublicScript, folder: Path) -> dict[str, str]:
    """Environment variables of a script: what it would keep elsewhere goes to `folder`.

    One that takes no seed gets it from a `sitecustomize` module.
    """
    seeds = {}
    if not script.takes_a_seed:
        site = folder / "site"
        site.mkdir()
        lines = "import random, torch\nrandom.seed(0)\ntorch.manual_seed(0)\n"
        (site / "sitecustomize.py").write_text(lines)
        paths = [str(site), os.environ.get("PYTHONPATH", "")]
        seeds["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    return seeds | {
        "PYTHONDONTWRITEBYTECODE": "1",
        "HF_HOME": str(folder / "huggingface"),
        "HF_DATASETS_OFFLINE": "1",
        "HF_HUB_OFFLINE": "1",
    }


def as_row(script: PublicScript, path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """What is stored of one script."""
    return {
        "command": f"python {script.file} {script.arguments}",
        "blob": blob_of(path),
        **found,
    }
