"""Who may speak and who answers, as tables: one row, one decision."""

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from spacebot.base.ids import AgentId, ConversationId
from spacebot.config.messaging import (
    BindingConfig,
    DiscordAccount,
    MessagingConfig,
    SlackAccount,
    TelegramAccount,
    TwitchAccount,
    WebhookAccount,
)
from spacebot.messaging.bindings import Admission, Verdict, admit, is_named, may_command
from spacebot.messaging.messages import Author, Command, InboundMessage, Interaction

S = SecretStr("secret")
ANSWER, OBSERVE, REFUSE = Verdict.ANSWER, Verdict.OBSERVE, Verdict.REFUSE
ACCOUNTS: dict[str, Any] = {
    "discord": lambda **f: DiscordAccount(token=S, **f),
    "slack": lambda **f: SlackAccount(bot_token=S, app_token=S, **f),
    "telegram": lambda **f: TelegramAccount(token=S, **f),
    "twitch": lambda **f: TwitchAccount(username="bot", oauth_token=S, **f),
    "webhook": lambda **f: WebhookAccount(enabled=True, **f),
}
SERVER_KEY = {"discord": "guild_id", "slack": "workspace_id", "telegram": "chat_id"}


def config(platform: str, **fields: Any) -> MessagingConfig:
    """One account of a platform."""
    return MessagingConfig(**{platform: (ACCOUNTS[platform](**fields),)})


def said(platform: str, user: str = "U1", **fields: Any) -> InboundMessage:
    """A message; by default in room C1 of server S1."""
    author = fields.pop("author", None) or Author(id=user, name=user, is_bot=fields.pop("is_bot", False))
    if not fields.get("is_direct"):
        fields = {"server_id": "S1", "room_ids": ("C1",)} | fields
    return InboundMessage(
        platform=platform, conversation_id=ConversationId(f"{platform}:x"), author=author, text="hi",
        sent_at=datetime(2026, 1, 1, tzinfo=UTC), **fields,
    )  # fmt: skip


def bound(platform: str, agent: str = "a", **fields: Any) -> BindingConfig:
    return BindingConfig(agent_id=agent, channel=platform, **fields)


def decide(message: InboundMessage, messaging: MessagingConfig, *bindings: BindingConfig) -> tuple[Verdict, str | None]:
    admission = admit(message, messaging, bindings, "default", agents={"a", "b", "default"})
    assert admission.reason
    return admission.verdict, admission.agent_id


@pytest.mark.spec("messaging 10: direct messages", "D-16", "D-17")
@pytest.mark.parametrize(
    ("platform", "of_account", "of_binding", "user", "is_served"),
    [
        ("discord", (), (), "U1", False),
        ("discord", ("U1",), (), "U1", True),
        ("discord", ("u1",), (), "U1", True),
        ("discord", ("U2",), (), "U1", False),
        ("discord", (), ("U1",), "U1", True),
        ("discord", ("U2",), ("U1",), "U1", True),
        ("discord", ("*",), (), "U1", True),
        ("discord", (), ("*",), "U1", True),
        ("slack", (), (), "U1", False),
        ("slack", ("U1",), (), "U1", True),
        ("slack", (), ("U1",), "U1", True),
        ("slack", (), ("U2",), "U1", False),
        ("telegram", (), (), "1", True),
        ("telegram", ("2",), (), "1", False),
        ("telegram", ("2",), ("1",), "1", True),
        ("telegram", ("*", "2"), (), "1", True),
        ("telegram", (), ("2",), "1", False),
    ],
)
def test_lists_of_people_decide_about_direct_chats(
    platform: str, of_account: tuple[str, ...], of_binding: tuple[str, ...], user: str, is_served: bool
) -> None:
    message = said(platform, user, is_direct=True)
    # The binding's place is another than the chat's: places do not count in direct chats.
    binding = bound(platform, dm_allowed_users=of_binding, **{SERVER_KEY[platform]: "S9"})
    verdict, agent = decide(message, config(platform, dm_allowed_users=of_account), binding)

    assert verdict is (ANSWER if is_served else REFUSE)
    listed = user in of_binding or "*" in of_binding
    assert agent == (("a" if listed else "default") if is_served else None)


@pytest.mark.parametrize("platform", ["webhook", "webchat", "cron"])
def test_the_program_s_own_faces_are_always_served(platform: str) -> None:
    messaging = config("webhook")
    for message in (said(platform), said(platform, is_direct=True), said(platform, is_bot=True)):
        assert decide(message, messaging) == (ANSWER, "default")


G1, G1C1, G1C2, G2 = ({"server": "S1"}, {"server": "S1", "rooms": ["C1"]}, {"server": "S1", "rooms": ["C2"]},
                      {"server": "S2"})  # fmt: skip
ROOM1, DM, ALL = {"rooms": ["C1"]}, {"people": ["U9"]}, dict[str, Any]()


@pytest.mark.spec("messaging 9: order", "messaging 10: servers and rooms", "messaging 19: 17", "D-17")
@pytest.mark.parametrize("platform", ["discord", "slack", "telegram"])
@pytest.mark.parametrize(
    ("scopes", "server", "rooms", "expected"),
    [
        # Nothing named: everything is served.
        ([], "S1", ("C1",), "default"),
        ([ALL], "S1", ("C1",), "a"),
        ([DM], "S1", ("C1",), "a"),
        # Servers.
        ([G1], "S1", ("C1",), "a"),
        ([G1], "S2", ("C1",), None),
        ([G1], None, ("C1",), None),
        ([G1, G2], "S2", ("C1",), "b"),
        ([G2, G1], "S1", ("C1",), "b"),
        ([G1, ALL], "S2", ("C1",), "b"),
        ([ALL, G1], "S1", ("C1",), "a"),
        ([G1, DM], "S2", ("C1",), None),
        # Rooms of one server, threads of them, other servers.
        ([G1C1], "S1", ("C1",), "a"),
        ([G1C1], "S1", ("T7", "C1"), "a"),
        ([G1C1], "S1", ("c1",), "a"),
        ([G1C1], "S1", ("C2",), None),
        ([G1C1], "S1", (), None),
        ([G1C1], "S2", ("C1",), None),
        ([G1C1, G1C2], "S1", ("C2",), "b"),
        ([G1C1, G1], "S1", ("C2",), "b"),
        ([G1, G1C2], "S1", ("C2",), "a"),
        ([G1C1, G2], "S2", ("C9",), "b"),
        ([G1C1, G2], "S1", ("C9",), None),
        # Rooms without a server.
        ([ROOM1], "S7", ("C1",), "a"),
        ([ROOM1], "S7", ("C2",), None),
        ([ROOM1, ALL], "S7", ("C2",), "b"),
    ],
)
def test_a_room_belongs_to_the_first_binding_that_holds_it(
    platform: str, scopes: list[dict[str, Any]], server: str | None, rooms: tuple[str, ...], expected: str | None
) -> None:
    bindings = []
    for scope, agent in zip(scopes, "ab", strict=False):
        fields = {"channel_ids": scope.get("rooms", ()), "dm_allowed_users": scope.get("people", ())}
        if "server" in scope:
            fields[SERVER_KEY[platform]] = scope["server"]
        bindings.append(bound(platform, agent, **fields))
    message = said(platform, server_id=server, room_ids=rooms)

    assert decide(message, config(platform), *bindings) == (REFUSE if expected is None else ANSWER, expected)


@pytest.mark.spec("messaging 9: require_mention", "messaging 19: 3", "D-3", "C-7")
@pytest.mark.parametrize("platform", ["discord", "slack", "telegram", "twitch"])
def test_a_binding_that_wants_a_mention_keeps_the_message_whoever_else_would_answer(platform: str) -> None:
    messaging = config(platform, **({"dm_allowed_users": ["*"]} if platform != "twitch" else {}))
    bindings = (bound(platform, "a", require_mention=True, channel_ids=["C1"]), bound(platform, "b"))
    press, command = Interaction(action_id="x"), Command(name="status")

    assert decide(said(platform), messaging, *bindings) == (OBSERVE, "a")
    assert decide(said(platform, mentions_bot=True), messaging, *bindings) == (ANSWER, "a")
    assert decide(said(platform, interaction=press), messaging, *bindings) == (ANSWER, "a")
    assert decide(said(platform, command=command), messaging, *bindings) == (ANSWER, "a")
    assert decide(said(platform, room_ids=("C2",)), messaging, *bindings) == (ANSWER, "b")
    if platform != "twitch":
        direct = said(platform, is_direct=True)
        assert decide(direct, messaging, bound(platform, "a", require_mention=True)) == (ANSWER, "a")


@pytest.mark.parametrize("platform", ["discord", "slack", "telegram", "twitch"])
@pytest.mark.parametrize("kind", [{}, {"interaction": Interaction(action_id="x")}, {"command": Command(name="x")}])
def test_every_kind_of_message_goes_through_the_same_door(platform: str, kind: dict[str, Any]) -> None:
    messaging = config(platform)
    closed = bound(platform, channel_ids=["C9"])

    assert decide(said(platform, is_bot=True, **kind), messaging) == (REFUSE, None)
    assert decide(said(platform, is_bot=True, **kind), config(platform, allow_bot_messages=True)) == (ANSWER, "default")
    assert decide(said(platform, **kind), messaging, closed) == (REFUSE, None)
    assert decide(said(platform, agent_id=AgentId("b"), **kind), messaging, closed) == (REFUSE, None)
    assert decide(said(platform, **kind), config(platform, enabled=False)) == (REFUSE, None)
    assert decide(said(platform, **kind), MessagingConfig()) == (REFUSE, None)
    if platform in ("discord", "slack"):
        assert decide(said(platform, is_direct=True, **kind), messaging) == (REFUSE, None)


def test_logins_are_listened_to_whatever_their_capitals() -> None:
    ann = Author(id="4711", name="Ann", handle="@Ann")
    rooms = bound("twitch", channel_ids=["#Lounge"])

    def of(room: str = "lounge", author: Author = ann, **account: Any) -> Verdict:
        return decide(
            said("twitch", author=author, room_ids=(room,), server_id=None), config("twitch", **account), rooms
        )[0]

    assert of() is ANSWER
    assert of("kitchen") is REFUSE
    assert of(dm_allowed_users=["ANN"]) is ANSWER
    assert of(dm_allowed_users=["@ann"]) is ANSWER
    assert of(dm_allowed_users=["4711"]) is ANSWER
    assert of(dm_allowed_users=["bob"]) is REFUSE
    assert of(dm_allowed_users=["bob", "*"]) is ANSWER


def test_a_name_that_people_can_choose_opens_nothing_elsewhere() -> None:
    impostor = Author(id="666", name="U1", handle="@U1")
    for platform in ("discord", "slack", "telegram"):
        message = said(platform, author=impostor, is_direct=True)
        assert decide(message, config(platform, dm_allowed_users=["U1"])) == (REFUSE, None)


@pytest.mark.spec("messaging 20: named instances")
def test_accounts_of_one_platform_do_not_share_rules() -> None:
    messaging = MessagingConfig(
        discord=(ACCOUNTS["discord"](dm_allowed_users=["U1"]), ACCOUNTS["discord"](name="ops", allow_bot_messages=True))
    )
    bindings = (bound("discord", "a", guild_id="S1"), bound("discord", "b", adapter="ops", dm_allowed_users=["U2"]))
    as_ops: dict[str, Any] = {"adapter": "discord:ops"}

    assert decide(said("discord"), messaging, *bindings) == (ANSWER, "a")
    assert decide(said("discord", server_id="S2"), messaging, *bindings) == (REFUSE, None)
    assert decide(said("discord", server_id="S2", **as_ops), messaging, *bindings) == (ANSWER, "b")
    assert decide(said("discord", is_bot=True), messaging, *bindings) == (REFUSE, None)
    assert decide(said("discord", is_bot=True, **as_ops), messaging, *bindings) == (ANSWER, "b")
    assert decide(said("discord", "U1", is_direct=True, **as_ops), messaging, *bindings) == (REFUSE, None)
    assert decide(said("discord", "U2", is_direct=True, **as_ops), messaging, *bindings) == (ANSWER, "b")
    assert decide(said("discord", adapter="discord:gone"), messaging, *bindings) == (REFUSE, None)
    full_name = bound("discord", "a", adapter="discord:ops")
    assert decide(said("discord", **as_ops), messaging, full_name) == (ANSWER, "a")


@pytest.mark.spec("messaging 19: 34", "D-34")
def test_a_message_that_names_its_agent_goes_there_if_it_is_admitted_and_the_agent_exists() -> None:
    slack = config("slack")
    ruled = bound("slack", "a", channel_ids=["C1"], authority=["U7"], require_mention=True)
    message = said("slack", agent_id=AgentId("b"), command=Command(name="ask"))
    admission = admit(message, slack, [ruled], "default", agents={"a", "b"})

    assert (admission.verdict, admission.agent_id, admission.binding) == (ANSWER, "b", ruled)
    assert decide(replace(message, agent_id=AgentId("gone")), slack) == (REFUSE, None)
    assert admit(replace(message, agent_id=AgentId("gone")), slack, [], "default").agent_id == "gone"


@pytest.mark.parametrize("is_served", [True, False], ids=["it does not run", "it does not exist"])
@pytest.mark.spec("D-33")
def test_a_binding_whose_agent_is_not_there_answers_nothing_and_opens_nothing(is_served: bool) -> None:
    lost = bound("discord", "gone", guild_id="S1", is_served=is_served)

    assert decide(said("discord"), config("discord"), lost) == (ANSWER, "default")
    assert decide(said("discord", server_id="S2"), config("discord"), lost) == (REFUSE, None)


@pytest.mark.spec("messaging 20: authority")
@pytest.mark.parametrize(
    ("authority", "is_moderator", "is_direct", "user", "may"),
    [
        (None, True, False, "U1", True),
        (None, None, False, "U1", True),
        (None, False, False, "U1", False),
        (None, False, True, "U1", True),
        ((), False, False, "U1", True),
        (("U1",), False, False, "u1", True),
        (("U2",), True, False, "U1", False),
        (("U2",), True, True, "U1", False),
        (("*",), False, False, "U1", True),
    ],
)
def test_who_may_give_commands(
    authority: tuple[str, ...] | None, is_moderator: bool | None, is_direct: bool, user: str, may: bool
) -> None:
    author = Author(id=user, name=user, is_moderator=is_moderator)
    message = said("telegram", author=author, is_direct=is_direct, command=Command(name="quiet"))
    admission = admit(message, config("telegram"), [bound("telegram", authority=authority)], "default")

    assert may_command(message, admission) is may
    refused = Admission(verdict=REFUSE, agent_id=None, reason="x")
    assert not may_command(message, refused)


@pytest.mark.parametrize(
    ("of_account", "of_binding", "authority", "is_known"),
    [
        ((), (), None, False),
        (("*",), ("*",), ("*",), False),
        (("U1",), (), None, True),
        ((), ("u1", "*"), None, True),
        ((), (), ("U1",), True),
        (("U2",), ("U2",), ("U2",), False),
    ],
)
def test_whom_the_owner_names(
    of_account: tuple[str, ...], of_binding: tuple[str, ...], authority: tuple[str, ...] | None, is_known: bool
) -> None:
    messaging = config("telegram", dm_allowed_users=of_account)
    binding = bound("telegram", dm_allowed_users=of_binding, authority=authority)
    admission = Admission(verdict=ANSWER, agent_id=AgentId("a"), reason="its binding", binding=binding)
    assert is_named(said("telegram", "U1", is_direct=True), admission, messaging) is is_known
    assert not is_named(said("webhook"), replace(admission, binding=None), MessagingConfig())


SCOPES = st.fixed_dictionaries(
    {
        "agent_id": st.sampled_from("ab"),
        "channel": st.just("discord"),
        "guild_id": st.sampled_from([None, "S1", "S2"]),
        "channel_ids": st.lists(st.sampled_from(["C1", "C2"]), max_size=2),
        "dm_allowed_users": st.lists(st.sampled_from(["U1", "U2"]), max_size=2),
        "require_mention": st.booleans(),
        "is_served": st.booleans(),
    }
)


@given(
    st.lists(SCOPES, max_size=4),
    st.sampled_from(["S1", "S2", "S3"]),
    st.sampled_from(["C1", "C2", "C3"]),
    st.sampled_from(["U1", "U3"]),
    st.booleans(),
)
def test_whatever_the_bindings_what_no_binding_names_stays_closed(
    scopes: list[dict[str, Any]], server: str, room: str, user: str, is_direct: bool
) -> None:
    """One binding more never closes what was open by name, and a refused message has no agent."""
    bindings = [BindingConfig(**scope) for scope in scopes]
    place: dict[str, Any] = {"is_direct": True} if is_direct else {"server_id": server, "room_ids": (room,)}
    admission = admit(said("discord", user, **place), config("discord"), bindings, "default")

    assert (admission.agent_id is None) is (admission.verdict is REFUSE)
    if is_direct:
        assert (admission.verdict is REFUSE) is not any(user in binding.dm_allowed_users for binding in bindings)
        assert admission.verdict is not OBSERVE
    elif any(binding.guild_id or binding.channel_ids for binding in bindings):
        named = [
            b for b in bindings
            if b.guild_id in (None, server) and (not b.channel_ids or room in b.channel_ids)
            and (b.guild_id or b.channel_ids or not b.dm_allowed_users)
        ]  # fmt: skip
        assert (admission.verdict is REFUSE) is not bool(named)
    else:
        assert admission.verdict is not REFUSE
