"""Addresses that lead into the machine or its network, in every writing, through everything that fetches."""

from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from spacebot.base.errors import DeniedError, ExternalError, RefusedError, ToolError
from spacebot.base.fetch import Fetcher, open_fetcher
from spacebot.config.hands import PermissionsConfig
from spacebot.tools.permissions import Gate
from spacebot.tools.skill_sources import parse_source
from tests.attacks.stage import Notes, noted
from tests.base.test_url_guard import Names, answer
from tests.stand_ins.serving import Connection, Request, serve

METADATA = "169.254.169.254"
ADDRESSES = {
    "loopback": "http://127.0.0.1/",
    "loopback, another one": "http://127.66.1.2/",
    "loopback by name": "http://localhost/",
    "loopback by name with a dot": "http://localhost./",
    "name below the loopback's": "http://a.localhost/",
    "loopback in capitals": "HTTP://LOCALHOST/",
    "loopback of six": "http://[::1]/",
    "loopback of six in full": "http://[0:0:0:0:0:0:0:1]/",
    "no address": "http://0.0.0.0/",
    "no address of six": "http://[::]/",
    "decimal": "http://2130706433/",
    "hexadecimal": "http://0x7f000001/",
    "hexadecimal in parts": "http://0x7f.0x0.0x0.0x1/",
    "octal": "http://0177.0.0.01/",
    "octal as one": "http://017700000001/",
    "short": "http://127.1/",
    "short, three parts": "http://127.0.1/",
    "zero": "http://0/",
    "digits in circles": "http://\u2460\u2461\u2466.\u24ea.\u24ea.\u2460/",
    "wide digits": "http://\uff11\uff12\uff17.\uff10.\uff10.\uff11/",
    "ideographic dots": "http://127\u30020\u30020\u30021/",
    "mapped": "http://[::ffff:127.0.0.1]/",
    "mapped in hexadecimal": "http://[::ffff:7f00:1]/",
    "compatible": "http://[::127.0.0.1]/",
    "NAT64": "http://[64:ff9b::7f00:1]/",
    "NAT64 of a site": "http://[64:ff9b:1::a00:1]/",
    "6to4": "http://[2002:7f00:1::]/",
    "Teredo": "http://[2001:0:5ef5:79fb::f5ff:fffe]/",
    "link-local with an interface": "http://[fe80::1%25lo]/",
    "unique local": "http://[fd00::1]/",
    "private ten": "http://10.0.0.1/",
    "private 172": "http://172.16.5.4/",
    "private 192": "http://192.168.0.1/",
    "carrier": "http://100.64.0.1/",
    "metadata": f"http://{METADATA}/latest/meta-data/",
    "metadata in decimal": "http://2852039166/",
    "metadata in hexadecimal": "http://0xa9fea9fe/",
    "metadata mapped": f"http://[::ffff:{METADATA}]/",
    "metadata by NAT64": "http://[64:ff9b::a9fe:a9fe]/",
    "metadata by name": "http://metadata.google.internal/computeMetadata/v1/",
    "metadata by its short name": "http://metadata/",
    "metadata by name with a dot": "http://metadata.google.internal./",
    "metadata of containers": "http://169.254.170.2/v2/credentials",
    "metadata of six": "http://[fd00:ec2::254]/",
    "another cloud's": "http://100.100.100.200/",
    "user before the host": "http://public.test@127.0.0.1/",
    "host as a user": f"http://{METADATA}@public.test/",
    "password": "http://a:b@public.test/",
    "fragment before a host": "http://127.0.0.1#@public.test/",
    "backslash": "http://public.test\\@127.0.0.1/",
    "two backslashes": "http:\\\\127.0.0.1\\",
    "coded dot": "http://127%2e0%2e0%2e1/",
    "coded slash": "http://127.0.0.1%2f@public.test/",
    "line end": "http://public.test\r\nHost: 127.0.0.1/",
    "tab": "http://127.0.\t0.1/",
    "NUL": "http://public.test\0.127.0.0.1/",
    "name that leads inside": "http://inside.test/",
    "name that leads to metadata": "http://cloud.test/",
    "name with one good answer": "http://mixed.test/",
    "name that leads to six": "http://six.test/",
    "coded name that leads inside": "http://xn--bcher-kva.test/",
    "unicode name that leads inside": "http://b\u00fccher.test/",
    "file": "file:///etc/passwd",
    "file on a host": "file://localhost/etc/passwd",
    "ftp": "ftp://public.test/",
    "gopher": "gopher://127.0.0.1:6379/_SET%20a%20b",
    "dict": "dict://127.0.0.1:11211/stats",
    "data": "data:text/html,<script>1</script>",
    "script": "javascript:alert(1)",
    "jar": "jar:http://127.0.0.1!/x",
    "unix socket": "http+unix://%2Fvar%2Frun%2Fdocker.sock/info",
    "no scheme": "//127.0.0.1/",
    "scheme in a scheme": "http://http://127.0.0.1/",
    "view of a source": "view-source:http://127.0.0.1/",
    "port of nothing": "http://127.0.0.1:0/",
    "broken six": "http://[::1/",
    "empty": "",
}
NAMES = {
    "public_test": ["93.184.216.34"],
    "inside_test": ["10.1.2.3"],
    "a_localhost": ["127.0.0.1"],
    "http": ["127.0.0.1"],
    "cloud_test": [METADATA],
    "mixed_test": ["93.184.216.34", "127.0.0.1"],
    "six_test": ["::1"],
    "xn--bcher-kva_test": ["192.168.1.1"],
}
# What the system's own resolver makes of it; a name service of a test knows names only.
SYSTEM_NAMES = ("loopback", "decimal", "hexa", "octal", "short", "zero", "no address", "digits", "wide", "ideo")


async def refused(fetch: Callable[[], Awaitable[object]]) -> str:
    with trio.fail_after(10):
        try:
            await fetch()
        except (RefusedError, ToolError, ExternalError) as error:
            return str(error)
    raise AssertionError("it was fetched")


def ways(fetcher: Fetcher, folder: Path, url: str) -> dict[str, Callable[[], Awaitable[object]]]:
    gate = Gate(lambda: PermissionsConfig(profile="trusted"))
    return {
        "download": lambda: fetcher.download(url, folder / "file", max_bytes=1000),
        "get": lambda: fetcher.get(url, max_bytes=1000),
        "post": lambda: fetcher.post(url, b"x", {}),
        "permission": lambda: gate.check_url(url, tool="browser"),
        "page": lambda: gate.check_page(url),
    }


@pytest.mark.spec("C-68")
@pytest.mark.parametrize("name", ADDRESSES)
async def test_nothing_fetches_it(name: str, tmp_path: Path) -> None:
    url = ADDRESSES[name]
    if not name.startswith(SYSTEM_NAMES) and "in decimal" not in name and "in hexadecimal" not in name:
        numeric(answer(**NAMES))
    with noted() as notes:
        async with open_fetcher() as fetcher:
            for way, fetch in ways(fetcher, tmp_path, url).items():
                words = await refused(fetch)
                assert words, way
                assert "latest/meta-data" not in words
    assert "refused" in "".join(notes.lines()), notes.lines()
    assert not (tmp_path / "file").exists()


def numeric(names: Names) -> None:
    """Numbers are what they are, also to the name service of a test."""
    for host in (
        "127.0.0.1", "127.66.1.2", "10.0.0.1", "172.16.5.4", "192.168.0.1", "100.64.0.1", METADATA, "169.254.170.2",
        "100.100.100.200", "::1", "0:0:0:0:0:0:0:1", "::", "::ffff:127.0.0.1", "::ffff:7f00:1", "::127.0.0.1",
        "64:ff9b::7f00:1", "64:ff9b:1::a00:1", "2002:7f00:1::", "2001:0:5ef5:79fb::f5ff:fffe", "fd00::1",
        f"::ffff:{METADATA}", "64:ff9b::a9fe:a9fe", "fd00:ec2::254",
    ):  # fmt: skip
        names._answers[host] = [[host]]


REDIRECTS = (
    "metadata", "metadata in decimal", "loopback", "loopback of six", "mapped", "private ten", "file", "gopher", "data",
    "user before the host", "no scheme", "decimal", "octal",
)  # fmt: skip


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("name", REDIRECTS)
async def test_no_redirect_leads_there(name: str, steps: int, tmp_path: Path) -> None:
    """From a host that the owner allowed; what it points to is judged like everything else."""
    asked: list[str] = []

    async def handle(request: Request, connection: Connection) -> None:
        asked.append(request.path)
        target = f"/{len(asked)}" if len(asked) < steps else ADDRESSES[name]
        await connection.send(b"", status=302, headers={"location": target})

    async with serve(handle) as server, open_fetcher() as fetcher:
        with noted() as notes:
            words = await refused(
                lambda: fetcher.download(
                    f"{server.url}/0", tmp_path / "file", may_be_private=True, max_bytes=1000,
                    headers={"Authorization": "Bearer geheim"},
                )
            )  # fmt: skip
    assert len(asked) == steps
    assert "geheim" not in words
    assert "address refused" in "".join(notes.lines())


async def test_a_name_that_changes_its_answer_is_asked_once() -> None:
    names = Names({"turn.test": [["93.184.216.34"], ["127.0.0.1"]]})
    trio.socket.set_custom_hostname_resolver(names)
    gate = Gate(lambda: PermissionsConfig(profile="trusted"))
    place = await gate.check_url("http://turn.test/", tool="browser")
    assert (place.addresses, names.asked) == (("93.184.216.34",), ["turn.test"])
    with pytest.raises(DeniedError):
        await gate.check_url("http://turn.test/", tool="browser")


SPECS = {
    "metadata": f"http://{METADATA}/owner/repo",
    "another host": "https://github.com.evil.test/owner/repo",
    "user before the host": "https://github.com@evil.test/owner/repo",
    "open text": "http://github.com/owner/repo",
    "file": "file:///etc",
    "parents": "owner/../../passwd",
    "parent as a repository": "owner/..",
    "parent as a skill": "owner/repo/../../x",
    "coded parents": "owner/repo/%2e%2e/x",
    "query": "owner/repo?ref=x",
    "fragment": "owner/repo#x",
    "option": "--upload-pack=evil/repo",
    "NUL": "owner/repo/skill\0x",
    "line end": "owner/repo\nevil/repo",
    "shell": "owner/repo;id",
    "ssh": "git@github.com:owner/repo.git",
    "long": "o" * 300 + "/repo",
}


@pytest.mark.parametrize("name", SPECS)
def test_no_skill_comes_from_there(name: str) -> None:
    with pytest.raises(RefusedError) as caught:
        parse_source(SPECS[name])
    assert str(caught.value)


async def test_refusals_are_one_line_each_without_the_address(tmp_path: Path) -> None:
    notes: Notes
    async with open_fetcher() as fetcher:
        with noted() as notes:
            await refused(lambda: fetcher.get("http://127.0.0.1/?token=geheim", max_bytes=10))
    assert len(notes.lines()) == 1
    assert "geheim" not in notes.lines()[0]
