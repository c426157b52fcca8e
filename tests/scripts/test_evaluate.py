"""Scores of models whose scores are known, through the command itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.config import load
from common.languages import tag
from common.process import FatalError
from learner.data.problems import Place
from learner.data.rows import QuestionRow
from scripts.data.endpoint import whole_number
from scripts.study import evaluate, harness, served_model
from scripts.study.evaluate import main
from scripts.study.grading import LABELS, Item, grade, read_label
from scripts.study.score_table import summary, table
from tests.support.chat import serving

QUESTIONS = [
    ("zh", "日本的首都是哪里？", "日本的首都是东京。"),
    ("hi", "जापान की राजधानी क्या है?", "जापान की राजधानी टोक्यो है।"),
    ("es", "¿Cuál es la capital de Japón?", "La capital de Japón es Tokio."),
]
ENGLISH = "The capital of Japan is Tokyo."


def judge(request: dict[str, Any]) -> str:
    """Grades by its own reading of the rules: an answer that is the reference, or its translation, or no answer."""
    form = request["messages"][0]["content"]
    reference, answer = (
        form.split(f"{part}:\n")[1].split("\n\n")[0].strip() for part in ("Reference answer", "Answer to grade")
    )
    if "from 1 (useless)" in form:
        return "9/10" if answer == reference else "2"
    if not answer:
        return "NOT_ATTEMPTED"
    return "CORRECT" if answer == reference else "CORRECT_BUT_WRONG_LANGUAGE" if answer == ENGLISH else "INCORRECT"


@pytest.fixture
def questions(tmp_path: Path) -> str:
    rows = [{"question": q, "answer": a, "language": code, "id": "capital"} for code, q, a in QUESTIONS]
    (tmp_path / "care_pro.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(tmp_path / "care_pro.jsonl")


@pytest.mark.parametrize("knows", ["references", "english", "nothing", "one"])
def test_care_pro_counts_right_answers_in_the_right_language_alone(
    knows: str, questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known = {question: reference for _, question, reference in QUESTIONS}
    asked = []

    def answer(request: dict[str, Any]) -> str:
        asked.append(request)
        question = request["messages"][-1]["content"]
        if knows == "one":
            return known[question] if "Japón" in question else "No."
        return {"references": known[question], "english": ENGLISH, "nothing": ""}[knows]

    with serving(answer) as model, serving(judge) as judges:
        command = [f"m@{model}", "--out", str(tmp_path / "s.json"), "--judge", f"j@{judges}", "--json"]
        main([*command, "--care-pro", questions, "--care", questions])
    assert all(request["temperature"] == 0 for request in asked) and len(asked) == 3, "greedy, each prompt once"
    found = json.loads(capsys.readouterr().out)["sets"]
    one = found["CARE-pro"]
    assert one["mean"] == pytest.approx({"references": 100, "one": 100 / 3}.get(knows, 0))
    assert one["seen"] == pytest.approx({"references": 100, "one": 50}.get(knows, 0)), "zh and es are seen"
    assert one["unseen"] == pytest.approx({"references": 100}.get(knows, 0)), "hi is not"
    assert one["low"] <= one["mean"] <= one["high"]
    assert found["CARE"]["mean"] == pytest.approx({"references": 90, "one": 130 / 3}.get(knows, 20))
    assert found["CARE-pro"]["compliance"] == pytest.approx({"references": 100, "one": 100 / 3}.get(knows, 0))
    items = json.loads((tmp_path / "s.json").read_text())["items"]["CARE-pro"]
    labels = [item["label"] for item in items]
    assert [item["id"] for item in items] == ["capital"] * 3, "translations of one question"
    wanted = {"references": 0, "english": 1, "nothing": 3}
    assert knows == "one" or labels == [LABELS[wanted[knows]]] * 3


def test_judgements_are_kept_and_useless_ones_left_out(
    questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, calls = {question: reference for _, question, reference in QUESTIONS}, []

    def grumpy(request: dict[str, Any]) -> str:
        calls.append(request)
        return "I would say it is not correct" if "टोक्यो" in request["messages"][0]["content"] else judge(request)

    with serving(lambda r: known[r["messages"][-1]["content"]]) as model, serving(grumpy) as judges:
        command = [f"m@{model}", "--out", str(tmp_path / "s.json"), "--judge", f"j@{judges}", "--care-pro", questions]
        main(command)
        assert "1 not judged" in capsys.readouterr().out and len(calls) == 5
        main([*command, "--json"])
        assert len(calls) == 8, "only the question without a judgement is judged again"
    one = json.loads(capsys.readouterr().out)["sets"]["CARE-pro"]
    assert (one["mean"], one["unjudged"], one["questions"]) == (100, 1, 3)
    with pytest.raises(SystemExit, match="needs --judge"), serving(lambda _: "") as model:
        main([f"m@{model}", "--out", str(tmp_path / "s.json"), "--care", questions])
    with pytest.raises(SystemExit, match="nothing to evaluate"):
        main(["m@http://127.0.0.1:1", "--out", str(tmp_path / "s.json")])


def test_a_set_of_which_nothing_was_judged_is_left_out_of_the_mean() -> None:
    def items(*scores: float | None) -> list[Item]:
        return [Item("de", score, "", "Ja.", True, str(number)) for number, score in enumerate(scores)]

    sets = {"CARE-pro": summary(items(None, None), ["de"]), "mGSM": summary(items(1, 0), ["de"])}
    json.dumps(sets, allow_nan=False)
    assert [sets["CARE-pro"][one] for one in ("mean", "low", "high", "seen")] == [None] * 4
    shown = {line.split()[0]: " ".join(line.split()[1:]) for line in table("m", sets).splitlines()[1:]}
    assert shown["CARE-pro"] == "not judged 2 questions in the question's language 100.00"
    assert shown["overall"] == "50.00 mean of 1 sets"


def test_seen_are_the_languages_of_the_run(
    tiny_policy: Path,
    questions: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, known = tmp_path / "run", {question: reference for _, question, reference in QUESTIONS}
    (run / "model").mkdir(parents=True)
    shutil.copytree(tiny_policy, run / "model", dirs_exist_ok=True)
    (run / "config.json").write_text(load(["--run.languages", '["Hindi", "es"]']).model_dump_json())

    @contextmanager
    def served(weights: str, *_: object) -> Iterator[str]:
        assert weights == str(run / "model")
        with serving(lambda r: "" if "日本" in (q := r["messages"][-1]["content"]) else known[q]) as url:
            yield f"m@{url}"

    monkeypatch.setattr(evaluate, "served", served)
    with serving(judge) as judges:
        command = ["--out", str(tmp_path / "s.json"), "--judge", f"j@{judges}", "--care-pro", questions]
        command += ["--prompt-style", "plain"]
        main([str(run), *command])
        assert "seen are hi, es" in capsys.readouterr().out
        found = json.loads((tmp_path / "s.json").read_text())
        assert found["seen"] == ["hi", "es"]
        assert (found["sets"]["CARE-pro"]["seen"], found["sets"]["CARE-pro"]["unseen"]) == (100, 0)
        main([str(run), *command, "--seen", "Chinese"])
    found = json.loads((tmp_path / "s.json").read_text())
    assert (found["sets"]["CARE-pro"]["seen"], found["sets"]["CARE-pro"]["unseen"]) == (0, 100)


@pytest.mark.parametrize(
    ("style", "given", "used"),
    [
        ("system", "auto", {"es": "system", "hi": "system", "zh": "system"}),
        ("tag", "auto", {"es": "plain", "hi": "plain", "zh": "tag"}),  # the only one that the tokenizer has
        ("select", "auto", {"es": "select", "hi": "select", "zh": "select"}),
        ("system", "plain", {"es": "plain", "hi": "plain", "zh": "plain"}),
        ("", "auto", {"es": "plain", "hi": "plain", "zh": "tag"}),
    ],
)
def test_a_run_is_asked_as_it_was_trained(
    style: str, given: str, used: dict[str, str], tiny_policy: Path, questions: str, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    asked: dict[str, list[dict[str, str]]] = {}
    weights, model = tiny_policy, str(tiny_policy)
    if style:
        weights, model = tmp_path / "run" / "model", str(tmp_path / "run")
        shutil.copytree(tiny_policy, weights)
        (tmp_path / "run" / "config.json").write_text(load(["--model.prompt_style", style]).model_dump_json())

    def answer(request: dict[str, Any]) -> str:
        messages = request["messages"]
        asked[next(code for code, question, _ in QUESTIONS if question in messages[-1]["content"])] = messages
        return "7"

    @contextmanager
    def served(path: str, *_: object) -> Iterator[str]:
        assert path == str(weights)
        with serving(answer) as url:
            yield f"m@{url}"

    monkeypatch.setattr(evaluate, "served", served)
    rows = [{"question": question, "answer": "7", "language": code} for code, question, _ in QUESTIONS]
    (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    out = ["--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl")]
    main([model, *out, "--prompt-style", given])
    by = {
        code: "system" if messages[0]["role"] == "system" else "tag" if tag(code) in messages[0]["content"] else "plain"
        for code, messages in asked.items()
    }
    assert by == {code: "plain" if one == "select" else one for code, one in used.items()}
    assert json.loads((tmp_path / "s.json").read_text())["prompt_style"] == used
    shown = capsys.readouterr().out
    assert (
        f"prompt style {style}" in shown if len({*used.values()}) == 1 and given == "auto" else "prompt style" in shown
    )
    assert len({*used.values()}) == 1 or "prompt styles plain (es hi), tag (zh)" in shown


def test_a_run_with_words_of_its_own_is_asked_in_them(tiny_policy: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(tiny_policy, run / "model")
    flags = ["--model.prompt_style", "system", "--model.instructions.zh", "Kurz."]
    (run / "config.json").write_text(load(flags).model_dump_json())
    ask = served_model.Asking("auto", str(run / "model"), run)
    row = QuestionRow([{"role": "user", "content": "2 + 2?"}], "4", "zh", [], [], "", Place("f", 0))
    assert ask(row) == [{"role": "system", "content": "Kurz."}, {"role": "user", "content": "2 + 2?"}]


def test_a_benchmark_is_scored_whole_or_not_at_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows: list[dict[str, Any]] = [
        {"question": "2 + 2 =", "answer": "4", "language": code, "id": 1} for code in ("de", "en", "en")
    ]
    rows += [{"question": "x" * 200_000, "answer": "1", "language": "en"}]
    (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda request: "2" if "1 + 1" in request["messages"][-1]["content"] else "4") as model:
        command = [f"m@{model}", "--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl"), "--json"]
        main(command)
        one = json.loads(capsys.readouterr().out)["sets"]["mGSM"]
        assert (one["questions"], one["mean"], one["by_language"]) == (4, 75, {"de": 100, "en": pytest.approx(200 / 3)})
        with (tmp_path / "mgsm.jsonl").open("a") as file:
            file.write('{"question": "?", "language": "en", "answer": null}\n')
        with pytest.raises(SystemExit, match=r"1 rows are broken: .*mgsm\.jsonl, row 4, answer: it is missing"):
            main(command)
        rated = [
            {
                "question": "1 + 1 =",
                "answer": None,
                "response": text,
                "human_rating": rating,
                "culture": "x",
                "language": "en",
            }
            for text, rating in (("3", 2.0), ("2", 9.0), ("1", 5.0))
        ]
        (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rated))
        main(command)
    items = json.loads((tmp_path / "s.json").read_text())["items"]["mGSM"]
    assert [item["score"] for item in items] == [1], "the best rated of several responses is the reference"


def test_mgsm_takes_the_last_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{n}?", "answer_number": n, "language": "en"} for n in (12, 1000, 7, -3)]
    (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    says = {"12?": "First 5, then 7: 12.", "1000?": "$1,000.00", "7?": "7 apples and 2 pears", "-3?": "−3"}
    with serving(lambda request: says[request["messages"][-1]["content"]]) as model:
        command = [f"m@{model}", "--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl"), "--json"]
        main([*command, "--columns", "answer=answer_number"])
    assert json.loads(capsys.readouterr().out)["sets"]["mGSM"]["mean"] == 75


def test_a_thought_is_no_answer_and_a_reference_without_a_number_is_an_error() -> None:
    row = QuestionRow([{"role": "user", "content": "?"}], "7", "en", [], [], "mgsm", Place("mgsm.jsonl", 3))
    said = ["<think>5</think> It is 7.", "<think>so 7", "", "1,00,007"]
    found = grade("mGSM", [row] * 4, said, None)
    assert [one.label for one in found] == ["CORRECT", "INCORRECT", "INCORRECT", "INCORRECT"]
    with pytest.raises(FatalError, match=r"mgsm\.jsonl, row 3: the reference 'seven' has no number"):
        grade("mGSM", [replace(row, reference="seven")], [""], None)


def test_an_unfinished_thought_that_the_prompt_opened_is_no_answer(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = QuestionRow([{"role": "user", "content": "?"}], "42", "en", [], [], "mgsm", Place("mgsm.jsonl", 0))
    said = ["so 7*6 = 42, but wait", "7*6 is it</think> It is 42."]
    assert [one.label for one in grade("mGSM", [row] * 2, said, None, True)] == ["INCORRECT", "CORRECT"]
    rows = [{"question": f"{n}?", "answer": "42", "language": "en"} for n in range(2)]
    (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda request: said[int(request["messages"][-1]["content"][0])]) as model:
        command = [f"m@{model}", "--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl"), "--json"]
        for flags, mean in (([], 100), (["--opens-thought"], 50)):
            main([*command, *flags])
            assert json.loads(capsys.readouterr().out)["sets"]["mGSM"]["mean"] == mean


def test_the_template_of_weights_tells_that_it_opens_a_thought(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_policy, model)
    for path in model.iterdir():  # in whichever of the files this version of transformers keeps it
        text = path.read_text(encoding="utf-8") if path.suffix in (".json", ".jinja") else ""
        for end in ("assistant\n", "assistant\\n"):
            if f"<|im_start|>{end}{{% endif %}}" in text:
                path.write_text(text.replace(f"<|im_start|>{end}{{%", f"<|im_start|>{end}<think>{{%"))
    row = {"question": "7*6?", "answer": "42", "language": "en"}
    (tmp_path / "mgsm.jsonl").write_text(json.dumps(row) + "\n")

    @contextmanager
    def served(*_: object) -> Iterator[str]:
        with serving(lambda _: "so 7*6 = 42, but wait") as url:
            yield f"m@{url}"

    monkeypatch.setattr(evaluate, "served", served)
    for weights, mean in ((tiny_policy, 100), (model, 0)):
        command = [str(weights), "--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl"), "--json"]
        main(command)
        assert json.loads(capsys.readouterr().out)["sets"]["mGSM"]["mean"] == mean


def test_a_judge_that_fails_costs_no_answers(
    questions: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    known, asked, failing = {question: reference for _, question, reference in QUESTIONS}, [], ["at once"]

    def model(request: dict[str, Any]) -> str:
        asked.append(request)
        return f"{known[request['messages'][-1]['content']]} Ja."

    def judging(request: dict[str, Any]) -> str | tuple[int, str]:
        later = "Ja." in request["messages"][0]["content"]
        return (401, "no such key") if failing == ["at once"] or (failing and later) else "CORRECT"

    with serving(model) as endpoint, serving(judging) as judges:
        command = [f"m@{endpoint}", "--out", str(tmp_path / "new" / "s.json"), "--judge", f"j@{judges}", "--json"]
        command += ["--care-pro", questions]
        with pytest.raises(SystemExit, match="set OPENAI_API_KEY"):
            main(command)
        assert not asked, "the judge is asked first"
        failing[:] = ["after the answers"]
        with pytest.raises(SystemExit, match="set OPENAI_API_KEY"):
            main(command)
        assert len(asked) == 3
        failing.clear()
        main(command)
        assert len(asked) == 3, "the answers were kept"
        assert json.loads(capsys.readouterr().out)["sets"]["CARE-pro"]["mean"] == 100
        main(command)
        assert len(asked) == 6, "another model may be behind the address by now"


def test_refused_questions_are_counted_and_not_in_the_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"question": f"{n}?", "answer": "4", "language": "en"} for n in range(3)]
    (tmp_path / "mgsm.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with serving(lambda r: (400, "too long") if r["messages"][-1]["content"] == "1?" else "4") as model:
        main([f"m@{model}", "--out", str(tmp_path / "s.json"), "--mgsm", str(tmp_path / "mgsm.jsonl"), "--json"])
    shown = capsys.readouterr()
    found = json.loads(shown.out)
    assert found["refused"] == {"mGSM": 1} and found["sets"]["mGSM"]["mean"] == pytest.approx(200 / 3)
    assert "1 of 3 questions were refused" in shown.err


def test_only_clear_judgements_count() -> None:
    read_grade = whole_number(1, 10)
    assert read_label(0, "INCORRECT.") == "INCORRECT" and read_grade(0, "Grade: 10/10") == 10
    for said in ("correct?", "CORRECT or INCORRECT", "", "It is not correct"):
        with pytest.raises(ValueError):
            read_label(0, said)
    for said in ("0", "11", "7.5", "between 3 and 4", ""):
        with pytest.raises(ValueError):
            read_grade(0, said)


def test_the_harness_scores_the_exported_model(
    tiny_policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A local task in the layout of Global-MMLU; the random model's choices are those of a direct computation."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    rng = np.random.default_rng(0)  # two choices may be as likely as one another but for rounding
    rows = [
        {"question": f"{a} + {b} = ?", "answer": "ABCD"[rng.integers(4)],
         **{f"option_{c}": str(rng.integers(100)) for c in "abcd"}}
        for a, b in rng.integers(0, 50, (12, 2)).tolist()
    ]  # fmt: skip
    (tmp_path / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    form = "{question}\nA. {option_a}\nB. {option_b}\nC. {option_c}\nD. {option_d}\nAnswer:"
    task = {
        "task": "global_mmlu_de_local", "dataset_path": "json", "output_type": "multiple_choice", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}}, "doc_to_choice": ["A", "B", "C", "D"],
        "doc_to_text": form.replace("{", "{{").replace("}", "}}"), "doc_to_target": "answer",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(task))  # which is YAML too
    command = [str(tiny_policy), "--out", str(tmp_path / "s.json"), "--include-path", str(tmp_path), "--json"]
    main([*command, "--lm-eval", "global_mmlu_de_local"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["global_mmlu_de_local"]
    model, tokenizer = AutoModelForCausalLM.from_pretrained(tiny_policy), AutoTokenizer.from_pretrained(tiny_policy)
    right = []
    for row in rows:
        prompt, choices = tokenizer.encode(form.format(**row)), [tokenizer.encode(f" {c}") for c in "ABCD"]
        with torch.no_grad():
            tables = [model(torch.tensor([prompt + choice])).logits[0].log_softmax(-1) for choice in choices]
        logp = [
            sum(float(table[len(prompt) + n - 1, token]) for n, token in enumerate(choice))
            for table, choice in zip(tables, choices, strict=True)
        ]
        right.append("ABCD"[int(np.argmax(logp))] == row["answer"])
    assert found["mean"] == pytest.approx(100 * np.mean(right))
    assert found["by_language"] == {"de": pytest.approx(100 * np.mean(right))} and found["compliance"] is None
    monkeypatch.setattr(evaluate, "served", None)  # it is refused before an engine is started
    (tmp_path / "mgsm.jsonl").write_text(json.dumps({"question": "7*6?", "answer": "42", "language": "en"}) + "\n")
    with pytest.raises(SystemExit, match="no task 'nothing'"):
        main([*command, "--lm-eval", "nothing", "--mgsm", str(tmp_path / "mgsm.jsonl")])
    with pytest.raises(SystemExit, match="needs the weights, not an endpoint"):
        main(["m@http://127.0.0.1:1", *command[1:], "--lm-eval", "x", "--mgsm", str(tmp_path / "mgsm.jsonl")])
    metric = {"metric": "acc_norm", "aggregation": "mean", "higher_is_better": True}
    only_normalised = {**task, "task": "normalised_sv", "metric_list": [metric]}
    (tmp_path / "task.yaml").write_text(json.dumps(only_normalised))
    main([*command, "--lm-eval", "normalised_sv"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["sets"]["normalised_sv"]
    assert found["questions"] == len(rows) and [*found["by_language"]] == ["sv"]


def test_a_question_with_two_filters_counts_once_in_each(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Through the harness itself: a task of the form of GSM8K, whose answers a stand-in for a model gives."""
    from lm_eval.api.model import LM
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    class Sure(LM):  # type: ignore[misc]
        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            return [f"It is {n}. #### 7" for n, _ in enumerate(requests)]

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
            raise NotImplementedError

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            raise NotImplementedError

    lines = [json.dumps({"question": f"{n}?", "answer": str(n)}) + "\n" for n in range(5)]
    (tmp_path / "test.jsonl").write_text("".join(lines))

    def regex(name: str, pattern: str) -> dict[str, Any]:
        return {"name": name, "filter": [{"function": "regex", "regex_pattern": pattern}, {"function": "take_first"}]}

    task = {
        "task": "sums_de", "dataset_path": "json", "output_type": "generate_until", "test_split": "test",
        "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
        "doc_to_text": "{{question}}", "doc_to_target": "{{answer}}", "generation_kwargs": {"until": ["\n"]},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
        "filter_list": [regex("strict", "#### (\\d+)"), regex("flexible", "is (\\d+)")],
    }  # fmt: skip
    (tmp_path / "task.yaml").write_text(json.dumps(task))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    found = simple_evaluate(Sure(), tasks=["sums_de"], task_manager=manager, bootstrap_iters=0)
    items = harness.items_of(found["samples"])
    assert len({item.question for some in items.values() for item in some}) == 5, "whatever the filter"
    assert {name: sum(item.score or 0 for item in some) for name, some in items.items()} == {
        "sums_de (strict)": 0, "sums_de (flexible)": 5,
    }  # fmt: skip
    assert all(len(some) == 5 and some[0].language == "de" for some in items.values())
    (tmp_path / "other.yaml").write_text(json.dumps({**task, "task": "more_de"}))
    (tmp_path / "group.yaml").write_text(json.dumps({"group": "both", "task": ["sums_de", "more_de"]}))
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    grouped = simple_evaluate(Sure(), tasks=["both"], task_manager=manager, bootstrap_iters=0)
    items = harness.items_of(grouped["samples"], harness.groups_of(["both"], grouped["group_subtasks"]))
    assert {name: len(some) for name, some in items.items()} == {"both (strict)": 10, "both (flexible)": 10}
    no_metric = [{**sample, "exact_match": [1, 2]} for sample in found["samples"]["sums_de"]]
    with pytest.raises(FatalError, match=r"--lm-eval: no metric .*: sums_de \(exact_match\)"):
        harness.items_of({"sums_de": no_metric})
    assert harness.items_of({"other_mt_en": found["samples"]["sums_de"], "sums_de": no_metric})
    assert "left out: no metric" in capsys.readouterr().out


def test_only_tasks_of_the_lite_set_are_shown_as_such() -> None:
    """By the names of the harness's own tasks, and the groups that it says they are in."""
    sample = {
        "acc": 1.0, "metrics": ["acc"], "filter": "none", "filtered_resps": ["A"], "doc_id": 0, "doc_hash": "x",
        "doc": {"sample_id": "virology/test/7"},
    }  # fmt: skip
    members = {
        "global_mmlu_zh": ["global_mmlu_zh_stem", "global_mmlu_zh_other"],
        "global_mmlu_full_zh": ["global_mmlu_full_zh_stem", "global_mmlu_full_zh_other"],
        "global_mmlu_full_zh_stem": ["global_mmlu_full_zh_anatomy"],
        "include_base_44_chinese": ["include_base_44_chinese_stem", "include_base_44_chinese_driving_license"],
    }
    group_of = harness.groups_of([*members, "global_mmlu_de_medical"], members)
    leaves = [
        "global_mmlu_zh_stem", "global_mmlu_zh_other", "global_mmlu_de_medical", "global_mmlu_full_zh_anatomy",
        "global_mmlu_full_zh_other", "include_base_44_chinese_stem", "include_base_44_chinese_driving_license",
    ]  # fmt: skip
    items = harness.items_of({leaf: [sample] for leaf in leaves}, group_of)
    assert {column: len(some) for column, some in items.items()} == {
        "G-MMLU-Lite": 3, "global_mmlu_full_zh": 2, "include_base_44_chinese": 2,
    }  # fmt: skip
    assert {item.language for item in items["G-MMLU-Lite"]} == {"zh", "de"}
    assert {item.id for item in items["G-MMLU-Lite"]} == {"virology/test/7"}
    asked = harness.items_of({"include_base_44_chinese_few_shot_en_stem": [sample]})
    assert [item.language for some in asked.values() for item in some] == ["zh"], "not that of the prompt"
    assert len({item.question for some in items.values() for item in some}) == len(leaves), "tasks are told apart"
