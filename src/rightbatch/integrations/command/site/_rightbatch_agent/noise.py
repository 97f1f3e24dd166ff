"""Gradient statistics of sampled steps, from which the parent estimates the noise scale.

Of a step with several micro-batches, on this process or on the ranks of DistributedDataParallel,
the squared norms of each micro-batch's gradient and of their sum are sent (McCandlish et al. 2018,
arXiv 1812.06162, appendix A.1). Both are taken at the end of a backward pass, before gradients are
unscaled or clipped. Of a step with one micro-batch the layers tell it (`layers`). Hooks are there
during a sampled step only.
"""

from __future__ import annotations

import time
from typing import Any, Callable

from .layers import LayerParts

_RARELY = 2e-4  # at a cost of 1%, a sample after each 2% of the updates so far
_FIRST = 3  # the first sampled update; the optimizer has no state before the first one
_EVERY = 10  # updates between two samples, at least
_MOST_EMPTY = 3  # samples without a layer, after which no more are taken


class Noise:
    """Samples updates; `is_shared` returns whether other ranks train the same model.

    Samples take about `cost`, a share of the time, at most.
    """

    def __init__(
        self,
        torch: Any,
        send: Callable[..., None],
        is_shared: Callable[[], bool],
        cost: float,
    ) -> None:
        self._cost = cost
        self._torch, self._send, self._is_shared = torch, send, is_shared
        self._updates, self._next = 0, _FIRST
        self._parameters: list[Any] = []
        self._handles: list[Any] = []
        self._norms: list[Any] = []  # of every parameter's gradient in the current micro-batch
        self._parts: list[tuple[Any, int | None]] = []
        self._whole: Any = None
        self._is_refused = False
        self._layers = LayerParts(torch, self._on_error)
        self._backwards = 0  # of the update
        self._empty = 0  # samples in which no layer could be observed
        self._updated_at = time.perf_counter()
        self._step_seconds = 0.0  # of the last step that was not sampled

    def refuse(self, reason: str) -> None:
        """Sample nothing any more, for a reason that is reported; an empty one is not."""
        if not self._is_refused:
            self._is_refused = True
            if reason:
                self._send(event="no_noise", reason=reason)
        self._release()

    def restart(self) -> None:
        """Forget the parameters: there is a new optimizer, and the model before may be gone."""
        if not self._handles:
            self._parameters = []

    def before_backward(self, examples: int | None) -> None:
        """A hook on each parameter gets this micro-batch's gradient alone, before it is added."""
        if self._layers.is_on:
            self._layers.before_backward(examples)
        elif self._is_due and not self._handles:
            self._handles = [p.register_hook(self._on_gradient) for p in self._parameters]

    def after_backward(self, examples: int | None) -> None:
        """Record a micro-batch and the gradient so far, which DDP has reduced."""
        self._backwards += 1
        if not self._handles or not self._norms:
            return
        self._parts.append((self._sum_of_squares(self._norms), examples))
        self._norms = []
        gradients = [p.grad for p in self._parameters if p.grad is not None]
        if any(gradient.is_sparse for gradient in gradients):
            self.refuse("some gradients are sparse")
        else:
            self._whole = self._sum_of_squares([self._norm(gradient) for gradient in gradients])

    def before_update(self, optimizer: Any) -> None:
        """Learn the parameters, the first time and before each sample."""
        if not self._parameters or self._handles or self._layers.is_on:
            groups = optimizer.param_groups
            self._parameters = [p for g in groups for p in g["params"] if p.requires_grad]

    def after_update(self) -> None:
        """Send what was recorded for this update, and prepare for the next one.

        Not earlier: Lightning calls the backward pass from inside of the optimizer's step.
        """
        now = time.perf_counter()
        if self._layers.is_on:
            self._send_layers()
        else:
            self._step_seconds = now - self._updated_at
            self._send_micro_batches()
        self._updates += 1
        is_alone = self._backwards == 1 and not self._is_shared()
        self._updated_at, self._backwards = now, 0
        if self._is_due and is_alone:
            self._layers.start()

    @property
    def is_sampling(self) -> bool:
        """Whether the step that has just begun is sampled."""
        return self._layers.is_on or self._is_due

    @property
    def _is_due(self) -> bool:
        return self._updates >= self._next and not self._is_refused

    def _put_off(self, seconds: float = 0.0) -> None:
        """Set the next sampled update; one has just taken `seconds` of its own."""
        least = min(_EVERY, self._updates)  # a short run has some samples as well
        rarely = _RARELY / self._cost * self._updates
        affordable = 0.0
        if self._updates > _FIRST and self._step_seconds:  # the first sample loads code as well
            affordable = seconds / (self._cost * self._step_seconds)
        self._next = self._updates + int(max(least, rarely, affordable))

    def _send_micro_batches(self) -> None:
        if not self._handles:
            return
        parts, whole = self._parts, self._whole
        self._put_off()
        self._release()
        # One micro-batch on one device: the layers are observed from the next sample on.
        if whole is not None and (len(parts) > 1 or self._is_shared()):
            squares = self._torch.stack([square for square, _ in parts]).tolist()
            sizes = [examples for _, examples in parts]
            self._send_parts(float(whole), squares, sizes)

    def _send_layers(self) -> None:
        layers, is_alone = self._layers, self._backwards == 1
        found = layers.squares()
        self._put_off(layers.seconds)
        layers.stop()
        if not is_alone:
            return  # a step of several micro-batches, among others
        if found is None:
            self._empty += 1
            if self._empty == _MOST_EMPTY:
                self.refuse(
                    "it has one micro-batch per step on one device, and no linear, convolution or "
                    "embedding layer that is used once and whose input shows the examples apart"
                )
            return
        whole, squares, size = found
        self._send_parts(float(whole), squares.tolist(), [size] * len(squares), of_layers=True)

    def _send_parts(
        self, whole: float, squares: list[float], sizes: list[Any], of_layers: bool = False
    ) -> None:
        parts = list(zip(squares, sizes))
        update = {"update": self._updates, "of_layers": of_layers}
        self._send(event="noise", whole=whole, parts=parts, **update)

    def _on_error(self, error: Exception) -> None:
        self.refuse(f"its layers could not be observed: {type(error).__name__}: {error}")

    def _on_gradient(self, gradient: Any) -> None:
        self._norms.append(self._norm(gradient))

    def _norm(self, gradient: Any) -> Any:
        values = gradient.detach()
        values = values.coalesce().values() if values.is_sparse else values
        wide = self._torch.float64 if values.dtype == self._torch.float64 else self._torch.float32
        return self._torch.linalg.vector_norm(values, dtype=wide)

    def _sum_of_squares(self, norms: list[Any]) -> Any:
        device = norms[0].device
        return self._torch.stack([norm.to(device) for norm in norms]).double().square().sum()

    def _release(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._layers.stop()
        self._handles, self._norms, self._parts, self._whole = [], [], [], None
