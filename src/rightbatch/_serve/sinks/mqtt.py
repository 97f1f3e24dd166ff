"""Lines to an MQTT broker: each is sent until the broker has said that it has it (QoS 1).

While the broker is away a bounded number of lines waits for it here; what comes then waits in the
writer's queue, and has its rules.
"""

from __future__ import annotations

import re
import secrets
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from rightbatch._errors import MissingExtraError, UsageError
from rightbatch._serve.redaction import describe_error

if TYPE_CHECKING:
    from rightbatch._serve.sinks.line import Line

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_TOPIC = "rightbatch/{source}"
_WAITING = 1000  # lines that the broker does not have yet
_IN_FLIGHT = 100  # of them on the way at once; AWS IoT Core allows no more
_ALIVE = 15  # seconds without a word after which the broker is asked for one
_RETRY = (1, 5)  # seconds between attempts, the first and the longest
_ANSWER = 5.0  # seconds to connect in


@dataclass(frozen=True)
class Address:
    """A broker and a topic on it, where `{source}` stands for a source's name."""

    scheme: str
    host: str
    port: int
    topic: str
    user: str | None
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        """Without the password, and the user."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def topic_of(self, source: str) -> str:
        """Its topic; what may not stand in one becomes an underscore."""
        name = re.sub(r"[+#\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", source)
        return re.sub(r"^\$", "_", self.topic.replace("{source}", name))  # $ is the broker's own


def parse(url: str) -> Address:
    """What `mqtt[s]://[user:password@]host[:port][/topic]` says.

    The topic is `rightbatch/{source}` where none is given.

    Raises:
        UsageError: if it is no such address; it does not show the password.
    """
    form = "mqtt[s]://[user:password@]host[:port][/topic]"
    try:
        parts = urlsplit(url)
        port = parts.port or _PORTS[parts.scheme]
        host = parts.hostname
        if not host or re.search(r"\s", host):
            raise ValueError
    except (ValueError, KeyError):
        raise UsageError(
            f"an MQTT broker is {form}; a password with one of / ? # @ : or a space in it has to "
            "be written with %2F %3F %23 %40 %3A %20"
        ) from None
    topic = unquote(parts.path[1:]) or _TOPIC
    if parts.query or "#" in url or re.search(r"[+#\x00]", topic):
        raise UsageError(f"lines go to one topic, without + # and ?: {form}")
    if re.search(r"[{}]", topic.replace("{source}", "")):
        raise UsageError(f"only {{source}} may stand in braces in a topic, got {topic}")
    user, password = parts.username, parts.password
    return Address(
        parts.scheme,
        host,
        port,
        topic,
        None if user is None else unquote(user),
        None if password is None else unquote(password),
    )


class MqttSink:
    """Sends every line to its source's topic.

    `put` waits while 1000 lines are on their way. The client connects again by itself, and sends
    again what was not acknowledged: after a break a line may come twice, and none is lost as long
    as this process lives.

    Args:
        url: see `parse`. With `mqtts://` the broker's certificate has to be one that this machine
            trusts; the environment variable `SSL_CERT_FILE` names others.

    Raises:
        UsageError: if it is no address, or the broker cannot be reached or refuses.
        MissingExtraError: if paho-mqtt is not installed.
    """

    def __init__(self, url: str) -> None:
        self._address = address = parse(url)
        self.name = f"{address}/{address.topic}"
        self._changed = threading.Condition()
        self._on_the_way = 0
        self._closed = False
        self._answered = False
        self._error: str | None = None
        self._client = self._connected()

    @property
    def error(self) -> str | None:
        """Why nothing is sent now."""
        return self._error

    def put(self, line: Line) -> None:
        topic = self._address.topic_of(line.source)
        payload = line.to_json().encode()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._on_the_way < _WAITING)
            if self._closed:
                raise ConnectionError("it closes, and the broker has not taken what came before")
            self._on_the_way += 1
        # Without the lock: the client calls back while it holds its own.
        try:
            sent = self._client.publish(topic, payload, qos=1)
            if sent.rc not in (self._codes.MQTT_ERR_SUCCESS, self._codes.MQTT_ERR_NO_CONN):
                raise ConnectionError(f"not sent: {sent.rc.name}")
        except BaseException:
            self._one_less()
            raise

    def close(self, timeout: float = 5.0) -> int:
        with self._changed:
            is_first = not self._closed
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._on_the_way, timeout)
            left = self._on_the_way
        if is_first:
            self._end(self._client)
        return left

    def _connected(self) -> Any:
        """A client that the broker has welcomed; it has a thread."""
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
        except ImportError:
            raise MissingExtraError("paho-mqtt", "serve") from None
        self._codes = MQTTErrorCode
        address = self._address
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"rightbatch-{secrets.token_hex(6)}")
        client.connect_timeout = _ANSWER
        client.reconnect_delay_set(*_RETRY)
        client.max_inflight_messages_set(_IN_FLIGHT)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.scheme == "mqtts":
            client.tls_set()
        try:
            client.connect(address.host, address.port, keepalive=_ALIVE)
        except (OSError, ValueError) as error:  # a host's name may have no encoding
            raise UsageError(f"no MQTT broker at {address}: {describe_error(error)}") from None
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._answered or self._error, _ANSWER)
        if not self._answered:
            reason = self._error or "no answer"
            self._end(client)
            raise UsageError(f"no MQTT broker at {address}: {reason}")
        return client

    def _end(self, client: Any) -> None:
        """Its thread may be within a call that takes seconds; nobody waits for that."""
        client.disconnect()

        def stop() -> None:
            with suppress(AttributeError):  # the thread ended between two lines of the client
                client.loop_stop()

        stopping = threading.Thread(target=stop, name="mqtt ends", daemon=True)
        stopping.start()
        stopping.join(1.0)

    def _one_less(self) -> None:
        with self._changed:
            self._on_the_way -= 1
            self._changed.notify_all()

    # The client's callbacks, on its thread.

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        with self._changed:
            self._answered = self._answered or not reason.is_failure
            self._error = f"the broker refuses: {reason}" if reason.is_failure else None
            self._changed.notify_all()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        self._error = "the broker cannot be reached"

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        with self._changed:
            if not self._closed:
                self._error = self._error or "the broker has gone away"
            self._changed.notify_all()

    def _on_publish(self, client: Any, data: Any, number: int, reason: Any, more: Any) -> None:
        self._one_less()
