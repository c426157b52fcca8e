"""A configuration that cannot work is refused when it is read, and the message says which settings and what to do."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.config import Config, ConfigError, is_address, load

_MICROBATCH = (
    "learner.microbatch_tokens = 1535 is less than data.max_prompt_tokens + sampling.max_new_tokens = 512 + 1024"
)
_MASK = ["--learner.importance", "mask"]

_DECOUPLED = ["--learner.advantage", "decoupled", "--learner.decoupled_parts"]

REFUSED = {
    "a constant length that is missing": (
        ["--learner.aggregation", "constant"],
        "learner.aggregation = 'constant' needs learner.aggregation_length",
    ),
    "a least rate above the rate": (
        ["--learner.lr", "1e-6", "--learner.min_lr", "1e-5", "--learner.lr_schedule", "cosine"],
        "learner.min_lr = 1e-05 is above learner.lr = 1e-06",
    ),
    "a least rate that nothing reaches": (
        ["--learner.min_lr", "1e-7"],
        "learner.min_lr = 1e-07 has no effect with learner.lr_schedule = 'constant'",
    ),
    "more mini-batches than groups": (
        ["--learner.minibatches", "5", "--learner.groups_per_step", "4"],
        "learner.minibatches = 5 is more than learner.groups_per_step = 4",
    ),
    "a penalty without its buffer": (
        ["--learner.overlong_limit", "100"],
        "learner.overlong_limit = 100 and learner.overlong_buffer = 0 go together",
    ),
    "a penalty that no answer gets": (
        ["--learner.overlong_limit", "2000", "--learner.overlong_buffer", "10"],
        "the penalty begins at 1990 tokens, and answers have between 1 and sampling.max_new_tokens = 1024",
    ),
    "a dual clip that would clip everything": (
        ["--learner.dual_clip", "0.5"],
        "dual_clip = 0.5 must be above 1, or 0 for no bound",
    ),
    "a constant length that nothing divides by": (
        ["--learner.aggregation_length", "100"],
        "learner.aggregation_length = 100 has no effect with learner.aggregation = 'token': choose",
    ),
    "a weight of compliance that nothing is weighed by": (
        ["--learner.compliance_weight", "0.5"],
        "learner.compliance_weight = 0.5 has no effect with learner.advantage = 'gated'",
    ),
    "a kind of deviation by which nothing is divided": (
        ["--learner.advantage_std", "false", "--learner.std_ddof", "0"],
        "learner.std_ddof = 0 has no effect with learner.advantage_std = false",
    ),
    "a penalty without a limit": (
        ["--learner.overlong_penalty", "0.5"],
        "learner.overlong_penalty = 0.5 has no effect with learner.overlong_limit = 0",
    ),
    "a dual clip of GSPO": (
        ["--learner.loss", "gspo", "--learner.dual_clip", "10"],
        "learner.dual_clip = 10.0 has no effect with learner.loss = 'gspo'",
    ),
    "a form of no KL": (
        ["--learner.kl", "0", "--learner.kl_form", "k1"],
        "learner.kl_form = 'k1' has no effect with no KL penalty",
    ),
    "a weighted KL that there is not": (
        ["--learner.stages", "[{until = 0.5}, {}]", "--learner.kl_importance", "true"],
        "learner.kl_importance = True has no effect with no KL penalty",
    ),
    "a mask where there is no weight": (
        [*_MASK, "--learner.proximal", "behaviour"],
        "learner.importance = 'mask' has no effect with learner.proximal = 'behaviour'",
    ),
    "layers without checkpointing": (
        ["--learner.checkpointed_layers", "0.5"],
        "learner.checkpointed_layers = 0.5 has no effect with learner.activation_checkpointing = false",
    ),
    "a KL beside stages that have none": (
        ["--learner.kl", "0.001", "--learner.stages", "[{until = 0.5, kl = 0.001}, {}]"],
        "learner.kl = 0.001 has no effect with learner.stages: stage 2 names no kl, so its KL has the weight 0",
    ),
    "a KL that the stages have another of": (
        ["--learner.kl", "0.01", "--learner.stages", "[{until = 0.5, kl = 0.1}, {kl = 0.0}]"],
        "learner.kl = 0.01 has no effect with learner.stages, whose kl is 0.1, 0",
    ),
    "a compliance that the public router does not weigh": (
        ["--router.credit", "reference", "--router.compliance_weight", "0.5"],
        "compliance_weight has no effect with credit = 'reference'",
    ),
    "a question's language that the public router does not see": (
        ["--router.credit", "reference", "--router.question_language", "false"],
        "question_language has no effect with credit = 'reference'",
    ),
    "a warm-up as long as the run": (
        ["--learner.steps", "25", "--learner.warmup_steps", "25"],
        "learner.warmup_steps = 25 must be below the 25 steps of the run",
    ),
    "parts that are missing": (
        ["--learner.advantage", "decoupled"],
        "learner.advantage = 'decoupled' needs learner.decoupled_parts",
    ),
    "parts without effect": (
        ["--learner.decoupled_parts", "{quality = 1.0}"],
        "learner.decoupled_parts has no effect with learner.advantage = 'gated'",
    ),
    "a part that the reward has not": (
        [*_DECOUPLED, "{similarity = 1.0, speling = 1.0}"],
        "learner.decoupled_parts: the reward has no speling; it has similarity",
    ),
    "a wait that ends before a call may": (
        ["--learner.group_timeout_s", "600"],
        "learner.group_timeout_s = 600 must be above actor.request_timeout_s = 600",
    ),
    "a refill that comes too late": (
        ["--learner.refill", "8", "--learner.step_reward", "f.py:f"],
        "learner.refill = 8 cannot be used with learner.step_reward",
    ),
    "a refill without a use": (
        ["--learner.refill", "8", "--learner.drop_zero_variance", "false"],
        "learner.refill = 8 needs learner.drop_zero_variance = true",
    ),
    "a policy that chooses where the prompt tells it": (
        ["--router.mode", "policy"],
        "router.mode = 'policy' needs model.prompt_style = 'select'",
    ),
    "answers in languages that no prompt asks for": (
        ["--model.prompt_style", "plain"],
        "model.prompt_style = 'plain' does not say in which language an answer is to be, and router.mode = 'learned'",
    ),
    "words of one's own that name no language": (
        ["--model.prompt_style", "system", "--model.instructions.default", "Think first."],
        "write {language} or {native} where the language is to be named",
    ),
    "words of one's own that nobody reads": (
        ["--model.instructions.de", "Auf Deutsch!"],
        "model.instructions has no effect with model.prompt_style = 'tag'",
    ),
    "a language with two instructions": (
        ["--model.prompt_style", "system", "--model.instructions", '{de = "a", German = "b"}'],
        "'German' is 'de', which has an instruction already",
    ),
    "an instruction that says nothing": (
        ["--model.prompt_style", "system", "--model.instructions.de", " "],
        "that of 'de' is empty",
    ),
    "a policy that chooses and has no header": (
        ["--router.mode", "policy", "--model.prompt_style", "plain"],
        "'plain' has no header that names it",
    ),
    "nodes that cannot find each other": (["--learner.nodes", "2"], "learner.nodes = 2 needs run.rendezvous"),
    "a language under two names": (
        ["--run.languages", '["en", "German", "English"]'],
        "languages: 'en' stands there twice",
    ),
    "an unseen language twice": (
        ["--learner.evaluate_unseen", '["zh", "Chinese"]'],
        "learner.evaluate_unseen has the language 'zh' 2 times",
    ),
    "an unseen language that is seen": (
        ["--run.languages", '["en", "zh"]', "--learner.evaluate_unseen", '["Chinese"]'],
        "learner.evaluate_unseen = ['zh']: these are in run.languages",
    ),
    "a strategy without its language": (
        ["--run.languages", '["zh"]', "--router.mode", "english_dominant"],
        "router.mode = 'english_dominant' answers in 'en': add it to run.languages",
    ),
    "a fixed language that is none of the run": (
        ["--run.languages", '["zh"]', "--router.mode", "fixed", "--router.fixed_language", "German"],
        "router.mode = 'fixed' answers in 'de': add it to run.languages",
    ),
    "a fixed strategy without its language": (
        ["--router.mode", "fixed"],
        "mode = 'fixed' needs fixed_language, and no other mode has one",
    ),
    "initial values of an unknown language": (
        ["--router.initial", '{"topic:Chat" = {fr = 1.0}}'],
        "router.initial: the row 'topic:Chat' has fr, which",
    ),
    "a learner's address without a port": (
        ["--learner.address", "tcp://127.0.0.1"],
        "learner.address = 'tcp://127.0.0.1' is not of the form tcp://HOST:PORT",
    ),
    "a reward address that is none": (
        ["--reward.addresses", '["tcp://127.0.0.1:5701", "localhost:5702"]'],
        "reward.addresses = 'localhost:5702' is not of the form",
    ),
    "one address for two services": (
        ["--reward.addresses", '["tcp://127.0.0.1:5700"]'],
        "learner.address and reward.addresses: tcp://127.0.0.1:5700 is given to 2 services",
    ),
    "one address for two replicas": (
        ["--reward.addresses", '["ipc://r", "ipc://r"]'],
        "reward.addresses: ipc://r is given to 2 services",
    ),
    "a meeting point that is none": (
        ["--learner.torchrun", "host"],
        "learner.torchrun = 'host' is not of the form HOST:PORT",
    ),
    "an engine's address that is none": (
        ["--actor.engine_url", "127.0.0.1:30000"],
        "actor.engine_url = '127.0.0.1:30000' is not of the form http://",
    ),
    "an adapter of q without one of v": (
        ["--lora.rank", "4", "--lora.targets", '["q_proj", "o_proj"]'],
        "lora.targets = ['o_proj', 'q_proj']: SGLang loads adapters of q_proj, k_proj and v_proj only if",
    ),
    "an adapter of up without one of gate": (
        ["--lora.rank", "4", "--lora.targets", '["up_proj", "down_proj"]'],
        "lora.targets = ['down_proj', 'up_proj']: SGLang loads adapters of up_proj only with those of gate_proj",
    ),
    "an adapter twice": (["--lora.targets", '["o_proj", "o_proj"]'], "lora.targets has 'o_proj' 2 times"),
    "adapters of no rank": (
        ["--lora.alpha", "64"],
        "lora.alpha = 64.0 has no effect without lora.rank, whose default 0 trains all weights: set lora.rank",
    ),
    "adapters for copies": (
        ["--lora.rank", "4", "--actor.engine_args.dp_size", "2"],
        "actor.engine_args.dp_size = 2: SGLang loads adapters into one data-parallel copy only",
    ),
    "an optimizer of adapters in host memory": (
        ["--lora.rank", "4", "--learner.optimizer_on_cpu", "true"],
        "learner.optimizer_on_cpu = true has no use with lora.rank = 4",
    ),
    "an optimizer in host memory and in 8 bits": (
        ["--learner.optimizer", "adamw_8bit", "--learner.optimizer_on_cpu", "true"],
        "learner.optimizer = 'adamw_8bit' cannot be used with learner.optimizer_on_cpu = true",
    ),
    "dropout between optimizer steps": (
        ["--lora.rank", "4", "--lora.dropout", "0.1", "--learner.minibatches", "2"],
        "lora.dropout = 0.1 needs learner.minibatches = 1 and learner.passes = 1, not 2 and 1",
    ),
    "adapters of the engine's own": (
        ["--actor.engine_args.max_lora_rank", "64"],
        "actor.engine_args.max_lora_rank is set by the actor itself: use lora.rank",
    ),
    "an engine beyond loopback": (
        ["--actor.engine_args.host", "0.0.0.0"],
        "actor.engine_args.host is set by the actor itself: an engine has no",
    ),
    "another model for the engine": (
        ["--actor.engine_args.model_path", "m"],
        "actor.engine_args.model_path is set by the actor itself: use model.path",
    ),
    "an engine in stages": (
        ["--actor.engine_args.pp_size", "2"],
        "actor.engine_args.pp_size = 2: weight updates cannot reach the ranks of pipeline parallelism",
    ),
    "copies of an engine": (["--actor.engine_args.dp", "2"], "cannot reach the ranks of data parallelism; use tp"),
    "no GPU": (["--actor.engine_args.tp", "0"], "actor.engine_args.tp = 0: GPUs of an engine, a whole number of at"),
    "GPUs in letters": (["--actor.engine_args.tp", "two"], "actor.engine_args.tp = 'two': GPUs of an engine"),
    "a truth value for GPUs": (["--actor.engine_args.tp", "true"], "actor.engine_args.tp = True: GPUs of an engine"),
    "half a GPU": (["--actor.engine_args.tp", "1.5"], "actor.engine_args.tp = 1.5: GPUs of an engine"),
    "a cache in letters": (["--actor.engine_args.max-total-tokens", "all"], "max-total-tokens = 'all': tokens in its"),
    "a context in letters": (["--actor.engine_args.context_length", "8k"], "context_length = '8k': tokens of a text"),
    "more than the GPU": (["--actor.engine_args.mem_fraction_static", "80"], "mem_fraction_static = 80: a share of"),
    "a user of ssh in an address": (["--learner.address", "tcp://me@alpha:5700"], "5700' names a user, which is for"),
    "a user of ssh at torchrun": (
        ["--learner.torchrun", "me@alpha:29400"],
        "learner.torchrun = 'me@alpha:29400' names",
    ),
    "a user of ssh at the store": (["--sync.host", "me@alpha"], "sync.host = 'me@alpha' names a user"),
    "a width that is not seen": (["--actor.engine_args.tp_size", "2"], "actor.engine_args.tp_size: write it as tp"),
    "copies of unequal size": (
        ["--learner.ranks", "4", "--learner.replicas", "3"],
        "learner.replicas = 3 does not divide the 4 ranks",
    ),
    "a lease as short as a heartbeat": (
        ["--learner.lease_timeout_s", "5.9"],
        "learner.lease_timeout_s = 5.9 must be at least 6: actors send a heartbeat",
    ),
    "sequences that do not fit": (["--learner.microbatch_tokens", "1535"], _MICROBATCH),
    "a cap below one": (["--learner.importance_cap", "0.9"], "learner.importance_cap = 0.9 is below 1, the weight of"),
    "a floor above one": ([*_MASK, "--learner.importance_floor", "1.1"], "learner.importance_floor = 1.1 is above 1"),
    "a floor above the cap": (
        [*_MASK, "--learner.importance_floor", "3"],
        "learner.importance_floor = 3 exceeds importance_cap = 2",
    ),
    "evaluations now and then, but none": (
        ["--learner.evaluate", "false", "--learner.evaluate_every", "5"],
        "learner.evaluate_every = 5 has no effect with learner.evaluate = false",
    ),
    "an evaluation before the first step, but none": (
        ["--learner.evaluate", "false", "--learner.evaluate_before", "false"],
        "learner.evaluate_before = False has no effect with learner.evaluate = false",
    ),
    "a place for no reference": (
        ["--learner.kl", "0", "--learner.reference_on_cpu", "true"],
        "learner.reference_on_cpu = True has no effect with no KL penalty",
    ),
    "a place for the reference of adapters": (
        ["--lora.rank", "8", "--learner.reference_on_cpu", "true"],
        "learner.reference_on_cpu = true has no effect with lora.rank = 8",
    ),
    "a choice of what decays, where nothing does": (
        ["--learner.weight_decay_on", "all"],
        "learner.weight_decay_on = 'all' has no effect with learner.weight_decay = 0",
    ),
    "a new reference of no KL": (
        ["--learner.stages", "[{until = 0.5, kl = 0.1}, {reset_anchor = true}]"],
        "learner.stages: reset_anchor = true of stage 2 has no effect with kl = 0 there and in later stages",
    ),
    "samples of no evaluation": (
        ["--learner.evaluate", "false", "--learner.evaluate_samples", "2", "--model.prompt_style", "select"],
        "learner.evaluate_samples = 2 has no effect with learner.evaluate = false",
    ),
    "unseen languages of no sample": (
        ["--learner.evaluate_unseen", '["zh"]'],
        "learner.evaluate_unseen has no effect with learner.evaluate_samples = 0",
    ),
    "no end": (["--learner.steps", "0"], "learner.steps = 0 and learner.epochs = 0: give at least one"),
    "a stage without a step": (
        ["--learner.steps", "10", "--learner.stages", "[{until = 0.31}, {until = 0.39}, {}]"],
        "stage 2 (until = 0.39) would have none of the 10 steps: it ends, as the one before it, after step 4",
    ),
    "a mode without its statistics": (
        ["--reward.calibration_mode", "mean"],
        "reward.calibration_mode = 'mean' needs reward.calibration",
    ),
    "a queue too short for a group": (
        ["--reward.queue_texts", "8"],
        "reward.queue_texts = 8 is less than the 8 answers",
    ),
    "held-out questions that are trained": (
        ["--data.train", "data/a.parquet", "--data.heldout", "./data/a.parquet"],
        "is what data.train is, too",
    ),
    "a curriculum that cannot tell what is right": (
        ["--data.curriculum", "0.5", "--reward.function", "f.py:f", "--reward.parts", "{lc = 1.0, wins = 1.0}"],
        "data.curriculum = 0.5 needs to know which answers are right, and of reward.parts = lc, wins none says so",
    ),
    "a curriculum by similarity": (
        ["--data.curriculum", "0.5"],
        "data.curriculum = 0.5 needs to know which answers are right, and of reward.terms.default = similarity none",
    ),
    "a curriculum that knows of one topic": (
        ["--data.curriculum", "0.5", "--reward.terms", "{default = {exact = 1.0}, Chat = {judge = 1.0}}"],
        "of reward.terms.Chat = judge none says so: add a term that does",
    ),
    "a curriculum by a part that may be anything": (
        ["--data.curriculum", "0.5", "--reward.function", "f.py:f", "--reward.parts", "{agreement = 1.0}"],
        "of reward.parts = agreement none says so: name one of them 'accuracy'",
    ),
    "success without knowing what is right": (
        ["--learner.stages", "[{until = 0.5}, {success = 0.5}]"],
        "learner.stages: success = 0.5 in stage 2 needs to know which answers are right, and of reward.terms.default",
    ),
    "a key to accept that is none": (
        ["--resume.accept", "learner.lrr"],
        "resume.accept: there is no setting 'learner.lrr'",
    ),
    "skipped steps to accept without the step": (
        ["--resume.accept", "skipped-until-"],
        "resume.accept: there is no setting 'skipped-until-'",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(name: str) -> None:
    flags, complaint = REFUSED[name]
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(flags)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(ConfigError) as error:
        load([word for name in ("copies of unequal size", "a cap below one", "no end") for word in REFUSED[name][0]])
    lines = str(error.value).splitlines()
    assert len(lines) == 3 and lines[0].startswith("configuration: learner.replicas")
    assert lines[1].startswith("  learner.importance_cap") and lines[2].startswith("  learner.steps")


@pytest.mark.parametrize(
    "flags",
    [
        ["--learner.microbatch_tokens", "1536"],
        ["--learner.lease_timeout_s", "6"],
        [*_MASK, "--learner.importance_floor", "1", "--learner.importance_cap", "1"],
        ["--learner.importance_floor", "3"],  # for "mask" alone
        ["--learner.importance", "none", "--learner.importance_cap", "0.5"],  # not looked at
        ["--learner.importance", "none", "--learner.proximal", "behaviour"],  # there is none, as it says
        ["--learner.loss", "gspo", "--learner.dual_clip", "0"],
        ["--learner.overlong_penalty", "1.0", "--learner.kl", "0", "--learner.kl_form", "k3"],  # as a recipe has it
        ["--learner.kl", "0.05", "--learner.stages", "[{until = 0.5, kl = 0.05}, {kl = 0.1}]"],  # of the file before
        ["--learner.kl", "0", "--learner.stages", "[{until = 0.5, kl = 0.05}, {}]"],
        ["--router.credit", "pooled", "--router.question_language", "false", "--router.prior", "2"],
        ["--learner.steps", "26", "--learner.warmup_steps", "25"],
        ["--learner.ranks", "2", "--learner.nodes", "3", "--learner.replicas", "6", "--run.rendezvous", "r"],
        [
            "--learner.address",
            "tcp://localhost:5700",
            "--reward.addresses",
            '["ipc://a", "tcp://*:5701", "tcp://*:5701"]',
        ],
        ["--learner.steps", "10", "--learner.stages", "[{until = 0.3}, {until = 0.4}, {}]"],
        ["--reward.calibration", "pairs.csv", "--reward.calibration_mode", "raw"],  # an ablation
        ["--learner.epochs", "2", "--learner.stages", "[{until = 0.001}, {}]"],  # the number of steps is not known yet
        ["--resume.accept", "learner.lr, router,router.initial"],
        ["--resume.accept", "config.json,skipped-until-500"],
        ["--data.curriculum", "0.5", "--reward.function", "f.py:f", "--reward.parts", "{acc = 1.0, wins = 1.0}"],
        ["--data.curriculum", "0.5", "--reward.terms", "{default = {similarity = 1.0, contains = 0.001}}"],
        ["--data.curriculum", "0.5", "--data.curriculum_right", "0.5"],
        ["--learner.stages", "[{success = 0.5}]", "--reward.terms.default.math", "1"],
        [
            "--data.curriculum",
            "0.5",
            "--reward.function",
            "f.py:f",
            "--reward.parts",
            "{lc = 1.0, wins = 1.0}",
            "--data.curriculum_right",
            "1.5",
        ],
    ],
)
def test_what_is_at_the_edge_is_accepted(flags: list[str]) -> None:
    load(flags)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("tcp://127.0.0.1:5700", True), ("tcp://*:1", True), ("tcp://host.example:65535", True),
        ("tcp://[::1]:80", False), ("tcp://[::]:80", False), ("tcp://[::1:80", False),
        ("ipc:///tmp/queue", True), ("ipc://", False), ("tcp://host:0", False),
        ("tcp://host:65536", False), ("tcp://host:port", False), ("tcp://:5700", False), ("http://host:80", False),
        ("", False), ("tcp:/host:1", False), ("tcp://host:1/path", False),
    ],
)  # fmt: skip
def test_addresses(address: str, good: bool) -> None:
    assert is_address(address) is good


@pytest.mark.parametrize(
    "flags",
    [
        ["--learner.address", "tcp://[2001:db8::7]:5700"], ["--reward.addresses", '["tcp://[::1]:5701"]'],
        ["--learner.torchrun", "[::1]:29500"], ["--sync.host", "2001:db8::7"],
    ],
)  # fmt: skip
def test_ipv6_is_refused_by_its_name(flags: list[str]) -> None:
    """ZeroMQ would say that the argument is invalid, and the process groups that the address family is wrong."""
    found = re.escape(f"{flags[0][2:]} = ") + ".*is an IPv6 address, and lrpo speaks IPv4"
    with pytest.raises(ConfigError, match=found):
        load(flags)


def test_a_calibration_is_by_the_mean_unless_it_is_said_otherwise() -> None:
    assert load([]).reward.calibration_mode == "raw"
    assert load(["--reward.calibration", "pairs.csv"]).reward.calibration_mode == "mean"
    again = load(["--reward.calibration", "pairs.csv", "--reward.calibration_mode", "raw"])
    assert Config.model_validate_json(again.model_dump_json()) == again


@given(hundredths=st.integers(1, 99), steps=st.integers(1, 10_000))
def test_a_stage_ends_after_the_step_that_was_written(hundredths: int, steps: int) -> None:
    """Against integers: in floating point, 0.07 of 100 steps is 7.000000000000001."""
    end = -(-hundredths * steps // 100)
    flags = ["--learner.steps", str(steps), "--learner.stages", f"[{{until = 0.{hundredths:02}}}, {{}}]"]
    if end == steps:  # nothing is left for the second stage
        with pytest.raises(ConfigError, match=r"stage 2 \(until = 1\) would have none of"):
            load(flags)
        return
    learner = load(flags).learner
    assert learner.stage_ends() == [end, steps]
    assert learner.stage(end - 1) is learner.stages[0] and learner.stage(end) is learner.stages[1]
    assert learner.stage(steps - 1) is learner.stages[1] and learner.stage(steps) is None


def test_a_configuration_that_a_run_wrote_is_read_again() -> None:
    """It gives every setting, also those that its user left alone and that have no effect."""
    for flags in (
        ["--learner.stages", "[{until = 0.5, kl = 0.1}, {}]"],
        ["--learner.loss", "cispo", "--learner.kl", "0"],
        ["--router.credit", "reference"],
        ["--data.curriculum", "0.5", "--data.curriculum_right", "0.5"],
    ):
        config = load(flags)
        assert Config.model_validate_json(config.model_dump_json()) == config
    written = load([]).model_dump(mode="json")
    written["learner"] |= {"dual_clip": 10.0, "loss": "gspo"}
    assert Config.model_validate(written).learner.dual_clip == 10, "of a run that was begun before it was refused"


def test_a_warm_up_is_compared_with_the_steps_that_the_questions_make() -> None:
    flags = ["--learner.epochs", "10", "--learner.steps", "500", "--learner.groups_per_step", "512"]
    config = load([*flags, "--learner.warmup_steps", "25"])
    assert config.with_questions(100_000).learner.steps == 500
    with pytest.raises(ConfigError, match=r"learner\.warmup_steps = 25 must be below the 19 steps of the run"):
        config.with_questions(1_000)


def test_steps_and_epochs_the_smaller_rules() -> None:
    def steps(*flags: str) -> int:
        return load(["--learner.groups_per_step", "256", *flags]).with_questions(4_300).learner.steps

    assert steps() == 64
    assert steps("--learner.epochs", "4") == 67  # 17,200 questions make 67.19 steps
    assert steps("--learner.epochs", "4", "--learner.steps", "64") == 64
    assert steps("--learner.epochs", "0.5", "--learner.steps", "64") == 8
    assert load(["--learner.epochs", "0.07", "--learner.groups_per_step", "1"]).with_questions(100).learner.steps == 7
    with pytest.raises(ConfigError, match=r"learner\.epochs = 1 of 40 questions are less than one step of"):
        load(["--learner.epochs", "1"]).with_questions(40)
    with pytest.raises(ConfigError, match=r"stage 2 \(until = 1\) would have none of the 1 steps"):
        load(["--learner.epochs", "1", "--learner.groups_per_step", "10", "--learner.stages", "[{until=0.2}, {}]"]
             ).with_questions(10)  # fmt: skip
