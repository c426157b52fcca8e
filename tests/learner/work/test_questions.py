"""The questions of a run: which rows are used, what is said of the others, and the order in which a run asks."""

from __future__ import annotations

import json
import shutil
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import Config, DataConfig, ModelConfig, RunConfig
from common.process import FatalError
from common.prompts import PROMPT_STYLES
from common.tokenizer import load_tokenizer
from learner.work.questions import RunQuestions, ShuffledQuestions, hash_questions, pick_evenly, read_questions
from scripts.data import check
from tests.support.groups import question


def row(**changes: Any) -> dict[str, Any]:
    base = {
        "prompt": [{"role": "user", "content": "Wie heißt die Hauptstadt?"}],
        "ability": "Regional Knowledge",
        "reward_model": {"ground_truth": "Berlin.", "style": "rule"},
        "extra_info": {"language": "german", "topic": "Regional Knowledge", "region": None, "index": 0},
    }
    return {**base, **changes}


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def configured(tmp_path: Path, policy: Path, train: object, **data: Any) -> Config:
    return Config(
        run=RunConfig(dir=tmp_path / "run", languages=("en", "de", "zh")),
        data=DataConfig(train=str(train), **{"max_prompt_tokens": 300, **data}),
        model=ModelConfig(path=str(policy)),
    )


def read(tmp_path: Path, policy: Path, train: object, **data: Any) -> RunQuestions:
    return read_questions(configured(tmp_path, policy, train, **data), load_tokenizer(str(policy)))


def problems(tmp_path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (tmp_path / "run" / "data_problems.jsonl").read_text().splitlines()]


def asks(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def test_rows_become_questions(tiny_policy: Path, tmp_path: Path) -> None:
    several = {"language": "English", "topic": ["A", "B"], "region": ["Europe", "Asia"], "index": 1}
    single = {"language": "zh", "topic": ["A"], "region": ["Asia"], "index": 2}
    verified = {"ground_truth": "Berlin.", "accepted": ["Berlin", "柏林"]}
    rows = [row(extra_info=several), row(prompt=asks("?"), extra_info=single, reward_model=verified)]
    first, second = read(tmp_path, tiny_policy, write(tmp_path / "q.parquet", rows)).train
    assert (first.language, first.topics, first.regions) == ("en", ["A", "B"], ["Europe", "Asia"])
    assert (second.language, second.index, second.reference) == ("zh", 1, "Berlin.")
    assert (first.accepted, second.accepted) == ([], ["Berlin", "柏林"])
    plain = read(tmp_path, tiny_policy, write(tmp_path / "p.parquet", [row()])).train[0]
    assert (plain.language, plain.topics, plain.regions) == ("de", ["Regional Knowledge"], [])


@pytest.mark.parametrize("style", ["tag", "system", "select", "plain"])
def test_a_prompt_is_as_long_as_it_is_sent(style: str, tiny_policy: Path, tmp_path: Path) -> None:
    """The limit that just lets a question pass is the length of the longest prompt that an actor would send."""
    tokenizer = load_tokenizer(str(tiny_policy))
    path = write(tmp_path / "q.parquet", [row(), row(prompt=asks("Und die größte Stadt von Frankreich?"))])

    def kept(longest: int) -> int:
        config = configured(tmp_path, tiny_policy, path, max_prompt_tokens=longest)
        config = config.model_copy(update={"model": ModelConfig(path=str(tiny_policy), prompt_style=style)})
        return len(read_questions(config, tokenizer).train)

    config = configured(tmp_path, tiny_policy, path)
    config = config.model_copy(update={"model": ModelConfig(path=str(tiny_policy), prompt_style=style)})
    sent = PROMPT_STYLES[style](tokenizer, config)
    questions = read(tmp_path, tiny_policy, path).train
    asked = {one.index: [one.language] if style == "plain" else config.run.languages for one in questions}
    lengths = sorted(max(len(sent(one, language)) for language in asked[one.index]) for one in questions)
    assert kept(lengths[1]) == 2 and kept(lengths[1] - 1) == kept(lengths[0]) == 1
    assert [one["kind"] for one in problems(tmp_path)] == ["too long"]
    with pytest.raises(FatalError, match=f"no question of at most {lengths[0] - 1} prompt tokens"):
        kept(lengths[0] - 1)


BROKEN: list[tuple[dict[str, Any], str, str]] = [
    ({"extra_info": {"language": "klingon"}}, "extra_info.language", "Klingon, which is none"),
    ({"extra_info": {"language": "germann"}}, "extra_info.language", "did you mean 'german'"),
    ({"extra_info": {"language": None}}, "extra_info.language", "data.language"),
    ({"extra_info": None}, "extra_info.language", "data.language"),
    ({"extra_info": {"language": 7}}, "extra_info.language", "not a text: 7"),
    ({"reward_model": {"style": "rule"}}, "reward_model.ground_truth", "no such column"),
    ({"reward_model": None}, "reward_model.ground_truth", "no such column"),
    ({"reward_model": {"ground_truth": None}}, "reward_model.ground_truth", "null"),
    ({"reward_model": {"ground_truth": " "}}, "reward_model.ground_truth", "empty"),
    ({"reward_model": {"ground_truth": ["a"]}}, "reward_model.ground_truth", "not a text"),
    ({"reward_model": {"ground_truth": "\ud83d"}}, "reward_model.ground_truth", "lone surrogate"),
    ({"prompt": asks("half \udc80 of it")}, "prompt[0].content", "lone surrogate"),
    ({"prompt": [{"role": "user", "content": None}]}, "prompt[0].content", "null"),
    ({"prompt": [{"role": "user", "content": "  "}]}, "prompt[0].content", "empty"),
    ({"prompt": [{"role": "robot", "content": "?"}]}, "prompt[0].role", "robot"),
    ({"prompt": [{"role": "assistant", "content": "?"}]}, "prompt", "not the user's"),
    ({"prompt": ["?"]}, "prompt[0]", "no message"),
    ({"prompt": []}, "prompt", "list of messages"),
    ({"prompt": None}, "prompt", "list of messages"),
    ({"extra_info": {"language": "de", "topic": ["A", None]}}, "extra_info.topic[1]", "null"),
    ({"extra_info": {"language": "de", "region": {"a": 1}}}, "extra_info.region", "not a text"),
    ({"extra_info": {"language": "fr"}}, "language", "no token <|out_lang_fr|>"),
]


def test_broken_rows_are_listed_and_the_good_ones_used(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, rng: np.random.Generator
) -> None:
    """One file with every fault, in random order, among rows that are good; each fault is named with its row."""
    rows: list[tuple[Any, str, str]] = [(row(**changes), key, reason) for changes, key, reason in BROKEN]
    rows += [("{no json", "", "no JSON"), ("[1]", "", "not a JSON object"), ("7", "", "not a JSON object")]
    good = [row(prompt=asks(f"Frage {n}?")) for n in range(5)]
    every = [*rows, *((one, None, None) for one in good)]
    order = rng.permutation(len(every))
    lines = [every[n][0] if isinstance(every[n][0], str) else json.dumps(every[n][0]) for n in order]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(lines) + "\n")
    found = read(tmp_path, tiny_policy, path).train
    assert sorted(one.messages[0].content for one in found) == [f"Frage {n}?" for n in range(5)]
    listed = {problem["row"]: problem for problem in problems(tmp_path)}
    for line, n in enumerate(order):
        _, key, reason = every[n]
        if key is None:
            assert line not in listed
        else:
            assert (listed[line]["file"], listed[line]["kind"]) == (str(path), "broken")
            assert listed[line]["key"] == key, listed[line]
            assert reason in listed[line]["reason"], listed[line]
    assert f"and {len(rows) - 20} more" in caplog.text and f"{len(rows)} broken" in caplog.text
    with pytest.raises(FatalError, match=f'"refuse", and {len(rows)} rows are broken.*data_problems'):
        read(tmp_path, tiny_policy, path, broken_rows="refuse")
    path.write_text("\n".join(line for line, n in zip(lines, order, strict=True) if every[n][1] is not None))
    with pytest.raises(FatalError, match=r"rows\.jsonl holds no good row\. .*row [01]\b"):
        read(tmp_path, tiny_policy, path)


def test_what_is_no_fault_is_taken(tiny_policy: Path, tmp_path: Path) -> None:
    """A region as a text, an empty topic, a prompt as a text, a number as answer, no extra_info where a language is."""
    rows = [
        row(prompt="Was ist 6 mal 7?", reward_model={"ground_truth": 42}, extra_info=None, ability=None),
        row(extra_info={"language": "de", "topic": "", "region": "Germany"}),
        row(prompt=asks("Wo?"), extra_info={"language": "de", "topic": ["A", "A"], "region": ""}, ability=""),
    ]
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows))
    first, second, third = read(tmp_path, tiny_policy, path, language="German").train
    assert (first.messages[0].content, first.reference, first.topics) == ("Was ist 6 mal 7?", "42", [])
    assert (second.topics, second.regions) == (["Regional Knowledge"], ["Germany"])
    assert (third.topics, third.regions) == (["A"], [])


def test_a_question_is_asked_once_and_never_trained_and_held_out(
    tiny_policy: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    text = "Wie heißt die Brücke in Köln?"
    same = [text, text + "\n", unicodedata.normalize("NFD", text), f"  {text.replace(' ', '   ')}"]
    path = write(tmp_path / "train.parquet", [row(prompt=asks(one)) for one in [*same, "Warum?"]])
    heldout = write(tmp_path / "heldout.parquet", [row(prompt=asks(one)) for one in ["Wann?", same[2]]])
    found = read(tmp_path, tiny_policy, path, heldout=str(heldout))
    assert [one.messages[0].content for one in found.train] == [text, "Warum?"]
    assert [one.messages[0].content for one in found.heldout] == ["Wann?"]
    kinds = Counter(problem["kind"] for problem in problems(tmp_path))
    assert kinds == {"repeated": 3, "trained on": 1} and "1 trained on" in caplog.text
    with pytest.raises(FatalError, match=r"every question of data\.heldout"):
        read(tmp_path, tiny_policy, path, heldout=str(shutil.copy(path, tmp_path / "copy.parquet")))


def test_a_missing_file_or_column_is_named(tiny_policy: Path, tmp_path: Path) -> None:
    with pytest.raises(FatalError, match=r"nothing\.parquet: there is no such file"):
        read(tmp_path, tiny_policy, tmp_path / "nothing.parquet")
    good = write(tmp_path / "good.parquet", [{"question": "Why?", "answer": "So.", "language": "en"}])
    with pytest.raises(FatalError, match=r"data\.heldout = 'none\.json': .*no such file.* with data\.heldout = \"\"$"):
        read(tmp_path, tiny_policy, good, heldout="none.json")
    (tmp_path / "text.parquet").write_text("no parquet")
    with pytest.raises(FatalError, match=r"text\.parquet"):
        read(tmp_path, tiny_policy, tmp_path / "text.parquet")
    pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / "lacks.parquet")
    with pytest.raises(
        FatalError, match=r"question: there is no such column among prompt: name yours in data\.columns"
    ):
        read(tmp_path, tiny_policy, tmp_path / "lacks.parquet")
    path = write(tmp_path / "q.parquet", [row()])
    with pytest.raises(FatalError, match=r"data\.columns\.region = 'regoin'"):
        read(tmp_path, tiny_policy, path, columns={"region": "regoin"})
    with pytest.raises(FatalError, match="cannot load the tokenizer"):
        load_tokenizer("/nowhere")


def test_the_check_command_says_what_the_learner_would(
    tiny_policy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write(tmp_path / "q.parquet", [row(), row(prompt=asks("")), row(prompt=asks("?"))])
    flags = ["--model.path", str(tiny_policy), "--data.train", str(path), "--run.dir", str(tmp_path / "run"),
             "--sampling.max_new_tokens", "64"]  # fmt: skip
    check.main([*flags, "--run.languages", '["de"]'])
    assert "data.train: 2 questions; languages: 2 de; topics: 2 Regional Knowledge" in capsys.readouterr().out
    assert [problem["row"] for problem in problems(tmp_path)] == [1]
    with pytest.raises(SystemExit, match="1 rows are broken"):
        check.main([*flags, "--run.languages", '["de"]', "--data.broken_rows", "refuse"])


def test_further_columns_reach_the_rewards_as_texts(tiny_policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    hints = [{"n": 1, "text": "é"}, "plain", None]
    rows = [{"question": f"{n}?", "answer": "a", "meta": {"hint": hint, "level": n}} for n, hint in enumerate(hints)]
    path.write_text("\n".join(map(json.dumps, rows)))
    columns = {"hint": "meta.hint", "level": "meta.level"}
    found = read(tmp_path, tiny_policy, path, columns=columns, language="en").train
    assert [one.extra for one in found] == [
        {"hint": '{"n": 1, "text": "é"}', "level": "0"},
        {"hint": "plain", "level": "1"},
        {"level": "2"},
    ]


@settings(max_examples=30)
@given(count=st.integers(1, 20), epochs=st.integers(1, 4), seed=st.integers(0, 2**32))
def test_every_epoch_asks_each_question_once_in_an_order_of_its_own(count: int, epochs: int, seed: int) -> None:
    questions = [question(index) for index in range(count)]
    order = ShuffledQuestions(questions, seed)
    asked = [order[n].index for n in range(count * epochs)]
    for epoch in range(epochs):
        assert sorted(asked[epoch * count : (epoch + 1) * count]) == list(range(count))
    assert [ShuffledQuestions(questions, seed)[n].index for n in reversed(range(count * epochs))] == asked[::-1]
    assert hash_questions(questions, seed) == hash_questions(questions, seed) != hash_questions(questions, seed + 1)
    assert hash_questions(questions[1:], seed) != hash_questions(questions, seed)


def test_a_pick_takes_each_language_evenly() -> None:
    questions = [question(n, ["en", "de", "zh", "fr"][n % 4]) for n in range(40)]
    picked = pick_evenly(questions, 12)
    assert Counter(item.language for item in picked) == {"en": 3, "de": 3, "zh": 3, "fr": 3}
    assert pick_evenly(questions, 99) == questions
