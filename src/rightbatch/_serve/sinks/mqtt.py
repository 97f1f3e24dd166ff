"""Send lines to an MQTT broker with QoS 1: each is sent until the broker acknowledges it.

While the broker is away, a bounded number of lines waits here; further lines wait in the writer's
queue and follow its rules.
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
_MAX_PENDING = 1000  # lines that the broker has not acknowledged
_MAX_IN_FLIGHT = 100  # of them being sent at once; AWS IoT Core allows no more
_KEEPALIVE = 15  # seconds of silence after which the client pings the broker
_RECONNECT_DELAY = (1, 5)  # seconds between attempts, the first and the longest
_CONNECT_TIMEOUT = 5.0  # seconds


@dataclass(frozen=True)
class Address:
    """A broker and a topic, in which `{source}` stands for the name of a source."""

    scheme: str
    host: str
    port: int
    topic: str
    user: str | None
    password: str | None = field(repr=False)

    def __str__(self) -> str:
        """Return the URL without user, password and topic."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    def topic_of(self, source: str) -> str:
        """Return the topic of a source; characters not allowed in topics become underscores."""
        name = re.sub(r"[+#\x00-\x1f\x7f-\x9f\ud800-\udfff]", "_", source)
        return re.sub(r"^\$", "_", self.topic.replace("{source}", name))  # $ is reserved


def parse(url: str) -> Address:
    """Parse `mqtt[s]://[user:password@]host[:port][/topic]`.

    The default topic is `rightbatch/{source}`.

    Raises:
        UsageError: if it is not such a URL; the message does not contain the password.
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
            f"an MQTT URL has the form {form}; in a password, encode / ? # @ : and space as "
            "%2F %3F %23 %40 %3A %20"
        ) from None
    topic = unquote(parts.path[1:]) or _TOPIC
    if parts.query or "#" in url or re.search(r"[+#\x00]", topic):
        raise UsageError(f"an MQTT topic to publish to may not contain + # or ?; expected {form}")
    if re.search(r"[{}]", topic.replace("{source}", "")):
        raise UsageError(f"the only placeholder of a topic is {{source}}, got {topic}")
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
    """Publishes every line to the topic of its source.

    `put` blocks while 1000 lines are unacknowledged. The client reconnects and resends lines that
    were not acknowledged: after an interruption a line may arrive twice; none is lost while this
    process lives.

    Args:
        url: see `parse`. With `mqtts://` the broker's certificate must be trusted by this machine;
            the environment variable `SSL_CERT_FILE` adds others.

    Raises:
        UsageError: if the URL is invalid, or the broker cannot be reached or refuses.
        MissingExtraError: if paho-mqtt is not installed.
    """

    def __init__(self, url: str) -> None:
        self._address = address = parse(url)
        self.name = f"{address}/{address.topic}"
        self._changed = threading.Condition()
        self._pending = 0
        self._closed = False
        self._answered = False
        self._error: str | None = None
        self._client = self._connect()

    @property
    def error(self) -> str | None:
        """Why no line is sent now; None if lines are sent."""
        return self._error

    def put(self, line: Line) -> None:
        topic = self._address.topic_of(line.source)
        payload = line.to_json().encode()
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._pending < _MAX_PENDING)
            if self._closed:
                raise ConnectionError("closed before the broker acknowledged the previous lines")
            self._pending += 1
        # Without the lock: the client calls back while it holds its own lock.
        try:
            sent = self._client.publish(topic, payload, qos=1)
            if sent.rc not in (self._codes.MQTT_ERR_SUCCESS, self._codes.MQTT_ERR_NO_CONN):
                raise ConnectionError(f"not sent: {sent.rc.name}")
        except BaseException:
            self._acknowledge()
            raise

    def close(self, timeout: float = 5.0) -> int:
        with self._changed:
            is_first = not self._closed
            self._closed = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._pending, timeout)
            left = self._pending
        if is_first:
            self._disconnect(self._client)
        return left

    def _connect(self) -> Any:
        """Return a connected client, with its thread running."""
        try:
            from paho.mqtt.client import Client
            from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode
        except ImportError:
            raise MissingExtraError("paho-mqtt", "serve") from None
        self._codes = MQTTErrorCode
        address = self._address
        client = Client(CallbackAPIVersion.VERSION2, client_id=f"rightbatch-{secrets.token_hex(6)}")
        client.connect_timeout = _CONNECT_TIMEOUT
        client.reconnect_delay_set(*_RECONNECT_DELAY)
        client.max_inflight_messages_set(_MAX_IN_FLIGHT)
        client.on_connect = self._on_connect
        client.on_connect_fail = self._on_connect_fail
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        if address.user is not None:
            client.username_pw_set(address.user, address.password)
        if address.scheme == "mqtts":
            client.tls_set()
        try:
            client.connect(address.host, address.port, keepalive=_KEEPALIVE)
        except (OSError, ValueError) as error:  # ValueError: the host name cannot be encoded
            raise UsageError(f"no MQTT broker at {address}: {describe_error(error)}") from None
        client.loop_start()
        with self._changed:
            self._changed.wait_for(lambda: self._answered or self._error, _CONNECT_TIMEOUT)
        if not self._answered:
            reason = self._error or "no answer"
            self._disconnect(client)
            raise UsageError(f"no MQTT broker at {address}: {reason}")
        return client

    def _disconnect(self, client: Any) -> None:
        """Disconnect; wait for the client's thread for 1 s, since a call may take several."""
        client.disconnect()

        def stop() -> None:
            with suppress(AttributeError):  # a race in paho: its thread has just ended
                client.loop_stop()

        stopping = threading.Thread(target=stop, name="mqtt-stop", daemon=True)
        stopping.start()
        stopping.join(1.0)

    def _acknowledge(self) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()

    # Callbacks of the client, on its thread.

    def _on_connect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        with self._changed:
            self._answered = self._answered or not reason.is_failure
            self._error = (
                f"the broker refused the connection: {reason}" if reason.is_failure else None
            )
            self._changed.notify_all()

    def _on_connect_fail(self, client: Any, data: Any) -> None:
        self._error = "the broker cannot be reached"

    def _on_disconnect(self, client: Any, data: Any, flags: Any, reason: Any, more: Any) -> None:
        with self._changed:
            if not self._closed:
                self._error = self._error or "the broker closed the connection"
            self._changed.notify_all()

    def _on_publish(self, client: Any, data: Any, number: int, reason: Any, more: Any) -> None:
        self._acknowledge()
