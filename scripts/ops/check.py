"""Says whether a model can be trained, before anything is started: one line for each question, with what to do.

    python -m scripts.ops.check MODEL [CONFIG.toml ...] [--section.key value]

MODEL is a Hugging Face directory or hub name, and takes the place of model.path. Checked are the agreement of the
learner's log-probabilities with transformers' own, whether the trained model could be exported, the model's context
against the configured lengths, the chat template, the ways of asking for a language, the tokens that end an answer,
what adapters would train, and the memory that scripts.ops.dry_run computes. Of a model with more than a billion
parameters only the first layers are loaded, in float32; they are of every kind that the model has. Where the model or
its chat template cannot be had, nothing is said of what needs it. Without CONFIG.toml the defaults count, and what they
lack is a note.

The exit code is 1 where a line begins with NO.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Annotated, Literal

import transformers
import typer
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.config import Config, load
from common.context import context_length
from common.gpus import visible_gpus
from common.languages import tag
from common.process import FatalError
from common.progress import Activity
from common.prompts import PROMPT_STYLES, ChatTemplate
from common.tokenizer import load_tokenizer
from learner.generation_settings import mend_sampling, try_to_save
from learner.train.fidelity import check_fidelity, first_layers
from learner.train.lora import adapted_layers, adapter_size
from learner.train.policy import Policy
from scripts.ops.command_line import command
from scripts.ops.dry_run import Machine, ModelShape, rows

_WHOLE = 10**9  # parameters up to which all layers are loaded
_RANK = 16  # of adapters, for the number of their parameters where the configuration trains all weights
_DATES = ("strftime_now", "date_string")

Verdict = Literal["ok", "note", "NO"]


@dataclass(frozen=True)
class Line:
    """What was found about one topic, and what to do unless it is ok."""

    topic: str
    verdict: Verdict
    text: str


class Checks:
    """The questions that are asked about a model.

    Args:
        config: the whole configuration, with the model as ``model.path``.
        is_given: whether the user gave a configuration; otherwise what its defaults lack is only noted.
        machine: what the processes have.
    """

    def __init__(self, config: Config, is_given: bool, machine: Machine) -> None:
        self._config = config
        self._lacks: Verdict = "NO" if is_given else "note"
        self._machine = machine
        self._model_of_policy: PreTrainedModel | None = None  # until it was tried whether it can be written

    def __iter__(self) -> Iterator[Line]:
        """The lines, each as soon as it is found. Nothing is said of what needs a topic that was found wanting."""
        checks: list[tuple[str, str, Callable[[], Iterator[Line]]]] = [
            ("model", "", self._model), ("agreement", "model", self._agreement),
            ("export", "agreement", self._export), ("context", "model", self._context),
            ("chat template", "model", self._template), ("asking", "chat template", self._styles),
            ("end of answers", "chat template", self._ends), ("adapters", "model", self._adapters),
            ("memory", "model", self._memory),
        ]  # fmt: skip
        wanting = set[str]()
        for topic, needs, check in checks:
            if needs in wanting:
                wanting.add(topic)
                continue
            try:
                yield from check()
            except FatalError as error:
                wanting.add(topic)
                yield Line(topic, "NO", str(error))

    def _model(self) -> Iterator[Line]:
        shape = self._shape
        head = "the vocabulary projection is the embedding, too" if shape.tied else "with a head of its own"
        size = f"{shape.parameters / 1e6:.0f} million parameters in {shape.layers} layers"
        yield Line("model", "ok", f"{shape.kind}, {size}, {head}")

    def _agreement(self) -> Iterator[Line]:
        path, began = self._config.model.path, time.monotonic()
        config: PreTrainedConfig = AutoConfig.from_pretrained(path)
        layers = config.get_text_config().num_hidden_layers
        if self._shape.parameters > _WHOLE:
            config = first_layers(config)
        used = config.get_text_config().num_hidden_layers
        with Activity("check", f"computing log-probabilities of {path} in two ways"):
            policy = Policy(path, temperature=1.0, head_chunk=1024, config=config)
            found = check_fidelity(policy)
        self._model_of_policy = policy.lm
        part = "" if used == layers else f", in the first {used} of {layers} layers"
        yield Line(
            "agreement", "ok", f"the learner's log-probabilities are {found.difference:.1e} nats from those of "
            f"transformers{part} ({time.monotonic() - began:.1f} s)",
        )  # fmt: skip

    def _export(self) -> Iterator[Line]:
        assert self._model_of_policy is not None  # it agreed
        mend_sampling(self._model_of_policy, self._config.model.path)
        try_to_save(self._model_of_policy, self._config.model.path)
        self._model_of_policy = None  # and its memory
        yield Line("export", "ok", "the model can be written as transformers wants it")

    def _context(self) -> Iterator[Line]:
        context = context_length(self._config)
        prompt, answer = self._config.data.max_prompt_tokens, self._config.sampling.max_new_tokens
        wanted = f"data.max_prompt_tokens + sampling.max_new_tokens = {prompt} + {answer}"
        if context is None:
            yield Line("context", "ok", "the model names no limit")
        elif prompt + answer <= context:
            yield Line("context", "ok", f"{context} tokens; {wanted}")
        else:
            yield Line("context", self._lacks, f"{context} tokens are less than {wanted}: lower one of them")

    def _template(self) -> Iterator[Line]:
        template = ChatTemplate(self._tokenizer, self._config.model)
        told = ["it takes a system turn" if template.takes_system else "it takes no system turn, whose text goes into "
                "the first turn of the user"]  # fmt: skip
        source = str(self._tokenizer.chat_template)
        if any(name in source for name in _DATES):
            told.append(f"the date it writes is model.date = {self._config.model.date}, on every day")
        if template.opens_thought:
            told.append("its prompts end with <think>")
        yield Line("chat template", "ok", "; ".join(told))
        if "enable_thinking" in source and "enable_thinking" not in self._config.model.template_args:
            yield Line(
                "chat template", "note", "it knows enable_thinking: model.template_args = {enable_thinking = false} "
                "switches thoughts off"
            )  # fmt: skip

    def _styles(self) -> Iterator[Line]:
        refused = {}
        for style in PROMPT_STYLES:
            model = self._config.model.model_copy(update={"prompt_style": style})
            try:
                PROMPT_STYLES[style](self._tokenizer, self._config.model_copy(update={"model": model}))
            except FatalError as error:
                refused[style] = str(error)
        takes = [style for style in PROMPT_STYLES if style not in refused]
        languages = self._config.run.languages
        tagged = [one for one in languages if len(self._tokenizer.encode(tag(one), add_special_tokens=False)) == 1]
        tags = f"tokens that stand for a language: {len(tagged)} of {len(languages)}"
        wanted = self._config.model.prompt_style
        if wanted in refused:
            others = " or ".join(f'"{style}"' for style in takes) or "none"
            yield Line("asking", self._lacks, f"{refused[wanted]}; model.prompt_style can be {others}; {tags}")
        else:
            yield Line("asking", "ok", f"model.prompt_style = {wanted!r}, of {', '.join(takes)}; {tags}")

    def _ends(self) -> Iterator[Line]:
        template = ChatTemplate(self._tokenizer, self._config.model)
        named = ", ".join(f"{self._tokenizer.convert_ids_to_tokens(one)} ({one})" for one in template.stop_ids)
        if not template.stop_ids:
            yield Line(
                "end of answers", "NO", "neither the chat template nor the tokenizer has a token that ends an answer: "
                "use the instruction-tuned version of the model, or set its eos_token"
            )  # fmt: skip
        elif template.turn_end is None:
            yield Line("end of answers", "note", f"{named}; the chat template itself ends an answer by no token, so "
                       "the policy has to know this one")  # fmt: skip
        else:
            yield Line("end of answers", "ok", named)

    def _adapters(self) -> Iterator[Line]:
        lora = self._config.lora
        try:
            layers = adapted_layers(self._shape.linear, lora.targets)
        except FatalError as error:
            yield Line("adapters", self._lacks if lora.rank else "note", f"{error}: set lora.targets to some of these")
            return
        rank, told = lora.rank or _RANK, "" if lora.rank else "; lora.rank = 0 trains all weights instead"
        trained = adapter_size(layers.values(), rank)
        size = f"{trained / 1e6:.2f} million parameters, {trained / self._shape.parameters:.1%} of the model"
        where = f"{len(layers)} layers, {', '.join(lora.targets)}"
        yield Line("adapters", "ok", f"LoRA of rank {rank} on {where}: {size}{told}")

    def _memory(self) -> Iterator[Line]:
        here = "" if visible_gpus() else "; this machine has none, and here a run shares the memory of the CPU"
        yield Line("memory", "ok", f"counted for GPUs of {self._machine.gpu_gb:g} GB (--gpu-gb){here}")
        for row in rows(self._shape, self._config, self._machine):
            if row.ok is not None:
                text = f"{row.metric}: {row.value:.3g} {row.unit}, {row.goal}"
                cure = "" if row.ok else "; scripts.ops.dry_run shows the parts, docs/gpus.md what makes them smaller"
                yield Line("memory", "ok" if row.ok else self._lacks, text + cure)

    @cached_property
    def _shape(self) -> ModelShape:
        return ModelShape(self._config.model.path)

    @cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase:
        return load_tokenizer(self._config.model.path)


@command(passes_flags_on=True)
def main(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Hugging Face directory or hub name.")],
    *,
    gpu_gb: Annotated[float, typer.Option(min=0, help="Memory of a GPU in GB.")] = 80,
    gpus: Annotated[
        int, typer.Option(min=0, help="GPUs of the machine; by default as many as the processes need.")
    ] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One line of JSON instead of the lines.")] = False,
) -> None:
    transformers.logging.set_verbosity_error()
    config = load([*context.args, "--model.path", model])
    lines = []
    for line in Checks(config, bool(context.args), Machine(gpu_gb, gpus)):
        lines.append(line)
        if not as_json:
            print(f"{line.verdict:<4}  {line.topic:<14}  {line.text}", flush=True)
    if as_json:
        print(json.dumps({"model": model, "lines": [asdict(line) for line in lines]}, ensure_ascii=False))
    if any(line.verdict == "NO" for line in lines):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
