"""Kinds of batches, after public reports; each function is a factory of a `Workload`."""

from __future__ import annotations

from collections import defaultdict, namedtuple
from dataclasses import dataclass

import torch
from kinds_data import Items, cross_entropy, network, pair, trained
from torch import nn
from torch.nn.utils.rnn import pack_sequence, pad_sequence
from torch.utils.data import default_collate


class Sample:
    """A batch of one's own class, with `to` and `pin_memory`."""

    def __init__(self, image, label):
        self.image, self.label = image, label

    def to(self, device, non_blocking=False):
        return Sample(self.image.to(device), self.label.to(device))

    def pin_memory(self):
        return Sample(self.image.pin_memory(), self.label.pin_memory())


class Bare:
    """A batch of one's own class without any method."""


def with_attributes(collate):
    """Batches whose image and label are attributes."""

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch.image), batch.label)

    return trained(
        network(), loss, Items(pair), collate=collate, predict=lambda model, b: model(b.image)
    )


def own_class():
    def collate(items):
        return Sample(*default_collate(items))

    return with_attributes(collate)


def own_class_without_methods():
    def collate(items):
        batch = Bare()
        batch.image, batch.label = default_collate(items)
        return batch

    return with_attributes(collate)


class Slotted:
    """As attrs and msgspec make them: without a `__dict__`."""

    __slots__ = ("image", "label")

    def __init__(self, image, label):
        self.image, self.label = image, label


def slotted_classes():
    def collate(items):
        return Slotted(*default_collate(items))

    return with_attributes(collate)


class Table(dict):
    """A mapping with an attribute, and a constructor of its own."""

    def __init__(self, name, columns):
        super().__init__(columns)
        self.name = name


def mappings_with_attributes():
    def collate(items):
        images, labels = default_collate(items)
        return Table("scans", {"image": images, "label": labels})

    def loss(model, batch):
        assert batch.name == "scans"
        return nn.functional.cross_entropy(model(batch["image"]), batch["label"])

    return trained(
        network(), loss, Items(pair), collate=collate, predict=lambda model, b: model(b["image"])
    )


def default_dictionaries():
    def collate(items):
        batch = defaultdict(list)
        batch["image"], batch["label"] = default_collate(items)
        return batch

    def loss(model, batch):
        assert batch["boxes"] == []
        return nn.functional.cross_entropy(model(batch["image"]), batch["label"])

    return trained(
        network(), loss, Items(pair), collate=collate, predict=lambda model, b: model(b["image"])
    )


class Graph:
    def __init__(self, x, owner, y):
        self.x, self.owner, self.y = x, owner, y

    def to(self, device, non_blocking=False):
        return Graph(self.x.to(device), self.owner.to(device), self.y.to(device))


class GraphNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(16, 32), nn.Linear(32, 2)

    def forward(self, graph):
        pooled = torch.zeros(len(graph.y), 32, device=graph.x.device)
        return self.head(pooled.index_add(0, graph.owner, torch.relu(self.layer(graph.x))))


def graphs():
    """Graphs of very different size are joined to one; parts are made by `split`."""

    def make(index):
        nodes = 400 if index % 24 == 20 else 5 + index % 4
        x = torch.randn(nodes, 16, generator=torch.Generator().manual_seed(index))
        return Graph(x, torch.zeros(nodes, dtype=torch.long), torch.tensor([index % 2]))

    def collate(graphs):
        owner = torch.cat([g.owner + place for place, g in enumerate(graphs)])
        return Graph(torch.cat([g.x for g in graphs]), owner, torch.cat([g.y for g in graphs]))

    def split(graph, n):
        parts = []
        for start in range(0, len(graph.y), n):
            labels = graph.y[start : start + n]
            mine = (graph.owner >= start) & (graph.owner < start + len(labels))
            parts.append(Graph(graph.x[mine], graph.owner[mine] - start, labels))
        return parts

    return trained(
        GraphNet(),
        lambda model, batch: nn.functional.cross_entropy(model(batch), batch.y),
        Items(make),
        collate=collate,
        count=lambda graph: float(len(graph.y)),
        split=split,
    )


Pair = namedtuple("Pair", "image label")


def named_tuples():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch.image), batch.label)

    return trained(network(), loss, Items(lambda index: Pair(*pair(index))))


@dataclass
class Labelled:
    image: torch.Tensor
    label: torch.Tensor
    name: str = "scan"


def dataclasses():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch.image), batch.label)

    return trained(
        network(),
        loss,
        Items(pair),
        collate=lambda items: Labelled(*default_collate(items)),
        predict=lambda model, batch: model(batch.image),
    )


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(64, 32), nn.Linear(32, 3)

    def forward(self, input_ids, attention_mask):
        mask = attention_mask.unsqueeze(-1)
        return self.head((self.embedding(input_ids) * mask).sum(1) / mask.sum(1))


def _texts(items):
    tokens = pad_sequence([item["input_ids"] for item in items], batch_first=True)
    return {
        "input_ids": tokens,
        "attention_mask": (tokens != 0).long(),
        "labels": torch.tensor([item["labels"] for item in items]),
    }


def _text(index):
    length = 4 + index % 12
    return {"input_ids": torch.full((length,), 1 + index % 60), "labels": index % 3}


def _text_loss(model, batch):
    logits = model(batch["input_ids"], batch["attention_mask"])
    return nn.functional.cross_entropy(logits, batch["labels"])


def batch_encodings():
    """Transformers' BatchEncoding."""
    from transformers import BatchEncoding

    return trained(
        Encoder(), _text_loss, Items(_text), collate=lambda items: BatchEncoding(_texts(items))
    )


def extra_columns():
    """Columns that the model does not take: texts, lists of texts, ids."""

    def collate(items):
        count = len(items)
        return _texts(items) | {
            "example_id": [f"q-{place}" for place in range(count)],
            "spans": [[(0, 1), (1, 2)]] * count,
            "task": "questions",
        }

    return trained(Encoder(), _text_loss, Items(_text), collate=collate)


class DetectorNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 2)

    def forward(self, images):
        return torch.stack([self.head(self.conv(image[None]).mean((2, 3))[0]) for image in images])


def lists_of_images():
    """Images of different shapes, and targets with three objects each, as detectors have them."""

    def make(index):
        image = torch.rand(3, 24 + index % 3 * 8, 24 + index % 4 * 8)
        return image, {"boxes": torch.rand(3, 4), "labels": torch.full((3,), index % 2)}

    def loss(model, batch):
        labels = torch.stack([target["labels"][0] for target in batch[1]])
        return nn.functional.cross_entropy(model(batch[0]), labels)

    return trained(
        DetectorNet(), loss, Items(make), collate=lambda items: tuple(zip(*items, strict=True))
    )


def packed_sequences():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.GRU(4, 16), nn.Linear(16, 2)

        def forward(self, packed):
            return self.head(self.rnn(packed)[1][-1])

    def make(index):
        return torch.randn(3 + index % 5, 4), index % 2

    def collate(items):
        packed = pack_sequence([x for x, _ in items], enforce_sorted=False)
        return packed, torch.tensor([y for _, y in items])

    return trained(Net(), cross_entropy, Items(make), collate=collate)


def nested_tensors():
    """A jagged tensor of sequences of different lengths."""

    def loss(model, batch):
        mean = torch.stack([model(x).mean(0) for x in batch[0].unbind()])
        return nn.functional.cross_entropy(mean, batch[1])

    def make(index):
        return torch.randn(3 + index % 5, 64), index % 2

    def collate(items):
        nested = torch.nested.nested_tensor([x for x, _ in items], layout=torch.jagged)
        return nested, torch.tensor([y for _, y in items])

    def predict(model, batch):
        return [model(x) for x in batch[0].unbind()]

    return trained(network(), loss, Items(make), collate=collate, predict=predict)


def sparse_inputs():
    """A sparse COO matrix of features."""

    def collate(items):
        images, labels = default_collate(items)
        return images.relu().to_sparse(), labels

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.randn(64, 2) / 8)

        def forward(self, x):
            return torch.sparse.mm(x, self.weight)

    return trained(Net(), cross_entropy, Items(pair), collate=collate)


def texts_alone():
    """A batch of strings, tokenized in the loss."""

    def loss(model, batch):
        tokens = torch.tensor([[ord(letter) % 64 for letter in text] for text in batch["text"]])
        logits = model(tokens, torch.ones_like(tokens))
        return nn.functional.cross_entropy(logits, torch.zeros(len(tokens), dtype=torch.long))

    data = Items(lambda index: {"text": f"{index:08d}"})
    return trained(
        Encoder(),
        loss,
        data,
        predict=lambda model, batch: loss(model, batch),
        collate=default_collate,
    )


def tensors_of_other_lengths():
    """A table that all examples share lies in the batch beside them."""

    def collate(items):
        images, labels = default_collate(items)
        return {"image": images, "label": labels, "prototypes": torch.zeros(7, 64)}

    def loss(model, batch):
        offset = model(batch["prototypes"]).mean(0)
        return nn.functional.cross_entropy(model(batch["image"]) + offset, batch["label"])

    return trained(
        network(), loss, Items(pair), collate=collate, predict=lambda m, b: m(b["image"])
    )


KINDS = {
    function.__name__: function
    for function in (
        own_class,
        own_class_without_methods,
        slotted_classes,
        mappings_with_attributes,
        default_dictionaries,
        graphs,
        named_tuples,
        dataclasses,
        batch_encodings,
        extra_columns,
        lists_of_images,
        packed_sequences,
        nested_tensors,
        sparse_inputs,
        texts_alone,
        tensors_of_other_lengths,
    )
}
