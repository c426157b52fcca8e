"""The offline world and its policy."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from common.header import Header
from common.languages import code_of, tag
from common.process import FatalError
from reward.gate import LanguageGate
from reward.terms.text import contains
from scripts.world import build as world
from scripts.world import demo, facts, training, warm_start
from scripts.world.demo import affinity_share
from scripts.world.existing import build_or_check
from scripts.world.reasoning import demo as reasoning_demo
from scripts.world.settings import Settings
from scripts.world.templates import LANGUAGES, OPENINGS, TEMPLATES
from scripts.world.tokenizer import build_tokenizer

FILES = ("train", "heldout", "warm_start", "parallel")
Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def tables(built: Path) -> dict[str, Rows]:
    return {name: pq.read_table(built / f"{name}.parquet").to_pylist() for name in FILES}


def test_the_seed_decides_everything(built: Path, tmp_path: Path) -> None:
    world.main(["--out", str(tmp_path / "same")])
    world.main(["--out", str(tmp_path / "other"), "--seed", "1"])
    for name in FILES:
        first = (built / f"{name}.parquet").read_bytes()
        assert (tmp_path / "same" / f"{name}.parquet").read_bytes() == first
        assert ((tmp_path / "other" / f"{name}.parquet").read_bytes() == first) == (name == "parallel")


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_rows_follow_the_schema(tables: dict[str, Rows], split: str) -> None:
    rows = tables[split]
    assert len(rows) == 24 * len(LANGUAGES)
    for index, row in enumerate(rows):
        assert row["prompt"] == [{"role": "user", "content": row["question"]}]
        assert row["reward_model"]["ground_truth"] == row["answer"]
        assert contains(row["answer"], row["reward_model"]["accepted"]) == 1
        extra = row["extra_info"]
        assert (extra["index"], extra["split"], extra["topic"]) == (index, split, row["ability"])
        assert code_of(extra["language"]) in LANGUAGES
        assert extra["region"] is None or extra["region"] in facts.REGION_AFFINITY
        assert "<|" not in row["question"]
    assert {row["ability"] for row in rows} == set(facts.TOPICS.values())
    assert {row["extra_info"]["region"] for row in rows} == {None, *facts.REGION_AFFINITY}


def test_every_reference_passes_the_language_gate(tables: dict[str, Rows]) -> None:
    rows = tables["warm_start"]
    for column in ("answer", "refusal"):
        assert LanguageGate().detect([row[column] for row in rows]) == [row["language"] for row in rows]


def test_trained_and_heldout_facts_are_disjoint(tables: dict[str, Rows]) -> None:
    train, heldout = ({row["question"] for row in tables[split]} for split in ("train", "heldout"))
    assert not train & heldout
    taught = {question["text"] for row in tables["warm_start"] for question in row["questions"]}
    assert train | heldout < taught


def test_knowledge_is_uneven_and_no_question_is_hopeless(tables: dict[str, Rows]) -> None:
    known = {(row["fact"], row["language"]) for row in tables["warm_start"] if row["sureness"] == 1}
    all_facts = {row["fact"] for row in tables["warm_start"]}
    shares = {lang: sum((fact, lang) in known for fact in all_facts) / len(all_facts) for lang in LANGUAGES}
    assert max(shares.values()) < 0.75, "one language would be good enough for everything"
    fact_of = {question["text"]: row["fact"] for row in tables["warm_start"] for question in row["questions"]}
    for row in tables["train"] + tables["heldout"]:
        knowing = {lang for lang in LANGUAGES if (fact_of[row["question"]], lang) in known}
        assert knowing, row["question"]
        assert knowing >= set(facts.REGION_AFFINITY.get(row["extra_info"]["region"], ())), row["question"]
    strong = {
        lang for table in (facts.REGION_AFFINITY, facts.TOPIC_AFFINITY) for langs in table.values() for lang in langs
    }
    assert strong == set(LANGUAGES)


def test_paragraphs_are_aligned(tables: dict[str, Rows]) -> None:
    languages: dict[int, list[str]] = {}
    for row in tables["parallel"]:
        languages.setdefault(row["id"], []).append(row["language"])
        assert row["text"].strip()
    assert len(languages) >= 45
    assert all(spoken == list(LANGUAGES) for spoken in languages.values())


def test_every_kind_is_asked_in_every_language() -> None:
    assert set(TEMPLATES) == set(facts.TOPICS)
    assert all(set(templates) == set(LANGUAGES) for templates in TEMPLATES.values())


@pytest.mark.parametrize(
    ("country", "region"),
    [
        ({"continent": "AF", "languages": ["ar"]}, "Arab World"),
        ({"continent": "NA", "languages": ["es"]}, "Latin America"),
        ({"continent": "EU", "languages": ["ga", "en"]}, "Anglosphere"),
        ({"continent": "AS", "continents": ["AS", "EU"], "languages": ["ru"]}, "Europe"),
        ({"continent": "AF", "languages": ["en", "sw"]}, "Africa"),
        ({"continent": "AS", "languages": ["ja"]}, "Asia"),
        ({"continent": "OC", "languages": ["fr"]}, None),
    ],
)
def test_regions(country: dict[str, Any], region: str | None) -> None:
    assert facts.region_of(country) == region


def test_impossible_counts_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match=r"^error: 24 trained and 24 held-out facts are more than 10 facts$"):
        world.main(["--out", str(tmp_path), "--facts", "10"])


def test_a_world_of_an_earlier_version_is_refused(built: Path, tmp_path: Path) -> None:
    for name in ("warm_start", "parallel"):
        old = pq.read_table(built / f"{name}.parquet", columns=["language"])
        pq.write_table(old, tmp_path / f"{name}.parquet")
    with pytest.raises(FatalError, match="made by an earlier version; remove it"):
        warm_start.make_policy(tmp_path, tmp_path / "policy", Settings())


TINY = ["--steps", "2", "--batch", "2", "--hidden", "32", "--layers", "1", "--heads", "1", "--head-dim", "32"]


def test_warm_start_writes_a_policy_once(
    built: Path, tables: dict[str, Rows], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "policy"
    arguments = ["--world", str(built), "--out", str(out), *TINY]
    warm_start.main(arguments)
    written = (out / "model.safetensors").stat().st_mtime_ns
    warm_start.main(arguments)
    assert capsys.readouterr().out.endswith("policy: reused\n")
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    assert [path.name for path in tmp_path.iterdir()] == ["policy"]

    tokenizer = AutoTokenizer.from_pretrained(out)
    for row in tables["train"][:100]:
        ids = tokenizer(row["answer"], add_special_tokens=False)["input_ids"]
        assert tokenizer.decode(ids) == row["answer"]
    for lang in LANGUAGES:
        assert len(tokenizer(tag(lang), add_special_tokens=False)["input_ids"]) == 1
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi?\n" + tag("zh")}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == "<|im_start|>user\nHi?\n<|out_lang_zh|><|im_end|>\n<|im_start|>assistant\n"

    model = AutoModelForCausalLM.from_pretrained(out)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert model.config.tie_word_embeddings and model.config.max_position_embeddings >= 512
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"


def test_warm_start_leaves_other_directories_alone(built: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    with pytest.raises(SystemExit, match=r"^error: .*precious exists and is no warm-started policy"):
        warm_start.main(["--world", str(built), "--out", str(tmp_path / "precious"), *TINY])


def test_batches_hold_answers_and_refusals_in_proportion(tables: dict[str, Rows]) -> None:
    example = training.Example({"en": [5, 6]}, "en", [7, 8], [9], 0.25)
    settings = Settings(batch=2000)
    ids, labels = next(training.batches([example] * 2000, settings))
    right = (ids[:, 2] == 7).float().mean().item()
    assert right == pytest.approx(0.25, abs=0.05)
    assert (labels[:, :2] == -100).all() and (labels[:, 2] == ids[:, 2]).all()


def test_a_policy_that_selects_is_taught_headers_thoughts_and_short_answers(tables: dict[str, Rows]) -> None:
    settings = Settings(style="select", batch=4000, others=0.5, unseen="pt,ru")
    rows = [next(row for row in tables["warm_start"] if row["language"] == code) for code in ("en", "fr", "pt")]
    texts = [row["answer"] for row in rows]
    tokenizer = build_tokenizer(texts, ["en"], 400, ["<lang_select>", "</lang_select>", "<think>", "</think>"])
    made = training.examples([{**row, "sureness": 1.0} for row in rows], tokenizer, settings)
    ids, labels = next(training.batches(made * 1000, dataclasses.replace(settings, batch=3000)))
    header, learned = Header(settings.header, LANGUAGES), Counter[str]()
    for sequence, targets in zip(ids.tolist(), labels.tolist(), strict=True):
        asked, _, answer = str(tokenizer.decode(sequence)).partition("assistant\n")
        taught = str(tokenizer.decode([label for label in targets if label != -100]))
        row = next(row for row in rows if row["language"] == header.parse(answer).language)
        assert header.parse(answer).well_formed and "out_lang" not in asked
        thought = f"<think>{OPENINGS[row['language']]}{row['answer']}</think>{row['final']}<|im_end|>"
        assert taught in (thought, header.text(row["language"]) + thought)
        learned[row["language"]] += taught != thought
    assert learned["en"] == 1000 and learned["pt"] == 0 and learned["fr"] == pytest.approx(500, abs=100)


def test_affinity_share_counts_draws_in_languages_that_know_the_region() -> None:
    built = {"languages": ["de", "en", "ja", "zh"], "affinity": {"region": {"Asia": ["ja", "zh"], "Europe": ["de"]}}}
    share, uniform = affinity_share({"Asia": {"ja": 3, "en": 1}, "Europe": {"de": 2, "zh": 2}}, built)
    assert (share, uniform) == (5 / 8, 3 / 8)
    elsewhere, _ = affinity_share({"Elsewhere": {"ja": 4}}, built)  # a region of somebody's own questions
    assert elsewhere == 0 and affinity_share({}, built) == (0, 0)


def test_a_world_that_is_there_has_to_be_the_one_that_would_be_made(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out, command = tmp_path / "world", ["-m", "scripts.world.reasoning.build", "--examples", "10", "--seed"]
    build_or_check(out, [*command, "0"])
    assert "worked examples" in capfd.readouterr().out and (out / "world.json").exists()
    rows = pq.read_table(out / "heldout.parquet")
    pq.write_table(rows, out / "heldout.parquet", compression="gzip")  # the rows count, not how they are written
    build_or_check(out, [*command, "0"])
    assert not capfd.readouterr().out
    refused = r"world was made by another version .*: heldout\.parquet has other rows than this one makes\. Remove"
    with pytest.raises(FatalError, match=refused):
        build_or_check(out, [*command, "1"])
    for text in (b"no parquet", b""):
        (out / "heldout.parquet").write_bytes(text)
        with pytest.raises(FatalError, match=refused):
            build_or_check(out, [*command, "0"])
    (out / "heldout.parquet").unlink()
    with pytest.raises(FatalError, match=refused):
        build_or_check(out, [*command, "0"])


@pytest.mark.parametrize("of", ["facts", "reasoning"])
def test_a_demo_takes_no_world_of_other_code(of: str, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    (tmp_path / "world" / "world.json").write_text("{}")
    with pytest.raises(FatalError, match="world was made by another version of the code"):
        if of == "facts":
            demo.prepare(tmp_path / "world", tmp_path / "policy", 0, [])
        else:
            reasoning_demo.prepare(tmp_path / "world", tmp_path / "policy", 0, None)
    assert not (tmp_path / "policy").exists()
