"""Chromium and its driver on this machine: where they are, and how they are started.

Floor:   tools
Source:  tools spec 6.3; Chromium's switches as of version 120 and later
"""

import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from spacebot.base.errors import ToolError

NAMES = (
    "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "chromium-headless-shell",
    "headless-shell",
)  # fmt: skip
MAC_PLACES = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
)
DRIVER_PLACES = ("/usr/lib/chromium/chromedriver", "/usr/lib/chromium-browser/chromedriver", "/usr/lib64/chromium-browser/chromedriver", "/snap/bin/chromium.chromedriver")  # fmt: skip # noqa: E501
VARIABLES = ("CHROME", "CHROME_PATH")
WINDOW = (1280, 900)
HOW_TO_INSTALL = (
    "Debian and Ubuntu: sudo apt install chromium chromium-driver; Fedora: sudo dnf install chromium chromedriver; "
    "macOS: brew install --cask google-chrome chromedriver"
)
# Own pages of the browser's maker, reports, updates: nothing that a worker asked for.
_SILENT = (
    "--no-first-run", "--no-default-browser-check", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-default-apps", "--disable-domain-reliability", "--disable-breakpad", "--no-pings",
    "--disable-client-side-phishing-detection", "--metrics-recording-only", "--password-store=basic",
    "--use-mock-keychain", "--disable-search-engine-choice-screen", "--mute-audio", "--disable-extensions",
)  # fmt: skip
# No way past the proxy: no loopback exception, no QUIC, no datagrams of WebRTC, no names resolved ahead.
_ENCLOSED = (
    "--proxy-bypass-list=<-loopback>", "--disable-quic", "--dns-prefetch-disable",
    "--force-webrtc-ip-handling-policy=disable_non_proxied_udp", "--webrtc-ip-handling-policy=disable_non_proxied_udp",
)  # fmt: skip
# One process for all frames, so that frames of other origins are in the same snapshot and take the same clicks. The
# browser holds nothing but what this worker gave it.
_WHOLE = (
    "--disable-site-isolation-trials",
    "--disable-features=IsolateOrigins,site-per-process,Translate,OptimizationHints,MediaRouter,DialMediaRouteProvider,"
    "AutofillServerCommunication,CertificateTransparencyComponentUpdater,HttpsUpgrades,HttpsFirstBalancedModeAutoEnable",
    "--enable-blink-features=ComputedAccessibilityInfo",  # roles and names of the accessibility tree, readable in bulk
)
# The driver talks with it through pipes: a port would let every process of the machine steer it.
_PIPED = ("--remote-debugging-pipe",)
_STEADY = (
    "--disable-dev-shm-usage", "--disable-gpu", "--disable-hang-monitor", "--disable-popup-blocking",
    "--disable-backgrounding-occluded-windows", "--disable-renderer-backgrounding",
    "--disable-background-timer-throttling", "--disk-cache-size=52428800", f"--window-size={WINDOW[0]},{WINDOW[1]}",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Programs:
    """The two programs of a browser, as absolute paths."""

    chromium: str
    driver: str


def find_programs(configured: Path | None, environment: Mapping[str, str]) -> Programs:
    """Find browser and driver. Blocking: looks at files.

    Args:
        configured: the owner's `executable_path`, which must exist when it is set.
        environment: the program's own; CHROME and CHROME_PATH name the browser there, CHROMEDRIVER the driver.

    Errors: ToolError that says how to install what is missing.
    """
    path = environment.get("PATH", os.defpath)
    chromium = _chromium(configured, environment, path)
    beside = str(Path(os.path.realpath(chromium)).with_name("chromedriver"))
    driver = next(
        (
            found
            for place in (environment.get("CHROMEDRIVER", ""), "chromedriver", beside, *DRIVER_PLACES)
            if place and (found := shutil.which(place, path=path))
        ),
        None,
    )
    if driver is None:
        raise ToolError(
            f"there is a browser, but not its driver (chromedriver). The owner can install it. {HOW_TO_INSTALL}"
        )
    return Programs(chromium, os.path.abspath(driver))


def _chromium(configured: Path | None, environment: Mapping[str, str], path: str) -> str:
    if configured is not None:
        if owners := shutil.which(str(configured.expanduser()), path=path):
            return os.path.abspath(str(owners))
        raise ToolError(
            f"browser.executable_path is {str(configured)!r}, which is no program; "
            "the owner can correct it or leave it out"
        )
    named = [environment[name] for name in VARIABLES if environment.get(name)]
    places = (*named, *NAMES, *(MAC_PLACES if sys.platform == "darwin" else ()))
    for place in places:
        if found := shutil.which(place, path=path):
            return os.path.abspath(str(found))
    raise ToolError(
        f"no browser is installed on this machine (Chromium or Chrome). The owner can install one. {HOW_TO_INSTALL}"
    )


def switches(*, profile: Path, proxy_port: int, headless: bool, is_contained: bool, more: str = "") -> list[str]:
    """The command line of a browser.

    Args:
        profile: its folder, as it sees it.
        is_contained: it runs in a sandbox already, where its own cannot work.
        more: `CHROME_FLAGS` of the owner, split at blanks.
    """
    words = [*_SILENT, *_ENCLOSED, *_WHOLE, *_PIPED, *_STEADY]
    words += [f"--user-data-dir={profile}", f"--proxy-server=http://127.0.0.1:{proxy_port}"]
    if headless:
        words.append("--headless=new")
    if is_contained or (hasattr(os, "geteuid") and os.geteuid() == 0):
        words.append("--no-sandbox")  # its own needs rights that it has neither as root nor inside another sandbox
    return [*words, *more.split()]


def preferences(downloads: Path) -> dict[str, object]:
    """Settings of a profile: downloads without asking, nothing saved, nothing offered."""
    return {
        "download.default_directory": str(downloads),
        "download.prompt_for_download": False,
        "download.directory_upgrade": True,
        "safebrowsing.enabled": False,
        "credentials_enable_service": False,
        "profile.password_manager_enabled": False,
        "profile.default_content_setting_values.notifications": 2,
        "profile.default_content_setting_values.geolocation": 2,
        "profile.default_content_setting_values.media_stream": 2,
        "plugins.always_open_pdf_externally": True,
        "webrtc.ip_handling_policy": "disable_non_proxied_udp",
    }
