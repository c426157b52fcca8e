"""Baselines that learn from preferences: pairs of the answers of a recorded run, trained on with TRL.

    python -m scripts.study.preferences dpo|mapo|lidr|mpo RECORD --model MODEL --out DIR [--endpoint MODEL@URL]

RECORD is the ``learner.record`` directory of a run; one with ``--learner.lr 1e-12`` samples without learning. In each
group, and each language that it was answered in,

* dpo prefers the answer with the highest reward to that with the lowest;
* mapo (arXiv 2401.06838) prefers the answer that agrees most with the best one in the pivot language to that which
  agrees least; the endpoint says how much, from 0 to 100, where MAPO asks a translation model for a likelihood;
* lidr (arXiv 2410.08964) prefers the translation of the best answer in the pivot language to the policy's own answer,
  and in the pivot language the own answer to the translation of the other one; answers that are not in their language
  take no part in it, nor in the next;
* mpo (arXiv 2505.16869) prefers the translation of the best answer in the pivot language to that of the worst, as much
  as MODEL prefers those two themselves: scripts.study.mpo has the loss. The others are trained by DPO.

``DIR/pairs.parquet`` holds the pairs (mpo's translations each after its pair in the pivot language), ``DIR/model`` the
trained model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from msgspec.structs import asdict

from actor.prompts import PROMPT_STYLES
from common.gpus import has_cuda
from common.languages import code_of
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Question, Rollout
from learner import recording
from scripts.data.endpoint import FORM, Endpoint, EndpointOption, Failure, translate, whole_number
from scripts.data.prepare import write
from scripts.ops.command_line import command

_AGREEMENT = (
    "How far do these two answers to one question say the same? Languages do not matter. Reply with a whole number "
    "from 0 (nothing in common) to 100 (the same) and nothing else.\n\n"
    "First answer:\n{pivot}\n\nSecond answer:\n{answer}"
)
Group = tuple[Question, dict[str, list[Rollout]]]  # answers by language, the best rewarded first
Pair = tuple[Question, str, str, str]  # language, chosen and rejected text
Translate = Callable[[list[tuple[str, str]]], list[str | Failure]]  # of texts, each with the language to come to


def groups(directory: Path) -> Iterator[Group]:
    """The groups of a record, in the order in which they were trained on."""
    for step in recording.read(directory)[1]:
        for group in step.groups:
            by_language: dict[str, list[Rollout]] = {}
            for rollout in sorted(group.rollouts, key=lambda rollout: -rollout.score.reward):
                by_language.setdefault(rollout.language, []).append(rollout)
            yield group.work.question, by_language


def pair_dpo(found: list[Group], margin: float) -> list[Pair]:
    """The highest and the lowest rewarded answer of each language."""
    return [
        (question, language, some[0].text, some[-1].text)
        for question, answers in found
        for language, some in answers.items()
        if some[0].score.reward - some[-1].score.reward > margin
    ]


def pair_mapo(found: list[Group], margin: float, pivot: str, judge: Endpoint[int]) -> list[Pair]:
    """The answers that agree most and least with the best one in the pivot language; blocks for the judge."""
    parts = [
        (question, language, answers[pivot][0].text, list(dict.fromkeys(rollout.text for rollout in some)))
        for question, answers in found
        for language, some in answers.items()
        if pivot in answers and language != pivot
    ]
    asked = [_AGREEMENT.format(pivot=best, answer=text) for _, _, best, texts in parts for text in texts]
    grades = iter(judge.ask([[{"role": "user", "content": one}] for one in asked], whole_number(0, 100)))
    pairs: list[Pair] = []
    for question, language, _, texts in parts:
        rated = sorted((grade, text) for text, grade in zip(texts, grades, strict=False) if isinstance(grade, int))
        if rated and rated[-1][0] - rated[0][0] > 100 * margin:
            pairs.append((question, language, rated[-1][1], rated[0][1]))
    return pairs


def pair_lidr(found: list[Group], pivot: str, translate_all: Translate) -> list[Pair]:
    """Own answers and translations of the answer in the pivot language; blocks for the translations."""
    parts: list[tuple[Question, str, str, str, bool]] = []  # language, own answer, other's, whether own is preferred
    for question, answers in found:
        best = {one: next((r.text for r in some if r.score.compliant), "") for one, some in answers.items()}
        for language, own in best.items():
            if language != pivot and own and (best_pivot := best.get(pivot)):
                parts += [(question, language, own, best_pivot, False), (question, pivot, best_pivot, own, True)]
    wanted = [(other, language) for _, language, _, other, _ in parts]
    said = translate_all(wanted)
    return [
        (question, language, *((own, other) if preferred else (other, own)))
        for (question, language, own, _, preferred), other in zip(parts, said, strict=True)
        if isinstance(other, str) and other != own
    ]


def pair_mpo(found: list[Group], margin: float, pivot: str, seed: int, translate_all: Translate) -> list[Pair]:
    """Pairs in the pivot language, each followed by its translation; blocks for the translations."""
    parts: list[Pair] = []
    for question, answers in found:
        own = [rollout for rollout in answers.get(pivot, []) if rollout.score.compliant]
        if own and own[0].score.reward - own[-1].score.reward > margin:
            parts += [(question, one, own[0].text, own[-1].text) for one in answers if one != pivot]
    random.Random(seed).shuffle(parts)  # they are trained on in this order
    wanted = [(text, language) for _, language, *texts in parts for text in texts]
    said = translate_all(wanted)
    pairs: list[Pair] = []
    for (question, language, best, worst), chosen, rejected in zip(parts, said[::2], said[1::2], strict=True):
        if isinstance(chosen, str) and isinstance(rejected, str) and chosen != rejected:
            pairs += [(question, pivot, best, worst), (question, language, chosen, rejected)]
    return pairs


def rows(pairs: list[Pair], style: str) -> list[dict[str, Any]]:
    """Conversations as TRL takes them, asked as the policy was."""
    return [
        {
            "prompt": PROMPT_STYLES[style].style_messages([asdict(message) for message in question.messages], language),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, language, chosen, rejected in pairs
    ]


def train(
    pairs: list[dict[str, Any]], model: str, out: Path, *, mpo: bool, beta: float | None, lr: float, epochs: float,
    batch: int, max_length: int, seed: int,
) -> None:  # fmt: skip
    """Trains the model on the pairs by DPO, or by MPO, and writes it to ``out/model``. Blocks as long as that takes.

    Raises:
        FatalError: one of two pairs that belong together is too long.
    """
    from datasets import Dataset  # slow to import, and needed only here
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from scripts.study.mpo import MPOTrainer

    settings = DPOConfig(
        output_dir=str(out / "trainer"),
        num_train_epochs=epochs,
        per_device_train_batch_size=2 * batch if mpo else batch,
        train_sampling_strategy="sequential" if mpo else "random",
        learning_rate=lr,
        beta=beta or (1.5 if mpo else 0.1),
        seed=seed,
        max_length=max_length,
        bf16=has_cuda(),
        use_cpu=not has_cuda(),
        report_to=[],
        save_strategy="no",
        logging_steps=10,
    )
    trainer: Any = (MPOTrainer if mpo else DPOTrainer)(
        model, args=settings, train_dataset=Dataset.from_list(pairs), processing_class=load_tokenizer(model)
    )
    if mpo and len(trainer.train_dataset) < len(pairs):
        raise FatalError(f"a question is longer than --max-length {max_length}: raise it")
    trainer.train()
    trainer.save_model(str(out / "model"))


@command()
def main(
    method: Annotated[Literal["dpo", "mapo", "lidr", "mpo"], typer.Argument(help="How pairs are made.")],
    record: Annotated[Path, typer.Argument(help="The learner.record directory of a run.")],
    *,
    model: Annotated[str, typer.Option(help="Model to train; without it only the pairs are written.")] = "",
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    endpoint: EndpointOption = "",
    pivot: Annotated[str, typer.Option(parser=code_of, metavar="LANGUAGE", help="The dominant one.")] = "en",
    margin: Annotated[float, typer.Option(help="Least difference of reward or agreement of a pair.")] = 0.0,
    beta: Annotated[float | None, typer.Option(help="Default 0.1; of mpo 1.5.")] = None,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 5e-7,
    epochs: Annotated[float, typer.Option(help="Passes over the pairs.")] = 1,
    batch: Annotated[int, typer.Option(help="Pairs a step; of mpo in both languages.")] = 8,
    max_length: Annotated[int, typer.Option(help="Longest prompt and answer together, in tokens.")] = 1536,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
) -> None:
    if method != "dpo" and not endpoint:
        raise FatalError(f"{method} needs --endpoint: {FORM}")
    cache = out / "answers.jsonl"
    style, found = recording.read(record)[0].model.prompt_style, list(groups(record))
    translate_all = partial(translate, endpoint, cache)
    if method == "dpo":
        pairs = pair_dpo(found, margin)
    elif method == "mapo":
        pairs = pair_mapo(found, margin, pivot, Endpoint[int](endpoint, cache))
    elif method == "lidr":
        pairs = pair_lidr(found, pivot, translate_all)
    else:
        pairs = pair_mpo(found, margin, pivot, seed, translate_all)
    made = rows(pairs, style)
    if not made:
        raise FatalError(f"no pair in {len(found)} groups of {record}: no two differ, or --pivot is not there")
    write(made, out / "pairs.parquet")
    print(f"{len(made)} pairs of {len(found)} groups in {out / 'pairs.parquet'}")
    if model:
        train(
            made, model, out, mpo=method == "mpo", beta=beta, lr=lr, epochs=epochs, batch=batch, max_length=max_length,
            seed=seed,
        )  # fmt: skip


if __name__ == "__main__":
    main()
