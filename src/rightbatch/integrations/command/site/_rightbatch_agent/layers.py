"""Gradients of parts of one batch, from what layers get and pass back.

A step with one micro-batch on one device has one gradient, which says nothing about its noise. But
the gradient of a linear, convolution or embedding layer is a sum over examples of products of the
layer's input and the gradient at its output, so that of a few examples can be had beside the
backward pass, with no other pass and without a change to it. Of each layer a few output units are
taken, others in each sampled step: the squares of their gradients stand for the layer's. Of a model
with many layers some are taken, others in each sampled step.
"""

from __future__ import annotations

import time
from typing import Any, Callable

PARTS = 4  # of a batch, at most: of its pairs of examples, 3/4 lie in two parts
_UNITS = 16  # output units of a layer
_MOST_LAYERS = 48  # of a step
_MOST_BYTES = 1 << 26  # of inputs that would not be kept without us: autocast keeps copies


class LayerParts:
    """Squared gradient norms of the parts of one micro-batch; hooks are there between
    `start` and `stop`.

    An exception inside a hook would end the training, so it is given to `failed`.
    """

    def __init__(self, torch: Any, failed: Callable[[Exception], None]) -> None:
        self._torch, self._failed = torch, failed
        nn = torch.nn
        self._kinds = {
            nn.Linear.forward: self._linear,
            nn.Conv1d.forward: self._convolution,
            nn.Conv2d.forward: self._convolution,
            nn.Conv3d.forward: self._convolution,
            nn.Embedding.forward: self._embedding,
        }
        self.seconds = 0.0
        """What this step's hooks have taken."""
        self._hook: Any = None
        self._turn = 0  # varies the units
        self._layers = 0  # of the step
        self._stride = 1
        self._kept_bytes = 0
        self._examples: int | None = None
        self._used: dict[int, int] = {}  # how often each weight got a gradient, by id
        self._found: dict[int, tuple[Any, Any]] = {}
        self._held: list[list[Any]] = []  # each with an input, until its gradient comes
        self._leading: list[tuple[int, ...]] = []  # dimensions of inputs, without the features
        self._has_time_first = self._has_batch_first = self._has_convolution = False

    @property
    def is_on(self) -> bool:
        """Whether the layers of this step are observed."""
        return self._hook is not None

    def start(self) -> None:
        """Observe the layers of the next step."""
        self._stride = -(-max(self._layers, 1) // _MOST_LAYERS)
        self._turn, self._layers, self._kept_bytes = self._turn + 1, 0, 0
        self._examples, self.seconds = None, 0.0
        self._used, self._found, self._leading = {}, {}, []
        self._has_convolution = False
        register = self._torch.nn.modules.module.register_module_forward_hook
        self._hook = register(self._on_forward)

    def stop(self) -> None:
        """Remove the hook on layers; those on tensors end with the step's graph."""
        if self._hook is not None:
            self._hook.remove()
        self._hook = None
        self._found = {}
        for held in self._held:
            held.clear()
        self._held = []

    def before_backward(self, examples: int | None) -> None:
        """Tell how many examples the micro-batch has, which shows where they stand in inputs."""
        self._examples = examples
        pairs = [leading[:2] for leading in self._leading if len(leading) > 1 and leading[0] > 1]
        self._has_batch_first = self._has_convolution or any(a == examples != b for a, b in pairs)
        self._has_time_first = any(a != examples == b for a, b in pairs)

    def squares(self) -> tuple[Any, Any, int] | None:
        """Return the squared norms of the sum and of each part, and the examples of a part.

        None if no layer could be observed.
        """
        once = [found for key, found in self._found.items() if self._used[key] == 1]
        if not once or not self._examples:
            return None
        device = once[0][0].device
        whole = sum(square.to(device) for square, _ in once)
        parts = sum(squares.to(device) for _, squares in once)
        return whole, parts, self._examples // len(parts)

    def _on_forward(self, module: Any, inputs: Any, output: Any) -> None:
        try:
            self._observe(module, inputs, output)
        except Exception as error:
            self._failed(error)

    def _observe(self, module: Any, inputs: Any, output: Any) -> None:
        torch = self._torch
        gradients = self._kinds.get(type(module).forward)
        if gradients is None and _is_transposed_linear(module):
            gradients = self._linear
        if gradients is None or not torch.is_grad_enabled() or len(inputs) != 1:
            return
        weight, x = module.weight, inputs[0]
        if not weight.requires_grad or not getattr(output, "requires_grad", False):
            return
        is_convolution = gradients == self._convolution
        is_embedding = gradients == self._embedding
        leading = tuple(x.shape) if is_embedding else tuple(x.shape[:-1])
        if is_convolution:  # nothing but the batch can come first
            leading = tuple(x.shape[:1]) if x.dim() == weight.dim() else ()
        if not leading:
            return  # one example without a batch
        self._layers += 1
        self._has_convolution = self._has_convolution or is_convolution
        self._leading.append(leading)
        if (self._layers + self._turn) % self._stride or self._is_kept_by_us(x):
            return
        if type(output).__torch_dispatch__ != torch.Tensor.__torch_dispatch__:
            return  # a tensor without data of its own, such as a DTensor
        held = [x.detach().as_subclass(torch.Tensor)]  # MONAI's tensors carry more than data
        self._held.append(held)
        may_be_flat = not is_convolution and not is_embedding
        key = id(weight)

        def on_gradient(gradient: Any) -> None:
            if self._hook is None or not held:
                return
            # The graph may live for long after this, and the closure with it.
            x = held.pop()
            started_at = time.thread_time()
            try:
                self._used[key] = self._used.get(key, 0) + 1
                with torch.no_grad():
                    g = gradient.detach().as_subclass(torch.Tensor)
                    found = self._parts_of(gradients, module, x, g, leading, may_be_flat)
                if found is not None:
                    self._found[key] = found
            except Exception as error:
                self._failed(error)
            self.seconds += time.thread_time() - started_at

        output.register_hook(on_gradient)

    def _is_kept_by_us(self, x: Any) -> bool:
        """Whether autograd would not keep an input by itself, and there is no room for it."""
        if _saves_elsewhere(self._torch):
            return True
        if _is_autocast(self._torch, x):
            self._kept_bytes += x.element_size() * x.numel()
        return self._kept_bytes > _MOST_BYTES

    def _parts_of(
        self,
        gradients: Callable[..., Any],
        module: Any,
        x: Any,
        g: Any,
        leading: tuple[int, ...],
        may_be_flat: bool,
    ) -> tuple[Any, Any] | None:
        """Return the squared norms of a layer's gradient, of all parts together and of each.

        None where it is not certain which rows belong to which example.
        """
        examples = self._examples
        if examples is None or examples < 2 or g.shape[0] != x.shape[0]:
            return None
        if leading[0] == examples and leading[1:2] != (examples,):
            pass
        elif leading[0] > 1 and leading[0] != examples and leading[1:2] == (examples,):
            x, g = x.transpose(0, 1), g.transpose(0, 1)  # time comes first
        elif not (len(leading) == 1 and leading[0] % examples == 0 and may_be_flat):
            return None
        elif self._has_time_first or not self._has_batch_first:
            return None  # examples and time in one dimension, in an order that was not seen
        parts = min(PARTS, examples)
        rows = x.shape[0] // examples * (examples // parts)  # of a part; the rest is left out
        shape = (parts, rows)
        x = x[: parts * rows].unflatten(0, shape)
        g = g[: parts * rows].unflatten(0, shape)
        found = gradients(module, x, g)
        if found is None:
            return None
        by_part, share = found  # the share of the layer's units
        by_part = by_part.flatten(1).float()
        whole = by_part.sum(0).square().sum() / share
        return whole, by_part.square().sum(1) / share

    def _units(self, count: int) -> slice:
        """Return evenly spaced output units, others in each step."""
        step = -(-count // _UNITS)
        return slice(self._turn % step, None, step)

    def _linear(self, module: Any, x: Any, g: Any) -> Any:
        width = g.shape[-1]
        g = g[..., self._units(width)].flatten(1, -2)
        found = g.transpose(1, 2) @ x.flatten(1, -2).to(g.dtype)
        return found, g.shape[-1] / width

    def _convolution(self, module: Any, x: Any, g: Any) -> Any:
        if module.groups != 1 or module.padding_mode != "zeros" or isinstance(module.padding, str):
            return None
        units = self._units(g.shape[2])
        g = g[:, :, units]
        weight = module.weight.detach()[units].to(g.dtype)
        backward = self._torch.ops.aten.convolution_backward
        settings = (module.stride, module.padding, module.dilation, False)
        zeros, mask = [0] * len(module.padding), [False, True, False]
        found = [
            backward(g_of, x_of.to(g.dtype), weight, None, *settings, zeros, 1, mask)[1]
            for x_of, g_of in zip(x, g)
        ]
        return self._torch.stack(found), g.shape[2] / module.out_channels

    def _embedding(self, module: Any, ids: Any, g: Any) -> Any:
        if module.max_norm is not None or module.scale_grad_by_freq or module.sparse:
            return None
        g = g[..., self._units(g.shape[-1])].float()
        if module.padding_idx is not None:
            g = g * (ids != module.padding_idx).unsqueeze(-1)
        used, places = ids.unique(return_inverse=True)
        parts = self._torch.arange(len(ids), device=ids.device)
        places = places.flatten(1) + len(used) * parts.unsqueeze(1)
        found = g.new_zeros((len(ids) * len(used), g.shape[-1]))
        found.index_add_(0, places.flatten(), g.reshape(-1, g.shape[-1]))
        return found.unflatten(0, (len(ids), len(used))), g.shape[-1] / module.embedding_dim


def _is_transposed_linear(module: Any) -> bool:
    """Whether it is the linear layer of GPT-2 in Transformers, whose weight is transposed."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"


def _saves_elsewhere(torch: Any) -> bool:
    """Whether what is saved for the backward pass goes elsewhere: checkpointing, offloading."""
    top = getattr(torch._C._autograd, "_top_saved_tensors_default_hooks", None)
    if top is None:
        return False
    try:
        return top(True) is not None
    except TypeError:  # before torch 2.4
        return top() is not None


def _is_autocast(torch: Any, x: Any) -> bool:
    try:
        return bool(torch.is_autocast_enabled(x.device.type))
    except TypeError:  # before torch 2.4
        return bool(torch.is_autocast_enabled())
