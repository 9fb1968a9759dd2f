"""May the program open this address? The one guard of everything that fetches for somebody else.

A name is resolved here, once, and all of its addresses are judged; who connects uses these very addresses, so a
name that answers differently a moment later (rebinding) changes nothing. Odd ways to write a number (`0x7f.1`)
are judged by what the system makes of them.

Flow:   url -> resolve_public -> Resolved -> the fetcher connects to one of its addresses
Floor:  base
Source: tools spec 6.4; control spec 6.4; IANA special-purpose address registries
"""

import logging
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from urllib.parse import urlsplit

import trio

from spacebot.base.errors import ExternalError, RefusedError

log = logging.getLogger(__name__)

PORTS = {"http": 80, "https": 443}
LONGEST_URL = 8192

Address = IPv4Address | IPv6Address

_METADATA = frozenset(
    map(
        ip_address,
        (
            *("169.254.169.254", "169.254.170.2", "169.254.170.23", "100.100.100.200", "168.63.129.16", "192.0.0.192"),
            *("fd00:ec2::254", "fd00:ec2::23", "fd20:ce::254"),
        ),
    )
)
_METADATA_NAMES = frozenset({"metadata", "metadata.google.internal", "metadata.aws.internal", "instance-data"})
_SPECIAL_4 = tuple(
    map(
        IPv4Network,
        (
            "0.0.0.0/8",
            "100.64.0.0/10",  # carriers' address translation
            "192.0.0.0/24",
            "192.0.2.0/24",
            "192.88.99.0/24",  # relays of 6to4
            "198.18.0.0/15",
            "198.51.100.0/24",
            "203.0.113.0/24",
            "240.0.0.0/4",
        ),
    )
)
_SPECIAL_6 = tuple(
    map(
        IPv6Network,
        (
            "64:ff9b:1::/48",  # a site's own translation: nobody outside knows what lies behind
            "100::/64",
            "2001:db8::/32",
            "2001:2::/48",
            "2001:10::/28",
            "2001:20::/28",
            "3fff::/20",
            "5f00::/16",
            "fec0::/10",
        ),
    )
)
_NAT64 = IPv6Network("64:ff9b::/96")
_TRANSLATED = IPv6Network("::ffff:0:0:0/96")
_COMPATIBLE = IPv6Network("::/96")


@dataclass(frozen=True, slots=True)
class Resolved:
    """An address that may be opened.

    Args:
        host: the name as a server knows it: ASCII, lower case, without a dot at the end; IPv6 without brackets.
        addresses: where it is, judged; connect to these and ask nobody again.
    """

    scheme: str
    host: str
    port: int
    addresses: tuple[str, ...]

    @property
    def key(self) -> str:
        """The host, with its port where that is not the usual one."""
        return host_key(self.scheme, self.host, self.port)


def host_key(scheme: str, host: str, port: int) -> str:
    """A host as lists of hosts name it: with its port where that is not the scheme's usual one."""
    name = f"[{host}]" if ":" in host else host
    return name if PORTS.get(scheme) == port else f"{name}:{port}"


async def resolve_public(url: str, *, allow_private: bool | frozenset[str]) -> Resolved:
    """Find out where a URL leads, and refuse it when that is no place of the public internet.

    Args:
        allow_private: True, or the hosts (`host` or `host:port`) that may lie in a private network, because the
            owner configured them. Addresses that hand out a machine's credentials are refused all the same.

    Errors: RefusedError which names the host and the reason, never the rest of the URL; ExternalError when the name
        cannot be resolved.
    """
    try:
        return await _resolve(*split_url(url), allow_private)
    except RefusedError as error:
        log.warning("address refused", extra={"kv": {"reason": str(error)}})
        raise


async def _resolve(scheme: str, host: str, port: int, allow_private: bool | frozenset[str]) -> Resolved:
    key = host_key(scheme, host, port)
    if host in _METADATA_NAMES:
        raise RefusedError(f"{host} is the machine's own metadata service, which is never fetched from")
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ExternalError(f"the name {host} cannot be resolved; check how it is written") from error
    addresses = tuple(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not addresses:
        raise ExternalError(f"the name {host} has no address")
    may_be_private = allow_private is True or (allow_private is not False and bool({host, key} & allow_private))
    for address in addresses:
        if reason := _reason_against(ip_address(address), may_be_private=may_be_private):
            raise RefusedError(f"{host} is {reason}; only addresses of the public internet are fetched")
    return Resolved(scheme, host, port, addresses)


def split_url(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL that may be fetched as far as its form goes.

    Errors: RefusedError.
    """
    if len(url) > LONGEST_URL:
        raise RefusedError("the address is too long")
    if any(character <= " " or character == "\x7f" or character == "\\" for character in url):
        raise RefusedError("the address holds blanks, control characters or backslashes")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError as error:
        raise RefusedError("this is no address that can be read; send a plain http or https URL") from error
    if parts.scheme not in PORTS:
        raise RefusedError(f"only http and https are fetched, not {parts.scheme[:20] or 'an address without a scheme'}")
    if "@" in parts.netloc:
        raise RefusedError("the address holds a user name or password; leave them out")
    if "%" in host:
        raise RefusedError("the address names a network interface or a coded host; name the host plainly")
    host = _ascii(host.removesuffix("."))
    if port is None:
        port = PORTS[parts.scheme]
    if not host or not port:
        raise RefusedError("the address names no host")
    return parts.scheme, host, port


def _ascii(host: str) -> str:
    if host.isascii():
        return host.lower()
    try:
        return host.encode("idna").decode("ascii").lower()
    except UnicodeError as error:
        raise RefusedError("the address names a host that cannot exist") from error


def _reason_against(address: Address, *, may_be_private: bool) -> str:
    """Why an address may not be opened; empty when it may."""
    for meant in _meant(address):
        if meant in _METADATA:
            return "the machine's own metadata service"
        if meant.is_multicast:
            return "an address of many machines at once"
        if not may_be_private and (reason := _not_public(meant)):
            return reason
    return ""


def _not_public(address: Address) -> str:
    if address.is_loopback:
        return "this machine itself"
    if address.is_unspecified:
        return "no machine at all"
    if address.is_link_local:
        return "an address of the local link"
    if address.is_private:
        return "in a private network"
    special = _SPECIAL_4 if address.version == 4 else _SPECIAL_6
    if address.is_reserved or any(address in network for network in special):
        return "in a range with a special purpose"
    return ""


def _meant(address: Address) -> Iterator[Address]:
    """An address, and those that it stands for: mapped, translated or tunnelled ones of the older kind."""
    if isinstance(address, IPv4Address):
        yield address
        return
    inner = [address.ipv4_mapped, address.sixtofour, *(address.teredo or ())]
    if any(address in network for network in (_NAT64, _TRANSLATED)) or (address in _COMPATIBLE and int(address) > 1):
        inner.append(IPv4Address(int(address) & 0xFFFFFFFF))
    tunnelled = [one for one in inner if one is not None]
    yield from tunnelled
    if not tunnelled:
        yield IPv6Address(int(address))  # without the name of an interface
