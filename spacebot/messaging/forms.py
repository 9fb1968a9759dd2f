"""What a platform is asked for when somebody connects it for the first time, and whether its token is taken.

The questions are data, so that whoever asks them, in a terminal or a browser, knows no platform. A token is tried with
one call of the platform's own, before anything is written.

Flow:    FORMS -> answers -> account_of, binding_of; try_account -> who the bot is there
Floor:   messaging
Source:  control spec 1.6, 1.7 and 1.9
"""

import json
import os
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from spacebot import __version__
from spacebot.base.errors import ExternalError, RefusedError
from spacebot.base.fetch import Answer, Fetcher

MAX_ANSWER = 1_000_000  # bytes
ANSWER_S = 15.0
_NUMBER = re.compile(r"-?\d{1,25}")
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One thing that is asked.

    Args:
        key: of the account's table, or of the binding with `is_binding`.
        variable: environment variable and name in the secret store; of a secret only.
        shape: what each value has to look like; None takes anything.
        wanted: what is said of a value that does not.
        is_list: several values with commas between them.
    """

    key: str
    text: str
    variable: str | None = None
    shape: re.Pattern[str] | None = None
    wanted: str = ""
    is_needed: bool = False
    is_list: bool = False
    is_binding: bool = False

    def read(self, text: str) -> str | list[str] | None:
        """The value of what was typed; None for nothing. Errors: RefusedError, which says what is wanted."""
        words = [word for part in text.split(",") if (word := part.strip())] if self.is_list else [text.strip()]
        words = [word for word in words if word]
        if not words:
            if self.is_needed:
                raise RefusedError(f"{self.text} is needed")
            return None
        if self.shape is not None and any(self.shape.fullmatch(word) is None for word in words):
            raise RefusedError(self.wanted)
        return words if self.is_list else words[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """A platform: where its token comes from, and what is asked."""

    platform: str
    name: str
    how: str
    questions: tuple[Question, ...]

    def account_of(self, answers: Mapping[str, Any]) -> dict[str, Any]:
        """The account's table."""
        keys = [question.key for question in self.questions if not question.is_binding]
        return {key: answers[key] for key in keys if answers.get(key)} | {"enabled": True}

    def binding_of(self, answers: Mapping[str, Any], agent_id: str) -> dict[str, Any]:
        """The binding to an agent."""
        keys = [question.key for question in self.questions if question.is_binding]
        return {"agent_id": agent_id, "channel": self.platform} | {
            key: answers[key] for key in keys if answers.get(key)
        }


def _people(text: str) -> Question:
    wanted = "people are numbers there, or * for everybody"
    return Question(key="dm_allowed_users", text=text, shape=re.compile(r"\d+|\*"), wanted=wanted, is_list=True)


FORMS: Mapping[str, Form] = MappingProxyType(
    {
        "discord": Form(
            platform="discord",
            name="Discord",
            how="The token stands in the developer portal (discord.com/developers), on the page 'Bot' of your "
            "application; switch on 'Message Content Intent' there.",
            questions=(
                Question(
                    key="token", text="Bot token", variable="DISCORD_BOT_TOKEN", is_needed=True,
                    shape=re.compile(r"[\w-]+\.[\w-]+\.[\w-]+"),
                    wanted="a bot's token has three parts with dots between them; it is not the client secret",
                ),
                Question(
                    key="guild_id", text="Server's id (empty: wherever the bot is)", shape=_NUMBER, is_binding=True,
                    wanted="a server's id is a number (developer mode, right click on the server, Copy Server ID)",
                ),
                Question(
                    key="channel_ids", text="Channels' ids, with commas (empty: all)", shape=_NUMBER, is_list=True,
                    wanted="a channel's id is a number (developer mode, right click, Copy Channel ID)", is_binding=True,
                ),
                _people("People who may write directly: their ids, with commas (empty: nobody)"),
            ),
        ),
        "telegram": Form(
            platform="telegram",
            name="Telegram",
            how="Talk to @BotFather on Telegram, say /newbot, and copy the token that it gives.",
            questions=(
                Question(
                    key="token", text="Bot token", variable="TELEGRAM_BOT_TOKEN", is_needed=True,
                    shape=re.compile(r"\d+:\S+"), wanted="a bot's token is a number, a colon and letters",
                ),
                Question(
                    key="chat_id", text="Chat's id (empty: every chat)", shape=_NUMBER, is_binding=True,
                    wanted="a chat's id is a number; /whoami shows it",
                ),
                _people("People who may write directly: their ids, with commas (empty: anybody)"),
            ),
        ),
        "slack": Form(
            platform="slack",
            name="Slack",
            how="Make an app with the manifest in docs/platforms/slack.md; the bot token stands under 'OAuth & "
            "Permissions', the app token under 'Basic Information'.",
            questions=(
                Question(
                    key="bot_token", text="Bot token (xoxb-…)", variable="SLACK_BOT_TOKEN", is_needed=True,
                    shape=re.compile(r"xoxb-\S+"), wanted="a bot token begins with xoxb-",
                ),
                Question(
                    key="app_token", text="App token (xapp-…)", variable="SLACK_APP_TOKEN", is_needed=True,
                    shape=re.compile(r"xapp-\S+"), wanted="an app token begins with xapp-",
                ),
                Question(
                    key="workspace_id", text="Workspace's id (empty: every one)", shape=_WORD, is_binding=True,
                    wanted="a workspace's id is a word such as T0123456789",
                ),
                Question(
                    key="channel_ids", text="Channels' ids, with commas (empty: all)", shape=_WORD, is_list=True,
                    wanted="a channel's id is a word such as C0123456789, below the channel's details", is_binding=True,
                ),
                Question(
                    key="dm_allowed_users", text="People who may write directly: ids, with commas (empty: nobody)",
                    shape=re.compile(r"[UW][A-Z0-9]+|\*"), wanted="people are words such as U0123456789, or *",
                    is_list=True,
                ),
            ),
        ),
    }
)  # fmt: skip


async def try_account(
    platform: str, answers: Mapping[str, Any], fetcher: Fetcher, *, environ: Mapping[str, str] = os.environ
) -> str:
    """Ask the platform who the token's bot is; returns that for people, with what is still to be done.

    Errors: RefusedError when the token is not taken, or the bot is not where it should be; ExternalError when the
    platform cannot be reached.
    """
    return await _TRIALS[platform](answers, fetcher, environ)


async def _try_discord(answers: Mapping[str, Any], fetcher: Fetcher, environ: Mapping[str, str]) -> str:
    root = environ.get("SPACEBOT_DISCORD_REST_URL", "").strip().rstrip("/") or "https://discord.com/api/v10"
    headers = {
        "authorization": f"Bot {answers['token']}",
        "user-agent": f"DiscordBot (spacebot, {__version__})",
    }
    me = _object(await _get(fetcher, f"{root}/users/@me", headers), "Discord")
    invitation = f"https://discord.com/oauth2/authorize?client_id={me.get('id')}&scope=bot+applications.commands"
    invitation += "&permissions=563259191184448"  # docs/platforms/discord.md names them
    if guild := answers.get("guild_id"):
        answer = await _get(fetcher, f"{root}/guilds/{guild}", headers)
        if answer.status in (403, 404):
            raise RefusedError(f"the bot {_name(me)} is not on the server {guild}; invite it: {invitation}")
        return f"{_name(me)} on {_object(answer, 'Discord').get('name', guild)}"
    return f"{_name(me)}; where it is not yet, invite it: {invitation}"


async def _try_telegram(answers: Mapping[str, Any], fetcher: Fetcher, environ: Mapping[str, str]) -> str:
    root = environ.get("SPACEBOT_TELEGRAM_API_URL", "").strip().rstrip("/") or "https://api.telegram.org"
    answer = await _get(fetcher, f"{root}/bot{answers['token']}/getMe", {})
    if answer.status == 404:
        raise RefusedError("Telegram does not take this token; copy it once more")
    return f"@{_name(_object(answer, 'Telegram').get('result') or {})}"


async def _try_slack(answers: Mapping[str, Any], fetcher: Fetcher, environ: Mapping[str, str]) -> str:
    root = environ.get("SPACEBOT_SLACK_API_URL", "").strip().rstrip("/") or "https://slack.com/api"
    headers = {"authorization": f"Bearer {answers['bot_token']}"}
    said = _object(await _get(fetcher, f"{root}/auth.test", headers), "Slack")
    if said.get("ok") is not True:
        raise RefusedError(f"Slack does not take this token ({str(said.get('error'))[:60]}); copy it once more")
    return f"{said.get('user')} in {said.get('team')}"


async def _get(fetcher: Fetcher, url: str, headers: Mapping[str, str]) -> Answer:
    return await fetcher.get(url, headers=headers, may_be_private=True, max_bytes=MAX_ANSWER, timeout_s=ANSWER_S)


def _object(answer: Answer, platform: str) -> Mapping[str, Any]:
    """What a platform says. Errors: RefusedError for a token that it does not take, ExternalError for all else."""
    if answer.status in (401, 403):
        raise RefusedError(f"{platform} does not take this token; copy it once more")
    try:
        said = json.loads(answer.body)
    except (ValueError, RecursionError):
        said = None
    if answer.status != 200 or not isinstance(said, dict):
        raise ExternalError(f"{platform} answered with status {answer.status}; try again in a moment")
    return said


def _name(person: Mapping[str, Any]) -> str:
    return str(person.get("username") or person.get("first_name") or person.get("id") or "a bot")[:80]


_TRIALS: Mapping[str, Callable[[Mapping[str, Any], Fetcher, Mapping[str, str]], Awaitable[str]]] = {
    "discord": _try_discord,
    "telegram": _try_telegram,
    "slack": _try_slack,
}
