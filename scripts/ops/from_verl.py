"""Writes the configuration that a launch script of verl describes, and names what it cannot carry.

    python -m scripts.ops.from_verl run_lrpo.sh --out configs/mine.toml

The script is read, not run (``scripts.ops.verl_script``). What it leaves to verl's defaults is written down where
ours differ (betas, weight decay, no staleness, no importance weight). Options with a meaning of their own are in
docs/papers.md. What cannot be carried is printed, and stands in the file as a comment: read it before you train.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError

from common.config import Config, LearnerConfig, explain
from common.process import FatalError
from scripts.ops.command_line import command
from scripts.ops.verl_options import OPTIONS, OVERLONG, Carried, Computed, Fixed
from scripts.ops.verl_script import read_script

_ACTOR = "actor_rollout_ref.actor"
_LRPO_LANGUAGES = ["ar", "de", "en", "es", "fr", "id", "it", "ja", "ko", "nl", "pl", "pt", "ru", "vi", "zh"]
_MICROBATCH = 16384  # our default
_GENERATIONS = 10  # most generation batches of DAPO's filter where the script gives no limit, as in DAPO's own script
_FORK = "of the fork, not an option"
_PATHS = ("data.train_files", "data.val_files", "actor_rollout_ref.model.path")
_VARIABLE = re.compile(r"\$\w+|\$\{[^}]*\}?|\$\(")
_KL_FORMS = {"low_var_kl": "k3", "k3": "k3", "kl": "k1", "k1": "k1", "mse": "k2", "k2": "k2"}


@dataclass
class Converted:
    """A configuration, as it will be written.

    Attributes:
        settings: by key, as in "learner.lr", the value and where it is from.
        left: what cannot be carried, and what must be done by hand, a line each.
    """

    settings: dict[str, tuple[Any, str]] = field(default_factory=dict)
    left: list[str] = field(default_factory=list)

    def toml(self, source: str) -> str:
        """The file's text: comments, then a table for each section."""
        lines = [f"# From {source} by scripts.ops.from_verl. After each value stands the option of verl it is from."]
        lines += ["# Not carried:", *(f"#   {line}" for line in self.left)] if self.left else []
        sections: dict[str, list[str]] = {}
        for key, (value, origin) in self.settings.items():
            section, _, name = key.partition(".")
            sections.setdefault(section, []).append(f"{name} = {json.dumps(value, ensure_ascii=False)} # {origin}")
        for section, entries in sections.items():
            lines += ["", f"[{section}]", *entries]
        return "\n".join(lines) + "\n"


class _Options:
    """The given options and, behind them, verl's defaults; each value with the type of its option."""

    def __init__(self, given: Mapping[str, str]) -> None:
        self.given = given

    def origin(self, name: str) -> str:
        return name if name in self.given else f"{name}, verl's default"

    def __call__(self, name: str) -> Any:
        """None where it is not given and has no default.

        Raises:
            FatalError: the value is not of the option's type.
        """
        option = OPTIONS[name]
        text = self.given.get(name, option.default if isinstance(option, Carried | Computed) else "")
        if text in ("", "null", "None"):
            return None
        read = option.read if isinstance(option, Carried | Computed) else str
        try:
            return read(text)
        except ValueError:
            raise FatalError(f"{name} = {text!r} cannot be read as {read.__name__.strip('_')}") from None


def convert(given: Mapping[str, str]) -> Converted:
    """Our configuration for the options that a launch script gives.

    Raises:
        FatalError: a value cannot be read, or what comes out is no valid configuration.
    """
    given = {name: _expand_path(value) if name in _PATHS else value for name, value in given.items()}
    options, result = _Options(given), Converted()
    for name, value in given.items():
        if unknown := sorted(set(_VARIABLE.findall(value))):
            result.left.append(f"{name} = {value}: the script does not say what {', '.join(unknown)} is: put it in")
    # The fork tags its prompts and counts answers in a batch whether or not it routes.
    of_fork = any("lang_policy" in name for name in given)
    routed = of_fork and bool(options("data.dynamic_lang_policy"))
    _carry(options, routed, result)
    _ask(of_fork, result)
    _route(options, routed, result)
    _batch(options, of_fork, result)
    _train(options, result)
    _score(options, result)
    result.left += [
        f"{name} = {value}: this option is not known here" for name, value in given.items() if name not in OPTIONS
    ]
    nested: dict[str, Any] = {}
    for key, (value, _) in result.settings.items():
        table = nested
        *path, last = key.split(".")
        for part in path:
            table = table.setdefault(part, {})
        table[last] = value
    try:
        Config.model_validate(nested)
    except ValidationError as error:
        raise FatalError(f"the script describes a run that cannot work here: {explain(error, Config)}") from None
    return result


def _expand_path(text: str) -> str:
    """With the home directory and the environment's variables, as the shell would have it where the script is run."""
    return os.path.expanduser(os.path.expandvars(text))


def _carry(options: _Options, routed: bool, result: Converted) -> None:
    """Settings of the same meaning, and values that ours always has."""
    for name, option in OPTIONS.items():
        if "lang_policy" in name and not routed:
            continue
        if isinstance(option, Carried):
            value = options(name)
            if value is not None and options.given.get(name) not in option.unset:
                result.settings[option.ours] = value, options.origin(name)
        elif isinstance(option, Fixed):
            value = options.given.get(name, option.default or option.only[0])
            if value not in option.only:
                result.left.append(f"{name} = {value}: {option.why}")


def _ask(of_fork: bool, result: Converted) -> None:
    """The languages of a run, and how an answer in one is asked for."""
    set_to = result.settings
    if of_fork:
        set_to["run.languages"] = _LRPO_LANGUAGES, _FORK
        set_to["model.prompt_style"] = "tag", _FORK
        return
    set_to["model.prompt_style"] = "plain", "verl sends prompts as they are"
    result.left += [
        "run.languages: verl has no such list; name the languages of your questions",
        "data.language: rows of verl, as those of GSM8K and MATH, name no language, and one without is broken here: "
        'set it to the language of such rows, as data.language = "en", or name the column in data.columns',
        'a language to answer in: prompts go as they are, as with verl; model.prompt_style = "system" asks for one, '
        "which routing needs",
    ]


def _route(options: _Options, routed: bool, result: Converted) -> None:
    set_to, fork = result.settings, _FORK
    if not routed:
        set_to["router.mode"] = "monolingual", "without routing every answer is in the language of its question"
        set_to["router.own_language"] = 0, "every answer is in it already"
        return
    set_to["router.mode"] = "learned", options.origin("data.dynamic_lang_policy")
    set_to["router.credit"] = "reference", fork
    set_to["router.region_topics"] = ["Regional Knowledge"], fork
    start = "data.lang_policy_temperature_init"
    start = start if options(start) is not None else "data.lang_policy_temperature"
    least = "data.lang_policy_temperature_min"
    least = least if options(least) is not None else "data.lang_policy_temperature"
    temperature, lowest = options(start), options(least)
    falls = options("data.lang_policy_temperature_decay") != 1 or temperature != lowest
    set_to["router.temperature"] = temperature, options.origin(start)
    set_to["router.temperature_min"] = lowest, options.origin(least)
    constant = options("data.lang_policy_epsilon")
    first, last = (options(f"data.lang_policy_epsilon_{name}") for name in ("init", "min"))
    first, last = (constant if value is None else value for value in (first, last))
    decay = options("data.lang_policy_epsilon_decay")
    if falls and (decay != 1 or first != last):
        set_to["router.exploration"] = first, options.origin("data.lang_policy_epsilon_init")
        set_to["router.exploration_min"] = last, options.origin("data.lang_policy_epsilon_min")
        set_to["router.exploration_decay"] = decay, options.origin("data.lang_policy_epsilon_decay")
    else:
        why = f"{options.origin('data.lang_policy_epsilon')}; the fork skips the schedule"
        set_to["router.exploration"], set_to["router.exploration_min"] = (constant, why), (constant, why)


def _batch(options: _Options, of_fork: bool, result: Converted) -> None:
    rollouts, batch = options("actor_rollout_ref.rollout.n"), options("data.train_batch_size")
    origin = options.origin("data.train_batch_size")
    if of_fork and batch % rollouts:
        raise FatalError(f"data.train_batch_size = {batch} is no multiple of actor_rollout_ref.rollout.n = {rollouts}")
    questions = batch // rollouts if of_fork else batch
    result.settings["learner.groups_per_step"] = questions, f"{origin}, {batch} answers" if of_fork else origin
    name = f"{_ACTOR}.ppo_mini_batch_size"
    result.settings["learner.minibatches"] = -(-questions // options(name)), options.origin(name)
    if options("algorithm.filter_groups.enable"):
        limit = options("algorithm.filter_groups.max_num_gen_batches")
        asked = (options("data.gen_batch_size") or questions) * (limit if limit > 0 else _GENERATIONS)
        result.settings["learner.refill"] = max(asked - questions, 0), "algorithm.filter_groups"
        result.settings["learner.drop_zero_variance"] = True, "algorithm.filter_groups.enable"
    if options("trainer.total_training_steps") is None:
        result.left.append(
            "trainer.total_epochs: verl drops the questions that fill no batch at the end of an epoch, so it may make "
            "a few steps less; set learner.steps, too, to stop there"
        )
    for name, ours in (("data.train_files", "data.train"), ("data.val_files", "data.heldout")):
        if (files := options(name)) is None:
            continue
        several = [part.strip(" '\"") for part in files.strip("[]").split(",")]
        result.settings[ours] = several[0], name
        if len(several) > 1:
            result.left.append(
                f"{name}: {ours} is one file or one folder, so {', '.join(several[1:])} is left out: put all of them "
                f"into one folder, and name that in {ours}"
            )
    longest = result.settings["data.max_prompt_tokens"][0] + result.settings["sampling.max_new_tokens"][0]
    if longest > _MICROBATCH:
        result.settings["learner.microbatch_tokens"] = longest, "as long as a prompt with its answer"


def _train(options: _Options, result: Converted) -> None:
    set_to = result.settings
    for name in (f"{_ACTOR}.fsdp_config.{what}_offload" for what in ("param", "optimizer")):
        if options(name):  # either of the two, which are one setting of ours
            set_to["learner.optimizer_on_cpu"] = True, options.origin(name)
    if options("actor_rollout_ref.model.lora_rank"):
        name = "actor_rollout_ref.model.lora_alpha"
        set_to["lora.alpha"] = options(name), options.origin(name)
        if set_to.pop("learner.optimizer_on_cpu", (False, ""))[0]:
            result.left.append(f"{_ACTOR}.fsdp_config: the optimizer of adapters is small, and stays on the GPUs")
    set_to["learner.staleness"] = 0, "verl is synchronous"
    if options(f"{_ACTOR}.optim.weight_decay"):
        set_to["learner.weight_decay_on"] = "all", "verl, not an option"
    set_to["learner.std_ddof"] = 1, "verl, not an option"
    set_to.setdefault("learner.drop_zero_variance", (False, "verl, not an option"))
    _weigh(options, result)
    _aggregate(options, result)
    _penalise(options, result)
    _schedule(options, result)
    every = max(0, options("trainer.test_freq"))
    if not every and set_to["learner.evaluate_before"][0] is False:
        set_to["learner.evaluate"] = False, "trainer.test_freq"
        del set_to["learner.evaluate_before"]
    set_to["learner.evaluate_every"] = every, options.origin("trainer.test_freq")
    if "data.heldout" in set_to and set_to.get("learner.evaluate", (True, ""))[0]:
        most = LearnerConfig().evaluate_questions
        result.left.append(
            f"data.val_files: verl evaluates all of them, ours at most learner.evaluate_questions = {most}, evenly "
            "spread: raise it to evaluate more"
        )
    if name := options("trainer.experiment_name"):
        set_to["run.dir"] = f"runs/{name}", "trainer.experiment_name"


def _weigh(options: _Options, result: Converted) -> None:
    """Surrogate, importance weight, KL, and what the ratio is taken against."""
    set_to = result.settings
    mode, name = options(f"{_ACTOR}.policy_loss.loss_mode"), f"{_ACTOR}.policy_loss.loss_mode"
    if mode in ("vanilla", "gspo", "cispo"):
        set_to["learner.loss"] = "ppo" if mode == "vanilla" else mode, options.origin(name)
    else:
        result.left.append(f"{name} = {mode}: ours are vanilla, gspo and cispo")
    if mode in ("gspo", "cispo"):
        set_to.pop("learner.dual_clip", None)  # these losses have none
    used = options(f"{_ACTOR}.use_kl_loss")
    kl = f"{_ACTOR}.kl_loss_coef" if used else f"{_ACTOR}.use_kl_loss"
    set_to["learner.kl"] = options(kl) if used else 0.0, options.origin(kl)
    form, name = options(f"{_ACTOR}.kl_loss_type"), f"{_ACTOR}.kl_loss_type"
    if used and form in _KL_FORMS and options(kl):
        set_to["learner.kl_form"] = _KL_FORMS[form], options.origin(name)
    elif used and form not in _KL_FORMS:
        result.left.append(f"{name} = {form}: ours are {', '.join(_KL_FORMS)}")
    has_adapters, has_kl = bool(options("actor_rollout_ref.model.lora_rank")), bool(set_to["learner.kl"][0])
    if (has_adapters or not has_kl) and set_to.pop("learner.reference_on_cpu", (False, ""))[0]:
        why = "without a KL there is no reference" if not has_kl else "that of adapters is the model without them"
        result.left.append(f"actor_rollout_ref.ref.fsdp_config.param_offload: {why}, and needs no memory")
    correction = "algorithm.rollout_correction"
    if options(f"{correction}.bypass_mode"):
        set_to["learner.proximal"] = "behaviour", f"{correction}.bypass_mode"
    level = options(f"{correction}.rollout_is")
    cap, name = options(f"{_ACTOR}.tis_imp_ratio_cap"), options.origin(f"{_ACTOR}.tis_imp_ratio_cap")
    if level == "token":
        cap, name = options(f"{correction}.rollout_is_threshold"), f"{correction}.rollout_is_threshold"
    elif level is not None:
        result.left.append(f"{correction}.rollout_is = {level}: the importance weight is that of a token")
    set_to["learner.importance"] = "truncate" if cap > 0 else "none", name
    if cap > 0:
        set_to["learner.importance_cap"] = cap, name
    estimator = options("algorithm.adv_estimator")
    if estimator == "gdpo":
        keys, weights = (options.given.get(f"algorithm.gdpo_reward_{part}", "?") for part in ("keys", "weights"))
        result.left.append(
            'algorithm.adv_estimator = gdpo: set learner.advantage = "decoupled", and learner.decoupled_parts to '
            f"{keys} with the weights {weights}, once your reward has these parts"
        )
    elif estimator != "grpo":
        result.left.append(f"algorithm.adv_estimator = {estimator}: advantages are those of grpo or gdpo")


def _aggregate(options: _Options, result: Converted) -> None:
    """What the loss is a mean over."""
    set_to, name = result.settings, f"{_ACTOR}.loss_agg_mode"
    mode = options(name)
    means = {"token-mean": "token", "seq-mean-token-mean": "sequence"}
    sums = {"seq-mean-token-sum": 1, "seq-mean-token-sum-norm": set_to["sampling.max_new_tokens"][0]}
    if set_to.get("learner.loss", ("",))[0] == "gspo":
        set_to["learner.aggregation"] = "sequence", "policy_loss.loss_mode = gspo"
    elif mode in means:
        set_to["learner.aggregation"] = means[mode], options.origin(name)
    elif mode in sums:
        set_to["learner.aggregation"] = "constant", options.origin(name)
        factor = options(f"{_ACTOR}.loss_scale_factor") if mode == "seq-mean-token-sum-norm" else None
        set_to["learner.aggregation_length"] = factor or sums[mode], f"{name} = {mode}"
    else:
        result.left.append(f"{name} = {mode}: ours are {', '.join([*means, *sums])}")


def _penalise(options: _Options, result: Converted) -> None:
    """DAPO's penalty for long answers."""
    for name in OVERLONG:
        if options(f"{name}.enable"):
            limit = result.settings["sampling.max_new_tokens"][0]
            result.settings["learner.overlong_limit"] = limit, f"{name}.enable"
            result.settings["learner.overlong_buffer"] = options(f"{name}.len"), f"{name}.len"
            result.settings["learner.overlong_penalty"] = options(f"{name}.penalty_factor"), f"{name}.penalty_factor"


def _schedule(options: _Options, result: Converted) -> None:
    """The learning rate over the run."""
    set_to, optim = result.settings, f"{_ACTOR}.optim"
    style = f"{optim}.warmup_style" if f"{optim}.warmup_style" in options.given else f"{optim}.lr_scheduler_type"
    if (schedule := options(style)) in ("constant", "cosine"):
        set_to["learner.lr_schedule"] = schedule, options.origin(style)
    else:
        result.left.append(f"{style} = {schedule}: ours are constant and cosine, and linear")
    if schedule == "cosine" and (ratio := options(f"{optim}.min_lr_ratio")):
        set_to["learner.min_lr"] = ratio * set_to["learner.lr"][0], f"{optim}.min_lr_ratio"
    warmup, share = options(f"{optim}.lr_warmup_steps"), options(f"{optim}.lr_warmup_steps_ratio")
    name, steps = f"{optim}.lr_warmup_steps", options("trainer.total_training_steps")
    if warmup < 0 and share:
        name = f"{optim}.lr_warmup_steps_ratio"
        warmup = int(share * steps) if steps else 0
        if not steps:
            result.left.append(f"{name} = {share:g}: set learner.warmup_steps to this share of the run's steps")
    set_to["learner.warmup_steps"] = max(0, warmup), options.origin(name)


def _score(options: _Options, result: Converted) -> None:
    path = options("custom_reward_function.path")
    if path is None:
        result.left.append(
            "reward: verl chooses a rule by data_source; choose yours in reward.terms (docs/rewards.md). Until then it "
            "is the similarity to the reference"
        )
    elif Path(path).name == "calibrated_rs.py":
        name = "custom_reward_function.path"
        result.settings["reward.embedder"] = "jhu-clsp/mmBERT-small", name
        result.settings["reward.calibration"] = "data/pairs.csv", name
        result.settings["reward.calibration_mode"] = "mean", name
        result.settings["reward.embedder_dtype"] = "float32", name
        result.settings["reward.near_languages"] = {}, name
        result.settings["reward.gate_share"] = 0.5, name
        result.left.append(
            "custom_reward_function.path: the file names its statistics itself (STATS_CSV); put that file, or the one "
            "that scripts.data.calibrate makes, at reward.calibration = data/pairs.csv"
        )
    else:
        result.left.append(
            f"custom_reward_function.path = {path}: a reward in Python is not carried; docs/rewards.md says how to "
            "write it here. Until then it is the similarity to the reference"
        )


@command()
def main(
    script: Annotated[Path, typer.Argument(help="The launch script.")],
    *,
    out: Annotated[Path | None, typer.Option(help="The file to write; by default it is printed.")] = None,
) -> None:
    converted = convert(read_script(script))
    text = converted.toml(script.name)
    if out is None:
        typer.echo(text, nl=False)
    else:
        try:
            out.write_text(text, encoding="utf-8")
        except OSError as error:
            raise FatalError(f"cannot write {out}: {error.strerror}") from None
        typer.echo(f"{out} has {len(converted.settings)} settings")
    for line in converted.left:
        typer.echo(f"not carried: {line}", err=True)


if __name__ == "__main__":
    main()
