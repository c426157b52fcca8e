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

import argparse
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from msgspec.structs import asdict

from actor.prompts import STYLES
from common.gpus import has_cuda
from common.languages import code_of
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Question, Rollout
from learner import recording
from scripts.command import plain_errors
from scripts.data.endpoint import FORM, Endpoint, translated, whole_number
from scripts.data.prepare import write

_AGREEMENT = (
    "How far do these two answers to one question say the same? Languages do not matter. Reply with a whole number "
    "from 0 (nothing in common) to 100 (the same) and nothing else.\n\n"
    "First answer:\n{pivot}\n\nSecond answer:\n{answer}"
)
Group = tuple[Question, dict[str, list[Rollout]]]  # answers by language, the best rewarded first
Pair = tuple[Question, str, str, str]  # language, chosen and rejected text


def groups(directory: Path) -> Iterator[Group]:
    for step in recording.read(directory)[1]:
        for group in step.groups:
            by_language: dict[str, list[Rollout]] = {}
            for rollout in sorted(group.rollouts, key=lambda rollout: -rollout.score.reward):
                by_language.setdefault(rollout.language, []).append(rollout)
            yield group.work.question, by_language


def dpo(found: list[Group], args: argparse.Namespace) -> list[Pair]:
    return [
        (question, language, some[0].text, some[-1].text)
        for question, answers in found
        for language, some in answers.items()
        if some[0].score.reward - some[-1].score.reward > args.margin
    ]


def mapo(found: list[Group], args: argparse.Namespace) -> list[Pair]:
    parts = [
        (question, language, answers[args.pivot][0].text, list(dict.fromkeys(rollout.text for rollout in some)))
        for question, answers in found
        for language, some in answers.items()
        if args.pivot in answers and language != args.pivot
    ]
    asked = [_AGREEMENT.format(pivot=best, answer=text) for _, _, best, texts in parts for text in texts]
    judge = Endpoint[int](args.endpoint, args.out / "answers.jsonl")
    grades = iter(judge.ask([[{"role": "user", "content": one}] for one in asked], whole_number(0, 100)))
    pairs: list[Pair] = []
    for question, language, _, texts in parts:
        rated = sorted((grade, text) for text, grade in zip(texts, grades, strict=False) if isinstance(grade, int))
        if rated and rated[-1][0] - rated[0][0] > 100 * args.margin:
            pairs.append((question, language, rated[-1][1], rated[0][1]))
    return pairs


def lidr(found: list[Group], args: argparse.Namespace) -> list[Pair]:
    parts: list[tuple[Question, str, str, str, bool]] = []  # language, own answer, other's, whether own is preferred
    for question, answers in found:
        best = {one: next((r.text for r in some if r.score.compliant), "") for one, some in answers.items()}
        for language, own in best.items():
            if language != args.pivot and own and (pivot := best.get(args.pivot)):
                parts += [(question, language, own, pivot, False), (question, args.pivot, pivot, own, True)]
    wanted = [(other, language) for _, language, _, other, _ in parts]
    said = translated(args.endpoint, args.out / "answers.jsonl", wanted)
    return [
        (question, language, *((own, other) if preferred else (other, own)))
        for (question, language, own, _, preferred), other in zip(parts, said, strict=True)
        if isinstance(other, str) and other != own
    ]


def mpo(found: list[Group], args: argparse.Namespace) -> list[Pair]:
    parts: list[Pair] = []
    for question, answers in found:
        own = [rollout for rollout in answers.get(args.pivot, []) if rollout.score.compliant]
        if own and own[0].score.reward - own[-1].score.reward > args.margin:
            parts += [(question, one, own[0].text, own[-1].text) for one in answers if one != args.pivot]
    random.Random(args.seed).shuffle(parts)  # they are trained on in this order
    wanted = [(text, language) for _, language, *texts in parts for text in texts]
    said = translated(args.endpoint, args.out / "answers.jsonl", wanted)
    pairs: list[Pair] = []
    for (question, language, best, worst), chosen, rejected in zip(parts, said[::2], said[1::2], strict=True):
        if isinstance(chosen, str) and isinstance(rejected, str) and chosen != rejected:
            pairs += [(question, args.pivot, best, worst), (question, language, chosen, rejected)]
    return pairs


METHODS = {"dpo": dpo, "mapo": mapo, "lidr": lidr, "mpo": mpo}


def rows(pairs: list[Pair], style: str) -> list[dict[str, Any]]:
    """Conversations as TRL takes them, asked as the policy was."""
    return [
        {
            "prompt": STYLES[style].styled([asdict(message) for message in question.messages], language),
            "chosen": [{"role": "assistant", "content": chosen}],
            "rejected": [{"role": "assistant", "content": rejected}],
        }
        for question, language, chosen, rejected in pairs
    ]


def train(pairs: list[dict[str, Any]], args: argparse.Namespace) -> None:
    """
    Raises:
        FatalError: one of two pairs that belong together is too long.
    """
    from datasets import Dataset  # slow to import, and needed only here
    from trl.trainer.dpo_config import DPOConfig
    from trl.trainer.dpo_trainer import DPOTrainer

    from scripts.study.mpo import MPOTrainer

    twofold = args.method == "mpo"
    settings = DPOConfig(
        output_dir=str(args.out / "trainer"),
        num_train_epochs=args.epochs,
        per_device_train_batch_size=2 * args.batch if twofold else args.batch,
        train_sampling_strategy="sequential" if twofold else "random",
        learning_rate=args.lr,
        beta=args.beta or (1.5 if twofold else 0.1),
        seed=args.seed,
        max_length=args.max_length,
        bf16=has_cuda(),
        use_cpu=not has_cuda(),
        report_to=[],
        save_strategy="no",
        logging_steps=10,
    )
    trainer: Any = (MPOTrainer if twofold else DPOTrainer)(
        args.model, args=settings, train_dataset=Dataset.from_list(pairs), processing_class=load_tokenizer(args.model)
    )
    if twofold and len(trainer.train_dataset) < len(pairs):
        raise FatalError(f"a question is longer than --max-length {args.max_length}: raise it")
    trainer.train()
    trainer.save_model(str(args.out / "model"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.study.preferences", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("method", choices=tuple(METHODS))
    parser.add_argument("record", type=Path, help="learner.record of a run")
    parser.add_argument("--model", default="", help="to train; without it the pairs are written and that is all")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--endpoint", default="", metavar="MODEL@URL", help=FORM)
    parser.add_argument("--pivot", type=code_of, default="en", help="the dominant language")
    parser.add_argument("--margin", type=float, default=0.0, help="least difference of reward or agreement of a pair")
    parser.add_argument("--beta", type=float, help="default 0.1; of mpo 1.5")
    parser.add_argument("--lr", type=float, default=5e-7)
    parser.add_argument("--epochs", type=float, default=1)
    parser.add_argument("--batch", type=int, default=8, help="pairs; of mpo in both languages")
    parser.add_argument("--max-length", type=int, default=1536, help="tokens of prompt and answer")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(arguments)
    with plain_errors():
        if args.method != "dpo" and not args.endpoint:
            raise FatalError(f"{args.method} needs --endpoint: {FORM}")
        style, found = recording.read(args.record)[0].model.prompt_style, list(groups(args.record))
        made = rows(METHODS[args.method](found, args), style)
        if not made:
            raise FatalError(f"no pair in {len(found)} groups of {args.record}: no two differ, or --pivot is not there")
        write(made, args.out / "pairs.parquet")
        print(f"{len(made)} pairs of {len(found)} groups in {args.out / 'pairs.parquet'}")
        if args.model:
            train(made, args)


if __name__ == "__main__":
    main()
