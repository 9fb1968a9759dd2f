"""The Bot API's methods, as a strict stand-in of Telegram answers them.

Flow: Telegram.handle -> BotApi.call(method, form) -> result, or ApiError as the real server words it
"""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import trio

from tests.stand_ins.serving import Server
from tests.stand_ins.telegram_forms import HtmlError, Upload, parse_html, utf16_length

TOKEN = "700000001:AAstandInStandInStandInStandInStand"
GENERAL = ("message_thread_id", "reply_parameters", "reply_markup", "disable_notification", "protect_content")
WORDS = ("text", "parse_mode", "entities", "link_preview_options")
CAPTION = ("caption", "parse_mode", "caption_entities")
PARAMETERS: dict[str, tuple[str, ...]] = {
    "getMe": (),
    "getWebhookInfo": (),
    "deleteWebhook": ("drop_pending_updates",),
    "getMyCommands": ("scope", "language_code"),
    "setMyCommands": ("commands", "scope", "language_code"),
    "getUpdates": ("offset", "limit", "timeout", "allowed_updates"),
    "getFile": ("file_id",),
    "getChat": ("chat_id",),
    "getChatMember": ("chat_id", "user_id"),
    "sendMessage": ("chat_id", *WORDS, *GENERAL),
    "editMessageText": ("chat_id", "message_id", "reply_markup", *WORDS),
    "deleteMessage": ("chat_id", "message_id"),
    "sendPhoto": ("chat_id", "photo", *CAPTION, *GENERAL),
    "sendVideo": ("chat_id", "video", *CAPTION, *GENERAL),
    "sendVoice": ("chat_id", "voice", *CAPTION, *GENERAL),
    "sendAudio": ("chat_id", "audio", *CAPTION, *GENERAL),
    "sendDocument": ("chat_id", "document", *CAPTION, *GENERAL),
    "sendPoll": ("chat_id", "question", "options", "is_anonymous", "allows_multiple_answers", "open_period", *GENERAL),
    "sendChatAction": ("chat_id", "action", "message_thread_id"),
    "setMessageReaction": ("chat_id", "message_id", "reaction", "is_big"),
    "answerCallbackQuery": ("callback_query_id", "text", "show_alert", "url", "cache_time"),
}
REACTIONS = set(
    "👍👎❤🔥🥰👏😁🤔🤯😱🤬😢🎉🤩🤮💩🙏👌🕊🤡🥱🥴😍🐳🌚🌭💯🤣⚡🍌🏆💔🤨😐🍓🍾💋🖕😈😴😭🤓👻👀🎃🙈😇😨🤝✍🤗🫡🎅🎄☃💅🤪🗿🆒💘🙉🦄😘💊🙊😎👾😡"
)
MEDIA = {
    "sendPhoto": "photo",
    "sendVideo": "video",
    "sendVoice": "voice",
    "sendAudio": "audio",
    "sendDocument": "document",
}
CONFLICT = "Conflict: terminated by other getUpdates request; make sure that only one bot instance is running"
IMAGES = (b"\x89PNG", b"\xff\xd8\xff", b"RIFF", b"GIF8")


class ApiError(Exception):
    """A refusal, as the real server words it."""

    def __init__(self, code: int, description: str, **parameters: float) -> None:
        super().__init__(description)
        self.code = code
        self.description = description
        self.parameters = parameters


@dataclass(slots=True)
class User:
    """A person or a bot."""

    id: int
    first_name: str
    last_name: str = ""
    username: str = ""
    is_bot: bool = False

    def json(self) -> dict[str, Any]:
        """As the API tells it."""
        told: dict[str, Any] = {"id": self.id, "is_bot": self.is_bot, "first_name": self.first_name}
        return told | {name: value for name in ("last_name", "username") if (value := getattr(self, name))}


@dataclass(slots=True)
class Chat:
    """A private chat, group, supergroup or forum; `refusal` is what the bot hears when it writes there."""

    id: int
    type: str
    title: str = ""
    person: User | None = None
    is_forum: bool = False
    topics: dict[int, str] = field(default_factory=dict)
    administrators: set[int] = field(default_factory=set)
    refusal: ApiError | None = None
    messages: dict[int, dict[str, Any]] = field(default_factory=dict)
    numbers: Iterator[int] = field(default_factory=lambda: count(1))

    def json(self) -> dict[str, Any]:
        """As the API tells it."""
        told: dict[str, Any] = {"id": self.id, "type": self.type}
        if self.person is not None:
            told |= {"first_name": self.person.first_name}
        if self.title:
            told["title"] = self.title
        return told | ({"is_forum": True} if self.is_forum else {})


@dataclass(slots=True, kw_only=True)
class Sent:
    """A message of the bot; `text` is what people read, `raw` what came in, `edits` every later text with its time."""

    chat_id: int
    message_id: int
    method: str
    text: str = ""
    raw: str = ""
    parse_mode: str | None = None
    entities: list[dict[str, Any]] = field(default_factory=list)
    thread_id: int | None = None
    reply_to: int | None = None
    keyboard: list[list[dict[str, Any]]] = field(default_factory=list)
    upload: Upload | None = None
    poll: dict[str, Any] | None = None
    preview: dict[str, Any] | None = None
    edits: list[tuple[float, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Poller:
    woken: trio.Event = field(default_factory=trio.Event)
    is_terminated: bool = False


GIFTS = dict.fromkeys(
    ("unlimited_gifts", "limited_gifts", "unique_gifts", "premium_subscription", "gifts_from_channels"), False
)
ADMINISTRATOR = (
    "can_manage_chat",
    "can_delete_messages",
    "can_manage_video_chats",
    "can_restrict_members",
    "can_promote_members",
    "can_change_info",
    "can_invite_users",
    "can_post_stories",
    "can_edit_stories",
    "can_delete_stories",
)


class BotApi:
    """What the server knows and does; the people around it are in `Telegram`."""

    def __init__(self, *, token: str, username: str, latency_s: float, keep: bool) -> None:
        self.token = token
        self.me = User(int(token.partition(":")[0]), "Spacebot", username=username, is_bot=True)
        self.server: Server | None = None
        self.latency_s = latency_s
        self.keep = keep
        self.now = 1_800_000_000  # date of the next message; one second later each time
        self.chats: dict[int, Chat] = {}
        self.sent: list[Sent] = []
        self.deleted: list[tuple[int, int]] = []
        self.reactions: list[tuple[int, int, list[str]]] = []
        self.actions: list[tuple[int, str, int | None]] = []
        self.answered: list[str] = []
        self.calls: list[str] = []
        self.downloads: list[str] = []
        self.complaints: list[str] = []
        self.commands: list[dict[str, str]] = []
        self.webhook = ""
        self.is_revoked = False
        self.refuse_entities = 0  # so many HTML texts are refused as broken
        self.conflicts = 0
        self.polls = 0
        self.pending: list[dict[str, Any]] = []
        self._allowed: list[str] | None = None
        self._refusals: list[tuple[str | None, ApiError | None, bool]] = []  # method, error or hang-up, after the deed
        self._files: dict[str, tuple[str, bytes]] = {}
        self._file_sizes: dict[str, int] = {}
        self._update_ids = count(500)
        self._user_ids = count(1001)
        self._chat_ids = count(2001)
        self._poller: _Poller | None = None
        self._changed = trio.Event()

    async def call(self, method: str, form: Mapping[str, Any]) -> object:
        if method not in PARAMETERS:
            self.complaints.append(f"unknown method {method}")
            raise ApiError(404, "Not Found")
        if unknown := set(form) - set(PARAMETERS[method]):
            self.complaints.append(f"{method}: unknown parameters {sorted(unknown)}")
        if method == "getUpdates":
            return await self._get_updates(form)
        if method in MEDIA:
            return self._send_media(method, form)
        answer: Callable[[Mapping[str, Any]], object] = getattr(self, f"_{method}")
        return answer(form)

    async def _get_updates(self, form: Mapping[str, Any]) -> list[dict[str, Any]]:
        if self.webhook:
            text = "Conflict: can't use getUpdates method while webhook is active; use deleteWebhook to delete it first"
            raise ApiError(409, text)
        if self._poller is not None:
            self.conflicts += 1
            self._poller.is_terminated = True
            self._poller.woken.set()
        poller = self._poller = _Poller()
        self.polls += 1
        self._note()
        offset, limit = int(form.get("offset", 0)), int(form.get("limit", 100))
        if "allowed_updates" in form:
            self._allowed = json.loads(form["allowed_updates"])
        try:
            with trio.move_on_after(float(form.get("timeout", 0))):
                while True:
                    self.pending = [update for update in self.pending if update["update_id"] >= offset]
                    if self.pending:
                        break
                    poller.woken = trio.Event()
                    await poller.woken.wait()
                    if poller.is_terminated:
                        raise ApiError(409, CONFLICT)
            return self.pending[:limit]
        finally:
            if self._poller is poller:
                self._poller = None

    def _getMe(self, form: Mapping[str, Any]) -> object:
        return self.me.json() | {"can_join_groups": True, "can_read_all_group_messages": True}

    def _getWebhookInfo(self, form: Mapping[str, Any]) -> object:
        return {"url": self.webhook, "has_custom_certificate": False, "pending_update_count": len(self.pending)}

    def _deleteWebhook(self, form: Mapping[str, Any]) -> object:
        if form.get("drop_pending_updates") == "true":
            self.complaints.append("deleteWebhook: pending updates thrown away")
            self.pending.clear()
        self.webhook = ""
        return True

    def _getMyCommands(self, form: Mapping[str, Any]) -> object:
        return self.commands

    def _setMyCommands(self, form: Mapping[str, Any]) -> object:
        commands = json.loads(form["commands"])
        for command in commands:
            name = command["command"]
            if not (
                0 < len(name) <= 32 and name.isascii() and name.replace("_", "a").isalnum() and name == name.lower()
            ):
                raise self._refuse("BOT_COMMAND_INVALID")
            if not 0 < len(command["description"]) <= 256:
                raise self._refuse("BOT_COMMAND_DESCRIPTION_INVALID")
        self.commands = commands
        return True

    def _getFile(self, form: Mapping[str, Any]) -> object:
        identity = form["file_id"]
        if identity not in self._files:
            raise ApiError(400, "Bad Request: wrong file_id or the file is temporarily unavailable")
        if self._file_sizes[identity] > 20 * 1024 * 1024:
            raise ApiError(400, "Bad Request: file is too big")
        path, data = self._files[identity]
        return {"file_id": identity, "file_unique_id": f"u{identity}", "file_size": len(data), "file_path": path}

    def _getChat(self, form: Mapping[str, Any]) -> object:
        chat = self._chat(form)
        return chat.json() | {"accent_color_id": 1, "max_reaction_count": 11, "accepted_gift_types": GIFTS}

    def _getChatMember(self, form: Mapping[str, Any]) -> object:
        chat, number = self._chat(form), int(form["user_id"])
        user = User(number, "Member").json()
        if number not in chat.administrators:
            return {"status": "member", "user": user}
        rights = ("can_be_edited", "is_anonymous", *ADMINISTRATOR)
        return {"status": "administrator", "user": user} | dict.fromkeys(rights, False)

    def _sendMessage(self, form: Mapping[str, Any]) -> object:
        text, entities = self._words(form, "text", 4096, "message is too long")
        if not text:
            raise self._refuse("message text is empty")
        preview = json.loads(form["link_preview_options"]) if "link_preview_options" in form else None
        return self._deliver("sendMessage", form, text=text, entities=entities, raw=form["text"], preview=preview)

    def _send_media(self, method: str, form: Mapping[str, Any]) -> object:
        kind = MEDIA[method]
        upload = form[kind]
        if not isinstance(upload, Upload):
            raise self._refuse("wrong file identifier/HTTP URL specified")
        if len(upload.data) > 50 * 1024 * 1024:
            self.complaints.append(f"{method}: over 50 MB")
            raise ApiError(413, "Request Entity Too Large")
        if kind == "photo" and len(upload.data) > 10 * 1024 * 1024:
            raise self._refuse("PHOTO_FILE_TOO_BIG")
        if kind == "photo" and not upload.data.startswith(IMAGES):
            raise ApiError(400, "Bad Request: IMAGE_PROCESS_FAILED")
        text, entities = self._words(form, "caption", 1024, "message caption is too long")
        return self._deliver(method, form, text=text, entities=entities, raw=form.get("caption", ""), upload=upload)

    def _sendPoll(self, form: Mapping[str, Any]) -> object:
        question, options = form["question"], [option["text"] for option in json.loads(form["options"])]
        if not 0 < utf16_length(question) <= 300:
            raise self._refuse("poll question length must not exceed 300")
        if not 2 <= len(options) <= 12:
            raise self._refuse("poll must have at least 2 option and at most 12")
        if not all(0 < utf16_length(option) <= 100 for option in options):
            raise self._refuse("poll options length must not exceed 100")
        open_s = int(form.get("open_period", 60))
        if not 5 <= open_s <= 2_628_000:
            raise self._refuse("wrong open_period specified")
        poll = {
            "id": "1",
            "question": question,
            "options": [{"text": option, "voter_count": 0, "persistent_id": option} for option in options],
            "total_voter_count": 0,
            "is_closed": False,
            "is_anonymous": form.get("is_anonymous") != "false",
            "type": "regular",
            "allows_multiple_answers": form.get("allows_multiple_answers") == "true",
            "allows_revoting": True,
            "members_only": False,
            "open_period": open_s,
        }
        return self._deliver("sendPoll", form, poll=poll)

    def _editMessageText(self, form: Mapping[str, Any]) -> object:
        chat = self._writable(form)
        text, entities = self._words(form, "text", 4096, "message is too long")
        markup = self._keyboard(form)
        number = int(form["message_id"])
        sent = next((sent for sent in self.sent if (sent.chat_id, sent.message_id) == (chat.id, number)), None)
        if sent is None or (chat.id, number) in self.deleted:
            raise ApiError(400, "Bad Request: message to edit not found")
        if (sent.text, sent.entities, sent.keyboard) == (text, entities, markup):
            raise ApiError(400, "Bad Request: message is not modified: specified new message content is the same")
        sent.text, sent.entities, sent.keyboard, sent.raw = text, entities, markup, form["text"]
        sent.edits.append((trio.current_time(), text))
        message = chat.messages[number] | {"text": text, "reply_markup": {"inline_keyboard": markup}}
        chat.messages[number] = message
        return message

    def _deleteMessage(self, form: Mapping[str, Any]) -> object:
        chat, number = self._chat(form), int(form["message_id"])
        if number not in chat.messages or (chat.id, number) in self.deleted:
            raise ApiError(400, "Bad Request: message to delete not found")
        self.deleted.append((chat.id, number))
        self.sent = [sent for sent in self.sent if (sent.chat_id, sent.message_id) != (chat.id, number)]
        return True

    def _sendChatAction(self, form: Mapping[str, Any]) -> object:
        chat = self._writable(form)
        self.actions.append((chat.id, form["action"], self._thread(chat, form)))
        return True

    def _setMessageReaction(self, form: Mapping[str, Any]) -> object:
        chat, number = self._writable(form), int(form["message_id"])
        emojis = [reaction["emoji"] for reaction in json.loads(form.get("reaction", "[]"))]
        if number not in chat.messages:
            raise ApiError(400, "Bad Request: message to react not found")
        if len(emojis) > 1 or not set(emojis) <= REACTIONS:
            raise ApiError(400, "Bad Request: REACTION_INVALID")
        self.reactions.append((chat.id, number, emojis))
        return True

    def _answerCallbackQuery(self, form: Mapping[str, Any]) -> object:
        self.answered.append(form["callback_query_id"])
        return True

    def _message(
        self, chat: Chat, author: User, *, topic: int | None = None, reply_to: int | None = None
    ) -> dict[str, Any]:
        self.now += 1
        number = next(chat.numbers)
        message: dict[str, Any] = {
            "message_id": number,
            "date": self.now,
            "chat": chat.json(),
            "from": author.json(),
        }
        if topic is not None:
            opening = {"message_id": topic, "date": 1, "chat": chat.json(), "from": User(1, "Owner").json()}
            opening["forum_topic_created"] = {"name": chat.topics[topic], "icon_color": 0}
            message |= {"message_thread_id": topic, "is_topic_message": True, "reply_to_message": opening}
        if reply_to is not None:
            message["reply_to_message"] = {
                name: value for name, value in chat.messages[reply_to].items() if name != "reply_to_message"
            }
        if self.keep or author is self.me:
            chat.messages[number] = message
        return message

    def _deliver(self, method: str, form: Mapping[str, Any], **parts: Any) -> dict[str, Any]:
        chat = self._writable(form)
        thread, markup, reply_to = self._thread(chat, form), self._keyboard(form), self._reply(chat, form)
        message = self._message(chat, self.me)
        told = {"text": parts["text"]} if parts.get("text") else {}
        chat.messages[message["message_id"]] = message | told | {"reply_markup": {"inline_keyboard": markup}}
        sent = Sent(
            chat_id=chat.id,
            message_id=message["message_id"],
            method=method,
            thread_id=thread,
            reply_to=reply_to,
            keyboard=markup,
            parse_mode=form.get("parse_mode"),
            **parts,
        )
        self.sent.append(sent)
        return chat.messages[message["message_id"]] | ({"poll": sent.poll} if sent.poll is not None else {})

    def _chat(self, form: Mapping[str, Any]) -> Chat:
        name = str(form["chat_id"])
        for chat in self.chats.values():
            if str(chat.id) == name or (name.startswith("@") and name == f"@{chat.title}"):
                return chat
        raise ApiError(400, "Bad Request: chat not found")

    def _writable(self, form: Mapping[str, Any]) -> Chat:
        chat = self._chat(form)
        if chat.refusal is not None:
            raise chat.refusal
        return chat

    def _thread(self, chat: Chat, form: Mapping[str, Any]) -> int | None:
        if "message_thread_id" not in form:
            return None
        thread = int(form["message_thread_id"])
        if thread not in chat.topics:
            raise ApiError(400, "Bad Request: message thread not found")
        return thread

    def _reply(self, chat: Chat, form: Mapping[str, Any]) -> int | None:
        if "reply_parameters" not in form:
            return None
        wanted = json.loads(form["reply_parameters"])
        if wanted["message_id"] in chat.messages:
            return int(wanted["message_id"])
        if not wanted.get("allow_sending_without_reply"):
            raise ApiError(400, "Bad Request: message to be replied not found")
        return None

    def _keyboard(self, form: Mapping[str, Any]) -> list[list[dict[str, Any]]]:
        rows: list[list[dict[str, Any]]] = json.loads(form.get("reply_markup", "{}")).get("inline_keyboard", [])
        buttons = [button for row in rows for button in row]
        if len(buttons) > 100 or not all(0 < len(row) <= 8 for row in rows):
            raise self._refuse("reply markup is too long")
        for button in buttons:
            if not button["text"].strip() or ("url" in button) == ("callback_data" in button):
                raise self._refuse(
                    "can't parse inline keyboard button: Text buttons are unallowed in the inline keyboard"
                )
            if "callback_data" in button and not 0 < len(button["callback_data"].encode()) <= 64:
                raise self._refuse("BUTTON_DATA_INVALID")
            if "url" in button and "://" not in button["url"]:
                raise self._refuse(f"inline keyboard button URL '{button['url']}' is invalid: Wrong HTTP URL")
        return rows

    def _words(self, form: Mapping[str, Any], name: str, limit: int, too_long: str) -> tuple[str, list[dict[str, Any]]]:
        text, entities = form.get(name, ""), list[dict[str, Any]]()
        match form.get("parse_mode"):
            case "HTML":
                if self.refuse_entities:
                    self.refuse_entities -= 1
                    raise ApiError(400, "Bad Request: can't parse entities: Unexpected end tag at byte offset 7")
                try:
                    text, entities = parse_html(text)
                except HtmlError as error:
                    raise self._refuse(f"can't parse entities: {error}") from error
            case None:
                pass
            case other:
                raise self._refuse(f"unsupported parse_mode {other}")
        text = text.strip()
        if utf16_length(text) > limit:
            raise self._refuse(too_long)
        return text, entities

    def _refuse(self, description: str) -> ApiError:
        """A refusal that a well-behaved bot never meets."""
        self.complaints.append(description)
        return ApiError(400, f"Bad Request: {description}")

    def _note(self) -> None:
        self._changed.set()
        if self._poller is not None and self.pending:
            self._poller.woken.set()
