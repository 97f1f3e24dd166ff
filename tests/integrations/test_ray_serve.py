"""The engine in replicas of a real Ray Serve on this machine, asked over HTTP and by handles."""

from __future__ import annotations

import io
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

import rightbatch as rb
from rightbatch._errors import LateError

pytest.importorskip("ray")
pytest.importorskip("starlette")
Pillow = pytest.importorskip("PIL.Image")

pytestmark = [
    pytest.mark.slow,
    # Ray's own: pydantic 2.14's names, files of its subprocesses and sockets that it leaves
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

# Their times are long beside what a request costs a busy machine, on its way through Ray's proxy.
MODEL = """
import time
from pathlib import Path

def means(images):
    time.sleep(0.2)  # whatever the batch: a model that gains from large ones
    return [{"mean": image.mean((0, 1)), "height": len(image)} for image in images]

def slow(images):
    time.sleep(0.25 * len(images))
    return [None] * len(images)

def held(images):
    while Path(__file__).with_name("hold").exists():
        time.sleep(0.01)
    return [None] * len(images)
"""
PATIENCE = 240.0  # seconds that a busy machine may need to start a replica or to end one


class Answer(NamedTuple):
    status: int
    headers: Any
    content: dict[str, Any]


class Site(NamedTuple):
    """A Ray that serves: where, and how it is asked."""

    url: str
    handle: Any

    def ask(
        self, path: str, body: bytes | None = None, method: str | None = None, **headers: str
    ) -> Answer:
        request = urllib.request.Request(self.url + path, body, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as response:
                return Answer(response.status, response.headers, json.load(response))
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, error.headers, json.load(error))


def picture(height: int = 20, value: int = 100) -> NDArray[np.uint8]:
    image = np.full((height, 30, 3), value, np.uint8)
    image[..., 0] = 7
    return image


def png(image: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Pillow.fromarray(image).save(file, "PNG")
    return file.getvalue()


def free_port() -> int:
    """One below those that a system gives to whoever asks for any: nobody else takes it."""
    for port in random.Random().sample(range(20_000, 30_000), 100):
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise AssertionError("a hundred ports are in use")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "model.py"
    path.write_text(MODEL)
    return path


@pytest.fixture(scope="module")
def site(file: Path, ray_token: Path) -> Iterator[dict[str, Site]]:
    """Applications of one Ray: `means`, which batches, and `slow`, which soon is late."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_AUTH_MODE", raising=False)
        patch.delenv("RAY_AUTH_TOKEN", raising=False)
        patch.setenv("RAY_AUTH_TOKEN_PATH", str(ray_token))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        import ray
        from ray import serve

        from rightbatch.integrations.ray import deployment

        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
        port = free_port()
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": port})
            sites = {}
            # The target of `means` is far above its 0.2 s, so that a busy machine refuses nothing.
            for name, token_of_it, latency in (
                ("means", None, "5s"),
                ("slow", "secret", "750ms"),
            ):
                application = deployment(
                    f"{file}:{name}",
                    latency,
                    ray_actor_options={"num_cpus": 0.5},
                    token=token_of_it,
                )
                handle = serve.run(application, name=name, route_prefix=f"/{name}")
                sites[name] = Site(f"http://127.0.0.1:{port}/{name}", handle)
            yield sites
        finally:
            serve.shutdown()
            ray.shutdown()


def test_an_image_that_is_posted_gets_its_result(site: dict[str, Site]) -> None:
    answer = site["means"].ask("/predict", png(picture()))
    assert answer.status == 200
    assert answer.content["result"] == {"mean": [7.0, 100.0, 100.0], "height": 20}
    assert answer.content["batch_size"] == 1
    assert answer.headers["Content-Type"] == "application/json"


def test_a_handle_gives_the_result_of_an_array(site: dict[str, Site]) -> None:
    result = site["means"].handle.remote(picture(9)).result()
    assert result["height"] == 9
    assert np.allclose(result["mean"], [7, 100, 100])


def test_what_comes_together_runs_together_and_each_gets_its_own(site: dict[str, Site]) -> None:
    site["means"].ask("/predict", png(picture()))  # it is calibrated from now on
    heights = range(10, 34)
    sizes = []
    for _ in range(5):
        with ThreadPoolExecutor(len(heights)) as pool:
            bodies = [png(picture(height)) for height in heights]
            answers = list(pool.map(lambda body: site["means"].ask("/predict", body), bodies))
        for height, answer in zip(heights, answers, strict=True):
            assert answer.status in (200, 503)
            if answer.status == 200:
                assert answer.content["result"]["height"] == height
                sizes.append(answer.content["batch_size"])
    assert max(sizes) > 5, "Ray lets five requests into a replica, if it is not told otherwise"


def test_what_would_be_late_is_refused_and_told_when_to_come_again(site: dict[str, Site]) -> None:
    slow = site["slow"]
    bearer = {"Authorization": "Bearer secret"}
    first = slow.ask("/predict", png(picture()), **bearer)
    assert first.status in (200, 503)  # late on a busy machine; it has been called all the same
    with ThreadPoolExecutor(20) as pool:
        asked = [pool.submit(slow.ask, "/predict", png(picture()), **bearer) for _ in range(20)]
        answers = [one.result() for one in asked]
    refused = [answer for answer in answers if answer.status == 503]
    assert {answer.status for answer in answers} <= {200, 503}
    assert len(refused) >= 10
    for answer in refused:
        assert int(answer.headers["Retry-After"]) >= 1
        assert answer.content["cause"] in ("refused", "late")


def test_a_handle_raises_what_was_refused(site: dict[str, Site]) -> None:
    slow = site["slow"].handle
    with suppress(LateError):  # on a busy machine; it has been called then all the same
        slow.remote(picture()).result()
    waiting = [slow.remote(picture()) for _ in range(20)]
    refused: list[LateError] = []
    for one in waiting:
        try:
            one.result()
        except LateError as error:
            refused.append(error)
    assert len(refused) >= 10
    # Ray raises an error of both kinds, whose own `cause` is what the replica raised
    causes = [error.cause for error in refused]
    assert all(isinstance(cause, LateError) for cause in causes)
    assert {getattr(cause, "cause", None) for cause in causes} <= {"refused", "late"}


def test_health_needs_no_token_and_images_do_where_one_is_set(site: dict[str, Site]) -> None:
    health = site["slow"].ask("/health")
    assert health.status == 200
    assert health.content == {"model": "slow", "state": "serving"}
    assert site["slow"].ask("/predict", png(picture())).status == 401
    wrong = site["slow"].ask("/predict", png(picture()), Authorization="Bearer public")
    assert wrong.status == 401


def test_other_names_of_the_host_and_pages_of_other_sites_are_refused(
    site: dict[str, Site],
) -> None:
    image = png(picture())
    assert site["means"].ask("/health", Host="rebound.example").status == 400
    assert site["means"].ask("/predict", image, Host="rebound.example").status == 400
    assert site["means"].ask("/predict", image, Origin="http://evil.example").status == 403
    assert site["means"].ask("/predict", image).status == 200


@pytest.mark.parametrize(
    ("path", "body", "method", "status"),
    [
        ("/predict", b"no image", "POST", 415),
        ("/predict", b"", "POST", 415),
        (
            "/predict",
            png(np.random.default_rng(0).integers(0, 255, (90, 90, 3), np.uint8))[:9000],
            "POST",
            422,
        ),
        ("/predict", bytes(33 * 2**20), "POST", 413),
        ("/predict", None, "GET", 405),
        ("/elsewhere", None, "GET", 404),
    ],
)
def test_what_is_no_image_is_refused(
    site: dict[str, Site], path: str, body: bytes | None, method: str, status: int
) -> None:
    answer = site["means"].ask(path, body, method)
    assert answer.status == status
    assert answer.content["error"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(
    site: dict[str, Site],
) -> None:
    bomb = io.BytesIO()
    Pillow.new("1", (20_000, 20_000)).save(bomb, "PNG")
    assert bomb.tell() < 2**20
    assert site["means"].ask("/predict", bomb.getvalue()).status == 413


def test_what_is_no_image_is_refused_by_a_handle(site: dict[str, Site]) -> None:
    with pytest.raises(rb.UsageError, match=r"H×W×3 uint8 RGB array, got float32 \(2, 2, 3\)"):
        site["means"].handle.remote(np.zeros((2, 2, 3), np.float32)).result()


def test_where_ray_serves_already_nothing_is_taken_down_and_nothing_opened(
    site: dict[str, Site], file: Path
) -> None:
    from rightbatch.integrations.ray._serve import serve_on_ray

    port, shown = free_port(), []
    with pytest.raises(rb.UsageError, match=r"runs already \(applications: means, slow\)"):
        serve_on_ray(f"{file}:means", 0.5, port=port, show=shown.append)
    assert shown == []
    assert site["means"].ask("/predict", png(picture())).status == 200
    assert site["slow"].ask("/health").status == 200
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)


def test_serving_on_ray_ends_when_it_is_told_to(site: dict[str, Site], file: Path) -> None:
    # from here on in this file Ray Serve is down; a Ray that it did not start is left
    import ray
    from ray import serve

    from rightbatch.integrations.ray._serve import serve_on_ray

    serve.shutdown()
    stop, shown, port = threading.Event(), [], free_port()
    is_up = threading.Event()

    def show(text: str) -> None:
        shown.append(text)
        is_up.set()

    thread = threading.Thread(
        target=serve_on_ray,
        args=(f"{file}:means", 30.0),
        kwargs={
            "port": port,
            "show": show,
            "stop": stop,
            "ray_actor_options": {"num_cpus": 0.5},
        },
    )
    thread.start()
    try:
        assert is_up.wait(PATIENCE)
        answer = Site(f"http://127.0.0.1:{port}", None).ask("/predict", png(picture()))
        assert answer.status == 200
    finally:
        stop.set()
        thread.join(PATIENCE)
    assert shown == [f"serving on Ray: POST images to http://127.0.0.1:{port}/predict"]
    assert not thread.is_alive()
    assert ray.is_initialized()
    with suppress(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5)
        pytest.fail("it still answers")


def test_a_replica_that_cannot_start_is_wrong_use_and_says_why(
    site: dict[str, Site], file: Path
) -> None:
    import ray
    from ray import serve

    from rightbatch.integrations.ray._serve import serve_on_ray

    serve.shutdown()
    mistyped = file.with_name("modle.py")
    with pytest.raises(
        rb.UsageError, match=r"could not start the application: .*no file .*modle\.py"
    ):
        serve_on_ray(
            f"{mistyped}:means", 0.5, port=free_port(), ray_actor_options={"num_cpus": 0.5}
        )
    assert ray.is_initialized()
    assert not serve.status().applications


def test_a_latency_that_is_none_is_refused_before_ray_is_asked() -> None:
    from rightbatch.integrations.ray import deployment

    with pytest.raises(rb.UsageError, match="is not a duration"):
        deployment("model.py:means", "soon")


def test_sigterm_finishes_what_was_accepted(file: Path, ray_token: Path) -> None:
    """The command itself, in a process of its own, with a model that waits for the test."""
    port, hold = free_port(), file.with_name("hold")
    command = [sys.executable, "-m", "rightbatch", "serve", f"{file}:held", "--latency", "60s"]
    environment = os.environ | {"RAY_AUTH_TOKEN_PATH": str(ray_token), "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--on", "ray", "--http", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
    ) as process:
        try:
            assert process.stdout is not None
            assert any("POST images to" in line for line in process.stdout)
            drain = threading.Thread(target=process.stdout.read)
            drain.start()
            one = Site(f"http://127.0.0.1:{port}", None)
            assert one.ask("/predict", png(picture())).status == 200  # calibrates
            hold.touch()
            with ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(one.ask, "/predict", png(picture())) for _ in range(12)]
                time.sleep(3)  # until they are accepted, which nobody tells
                process.terminate()
                time.sleep(1)
                assert process.poll() is None, "it waits for what was accepted"
                assert not any(answer.done() for answer in asked)
                hold.unlink()
                assert [answer.result().status for answer in asked] == [200] * 12
            assert process.wait(PATIENCE) == 0
            drain.join(PATIENCE)
        finally:
            hold.unlink(missing_ok=True)
            process.kill()
