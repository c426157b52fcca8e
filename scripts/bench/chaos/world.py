"""The run that chaos strikes: a tiny policy with random weights, its questions and its settings."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from transformers import Qwen3Config, Qwen3ForCausalLM

from scripts.world.tokenizer import build_tokenizer

LEASE_S, SYNC_S, START_S = 6.0, 4.0, 60.0
SIZES = ((4, 1), (4, 2), (2, 1), (6, 1))  # learner.groups_per_step and learner.staleness of a run that resumes
WINDOW = 3  # learner.window
_LANGUAGES = ["de", "en", "zh"]
_ENDLESS = 10**6  # steps: so many that the run outlasts its events


def settings(directory: Path) -> list[str]:
    """The flags of a run with the policy and the questions that ``prepare`` writes."""
    settings: dict[str, object] = {
        "model.path": directory / "model", "model.dtype": "float32", "data.train": directory / "train.parquet",
        "run.languages": json.dumps(_LANGUAGES), "router.rollouts": 3, "router.own_language": 1,
        "sampling.max_new_tokens": 12, "actor.groups_in_flight": 4, "actor.request_timeout_s": 30,
        "actor.restarts": 1000, "reward.request_timeout_s": 10, "learner.steps": _ENDLESS,
        "learner.groups_per_step": SIZES[0][0], "learner.staleness": SIZES[0][1], "learner.window": WINDOW,
        "learner.lr": 1e-4, "learner.kl": 0.0, "learner.param_dtype": "float32",
        "learner.checkpoint_every": 2, "learner.evaluate": "false", "learner.lease_timeout_s": LEASE_S,
        "learner.group_attempts": 1000, "learner.group_engines": 1000, "sync.timeout_s": SYNC_S, "sync.bucket_mb": 0.1,
        "actor.engine_args.max_total_tokens": 2048,
    }  # fmt: skip
    return [part for key, value in settings.items() for part in (f"--{key}", str(value))]


def prepare(directory: Path, seed: int) -> None:
    """Writes a tiny policy with random weights, and questions for it."""
    texts = [f"What is {n} and {n + 1}? It is {2 * n + 1}." for n in range(200)]
    tokenizer = build_tokenizer(texts, _LANGUAGES, 400)
    tokenizer.save_pretrained(directory / "model")
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, max_position_embeddings=256, tie_word_embeddings=True,
        initializer_range=0.2, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    Qwen3ForCausalLM(config).save_pretrained(directory / "model")
    chooser = random.Random(seed)
    rows = [
        {
            "prompt": [{"role": "user", "content": f"What is {n} and {n + 1}?"}], "ability": "numbers",
            "reward_model": {"ground_truth": f"It is {2 * n + 1}."},
            "extra_info": {"language": chooser.choice(_LANGUAGES), "topic": "numbers", "region": None},
        }
        for n in range(500)
    ]  # fmt: skip
    pq.write_table(pa.Table.from_pylist(rows), directory / "train.parquet")
