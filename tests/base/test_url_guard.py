"""Which addresses may be fetched from."""

import socket
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import trio

from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.url_guard import resolve_public


class Names(trio.abc.HostnameResolver):
    """A name service of a test: each question takes the next answer; the last one stays."""

    def __init__(self, answers: Mapping[str, Sequence[Sequence[str]]]) -> None:
        self._answers = {name: list(rounds) for name, rounds in answers.items()}
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        rounds = self._answers.get(name)
        if rounds is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        addresses = rounds.pop(0) if len(rounds) > 1 else rounds[0]
        return [
            (socket.AF_INET6 if ":" in one else socket.AF_INET, socket.SOCK_STREAM, 6, "", (one, port))
            for one in addresses
        ]

    async def getnameinfo(self, sockaddr: Any, flags: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "unknown")


def answer(**names: Sequence[str]) -> Names:
    """Use a name service that always gives these addresses; `_` stands for the dot."""
    resolver = Names({name.replace("_", "."): [addresses] for name, addresses in names.items()})
    trio.socket.set_custom_hostname_resolver(resolver)
    return resolver


PRIVATE = [
    "127.0.0.1", "127.8.9.1", "0.0.0.0", "0.1.2.3", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.1.1", "100.64.0.1", "100.127.255.255", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.51.100.1",
    "203.0.113.1", "192.88.99.1", "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "fe80::1", "fc00::1", "fd12:3456::1", "fec0::1", "ff02::1", "100::1", "2001:db8::1", "3fff::1",
    "::ffff:127.0.0.1", "::ffff:10.0.0.1", "::127.0.0.1", "::ffff:0:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b:1::1",
    "2002:7f00:1::", "2002:a00:1::1", "2001:0:5ef5:79fb::f5ff:fffe",
]  # fmt: skip
METADATA = [
    "169.254.169.254", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192", "fd00:ec2::254",
    "fd20:ce::254", "::ffff:169.254.169.254",
]  # fmt: skip
PUBLIC = ["93.184.216.34", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "64:ff9b::808:808"]


@pytest.mark.parametrize("address", PRIVATE + METADATA)
async def test_a_name_that_leads_to_no_public_place_is_refused(address: str) -> None:
    answer(a_test=["93.184.216.34", address])
    with pytest.raises(RefusedError, match=r"a\.test is .*only addresses of the public internet"):
        await resolve_public("https://a.test/x?token=geheim", allow_private=False)
    literal = f"[{address}]" if ":" in address else address
    with pytest.raises(RefusedError):
        await resolve_public(f"http://{literal}/", allow_private=False)


@pytest.mark.parametrize("address", PUBLIC)
async def test_public_places_are_admitted(address: str) -> None:
    answer(a_test=[address, address])
    place = await resolve_public("https://A.Test.:8443/x", allow_private=False)
    assert (place.scheme, place.host, place.port, place.addresses) == ("https", "a.test", 8443, (address,))
    assert place.key == "a.test:8443"


@pytest.mark.parametrize("host", ["0x7f.1", "2130706433", "0177.0.0.1", "127.1", "0", "①②⑦.0.0.1"])
async def test_odd_notations_are_judged_by_what_they_mean(host: str) -> None:
    with pytest.raises(RefusedError):
        await resolve_public(f"http://{host}/", allow_private=False)


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd", "ftp://a.test/x", "//a.test/x", "a.test/x", "", "http://", "http://:80/",
        "javascript:alert(1)", "http://user@a.test/", "http://user:pw@a.test/", "http://a.test\\@b.test/",
        "http://a.test/ x",
        "http://a.test/\r\nX: y",
        "http://a.test:99999/", "http://a.test:0/", "http://[::1/", "http://[fe80::1%25eth0]/", "http://a.test%2eb.test/",
        "http://" + "a" * 9000,
    ],
)  # fmt: skip
async def test_malformed_and_foreign_addresses_are_refused(url: str) -> None:
    answer(a_test=["93.184.216.34"])
    with pytest.raises(RefusedError):
        await resolve_public(url, allow_private=False)


@pytest.mark.spec("C-68")
async def test_what_the_owner_configured_may_be_private() -> None:
    answer(home_test=["192.168.1.7"], other_test=["192.168.1.8"])
    assert (await resolve_public("http://home.test/", allow_private=True)).addresses == ("192.168.1.7",)
    allowed = frozenset({"home.test:8080", "[::1]"})
    assert (await resolve_public("http://home.test:8080/", allow_private=allowed)).port == 8080
    assert (await resolve_public("http://[::1]/", allow_private=allowed)).host == "::1"
    for url in ("http://home.test/", "http://other.test:8080/"):
        with pytest.raises(RefusedError, match="private network"):
            await resolve_public(url, allow_private=allowed)


@pytest.mark.parametrize("address", [*METADATA, "224.0.0.1"])
async def test_credentials_of_the_machine_are_never_fetched(address: str) -> None:
    answer(a_test=[address])
    with pytest.raises(RefusedError):
        await resolve_public("http://a.test/", allow_private=True)


async def test_metadata_by_its_name() -> None:
    with pytest.raises(RefusedError, match="metadata"):
        await resolve_public("http://metadata.google.internal/computeMetadata/v1/", allow_private=True)


async def test_an_unknown_name_is_an_error_of_the_outside() -> None:
    answer()
    with pytest.raises(ExternalError, match=r"no\.test cannot be resolved"):
        await resolve_public("http://no.test/?token=geheim", allow_private=False)
