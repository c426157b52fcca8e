"""The rules that a configuration must keep as a whole, so that none is accepted that cannot work.

Each rule is a function of the whole configuration, which yields a line for every mistake it finds: which settings,
with their values, why they cannot work together, and what to do. :func:`mistakes` asks all of them, so that a user sees
every mistake at once. The range of a single setting stands with its field; a rule that needs two settings stands here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from common.config.idle import settings_have_an_effect
from common.config.resume import CONFIG_FILE, SKIPPED_UNTIL
from common.config.section import is_http
from common.config.sections import Sections
from common.languages import CODES, display_name

HEARTBEAT_S = 2.0  # seconds between two heartbeats of an actor
_LEAST_HEARTBEATS = 3  # that fit into a lease: one or two may be late on a busy machine


def mistakes(config: Sections) -> Iterator[str]:
    """What in a configuration cannot work, a line for each mistake; nothing if it can."""
    for rule in _RULES:
        yield from rule(config)


_NO_IPV6 = "is an IPv6 address, and lrpo speaks IPv4: give an IPv4 address, or a name that stands for one"
_USER = "names a user, which is for ssh alone: leave out what stands before the host"
_FORM = "is not of the form tcp://HOST:PORT or ipc://PATH"


def is_address(address: str) -> bool:
    """Whether there is nothing that ``address_problem`` finds."""
    return not address_problem(address)


def address_problem(address: str) -> str:
    """Why an address cannot be used, as the rest of a sentence; empty if it can.

    It must have the form ``ipc://PATH`` or ``tcp://HOST:PORT``, with a port from 1 to 65535, no user and no IPv6
    address.
    """
    if address.startswith("ipc://"):
        return "" if len(address) > len("ipc://") else _FORM
    try:
        parts = urlsplit(address)
        if not (parts.scheme == "tcp" and parts.hostname and parts.port and not parts.path):
            return _FORM
    except ValueError:  # the port is no number, or too large, or a bracket is missing
        return _FORM
    if "@" in parts.netloc:
        return _USER
    return _NO_IPV6 if ":" in parts.hostname else ""


def policy_may_choose(config: Sections) -> Iterator[str]:
    """The policy can choose its language only where the prompt leaves it open."""
    chooses = f"router.mode = {config.router.mode!r}" if config.router.mode in ("policy", "hybrid") else ""
    chooses = chooses or ("learner.evaluate_samples" if config.learner.evaluate_samples else "")
    if chooses and config.model.prompt_style != "select":
        other = "has no header that names it" if config.model.prompt_style == "plain" else "tells it"
        yield (
            f"{chooses} needs model.prompt_style = 'select', which leaves the language open; "
            f"{config.model.prompt_style!r} {other}"
        )


def prompts_say_the_language(config: Sections) -> Iterator[str]:
    """Answers in another language than the question's have to be asked for, and what asks for it has to be read."""
    model, mode = config.model, config.router.mode
    if model.silent_about_language and mode not in ("monolingual", "policy", "hybrid"):
        yield (
            f"{model.silent_about_language} does not say in which language an answer is to be, and router.mode = "
            f"{mode!r} asks for answers in other languages than the question's: set router.mode = 'monolingual', or "
            + (
                "choose another prompt_style"
                if model.prompt_style == "plain"
                else "write {language} or {native} where the language is to be named"
            )
        )
    if model.instructions and model.prompt_style != "system":
        yield (
            f"model.instructions has no effect with model.prompt_style = {model.prompt_style!r}: choose 'system', or "
            "leave it out"
        )


def nodes_can_meet(config: Sections) -> Iterator[str]:
    """Several learner nodes need a rendezvous, because any of them may lead."""
    if config.learner.nodes > 1 and config.run.rendezvous is None:
        yield f"learner.nodes = {config.learner.nodes} needs run.rendezvous: any of them may lead"


def unseen_languages_are_unseen(config: Sections) -> Iterator[str]:
    """Languages that are unseen must be so, and be asked for once. The section ``run`` checks those of the run."""
    unseen = config.learner.evaluate_unseen
    for code, count in Counter(unseen).items():
        if count > 1:
            yield (
                f"learner.evaluate_unseen has the language {code!r} {count} times, perhaps by code and by name: "
                "keep one"
            )
    if seen := [code for code in unseen if code in config.run.languages]:
        yield f"learner.evaluate_unseen = {seen}: these are in run.languages, and so not unseen"


def languages_are_declared(config: Sections) -> Iterator[str]:
    """A language that lid.176 lacks is declared by the same configuration, and not by another one of this process."""
    named = {"run.languages": config.run.languages, "learner.evaluate_unseen": config.learner.evaluate_unseen}
    for key, codes in named.items():
        if unknown := [code for code in codes if code not in CODES and code not in config.run.other_languages]:
            yield f"{key} has {unknown[0]!r}, which lid.176 lacks: declare it with run.other_languages"


def mode_has_its_languages(config: Sections) -> Iterator[str]:
    """A fixed strategy has its language, and initial values are of languages that can be drawn."""
    known, router = config.run.languages, config.router
    needed = "en" if router.mode in ("input_dominant", "english_dominant") else router.fixed_language
    if needed and needed not in known:
        yield f"router.mode = {router.mode!r} answers in {needed!r}: add it to run.languages"
    for row, values in config.router.initial.items():
        if unknown := sorted(set(values) - set(known)):
            yield f"router.initial: the row {row!r} has {', '.join(unknown)}, which run.languages has not"


def gate_knows_the_languages(config: Sections) -> Iterator[str]:
    """Of lid.176 it is known which languages it has; of another model the reward process says what it lacks."""
    near = config.reward.near_languages
    if config.reward.language_model == "auto" and (
        problem := unchecked_problem(config, lambda code: not {code, *near.get(code, ())}.isdisjoint(CODES))
    ):
        yield problem


def unchecked_problem(config: Sections, knows: Callable[[str], bool]) -> str:
    """Why a gated reward cannot do with the language model; empty where it can, or where the user has chosen so.

    Args:
        config: the whole configuration.
        knows: whether the model knows a language, by code, or one that counts as it.
    """
    reward = config.reward
    unknown = [code for code in languages_asked_for(config) if not knows(code)]
    if not unknown or not reward.is_gated or reward.unchecked == "pass":
        return ""
    named = " and ".join(f"{code} ({display_name(code)})" for code in unknown)
    gated = "reward.gated = true" if reward.gated else "reward.gated, by default with terms"
    return (
        f"reward.language_model = {reward.language_model!r} does not know {named}, and an answer in another language "
        f'than the one asked for is to earn 0 ({gated}): set reward.unchecked = "pass" to take such answers for '
        "compliant, or reward.gated = false; or name in reward.near_languages what the model takes the language for, "
        "or give a model that has it (docs/languages.md)"
    )


def languages_asked_for(config: Sections) -> list[str]:
    """The languages in which answers may be asked for in training, and those of ``evaluate_unseen``.

    Any declared language may be that of a question, whose answers are asked for in it in most modes, and in every mode
    where the question is of the topic Translation.
    """
    return list(dict.fromkeys([*config.run.languages, *config.learner.evaluate_unseen, *config.run.other_languages]))


def addresses_are_well_formed(config: Sections) -> Iterator[str]:
    """An address that is none would be noticed only by the process that uses it; two services cannot share one."""
    services = [("learner.address", config.learner.address)]
    services += [("reward.addresses", address) for address in config.reward.addresses]
    for key, address in services:
        if problem := address_problem(address):
            yield f"{key} = {address!r} {problem}"
    for address, count in Counter(address for _, address in services).items():
        if count > 1 and not _is_wildcard(address):
            keys = dict.fromkeys(key for key, given in services if given == address)
            yield f"{' and '.join(keys)}: {address} is given to {count} services, and each needs one of its own"
    if problem := address_problem(f"tcp://{config.learner.torchrun}"):
        what = "is not of the form HOST:PORT" if problem is _FORM else problem
        yield f"learner.torchrun = {config.learner.torchrun!r} {what}"
    if "@" in config.sync.host:
        yield f"sync.host = {config.sync.host!r} {_USER}"
    if config.sync.host.count(":") > 1:
        yield f"sync.host = {config.sync.host!r} {_NO_IPV6}"
    if (url := config.actor.engine_url) and not is_http(url):
        yield f"actor.engine_url = {url!r} is not of the form http://HOST:PORT"


def _is_wildcard(address: str) -> bool:
    """Whether every host has an interface of its own for the address, so that two hosts may use it."""
    return is_address(address) and urlsplit(address).hostname in ("*", "0.0.0.0")


def engine_stays_on_loopback(config: Sections) -> Iterator[str]:
    """An engine has no authentication, and what the actor decides itself must not be decided twice."""
    for name in config.actor.engine_args:
        if (flag := name.replace("_", "-")) in _OWN_ENGINE_FLAGS:
            yield f"actor.engine_args.{name} is set by the actor itself: {_OWN_ENGINE_FLAGS[flag]}"


def engine_ranks_are_tensor_parallel(config: Sections) -> Iterator[str]:
    """Weight updates reach the ranks of a tensor-parallel engine alone, whose ``tp`` says how many GPUs it gets."""
    for name, value in config.actor.engine_args.items():
        flag = name.replace("_", "-")
        if flag in ("tp-size", "tensor-parallel-size"):
            yield f"actor.engine_args.{name}: write it as tp, which also decides how many GPUs an engine gets"
        if flag in _PARALLEL_FLAGS and value not in (1, "1"):
            yield (
                f"actor.engine_args.{name} = {value}: weight updates cannot reach the ranks of {_PARALLEL_FLAGS[flag]} "
                "parallelism; use tp for a large model, and more actors for more throughput"
            )


def engine_numbers_are_numbers(config: Sections) -> Iterator[str]:
    """Those of the engine's flags that are computed with here, too."""
    for name, value in config.actor.engine_args.items():
        flag, is_number = name.replace("_", "-"), isinstance(value, int | float) and not isinstance(value, bool)
        if flag in _COUNTS and not (is_number and isinstance(value, int) and value >= 1):
            yield f"actor.engine_args.{name} = {value!r}: {_COUNTS[flag]}, a whole number of at least 1"
        if flag == "mem-fraction-static" and not (is_number and 0 < float(value) < 1):
            yield f"actor.engine_args.{name} = {value!r}: a share of the GPU's memory, a number above 0 and below 1"


_COUNTS = {"tp": "GPUs of an engine", "max-total-tokens": "tokens in its cache", "context-length": "tokens of a text"}
_PARALLEL_FLAGS = {
    "pp": "pipeline", "pp-size": "pipeline", "pipeline-parallel-size": "pipeline",
    "dp": "data", "dp-size": "data", "data-parallel-size": "data", "enable-dp-attention": "data",
}  # fmt: skip


_OWN_ENGINE_FLAGS = {
    "host": "an engine has no authentication and listens on loopback alone",
    "port": "use actor.engine_port",
    "model-path": "use model.path",
    "dtype": "use model.dtype",
    "weight-version": "the learner counts the versions",
    "random-seed": "it follows from run.seed and actor.name",
    "enable-lora": "use lora.rank",
    "max-lora-rank": "use lora.rank",
    "lora-target-modules": "use lora.targets",
}


def replicas_divide_ranks(config: Sections) -> Iterator[str]:
    """Every copy of the weights is sharded over equally many ranks."""
    ranks = config.learner.ranks * config.learner.nodes
    if ranks % config.learner.replicas:
        yield (
            f"learner.replicas = {config.learner.replicas} does not divide the {ranks} ranks (learner.ranks × "
            "learner.nodes)"
        )


def lease_outlasts_heartbeats(config: Sections) -> Iterator[str]:
    """Otherwise an actor that is only late would lose its leases, and generate all of them again."""
    least = _LEAST_HEARTBEATS * HEARTBEAT_S
    if (given := config.learner.lease_timeout_s) < least:
        yield (
            f"learner.lease_timeout_s = {given:g} must be at least {least:g}: actors send a heartbeat every "
            f"{HEARTBEAT_S:g} s, and one may be late"
        )


def waiting_outlasts_generation(config: Sections) -> Iterator[str]:
    """In a synchronous step all groups may begin at once, so that none comes before the first call has ended."""
    group_s, call_s = config.learner.group_timeout_s, config.actor.request_timeout_s
    if group_s <= call_s:
        yield (
            f"learner.group_timeout_s = {group_s:g} must be above actor.request_timeout_s = {call_s:g}: the run would "
            "end with an error while a generation call may still go on; twice as long leaves time for a second attempt"
        )


def sequences_fit_a_microbatch(config: Sections) -> Iterator[str]:
    """The learner cuts what does not fit, which would train on the beginnings of answers alone."""
    prompt, answer = config.data.max_prompt_tokens, config.sampling.max_new_tokens
    if (room := config.learner.microbatch_tokens) < prompt + answer:
        yield (
            f"learner.microbatch_tokens = {room} is less than data.max_prompt_tokens + sampling.max_new_tokens = "
            f"{prompt} + {answer}: raise it to {prompt + answer} or more, or long answers would be cut in training"
        )


def importance_bounds_hold_one(config: Sections) -> Iterator[str]:
    """The importance weight of an on-policy token is 1, and must not be limited."""
    learner = config.learner
    if learner.importance != "none" and learner.importance_cap < 1:
        yield (
            f"learner.importance_cap = {learner.importance_cap:g} is below 1, the weight of a token on policy: it "
            "would scale or mask every token"
        )
    if learner.importance == "mask" and learner.importance_floor > 1:
        yield (
            f"learner.importance_floor = {learner.importance_floor:g} is above 1, the weight of a token on policy: "
            "'mask' would leave out nearly every token"
        )
    if learner.importance == "mask" and learner.importance_floor > learner.importance_cap:
        yield (
            f"learner.importance_floor = {learner.importance_floor:g} exceeds importance_cap = "
            f"{learner.importance_cap:g}: 'mask' would leave out every token, and the gradient be 0"
        )


def loss_has_its_settings(config: Sections) -> Iterator[str]:
    """Settings of the loss that need one another, or that another one leaves without effect."""
    learner, longest = config.learner, config.sampling.max_new_tokens
    if learner.aggregation == "constant" and not learner.aggregation_length:
        yield (
            "learner.aggregation = 'constant' needs learner.aggregation_length, the tokens that the sum of an answer "
            f"is divided by: usually sampling.max_new_tokens = {longest}"
        )
    if learner.min_lr > learner.lr:
        yield f"learner.min_lr = {learner.min_lr:g} is above learner.lr = {learner.lr:g}, which it is the end of"
    if learner.min_lr and learner.lr_schedule == "constant":
        yield (
            f"learner.min_lr = {learner.min_lr:g} has no effect with learner.lr_schedule = 'constant': choose 'linear' "
            "or 'cosine'"
        )
    if learner.minibatches > learner.groups_per_step:
        yield (
            f"learner.minibatches = {learner.minibatches} is more than learner.groups_per_step = "
            f"{learner.groups_per_step}, and a mini-batch has at least one group"
        )
    limit, buffer = learner.overlong_limit, learner.overlong_buffer
    if bool(limit) != bool(buffer):
        yield (
            f"learner.overlong_limit = {limit} and learner.overlong_buffer = {buffer} go together: the penalty grows "
            "over the last overlong_buffer tokens before overlong_limit"
        )
    elif buffer > limit or limit - buffer >= longest > 0 < limit:
        yield (
            f"learner.overlong_limit = {limit} and learner.overlong_buffer = {buffer}: the penalty begins at "
            f"{limit - buffer} tokens, and answers have between 1 and sampling.max_new_tokens = {longest}"
        )


def warm_up_ends(config: Sections) -> Iterator[str]:
    """Otherwise no step has the rate that was asked for. Not asked before the number of steps is known."""
    learner = config.learner
    if 0 < learner.steps <= learner.warmup_steps:
        yield (
            f"learner.warmup_steps = {learner.warmup_steps} must be below the {learner.steps} steps of the run, or the "
            f"rate rises to learner.lr = {learner.lr:g} only as it ends: lower learner.warmup_steps, or train longer"
        )


def decoupled_parts_exist(config: Sections) -> Iterator[str]:
    """A misspelt part would earn nothing in silence."""
    learner, reward = config.learner, config.reward
    if learner.advantage != "decoupled":
        if learner.decoupled_parts:
            yield f"learner.decoupled_parts has no effect with learner.advantage = {learner.advantage!r}"
        return
    if not learner.decoupled_parts:
        yield "learner.advantage = 'decoupled' needs learner.decoupled_parts: parts of the reward with their weights"
    known = set(reward.parts) if reward.function else {name for terms in reward.terms.values() for name in terms}
    if unknown := sorted(set(learner.decoupled_parts) - known - {"reward", "quality", "compliance"}):
        yield (
            f"learner.decoupled_parts: the reward has no {', '.join(unknown)}; it has "
            f"{', '.join(sorted(known))}, and always reward, quality and compliance"
        )


def refill_knows_the_rewards(config: Sections) -> Iterator[str]:
    """Which groups are of use must be known as they come, and not only when their step is made."""
    learner = config.learner
    if not learner.refill:
        return
    for key in ("stages", "step_reward"):
        if getattr(learner, key):
            yield (
                f"learner.refill = {learner.refill} cannot be used with learner.{key}, which gives the rewards when a "
                "step is made: then it is too late to ask further questions for it"
            )
    if not learner.drop_zero_variance:
        yield (f"learner.refill = {learner.refill} needs learner.drop_zero_variance = true: else every group is of use")


def right_answers_are_known(config: Sections) -> Iterator[str]:
    """A reward none of whose parts is accuracy, as a similarity, may have any value for an answer that is wrong."""
    data, learner, silent = config.data, config.learner, config.reward.silent_about_right
    if not silent or learner.is_whole:  # what a run has written was right when it began
        return
    cure = (
        "name one of them 'accuracy'"
        if config.reward.function
        else "add a term that does (math, exact, choice or contains)"
    )
    if data.curriculum < 1 and not data.gives("curriculum_right"):
        yield (
            f"data.curriculum = {data.curriculum:g} needs to know which answers are right, and of {silent} none says "
            f"so: {cure}, or set data.curriculum_right to the quality from which an answer is right"
        )
    for number, stage in enumerate(learner.stages, start=1):
        if stage.success:
            yield (
                f"learner.stages: success = {stage.success:g} in stage {number} needs to know which answers are right, "
                f"and of {silent} none says so: {cure}, or leave success out"
            )


def evaluation_is_on(config: Sections) -> Iterator[str]:
    """Settings of an evaluation that does not take place."""
    learner = config.learner
    for key in ("evaluate_every", "evaluate_samples"):
        if (value := getattr(learner, key)) and not learner.evaluate:
            yield f"learner.{key} = {value} has no effect with learner.evaluate = false: set one of the two"
    if learner.evaluate_unseen and not learner.evaluate_samples:
        yield "learner.evaluate_unseen has no effect with learner.evaluate_samples = 0: languages are asked for in them"


def stages_last_a_step(config: Sections) -> Iterator[str]:
    """A stage that ends where the one before ends is never reached. Not asked before the number of steps is known."""
    learner, begin = config.learner, 0
    for number, end in enumerate(learner.stage_ends() if learner.steps else [], start=1):
        if end <= begin:
            until = learner.stages[number - 1].until
            yield (
                f"learner.stages: stage {number} (until = {until:g}) would have none of the {learner.steps} steps: it "
                f"ends, as the one before it, after step {end}"
            )
        begin = end


def engines_can_load_adapters(config: Sections) -> Iterator[str]:
    """SGLang computes q, k and v as one layer, and gate and up as another.

    It cannot load an adapter of q without one of v, or the reverse, nor one of up without one of gate.
    """
    if not config.lora.sends_adapters:
        return
    targets = set(config.lora.targets)
    if targets & {"q_proj", "k_proj", "v_proj"} and not targets >= {"q_proj", "v_proj"}:
        yield (
            f"lora.targets = {sorted(targets)}: SGLang loads adapters of q_proj, k_proj and v_proj only if q_proj and "
            "v_proj are both among them: add the missing one, or set lora.sync = 'merged'"
        )
    if "up_proj" in targets and "gate_proj" not in targets:
        yield (
            f"lora.targets = {sorted(targets)}: SGLang loads adapters of up_proj only with those of gate_proj: add it, "
            "or set lora.sync = 'merged'"
        )
    for name in ("dp", "dp_size"):
        if str(config.actor.engine_args.get(name, 1)) != "1":
            yield (
                f"actor.engine_args.{name} = {config.actor.engine_args[name]}: SGLang loads adapters into one data-"
                "parallel copy only: start an actor for each copy, or set lora.sync = 'merged'"
            )


def adapters_keep_their_optimizer(config: Sections) -> Iterator[str]:
    """The optimizer of adapters is small, and what is frozen has none."""
    if config.lora.rank and config.learner.optimizer_on_cpu:
        yield (
            f"learner.optimizer_on_cpu = true has no use with lora.rank = {config.lora.rank}: the optimizer of "
            "adapters is small; leave it out"
        )


def optimizer_state_is_kept_in_one_way(config: Sections) -> Iterator[str]:
    """Host memory and 8 bits are two ways to save the same memory, and have not been combined."""
    if config.learner.optimizer_on_cpu and config.learner.optimizer != "adamw":
        yield (
            f"learner.optimizer = {config.learner.optimizer!r} cannot be used with learner.optimizer_on_cpu = true: "
            "choose the one that fits"
        )


def dropout_has_one_optimizer_step(config: Sections) -> Iterator[str]:
    """Between two optimizer steps of a batch, a ratio would compare two dropout masks beside two policies."""
    learner = config.learner
    if config.lora.rank and config.lora.dropout and learner.minibatches * learner.passes > 1:
        yield (
            f"lora.dropout = {config.lora.dropout:g} needs learner.minibatches = 1 and learner.passes = 1, not "
            f"{learner.minibatches} and {learner.passes}: the ratio of a later optimizer step would compare two "
            "dropout masks; set lora.dropout = 0"
        )


def targets_differ(config: Sections) -> Iterator[str]:
    """A target that stands there twice is one adapter, and not two."""
    for target, count in Counter(config.lora.targets).items():
        if count > 1:
            yield f"lora.targets has {target!r} {count} times: keep one"


def steps_are_counted(config: Sections) -> Iterator[str]:
    """The run must end."""
    if not config.learner.steps and not config.learner.epochs:
        yield "learner.steps = 0 and learner.epochs = 0: give at least one, or the run has no end"


def calibration_has_its_file(config: Sections) -> Iterator[str]:
    """Without the statistics, similarities would silently stay raw."""
    reward = config.reward
    if reward.calibration_mode != "raw" and reward.calibration is None:
        yield (
            f"reward.calibration_mode = {reward.calibration_mode!r} needs reward.calibration, the file that "
            "scripts.data.calibrate writes; without one, set reward.calibration_mode = 'raw'"
        )


def request_fits_the_queue(config: Sections) -> Iterator[str]:
    """A request larger than the queue would be answered with "full" for ever."""
    if (texts := config.reward.queue_texts) < config.router.rollouts + 1:
        yield (
            f"reward.queue_texts = {texts} is less than the {config.router.rollouts} answers of a group and their "
            "reference: no group could ever be scored"
        )


def heldout_is_held_out(config: Sections) -> Iterator[str]:
    """Held-out questions are never trained on."""
    train, heldout = config.data.train, config.data.heldout
    if heldout is not None and Path(heldout).absolute().resolve() == Path(train).absolute().resolve():
        yield f"data.heldout = {heldout} is what data.train is, too: questions that are trained on are not held out"


def accepted_keys_exist(config: Sections) -> Iterator[str]:
    """A misspelt key would accept nothing, and the resume would be refused for the same reason again."""
    sections: dict[str, object] = {name: getattr(config, name) for name in type(config).model_fields}
    for key in config.resume.accept:
        section, dot, name = key.partition(".")
        fields = getattr(type(sections.get(section)), "model_fields", {})
        if key == CONFIG_FILE or (key.startswith(SKIPPED_UNTIL) and key.removeprefix(SKIPPED_UNTIL).isdecimal()):
            continue
        if section not in sections or (dot and name not in fields):
            yield f"resume.accept: there is no setting {key!r}"


_RULES: Sequence[Callable[[Sections], Iterator[str]]] = (
    policy_may_choose, prompts_say_the_language, nodes_can_meet, unseen_languages_are_unseen,
    languages_are_declared, mode_has_its_languages, gate_knows_the_languages, addresses_are_well_formed,
    engine_stays_on_loopback, engine_ranks_are_tensor_parallel, engine_numbers_are_numbers, replicas_divide_ranks,
    lease_outlasts_heartbeats, waiting_outlasts_generation, sequences_fit_a_microbatch, importance_bounds_hold_one,
    engines_can_load_adapters, targets_differ, adapters_keep_their_optimizer, optimizer_state_is_kept_in_one_way,
    dropout_has_one_optimizer_step, loss_has_its_settings, settings_have_an_effect, decoupled_parts_exist,
    refill_knows_the_rewards, right_answers_are_known, evaluation_is_on, steps_are_counted, warm_up_ends,
    stages_last_a_step, calibration_has_its_file, request_fits_the_queue, heldout_is_held_out, accepted_keys_exist,
)  # fmt: skip
