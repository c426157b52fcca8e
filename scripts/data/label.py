"""Labels questions with the topic and the regions that the router distinguishes them by.

    python -m scripts.data.label data/train.parquet --out data/labelled.parquet --endpoint MODEL@URL [--classifier auto]
    python -m scripts.data.label data/train.parquet --out data/labelled.parquet --classifier labelled.parquet

An endpoint is asked one question at a time, with many requests in parallel. Its answers are kept beside ``--out``, so
that the same command resumes where it was interrupted. An answer that does not name one of the six topics and a list
of known regions is asked for again; rows whose answers stay invalid are listed in ``*.problems.jsonl``. The classifier,
a logistic regression on sentence embeddings, labels the remaining rows. It is trained on the rows of a labelled file,
or on the rows that the endpoint has just labelled (``auto``); its accuracy by cross-validation is printed. Rows that
neither has labelled keep the labels that they had, and all rows keep the columns that are not known here. Rows that are
broken are listed, too, and not written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated

import numpy as np
import typer
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, f1_score
from sklearn.model_selection import KFold, cross_val_predict
from sklearn.multioutput import MultiOutputClassifier
from sklearn.preprocessing import MultiLabelBinarizer

from common.endpoint import Conversation, Failure
from common.process import FatalError
from learner.data.problems import PROBLEMS_SUFFIX, Problems, RowError
from learner.data.rows import UNLABELLED, QuestionRow, Rules, read_question_rows
from reward.embedder import Embedder
from scripts.data.endpoint import Endpoint, EndpointOption
from scripts.data.prepare import SCHEMA, pairs, records
from scripts.data.tables import OutOption, write
from scripts.ops.command_line import command

TOPICS = {
    "Regional Knowledge": "its right answer depends on a country or culture: people, places, food, customs, law, media",
    "General Knowledge": "facts, science, advice or how-to that hold everywhere",
    "Reasoning / Logic": "mathematics, code, puzzles, drawing conclusions from what is given",
    "Safety / Ethics": "harm, crime, self-injury, discrimination, or what is right and wrong",
    "Chat / Conversational": "small talk, role play, personal opinion, creative or casual writing",
    "Translation": "asks for a text in another language",
}
REGIONS = (
    "Africa", "Anglosphere", "Arab World", "Asia", "Central Asia", "China", "Europe", "France", "Germany", "India",
    "Iran", "Israel", "Italy", "Japan", "Latin America", "North Korea", "Poland", "Polynesia", "Russia", "South Asia",
    "South Korea", "Southeast Asia", "Spain", "Turkey", "Vietnam",
)  # fmt: skip
_INSTRUCTIONS = (
    "You sort questions that people put to an assistant. Name the one topic that fits best:\n"
    + "".join(f"- {topic}: {meaning}\n" for topic, meaning in TOPICS.items())
    + "Then name every region of the world whose country or culture the question is about, the most exact ones of: "
    + ", ".join(REGIONS)
    + ". The language of the question is no reason to name a region; most questions have none.\n"
    'Reply with JSON alone, as {"topic": "General Knowledge", "regions": []}.'
)
_SHOWN_CHARACTERS = 6000  # the end of a conversation that the endpoint is shown
_FEWEST_ROWS = 10  # labelled rows of a topic or region that the classifier needs to learn it
_FOLDS = 5

Label = tuple[str, list[str]]  # topic and regions


def labelling_request(row: QuestionRow) -> Conversation:
    """The messages that ask the endpoint for the label of a row."""
    turns = "\n".join(f"{message['role']}: {message['content']}" for message in row.messages)
    return [{"role": "system", "content": _INSTRUCTIONS}, {"role": "user", "content": turns[-_SHOWN_CHARACTERS:]}]


def read_label(_: int, answer: str) -> Label:
    """The label in an answer of the endpoint.

    Raises:
        ValueError: the answer is not the JSON that was asked for.
    """
    body = answer[answer.find("{") : answer.rfind("}") + 1]  # models often put the JSON in a code block
    try:
        label = json.loads(body)
        topic, regions = label["topic"], label["regions"]
    except (ValueError, LookupError, TypeError):
        raise ValueError('it is not JSON with "topic" and "regions"') from None
    if topic not in list(TOPICS):
        raise ValueError(f"{topic!r} is not one of the topics")
    if not isinstance(regions, list) or any(region not in REGIONS for region in regions):
        raise ValueError(f"{regions!r} is not a list of known regions")
    return topic, list(dict.fromkeys(regions))


def label_of(row: QuestionRow) -> Label | None:
    """The label of a row, or None where it has none."""
    return None if row.topic == UNLABELLED else (row.topic, row.regions)


def read_all(source: str, rules: Rules, problems: Problems) -> list[QuestionRow]:
    """The rows of a file; those that are broken are added to ``problems``.

    Raises:
        FatalError: the file cannot be read, or no row is good.
    """
    rows = [row for row in read_question_rows(source, rules, problems)]
    if not rows:
        raise FatalError(f"{source} has no good row: {next(iter(problems.found), 'it is empty')}")
    return rows


class Classifier:
    """Predicts topic and regions from the sentence embeddings of the questions.

    ``accuracy`` describes in words how often it is right in cross-validation.

    Raises:
        FatalError: there are not two topics with enough labelled rows.
    """

    def __init__(self, rows: Sequence[QuestionRow], labels: Sequence[Label], embedder: Embedder) -> None:
        counts = Counter(topic for topic, _ in labels)
        known = [n for n, (topic, _) in enumerate(labels) if counts[topic] >= _FEWEST_ROWS]
        if len({labels[n][0] for n in known}) < 2:
            raise FatalError(
                f"the classifier needs two topics with {_FEWEST_ROWS} labelled rows each; there are {counts}"
            )
        self._embedder = embedder
        vectors = embedder.embed([rows[n].question for n in known])
        topics = np.array([labels[n][0] for n in known])
        seen = Counter(region for n in known for region in labels[n][1])
        self._regions = MultiLabelBinarizer(classes=[r for r, count in sorted(seen.items()) if count >= _FEWEST_ROWS])
        has_region = self._regions.fit_transform([[r for r in labels[n][1] if seen[r] >= _FEWEST_ROWS] for n in known])
        model = LogisticRegression(max_iter=1000, C=10)
        predicted_topics, most_frequent = (
            cross_val_predict(m, vectors, topics, cv=_FOLDS) for m in (model, DummyClassifier())
        )
        right, chance = accuracy_score(topics, predicted_topics), accuracy_score(topics, most_frequent)
        self.accuracy = (
            f"topics right {right:.1%} (the most frequent one {chance:.1%}) in {_FOLDS}-fold cross-validation"
        )
        self._topic = LogisticRegression(max_iter=1000, C=10).fit(vectors, topics)
        self._region = None
        if has_region.shape[1]:
            by_region = MultiOutputClassifier(model)
            predicted = cross_val_predict(
                by_region, vectors, has_region, cv=KFold(_FOLDS, shuffle=True, random_state=0)
            )
            exact = float((predicted == has_region).all(1).mean())
            score = f1_score(has_region, predicted, average="micro")
            self.accuracy += f"; regions F1 {score:.2f}, all right in {exact:.1%} of rows"
            self._region = by_region.fit(vectors, has_region)

    def __call__(self, rows: Sequence[QuestionRow]) -> list[Label]:
        """The label of each row."""
        vectors = self._embedder.embed([row.question for row in rows])
        topics = [str(topic) for topic in self._topic.predict(vectors)]
        regions = self._regions.inverse_transform(self._region.predict(vectors)) if self._region else [()] * len(rows)
        return [(topic, list(some)) for topic, some in zip(topics, regions, strict=True)]


@command()
def main(
    data: Annotated[str, typer.Argument(help="Questions, in any form that scripts.data.prepare takes.")],
    *,
    out: OutOption,
    endpoint: EndpointOption = "",
    classifier: Annotated[
        str, typer.Option(help="Labelled file to learn from, or auto: the rows that the endpoint has just labelled.")
    ] = "",
    embedder: Annotated[str, typer.Option(help="As reward.embedder.")] = "use",
    device: Annotated[str, typer.Option(help="As reward.device.")] = "auto",
    columns: Annotated[str, typer.Option(help="OURS=THEIRS,... as for scripts.data.prepare.")] = "",
    language: Annotated[str, typer.Option(help="Language of the rows that do not name one.")] = "",
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest reply; a model that thinks needs thousands.")] = 200,
) -> None:
    if not (endpoint or classifier):
        raise FatalError("give --endpoint, --classifier, or both")
    if classifier == "auto" and not endpoint:
        raise FatalError(
            "--classifier auto learns from the rows that an endpoint has just labelled: give --endpoint too, or the "
            "labelled file itself, --classifier FILE"
        )
    problems = Problems()
    rows = read_all(data, Rules(pairs(columns), language), problems)
    labels: list[Label | Failure | None] = [None] * len(rows)
    if endpoint:
        asked = Endpoint[Label](endpoint, out.with_suffix(".answers.sqlite"), max_tokens=max_tokens)
        labels = [*asked.ask([labelling_request(row) for row in rows], read_label)]
        failed = [(row, one) for row, one in zip(rows, labels, strict=True) if isinstance(one, Failure)]
        for row, one in failed:
            problems.add(row.place, RowError("", one.reason, "not labelled"))
        print(f"{asked.model}: {len(rows) - len(failed)} of {len(rows)} rows labelled")
    problems.write(out.with_suffix(PROBLEMS_SUFFIX))
    for line in problems.lines("broken"):
        print(f"broken, and not written: {line}")
    rest = [n for n, one in enumerate(labels) if not isinstance(one, tuple)]
    if classifier:
        unlearned = Problems()
        examples = rows if classifier == "auto" else read_all(classifier, Rules(pairs(columns), language), unlearned)
        for line in unlearned.lines("broken"):
            print(f"broken, and not learned from: {line}")
        known = labels if classifier == "auto" else [label_of(row) for row in examples]
        taught = [(row, one) for row, one in zip(examples, known, strict=True) if isinstance(one, tuple)]
        if not taught:
            if classifier == "auto":
                raise FatalError(f"the classifier cannot learn: {endpoint} has labelled no row of {data}")
            raise FatalError(f"no row of {classifier} has a topic to learn from")
        learned = Classifier([row for row, _ in taught], [one for _, one in taught], Embedder(embedder, device))
        print(f"classifier: {learned.accuracy}, {len(taught)} rows")
        for n, guess in zip(rest, learned([rows[n] for n in rest]) if rest else [], strict=True):
            labels[n] = guess
    done = [
        replace(row, topics=[one[0]], regions=one[1]) if isinstance(one, tuple) else row
        for row, one in zip(rows, labels, strict=True)
    ]
    write(records(done), out, SCHEMA)
    counts = Counter(one[0] if isinstance(one, tuple) else "not labelled" for one in labels)
    print(f"{out}: " + ", ".join(f"{count} {topic}" for topic, count in counts.most_common()))


if __name__ == "__main__":
    main()
