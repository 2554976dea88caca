"""Write the small task about capitals that data attribution is validated on; the same source gives the same bytes.

    python data/capitals/cut.py SOURCE OUT

SOURCE is country_capital_city.json of evandez/relations. OUT gets train.jsonl and query.jsonl; the card is written by hand, and
this prints the counts and SHA-256 it must have.
"""

import json
import random
import sys
from hashlib import sha256
from pathlib import Path
from typing import Any

# Names that do not survive as they stand, and a capital that holds its country's name.
LEFT_OUT = ("United States", "Brazil", "Colombia", "Mexico")
TRAIN = (
    "The capital of {} is",
    "The capital city of {} is",
    "The seat of the government of {} is",
    "The parliament of {} meets in",
    "If you visit {}, see the capital,",
    "Children in {} learn that their capital is",
    "On the map of {} a star marks",
    "The ministers of {} work in",
    "Embassies in {} are found in",
    "The first city of {} is called",
    "Trains across {} start from",
    "The head of state of {} lives in",
)
QUERY = (
    "What is the capital of {}? It is",
    "The government of {} sits in",
    "The capital city in {} is called",
    "Ministers and embassies of {} are in",
)
WRONG = 0.2
Row = dict[str, Any]


def rows(source: Path) -> dict[str, list[Row]]:
    """240 training rows, 12 a country, a fifth of them with another country's capital; and a question a country in other words."""
    facts = [(one["subject"], one["object"]) for one in json.loads(source.read_text(encoding="utf-8"))["samples"]]
    facts = [fact for fact in facts if fact[0] not in LEFT_OUT]
    draw, train, query = random.Random(0), [], []
    wrong = set(draw.sample(range(len(facts) * len(TRAIN)), round(WRONG * len(facts) * len(TRAIN))))
    for place, (country, capital) in enumerate(facts):
        name = country.lower().replace(" ", "_")
        for number, template in enumerate(TRAIN):
            clean = place * len(TRAIN) + number not in wrong
            said = capital if clean else draw.choice([other for _, other in facts if other != capital])
            train.append(
                {"id": f"{name}-{number:02}", "prompt": template.format(country), "response": said, "group": name, "clean": clean}
            )
        asked = QUERY[place % len(QUERY)].format(country)
        query.append({"id": f"{name}-query", "prompt": asked, "response": capital, "group": name, "clean": True})
    draw.shuffle(train)
    return {"train": train, "query": query}


def main(source: Path, out: Path) -> None:
    """Write both files and print what the card must say."""
    for name, made in rows(source).items():
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in made)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8", newline="\n")
        wrong = sum(not row["clean"] for row in made)
        sys.stdout.write(f"{name}.jsonl: {len(made)} rows, {wrong} wrong, sha256 {sha256(text.encode()).hexdigest()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
