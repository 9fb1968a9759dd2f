"""Does a page keep programs out? A worker that is told so stops trying, instead of going round in circles.

Signals are what providers of such pages leave in them. One sign alone is never enough for a guess: a provider's script
is on many ordinary pages, so its widget must be in sight or the page must hold little else.

Floor:   tools
Source:  tools spec 6.5
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

LITTLE_TEXT = 600  # characters of a page that consists of a challenge
CHALLENGE_SIGNS = 2

_PROVIDERS = {
    "turnstile": ("challenges.cloudflare.com/turnstile", "challenges.cloudflare.com/cdn-cgi"),
    "hcaptcha": ("hcaptcha.com/",),
    "recaptcha": ("google.com/recaptcha", "recaptcha.net/recaptcha", "gstatic.com/recaptcha"),
}
_FIELDS = {
    "cf-turnstile-response": "turnstile",
    "h-captcha-response": "hcaptcha",
    "g-recaptcha-response": "recaptcha",
}
_TITLES = re.compile(r"^(just a moment|attention required|checking your browser)", re.IGNORECASE)
_WORDS = re.compile(
    r"checking (if the site connection is secure|your browser)|verify(ing)? (that )?you are (a )?human|"
    r"enable javascript and cookies to continue|ray id",
    re.IGNORECASE,
)
_LOGIN = re.compile(r"/(login|log-in|signin|sign-in|sign_in|auth|account/login|users/sign_in)/?$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Block:
    """Why a page is of no use.

    Args:
        reason: captcha, fraud_detect or login_wall.
        detail: which provider, or where it led.
    """

    reason: str
    detail: str


def find_block(signs: Mapping[str, Any], *, wanted_url: str | None, final_url: str) -> Block | None:
    """Judge what a page shows.

    Args:
        signs: what `SIGNS` found in it.
        wanted_url: what was asked for; None when the page came by a click.
    """
    challenge = [*signs.get("marks", ())]
    challenge += ["title"] if _TITLES.search(str(signs.get("title", ""))) else []
    is_short = int(signs.get("size", 0)) < LITTLE_TEXT
    challenge += ["words"] if is_short and _WORDS.search(str(signs.get("words", ""))) else []
    if len(challenge) >= CHALLENGE_SIGNS and is_short:
        return Block("fraud_detect", "a page that checks for programs (Cloudflare)")
    provider = _provider(signs.get("widgets", ()))
    if provider is None and is_short:
        provider = _provider(signs.get("sources", ())) or next(
            (_FIELDS[name] for name in signs.get("fields", ()) if name in _FIELDS), None
        )
    if provider is not None:
        return Block("captcha", provider)
    return _login_wall(wanted_url, final_url)


def _provider(addresses: Sequence[str]) -> str | None:
    for address in addresses:
        plain = str(address).partition("//")[2]
        for provider, places in _PROVIDERS.items():
            if any(plain.startswith((place, f"www.{place}", f"js.{place}", f"newassets.{place}")) for place in places):
                return provider
    return None


def _login_wall(wanted_url: str | None, final_url: str) -> Block | None:
    if wanted_url is None:
        return None
    wanted, final = urlsplit(wanted_url), urlsplit(final_url)
    if wanted.hostname == final.hostname and _LOGIN.search(final.path) and not _LOGIN.search(wanted.path):
        return Block("login_wall", f"it led to {final.path[:200]}")
    return None
