"""Fine-tunes a model on prompts with answers, with the learner's own packing, sharding and export.

    python -m scripts.data.sft MODEL EXAMPLES.parquet --out DIR [--prompt-style tag] [--ranks 4]

EXAMPLES has the columns messages (chat), language and answer, as scripts.data.warm_start_data and
scripts.data.cold_start write them. With the style ``tag`` the tags that the tokenizer lacks are added to it, and rows
to the embeddings where there is no room.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from transformers import PreTrainedTokenizerBase, get_cosine_schedule_with_warmup

from actor.prompts import STYLES
from common.config import LearnerConfig
from common.gpus import has_cuda
from common.languages import code_of, tag
from common.process import FatalError
from common.tokenizer import load_tokenizer
from common.wire import Rollout, Score
from learner.export import export
from learner.launch import launch
from learner.train.packing import Sample, pack, plan
from learner.train.policy import Policy, shard
from learner.train.trainer import set_up_distributed
from learner.work.questions import read_table
from scripts.command import plain_errors


def example(row: dict[str, Any], tokenizer: PreTrainedTokenizerBase, style: str) -> Sample:
    """Prompt and answer as the model's chat template joins them, its end of turn included.

    Raises:
        FatalError: the template does not continue a prompt with the answer.
    """
    talk = STYLES[style].styled(row["messages"], code_of(row["language"]))
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


def fine_tune(args: argparse.Namespace) -> None:
    """One rank's part."""
    set_up_distributed(1800)
    torch.manual_seed(args.seed)
    ranks, rank = dist.get_world_size(), dist.get_rank()
    device = torch.device("cuda", torch.cuda.current_device()) if has_cuda() else torch.device("cpu")
    rows, tokenizer = read_table(args.examples).to_pylist(), load_tokenizer(args.model)
    if args.prompt_style == "tag":
        add_tags(tokenizer, {code_of(row["language"]) for row in rows})
    policy = Policy(args.model, temperature=1.0, head_chunk=1024, checkpointing=has_cuda())
    if len(tokenizer) > policy.vocabulary:
        policy.lm.resize_token_embeddings(len(tokenizer))
    dtype = torch.bfloat16 if has_cuda() else torch.float32
    shard(policy.to(device), init_device_mesh(device.type, (ranks,)), dtype)
    data = [example(row, tokenizer, args.prompt_style) for row in rows]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=args.lr, weight_decay=0.0, fused=True)
    steps = args.epochs * -(-len(data) // args.batch)
    schedule = get_cosine_schedule_with_warmup(optimizer, max(1, steps // 20), steps)
    rng, order = random.Random(args.seed), list[int]()
    for step in range(steps):
        order = order or rng.sample(range(len(data)), len(data))
        batch, order = [data[n] for n in order[: args.batch]], order[args.batch :]
        costs = [policy.cost(len(s.rollout.prompt_ids), len(s.rollout.response_ids)) for s in batch]
        tokens = sum(len(sample.rollout.response_ids) for sample in batch)
        total = torch.zeros((), device=device)
        for members in plan([len(sample) for sample in batch], costs, args.tokens, ranks)[rank]:
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
    export(policy, tokenizer, args.out)
    dist.destroy_process_group()


def main(arguments: list[str] | None = None) -> None:
    words = sys.argv[1:] if arguments is None else arguments
    parser = argparse.ArgumentParser(prog="python -m scripts.data.sft", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("model", help="Hugging Face directory or hub name")
    parser.add_argument("examples", help="parquet file of messages, language, answer")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--prompt-style", choices=tuple(STYLES), default="tag")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="examples a step")
    parser.add_argument("--lr", type=float, default=1e-5)
    parser.add_argument("--tokens", type=int, default=16384, help="of a micro-batch")
    parser.add_argument("--ranks", type=int, default=1, help="processes on this machine")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(words)
    if "RANK" not in os.environ:
        return launch("scripts.data.sft", LearnerConfig(ranks=args.ranks), words)
    with plain_errors(KeyError):
        fine_tune(args)


if __name__ == "__main__":
    main()
