"""Pairs of memories with the verdict of a person: what the thresholds and guards of curation are measured on.

The first of a pair is the older one. `tests/bench/bench_thresholds.py` prints the figures, `test_thresholds.py`
holds the floors. The sentences were written for this file.
"""

from enum import StrEnum
from typing import NamedTuple


class Verdict(StrEnum):
    """What the second sentence is to the first."""

    SAME = "same"  # the same statement in other words: may be merged
    NEWER = "newer"  # a newer version: updates it, never merged
    CONTRADICTION = "contradiction"  # both cannot hold: linked, judged by a model, never merged
    OTHER = "other"  # the same words about another person or thing: linked, nothing else
    RELATED = "related"  # about the same matter
    UNRELATED = "unrelated"


class Pair(NamedTuple):
    """Two memories and the verdict."""

    older: str
    newer: str
    verdict: Verdict


_SAME = (
    ("Maria prefers tea over coffee.", "Maria likes tea better than coffee."),
    ("The office closes at 6 pm on Fridays.", "On Fridays the office closes at 6 pm."),
    ("Jonas is allergic to peanuts.", "Jonas has a peanut allergy."),
    ("We decided to use PostgreSQL for the billing service.", "The team decided to use PostgreSQL for billing."),
    ("Priya lives in Leeds with her two cats.", "Priya lives with her two cats in Leeds."),
    ("The staging server is called heron.", "The name of the staging server is heron."),
    ("Tom wants short answers without small talk.", "Tom prefers brief answers and no small talk."),
    ("The launch of the shop is planned for 3 May.", "The shop launch is planned for May 3."),
    ("Lena works as a nurse at the city hospital.", "Lena is a nurse at the city hospital."),
    ("The guest wifi password hangs on the fridge.", "The password of the guest wifi is on the fridge."),
    ("Our team meets every Monday at 9.", "The team meets each Monday at 9."),
    ("Karim is learning to play the cello.", "Karim is taking cello lessons to learn the instrument."),
    ("Backups run every night at 2 am.", "The backups are run at 2 am each night."),
    ("Sofia's favourite colour is green.", "Green is Sofia's favourite colour."),
    ("The invoice for April was paid.", "The April invoice has been paid."),
    ("Daniel drives an old red Volvo.", "Daniel drives a red old Volvo."),
    ("The new logo was drawn by Ines.", "Ines drew the new logo."),
    ("Victor is vegetarian.", "Victor is a vegetarian."),
    ("The release branch is frozen on Thursdays.", "On Thursdays the release branch is frozen."),
    ("Hana speaks Japanese, English and some Dutch.", "Hana speaks English, Japanese and a little Dutch."),
    ("The dishwasher on floor two is broken.", "The floor two dishwasher is broken."),
    ("Marta is responsible for the newsletter.", "The newsletter is Marta's responsibility."),
    ("We never deploy on Fridays.", "We don't ever deploy on a Friday."),
    ("Oskar asked for a quieter desk.", "Oskar has asked for a desk that is quieter."),
    ("All invoices go to the accounting mailbox.", "All of the invoices go to the accounting mailbox."),
    ("Nadia runs five kilometres every morning.", "Every morning Nadia runs five kilometres."),
)
_NEWER = (
    ("The hosting costs 40 euros a month.", "The hosting costs 55 euros a month."),
    ("Priya lives in Leeds.", "Priya now lives in Bristol."),
    ("The team meeting is on Tuesday at 10.", "The team meeting is on Wednesday at 10."),
    ("Jonas works at the harbour office.", "Jonas works at the airport office."),
    ("The staging server runs Debian 11.", "The staging server runs Debian 12."),
    ("Lena's phone number ends in 4471.", "Lena's phone number ends in 9023."),
    ("The project lead is Maria.", "The project lead is Tom."),
    ("The launch of the shop is planned for 3 May.", "The launch of the shop is planned for 17 June."),
    ("Karim drives a blue bicycle to work.", "Karim drives a grey scooter to work."),
    ("The guest wifi password is bluebird.", "The guest wifi password is sandpiper."),
    ("There are 12 people on the support team.", "There are 15 people on the support team."),
    ("Hana's dog is two years old.", "Hana's dog is three years old."),
    ("The current version of the app is 3.1.", "The current version of the app is 3.2."),
    ("Daniel's favourite editor is Vim.", "Daniel's favourite editor is Helix."),
    ("The deadline of the grant proposal is Friday.", "The deadline of the grant proposal is next Monday."),
    ("Ines sits on the second floor.", "Ines sits on the fourth floor."),
    ("Oskar prefers to be called in the morning.", "Oskar prefers to be called in the evening."),
    ("We use Jenkins for the nightly builds.", "We use Buildbot for the nightly builds."),
    ("Victor's train leaves at 7:40.", "Victor's train leaves at 7:55."),
    ("The budget for the fair is 2,000 dollars.", "The budget for the fair is 3,500 dollars."),
    ("Sofia's birthday party takes place in the garden.", "Sofia's birthday party takes place in the library."),
    ("The support mailbox is read by Marta.", "The support mailbox is read by Nadia."),
    ("The API limit is 100 requests per minute.", "The API limit is 250 requests per minute."),
    ("Tom is on holiday until 4 August.", "Tom is on holiday until 11 August."),
)
_CONTRADICTION = (
    ("Maria likes mushrooms.", "Maria does not like mushrooms."),
    ("The cafeteria is open on Sundays.", "The cafeteria is closed on Sundays."),
    ("Jonas has a driving licence.", "Jonas has no driving licence."),
    ("Deployments on Fridays are allowed.", "Deployments on Fridays are forbidden."),
    ("Lena wants to be told about new comments.", "Lena doesn't want to be told about new comments."),
    ("The test database can be reset at any time.", "The test database must never be reset."),
    ("Karim eats meat.", "Karim is a vegetarian and eats no meat."),
    ("Priya has visited Iceland.", "Priya has never visited Iceland."),
    ("The new search is faster than the old one.", "The new search is slower than the old one."),
    ("Daniel agreed to the new contract.", "Daniel rejected the new contract."),
    ("The feature flag for exports is enabled.", "The feature flag for exports is disabled."),
    ("Hana knows how to swim.", "Hana cannot swim."),
    ("Oskar enjoys long video calls.", "Oskar hates long video calls."),
    ("Dogs may come into the office.", "Dogs are not permitted in the office."),
    ("Sofia won the chess tournament.", "Sofia lost the chess tournament."),
    ("The meeting notes are public.", "The meeting notes are confidential."),
    ("Tom always drinks coffee in the afternoon.", "Tom never drinks coffee in the afternoon."),
    ("The warehouse has an alarm.", "The warehouse is without an alarm."),
    ("Ines joined the design group.", "Ines left the design group."),
    ("Victor passed the exam.", "Victor failed the exam."),
    ("The heating works in room 5.", "The heating does not work in room 5."),
    ("Marta is available on weekends.", "Marta is unavailable on weekends."),
    ("The customer accepted the offer.", "The customer declined the offer."),
    ("Nadia prefers working alone.", "Nadia does not prefer working alone."),
)
_OTHER = (
    ("Maria likes green tea.", "Jonas likes green tea."),
    ("Priya's birthday is on 4 March.", "Lena's birthday is on 4 March."),
    ("The staging server runs Debian 12.", "The production server runs Debian 12."),
    ("Karim works from home on Mondays.", "Hana works from home on Mondays."),
    ("Lunch is served at noon.", "Dinner is served at noon."),
    ("Daniel's dog is called Rex.", "Victor's dog is called Rex."),
    ("Tom wants short answers.", "Ines wants short answers."),
    ("The design team meets on Thursday at 3.", "The sales team meets on Thursday at 3."),
    ("Oskar is allergic to nuts.", "Sofia is allergic to nuts."),
    ("The backup of the wiki runs at night.", "The backup of the mail server runs at night."),
    ("Anna Berg lives in Oslo.", "Paul Berg lives in Oslo."),
    ("Marta speaks Portuguese.", "Nadia speaks Portuguese."),
    ("Invoices are approved by the finance team.", "Holidays are approved by the finance team."),
    ("Maria plays the piano in a band.", "Karim plays the piano in a band."),
    ("Jonas drives an old Volvo.", "Priya drives an old Volvo."),
    ("The blue printer is out of paper.", "The green printer is out of paper."),
    ("Tom's sister studies law in Vienna.", "Hana's sister studies law in Vienna."),
    ("Victor prefers meetings after ten o'clock.", "Daniel prefers meetings after ten o'clock."),
    ("Room Alder holds eight people.", "Room Birch holds eight people."),
    ("Lena asked for a second monitor.", "Oskar asked for a second monitor."),
    ("Sofia is responsible for the website.", "Marta is responsible for the website."),
    ("My mother was born in Porto.", "My father was born in Porto."),
    ("Nadia's flight leaves on Tuesday.", "Ines's flight leaves on Tuesday."),
    ("The frontend is written in TypeScript.", "The command line tool is written in TypeScript."),
)
_RELATED = (
    ("Maria is training for a marathon.", "Maria runs by the river each evening to train."),
    ("We decided to use PostgreSQL for billing.", "The billing database needs a nightly backup."),
    ("Jonas has a dog called Rex.", "Jonas's dog Rex is afraid of thunder."),
    ("The shop launches on 3 May.", "Before the shop launch the payment page has to be tested."),
    ("Lena is a nurse at the city hospital.", "Lena has night shifts at the hospital this month."),
    ("Priya moved to Bristol in spring.", "Priya is looking for a bigger flat in Bristol."),
    ("The staging server runs out of disk space.", "The staging server was cleaned of old log files."),
    ("Karim is learning the cello.", "Karim's cello teacher lives in the same street."),
    ("Tom is planning a trip to Japan.", "Tom booked a hotel in Tokyo for his Japan trip."),
    ("The newsletter is sent every month.", "Readers of the newsletter asked for fewer pictures."),
    ("Hana collects old fountain pens.", "Hana bought a fountain pen from 1950 at an auction."),
    ("The team chose Trio for concurrency.", "Trio's nurseries make cancelling tasks easy for the team."),
    ("Daniel broke his arm while climbing.", "Daniel's arm is in plaster until next month."),
    ("The office kitchen gets a new coffee machine.", "The coffee machine in the kitchen must be descaled weekly."),
    ("Oskar is writing his thesis about bees.", "Oskar's thesis supervisor wants a chapter on bee diseases."),
    ("Sofia sings in a choir.", "Sofia's choir gives a concert in December."),
    ("Login tokens expire after one hour.", "Users complain that they have to log in too often."),
    ("Victor is vegetarian.", "Victor wants vegetarian restaurants for team dinners."),
    ("Ines redesigned the home page.", "The home page redesign by Ines raised the number of orders."),
    ("Marta's daughter starts school in autumn.", "Marta will work mornings only once her daughter is at school."),
    ("The printer on floor two jams often.", "A technician repaired the paper tray of the printer on floor two."),
    ("Nadia is saving money for a sailing boat.", "Nadia took a sailing course on the lake."),
    ("The budget for the fair was cut.", "Our stand at the fair will be smaller this year."),
    ("The mobile app crashes on old phones.", "Crash reports of the mobile app come from Android 9."),
)
_UNRELATED = (
    ("Maria likes green tea.", "The nightly build failed because of a missing header."),
    ("Jonas is allergic to peanuts.", "The meeting room on floor three has no windows."),
    ("The hosting costs 40 euros a month.", "Hana collects old fountain pens."),
    ("We never deploy on Fridays.", "Sofia sings in a choir."),
    ("Priya lives in Leeds.", "The coffee machine must be descaled weekly."),
    ("The API limit is 100 requests per minute.", "Oskar is writing his thesis about bees."),
    ("Victor's train leaves at 7:40.", "The new logo was drawn with a pencil."),
    ("Lena is a nurse.", "Crash reports come from Android 9."),
    ("Karim eats no meat.", "The release branch is frozen."),
    ("The guest wifi password is bluebird.", "Daniel broke his arm while climbing."),
    ("Tom is planning a trip to Japan.", "The budget table has an error in row nine."),
    ("Marta speaks Portuguese.", "The warehouse has an alarm."),
    ("Login tokens expire after one hour.", "Nadia took a sailing course on the lake."),
    ("The invoice for April was paid.", "Hana knows how to swim."),
    ("Ines sits on the fourth floor.", "Trio was chosen for concurrency."),
    ("The cafeteria is closed on Sundays.", "Jonas drives an old Volvo."),
    ("Backups run every night at 2 am.", "Sofia won the chess tournament."),
    ("The grant proposal is due on Friday.", "Maria plays the piano in a band."),
    ("Oskar asked for a quieter desk.", "The customer lives near a volcano."),
    ("Priya's birthday is on 4 March.", "The search index is rebuilt on Sundays."),
    ("Tom wants short answers.", "The heating in room 5 is broken."),
    ("The newsletter is sent every month.", "Karim is learning the cello."),
    ("Dogs may come into the office.", "Version 3.2 fixes the export of tables."),
    ("Victor passed the exam.", "The garden fence was painted white."),
)

# Written after thresholds and word lists were fixed, and never used to change them: what the figures are worth.
_HELD_OUT = {
    Verdict.SAME: (
        ("Melanie adopted a puppy named Biscuit.", "Melanie has adopted a puppy called Biscuit."),
        ("The customer wants an invoice in Swiss francs.", "The customer would like the invoice in Swiss francs."),
        (
            "Caroline volunteers at the animal shelter on Saturdays.",
            "On Saturdays Caroline volunteers at the animal shelter.",
        ),
        ("The build takes about 14 minutes.", "A build takes around 14 minutes."),
        ("Raj keeps his bike in the garage.", "Raj stores his bike in the garage."),
        ("Our landlord is Mr Okafor.", "Mr Okafor is our landlord."),
        ("Elif finished her master's degree in June.", "In June Elif finished her master's degree."),
        ("Logs are deleted after 90 days.", "After 90 days the logs are deleted."),
    ),
    Verdict.NEWER: (
        ("The rent of the flat is 900 euros.", "The rent of the flat is 950 euros."),
        ("Raj's team has six members.", "Raj's team has nine members."),
        ("The sprint ends on Wednesday.", "The sprint ends on Friday."),
        ("Elif's appointment is on 12 March.", "Elif's appointment is on 19 March."),
        ("Melanie weighs her luggage at 21 kilos.", "Melanie weighs her luggage at 18 kilos."),
        ("The cache is kept for 10 minutes.", "The cache is kept for 30 minutes."),
        ("The shuttle to the airport leaves every 20 minutes.", "The shuttle to the airport leaves every 30 minutes."),
        ("The plant in the hall is watered on Mondays.", "The plant in the hall is watered on Thursdays."),
    ),
    Verdict.CONTRADICTION: (
        ("Caroline is afraid of flying.", "Caroline is not afraid of flying."),
        ("The museum charges an entrance fee.", "The museum charges no entrance fee."),
        ("Raj trusts the new supplier.", "Raj distrusts the new supplier."),
        ("The old API is still supported.", "The old API is no longer supported."),
        ("Elif got the job in Ankara.", "Elif didn't get the job in Ankara."),
        ("Melanie is a morning person.", "Melanie is anything but a morning person."),
        ("The roof is waterproof.", "The roof leaks when it rains."),
        ("The tests pass on Windows.", "The tests fail on Windows."),
    ),
    Verdict.OTHER: (
        ("Caroline plays badminton on Sundays.", "Elif plays badminton on Sundays."),
        ("The kitchen was painted yellow.", "The bathroom was painted yellow."),
        ("Raj's car was stolen last week.", "Melanie's car was stolen last week."),
        ("The German translation is finished.", "The Spanish translation is finished."),
        ("Mr Okafor fixes the heating himself.", "Mrs Lindqvist fixes the heating herself."),
        ("The login page needs a new icon.", "The payment page needs a new icon."),
        ("Grandma gave Elif a ring.", "Grandpa gave Elif a ring."),
        ("The first draft was rejected by the editor.", "The second draft was rejected by the editor."),
    ),
    Verdict.RELATED: (
        ("Melanie adopted a puppy named Biscuit.", "Biscuit chewed up Melanie's new shoes."),
        ("Raj is building a model railway.", "Raj bought a locomotive for his model railway."),
        ("The build takes about 14 minutes.", "A faster build machine was ordered."),
        ("Elif got a job in Ankara.", "Elif is moving to Ankara next month."),
        ("Caroline volunteers at the animal shelter.", "The animal shelter needs money for a new roof."),
        ("The rent of the flat is 900 euros.", "The landlord wants to raise the rent of the flat."),
        ("The old API is no longer supported.", "Three customers still call the old API."),
        ("Mr Okafor is our landlord.", "Mr Okafor lives in the house next door."),
    ),
    Verdict.UNRELATED: (
        ("Caroline plays badminton on Sundays.", "The cache is kept for 10 minutes."),
        ("Raj keeps his bike in the garage.", "The German translation is finished."),
        ("The museum charges an entrance fee.", "Elif's mother bakes bread."),
        ("The sprint ends on Friday.", "A volcano erupted near the village."),
        ("Melanie wants to learn to juggle.", "The certificate of the mail server has expired."),
        ("Logs are deleted after 90 days.", "Grandma gave Elif a ring."),
        ("The roof leaks when it rains.", "The team chose a library for charts."),
        ("Mr Okafor is our landlord.", "Version 2 of the parser is faster."),
    ),
}

PAIRS: tuple[Pair, ...] = tuple(
    Pair(older, newer, verdict)
    for verdict, pairs in (
        (Verdict.SAME, _SAME),
        (Verdict.NEWER, _NEWER),
        (Verdict.CONTRADICTION, _CONTRADICTION),
        (Verdict.OTHER, _OTHER),
        (Verdict.RELATED, _RELATED),
        (Verdict.UNRELATED, _UNRELATED),
    )
    for older, newer in pairs
)
HELD_OUT: tuple[Pair, ...] = tuple(
    Pair(older, newer, verdict) for verdict, pairs in _HELD_OUT.items() for older, newer in pairs
)
