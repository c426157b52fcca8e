"""Trains the small policy of the offline world, which answers in the language of the tag that it is given.

``python -m scripts.world.warm_start --world DIR --out MODEL_DIR [--seed 0] [--steps N]`` writes an ordinary Hugging
Face directory: a byte-level BPE tokenizer with a chat template and a tag for each language, and a model of the
Qwen3 architecture, fine-tuned on ``warm_start.parquet`` of the world. A finished directory of the same world and
settings is reused. The policy of the default world and settings comes with the code, in ``shipped_policy``.

With ``--style select`` the policy first names a language in a header, most often the favourite, then thinks in that
language and answers in a word.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Annotated

import pyarrow.parquet as pq
import typer

from common.process import FatalError
from scripts.ops.command_line import command
from scripts.world.policy_directory import fingerprint, holds, replaced
from scripts.world.settings import Settings, Style

_SHIPPED = Path(__file__).parent / "shipped_policy"  # made by this command with its defaults
_DEFAULT = Settings()


def make_policy(world: Path, out: Path, settings: Settings) -> bool:
    """Trains and writes the policy unless ``out`` holds it already. Blocks until that is done.

    The policy that comes with the code is copied, if it was made from the same world with the same settings.

    When it is interrupted, ``out`` stays as it was.

    Returns:
        Whether a policy was trained.

    Raises:
        FatalError: the world is incomplete or out of date, or ``out`` exists and holds no warm-started policy.
    """
    wanted = fingerprint(world, ("warm_start.parquet", "parallel.parquet"), settings)
    if holds(out, wanted):
        return False
    if holds(_SHIPPED, wanted):
        with replaced(out, wanted) as partial:
            shutil.copytree(_SHIPPED, partial, dirs_exist_ok=True)
        return False
    import torch  # slow to import, like what follows, and not needed for a policy that is there

    from scripts.world.policy import build_model
    from scripts.world.tokenizer import build_tokenizer
    from scripts.world.training import examples, thought, train

    torch.set_num_threads(1)  # the matrices are too small to share, and a busy machine makes waiting threads slow
    rows = pq.read_table(world / "warm_start.parquet").to_pylist()
    if "final" not in rows[0]:
        raise FatalError(f"{world} was made by an earlier version; remove it, or make another by scripts.world.build")
    questions = {question["text"] for row in rows for question in row["questions"]}
    texts = sorted(questions | {row["answer"] for row in rows})
    texts += pq.read_table(world / "parallel.parquet")["text"].to_pylist()
    languages, tags = sorted({row["language"] for row in rows}), list[str]()
    if settings.style == "select":
        texts += [thought(row["language"], row["answer"], row["final"]) for row in rows]
        tags = [*(part.strip() for part in settings.header.split("{code}")), "<think>", "</think>"]
    tokenizer = build_tokenizer(texts, languages, settings.vocabulary, tags)
    model = build_model(tokenizer, settings)
    print(f"warm start: {model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} (fact, language) pairs", flush=True)
    train(model, examples(rows, tokenizer, settings), settings)
    with replaced(out, wanted) as partial:
        model.bfloat16().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return True


@command()
def main(
    *,
    world: Annotated[Path, typer.Option(help="Directory made by scripts.world.build.")],
    out: Annotated[Path, typer.Option(help="Model directory to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and order.")] = _DEFAULT.seed,
    style: Annotated[Style, typer.Option(help="By a tag, or by a header that is selected.")] = _DEFAULT.style,
    header: Annotated[str, typer.Option(help="As model.header.")] = _DEFAULT.header,
    favourite: Annotated[str, typer.Option(help="The language whose header is always learned.")] = _DEFAULT.favourite,
    others: Annotated[float, typer.Option(min=0, max=1, help="How often another header is learned.")] = _DEFAULT.others,
    unseen: Annotated[str, typer.Option(help="Languages whose header is always given.")] = _DEFAULT.unseen,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = _DEFAULT.steps,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = _DEFAULT.batch,
    lr: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = _DEFAULT.lr,
    weight_decay: Annotated[float, typer.Option(min=0, help="Weight decay of AdamW.")] = _DEFAULT.weight_decay,
    own_language: Annotated[
        float, typer.Option(min=0, max=1, help="Share asked in the answer's language.")
    ] = _DEFAULT.own_language,
    vocabulary: Annotated[int, typer.Option(min=1, help="Pieces of the tokenizer.")] = _DEFAULT.vocabulary,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden width.")] = _DEFAULT.hidden,
    intermediate: Annotated[int, typer.Option(min=1, help="Width of the feed-forward layers.")] = _DEFAULT.intermediate,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = _DEFAULT.layers,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = _DEFAULT.heads,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of an attention head.")] = _DEFAULT.head_dim,
) -> None:
    settings = Settings(
        seed=seed,
        style=style,
        header=header,
        favourite=favourite,
        others=others,
        unseen=unseen,
        steps=steps,
        batch=batch,
        lr=lr,
        weight_decay=weight_decay,
        own_language=own_language,
        vocabulary=vocabulary,
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        head_dim=head_dim,
    )
    print(f"{out}: {'written' if make_policy(world, out, settings) else 'reused'}")


if __name__ == "__main__":
    main()
