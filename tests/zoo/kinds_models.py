"""Kinds of models and losses, after public reports; each function is a factory of a `Workload`."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from kinds_data import Items, cross_entropy, network, pair, trained
from torch import nn
from torch.utils.checkpoint import checkpoint


def _images(index):
    return torch.full((3, 16, 16), index % 2 - 0.5), index % 2


def lazy_modules():
    """Layers that learn their width from the first batch; the optimizer is made before."""
    model = nn.Sequential(
        nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.ReLU(), nn.Flatten(), nn.LazyLinear(2)
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    return trained(model, cross_entropy, Items(_images), optimizer=optimizer)


class TiedNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


def tied_weights():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    data = Items(lambda index: (torch.full((8,), index % 32), torch.full((8,), (index + 1) % 32)))
    return trained(TiedNet(), loss, data)


def compiled():
    return trained(torch.compile(network()), cross_entropy, Items(pair))


def compiled_for_static_shapes():
    """Every size is compiled again; the ninth is an error."""
    model = torch.compile(network(), dynamic=False, fullgraph=True)
    return trained(model, cross_entropy, Items(pair))


def frozen_parts():
    model = network()
    model[0].requires_grad_(False)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    return trained(model, cross_entropy, Items(pair), optimizer=optimizer)


class Remembering(nn.Module):
    """A queue of features, replaced at every step, whose length the batch must divide."""

    def __init__(self, length=32, divides=False):
        super().__init__()
        self.net, self.divides = network(), divides
        self.register_buffer("queue", torch.zeros(length, 2))
        self.register_buffer("place", torch.zeros((), dtype=torch.long))

    def forward(self, x):
        features = self.net(x)
        if self.training:
            if self.divides:
                assert len(self.queue) % len(x) == 0, "the batch must divide the queue"
            start = int(self.place)
            places = torch.arange(start, start + len(x), device=x.device) % len(self.queue)
            self.queue = self.queue.index_copy(0, places, features.detach())
            self.place.fill_((start + len(x)) % len(self.queue))
        return features + self.queue.mean()


def memory_queues():
    return trained(Remembering(), cross_entropy, Items(pair))


def queues_that_batches_divide():
    """Sizes that divide 32 work, others are refused by the model."""
    return trained(Remembering(divides=True), cross_entropy, Items(pair))


class Growing(nn.Module):
    """A bank of features that grows with every step."""

    def __init__(self):
        super().__init__()
        self.net = network()
        self.register_buffer("bank", torch.zeros(0, 2))

    def forward(self, x):
        features = self.net(x)
        if self.training:
            self.bank = torch.cat([self.bank, features.detach()])[-500:]
        return features


def growing_buffers():
    return trained(Growing(), cross_entropy, Items(pair))


@dataclass
class Output:
    logits: torch.Tensor
    loss: torch.Tensor | None = None


class Returning(nn.Module):
    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = network(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


def dictionary_outputs():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0])["logits"], batch[1])

    return trained(Returning(lambda x: {"logits": x, "aux": None}), loss, Items(pair))


def dataclass_outputs():
    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).logits, batch[1])

    return trained(Returning(Output), loss, Items(pair))


class LossInside(nn.Module):
    """The model returns its loss itself."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, image, label=None):
        logits = self.net(image)
        return nn.functional.cross_entropy(logits, label) if label is not None else logits


def losses_inside():
    data = Items(lambda index: dict(zip(("image", "label"), pair(index), strict=True)))
    return trained(LossInside(), lambda model, batch: model(**batch), data)


class Checkpointed(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
        self.head = nn.Linear(64, 2)

    def forward(self, x):
        for block in self.blocks:
            x = checkpoint(lambda x, block=block: torch.relu(block(x)), x, use_reentrant=False)
        return self.head(x)


def checkpointed():
    return trained(Checkpointed(), cross_entropy, Items(pair))


class ComplexNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(33, 2, dtype=torch.cfloat) / 6)

    def forward(self, x):
        return (torch.fft.rfft(x) @ self.weight).abs()


def complex_weights():
    return trained(ComplexNet(), cross_entropy, Items(pair))


class Deciding(nn.Module):
    """What runs depends on the values."""

    def __init__(self):
        super().__init__()
        self.first, self.second = network(), network()

    def forward(self, x):
        if x.mean().item() > 0.5:
            return self.first(x)
        large = x.abs().sum(1) > 40
        out = self.second(x)
        if large.any():
            out = out.index_add(0, large.nonzero()[:, 0], self.first(x[large]))
        return out


def data_dependent():
    return trained(Deciding(), cross_entropy, Items(pair))


def on_meta():
    """Weights without values: nothing can be trained."""
    with torch.device("meta"):
        model = network()
    return trained(model, cross_entropy, Items(pair))


def double_precision():
    model = network().double()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0].double()), batch[1])

    return trained(model, loss, Items(pair), predict=lambda m, b: m(b[0].double()))


def weight_normalization():
    model = network()
    nn.utils.parametrizations.weight_norm(model[0])
    nn.utils.parametrizations.spectral_norm(model[2])
    return trained(model, cross_entropy, Items(pair))


def data_parallel():
    return trained(nn.DataParallel(network()), cross_entropy, Items(pair))


def bf16_weights():
    model = network().bfloat16()

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0].bfloat16()).float(), batch[1])

    return trained(model, loss, Items(pair), predict=lambda m, b: m(b[0].bfloat16()))


def recurrent():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.rnn(x)[0][:, -1])

    return trained(Net(), cross_entropy, Items(lambda index: (torch.randn(8, 8), index % 2)))


class Remembered(nn.Module):
    """The hidden state of one batch is where the next one starts; it is an attribute."""

    def __init__(self):
        super().__init__()
        self.rnn, self.head = nn.GRU(8, 16, batch_first=True), nn.Linear(16, 2)
        self.hidden = None

    def forward(self, x):
        out, hidden = self.rnn(x, self.hidden)
        self.hidden = hidden.detach()
        return self.head(out[:, -1])


def hidden_states():
    """udacity/deep-learning-v2-pytorch#398: the state has the size of the last batch."""
    data = Items(lambda index: (torch.randn(8, 8), index % 2))
    return trained(Remembered(), cross_entropy, data, drop_last=True)


def exported():
    """pytorch/pytorch#151726: such a model has one mode, and here one batch size."""
    model = torch.export.export(network(), (torch.randn(6, 64),)).module()
    return trained(model, cross_entropy, Items(pair))


def scripted():
    return trained(torch.jit.script(network()), cross_entropy, Items(pair))


def ignored_batches():
    """Whole batches have no token that counts."""

    def make(index):
        tokens = torch.full((8,), index % 20)
        return tokens, torch.full((8,), -100) if index < 60 else (tokens + 1) % 20

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    return trained(
        nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 20)),
        loss,
        Items(make),
        count=lambda batch: float((batch[1] != -100).sum()),
        order=lambda seed, epoch: range(96),
    )


def ignored_labels():
    """A third of the examples has no token that counts."""

    def make(index):
        tokens = torch.full((8,), index % 20)
        return tokens, torch.full((8,), -100) if index % 3 == 0 else (tokens + 1) % 20

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())

    model = nn.Sequential(nn.Embedding(20, 16), nn.Linear(16, 20))
    return trained(
        model,
        loss,
        Items(make),
        evaluation_data=Items(make, 30),
        count=lambda batch: float((batch[1] != -100).sum()),
    )


def contrastive():
    """A batch's examples are compared with each other: parts are another loss."""

    def loss(model, batch):
        features = nn.functional.normalize(model(batch[0]), dim=1)
        noisy = nn.functional.normalize(model(batch[0] + 0.1), dim=1)
        return nn.functional.cross_entropy(
            features @ noisy.T / 0.1, torch.arange(len(features), device=features.device)
        )

    return trained(network(classes=8), loss, Items(pair))


def summed():
    """A sum over the batch, not a mean."""

    def loss(model, batch):
        return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="sum")

    return trained(network(), loss, Items(pair))


class Averaging:
    """A loss with state: it divides by a running average of itself."""

    def __init__(self):
        self.average = None

    def __call__(self, model, batch):
        loss = cross_entropy(model, batch)
        now = loss.detach()
        self.average = now if self.average is None else 0.9 * self.average + 0.1 * now
        return loss / self.average


def losses_with_state():
    return trained(network(), Averaging(), Items(pair))


def losses_of_one_element():
    return trained(network(), lambda m, b: cross_entropy(m, b)[None], Items(pair))


def losses_in_tuples():
    """The loss function returns the loss and its parts."""
    return trained(network(), lambda m, b: (cross_entropy(m, b), {}), Items(pair))


def losses_as_numbers():
    """The loss function calls backward itself, and returns a number."""

    def loss(model, batch):
        value = cross_entropy(model, batch)
        value.backward()
        return float(value)

    return trained(network(), loss, Items(pair))


def losses_without_gradient():
    """The loss is cut from the graph by mistake."""
    return trained(network(), lambda m, b: cross_entropy(m, b).detach(), Items(pair))


def never_finite():
    return trained(network(), lambda m, b: cross_entropy(m, b) * float("nan"), Items(pair))


KINDS = {
    function.__name__: function
    for function in (
        lazy_modules,
        tied_weights,
        compiled,
        compiled_for_static_shapes,
        frozen_parts,
        memory_queues,
        queues_that_batches_divide,
        growing_buffers,
        dictionary_outputs,
        dataclass_outputs,
        losses_inside,
        checkpointed,
        complex_weights,
        data_dependent,
        on_meta,
        double_precision,
        weight_normalization,
        data_parallel,
        bf16_weights,
        recurrent,
        hidden_states,
        exported,
        scripted,
        ignored_batches,
        ignored_labels,
        contrastive,
        summed,
        losses_with_state,
        losses_of_one_element,
        losses_in_tuples,
        losses_as_numbers,
        losses_without_gradient,
        never_finite,
    )
}
