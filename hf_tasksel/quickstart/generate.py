"""Generated chain-of-thought tasks for one target, small-arithmetic word problems, with planted help and harm.

    python -m hf_tasksel.quickstart.generate OUT_DIR --seed 0

writes one gzipped JSON-lines file per task, and the target's dev and test rows into OUT_DIR/target. The same seed
gives the same bytes. `PLANTED` says what each task was made to do.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path

Row = dict[str, str]
Maker = Callable[[random.Random], Row]

TARGET = "word_problems"
PLANTED = {
    "shop_stories": "helpful",
    "coin_stories": "helpful",
    "bus_stories": "helpful",
    "one_step_problems": "helpful",
    "equations": "helpful",
    "reversed_words": "neutral",
    "next_letters": "neutral",
    "colors": "neutral",
    "opposites": "neutral",
    "noisy_problems": "noised",
    "noisy_stories": "noised",
    "noisy_equations": "noised",
    "noisy_one_step": "noised",
}
NAMES = ["Tom", "Ann", "Sam", "Eva", "Ben", "Mia", "Leo", "Zoe", "Max", "Ida"]
THINGS = ["apples", "books", "cards", "pens", "eggs", "cups", "keys", "toys", "nuts", "shells"]
GAINS = ["buys", "finds", "gets", "wins"]
LOSSES = ["loses", "eats", "sells", "drops"]
WORDS = ["sun", "moon", "tree", "bird", "fish", "rain", "snow", "wind", "leaf", "star", "road", "lake", "hill", "door"]
COLORS = {
    "grass": "green",
    "snow": "white",
    "coal": "black",
    "blood": "red",
    "the sky": "blue",
    "a lemon": "yellow",
    "a leaf": "green",
    "milk": "white",
    "night": "black",
    "a rose": "red",
    "the sea": "blue",
    "the sun": "yellow",
}
OPPOSITES = {
    "hot": "cold",
    "big": "small",
    "up": "down",
    "old": "new",
    "wet": "dry",
    "fast": "slow",
    "high": "low",
    "open": "closed",
    "light": "dark",
    "early": "late",
}


def numbers(rng: random.Random) -> tuple[int, list[int]]:
    """Return a start in 5 … 20 and two signed changes that keep every result between 0 and 30."""
    start = rng.randint(5, 20)
    changes: list[int] = []
    total = start
    for _ in range(2):
        amount = rng.randint(1, 9)
        allowed = [sign for sign in (1, -1) if 0 <= total + sign * amount <= 30]
        sign = rng.choice(allowed)
        changes.append(sign * amount)
        total += sign * amount
    return start, changes


def steps(start: int, changes: list[int], error: int = 0) -> tuple[str, str]:
    """Return the rationale, one equation per change, and the answer; each result is off by `error`."""
    parts, total = [], start
    for change in changes:
        result = total + change + error
        parts.append(f"{total} {'+' if change > 0 else '-'} {abs(change)} = {result}.")
        total = result
    return " ".join(parts), str(total)


def person_question(rng: random.Random, start: int, changes: list[int]) -> str:
    """The wording of the target: a person has things, then two changes."""
    name, thing = rng.choice(NAMES), rng.choice(THINGS)
    first, second = (f"{rng.choice(GAINS if c > 0 else LOSSES)} {abs(c)}" for c in changes)
    return f"{name} has {start} {thing}. {name} {first} and then {second}. How many {thing} does {name} have?"


def word_problem(rng: random.Random, sign: int = 1, error: int = 0) -> Row:
    """A target row; `sign` −1 solves it with plus and minus swapped, `error` is added to each result."""
    start, changes = numbers(rng)
    rationale, answer = steps(start, [sign * c for c in changes], error)
    return {"question": person_question(rng, start, changes), "rationale": rationale, "answer": answer}


def solution(rng: random.Random) -> Row:
    """The rationale and answer of some random problem."""
    rationale, answer = steps(*numbers(rng))
    return {"rationale": rationale, "answer": answer}


def story(rng: random.Random, opening: str, gain: str, loss: str, question: str) -> Row:
    """A problem in other words than the target's, with the right solution."""
    start, changes = numbers(rng)
    first, second = ((gain if c > 0 else loss).format(abs(c)) for c in changes)
    rationale, answer = steps(start, changes)
    text = f"{opening.format(start)} {first} and then {second}. {question}"
    return {"question": text, "rationale": rationale, "answer": answer}


def shop_story(rng: random.Random) -> Row:
    """A shop sells and orders."""
    thing = rng.choice(THINGS)
    opening, question = f"A shop has {{}} {thing}. It", f"How many {thing} are in the shop?"
    return story(rng, opening, "orders {}", "sells {}", question)


def coin_story(rng: random.Random) -> Row:
    """Someone earns and spends."""
    name = rng.choice(NAMES)
    return story(rng, f"{name} has {{}} coins. {name}", "earns {}", "spends {}", f"How many coins does {name} have?")


def bus_story(rng: random.Random) -> Row:
    """People get on and off."""
    place = rng.choice(WORDS)
    opening, question = f"A bus to the {place} has {{}} people. Then", "How many people are on the bus?"
    return story(rng, opening, "{} get on", "{} get off", question)


def one_step_problem(rng: random.Random) -> Row:
    """The target's wording with a single change."""
    start, changes = numbers(rng)
    name, thing, change = rng.choice(NAMES), rng.choice(THINGS), changes[0]
    verb = rng.choice(GAINS if change > 0 else LOSSES)
    question = f"{name} has {start} {thing}. {name} {verb} {abs(change)}. How many {thing} does {name} have?"
    rationale, answer = steps(start, [change])
    return {"question": question, "rationale": rationale, "answer": answer}


def equation(rng: random.Random) -> Row:
    """The same calculation in symbols."""
    start, changes = numbers(rng)
    terms = " ".join(f"{'+' if c > 0 else '-'} {abs(c)}" for c in changes)
    rationale, answer = steps(start, changes)
    return {"question": f"What is {start} {terms}?", "rationale": rationale, "answer": answer}


def reversed_word(rng: random.Random) -> Row:
    """Two words in reverse order."""
    words = rng.sample(WORDS, 3)
    back = " ".join(reversed(words))
    return {"question": f"Reverse the words {' '.join(words)}.", "rationale": f"From the end: {back}.", "answer": back}


def next_letter(rng: random.Random) -> Row:
    """The letter after each of three letters."""
    letters = [rng.choice("abcdefghijklmnopqrstuvwxy") for _ in range(3)]
    after = [chr(ord(c) + 1) for c in letters]
    rationale = " ".join(f"{a} then {b}." for a, b in zip(letters, after, strict=True))
    return {
        "question": f"Which letters follow {' '.join(letters)}?",
        "rationale": rationale,
        "answer": " ".join(after),
    }


def color(rng: random.Random) -> Row:
    """The colours of two things."""
    first, second = rng.sample(sorted(COLORS), 2)
    name = rng.choice(NAMES)
    question = f"{name} paints {first} and {second}. Which colors does {name} need?"
    rationale = f"{first} is {COLORS[first]}. {second} is {COLORS[second]}."
    return {"question": question, "rationale": rationale, "answer": f"{COLORS[first]} and {COLORS[second]}"}


def opposite(rng: random.Random) -> Row:
    """The opposites of two words."""
    first, second = rng.sample(sorted(OPPOSITES), 2)
    name = rng.choice(NAMES)
    rationale = f"{first} turns to {OPPOSITES[first]}. {second} turns to {OPPOSITES[second]}."
    question = f"{name} says {first} and {second}. What are the opposites?"
    return {"question": question, "rationale": rationale, "answer": f"{OPPOSITES[first]} and {OPPOSITES[second]}"}


def noisy_story(rng: random.Random) -> Row:
    """A shop or coin story with the solution of another."""
    return rng.choice([shop_story, coin_story])(rng) | solution(rng)


def noised(maker: Maker) -> Maker:
    """Rows of a maker, each with the solution of another."""

    def make(rng: random.Random) -> Row:
        row, other = maker(rng), maker(rng)
        return {**other, "question": row["question"]}

    return make


def ignored_change(rng: random.Random) -> Row:
    """A target question whose solution ignores both changes."""
    start, changes = numbers(rng)
    question = person_question(rng, start, changes)
    return {"question": question, "rationale": f"{start} stays {start}.", "answer": str(start)}


MAKERS: dict[str, Maker] = {
    TARGET: word_problem,
    "shop_stories": shop_story,
    "coin_stories": coin_story,
    "bus_stories": bus_story,
    "one_step_problems": one_step_problem,
    "equations": equation,
    "reversed_words": reversed_word,
    "next_letters": next_letter,
    "colors": color,
    "opposites": opposite,
    "noisy_problems": lambda rng: word_problem(rng) | solution(rng),
    "noisy_stories": noisy_story,
    "noisy_equations": noised(equation),
    "noisy_one_step": noised(one_step_problem),
    "swapped_signs": lambda rng: word_problem(rng, sign=-1),
    "off_by_some": lambda rng: word_problem(rng, error=2),
    "ignored_changes": ignored_change,
}


def generate(task: str, count: int, seed: int, seen: set[str] | None = None) -> list[Row]:
    """Return `count` rows with questions that are new: not among those before, nor in `seen`.

    Args:
        task: a key of `MAKERS`.
        count: number of rows.
        seed: seeds the rows together with the task's name.
        seen: questions that must not occur; the new ones are added.

    Raises:
        ValueError: when the task has not that many different questions.
    """
    rng = random.Random(f"{seed}/{task}/{count}")
    seen = set() if seen is None else seen
    rows: list[Row] = []
    for _ in range(100 * count):
        row = MAKERS[task](rng)
        if row["question"] not in seen:
            seen.add(row["question"])
            rows.append(row)
        if len(rows) == count:
            return rows
    raise ValueError(f"task {task!r} has fewer than {count} different questions")


def generate_tasks(
    seed: int = 0,
    train_samples: int = 300,
    dev_samples: int = 150,
    test_samples: int = 200,
    names: Iterable[str] = tuple(PLANTED),
) -> dict[str, list[Row]]:
    """Return the source tasks, and the target's rows as `word_problems.dev` and `word_problems.test`.

    Questions of dev and test occur in no task, so that nothing leaks, not even with another answer.
    """
    seen: set[str] = set()
    held_out = {
        f"{TARGET}.dev": generate(TARGET, dev_samples, seed, seen),
        f"{TARGET}.test": generate(TARGET, test_samples, seed + 1_000_000, seen),
    }
    tasks = {name: generate(name, train_samples, seed, set(seen)) for name in names}
    return {**tasks, **held_out}


def write_tasks(output_dir: Path, tasks: dict[str, list[Row]]) -> None:
    """Write `<task>.jsonl.gz` files; the target's go to the folder `target`."""
    for name, rows in tasks.items():
        folder = output_dir / "target" if name.startswith(f"{TARGET}.") else output_dir
        folder.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(row) + "\n" for row in rows)
        buffer = io.BytesIO()
        with gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0) as file:  # no time stamp: the same bytes each time
            file.write(text.encode())
        (folder / f"{name}.jsonl.gz").write_bytes(buffer.getvalue())


def main() -> None:
    """Write the tasks of one seed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--train_samples", type=int, default=300)
    options = parser.parse_args()
    write_tasks(options.output_dir, generate_tasks(options.seed, options.train_samples))


if __name__ == "__main__":
    main()
