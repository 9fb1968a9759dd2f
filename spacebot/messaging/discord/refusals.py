"""What Discord's refusals mean for the people who run the bot.

Floor:   messaging
Source:  https://discord.com/developers/docs/topics/opcodes-and-status-codes
"""

import hikari

from spacebot.base.errors import DeliveryError, ExternalError

NO_TOKEN = "Discord refused the token: make a new one (Developer Portal, Bot, Reset Token) and put it into the account"
_CLOSED = {
    4004: NO_TOKEN,
    4010: "Discord refused the connection's shard; start it again",
    4011: "the bot is in too many servers for one connection",
    4013: "Discord does not know one of the intents; update the program",
    4014: "Discord refused an intent: switch on Message Content Intent (Developer Portal, Bot, Privileged Gateway "
    "Intents) and save",
}
_REFUSED = {
    10003: "the channel or thread does not exist any more",
    10004: "the bot is not in that server any more",
    10008: "the message does not exist any more",
    10014: "Discord does not know this emoji",
    50001: "the bot cannot see this channel: give it View Channel there",
    50007: "this person does not take direct messages from the bot",
    50083: "the thread is archived and locked",
    90001: "this person has blocked the bot",
    160005: "the thread is locked",
}


def explain(error: Exception, needs: str) -> DeliveryError:
    """What an error of the library means for people, without addresses (they hold tokens).

    Args:
        needs: the permission that the call needs.
    """
    match error:
        case DeliveryError():
            return error
        case hikari.RateLimitTooLongError():
            return DeliveryError(
                "Discord asks for a pause", is_permanent=False, retry_after_s=max(float(error.retry_after), 1.0)
            )
        case hikari.GatewayServerClosedConnectionError():
            code = int(error.code) if error.code is not None else 0
            text = _CLOSED.get(code, f"Discord closed the connection (code {code})")
            return DeliveryError(text, is_permanent=code in _CLOSED and code != 4010)
        case hikari.UnauthorizedError():
            return DeliveryError(NO_TOKEN, is_permanent=True)
        case hikari.ClientHTTPResponseError() | hikari.HTTPResponseError():
            return _explain_answer(int(error.status), int(error.code), error.message, needs)
        case FileNotFoundError():
            return DeliveryError("the file to send is not there any more", is_permanent=True)
        case (
            hikari.HTTPError()
            | hikari.GatewayError()
            | hikari.ComponentStateConflictError()
            | OSError()
            | TimeoutError()
            | ExternalError()
        ):
            return DeliveryError("Discord cannot be reached now", is_permanent=False)
    return DeliveryError(f"the Discord library failed ({type(error).__name__})", is_permanent=False)


def _explain_answer(status: int, code: int, message: str, needs: str) -> DeliveryError:
    if status >= 500 or status in (408, 429):
        return DeliveryError(f"Discord failed (status {status})", is_permanent=False)
    if code in _REFUSED:
        return DeliveryError(_REFUSED[code], is_permanent=True)
    if status == 403:
        return DeliveryError(f"the bot may not do this in the channel: give it {needs} there", is_permanent=True)
    if status == 413 or code == 40005:
        return DeliveryError("the file is larger than Discord takes here", is_permanent=True)
    return DeliveryError(f"Discord refused it: {message or 'invalid'} (code {code or status})", is_permanent=True)
