"""Gradient statistics of sampled steps, from which the parent estimates the noise scale.

Of a step with several micro-batches, on this process or on the ranks of DistributedDataParallel,
the squared norms of each micro-batch's gradient and of their sum are sent (McCandlish et al. 2018,
arXiv 1812.06162, appendix A.1). Both are taken at the end of a backward pass, before gradients are
unscaled or clipped. Hooks are there during a sampled step only.
"""

from __future__ import annotations

from typing import Any, Callable

_FIRST = 3  # the first sampled update; the optimizer has no state before the first one
_EVERY, _SHARE = 10, 0.1  # updates between two samples: at least, and as a share of those so far


class Noise:
    """Samples updates; `is_shared` returns whether other ranks train the same model."""

    def __init__(
        self, torch: Any, send: Callable[..., None], is_shared: Callable[[], bool]
    ) -> None:
        self._torch, self._send, self._is_shared = torch, send, is_shared
        self._updates, self._next = 0, _FIRST
        self._parameters: list[Any] = []
        self._handles: list[Any] = []
        self._norms: list[Any] = []  # of every parameter's gradient in the current micro-batch
        self._parts: list[tuple[Any, int | None]] = []
        self._whole: Any = None
        self._is_refused = False

    def refuse(self, reason: str) -> None:
        """Sample nothing any more, for a reason that is reported."""
        if not self._is_refused:
            self._is_refused = True
            self._send(event="no_noise", reason=reason)
        self._release()

    def before_backward(self) -> None:
        """A hook on each parameter gets this micro-batch's gradient alone, before it is added."""
        is_due = self._updates >= self._next and not self._is_refused
        if is_due and not self._handles:
            self._handles = [p.register_hook(self._on_gradient) for p in self._parameters]

    def after_backward(self, examples: int | None) -> None:
        """Record a micro-batch and the gradient so far, which DDP has reduced."""
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
        """Send what was recorded for this update."""
        if not self._parameters or self._handles:
            groups = optimizer.param_groups
            self._parameters = [p for g in groups for p in g["params"] if p.requires_grad]
        parts, whole = self._parts, self._whole
        if not self._handles:
            return
        self._next = self._updates + max(_EVERY, int(_SHARE * self._updates))
        self._release()
        if len(parts) == 1 and not self._is_shared():
            self.refuse("it has one micro-batch per step on one device")
        elif parts and whole is not None:
            squares = self._torch.stack([square for square, _ in parts]).tolist()
            sizes = [examples for _, examples in parts]
            self._send(
                event="noise",
                update=self._updates,
                whole=float(whole),
                parts=list(zip(squares, sizes)),
            )

    def after_update(self) -> None:
        """Count the update."""
        self._updates += 1

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
        self._handles, self._norms, self._parts, self._whole = [], [], [], None
