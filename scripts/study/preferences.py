"""Trains baselines that learn from preferences, with TRL, on pairs made of the answers of a recorded run.

    python -m scripts.study.preferences dpo|mapo|lidr|mpo RECORD --model MODEL --out DIR [--endpoint MODEL@URL]

RECORD is the ``learner.record`` directory of a run. A run with ``--learner.lr 1e-12`` samples answers without learning.
For each group, and each language in which it was answered, a pair is made of the answers that could be scored:

* dpo prefers the answer with the highest reward to the answer with the lowest;
* mapo (arXiv 2401.06838) prefers the answer that agrees most with the best answer in the pivot language to the one that
  agrees least. The endpoint grades the agreement from 0 to 100, where MAPO uses the likelihood of a translation model;
* lidr (arXiv 2410.08964) prefers the translation of the best answer in the pivot language to the policy's own answer.
  In the pivot language it prefers the policy's own answer to the translation of the answer in the other language.
  Answers that are not in the requested language are not used, here and for mpo;
* mpo (arXiv 2505.16869) prefers the translation of the best answer in the pivot language to the translation of the
  worst, and as strongly as MODEL prefers the originals. Its loss is in scripts.study.mpo; the other methods use DPO.

Where the run has the prompt style "select", the answers of the pairs begin with the header of their language, and those
in which the policy named none are left out.

``DIR/pairs.parquet`` holds the pairs, for mpo each pair in the pivot language followed by its translation, and
``DIR/model`` the trained model.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from msgspec.structs import asdict

from common.config import ModelConfig
from common.endpoint import FORM, Failure
from common.gpus import has_cuda
from common.header import Header
from common.languages import code_of
from common.process import FatalError
from common.prompts import PROMPT_STYLES, ChatTemplate, PromptError
from common.tokenizer import load_tokenizer
from common.wire import Question, Rollout
from learner import recording
from scripts.data.endpoint import Endpoint, EndpointOption, translate, whole_number
from scripts.data.tables import write
from scripts.ops.command_line import command

_AGREEMENT = (
    "How far do these two answers to one question say the same? Languages do not matter. Reply with a whole number "
    "from 0 (nothing in common) to 100 (the same) and nothing else.\n\n"
    "First answer:\n{pivot}\n\nSecond answer:\n{answer}"
)
_AS_IT_STANDS = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
AnsweredQuestion = tuple[Question, dict[str, list[Rollout]]]  # answers by language, the highest reward first
Pair = tuple[Question, str, str, str]  # the question, the language, the chosen and the rejected text
Translate = Callable[[list[tuple[str, str]]], list[str | Failure]]  # translates texts, each into the language beside it


def read_answers(directory: Path) -> Iterator[AnsweredQuestion]:
    """The questions of a record with their answers, in the order in which they were trained on.

    Answers that could not be scored are left out: their reward of 0 says nothing. So are those of a policy that was to
    name its language and named none. The text of an answer is without the header that names it.
    """
    config, steps = recording.read(directory)
    header = Header(config.model.header, config.run.languages)
    for step in steps:
        for group in step.groups:
            by_language: dict[str, list[Rollout]] = {}
            scored = (_cut(rollout, header) for rollout in group.rollouts if rollout.score.scored and rollout.language)
            for rollout in sorted(scored, key=lambda rollout: -rollout.score.reward):
                by_language.setdefault(rollout.language, []).append(rollout)
            yield group.work.question, by_language


def _cut(rollout: Rollout, header: Header) -> Rollout:
    if not rollout.header:
        return rollout
    return rollout.model_copy(update={"text": rollout.text[header.parse(rollout.text).end :].lstrip()})


def pair_dpo(found: list[AnsweredQuestion], margin: float) -> list[Pair]:
    """Pairs of the answers with the highest and the lowest reward, for each question and language."""
    return [
        (question, language, some[0].text, some[-1].text)
        for question, answers in found
        for language, some in answers.items()
        if some[0].score.reward - some[-1].score.reward > margin
    ]


def pair_mapo(found: list[AnsweredQuestion], margin: float, pivot: str, judge: Endpoint[int]) -> list[Pair]:
    """Pairs of the answers that agree most and least with the best answer in the pivot language.

    Blocks until the judge has graded all answers.
    """
    parts = [
        (question, language, answers[pivot][0].text, list(dict.fromkeys(rollout.text for rollout in some)))
        for question, answers in found
        for language, some in answers.items()
        if pivot in answers and language != pivot
    ]
    requests = [_AGREEMENT.format(pivot=best, answer=text) for _, _, best, texts in parts for text in texts]
    grades = iter(judge.ask([[{"role": "user", "content": one}] for one in requests], whole_number(0, 100)))
    pairs: list[Pair] = []
    for question, language, _, texts in parts:
        graded = sorted((grade, text) for text, grade in zip(texts, grades, strict=False) if isinstance(grade, int))
        if graded and graded[-1][0] - graded[0][0] > 100 * margin:
            pairs.append((question, language, graded[-1][1], graded[0][1]))
    return pairs


def pair_lidr(found: list[AnsweredQuestion], pivot: str, translate_all: Translate) -> list[Pair]:
    """Pairs of the policy's own answers and of translations from or to the pivot language.

    Blocks until all translations are made.
    """
    parts: list[
        tuple[Question, str, str, str, bool]
    ] = []  # language, own answer, answer to translate, whether own is preferred
    for question, answers in found:
        best = {one: next((r.text for r in some if r.score.compliant), "") for one, some in answers.items()}
        for language, own in best.items():
            if language != pivot and own and (best_pivot := best.get(pivot)):
                parts += [(question, language, own, best_pivot, False), (question, pivot, best_pivot, own, True)]
    wanted = [(other, language) for _, language, _, other, _ in parts]
    translations = translate_all(wanted)
    return [
        (question, language, *((own, other) if preferred else (other, own)))
        for (question, language, own, _, preferred), other in zip(parts, translations, strict=True)
        if isinstance(other, str) and other != own
    ]


def pair_mpo(
    found: list[AnsweredQuestion], margin: float, pivot: str, seed: int, translate_all: Translate
) -> list[Pair]:
    """Pairs in the pivot language, each followed by its translation, in an order drawn with the seed.

    Blocks until all translations are made.
    """
    parts: list[Pair] = []
    for question, answers in found:
        own = [rollout for rollout in answers.get(pivot, []) if rollout.score.compliant]
        if own and own[0].score.reward - own[-1].score.reward > margin:
            parts += [(question, one, own[0].text, own[-1].text) for one in answers if one != pivot]
    random.Random(seed).shuffle(parts)  # here, because MPO is trained on its pairs in the order that they are given in
    wanted = [(text, language) for _, language, *texts in parts for text in texts]
    translations = translate_all(wanted)
    pairs: list[Pair] = []
    for (question, language, best, worst), chosen, rejected in zip(
        parts, translations[::2], translations[1::2], strict=True
    ):
        if isinstance(chosen, str) and isinstance(rejected, str) and chosen != rejected:
            pairs += [(question, pivot, best, worst), (question, language, chosen, rejected)]
    return pairs


def trl_rows(pairs: list[Pair], model: ModelConfig) -> list[dict[str, Any]]:
    """The rows of TRL's data set, whose prompts are those that the policy was given.

    With the style "select" a prompt asks for no language: its answers begin with the header that names theirs.

    Args:
        model: of the run whose answers these are.
    """
    header = Header(model.header, ())
    begin = header.text if model.prompt_style == "select" else lambda _: ""
    return [
        {
            "prompt": PROMPT_STYLES[model.prompt_style].style_messages(
                [asdict(message) for message in question.messages], language, model.instructions
            ),
            "chosen": [{"role": "assistant", "content": f"{begin(language)}{chosen}"}],
            "rejected": [{"role": "assistant", "content": f"{begin(language)}{rejected}"}],
        }
        for question, language, chosen, rejected in pairs
    ]


def rendered(pairs: list[dict[str, Any]], template: ChatTemplate, end: str) -> list[dict[str, Any]]:
    """The rows with their prompts as a run sends them, and their answers as they stand, for ``_AS_IT_STANDS``.

    Args:
        end: what ends an answer.

    Raises:
        FatalError: the template refuses a prompt.
    """

    def turn(role: str, text: str) -> list[dict[str, str]]:
        return [{"role": role, "content": text}]

    try:
        return [
            {
                "prompt": turn("user", template(row["prompt"])),
                **{
                    name: turn("assistant", template.answer(row[name][0]["content"]) + end)
                    for name in ("chosen", "rejected")
                },
            }
            for row in pairs
        ]
    except PromptError as error:
        raise FatalError(f"the pairs cannot be trained on: {error}") from None


def build_trainer(
    pairs: list[dict[str, Any]], model: str, out: Path, prompts: ModelConfig, *, mpo: bool, beta: float | None,
    lr: float, epochs: float, batch: int, max_length: int, seed: int,
) -> Any:  # fmt: skip
    """TRL's trainer of a model on the pairs, by DPO or by MPO.

    Args:
        prompts: its template_args and date are for the chat template.

    Raises:
        FatalError: the template refuses a prompt; or for MPO, a pair is longer than ``max_length``: it or its
            translation would be left out.
    """
    from datasets import Dataset  # imported here because it is slow to import
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
    tokenizer = load_tokenizer(model)
    template = ChatTemplate(tokenizer, prompts)
    end = "" if template.answer_end is None else str(tokenizer.convert_ids_to_tokens(template.answer_end))
    data = Dataset.from_list(rendered(pairs, template, end))
    # The trainer puts every row through the chat template, which may leave out of an answer what stands before or in a
    # thought. It does that while it is made.
    own, tokenizer.chat_template = tokenizer.chat_template, _AS_IT_STANDS
    trainer: Any = (MPOTrainer if mpo else DPOTrainer)(
        model, args=settings, train_dataset=data, processing_class=tokenizer
    )
    tokenizer.chat_template = own
    if mpo and len(trainer.train_dataset) < len(pairs):
        raise FatalError(f"a question is longer than --max-length {max_length}: raise it")
    return trainer


@command()
def main(
    method: Annotated[Literal["dpo", "mapo", "lidr", "mpo"], typer.Argument(help="How pairs are made.")],
    record: Annotated[Path, typer.Argument(help="The learner.record directory of a run.")],
    *,
    model: Annotated[str, typer.Option(help="Model to train; without it only the pairs are written.")] = "",
    out: Annotated[Path, typer.Option(help="Directory to write.")],
    endpoint: EndpointOption = "",
    pivot: Annotated[str, typer.Option(parser=code_of, metavar="LANGUAGE", help="The dominant language.")] = "en",
    margin: Annotated[
        float, typer.Option(min=0, help="A pair must differ by more than this, in reward or in agreement (0 to 1).")
    ] = 0.0,
    beta: Annotated[float | None, typer.Option(min=1e-6, help="Default: 0.1, for mpo 1.5.")] = None,
    lr: Annotated[float, typer.Option(min=0, help="Learning rate.")] = 5e-7,
    epochs: Annotated[float, typer.Option(min=0, help="Passes over the pairs.")] = 1,
    batch: Annotated[int, typer.Option(min=1, help="Pairs per step; for mpo each with its translation.")] = 8,
    max_length: Annotated[int, typer.Option(min=1, help="Longest prompt and answer together, in tokens.")] = 1536,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the order.")] = 0,
) -> None:
    if method != "dpo" and not endpoint:
        raise FatalError(f"{method} needs --endpoint: {FORM}")
    cache = out / "answers.sqlite"
    prompts, found = recording.read(record)[0].model, list(read_answers(record))
    translate_all = partial(translate, endpoint, cache)
    if method == "dpo":
        pairs = pair_dpo(found, margin)
    elif method == "mapo":
        pairs = pair_mapo(found, margin, pivot, Endpoint[int](endpoint, cache))
    elif method == "lidr":
        pairs = pair_lidr(found, pivot, translate_all)
    else:
        pairs = pair_mpo(found, margin, pivot, seed, translate_all)
    made = trl_rows(pairs, prompts)
    if not made:
        raise FatalError(
            f"no pair can be made of the {len(found)} groups of {record}: no answers differ enough, or --pivot has none"
        )
    write(made, out / "pairs.parquet")
    print(f"{len(made)} pairs of {len(found)} groups in {out / 'pairs.parquet'}")
    if model:
        trainer = build_trainer(
            made, model, out, prompts, mpo=method == "mpo", beta=beta, lr=lr, epochs=epochs, batch=batch,
            max_length=max_length, seed=seed,
        )  # fmt: skip
        trainer.train()
        trainer.save_model(str(out / "model"))


if __name__ == "__main__":
    main()
