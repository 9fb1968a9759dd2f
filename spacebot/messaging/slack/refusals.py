"""What Slack's error codes mean: whether to try again, and what somebody has to do.

Floor:   messaging
Source:  messaging spec 18.4; the error tables of Slack's method pages
"""

from collections.abc import Mapping
from typing import Any

from spacebot.base.errors import DeliveryError

LONGEST_PAUSE_S = 600.0

_TOKEN = "make a new one on the app's page and put it into [messaging.slack]"
_REMEDIES = {
    "invalid_auth": f"the token is wrong (or bot_token and app_token are mixed up); {_TOKEN}",
    "not_authed": f"the token is missing; {_TOKEN}",
    "token_revoked": f"the token was revoked; install the app again, {_TOKEN}",
    "token_expired": f"the token has expired; {_TOKEN}",
    "account_inactive": "the app was removed from the workspace; install it again and take the new token",
    "not_allowed_token_type": "app_token must begin with xapp- (scope connections:write) and bot_token with xoxb-",
    "missing_scope": "a scope is missing: add it under OAuth & Permissions, then press Reinstall",
    "no_permission": "the token may not do this; look at the app's scopes and press Reinstall",
    "access_denied": "the workspace does not allow it; ask its administrator",
    "forbidden_team": "the app may not work in this workspace; ask its administrator",
    "team_access_not_granted": "the app is not installed in this workspace; ask its administrator",
    "org_login_required": "the workspace is moving to an organisation; try again when that is done",
    "ekm_access_denied": "the workspace's administrators have suspended access to messages",
    "socket_mode_not_enabled": "Socket Mode is off: switch it on under Settings > Socket Mode of the app",
    "channel_not_found": "there is no such channel, or the bot cannot see it: write `/invite @bot` there",
    "not_in_channel": "the bot is not in this channel: write `/invite @bot` there",
    "is_archived": "the channel is archived; nothing can be written there",
    "restricted_action": "the channel's settings do not let apps write there; a workspace owner can change that",
    "restricted_action_read_only_channel": "the channel is read-only for apps",
    "restricted_action_thread_only_channel": "in this channel apps may only answer in threads",
    "restricted_action_thread_locked": "the thread is locked",
    "restricted_action_non_threadable_channel": "this channel has no threads",
    "user_not_found": "there is no such person in this workspace",
    "cannot_dm_bot": "bots cannot be written to directly",
    "user_disabled": "the person's account is closed",
    "message_not_found": "the message is gone",
    "thread_not_found": "the thread is gone",
    "cant_update_message": "only messages of the bot itself can be changed",
    "edit_window_closed": "the workspace's settings do not let the message be changed any more",
    "invalid_name": "Slack does not know this emoji",
    "too_many_emoji": "the message has as many reactions as it can have",
    "too_many_reactions": "the message has as many reactions as it can have",
    "file_uploads_disabled": "files are switched off in this workspace",
    "storage_limit_reached": "the workspace has no room for files",
    "msg_too_long": "the message is too long",
    "no_text": "there is nothing to say in it",
    "method_not_supported_for_channel_type": "this kind of channel cannot do that",
}
_WORTH_TRYING_AGAIN = {
    "ratelimited",
    "rate_limited",
    "message_limit_exceeded",
    "internal_error",
    "fatal_error",
    "service_unavailable",
    "request_timeout",
    "team_added_to_org",
    "accesslimited",
}
CREDENTIALS = {"invalid_auth", "not_authed", "token_revoked", "token_expired", "account_inactive"}  # nothing works now


class SlackRefusal(DeliveryError):
    """Slack said no; `code` is its own word."""

    def __init__(self, message: str, *, code: str, is_permanent: bool, retry_after_s: float | None = None) -> None:
        super().__init__(message, is_permanent=is_permanent, retry_after_s=retry_after_s)
        self.code = code


def refusal(method: str, answer: Mapping[str, Any], status: int, retry_after: str | None) -> SlackRefusal:
    """Make the error of a refused call.

    Args:
        status: of HTTP; most refusals come with 200.
        retry_after: the header, seconds.
    """
    code = str(answer.get("error") or "")
    if status == 429 or code in ("ratelimited", "rate_limited"):
        return SlackRefusal(
            f"Slack asks to slow down ({method})",
            code="ratelimited",
            is_permanent=False,
            retry_after_s=_seconds(retry_after),
        )
    if not code:
        permanent = 400 <= status < 500 and status != 408
        return SlackRefusal(f"Slack failed at {method} (status {status})", code="", is_permanent=permanent)
    remedy = _REMEDIES.get(code)
    needed = answer.get("needed")
    if code == "missing_scope" and needed:
        remedy = f"the scope {needed} is missing: add it under OAuth & Permissions, then press Reinstall"
    text = f"Slack refused {method} ({code})" + (f": {remedy}" if remedy else "")
    return SlackRefusal(text, code=code, is_permanent=code not in _WORTH_TRYING_AGAIN and status < 500)


def lost(what: str, error: Exception) -> DeliveryError:
    """Make the error of a call that got no answer. The error's own text may hold a ticket, so only its kind is told."""
    return DeliveryError(f"no answer from Slack to {what} ({type(error).__name__})", is_permanent=False)


def _seconds(header: str | None) -> float | None:
    try:
        return min(max(float(header or ""), 0.0), LONGEST_PAUSE_S)
    except ValueError:
        return None
