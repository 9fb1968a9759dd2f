"""A month in a small company, as data: who says what where, what is worth remembering of it, and what is asked later.

Twenty people talk in four rooms and one direct chat. Between the lines that matter stands small talk, so that most of
what is said is worth nothing. `PLAYBOOK` is what the model that plays along makes of a line.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

DAYS = 30
GENERAL, ENGINEERING, DESIGN, OPS = "team:general", "team:engineering", "team:design", "team:ops"
PRIVATE = "team:dm-nora"
ROOMS = (GENERAL, ENGINEERING, DESIGN, OPS)
PEOPLE = (
    "Ada", "Bruno", "Carla", "Dmitri", "Elif", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Luca", "Mei", "Nora",
    "Oskar", "Priya", "Quentin", "Rosa", "Sven", "Tara",
)  # fmt: skip
SMALL_TALK = (
    "good morning everyone", "lunch anyone?", "ha, true", "the coffee machine is humming again", "brb",
    "that build was quick today", "nice weather outside", "who left the window open", "ok, sounds fine", "till then",
    "I am in a call until noon", "back now", "thanks a lot", "the train was late again", "looks good from here",
)  # fmt: skip


@dataclass(frozen=True)
class Line:
    """Something said; `memory` is what is worth keeping of it, in the words of the one who keeps it."""

    day: int
    channel: str
    author: str
    text: str
    memory: str
    kind: str = "fact"
    replaces: str | None = None  # the memory that it makes out of date
    relation: str = "updates"


@dataclass(frozen=True)
class Question:
    """Something asked later, with what the answer must name, and what it must not."""

    channel: str
    author: str
    text: str
    answer: str
    never: str | None = None
    not_before: str | None = None  # the outdated words, which may come after the answer only


LINES = (
    Line(1, GENERAL, "Ada", "Quick intro: I run operations here and sit in Lisbon.",
         "Ada runs operations and works from Lisbon", "identity"),
    Line(1, GENERAL, "Bruno", "I am Bruno, backend, mostly the payment service.",
         "Bruno is a backend engineer who looks after the payment service", "identity"),
    Line(1, DESIGN, "Carla", "Carla here, I draw everything you click on.", "Carla is the product designer",
         "identity"),
    Line(2, ENGINEERING, "Dmitri", "Let us take PostgreSQL for the ledger, the team knows it and we need transactions.",
         "The team decided to use PostgreSQL for the ledger because everybody knows it and it has transactions",
         "decision"),
    Line(2, OPS, "Elif", "Production runs in the Frankfurt region from today.",
         "Production runs in the Frankfurt region since 2 March 2026"),
    Line(3, GENERAL, "Farid", "The launch is on 12 May, please plan around it.", "The launch is planned for 12 May",
         "goal"),
    Line(3, DESIGN, "Greta", "I cannot stand purple buttons, please never again.", "Greta dislikes purple buttons",
         "preference"),
    Line(4, ENGINEERING, "Hugo", "My branch for the invoice export lives under hugo/invoices.",
         "Hugo works on the invoice export in the branch hugo/invoices"),
    Line(4, OPS, "Ines", "Backups run every night at two and land in the bucket called winter-oak.",
         "Backups run every night at two and are stored in the bucket winter-oak"),
    Line(5, GENERAL, "Jonas", "I am vegetarian, so no barbecue place for the offsite please.",
         "Jonas is vegetarian", "preference"),
    Line(5, GENERAL, "Kira", "The offsite will be in Porto in the second week of June.",
         "The company offsite takes place in Porto in the second week of June", "event"),
    Line(6, ENGINEERING, "Luca", "The login bug came from a clock that was four minutes off on one node.",
         "The login bug was caused by a clock that was four minutes off on one node"),
    Line(6, DESIGN, "Mei", "We ship the new icons in two weights, 1.5 and 2 pixels.",
         "The new icons come in two stroke weights, 1.5 and 2 pixels"),
    Line(7, PRIVATE, "Nora", "Between us: I am looking for another job, I want to move to Oslo.",
         "Nora is looking for another job and wants to move to Oslo", "goal"),
    Line(8, OPS, "Oskar", "The staging database has the nickname tortoise.",
         "The staging database is nicknamed tortoise"),
    Line(8, ENGINEERING, "Priya", "I prefer small pull requests, under two hundred lines.",
         "Priya prefers pull requests under two hundred lines", "preference"),
    Line(9, GENERAL, "Quentin", "Our first customer is the Nordlicht bakery chain.",
         "The first customer is the bakery chain Nordlicht"),
    Line(9, GENERAL, "Rosa", "Invoices go out on the 25th of each month.", "Invoices go out on the 25th of each month"),
    Line(10, ENGINEERING, "Sven", "Let us drop the message queue, three people cannot run it.",
         "The team decided to drop the message queue because three people cannot run it", "decision"),
    Line(10, DESIGN, "Tara", "The mascot is a hedgehog called Pim.", "The mascot is a hedgehog named Pim"),
    Line(11, OPS, "Ada", "The on-call phone is with Elif until the 20th.",
         "Elif has the on-call phone until 20 March", "event"),
    Line(12, GENERAL, "Farid", "News: the launch moves to 19 May, the auditors need a week more.",
         "The launch was moved to 19 May because the auditors need a week more", "goal",
         replaces="The launch is planned for 12 May"),
    Line(12, ENGINEERING, "Bruno", "The payment provider limits us to 90 requests a second.",
         "The payment provider allows 90 requests a second"),
    Line(13, DESIGN, "Carla", "Body text is set in Inter, headlines in Fraunces.",
         "Body text is set in Inter and headlines in Fraunces", "decision"),
    Line(14, OPS, "Ines", "We had an outage of forty minutes, a certificate had run out.",
         "On 14 March an expired certificate caused an outage of forty minutes", "event"),
    Line(14, OPS, "Oskar", "Since the outage, certificates renew thirty days ahead.",
         "Certificates renew thirty days ahead since the outage of 14 March", "decision",
         replaces="On 14 March an expired certificate caused an outage of forty minutes", relation="result_of"),
    Line(15, PRIVATE, "Nora", "My daughter Liv is allergic to nuts.", "Nora's daughter Liv is allergic to nuts"),
    Line(16, GENERAL, "Mei", "I keep two cats, Soy and Miso.", "Mei has two cats named Soy and Miso"),
    Line(16, ENGINEERING, "Dmitri", "The ledger rounds half to even, the auditors asked for it.",
         "The ledger rounds half to even because the auditors asked for it", "decision"),
    Line(17, OPS, "Elif", "Production moved from Frankfurt to Stockholm last night.",
         "Production moved from Frankfurt to Stockholm on 17 March 2026",
         replaces="Production runs in the Frankfurt region since 2 March 2026"),
    Line(18, GENERAL, "Hugo", "I am on parental leave in April.", "Hugo is on parental leave in April", "event"),
    Line(18, DESIGN, "Greta", "Contrast of all text must be at least seven to one.",
         "All text needs a contrast of at least seven to one", "decision"),
    Line(19, ENGINEERING, "Luca", "Someone still has to write the migration guide, put it on the list.",
         "The migration guide still has to be written", "todo"),
    Line(20, GENERAL, "Rosa", "The office plants get water on Mondays, by whoever is first.",
         "The office plants are watered on Mondays by whoever comes first"),
    Line(20, OPS, "Sven", "The on-call phone goes to Sven now.", "Sven has the on-call phone since 20 March", "event",
         replaces="Elif has the on-call phone until 20 March"),
    Line(21, ENGINEERING, "Priya", "The search index is rebuilt each Sunday and takes three hours.",
         "The search index is rebuilt each Sunday and takes three hours"),
    Line(22, GENERAL, "Quentin", "Nordlicht wants the receipts in Danish too.",
         "Nordlicht wants receipts in Danish as well", "goal"),
    Line(23, DESIGN, "Tara", "Pim the hedgehog wears a yellow scarf in all winter campaigns.",
         "Pim the hedgehog wears a yellow scarf in winter campaigns", replaces="The mascot is a hedgehog named Pim",
         relation="part_of"),
    Line(24, ENGINEERING, "Bruno", "The provider raised our limit to 250 requests a second.",
         "The payment provider raised the limit to 250 requests a second",
         replaces="The payment provider allows 90 requests a second"),
    Line(25, OPS, "Ada", "The Lisbon office gets its fibre line on 3 April.",
         "The Lisbon office gets a fibre line on 3 April", "event"),
    Line(26, GENERAL, "Jonas", "I eat fish again, so a seafood place is fine.", "Jonas eats fish again",
         "preference", replaces="Jonas is vegetarian"),
    Line(27, ENGINEERING, "Kira", "The mobile app will be written in Kotlin first, iOS follows in autumn.",
         "The mobile app is written in Kotlin first, iOS follows in autumn", "decision"),
    Line(28, DESIGN, "Mei", "Dark mode is done and waits for the release.",
         "Dark mode is finished and waits for release", "event"),
    Line(29, OPS, "Ines", "The backup bucket is now called summer-oak.", "The backup bucket is now named summer-oak",
         replaces="Backups run every night at two and are stored in the bucket winter-oak"),
    Line(30, GENERAL, "Farid", "Thanks for a good month; the board approved the budget of 400,000 euros.",
         "The board approved a budget of 400,000 euros", "event"),
)  # fmt: skip
PLAYBOOK = {line.text: line for line in LINES}

QUESTIONS = (
    Question(DESIGN, "Carla", "when is the launch?", "19 May", not_before="12 May"),
    Question(GENERAL, "Rosa", "which database did we choose for the ledger and why?", "PostgreSQL"),
    Question(ENGINEERING, "Hugo", "where does production run?", "Stockholm", not_before="runs in the Frankfurt"),
    Question(OPS, "Sven", "who is our first customer?", "Nordlicht"),
    Question(GENERAL, "Tara", "what are Mei's cats called?", "Miso"),
    Question(ENGINEERING, "Ada", "what is the mascot?", "hedgehog"),
    Question(DESIGN, "Greta", "how many requests a second does the payment provider allow?", "250", not_before="90"),
    Question(GENERAL, "Kira", "what caused the outage in March?", "certificate"),
    Question(OPS, "Oskar", "who has the on-call phone?", "Sven", not_before="Elif has"),
    Question(OPS, "Ines", "what caused the login bug?", "clock"),
    Question(GENERAL, "Farid", "where do the backups go?", "summer-oak", not_before="winter-oak"),
    Question(DESIGN, "Mei", "which fonts do we use?", "Fraunces"),
    Question(ENGINEERING, "Luca", "how large may a pull request be for Priya?", "two hundred"),
    Question(GENERAL, "Quentin", "where is the offsite?", "Porto"),
    Question(OPS, "Elif", "when is Hugo away?", "April"),
    Question(ENGINEERING, "Dmitri", "what does Nordlicht want?", "Danish"),
    Question(GENERAL, "Ada", "what budget did the board approve?", "400,000"),
    Question(ENGINEERING, "Sven", "what still has to be written?", "migration guide"),
    Question(GENERAL, "Bruno", "does Jonas eat fish?", "fish again"),
    Question(DESIGN, "Carla", "what is the staging database called?", "tortoise"),
    Question(PRIVATE, "Nora", "where do I want to move?", "Oslo"),
    Question(PRIVATE, "Nora", "what is Liv allergic to?", "nuts"),
    Question(PRIVATE, "Nora", "when is the launch?", "19 May"),
    Question(GENERAL, "Bruno", "what are Nora's plans, does she look for a job or move to Oslo?", "", never="Oslo"),
    Question(ENGINEERING, "Nora", "what is Liv allergic to?", "", never="nuts"),
)


def said(start: datetime, *, chatter: int) -> Iterator[tuple[datetime, str, str, str]]:
    """All lines of the month in order: when, where, who, what; `chatter` lines of small talk a day and room."""
    source = random.Random(20)
    for day in range(1, DAYS + 1):
        lines = [(line.channel, line.author, line.text) for line in LINES if line.day == day]
        lines += [(room, source.choice(PEOPLE), source.choice(SMALL_TALK)) for room in ROOMS for _ in range(chatter)]
        source.shuffle(lines)
        for index, (channel, author, text) in enumerate(lines):
            yield start + timedelta(days=day - 1, minutes=9 * index), channel, author, text
