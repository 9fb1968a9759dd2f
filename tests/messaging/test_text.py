"""Markdown in the forms of the platforms."""

import html
import re
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from spacebot.messaging.text import (
    defuse_mass_mentions,
    parse,
    replace_mentions,
    to_discord,
    to_plain,
    to_slack,
    to_telegram,
    utf16_length,
)
from spacebot.messaging.text_tree import Kind

FORMS = (to_discord, to_slack, to_telegram, to_plain)

GLUE = (
    *(
        " ",
        "\n",
        "\n\n",
        "*",
        "**",
        "***",
        "_",
        "__",
        "~~",
        "||",
        "|",
        "`",
        "``",
        "```",
        "\n```\n",
        "\n```py x\n",
        "~~~\n",
    ),
    *(
        "\n# ",
        "\n#### ",
        "\n> ",
        "\n> > ",
        "\n- ",
        "\n  - ",
        "\n    ",
        "\n1. ",
        "\n7) ",
        "[",
        "](",
        ")",
        "![",
        "<",
        ">",
    ),
    *("</b>", "<br>", "&", "&lt;", '"', "'", "\\", "\\*", "\n|a|b|\n|-|-|\n|", "|\n", "\n---\n", "\n===\n"),
    *("https://x.yz/", "://", "\t", "javascript:", "<!--", "<!here>", "<@U1234567>", "@everyone", "🇩🇪"),
    *("\U0001f469\u200d\U0001f469", "e\u0301", "漢字", "\u200d", "\x00", "\r\n"),
)


@st.composite
def broken_markdown(draw: st.DrawFn) -> tuple[str, list[str]]:
    """Words with marks thrown between them, and the words."""
    glue = draw(st.lists(st.lists(st.sampled_from(GLUE), min_size=1, max_size=4), min_size=1, max_size=14))
    words = [f"wrd{number}x" for number in range(len(glue))]
    return "".join(word + "".join(marks) for word, marks in zip(words, glue, strict=True)), words


def check_telegram(text: str) -> None:
    """Refuse what Telegram's parser of HTML would refuse or drop; `core.telegram.org/bots/api#html-style`."""
    allowed = {"b", "i", "s", "a", "code", "pre", "blockquote", "tg-spoiler"}
    open_tags: list[str] = []
    position = 0
    for found in re.finditer(r"<(/?)([a-z-]+)((?: [a-z]+=\"[^\"<>]*\")?)>", text):
        check_words(text[position : found.start()])
        position = found.end()
        closing, name, attribute = found.groups()
        assert name in allowed
        if closing:
            assert open_tags.pop() == name
            continue
        if name == "a":
            assert re.fullmatch(r' href="(?:https?://|mailto:|tg://user\?id=\d)[^"]*"', attribute), attribute
            check_words(attribute[7:-1])
        elif attribute:
            assert (name, open_tags[-1]) == ("code", "pre")
            assert re.fullmatch(r' class="language-[\w+#.-]+"', attribute)
        assert "code" not in open_tags
        assert "pre" not in open_tags or (name == "code" and open_tags[-1] == "pre")
        assert name not in ("blockquote", "a", "b", "i", "s") or name not in open_tags
        open_tags.append(name)
    check_words(text[position:])
    assert not open_tags


def check_words(text: str) -> None:
    assert not re.search(r"[<>\"]", text)
    assert not re.search(r"&(?!(?:lt|gt|amp|quot|#39);)", text)


@settings(max_examples=120, deadline=None)
@given(broken_markdown())
def test_no_form_fails_and_none_loses_a_word(given_text: tuple[str, list[str]]) -> None:
    text, words = given_text
    for form in FORMS:
        shown = form(text)
        for word in words:
            is_language = re.search(rf"(?:```|~~~)[`~ \t]*{word}", text)
            assert word in shown or is_language, (form.__name__, word)
    check_telegram(to_telegram(text))


@settings(max_examples=100, deadline=None)
@given(st.text(max_size=300))
def test_any_text_has_a_form(text: str) -> None:
    for form in FORMS:
        form(text)
    check_telegram(to_telegram(text))


@settings(max_examples=100, deadline=None)
@given(broken_markdown())
@pytest.mark.spec("D-k")
def test_nothing_written_can_ping_a_room_on_slack(given_text: tuple[str, list[str]]) -> None:
    shown = to_slack(given_text[0])
    for token in re.findall(r"<[^>]*>?", shown):
        assert re.fullmatch(r"<(?:(?:https?://|mailto:)[^<>\s|]*(?:\|[^<>|]+)?|[@#][A-Z0-9]+)>", token), token


MARKED = "**bold** *it* _it_ ***both*** ~~gone~~ `co<de` ||secret||"


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        (to_discord, "**bold** *it* _it_ ***both*** ~~gone~~ `co<de` ||secret||"),
        (to_slack, "*bold* _it_ _it_ _*both*_ ~gone~ `co&lt;de` secret"),
        (
            to_telegram,
            "<b>bold</b> <i>it</i> <i>it</i> <i><b>both</b></i> <s>gone</s> <code>co&lt;de</code> "
            "<tg-spoiler>secret</tg-spoiler>",
        ),
        (to_plain, "bold it it both gone co<de secret"),
    ],
)
def test_marks(form: object, expected: str) -> None:
    assert callable(form)
    assert form(MARKED) == expected


@pytest.mark.parametrize("form", FORMS)
def test_names_with_underscores_and_addresses_stay_as_they_are(form: object) -> None:
    assert callable(form)
    text = "call my_long_name at https://a.example/x_y_z*q*__w__?b=(c) or 2 * 3 * 4"
    assert html.unescape(form(text)) == text


def test_lists_keep_their_levels_and_numbers() -> None:
    text = "3. three\n   - inner\n     - deeper\n4. four"
    assert to_discord(text) == text
    assert to_plain(text) == text
    assert to_slack(text) == "3. three\n   ◦ inner\n       ▪ deeper\n4. four"
    assert to_telegram(text) == "3. three\n   ◦ inner\n     ▪ deeper\n4. four"


def test_headings() -> None:
    text = "# One\n\n### Three\n\n#### Four *x*"
    assert to_discord(text) == "# One\n\n### Three\n\n**Four *x***"
    assert to_slack(text) == "*One*\n\n*Three*\n\n*Four _x_*"
    assert to_telegram(text) == "<b>One</b>\n\n<b>Three</b>\n\n<b>Four <i>x</i></b>"
    assert to_plain(text) == "One\n\nThree\n\nFour x"


def test_tables_become_columns_of_equal_width() -> None:
    text = "| Name | Sum |\n|:--|--:|\n| **漢字** | 5 |\n| b | 1000 | more |"
    columns = "Name │  Sum │\n─────┼──────┼─────\n漢字 │    5 │\nb    │ 1000 │ more"
    assert to_discord(text) == f"```\n{columns}\n```"
    assert to_slack(text) == f"```\n{columns}\n```"
    assert to_telegram(text) == f"<pre>{columns}</pre>"
    assert to_plain(text) == columns


def test_code_is_never_reformatted_and_cannot_end_its_block() -> None:
    text = '````py\nx = "*a*" < b # **c**\n```\n@Ann\n````'
    assert 'x = "*a*" < b # **c**' in to_discord(text)
    assert to_discord(text).startswith("```py\n")
    assert to_discord(text).count("```") == 2
    assert to_slack(text).count("```") == 2
    assert to_telegram(text) == (
        '<pre><code class="language-py">x = &quot;*a*&quot; &lt; b # **c**\n```\n@Ann</code></pre>'
    )
    assert to_plain(text) == 'x = "*a*" < b # **c**\n```\n@Ann'


def test_an_unclosed_block_of_code_is_closed() -> None:
    assert to_telegram("see\n```\nx < y") == "see\n\n<pre>x &lt; y</pre>"
    assert to_discord("see\n```\nx < y") == "see\n\n```\nx < y\n```"


@pytest.mark.parametrize(
    ("text", "discord", "slack", "telegram", "plain"),
    [
        (
            "[docs](https://a.b/c_(d))",
            "[docs](https://a.b/c_%28d%29)",
            "<https://a.b/c_(d)|docs>",
            '<a href="https://a.b/c_(d)">docs</a>',
            "docs (https://a.b/c_(d))",
        ),
        ("<https://a.b>", "<https://a.b>", "<https://a.b>", '<a href="https://a.b">https://a.b</a>', "https://a.b"),
        (
            "![cat](https://a.b/c.png)",
            "[cat](https://a.b/c.png)",
            "<https://a.b/c.png|cat>",
            '<a href="https://a.b/c.png">cat</a>',
            "cat (https://a.b/c.png)",
        ),
        ("[x](notes.md)", "x (notes.md)", "x (notes.md)", "x (notes.md)", "x (notes.md)"),
        ("[Ann](tg://user?id=5)", *["Ann (tg://user?id=5)"] * 2, '<a href="tg://user?id=5">Ann</a>', "Ann (tg://user?id=5)"),
        (
            '[a|b>](https://a.b/?q="><b>|)',
            '[a|b>](https://a.b/?q=%22%3E%3Cb%3E%7C)',
            "<https://a.b/?q=%22%3E%3Cb%3E%7C|a¦b&gt;>",
            '<a href="https://a.b/?q=%22%3E%3Cb%3E%7C">a|b&gt;</a>',
            "a|b> (https://a.b/?q=%22%3E%3Cb%3E%7C)",
        ),
    ],
)  # fmt: skip
def test_links(text: str, discord: str, slack: str, telegram: str, plain: str) -> None:
    assert [form(text) for form in FORMS] == [discord, slack, telegram, plain]


@pytest.mark.parametrize(
    "address", ["javascript:alert(1)", "data:text/html,x", "file:///etc/passwd", "tg://resolve?domain=x"]
)
def test_addresses_that_do_something_else_are_words(address: str) -> None:
    for shown in (to_telegram(f"[click]({address})"), to_telegram(f"<{address}>")):
        assert "href" not in shown
    assert "<" not in to_slack(f"[click]({address})")
    assert address.partition(":")[2].split("?")[0] in html.unescape(to_slack(f"[click]({address})"))


def test_slack_keeps_people_and_escapes_calls_of_rooms() -> None:
    assert to_slack("<@U0123456> in <#C0123456|general>: <!channel> <!subteam^S1|x> a & b") == (
        "<@U0123456> in <#C0123456>: &lt;!channel&gt; &lt;!subteam^S1|x&gt; a &amp; b"
    )


def test_slack_marks_count_inside_of_a_word() -> None:
    assert to_slack("un**bold**ed \\*plain\\*") == "un\u200b*bold*\u200bed *\u200bplain*\u200b"


def test_addresses_of_mail_and_of_other_alphabets() -> None:
    assert [form("<ann@a.example>") for form in FORMS] == [
        "ann@a.example",
        "<mailto:ann@a.example>",
        '<a href="mailto:ann@a.example">ann@a.example</a>',
        "ann@a.example",
    ]
    assert to_plain("<https://a.example/ä>") == "https://a.example/ä"
    assert to_discord("[mail](mailto:ann@a.example)") == "mail (mailto:ann@a.example)"


def test_bars_between_blanks_hide_nothing() -> None:
    assert to_telegram("a || b || c") == "a || b || c"
    assert to_telegram("||a *b*|| ||c") == "<tg-spoiler>a <i>b</i></tg-spoiler> ||c"


def test_discord_escapes_stay_escapes() -> None:
    text = r"\*not bold\* \_x\_ 1\. \> no"
    assert to_discord(text) == r"\*not bold\* \_x\_ 1. \> no"


def test_deep_nesting_is_shown_as_it_stands() -> None:
    text = "> " * 200 + "deep"
    for form in FORMS:
        assert "deep" in form(text)


def test_a_document_is_a_tree() -> None:
    blocks = parse("# Hi\n\n- a\n- b").blocks
    assert [block.kind for block in blocks] == [Kind.HEADING, Kind.LIST]
    assert len(blocks[1].children) == 2


def test_telegram_counts_utf16_units() -> None:
    assert utf16_length("aä漢") == 3
    assert utf16_length("🎉") == 2
    assert utf16_length("\ud800") == 1


def test_mentions_the_longest_name_wins_and_borders_count() -> None:
    mentions = {"Al": "<@1>", "Al Bundy": "<@2>", "Alice": "<@3>", "émile": "<@4>"}
    assert replace_mentions("@Al, @Al Bundy and @Alice: @Émile!", mentions) == "<@1>, <@2> and <@3>: <@4>!"
    untouched = "x@Al.com @Albert @Al-fons @Al.fons @@Al @Nobody /@Al"
    assert replace_mentions(untouched, mentions) == untouched
    assert replace_mentions("@al (@AL) <@Alice>", mentions) == "<@1> (<@1>) <@3>"


def test_mentions_in_code_stay() -> None:
    text = "`@Al` @Al\n```\n@Al\n```\n@Al ``x ` @Al``"
    assert replace_mentions(text, {"Al": "<@1>"}) == "`@Al` <@1>\n```\n@Al\n```\n<@1> ``x ` @Al``"


def test_a_name_that_two_have_in_other_capitals_needs_its_own() -> None:
    mentions = {"Sam": "<@1>", "SAM": "<@2>"}
    assert replace_mentions("@Sam @SAM @sam", mentions) == "<@1> <@2> @sam"


def test_mass_mentions_are_made_harmless() -> None:
    text = "@everyone @Here <!channel> <!subteam^S1> <@&12345> ann@here.com <@12>"
    safe = defuse_mass_mentions(text)
    assert safe.replace("\u200b", "") == text
    assert not re.search(r"@(?:everyone|here)|<!|<@&", safe, re.IGNORECASE)
    assert "<@12>" in safe


def test_the_parser_is_loaded_at_its_first_use() -> None:
    code = "import sys, spacebot.messaging.text; print('markdown_it' in sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "False"
