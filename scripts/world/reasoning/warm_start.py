"""Teaches the small policy of the reasoning world by its worked examples: think first, then answer with a number.

``python -m scripts.world.reasoning.warm_start --world DIR --out MODEL_DIR [--seed 0] [--steps N]`` writes an ordinary
Hugging Face directory, as ``scripts.world.warm_start`` does. A finished directory of the same world and settings is
reused.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pyarrow.parquet as pq
import typer

from common.prompts import append_tag
from scripts.ops.command_line import command
from scripts.world.policy_directory import fingerprint, holds, replaced
from scripts.world.settings import Settings

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from scripts.world.training import Example

DEFAULT = Settings(steps=1200, vocabulary=3000, intermediate=256, layers=3, heads=4, head_dim=32)


def written(thought: str, answer: str) -> str:
    """An answer as the policy writes it."""
    return f"<think>{thought}</think>{answer}"


def make_policy(world: Path, out: Path, settings: Settings) -> bool:
    """Trains and writes the policy unless ``out`` holds it already. Blocks until that is done.

    When it is interrupted, ``out`` stays as it was.

    Returns:
        Whether a policy was trained.

    Raises:
        FatalError: the world is incomplete, or ``out`` exists and holds no warm-started policy.
    """
    wanted = fingerprint(world, ("warm_start.parquet",), settings)
    if holds(out, wanted):
        return False
    import torch  # slow to import, like what follows, and not needed for a policy that is there

    from scripts.world.policy import build_model
    from scripts.world.tokenizer import build_tokenizer
    from scripts.world.training import train

    torch.set_num_threads(1)  # the matrices are too small to share, and a busy machine makes waiting threads slow
    rows = pq.read_table(world / "warm_start.parquet").to_pylist()
    texts = [text for row in rows for text in (row["question"], row["thought"], row["answer"])]
    languages = sorted({row["language"] for row in rows})
    tokenizer = build_tokenizer(texts, languages, settings.vocabulary, ["<think>", "</think>"])
    model = build_model(tokenizer, settings)
    print(f"warm start: {model.num_parameters() / 1e6:.1f}M parameters, {len(rows)} worked examples", flush=True)
    train(model, _examples(rows, tokenizer), settings)
    with replaced(out, wanted) as partial:
        model.bfloat16().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return True


def _examples(rows: Sequence[Mapping[str, Any]], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    """The rows of ``warm_start.parquet`` in token ids, with prompts as ``model.prompt_style = "tag"`` makes them."""
    from scripts.world.tokenizer import END
    from scripts.world.training import Example

    chats = [append_tag([{"role": "user", "content": row["question"]}], row["language"]) for row in rows]
    prompts = tokenizer.apply_chat_template(chats, tokenize=False, add_generation_prompt=True)
    answers = [written(row["thought"], row["answer"]) + END for row in rows]
    asked, given = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in (prompts, answers))
    return [
        Example({row["language"]: prompt}, row["language"], answer, refusal=[], sureness=1.0)
        for row, prompt, answer in zip(rows, asked, given, strict=True)
    ]


@command()
def main(
    *,
    world: Annotated[Path, typer.Option(help="Directory made by scripts.world.reasoning.build.")],
    out: Annotated[Path, typer.Option(help="Model directory to write.")],
    seed: Annotated[int, typer.Option(min=0, help="Seed of weights and order.")] = DEFAULT.seed,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = DEFAULT.steps,
    batch: Annotated[int, typer.Option(min=1, help="Sequences a step.")] = DEFAULT.batch,
    lr: Annotated[float, typer.Option(min=0, help="Peak of the learning rate.")] = DEFAULT.lr,
    vocabulary: Annotated[int, typer.Option(min=1, help="Pieces of the tokenizer.")] = DEFAULT.vocabulary,
    hidden: Annotated[int, typer.Option(min=1, help="Hidden width.")] = DEFAULT.hidden,
    intermediate: Annotated[int, typer.Option(min=1, help="Width of the feed-forward layers.")] = DEFAULT.intermediate,
    layers: Annotated[int, typer.Option(min=1, help="Number of layers.")] = DEFAULT.layers,
    heads: Annotated[int, typer.Option(min=1, help="Attention heads.")] = DEFAULT.heads,
    head_dim: Annotated[int, typer.Option(min=1, help="Width of an attention head.")] = DEFAULT.head_dim,
) -> None:
    settings = Settings(
        seed=seed,
        steps=steps,
        batch=batch,
        lr=lr,
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
