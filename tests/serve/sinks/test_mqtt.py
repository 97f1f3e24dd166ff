"""Lines to a real MQTT broker, which refuses, dies, comes back and never answers."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from films import PATIENCE, reserved_port, wait_for

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.sinks import mqtt
from rightbatch._serve.sinks.line import Line
from rightbatch._serve.sinks.mqtt import MqttSink, parse
from rightbatch._serve.sinks.open import open_sink
from rightbatch._serve.sinks.writer import Writer

pytest.importorskip("paho.mqtt", exc_type=ImportError)
from paho.mqtt.client import Client, MQTTMessage
from paho.mqtt.enums import CallbackAPIVersion

MOSQUITTO = shutil.which("mosquitto") or "/usr/sbin/mosquitto"
needs_broker = pytest.mark.skipif(not Path(MOSQUITTO).exists(), reason="needs mosquitto")


def line(frame: int = 0, source: str = "belt", result: Any = "fine") -> Line:
    return Line(source, frame, 1700000000.0, 12.5, 3, result)


class Broker:
    """Mosquitto on a port of its own, which can be stopped and started again.

    It writes its subscriptions and queues to disk as it stops, so that a subscriber gets later what
    the broker had acknowledged. After SIGKILL it could lose that, whatever the publisher does.
    """

    def __init__(self, folder: Path, *more: str) -> None:
        self._held = contextlib.ExitStack()
        self.port = self._held.enter_context(reserved_port())  # also while it is stopped
        self._file = folder / "mosquitto.conf"
        lines = [
            f"listener {self.port} 127.0.0.1",
            *(more or ("allow_anonymous true",)),
            "persistence true",
            f"persistence_location {folder}/",
            "max_queued_messages 0",
            f"user {'root' if os.geteuid() == 0 else os.environ.get('USER', 'nobody')}",
        ]
        self._file.write_text("\n".join(lines) + "\n")
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    def start(self) -> None:
        self.process = subprocess.Popen(
            [MOSQUITTO, "-c", str(self._file)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for(self._listens, "for mosquitto")

    def stop(self) -> None:
        if self.process is not None:
            self.process.terminate()
            self.process.wait()
            self.process = None

    def close(self) -> None:
        self.stop()
        self._held.close()

    def _listens(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "mosquitto ended"
        with socket.socket() as caller:
            return caller.connect_ex(("127.0.0.1", self.port)) == 0


class Subscriber:
    """Keeps what comes to all topics, also over a break of the broker."""

    def __init__(self, port: int) -> None:
        self.heard: list[tuple[str, Any]] = []
        self._is_there = threading.Event()
        self._client = Client(
            CallbackAPIVersion.VERSION2, client_id="subscriber", clean_session=False
        )
        self._client.reconnect_delay_set(1, 1)
        self._client.on_connect = lambda *_: self._client.subscribe("#", qos=1)
        self._client.on_subscribe = lambda *_: self._is_there.set()
        self._client.on_message = self._hear
        self._client.connect("127.0.0.1", port)
        self._client.loop_start()
        wait_for(self._is_there.is_set, "for the subscription")

    @property
    def frames(self) -> list[int]:
        return [said["frame"] for _, said in self.heard]

    def close(self) -> None:
        self._client.disconnect()
        self._client.loop_stop()

    def _hear(self, client: Client, data: Any, message: MQTTMessage) -> None:
        self.heard.append((message.topic, json.loads(message.payload)))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    yield broker
    broker.close()


@pytest.fixture
def subscriber(broker: Broker) -> Iterator[Subscriber]:
    subscriber = Subscriber(broker.port)
    yield subscriber
    subscriber.close()


@pytest.fixture
def sink(broker: Broker) -> Iterator[MqttSink]:
    sink = MqttSink(f"mqtt://127.0.0.1:{broker.port}")
    yield sink
    sink.close(0.0)


@pytest.mark.parametrize(
    ("url", "said", "topic"),
    [
        ("mqtt://host", "mqtt://host:1883", "rightbatch/belt"),
        ("mqtt://host/", "mqtt://host:1883", "rightbatch/belt"),
        ("mqtts://host:1/plant/{source}/parts", "mqtts://host:1", "plant/belt/parts"),
        ("MQTTS://host/all", "mqtts://host:8883", "all"),
        ("mqtt://[::1]/a%20b", "mqtt://[::1]:1883", "a b"),
    ],
)
def test_an_address_has_a_broker_and_a_topic_for_each_source(
    url: str, said: str, topic: str
) -> None:
    address = parse(url)
    assert str(address) == said
    assert address.topic_of("belt") == topic


def test_user_and_password_are_decoded_and_not_shown() -> None:
    address = parse("mqtt://me%40home:p%3A%2Fw@host")
    assert (address.user, address.password) == ("me@home", "p:/w")
    assert "p:/w" not in f"{address} {address!r}"


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("line 1/über", "line 1/über"),
        ("a+b#c", "a_b_c"),
        ("a\x00b\nc\ud800", "a_b_c_"),
    ],
)
def test_what_may_not_stand_in_a_topic_is_replaced(source: str, name: str) -> None:
    assert parse("mqtt://host").topic_of(source) == f"rightbatch/{name}"


def test_a_source_cannot_reach_the_brokers_own_topics() -> None:
    assert parse("mqtt://host/{source}").topic_of("$SYS/broker") == "_SYS/broker"


@pytest.mark.parametrize(
    "url",
    [
        "mqtt://",
        "mqtt://me:secret@",
        "mqtt://me:secret@host:port",
        "mqtt://me:secret@host:99999",
        "mqtt://me:secr#et@host",
        "mqtt://me:secret@ho st",
        "mqtt://me:secret@host/a/+/b",
        "mqtt://me:secret@host/a/#",
        "mqtt://me:secret@host/a?qos=2",
        "mqtt://me:secret@host/{name}",
        "mqtt://me:secret@host/{source",
        "kafka://me:secret@host",
    ],
)
def test_what_is_no_address_is_refused_without_its_password(url: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse(url)
    assert "secr" not in str(refused.value)


def test_without_paho_it_is_said_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "paho.mqtt.client", None)
    with pytest.raises(MissingExtraError, match=r"paho-mqtt is not installed.*rightbatch\[serve\]"):
        MqttSink("mqtt://host")


def test_a_broker_that_is_not_there_is_wrong_use_without_the_password() -> None:
    with reserved_port() as port, pytest.raises(UsageError) as refused:
        open_sink(f"mqtt://me:secret@127.0.0.1:{port}/topic")
    assert str(refused.value) == f"no MQTT broker at mqtt://127.0.0.1:{port}: Connection refused"


def test_a_host_that_is_none_is_wrong_use() -> None:
    with pytest.raises(UsageError, match=r"no MQTT broker at mqtt://a\.\.b:1883"):
        open_sink("mqtt://a..b")


def test_a_port_where_nobody_answers_is_wrong_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mqtt, "_CONNECT_TIMEOUT", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        began = time.monotonic()
        with pytest.raises(UsageError, match="no answer"):
            MqttSink(f"mqtt://127.0.0.1:{mute.getsockname()[1]}")
    assert time.monotonic() - began < PATIENCE


@needs_broker
def test_every_line_arrives_in_order_at_the_topic_of_its_source(
    sink: MqttSink, subscriber: Subscriber
) -> None:
    for frame in range(300):
        sink.put(line(frame, "a+b" if frame % 2 else "c"))
    assert sink.close(PATIENCE) == 0
    wait_for(lambda: len(subscriber.heard) == 300)
    assert subscriber.frames == list(range(300))
    topics = {topic for topic, _ in subscriber.heard}
    assert topics == {"rightbatch/a_b", "rightbatch/c"}
    assert subscriber.heard[1][1] == line(1, "a+b").to_dict()


@needs_broker
def test_a_broker_that_is_stopped_and_started_again_loses_no_line_that_was_queued(
    broker: Broker, sink: MqttSink, subscriber: Subscriber
) -> None:
    sink.put(line(0))
    wait_for(lambda: subscriber.frames == [0])
    broker.stop()
    wait_for(lambda: sink.error, "to be told that the broker is gone")
    for frame in range(1, 400):
        sink.put(line(frame))
    broker.start()
    assert sink.close(PATIENCE) == 0
    wait_for(lambda: len(set(subscriber.frames)) == 400)
    assert list(dict.fromkeys(subscriber.frames)) == list(range(400))


@needs_broker
def test_a_broker_that_is_stopped_while_lines_come_loses_none_of_them(
    broker: Broker, sink: MqttSink, subscriber: Subscriber
) -> None:
    writer = Writer([sink])

    def bring() -> None:
        for frame in range(400):
            writer.put(line(frame), patient=True)
            time.sleep(0.002)

    bringing = threading.Thread(target=bring)
    bringing.start()
    wait_for(lambda: len(subscriber.heard) > 50)
    broker.stop()
    time.sleep(0.2)
    broker.start()
    bringing.join()
    assert writer.close(PATIENCE) == 0
    wait_for(lambda: set(subscriber.frames) == set(range(400)))
    assert writer.status() == {"lines": 400, "left_out": 0, "error": None}


@needs_broker
def test_while_the_broker_is_away_so_many_lines_wait_and_the_end_says_how_many_are_left(
    broker: Broker, sink: MqttSink, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mqtt, "_MAX_PENDING", 10)
    writer = Writer([sink], depth=5)
    broker.stop()
    wait_for(lambda: writer.status()["error"])
    assert writer.status()["error"].startswith(f"mqtt://127.0.0.1:{broker.port}/rightbatch/")
    for frame in range(10):
        writer.put(line(frame), patient=True)
    wait_for(lambda: writer.status()["lines"] == 10)
    for frame in range(10, 100):
        writer.put(line(frame), patient=False)
    assert writer.status()["lines"] == 10
    assert writer.status()["left_out"] == 100 - 10 - 5
    began = time.monotonic()
    assert writer.close(timeout=0.3) >= 14
    assert time.monotonic() - began < PATIENCE


@needs_broker
def test_a_user_needs_the_right_password(tmp_path: Path) -> None:
    tool = shutil.which("mosquitto_passwd") or "/usr/bin/mosquitto_passwd"
    if not Path(tool).exists():
        pytest.skip("needs mosquitto_passwd")
    passwords = tmp_path / "passwords"
    subprocess.run([tool, "-b", "-c", str(passwords), "me", "p:/w"], check=True)
    broker = Broker(tmp_path, "allow_anonymous false", f"password_file {passwords}")
    try:
        with pytest.raises(
            UsageError, match=r"the broker refused the connection: Not authorized$"
        ) as refused:
            MqttSink(f"mqtt://me:wrong@127.0.0.1:{broker.port}")
        assert "wrong" not in str(refused.value)
        sink = MqttSink(f"mqtt://me:p%3A%2Fw@127.0.0.1:{broker.port}")
        sink.put(line())
        assert sink.close(PATIENCE) == 0
    finally:
        broker.close()


@needs_broker
# paho-mqtt leaves the socket of a failed handshake to the garbage collector.
@pytest.mark.filterwarnings("ignore:.*SSLSocket:pytest.PytestUnraisableExceptionWarning")
def test_an_encrypted_connection_needs_a_certificate_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subprocess.run(
        f"openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost "
        f"-addext subjectAltName=DNS:localhost -keyout {key} -out {certificate}".split(),
        check=True,
        capture_output=True,
    )
    broker = Broker(tmp_path, "allow_anonymous true", f"certfile {certificate}", f"keyfile {key}")
    try:
        with pytest.raises(UsageError, match="certificate verify failed"):
            MqttSink(f"mqtts://localhost:{broker.port}")
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        sink = MqttSink(f"mqtts://localhost:{broker.port}")
        sink.put(line())
        assert sink.close(PATIENCE) == 0
    finally:
        broker.close()
        gc.collect()  # here and not in another test, which would be blamed for that socket


@needs_broker
def test_a_broker_that_stops_answering_does_not_hold_up_the_end(
    broker: Broker, sink: MqttSink
) -> None:
    assert broker.process is not None
    broker.process.send_signal(signal.SIGSTOP)
    try:
        stopped = psutil.Process(broker.process.pid)
        wait_for(lambda: stopped.status() == psutil.STATUS_STOPPED, "for the broker to stop")
        for frame in range(5):
            sink.put(line(frame))
        began = time.monotonic()
        assert sink.close(timeout=0.2) == 5
        assert time.monotonic() - began < PATIENCE
    finally:
        broker.process.send_signal(signal.SIGCONT)
