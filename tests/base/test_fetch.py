"""Fetching and posting over real connections on loopback."""

import datetime
import gzip
import ssl
import zlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.fetch import Fetcher, open_fetcher
from tests.base.test_url_guard import Names, answer
from tests.stand_ins.serving import Connection, Handler, Request, Server, serve

MIB = 2**20


@asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[tuple[Server, Fetcher]]:
    async with serve(handler) as server:
        async with open_fetcher() as fetcher:
            yield server, fetcher


def page(body: bytes = b"hello", **options: object) -> Handler:
    async def handle(request: Request, connection: Connection) -> None:
        await connection.send(body, **options)  # type: ignore[arg-type]

    return handle


def redirect(to: str | Callable[[Request], str], seen: list[Request] | None = None) -> Handler:
    async def handle(request: Request, connection: Connection) -> None:
        if seen is not None:
            seen.append(request)
        target = to if isinstance(to, str) else to(request)
        if target:
            await connection.send(b"", status=302, headers={"location": target})
        else:
            await connection.send(b"arrived")

    return handle


async def test_a_file_is_fetched(tmp_path: Path) -> None:
    body = bytes(range(256)) * 4096
    seen: list[Request] = []

    async def handle(request: Request, connection: Connection) -> None:
        seen.append(request)
        await connection.send(body, content_type="Image/PNG; charset=x")

    async with serving(handle) as (server, fetcher):
        fetched = await fetcher.download(
            f"{server.url}/a%20b?x=1#part",
            tmp_path / "file",
            headers={"Authorization": "Bearer geheim", "host": "other"},
            hosts=frozenset({f"127.0.0.1:{server.port}"}),
            may_be_private=True,
            max_bytes=MIB,
        )
    assert (tmp_path / "file").read_bytes() == body
    assert (fetched.status, fetched.media_type, fetched.size) == (200, "image/png", MIB)
    assert fetched.final_url_host == "127.0.0.1"
    assert seen[0].path == "/a%20b?x=1"
    assert seen[0].headers["authorization"] == "Bearer geheim"
    assert seen[0].headers["host"] == f"127.0.0.1:{server.port}"


async def test_a_private_address_is_refused_before_anything_is_sent(tmp_path: Path) -> None:
    async with serving(page()) as (server, fetcher):
        with pytest.raises(RefusedError, match="this machine itself"):
            await fetcher.download(f"{server.url}/?token=geheim", tmp_path / "x", max_bytes=MIB)
        assert server.connections == 0
    assert not (tmp_path / "x").exists()


async def test_a_name_is_resolved_once_and_its_checked_address_used(tmp_path: Path) -> None:
    """A second answer would lead to another place of loopback, where nobody listens."""
    seen: list[Request] = []
    async with serving(redirect("", seen)) as (server, fetcher):
        names = Names({"files.test": [["127.0.0.1"], ["127.0.0.2"]]})
        trio.socket.set_custom_hostname_resolver(names)
        await fetcher.download(f"http://files.test:{server.port}/x", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert names.asked == ["files.test"]
    assert seen[0].headers["host"] == f"files.test:{server.port}"


async def test_every_redirect_is_judged(tmp_path: Path) -> None:
    """A server that may be private cannot lead to other private places."""
    answer(good_test=["127.0.0.1"], evil_test=["127.0.0.1"], cloud_test=["169.254.169.254"])
    targets = {"/evil": "http://evil.test/", "/cloud": "http://cloud.test/", "/file": "file:///etc/passwd"}
    async with serving(redirect(lambda request: targets[request.path])) as (server, fetcher):
        for path in targets:
            with pytest.raises(RefusedError):
                await fetcher.download(
                    f"http://good.test:{server.port}{path}", tmp_path / "x", may_be_private=True, max_bytes=MIB
                )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.spec("D-15")
async def test_credentials_go_to_their_hosts_only(tmp_path: Path) -> None:
    """From another host to the right one and away again, over relative addresses too."""
    answer(api_test=["127.0.0.1"], cdn_test=["127.0.0.1"])
    seen: list[Request] = []

    def onward(request: Request) -> str:
        port = request.headers["host"].rpartition(":")[2]
        steps = {"/1": f"http://api.test:{port}/2", "/2": "3?x=1", "/3?x=1": f"//cdn.test:{port}/4", "/4": ""}
        return steps[request.path]

    async with serving(redirect(onward, seen)) as (server, fetcher):
        fetched = await fetcher.download(
            f"http://cdn.test:{server.port}/1",
            tmp_path / "x",
            headers={"Authorization": "Bearer geheim"},
            hosts=frozenset({f"api.test:{server.port}"}),
            may_be_private=True,
            max_bytes=MIB,
        )
    assert fetched.final_url_host == "cdn.test"
    assert ["authorization" in request.headers for request in seen] == [False, True, True, False]


async def test_redirects_have_an_end(tmp_path: Path) -> None:
    seen: list[Request] = []
    async with serving(redirect("/again", seen)) as (server, fetcher):
        with pytest.raises(RefusedError, match="5 redirects"):
            await fetcher.download(f"{server.url}/", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert len(seen) == 6


@pytest.mark.parametrize("status", [204 + 100, 401, 403, 404, 500])
@pytest.mark.spec("D-15")
async def test_an_error_is_no_file(tmp_path: Path, status: int) -> None:
    async with serving(page(b"<html>sign in</html>", status=status)) as (server, fetcher):
        with pytest.raises(ExternalError, match=rf"127\.0\.0\.1 answered with status {status}$"):
            await fetcher.download(f"{server.url}/bot123:geheim/f", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_announces_too_much_is_not_begun(tmp_path: Path) -> None:
    async with serving(page(b"x" * 5000)) as (server, fetcher):
        with pytest.raises(RefusedError, match="larger than"):
            await fetcher.download(f"{server.url}/", tmp_path / "x", may_be_private=True, max_bytes=4999)
        await fetcher.download(f"{server.url}/", tmp_path / "y", may_be_private=True, max_bytes=5000)
    assert [path.name for path in tmp_path.iterdir()] == ["y"]


async def test_an_endless_file_is_cut_off(tmp_path: Path) -> None:
    sent = 0

    async def handle(request: Request, connection: Connection) -> None:
        nonlocal sent
        await connection.begin_stream([])
        while True:
            await connection._stream.send_all(b"10000\r\n" + b"x" * 65536 + b"\r\n")
            sent += 65536

    async with serving(handle) as (server, fetcher):
        with pytest.raises(RefusedError, match="larger than 1 MiB"):
            await fetcher.download(f"{server.url}/", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert sent < 64 * MIB
    assert list(tmp_path.iterdir()) == []


async def test_a_slow_file_is_given_up(tmp_path: Path) -> None:
    async def handle(request: Request, connection: Connection) -> None:
        await connection.begin_stream([b"a little"])
        await trio.sleep_forever()

    async with serving(handle) as (server, fetcher):
        with pytest.raises(ExternalError, match="not there within"):
            await fetcher.download(f"{server.url}/", tmp_path / "x", may_be_private=True, max_bytes=MIB, timeout_s=0.3)
    assert list(tmp_path.iterdir()) == []


async def test_a_connection_that_breaks_leaves_nothing(tmp_path: Path) -> None:
    async def handle(request: Request, connection: Connection) -> None:
        await connection.begin_stream([b"a little"])
        await connection.cut()

    async with serving(handle) as (server, fetcher):
        with pytest.raises(ExternalError, match="broke the connection off"):
            await fetcher.download(f"{server.url}/", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert list(tmp_path.iterdir()) == []


async def test_a_host_that_does_not_listen_is_named(tmp_path: Path) -> None:
    async with serving(page()) as (server, fetcher):
        port = server.port
    async with open_fetcher() as fetcher:
        with pytest.raises(ExternalError, match=r"^127\.0\.0\.1 cannot be reached"):
            await fetcher.download(
                f"http://127.0.0.1:{port}/?token=geheim", tmp_path / "x", may_be_private=True, max_bytes=MIB
            )


async def test_the_next_address_of_a_host_is_tried(tmp_path: Path) -> None:
    answer(two_test=["127.0.0.2", "127.0.0.1"])
    async with serving(page()) as (server, fetcher):
        await fetcher.download(f"http://two.test:{server.port}/", tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert (tmp_path / "x").read_bytes() == b"hello"


async def test_a_host_may_be_a_number_of_six(tmp_path: Path) -> None:
    asked: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        asked.append(await stream.receive_some())
        await stream.send_all(b"HTTP/1.1 200 x\r\ncontent-length: 2\r\n\r\nok")

    async with trio.open_nursery() as nursery, open_fetcher() as fetcher:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="::1"))
        port = listeners[0].socket.getsockname()[1]
        await fetcher.download(f"http://[::1]:{port}/", tmp_path / "x", may_be_private=True, max_bytes=MIB)
        nursery.cancel_scope.cancel()
    assert (tmp_path / "x").read_bytes() == b"ok"
    assert f"Host: [::1]:{port}".encode() in asked[0]


@pytest.mark.parametrize("pack", [gzip.compress, zlib.compress])
async def test_a_compressed_file_is_unpacked_within_the_limit(tmp_path: Path, pack: Callable[[bytes], bytes]) -> None:
    plain = b"0" * (8 * MIB)
    coding = "gzip" if pack is gzip.compress else "deflate"
    async with serving(page(pack(plain), headers={"content-encoding": coding})) as (server, fetcher):
        fetch = partial(fetcher.download, server.url, may_be_private=True)
        fetched = await fetch(path=tmp_path / "x", max_bytes=8 * MIB)
        assert fetched.size == 8 * MIB
        with pytest.raises(RefusedError, match="larger than"):
            await fetch(path=tmp_path / "y", max_bytes=8 * MIB - 1)
    assert (tmp_path / "x").read_bytes() == plain
    assert not (tmp_path / "y").exists()


@pytest.mark.parametrize(
    ("coding", "body"),
    [("br", b"x"), ("gzip, gzip", b"x"), ("gzip", b"no gzip"), ("gzip", gzip.compress(b"x" * 99, mtime=0)[:-9])],
    ids=["foreign", "twice", "no gzip", "cut"],
)
async def test_codings_that_are_foreign_or_damaged(tmp_path: Path, coding: str, body: bytes) -> None:
    async with serving(page(body, headers={"content-encoding": coding})) as (server, fetcher):
        with pytest.raises(ExternalError):
            await fetcher.download(server.url, tmp_path / "x", may_be_private=True, max_bytes=MIB)
    assert list(tmp_path.iterdir()) == []


async def test_an_existing_file_and_a_link_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "old").write_bytes(b"old")
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    async with serving(page()) as (server, fetcher):
        for name in ("old", "link"):
            with pytest.raises(FileExistsError):
                await fetcher.download(server.url, tmp_path / name, may_be_private=True, max_bytes=MIB)
    assert (tmp_path / "old").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


async def test_a_cancelled_fetch_leaves_nothing(tmp_path: Path) -> None:
    begun = trio.Event()

    async def handle(request: Request, connection: Connection) -> None:
        await connection.begin_stream([b"a little"])
        begun.set()
        await trio.sleep_forever()

    async with serving(handle) as (server, fetcher):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                partial(fetcher.download, server.url, tmp_path / "x", may_be_private=True, max_bytes=MIB)
            )
            await begun.wait()
            nursery.cancel_scope.cancel()
    assert list(tmp_path.iterdir()) == []


def certificate(folder: Path, *names: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """What a server of these names shows, and what trusts it."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name) for name in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = made.public_bytes(serialization.Encoding.PEM)
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (folder / "server.pem").write_bytes(pem + secret)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(folder / "server.pem")
    (folder / "server.pem").unlink()
    return server, ssl.create_default_context(cadata=pem.decode())


@asynccontextmanager
async def serving_securely(context: ssl.SSLContext, answers: Mapping[str, str]) -> AsyncIterator[tuple[int, list[str]]]:
    """Serve over TLS: for each path a place to go to, or a file. Gives the port, and what was asked."""
    asked: list[str] = []

    async def handle(stream: trio.SSLStream[trio.SocketStream]) -> None:
        request = b""
        try:
            while b"\r\n\r\n" not in request:
                request += await stream.receive_some()
            asked.append(request.decode().lower())
            target = answers.get(request.split()[1].decode())
            head = f"HTTP/1.1 302 x\r\nlocation: {target}\r\n" if target else "HTTP/1.1 200 x\r\n"
            await stream.send_all(f"{head}content-length: 2\r\n\r\nok".encode())
        except trio.BrokenResourceError:
            pass  # a client that does not like the certificate

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_ssl_over_tcp, handle, 0, context, host="127.0.0.1"))
        yield listeners[0].transport_listener.socket.getsockname()[1], asked
        nursery.cancel_scope.cancel()


async def test_the_certificate_is_judged_by_the_name_although_the_address_is_connected_to(tmp_path: Path) -> None:
    server, trusting = certificate(tmp_path, "right.test")
    shown: list[str] = []
    server.sni_callback = lambda _, name, __: shown.append(name)
    answer(right_test=["127.0.0.1"], wrong_test=["127.0.0.1"])
    async with serving_securely(server, {}) as (port, asked):
        async with open_fetcher(ssl_context=trusting) as fetcher:
            fetch = partial(fetcher.download, path=tmp_path / "x", may_be_private=True, max_bytes=MIB)
            with pytest.raises(ExternalError, match="certificate"):
                await fetch(f"https://wrong.test:{port}/")
            await fetch(f"https://right.test:{port}/")
    assert shown == ["wrong.test", "right.test"]
    assert [f"host: right.test:{port}" in request for request in asked] == [True]


async def test_credentials_are_not_sent_in_the_open_after_a_secure_start(tmp_path: Path) -> None:
    server, trusting = certificate(tmp_path, "a.test")
    answer(a_test=["127.0.0.1"])
    seen: list[Request] = []
    async with serve(redirect("", seen)) as plain:
        async with serving_securely(server, {"/": f"http://a.test:{plain.port}/"}) as (port, asked):
            async with open_fetcher(ssl_context=trusting) as fetcher:
                await fetcher.download(
                    f"https://a.test:{port}/",
                    tmp_path / "x",
                    headers={"Authorization": "Bearer geheim"},
                    hosts=frozenset({f"a.test:{port}", f"a.test:{plain.port}"}),
                    may_be_private=True,
                    max_bytes=MIB,
                )
    assert "authorization" in asked[0]
    assert "authorization" not in seen[0].headers


async def test_a_post_tells_status_and_headers_and_follows_nobody() -> None:
    seen: list[Request] = []

    async def handle(request: Request, connection: Connection) -> None:
        seen.append(request)
        await connection.send(b"x" * 200_000, status=307, headers={"Location": "http://10.0.0.1/", "Retry-After": "5"})

    async with serving(handle) as (server, fetcher):
        status, headers = await fetcher.post(
            f"{server.url}/hook", b'{"a":1}', {"Content-Type": "application/json"}, may_be_private=True
        )
        with pytest.raises(RefusedError):
            await fetcher.post(f"{server.url}/hook", b"", {})
    assert (status, headers["retry-after"]) == (307, "5")
    assert [(request.method, request.body, request.headers["content-type"]) for request in seen] == [
        ("POST", b'{"a":1}', "application/json")
    ]


async def test_headers_that_cannot_be_sent_are_refused() -> None:
    async with serving(page()) as (server, fetcher):
        for value in ("a\r\nX-Other: b", "schön"):
            with pytest.raises((RefusedError, ExternalError)):
                await fetcher.post(server.url, b"", {"X-One": value}, may_be_private=True)
        assert server.connections <= 1
