"""The batch size and the delay that `bench serve` found, as settings of other servers.

This engine starts a batch as soon as the model is free, with what waits, and drops what would be
late. Triton, BentoML and Ray Serve do the same with a delay of 0 and these limits.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rightbatch._errors import UsageError
from rightbatch._serve.models.onnx_providers import providers_of
from rightbatch._serve.redaction import printable

if TYPE_CHECKING:
    from rightbatch._serve.models.protocol import Model

Target = Literal["triton", "bentoml", "ray"]
FILES: dict[Target, str] = {
    "triton": "config.pbtxt",
    "bentoml": "service.py",
    "ray": "deployment.py",
}
TARGETS = ", ".join(FILES)  # for messages
_GPUS = ("cuda", "tensorrt", "migraphx")  # devices that are a GPU to Triton and Ray
_ACCELERATORS = {  # of Triton's backend for ONNX Runtime
    "tensorrt": 'gpu_execution_accelerator [ { name: "tensorrt" } ]',
    "openvino": 'cpu_execution_accelerator [ { name: "openvino" } ]',
}


@dataclass(frozen=True)
class BatchSettings:
    """What other servers are told; times in seconds.

    `model` is a path of an `.onnx` file or `file.py:function`. `queue_seconds` is the longest that
    a request may wait: the target less a batch of the largest size. `is_fixed` if the model takes
    batches of `batch_size` only, `is_declared` if its file says so. `by_image` has for each output
    of an `.onnx` file whether its first axis is that of the images. `reason` says where the numbers
    are from, in one line.
    """

    model: str
    batch_size: int
    latency: float
    queue_seconds: float
    device: str | None
    is_fixed: bool
    is_declared: bool
    by_image: tuple[bool, ...]
    reason: str


def check_export(target: Target, model: object, out: str | Path | None, device: str | None) -> Path:
    """Return the file that `write_export` will write, before the model is opened.

    Raises:
        UsageError: if there is no such target, it has no form for this model or device, `out` is
            missing, or the file exists.
    """
    if target not in FILES:
        raise UsageError(f"--export takes {TARGETS}; got {target!r}")
    text = str(model)
    is_function = text.rpartition(":")[0].endswith(".py")
    if not (_is_onnx(text) or (is_function and target != "triton")):
        kinds = "an .onnx file" if target == "triton" else "an .onnx file or file.py:FUNCTION"
        raise UsageError(f"--export {target} takes {kinds}, got {text}; export the model to ONNX")
    if out is None:
        raise UsageError(f"--export {target} requires --out DIR")
    if (device or "").partition(":")[2] not in ("", "0"):
        raise UsageError(
            f"--export writes settings for the first GPU, got --device {device}; set "
            "CUDA_VISIBLE_DEVICES and leave out the number"
        )
    file = Path(out) / FILES[target]
    if file.exists():
        raise UsageError(f"{file} exists, and is not overwritten; choose another --out")
    return file


def check_batches(target: Target, served: Model) -> None:
    """Check that the server forms batches as this model takes them.

    Raises:
        UsageError: if it does not.
    """
    from rightbatch._serve.models.adapters import TorchModel

    size = min(served.sizes or (1,))
    if size > 1:
        raise UsageError(
            f"--export {target} has no form for {served.name}, which takes batches of {size} only, "
            "since these servers do not pad them; export it to ONNX with a dynamic batch"
        )
    if isinstance(served, TorchModel):
        raise UsageError(
            f"--export {target} takes a function, and {served.name} is a torch module; write a "
            "function that runs it on a list of images"
        )
    if target == "triton" and is_batch_dynamic(served) and not all(by_image(served)):
        raise UsageError(
            f"--export triton has no form for {served.name}: an output has a row for each "
            "detection, and Triton takes the first axis for that of the images; export it to ONNX "
            "with a fixed batch of 1, or use --export bentoml or ray"
        )


def by_image(served: Model) -> tuple[bool, ...]:
    """Return for each output of an ONNX model whether its first axis is that of the images."""
    return tuple(getattr(served, "by_image", ()))


def is_batch_dynamic(served: Model) -> bool:
    """Return whether the file declares a dynamic batch, whatever the model takes."""
    return bool(getattr(served, "is_batch_dynamic", False))


@contextmanager
def open_folder(folder: Path) -> Iterator[None]:
    """Create a folder for files to be written in the block; remove it if it stays empty.

    Raises:
        UsageError: if it cannot be created, or no file can be written there.
    """
    made: list[Path] = []
    try:
        made = [one for one in (folder, *folder.parents) if not one.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--out {folder} cannot be written: {reason}") from None
    try:
        yield
    finally:
        for one in made:
            with suppress(OSError):  # not empty
                one.rmdir()


def write_export(target: Target, settings: BatchSettings, file: Path) -> None:
    """Write the settings.

    Raises:
        UsageError: if the file cannot be written.
    """
    text = {"triton": triton, "bentoml": bentoml, "ray": ray}[target](settings)
    try:
        with file.open("x", encoding="utf-8") as opened:
            opened.write(text)
    except OSError as error:
        raise UsageError(f"{file} cannot be written: {error.strerror}") from None


def triton(settings: BatchSettings) -> str:
    """Return a `config.pbtxt` for a folder of any name.

    Triton completes the inputs and outputs from the file; where that declares a dynamic batch, it
    takes a size of 0 for one that is not given, and sets it to 4.
    """
    has_batches = not (settings.is_fixed and settings.is_declared)
    kind = "KIND_GPU" if settings.device in _GPUS else "KIND_CPU"
    lines = [
        f"# {printable(settings.reason)}",
        'backend: "onnxruntime"',
        f"max_batch_size: {settings.batch_size if has_batches else 0}",
        "instance_group [ { count: 1 kind: " + kind + " } ]",
    ]
    if settings.device in _ACCELERATORS:
        accelerator = _ACCELERATORS[settings.device]
        lines.append("optimization { execution_accelerators { " + accelerator + " } }")
    if not settings.is_fixed:
        wait = _floor(1e6 * settings.queue_seconds)
        lines += [
            "dynamic_batching {",
            "  max_queue_delay_microseconds: 0",
            "  default_queue_policy {",
            "    timeout_action: REJECT",
            f"    default_timeout_microseconds: {wait}",
            "  }",
            "}",
        ]
    return "\n".join(lines) + "\n"


def bentoml(settings: BatchSettings) -> str:
    """Return the source of a BentoML service."""
    annotation = "np.ndarray" if _is_onnx(settings.model) else "list"
    return f"""# {printable(settings.reason)}

{_imports(settings)}
import bentoml


@bentoml.service(workers=1)
class Model:
    def __init__(self):
{_load(settings)}
    @bentoml.api(
        batchable=True,
        max_batch_size={settings.batch_size},
        max_latency_ms={_floor(1000 * settings.latency)},
    )
    def predict(self, images: {annotation}) -> list:
{_run(settings)}"""


def ray(settings: BatchSettings) -> str:
    """Return the source of a Ray Serve deployment."""
    size = settings.batch_size
    options, note = f"max_ongoing_requests={2 * size}", ""
    if settings.device in _GPUS:
        options += ', ray_actor_options={"num_gpus": 1}'
    elif settings.device is None:
        note = '# A model on a GPU needs ray_actor_options={"num_gpus": 1} here.\n'
    return f"""# {printable(settings.reason)}

import asyncio
{_imports(settings)}
from ray import serve


# One batch runs while the next one fills up; the default of 5 requests would be the largest batch.
{note}@serve.deployment({options})
class Model:
    def __init__(self):
{_load(settings)}
    @serve.batch(max_batch_size={size}, batch_wait_timeout_s=0.0)
    async def predict(self, images: list) -> list:
        return await asyncio.to_thread(self.run, images)

    def run(self, images: list) -> list:
{_run(settings)}
    async def __call__(self, image):
        return await self.predict(image)


app = Model.bind()
"""


def _imports(settings: BatchSettings) -> str:
    if _is_onnx(settings.model):
        return "\nimport numpy as np\nimport onnxruntime"
    return "import importlib.util\nimport sys\n"


def _load(settings: BatchSettings) -> str:
    if _is_onnx(settings.model):
        first, *others = providers_of([settings.device or "cpu"])
        lines = [
            "self.session = onnxruntime.InferenceSession(",
            f"    {_path(settings.model)},",
            f"    providers={[first, *others]},",
            ")",
        ]
        if others:
            lines += [
                f"if self.session.get_providers()[0] != {first!r}:",
                f'    raise RuntimeError("ONNX Runtime cannot use {first} here")',
            ]
    else:
        file, _, function = settings.model.rpartition(":")
        lines = [
            f"file = {_path(file)}",
            f"sys.path.insert(0, {str(Path(file).expanduser().resolve().parent)!r})",
            'spec = importlib.util.spec_from_file_location("_model", file)',
            "module = importlib.util.module_from_spec(spec)",
            'sys.modules["_model"] = module',
            "spec.loader.exec_module(module)",
            f"self.function = getattr(module, {function!r})",
        ]
    return _indented(lines)


def _run(settings: BatchSettings) -> str:
    if not _is_onnx(settings.model):
        return _indented(["return list(self.function(list(images)))"])
    lines = [
        "# each image is an array as the model takes it, without the batch axis",
        "name = self.session.get_inputs()[0].name",
    ]
    if not settings.is_fixed:
        lines += [
            "outputs = self.session.run(None, {name: np.stack(list(images))})",
            "return [list(row) for row in zip(*outputs, strict=True)]",
        ]
    else:
        lines += [
            "results = []",
            "for image in images:  # the model takes batches of 1 only",
            "    outputs = self.session.run(None, {name: np.stack([image])})",
            f"    rows = zip(outputs, {settings.by_image}, strict=True)",
            "    results.append([one[0] if is_row else one for one, is_row in rows])",
            "return results",
        ]
    return _indented(lines)


def _indented(lines: list[str]) -> str:
    return "".join(f"        {line}\n" for line in lines)


def _path(path: str) -> str:
    return repr(str(Path(path).expanduser().resolve()))


def _is_onnx(model: str) -> bool:
    return model.lower().endswith(".onnx")


def _floor(number: float) -> int:
    return max(1, math.floor(number + 1e-6))
