"""The settings that `bench serve --export` writes: parsed, compiled and run."""

from __future__ import annotations

import asyncio
import gc
import importlib
import importlib.util
import re
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest

from rightbatch._errors import NothingFitsError, UsageError, WorkloadError
from rightbatch._serve.engine.calibration import Calibration
from rightbatch._serve.load import bench as benching
from rightbatch._serve.load.bench import BenchResult, bench
from rightbatch._serve.load.export import FILES, Target

TARGETS = get_args(Target)
MODEL = """
import torch
import beside
from dataclasses import dataclass


@dataclass
class Mean:
    value: "float"


def means(images):
    return [Mean(beside.mean(image)).value for image in images]


network = torch.nn.Identity()
"""


def result(
    device: str | None = "cpu", sizes: tuple[int, ...] | None = None, name: str = "m"
) -> BenchResult:
    size = sizes[0] if sizes else 8
    calibration = Calibration(
        latency=0.1,
        samples={1: [0.01], size: [0.04] * 3},
        stopped_by="latency",
        largest_batch=size,
        items_per_second=200.0,
        one_by_one=100.0,
        cameras=19,
        camera_rate=10.0,
        requests_per_second=180.0,
    )
    rate: Any = SimpleNamespace(rate=180.0)
    return BenchResult(name, 0.1, calibration, 10.0, {"poisson": (rate, rate)}, device, sizes)


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "beside.py").write_text("def mean(image):\n    return float(image.mean())\n")
    (tmp_path / "model.py").write_text(MODEL)
    return f"{tmp_path / 'model.py'}:means"


def onnx_model(path: Path, batch: int | str = "N", *, has_detections: bool = False) -> str:
    """Write a file whose outputs are the input, and the places of all bright values if asked."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    value, node = onnx.helper.make_tensor_value_info, onnx.helper.make_node
    nodes, outputs = [node("Identity", ["x"], ["y"])], [value("y", 1, [batch, 3, 4, 4])]
    if has_detections:
        nodes += [
            node("Greater", ["x", "t"], ["g"]),
            node("NonZero", ["g"], ["nz"]),
            node("Transpose", ["nz"], ["places"], perm=[1, 0]),
        ]
        outputs.append(value("places", onnx.TensorProto.INT64, ["K", 4]))
    graph = onnx.helper.make_graph(
        nodes,
        "g",
        [value("x", 1, [batch, 3, 4, 4])],
        outputs,
        [onnx.numpy_helper.from_array(np.float32(0.7), "t")],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    onnx.save(onnx.helper.make_model(graph, ir_version=8, opset_imports=opset), path)
    return str(path)


@pytest.fixture
def onnx_file(tmp_path: Path) -> str:
    return onnx_model(tmp_path / "m.onnx")


def exported(
    monkeypatch: pytest.MonkeyPatch, model: str, target: Any, out: Path, **options: Any
) -> str:
    """Run `bench` with loads that are over at once."""
    monkeypatch.setattr(benching, "_bench", lambda *_: result(**options))
    bench(model, "100ms", export=target, out=out, progress=False)
    return (out / FILES[target]).read_text(encoding="utf-8")


def parsed(text: str) -> dict[str, Any]:
    """Protobuf's text format, as far as Triton's files use it."""
    tokens = re.findall(r'"(?:[^"\\]|\\.)*"|[\w.]+|[{}\[\]:]', re.sub(r"#.*", "", text))

    def message(until: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        while tokens and tokens[0] != until:
            name = tokens.pop(0)
            assert name.isidentifier()
            if tokens[0] == ":":
                tokens.pop(0)
                found[name] = tokens.pop(0)
                assert found[name] not in "{}[]:"
            else:
                assert tokens[0] in "{["
                is_list = tokens.pop(0) == "["
                assert not is_list or tokens.pop(0) == "{"
                found[name] = message("}")
                assert tokens.pop(0) == "}"
                assert not is_list or tokens.pop(0) == "]"
        return found

    found = message("")
    assert not tokens
    return found


def test_triton_gets_the_batch_and_rejects_what_would_be_late(
    monkeypatch: pytest.MonkeyPatch, onnx_file: str, tmp_path: Path
) -> None:
    found = parsed(exported(monkeypatch, onnx_file, "triton", tmp_path / "out"))
    assert "name" not in found  # Triton takes the folder's
    assert found["max_batch_size"] == "8"
    assert found["instance_group"] == {"count": "1", "kind": "KIND_CPU"}
    batching = found["dynamic_batching"]
    assert batching["max_queue_delay_microseconds"] == "0"
    policy = batching["default_queue_policy"]
    assert policy["timeout_action"] == "REJECT"
    assert int(policy["default_timeout_microseconds"]) == pytest.approx(60_000, abs=5_000)


@pytest.mark.parametrize("device", [None, "cpu", "cuda", "tensorrt", "openvino", "coreml"])
def test_triton_runs_on_a_gpu_only_where_the_measurement_did(
    monkeypatch: pytest.MonkeyPatch, onnx_file: str, tmp_path: Path, device: str | None
) -> None:
    found = parsed(exported(monkeypatch, onnx_file, "triton", tmp_path / "out", device=device))
    kind = "KIND_GPU" if device in ("cuda", "tensorrt") else "KIND_CPU"
    assert found["instance_group"]["kind"] == kind
    assert ("optimization" in found) == (device in ("tensorrt", "openvino"))
    if device == "openvino":
        accelerators = found["optimization"]["execution_accelerators"]
        assert accelerators == {"cpu_execution_accelerator": {"name": '"openvino"'}}


@pytest.mark.parametrize(("batch", "size"), [(1, "0"), ("N", "1")])
def test_triton_forms_no_batches_of_a_model_that_takes_one_image(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int | str, size: str
) -> None:
    """A size of 0 is completed by Triton where the file declares a dynamic batch."""
    file = onnx_model(tmp_path / "m.onnx", batch)
    found = parsed(exported(monkeypatch, file, "triton", tmp_path / "out", sizes=(1,)))
    assert found["max_batch_size"] == size
    assert "dynamic_batching" not in found


def stand_in(monkeypatch: pytest.MonkeyPatch, framework: str, *decorators: str) -> dict[str, Any]:
    """Install a module of decorators that record their arguments; return these by name."""
    calls: dict[str, Any] = {}

    def recorder(name: str) -> Callable[..., Any]:
        def decorator(**options: Any) -> Any:
            calls[name] = options
            return lambda decorated: decorated

        return decorator

    module: Any = ModuleType(framework)
    for name in decorators:
        setattr(module, name, recorder(name))
    monkeypatch.setitem(sys.modules, framework, module)
    return calls


def ray_stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """Install what the exported file uses of Ray Serve, for machines without it."""

    class Deployment:
        def __init__(self, func_or_class: Any, options: dict[str, Any]) -> None:
            self.func_or_class = func_or_class
            self.max_ongoing_requests = options["max_ongoing_requests"]
            self.ray_actor_options = options.get("ray_actor_options", {})

        def bind(self) -> Deployment:
            return self

    def batch(**options: Any) -> Callable[[Any], Any]:
        def decorate(function: Any) -> Any:
            async def one(self: Any, item: Any) -> Any:
                [result] = await function(self, [item])
                return result

            made: Any = one
            made._get_max_batch_size = lambda: options["max_batch_size"]
            made._get_batch_wait_timeout_s = lambda: options["batch_wait_timeout_s"]
            return made

        return decorate

    module: Any = ModuleType("ray")
    module.serve = SimpleNamespace(
        deployment=lambda **options: lambda decorated: Deployment(decorated, options), batch=batch
    )
    monkeypatch.setitem(sys.modules, "ray", module)


def run_source(text: str) -> dict[str, Any]:
    scope: dict[str, Any] = {"__name__": "written"}
    exec(compile(text, "written.py", "exec"), scope)
    return scope


@pytest.fixture
def ray_serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ray Serve without a cluster: its own decorators where it is installed, else a stand-in."""
    if importlib.util.find_spec("ray") is None:
        ray_stand_in(monkeypatch)
        yield
        return
    with warnings.catch_warnings(action="ignore"):  # Ray's, about pydantic
        serve = importlib.import_module("ray.serve")
    config = SimpleNamespace(max_ongoing_requests=100)
    context = SimpleNamespace(_deployment_config=config)  # of a replica
    monkeypatch.setattr(serve, "get_replica_context", lambda: context)
    # A queue that is collected outside a loop makes one, which nobody closes.
    batching = importlib.import_module("ray.serve.batching")
    monkeypatch.delattr(batching._BatchQueue, "__del__")
    yield
    gc.collect()


@pytest.fixture
def without_own_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the exported file find what the model imports by itself."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.delitem(sys.modules, "beside", raising=False)


@pytest.mark.usefixtures("without_own_path")
@pytest.mark.parametrize("kind", ["model", "onnx_file"])
def test_bentoml_gets_a_service_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    text = exported(monkeypatch, request.getfixturevalue(kind), "bentoml", tmp_path / "out")
    calls = stand_in(monkeypatch, "bentoml", "service", "api")
    model = run_source(text)["Model"]()
    assert calls["api"] == {"batchable": True, "max_batch_size": 8, "max_latency_ms": 100}
    images = np.random.default_rng(0).random((3, 3, 4, 4), np.float32)
    check(model.predict(images), images, kind)


async def answers(model: Any, images: Any) -> list[Any]:
    return await asyncio.gather(*[model(image) for image in images])


@pytest.mark.usefixtures("ray_serve")
@pytest.mark.usefixtures("without_own_path")
@pytest.mark.parametrize("kind", ["model", "onnx_file"])
def test_ray_serve_gets_a_deployment_that_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request: pytest.FixtureRequest, kind: str
) -> None:
    text = exported(monkeypatch, request.getfixturevalue(kind), "ray", tmp_path / "out")
    scope = run_source(text)
    deployment = scope["Model"]
    assert scope["app"] is not None
    assert deployment.max_ongoing_requests == 16
    assert not deployment.ray_actor_options.get("num_gpus")
    model = deployment.func_or_class()
    assert model.predict._get_max_batch_size() == 8
    assert model.predict._get_batch_wait_timeout_s() == 0
    images = np.random.default_rng(0).random((3, 3, 4, 4), np.float32)
    check(asyncio.run(answers(model, images)), images, kind)


@pytest.mark.usefixtures("ray_serve")
@pytest.mark.parametrize("target", ["bentoml", "ray"])
def test_onnx_runs_on_the_measured_device_or_not_at_all(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, onnx_file: str, target: Target
) -> None:
    stand_in(monkeypatch, "bentoml", "service", "api")
    asked: list[Any] = []
    session = SimpleNamespace(get_providers=lambda: asked[-1])

    def open_session(file: str, *, providers: list[str]) -> Any:
        assert file == onnx_file
        asked.append(providers)
        return session

    sources = {
        device: run_source(
            exported(monkeypatch, onnx_file, target, tmp_path / device, device=device)
        )
        for device in ("cuda", "cpu")
    }
    monkeypatch.setattr("onnxruntime.InferenceSession", open_session)
    models = {
        device: getattr(scope["Model"], "func_or_class", scope["Model"])
        for device, scope in sources.items()
    }
    models["cuda"]()
    models["cpu"]()
    assert asked == [["CUDAExecutionProvider", "CPUExecutionProvider"], ["CPUExecutionProvider"]]
    session.get_providers = lambda: ["CPUExecutionProvider"]
    with pytest.raises(RuntimeError, match="cannot use CUDAExecutionProvider"):
        models["cuda"]()
    if target == "ray":
        assert sources["cuda"]["Model"].ray_actor_options["num_gpus"] == 1


@pytest.mark.usefixtures("ray_serve")
@pytest.mark.parametrize("batch", [1, "N"])
def test_detections_of_an_image_stay_together(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, batch: int | str
) -> None:
    file = onnx_model(tmp_path / "m.onnx", batch, has_detections=True)
    images = np.random.default_rng(0).random((3, 3, 4, 4), np.float32)

    def check_places(results: list[Any]) -> None:
        for (same, places), image in zip(results, images, strict=True):
            np.testing.assert_array_equal(same, image)
            np.testing.assert_array_equal(places, np.argwhere(image[None] > np.float32(0.7)))

    stand_in(monkeypatch, "bentoml", "service", "api")
    text = exported(monkeypatch, file, "bentoml", tmp_path / "out", sizes=(1,))
    check_places(run_source(text)["Model"]().predict(images))
    text = exported(monkeypatch, file, "ray", tmp_path / "out", sizes=(1,))
    model = run_source(text)["Model"].func_or_class()
    check_places(asyncio.run(answers(model, images)))
    if batch == 1:
        found = parsed(exported(monkeypatch, file, "triton", tmp_path / "out", sizes=(1,)))
        assert found["max_batch_size"] == "0"


def test_names_and_paths_with_quotes_are_kept(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder = tmp_path / 'a"""b\\n\'c\n\u2028"'
    folder.mkdir()
    file = folder / 'm"""\n\\.onnx'
    onnx_model(tmp_path / "m.onnx")
    (tmp_path / "m.onnx").rename(file)
    (folder / "mine.py").write_text("def model(images):\n    return [3 for _ in images]\n")
    stand_in(monkeypatch, "bentoml", "service", "api")
    name = 'evil"""\nraise SystemExit\r\\'
    images = np.ones((3, 3, 4, 4), np.float32)
    text = exported(monkeypatch, str(file), "bentoml", tmp_path / "1", name=name)
    check(run_source(text)["Model"]().predict(images), images, "onnx_file")
    text = exported(monkeypatch, f"{folder / 'mine.py'}:model", "bentoml", tmp_path / "2")
    assert run_source(text)["Model"]().predict(images) == [3, 3, 3]
    found = parsed(exported(monkeypatch, str(file), "triton", tmp_path / "3", name=name))
    assert found["max_batch_size"] == "8"


def check(results: list[Any], images: Any, kind: str) -> None:
    assert len(results) == 3
    for found, image in zip(results, images, strict=True):
        if kind == "model":
            assert found == pytest.approx(float(image.mean()))
        else:
            np.testing.assert_array_equal(found[0], image)


def test_what_cannot_be_exported_is_refused_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, model: str, onnx_file: str, tmp_path: Path
) -> None:
    monkeypatch.setattr(benching, "_bench", lambda *_: pytest.fail("measured"))
    (tmp_path / "config.pbtxt").write_text("mine")
    network = model.replace(":means", ":network")
    four = onnx_model(tmp_path / "four.onnx", 4)
    mixed = onnx_model(tmp_path / "mixed.onnx", has_detections=True)
    new = tmp_path / "new"
    for spec, target, out, device, said in (
        (onnx_file, "tensorrt", new, None, "takes triton, bentoml, ray; got 'tensorrt'"),
        (model, "triton", new, None, "takes an .onnx file"),
        ("yolo26n.pt", "ray", new, None, "takes an .onnx file or file.py:FUNCTION"),
        (network, "ray", new, None, "is a torch module; write a function that runs it on a list"),
        *((four, target, new, None, "with a dynamic batch") for target in TARGETS),
        (mixed, "triton", new, None, "with a fixed batch of 1, or use --export bentoml or ray"),
        (onnx_file, "ray", new, "cuda:1", "for the first GPU, got --device cuda:1"),
        (onnx_file, "triton", None, None, "requires --out DIR"),
        (onnx_file, "triton", tmp_path, None, "exists, and is not overwritten"),
        (onnx_file, "triton", Path(onnx_file) / "new", None, "cannot be written: Not a dir"),
        (onnx_file, "triton", Path(onnx_file), None, "cannot be written"),
        (onnx_file, None, tmp_path, None, "--out requires --export triton, bentoml, ray"),
    ):
        with pytest.raises(UsageError, match=said):
            bench(spec, "100ms", export=target, out=out, device=device, progress=False)  # type: ignore[arg-type]
        assert not new.exists()
    assert (tmp_path / "config.pbtxt").read_text() == "mine"


def test_a_folder_that_takes_no_files_is_refused_before_it_is_measured(
    monkeypatch: pytest.MonkeyPatch, onnx_file: str, tmp_path: Path
) -> None:
    def refuse(**_: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(benching, "_bench", lambda *_: pytest.fail("measured"))
    monkeypatch.setattr("tempfile.TemporaryFile", refuse)  # root may write everywhere
    with pytest.raises(UsageError, match="new/deep cannot be written: Permission denied"):
        bench(onnx_file, "100ms", export="triton", out=tmp_path / "new/deep", progress=False)


@pytest.mark.parametrize(
    ("body", "error", "words"),
    [
        ("raise MemoryError('of mine')", NothingFitsError, "memory at a batch of 1 (of mine)"),
        ("raise ValueError('of mine')", WorkloadError, "failed at a batch of 1: ValueError: of m"),
        ("return [0] * (len(images) + 1)", UsageError, "one result per image (1), got 2"),
    ],
)
def test_a_model_that_fails_at_one_image_ends_the_benchmark_with_its_error(
    tmp_path: Path, body: str, error: type[Exception], words: str
) -> None:
    file = tmp_path / "mine.py"
    file.write_text(f"def model(images):\n    {body}\n")
    out = tmp_path / "out"
    with pytest.raises(error, match=re.escape(words)):
        bench(f"{file}:model", "100ms", export="ray", out=out, progress=False)
    assert not out.exists()
