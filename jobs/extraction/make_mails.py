"""Write mails.jsonl: orders to a furniture shop as people write them, and what each says: `python make_mails.py`."""

import json
import random
from datetime import date, timedelta
from pathlib import Path

HERE = Path(__file__).parent
NUM_MAILS = 100

ITEMS = ("chair", "desk", "lamp", "sofa", "shelf", "bed")
PLURALS = {item: f"{item}s" for item in ITEMS} | {"shelf": "shelves"}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
EXTRAS = ("assembly", "gift wrap", "express")

FIRST_NAMES = ("Alma", "Bruno", "Chiara", "Dmitri", "Elif", "Farah", "Goran", "Hanna", "Ivo", "Jun", "Kofi", "Lena")
LAST_NAMES = ("Berger", "Castillo", "Dupont", "Eriksen", "Fontana", "Grabowski", "Hughes", "Ito", "Jansen", "Okafor")
STREETS = ("Mill Lane", "Station Road", "Harbour Street", "Oak Avenue", "Church Hill", "Park Row", "Bridge Street")
CITIES = ("Leeds", "Cork", "Bristol", "Dundee", "Swansea", "Galway", "York", "Exeter")

GREETINGS = ("Hello,", "Dear all,", "Good morning,", "Hi there,", "To whom it may concern,")
WISHES = (
    "I would like to order {what}.",
    "Could you please send me {what}?",
    "We have moved at last and need {what}.",
    "My sister was so happy with hers that I want {what}, too.",
    "After a long search I have settled on {what}.",
    "Please put me down for {what}.",
)
PLACES = (
    "Bring it to {street}, {city}.",
    "The address is {street} in {city}.",
    "I live at {street}, {city}; the bell is broken, so knock.",
    "It goes to {street}, {city}.",
)
DAYS = (
    "I am at home on {day}.",
    "{day} would suit me best.",
    "Please come on {day}, not earlier.",
    "Delivery on {day}, if you can.",
)
EXTRA_WISHES = {
    "assembly": ("Assembly included, please: I have two left hands.", "I also take the assembly."),
    "gift wrap": ("It is a present, so with gift wrap.", "Gift wrap, please."),
    "express": ("Send it by express.", "It is urgent, so please use express."),
}
CHATTER = (
    "Your shop window is lovely.",
    "Last year a lamp of yours arrived broken, so take care.",
    "My dog is harmless.",
    "I found you by a friend.",
    "The stairs are narrow.",
)
PHONES = ("You can reach me at {phone}.", "My number is {phone}.", "Call {phone} from the street.")
CLOSINGS = ("Best regards,", "Many thanks,", "Yours,", "Kind regards,")


def make_mail(draw: random.Random, number: int) -> dict[str, object]:
    """A mail and what it says, as the columns of a row."""
    item, quantity = draw.choice(ITEMS), draw.choice((1, 1, 2, 2, 3, 4, 6, 8, 12))
    street, city = f"{draw.randint(1, 90)} {draw.choice(STREETS)}", draw.choice(CITIES)
    day = date(2026, 3, 1) + timedelta(days=draw.randrange(200))
    name = f"{draw.choice(FIRST_NAMES)} {draw.choice(LAST_NAMES)}"
    phone = f"0{draw.randint(100, 999)} {draw.randint(100000, 999999)}" if draw.random() < 0.5 else None
    extras = [extra for extra in EXTRAS if draw.random() < 0.3]
    amount = draw.choice((str(quantity), NUMBERS[quantity - 1]))
    what = f"{amount} {item if quantity == 1 else PLURALS[item]}"
    sentences = [
        draw.choice(WISHES).format(what=what),
        draw.choice(PLACES).format(street=street, city=city),
        draw.choice(DAYS).format(day=day if draw.random() < 0.7 else f"{day.day} {day:%B %Y}"),
        *(draw.choice(EXTRA_WISHES[extra]) for extra in extras),
        *draw.sample(CHATTER, draw.randint(0, 2)),
    ]
    first, *others = sentences
    draw.shuffle(others)
    if phone is not None:
        others.append(draw.choice(PHONES).format(phone=phone))
    mail = " ".join([draw.choice(GREETINGS), first, *others, draw.choice(CLOSINGS), name])
    said = {"name": name, "item": item, "quantity": quantity, "street": street, "city": city, "day": day.isoformat()}
    return {"mail_id": f"mail-{number:03}", "mail": mail, "said": {**said, "phone": phone, "extras": extras}}


def main() -> None:
    draw = random.Random(7)  # noqa: S311 - always the same mails
    lines = (json.dumps(make_mail(draw, number), ensure_ascii=False) for number in range(1, NUM_MAILS + 1))
    (HERE / "mails.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


if __name__ == "__main__":
    main()
