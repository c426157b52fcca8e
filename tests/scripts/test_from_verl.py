"""Launch scripts of verl become configurations, and what they cannot carry is named."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from common.config import Config, load
from common.process import FatalError
from scripts.ops.from_verl import convert, main
from scripts.ops.verl_options import OPTIONS, Unneeded, markdown_table
from scripts.ops.verl_script import read_script

ROOT = Path(__file__).parents[2]
# The options of LRPO's public launch script, with their values.
LRPO = r"""
set -x
export DATA=/data/lrpo
MODEL=${BASE_MODEL:-models/warm}  # comment

python3 -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo \
    data.train_files=$DATA/train.parquet data.val_files=${DATA}/test.parquet \
    data.train_batch_size=2048 data.max_prompt_length=512 data.max_response_length=1024 \
    data.filter_overlong_prompts=True data.truncation='error' \
    +data.dynamic_lang_policy=True \
    \
    +data.lang_policy_alpha=0.1 +data.lang_policy_update_every=5 \
    +data.lang_policy_temperature=1.0 +data.lang_policy_temperature_init=1.0 \
    +data.lang_policy_temperature_min=0.3 +data.lang_policy_temperature_decay=0.999 \
    +data.lang_policy_epsilon_init=0.2 +data.lang_policy_epsilon_min=0 +data.lang_policy_epsilon_decay=0.995 \
    +data.lang_policy_orig_lang_min=2 +data.lang_policy_group_norm=zscore \
    +data.lang_policy_log_every=1 +data.lang_policy_log_max_keys=100 +data.lang_policy_log_path=/logs/lang.jsonl \
    actor_rollout_ref.model.path=$MODEL \
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.model.use_remove_padding=True \
    actor_rollout_ref.actor.ppo_mini_batch_size=256 actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=4 \
    actor_rollout_ref.actor.use_kl_loss=True actor_rollout_ref.actor.kl_loss_coef=0.001 \
    actor_rollout_ref.actor.kl_loss_type=low_var_kl actor_rollout_ref.actor.entropy_coeff=0 \
    actor_rollout_ref.model.enable_gradient_checkpointing=True \
    actor_rollout_ref.actor.fsdp_config.param_offload=False \
    actor_rollout_ref.actor.fsdp_config.optimizer_offload=False \
    actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=40 \
    actor_rollout_ref.rollout.tensor_model_parallel_size=2 actor_rollout_ref.rollout.name=vllm \
    actor_rollout_ref.rollout.gpu_memory_utilization=0.7 \
    actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.val_kwargs.n=1 \
    actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=40 \
    actor_rollout_ref.ref.fsdp_config.param_offload=True \
    algorithm.use_kl_in_reward=False trainer.log_val_generations=100 trainer.critic_warmup=0 \
    trainer.logger=['console','wandb'] trainer.project_name='verl_grpo' trainer.experiment_name='LRPO' \
    trainer.n_gpus_per_node=8 trainer.nnodes=1 trainer.save_freq=10 trainer.test_freq=5 \
    custom_reward_function.path="/lrpo/verl/utils/reward_score/calibrated_rs.py" \
    custom_reward_function.name=compute_score_batch reward_model.reward_manager=batch \
    trainer.total_epochs=4 $@ 2>&1 | tee log.txt
"""
HERE = {"run.dir", "data.train", "data.heldout", "model.path", "actor.engine_args", "learner.reference_on_cpu"}


def written(tmp_path: Path, script: str) -> Config:
    """The configuration of a script, through the command and its file."""
    (tmp_path / "run.sh").write_text(script)
    main([str(tmp_path / "run.sh"), "--out", str(tmp_path / "run.toml")])
    return load([str(tmp_path / "run.toml")])


def flat(config: Config) -> dict[str, object]:
    return {f"{s}.{key}": value for s, table in config.model_dump().items() for key, value in table.items()}


def test_the_public_script_is_our_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = load([str(ROOT / "configs" / "recipes" / "lrpo-paper.toml")])
    found, wanted = flat(written(tmp_path, LRPO)), flat(recipe)
    differ = {key for key, value in wanted.items() if found[key] != value} - HERE
    assert differ == {"learner.ranks", "learner.steps"}  # of the machine, and of the number of questions
    assert found["data.train"] == "/data/lrpo/train.parquet" and found["model.path"] == "models/warm"
    assert found["actor.engine_args"] == {"tp": 2} and found["run.dir"] == Path("runs/LRPO")
    told = capsys.readouterr()
    left = told.err.splitlines()
    assert [line.split(":")[1].strip() for line in left] == [
        "trainer.total_epochs", "data.val_files", "custom_reward_function.path",
    ]  # fmt: skip
    assert "at most learner.evaluate_questions = 64, evenly spread" in left[1]
    text = (tmp_path / "run.toml").read_text()
    assert all(line.removeprefix("not carried: ") in text for line in left)
    assert "ema = 0.1 # data.lang_policy_alpha" in text and "betas = [0.9, 0.999] # actor_rollout_ref" in text


@pytest.mark.parametrize(
    ("before", "every", "wanted"),
    [("True", "-1", (True, True, 0)), ("False", "5", (True, False, 5)), ("False", "-1", (False, True, 0))],
)
def test_verl_evaluates_before_or_never(
    before: str, every: str, wanted: tuple[bool, bool, int], tmp_path: Path
) -> None:
    script = LRPO.replace("trainer.test_freq=5", f"trainer.test_freq={every} trainer.val_before_train={before}")
    learner = written(tmp_path, script).learner
    assert (learner.evaluate, learner.evaluate_before, learner.evaluate_every) == wanted


def test_plain_verl_counts_questions_and_has_no_router(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = """python -m verl.trainer.main_ppo algorithm.adv_estimator=grpo data.train_batch_size=512 \\
        actor_rollout_ref.rollout.n=16 actor_rollout_ref.actor.ppo_mini_batch_size=128 \\
        data.max_response_length=20480 actor_rollout_ref.actor.clip_ratio_high=0.28 \\
        actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum trainer.total_training_steps=100 \\
        actor_rollout_ref.rollout.top_p=0.9 'data.train_files=["a.parquet","b.parquet"]' some.new.option=3"""
    config = written(tmp_path, script)
    assert (config.learner.groups_per_step, config.router.rollouts, config.router.mode) == (512, 16, "monolingual")
    assert (config.learner.kl, config.learner.clip_high, config.learner.microbatch_tokens) == (0, 0.28, 20992)
    assert config.with_questions(10**6).learner.steps == 100 and config.data.train == "a.parquet"
    assert (config.learner.minibatches, config.learner.aggregation, config.learner.aggregation_length) == (
        4,
        "constant",
        1,
    )
    assert config.model.prompt_style == "plain", "prompts as the rows have them"
    left = capsys.readouterr().err
    for complaint in (
        "actor_rollout_ref.rollout.top_p = 0.9: the whole distribution is sampled",
        "data.train is one file or one folder, so b.parquet is left out: put all of them into one folder",
        "some.new.option = 3: this option is not known here",
        "verl chooses a rule by data_source", "run.languages: verl has no such list",
        'data.language: rows of verl, as those of GSM8K and MATH, name no language', "prompts go as they are",
    ):  # fmt: skip
        assert complaint in left


@pytest.mark.parametrize("routed", [True, False])
def test_the_fork_counts_answers_and_tags_prompts_whether_or_not_it_routes(routed: bool, tmp_path: Path) -> None:
    """Its main_ppo.py takes MultilangRepeatDataset and GroupedBatchSampler in any case."""
    config = written(tmp_path, LRPO.replace("dynamic_lang_policy=True", f"dynamic_lang_policy={routed}"))
    assert (config.learner.groups_per_step, config.learner.minibatches) == (256, 1)
    assert config.model.prompt_style == "tag" and len(config.run.languages) == 15
    assert (config.router.mode, config.router.own_language) == (("learned", 2) if routed else ("monolingual", 0))
    bare = {"data.dynamic_lang_policy": "False", "data.train_batch_size": "64", "actor_rollout_ref.rollout.n": "8"}
    assert convert(bare).settings["learner.groups_per_step"][0] == 8


def test_paths_have_the_variables_of_the_environment_and_what_is_unknown_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/she")
    monkeypatch.delenv("NOWHERE", raising=False)
    script = tmp_path / "run.sh"
    script.write_text(
        "main_ppo data.train_files=$HOME/data/gsm8k/train.parquet data.val_files=$NOWHERE/test.parquet "
        "actor_rollout_ref.model.path=~/models/qwen actor_rollout_ref.rollout.n=8 trainer.experiment_name=run_${RANK}"
    )
    found = convert(read_script(script))
    assert found.settings["data.train"][0] == "/home/she/data/gsm8k/train.parquet"
    assert found.settings["model.path"][0] == "/home/she/models/qwen"
    unknown = [line for line in found.left if "the script does not say what" in line]
    assert unknown == [
        "data.val_files = $NOWHERE/test.parquet: the script does not say what $NOWHERE is: put it in",
        "trainer.experiment_name = run_${RANK}: the script does not say what ${RANK} is: put it in",
    ]


@pytest.mark.parametrize("given", [{}, {"DATA_DIR": "/mine", "N": "4"}, {"DATA_DIR": "", "EMPTY": ""}], ids=str)
def test_a_variable_with_a_default_is_what_the_shell_makes_of_it(
    given: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("DATA_DIR", "N", "EMPTY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    settings = 'n=${N:-16}\nroot=${DATA_DIR:-/data}\nset_here=x\nempty=""\n'
    options = {
        "data.train_files": "${DATA_DIR:-/data}/x.parquet", "data.val_files": "$root/y.parquet",
        "actor_rollout_ref.rollout.n": "$n", "a": "${EMPTY-unset}", "b": "${set_here:-y}", "c": "${empty:-of_it}",
    }  # fmt: skip
    script = tmp_path / "run.sh"
    script.write_text(f"{settings}main_ppo {' '.join(f'{name}={value}' for name, value in options.items())}")
    quoted = " ".join(f'"{value}"' for value in options.values())
    echo = f"{settings}printf '%s|' {quoted}"
    shell = subprocess.run(["bash", "-c", echo], capture_output=True, text=True, check=True).stdout
    assert "|".join(read_script(script).values()) + "|" == shell


def test_a_script_of_dapo_becomes_a_run_of_dapo(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The options of verl's recipe for DAPO, with a cosine."""
    script = """n=16
    longest=$((1024 * 20))
    python3 -m recipe.dapo.main_dapo algorithm.adv_estimator=grpo data.train_batch_size=512 data.gen_batch_size=1536 \\
        actor_rollout_ref.rollout.n=${n} actor_rollout_ref.actor.ppo_mini_batch_size=32 \\
        data.max_response_length=${longest} \\
        actor_rollout_ref.actor.clip_ratio_low=0.2 actor_rollout_ref.actor.clip_ratio_high=0.28 \\
        actor_rollout_ref.actor.clip_ratio_c=10.0 actor_rollout_ref.actor.loss_agg_mode=token-mean \\
        algorithm.filter_groups.enable=True algorithm.filter_groups.metric=acc \\
        algorithm.filter_groups.max_num_gen_batches=10 actor_rollout_ref.actor.entropy_coeff=0.001 \\
        reward_model.overlong_buffer.enable=True reward_model.overlong_buffer.len=4096 \\
        reward_model.overlong_buffer.penalty_factor=1.0 actor_rollout_ref.actor.optim.lr_scheduler_type=cosine \\
        actor_rollout_ref.actor.optim.min_lr_ratio=0.1 actor_rollout_ref.actor.optim.lr=2e-6 \\
        actor_rollout_ref.actor.optim.lr_warmup_steps_ratio=0.1 trainer.total_training_steps=200 \\
        actor_rollout_ref.actor.ppo_epochs=2 actor_rollout_ref.actor.kl_loss_type=mse \\
        actor_rollout_ref.actor.use_kl_loss=True"""
    learner = written(tmp_path, script).learner
    assert (learner.minibatches, learner.passes, learner.refill, learner.drop_zero_variance) == (16, 2, 14848, True)
    assert (learner.clip_low, learner.clip_high, learner.dual_clip, learner.entropy_bonus) == (0.2, 0.28, 10, 0.001)
    assert (learner.overlong_limit, learner.overlong_buffer, learner.overlong_penalty) == (20480, 4096, 1)
    assert learner.lr_schedule == "cosine" and learner.min_lr == pytest.approx(2e-7) and learner.warmup_steps == 20
    assert (learner.aggregation, learner.loss, learner.kl_form) == ("token", "ppo", "k2")
    assert "not known here" not in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"policy_loss.loss_mode": "gspo", "clip_ratio_low": "3e-4"}, {"loss": "gspo", "aggregation": "sequence"}),
        ({"policy_loss.loss_mode": "cispo", "clip_ratio_low": "10"}, {"loss": "cispo", "clip_low": 10.0}),
        ({"policy_loss.loss_mode": "gspo", "clip_ratio_c": "10"}, {"loss": "gspo", "dual_clip": 3.0}),
        ({"kl_loss_type": "mse"}, {"kl": 0.0, "kl_form": "k3"}),  # of a KL that is not used
        (
            {"loss_agg_mode": "seq-mean-token-sum-norm", "loss_scale_factor": "100"},
            {"aggregation": "constant", "aggregation_length": 100},
        ),
        ({"loss_agg_mode": "seq-mean-token-sum-norm"}, {"aggregation_length": 512}),
        ({"optim.warmup_style": "cosine"}, {"lr_schedule": "cosine", "min_lr": 0.0}),
    ],
)  # fmt: skip
def test_losses_of_verl_have_their_names_here(options: dict[str, str], wanted: dict[str, object]) -> None:
    given = {f"actor_rollout_ref.actor.{name}": value for name, value in options.items()}
    given |= {"data.train_batch_size": "8", "actor_rollout_ref.rollout.n": "4", "algorithm.adv_estimator": "grpo"}
    settings = convert(given).settings
    defaults = Config().learner
    for name, value in wanted.items():
        assert settings.get(f"learner.{name}", (getattr(defaults, name), ""))[0] == value, name


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"algorithm.adv_estimator": "gdpo", "algorithm.gdpo_reward_keys": "[a,b]"}, 'learner.advantage = "decoupled"'),
        ({}, "algorithm.adv_estimator = gae: advantages are those of grpo or gdpo"),
        ({"actor_rollout_ref.actor.policy_loss.loss_mode": "sapo"}, "ours are vanilla, gspo and cispo"),
        ({"actor_rollout_ref.actor.optim.lr_warmup_steps_ratio": "0.1"}, "this share of the run's steps"),
        ({"algorithm.rollout_correction.rollout_is": "sequence"}, "the importance weight is that of a token"),
    ],
)  # fmt: skip
def test_what_a_loss_cannot_carry_is_named(given: dict[str, str], complaint: str) -> None:
    left = convert({"data.train_batch_size": "8", "actor_rollout_ref.rollout.n": "4", **given}).left
    assert any(complaint in line for line in left), left


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        # A constant temperature skips the schedule of epsilon, too, and so does an epsilon that does not fall.
        ({"temperature": "0.5", "epsilon_init": "0.3"}, (0.5, 0.5, 0.0, 0.0)),
        ({"temperature_init": "1", "temperature_min": "0.5", "epsilon": "0.1"}, (1.0, 0.5, 0.1, 0.1)),
        (
            {"temperature_init": "1", "temperature_min": "0.5", "epsilon_init": "0.2", "epsilon_min": "0.1"},
            (1.0, 0.5, 0.2, 0.1),
        ),
    ],
)  # fmt: skip
def test_schedules_are_those_that_the_fork_runs(given: dict[str, str], wanted: tuple[float, ...]) -> None:
    options = {f"data.lang_policy_{name}": value for name, value in given.items()}
    settings = convert({**options, "data.train_batch_size": "8", "actor_rollout_ref.rollout.n": "4"}).settings
    names = ("temperature", "temperature_min", "exploration", "exploration_min")
    assert tuple(settings[f"router.{name}"][0] for name in names) == wanted


@pytest.mark.parametrize(
    ("script", "complaint"),
    [
        ("echo hello", "does not start verl.trainer.main_ppo"),
        ("python -m verl.trainer.main_ppo 'a=1", "No closing quotation"),
        ("main_ppo actor_rollout_ref.rollout.n=many", "actor_rollout_ref.rollout.n = 'many' cannot be read as integer"),
        ("main_ppo actor_rollout_ref.rollout.n=1", "a run that cannot work here: router.rollouts = 1"),
        ("main_ppo data.lang_policy_alpha=1 data.train_batch_size=10 actor_rollout_ref.rollout.n=8", "no multiple of"),
    ],
)  # fmt: skip
def test_mistakes_are_named(script: str, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "run.sh"
    path.write_text(script)
    with pytest.raises(FatalError) as error:
        convert(read_script(path))
    assert complaint in str(error.value)
    with pytest.raises(FatalError, match=r"cannot read .*nowhere\.sh"):
        read_script(tmp_path / "nowhere.sh")


def test_a_script_with_lora_trains_adapters() -> None:
    model, offload = "actor_rollout_ref.model", "actor_rollout_ref.actor.fsdp_config.optimizer_offload"
    full = {"actor_rollout_ref.rollout.n": "8"}
    given = {**full, f"{model}.lora_rank": "64", f"{model}.target_modules": "all-linear"}
    lora = {key: value for key, (value, _) in convert(given).settings.items() if key.startswith("lora.")}
    assert lora == {"lora.rank": 64, "lora.alpha": 16}, "verl's alpha where none is given, and not ours"
    own = convert({**given, f"{model}.lora_alpha": "32", f"{model}.target_modules": "[q_proj,v_proj]", offload: "True"})
    assert own.settings["lora.alpha"][0] == 32 and "learner.optimizer_on_cpu" not in own.settings
    assert all(any(part in line for line in own.left) for part in ("lora.targets", "stays on the GPUs"))
    assert not any(key.startswith("lora.") for key in convert(full).settings)
    for moved in ("param", "optimizer"):
        each = ("param", "optimizer")
        parts = {f"actor_rollout_ref.actor.fsdp_config.{what}_offload": str(what == moved) for what in each}
        assert convert({**full, **parts}).settings["learner.optimizer_on_cpu"][0] is True


def test_what_another_option_makes_idle_is_not_carried() -> None:
    kl = {"actor_rollout_ref.actor.use_kl_loss": "True", "actor_rollout_ref.actor.kl_loss_type": "mse"}
    given = {"actor_rollout_ref.rollout.n": "8", "actor_rollout_ref.ref.fsdp_config.param_offload": "True"}
    assert convert({**given, **kl}).settings["learner.reference_on_cpu"][0] is True
    for further, why in (
        ({}, "without a KL there is no reference"),
        ({**kl, "actor_rollout_ref.actor.kl_loss_coef": "0"}, "without a KL there is no reference"),
        ({**kl, "actor_rollout_ref.model.lora_rank": "8"}, "that of adapters is the model without them"),
    ):
        found = convert({**given, **further})
        assert "learner.reference_on_cpu" not in found.settings and any(why in line for line in found.left)
    undecayed = convert({**given, **kl, "actor_rollout_ref.actor.optim.weight_decay": "0"}).settings
    assert "learner.weight_decay_on" not in undecayed


def test_arrays_and_arithmetic_of_a_script_are_read(tmp_path: Path) -> None:
    """As current scripts of verl are written."""
    (tmp_path / "run.sh").write_text("""
    longest=${LONGEST:-2048}
    DATA=(
        data.max_response_length=$((longest * 2))  # a comment
        data.train_files="['a.parquet', 'b.parquet']"
    )
    ACTOR=(
        actor_rollout_ref.actor.optim.lr=${LR:-3e-6}
    )
    LAUNCH=(python3)
    "${LAUNCH[@]}" -m verl.trainer.main_ppo "${DATA[@]}" \\
        "${ACTOR[@]}" data.max_prompt_length=$(( (longest + 1) / 2 )) "${UNKNOWN[@]}" "$@"
    """)
    assert read_script(tmp_path / "run.sh") == {
        "data.max_response_length": "4096", "data.train_files": "['a.parquet', 'b.parquet']",
        "actor_rollout_ref.actor.optim.lr": "3e-6", "data.max_prompt_length": "1024",
    }  # fmt: skip


def test_every_option_is_in_the_documents_and_every_setting_exists() -> None:
    assert markdown_table() in (ROOT / "docs" / "papers.md").read_text()
    known = flat(Config())
    for name, option in OPTIONS.items():
        ours = "" if isinstance(option, Unneeded) else getattr(option, "ours", "")
        assert not ours or ours.removesuffix(".tp") in known, f"{name}: there is no setting {ours}"
