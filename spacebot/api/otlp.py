"""The wire of traces: spans to OTLP's protobuf, sent over HTTP. The messages' library is imported with the first batch.

Flow:    spans -> encode -> Sender.send -> POST {endpoint}/v1/traces
Floor:   api; the only importer of opentelemetry
Source:  OpenTelemetry Protocol 1.x, OTLP/HTTP: protobuf, retryable statuses; control spec 1.4, 6.5
"""

import gzip
import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx2
import trio

from spacebot import __version__
from spacebot.base.errors import ExternalError
from spacebot.base.telemetry import kv
from spacebot.config.model import TelemetryConfig

log = logging.getLogger(__name__)

PATH = "/v1/traces"
TIMEOUT_S = 10.0
ATTEMPTS = 3
LONGEST_WAIT_S = 15.0
_AGAIN = frozenset({429, 502, 503, 504})

AttributeValue = str | int | float | bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """Something that took time.

    Args:
        trace: what everything of one cause shares; any text, such as the id of a turn.
        id: any text, unique in the trace.
        parent: the id of the span around it; None at the top.
        start_ns: since 1970, in nanoseconds.
    """

    name: str
    trace: str
    id: str
    parent: str | None
    start_ns: int
    end_ns: int
    is_error: bool = False
    attributes: Mapping[str, AttributeValue] = field(default_factory=dict)


def trace_id(text: str) -> bytes:
    """The 16 bytes that stand for a trace."""
    return hashlib.sha256(b"trace:" + text.encode(errors="replace")).digest()[:16]


def span_id(text: str) -> bytes:
    """The 8 bytes that stand for a span."""
    return hashlib.sha256(b"span:" + text.encode(errors="replace")).digest()[:8]


def encode(spans: Sequence[Span], service_name: str) -> bytes:
    """One export request. Imports the library of the messages: run it in a thread."""
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
    from opentelemetry.proto.trace.v1.trace_pb2 import Span as WireSpan
    from opentelemetry.proto.trace.v1.trace_pb2 import Status

    def pairs(attributes: Mapping[str, AttributeValue]) -> list[KeyValue]:
        return [KeyValue(key=key, value=_value(AnyValue, value)) for key, value in attributes.items()]

    request = ExportTraceServiceRequest()
    resource = request.resource_spans.add()
    resource.resource.attributes.extend(pairs({"service.name": service_name, "service.version": __version__}))
    scope = resource.scope_spans.add()
    scope.scope.name, scope.scope.version = "spacebot", __version__
    for span in spans:
        scope.spans.append(
            WireSpan(
                trace_id=trace_id(span.trace),
                span_id=span_id(span.id),
                parent_span_id=b"" if span.parent is None else span_id(span.parent),
                name=span.name,
                kind=WireSpan.SPAN_KIND_INTERNAL,
                start_time_unix_nano=span.start_ns,
                end_time_unix_nano=span.end_ns,
                attributes=pairs(span.attributes),
                status=Status(code=Status.STATUS_CODE_ERROR if span.is_error else Status.STATUS_CODE_UNSET),
            )
        )
    return bytes(request.SerializeToString())


def _value(kind: Any, value: AttributeValue) -> Any:
    match value:
        case bool():
            return kind(bool_value=value)
        case int():
            return kind(int_value=value)
        case float():
            return kind(double_value=value)
        case _:
            return kind(string_value=value)


def address_of(endpoint: str) -> str:
    """Where traces go; the path is added unless it is there."""
    return endpoint if endpoint.endswith(PATH) else endpoint.rstrip("/") + PATH


def headers_of(config: TelemetryConfig) -> dict[str, str]:
    """The owner's headers, as `name=value` separated by commas."""
    text = "" if config.otlp_headers is None else config.otlp_headers.get_secret_value()
    pairs = (pair.partition("=") for pair in text.split(",") if "=" in pair)
    return {name.strip(): value.strip() for name, _, value in pairs}


class Sender:
    """Sends batches; what a collector refuses for good is given up."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    async def send(self, spans: Sequence[Span], config: TelemetryConfig) -> None:
        """Send a batch, some times if need be.

        Errors: ExternalError without address and headers when it was not taken.
        """
        assert config.otlp_endpoint is not None
        body = gzip.compress(await trio.to_thread.run_sync(encode, spans, config.service_name), 1)
        headers = {
            "content-type": "application/x-protobuf",
            "content-encoding": "gzip",
            "user-agent": f"spacebot/{__version__}",
            **headers_of(config),
        }
        wait_s, problem = 0.5, ""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                answer = await self._client.post(
                    address_of(config.otlp_endpoint), content=body, headers=headers, timeout=TIMEOUT_S
                )
            except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
                problem = f"it cannot be reached ({type(error).__name__})"
            else:
                if answer.is_success:
                    return
                problem = f"it answered with status {answer.status_code}"
                if answer.status_code not in _AGAIN:
                    break
                wait_s = _asked_s(answer.headers.get("retry-after"), wait_s)
            if attempt < ATTEMPTS:
                log.debug("traces not taken yet", extra=kv(attempt=attempt, problem=problem))
                await trio.sleep(wait_s)
                wait_s = min(LONGEST_WAIT_S, wait_s * 2)
        raise ExternalError(f"the collector of traces did not take them: {problem}; check telemetry.otlp_endpoint")


def _asked_s(text: str | None, usual_s: float) -> float:
    try:
        return min(LONGEST_WAIT_S, max(0.0, float(text or "")))
    except ValueError:
        return usual_s
