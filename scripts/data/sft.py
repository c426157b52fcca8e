"""Fine-tunes a model on prompts with answers, with the learner's own packing, sharding and export.

    python -m scripts.data.sft MODEL EXAMPLES.parquet --out DIR [--prompt-style tag] [--ranks 4]

EXAMPLES has the columns messages (chat), language and answer, as scripts.data.warm_start_data and
scripts.data.cold_start write them. With the style ``tag`` the tags that the tokenizer lacks are added to it, and rows
to the embeddings where there is no room.
"""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.distributed as dist
import typer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from actor.prompts import PROMPT_STYLES
from common.config import LearnerConfig
from common.gpus import has_cuda
from common.languages import code_of, tag
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Rollout, Score
from learner.export import export
from learner.launch import launch
from learner.train.distributed import set_up_distributed
from learner.train.packing import Sample, assign_micro_batches, pack
from learner.train.policy import Policy, shard
from learner.work.tables import read_table
from scripts.ops.command_line import command


def example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, style: str) -> Sample:
    """Prompt and answer as the model's chat template joins them, its end of turn included.

    Raises:
        FatalError: the template does not continue a prompt with the answer.
    """
    talk = PROMPT_STYLES[style].style_messages(row["messages"], code_of(row["language"]))
    prompt = str(tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True))
    whole = str(tokenizer.apply_chat_template([*talk, {"role": "assistant", "content": row["answer"]}], tokenize=False))
    if not whole.startswith(prompt):
        raise FatalError("the chat template does not go on from its own prompt: no example can be made with it")
    ids, answer = (
        np.array(tokenizer.encode(text, add_special_tokens=False), np.int32)
        for text in (prompt, whole[len(prompt) :].rstrip())
    )
    zeros = np.zeros(len(answer), np.float32)
    score = Score(reward=0, quality=0, similarity=0, compliant=True, detected="")
    rollout = Rollout(
        language=row["language"], prompt_ids=ids, response_ids=answer, logprobs=zeros, versions=zeros.astype(np.int32),
        truncated=False, text="", score=score,
    )  # fmt: skip
    return Sample(rollout, advantage=0.0)


def add_tags(tokenizer: PreTrainedTokenizerBase, languages: set[str]) -> None:
    """Tags that are in the tokenizer keep their ids."""
    tags = [tag(language) for language in sorted(languages)]
    missing = [one for one in tags if len(tokenizer.encode(one, add_special_tokens=False)) != 1]
    tokenizer.add_tokens(missing, special_tokens=True)


def fine_tune(
    model: str, path: str, out: Path, style: str, epochs: int, batch_size: int, lr: float, most_tokens: int, seed: int
) -> None:
    """One rank's part."""
    set_up_distributed(1800)
    torch.manual_seed(seed)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    device = torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")
    rows, tokenizer = read_table(path).to_pylist(), load_tokenizer(model)
    if style == "tag":
        add_tags(tokenizer, {code_of(row["language"]) for row in rows})
    policy = Policy(model, temperature=1.0, head_chunk=1024, checkpointing=has_cuda())
    if len(tokenizer) > policy.vocabulary:
        policy.lm.resize_token_embeddings(len(tokenizer))
    dtype = torch.bfloat16 if has_cuda() else torch.float32
    shard(policy.to(device), init_device_mesh(device.type, (ranks,)), dtype)
    data = [example(row, tokenizer, style) for row in rows]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=lr, weight_decay=0.0, fused=True)
    steps = epochs * -(-len(data) // batch_size)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    rng, order = random.Random(seed), list[int]()
    for step in range(steps):
        order = order or rng.sample(range(len(data)), len(data))
        batch, order = [data[n] for n in order[:batch_size]], order[batch_size:]
        costs = [policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in batch]
        tokens = sum(len(sample.rollout.response_ids) for sample in batch)
        total = torch.zeros((), device=device)
        for members in assign_micro_batches([len(sample) for sample in batch], costs, most_tokens, ranks)[rank]:
            packed = pack([batch[n] for n in members]).to(device)
            loss = -policy(packed)[0].sum() / tokens
            (loss * ranks).backward()  # FSDP averages gradients over ranks
            total += loss.detach()
        dist.all_reduce(total)
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if rank == 0 and (step % max(1, steps // 20) == 0 or step == steps - 1):
            size = float(norm.full_tensor() if isinstance(norm, DTensor) else norm)
            print(f"step {step + 1}/{steps}  loss {float(total):.3f}  gradient {size:.2f}", flush=True)
    export(policy, tokenizer, out)
    dist.destroy_process_group()


@command(KeyError)
def main(
    model: Annotated[str, typer.Argument(help="Hugging Face directory or hub name.")],
    examples: Annotated[str, typer.Argument(help="Parquet file of messages, language and answer.")],
    *,
    out: Annotated[Path, typer.Option(help="Directory of the model to write.")],
    prompt_style: Annotated[
        Literal["tag", "system", "select"], typer.Option(help="How the language is asked for; as model.prompt_style.")
    ] = "tag",
    epochs: Annotated[int, typer.Option(help="Passes over the examples.")] = 3,
    batch: Annotated[int, typer.Option(help="Examples a step.")] = 32,
    lr: Annotated[float, typer.Option(help="Peak of the learning rate.")] = 1e-5,
    tokens: Annotated[int, typer.Option(help="Most tokens of a micro-batch.")] = 16384,
    ranks: Annotated[int, typer.Option(help="Processes on this machine.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the order.")] = 0,
) -> None:
    if "RANK" not in os.environ:
        words = [model, examples, "--out", str(out), "--prompt-style", prompt_style, "--epochs", str(epochs)]
        words += ["--batch", str(batch), "--lr", str(lr), "--tokens", str(tokens), "--seed", str(seed)]
        return launch("scripts.data.sft", LearnerConfig(ranks=ranks), words)
    fine_tune(model, examples, out, prompt_style, epochs, batch, lr, tokens, seed)


if __name__ == "__main__":
    main()
