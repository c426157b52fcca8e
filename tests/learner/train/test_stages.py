"""Stage rewards (ExpLang), where the policy chooses its language: headers, rewards, the reference, hybrid routing."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common import config as configuration
from common.config import ConfigError, ModelConfig, RewardConfig, StageConfig, load
from common.header import Header
from common.languages import POLICY_CHOOSES
from common.process import FatalError
from common.prompts import PROMPT_STYLES
from common.tokenizer import load_tokenizer
from learner.checkpoint import Checkpoints
from learner.groups import Group
from learner.loop.observations import router_observations
from learner.report.choice_metrics import choice_metrics
from learner.report.report import Report
from learner.report.trackers.tensorboard_tracker import LINE_RUNS
from learner.train import stages
from learner.train.outcomes import group_outcome
from learner.train.policy import full_weights
from learner.train.samples import group_samples
from learner.train.trainer import Trainer
from learner.work.chosen import work_as_answered
from learner.work.ledger import Ledger
from reward.scorer import Scorer
from router import Observation, Router
from router.observations import Context
from scripts.bench.support.reports import random_step
from scripts.bench.support.scoring import SENTENCES, request
from tests.support.groups import LANGUAGES, question, random_rollout, work
from tests.support.train_once import configuration as train_configuration
from tests.support.train_once import random_batch, run_ranks

HEADER = Header(ModelConfig().header, LANGUAGES)


@pytest.mark.parametrize(
    ("text", "language", "well_formed", "rest"),
    [
        ("<lang_select>\nzh\n</lang_select>\n<think>好", "zh", True, "\n<think>好"),
        ("  <lang_select>\nzh\n</lang_select><think>", "zh", False, "<think>"),
        ("<LANG_SELECT> ZH </lang_Select>\nx", "zh", False, "\nx"),
        ("<lang_select>German</lang_select>x", "de", False, "x"),
        ("<lang_select>\nde\n<think>x</think>", "de", False, "\n<think>x</think>"),
        ("<lang_select>\nfr\n</lang_select>\nx", "", False, "\nx"),  # not of the run
        ("<lang_select>\nklingon\n</lang_select>\nx", "", False, "\nx"),
        ("<lang_select>\n</lang_select>\nx", "", False, "<lang_select>\n</lang_select>\nx"),
        ("I think <lang_select>\nzh\n</lang_select>", "", False, "I think <lang_select>\nzh\n</lang_select>"),
        ("", "", False, ""),
    ],
)
def test_headers_are_read_tolerantly(text: str, language: str, well_formed: bool, rest: str) -> None:
    choice = HEADER.parse(text)
    assert (choice.language, choice.well_formed, text[choice.end :]) == (language, well_formed, rest)


tags = st.text(st.characters(codec="utf-8", exclude_characters="{}"), min_size=1, max_size=12)


@given(tags, tags, st.sampled_from(LANGUAGES), st.text(max_size=30))
def test_any_template_reads_what_it_writes(before: str, after: str, language: str, rest: str) -> None:
    template = f"<{before}>\n{{code}}\n</{after}>\n"
    assert ModelConfig(header=template).header == template
    choice = Header(template, LANGUAGES).parse(Header(template, LANGUAGES).text(language) + rest)
    assert (choice.language, choice.well_formed) == (language, True)
    assert choice.end <= len(template) - len("{code}") + len(language)


def test_configurations_that_cannot_work_are_refused() -> None:
    for arguments, complaint in (
        (["--router.mode", "policy"], "needs model.prompt_style = 'select'"),
        (["--router.mode", "hybrid", "--router.free_rollouts", "9"], "free_rollouts = 9 exceeds rollouts = 8"),
        (["--learner.evaluate_samples", "2"], "needs model.prompt_style = 'select'"),
        (["--model.header", "<l>{code}"], "must have text"),
        (["--learner.stages", "[{until = 0.5}]"], "must increase from above 0 to 1"),
        (["--learner.stages", "[{}]", "--learner.advantage", "split"], "advantage must be 'gated'"),
    ):
        with pytest.raises(ConfigError, match=complaint):
            load(arguments)
    learner = load(["--learner.stages", "[{until = 0.3}, {kl = 0.5}]", "--learner.steps", "10"]).learner
    assert [learner.stage(step).kl for step in range(10)] == [0.0] * 3 + [0.5] * 7  # type: ignore[union-attr]


def test_prompts_leave_the_language_open_or_begin_the_answer_with_it(tiny_policy: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_policy))
    config = load(["--model.prompt_style", "select", "--run.languages", '["en", "zh"]'])
    free, forced = (PROMPT_STYLES["select"](tokenizer, config)(question(), language) for language in ("", "zh"))
    assert str(tokenizer.decode(free)).endswith("What is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert forced[: len(free)] == free and tokenizer.decode(forced[len(free) :]) == config.model.header.format(
        code="zh"
    )


def test_a_chosen_language_is_scored_as_if_it_had_been_asked_for() -> None:
    scorer = Scorer(RewardConfig(gate_span="thinking", terms={"default": {"exact": 1.0}}), LANGUAGES)
    thought, head = f"<think>{SENTENCES['zh']}</think>Tokyo", HEADER.text("zh")
    wrong = thought.replace(SENTENCES["zh"], SENTENCES["en"])
    answers = [
        head + thought,
        thought,
        head + wrong,
        head.lower().replace("\n", "") + thought,
        head,
        thought,
        "x" + head,
    ]
    asked = [POLICY_CHOOSES, "zh", POLICY_CHOOSES, POLICY_CHOOSES, POLICY_CHOOSES, POLICY_CHOOSES, POLICY_CHOOSES]
    scores = scorer.score([request(answers, asked, accepted=["tokyo"])])[0]
    assert [score.language for score in scores] == ["zh", "zh", "zh", "zh", "zh", "", ""]
    assert [score.compliant for score in scores] == [True, True, False, True, False, False, False]
    assert [score.quality for score in scores] == [1, 1, 1, 1, 0, 1, 0]
    assert [score.terms.get("selection") for score in scores] == [1, None, 1, 0, 1, 0, 0]
    assert scores[0].reward == scores[1].reward == 1


# -- rewards ---------------------------------------------------------------------------------------------------------


def random_choices(rng: np.random.Generator, free: float, kept: float, spoken: tuple[str, ...]) -> list[Group]:
    """Groups of 1 to 6 answers, of which a share is free; some answers are in no language."""
    groups = []
    for number in range(rng.integers(1, 6)):
        asked, rollouts = [], []
        for _ in range(rng.integers(1, 7)):
            language, chose = str(rng.choice(spoken)), rng.random() < free
            rollout = random_rollout(rng)
            asked.append(POLICY_CHOOSES if chose else language or "de")
            compliant = bool(language) and rng.random() < kept
            score = rollout.score.model_copy(
                update={
                    "quality": float(rng.choice([0, rng.random(), 1])),
                    "compliant": compliant,
                    "terms": {"exact": float(rng.choice([0, 0.4, 0.5, 1]))}
                    | ({"selection": float(rng.random() < 0.8)} if chose else {}),
                }
            )
            header = int(rng.integers(0, len(rollout.response_ids) + 1)) if chose else 0
            written = language if chose else asked[-1]
            rollouts.append(rollout.model_copy(update={"language": written, "header": header, "score": score}))
        groups.append(Group(work=work(number, asked), actor="a", rollouts=rollouts))
    return groups


def by_hand(batch: list[Group], stage: StageConfig, before: dict[str, float]) -> list[list[float]]:
    """The definition of the stage rewards, one rollout at a time."""

    def peers(group: Group, over: str) -> list[tuple[str, Any]]:
        chosen = batch if over == "batch" else [group]
        return [(a, r) for g in chosen for a, r in zip(g.work.languages, g.rollouts, strict=True)]

    def share(language: str, group: Group) -> Any:
        named = [r.language for a, r in peers(group, stage.diversity_over) if a == "" and r.language]
        present = named.count(language) / len(named)
        return (
            stage.diversity_ema * present + (1 - stage.diversity_ema) * before.get(language, 0) if before else present
        )

    def choice(group: Group, rollout: Any) -> Any:
        value = stage.selection * rollout.score.terms["selection"]
        if rollout.score.compliant:
            inverse = {
                r.language: 1 / share(r.language, group)
                for a, r in peers(group, stage.diversity_over)
                if a == "" and r.score.compliant
            }
            value += stage.diversity * inverse[rollout.language] / max(inverse.values())
        if rollout.language and any(
            r.language == rollout.language and r.score.terms["exact"] >= 0.5
            for _, r in peers(group, stage.success_over)
        ):
            value += stage.success
        return value

    rewards = []
    for group in batch:
        chosen = [
            choice(group, r) if a == "" else None for a, r in zip(group.work.languages, group.rollouts, strict=True)
        ]
        own = [value for value in chosen if value is not None]
        mean = sum(own) / len(own) if own else 0.0
        common = [stage.correctness * r.score.quality + stage.compliance * r.score.compliant for r in group.rollouts]
        rewards.append([c + (mean if v is None else v) for c, v in zip(common, chosen, strict=True)])
    return rewards


@pytest.mark.parametrize("free", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("kept", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("spoken", [("de", "en", "zh", ""), ("en",), ("",)])
def test_rewards_are_those_of_the_definition(
    free: float, kept: float, spoken: tuple[str, ...], rng: np.random.Generator
) -> None:
    for _ in range(8):
        batch = random_choices(rng, free, kept, spoken)
        weights = {
            name: float(rng.random()) for name in ("correctness", "compliance", "selection", "diversity", "success")
        }
        over: Any = {name: str(rng.choice(["batch", "group"])) for name in ("diversity_over", "success_over")}
        stage = StageConfig(**weights, **over, diversity_ema=float(rng.choice([1.0, 0.3])))
        before = (
            dict(zip(("de", "en", "zh"), rng.dirichlet([1, 1, 1]).tolist(), strict=True)) if rng.random() < 0.5 else {}
        )
        rewarded, after = stages.stage_rewards(batch, stage, before)
        found = [[rollout.score.reward for rollout in group.rollouts] for group in rewarded]
        for mine, theirs in zip(found, by_hand(batch, stage, before), strict=True):
            assert mine == pytest.approx(theirs)
        assert not after or sum(after.values()) == pytest.approx(1)
        assert all(np.isfinite(reward) for group in found for reward in group)
        untouched = [r.score.quality for group in rewarded for r in group.rollouts]
        assert untouched == [r.score.quality for group in batch for r in group.rollouts]


def test_the_diversity_bonus_is_one_for_the_rarest_language_and_success_needs_a_right_answer() -> None:
    kept = np.array([True] * 5 + [False])
    assert stages.diversity(["en"] * 4 + ["zh", "de"], kept, {}, 1.0).tolist() == [0.25] * 4 + [1, 0]
    assert stages.diversity(["en"], np.array([False]), {}, 1.0).tolist() == [0]
    assert stages.diversity(["", "en"], np.array([True, True]), {"zh": 1.0}, 0.5).tolist() == [0, 1], "none is chosen"
    assert stages.success(["en", "zh", "en", ""], np.array([False, False, True, True])).tolist() == [1, 0, 1, 0]


def judged(rollout: Any, language: str, quality: float, terms: dict[str, float], scored: bool = True) -> Any:
    score = rollout.score.model_copy(update={"quality": quality, "terms": terms, "compliant": True, "scored": scored})
    return rollout.model_copy(update={"language": language, "score": score})


def test_a_wrong_answer_in_its_language_is_no_success(rng: np.random.Generator) -> None:
    """With reward.terms = {math = 1, thought_language = 1} its quality is 0.5."""
    terms = {"math": 0.0, "thought_language": 1.0, "selection": 1.0}
    answers = [
        judged(random_rollout(rng), "en", 0.5, terms),
        judged(random_rollout(rng), "zh", 0.5, terms | {"math": 1.0, "thought_language": 0.0}),
        judged(random_rollout(rng), "de", 0.0, {"math": 1.0}, scored=False),  # a judge was out, say
    ]
    group = Group(work=work(0, [POLICY_CHOOSES] * 3), actor="a", rollouts=answers)
    (rewarded,), _ = stages.stage_rewards([group], StageConfig(success=1.0), {})
    assert [one.score.terms["success"] for one in rewarded.rollouts] == [0, 1, 0]
    metrics = choice_metrics([group])
    assert (metrics["accuracy"], metrics["accuracy/en"], metrics["accuracy/zh"]) == (0.5, 0, 1)
    assert "accuracy/de" not in metrics, "what could not be scored is neither right nor wrong"
    unscored = group.model_copy(update={"rollouts": [answers[2]], "work": work(0, [POLICY_CHOOSES])})
    assert "accuracy" not in choice_metrics([unscored])


def test_a_similarity_does_not_tell_what_is_right(rng: np.random.Generator) -> None:
    """Of the cosines of answers nearly all are above 0, which is a quality of 0.5."""
    answers = [judged(random_rollout(rng), "en", 0.95, {"similarity": 0.95, "selection": 1.0}) for _ in range(2)]
    group = Group(work=work(0, [POLICY_CHOOSES] * 2), actor="a", rollouts=answers)
    (rewarded,), _ = stages.stage_rewards([group], StageConfig(success=1.0), {})
    assert [one.score.terms["success"] for one in rewarded.rollouts] == [0, 0]
    metrics = choice_metrics([group])
    assert metrics["compliance"] == 1 and not any(name.startswith("accuracy") for name in metrics)


def test_a_routed_answer_is_compared_with_the_free_ones_that_could_be_scored(rng: np.random.Generator) -> None:
    answers = [
        judged(random_rollout(rng), "en", 0.5, {"selection": 1.0}),
        judged(random_rollout(rng), "en", 0.0, {"selection": 0.0}, scored=False),
        judged(random_rollout(rng), "en", 0.5, {}),
    ]
    group = Group(work=work(0, [POLICY_CHOOSES] * 2 + ["en"]), actor="a", rollouts=answers)
    (rewarded,), _ = stages.stage_rewards([group], StageConfig(), {})
    rewards = [one.score.reward for one in rewarded.rollouts]
    assert rewards[0] == rewards[2] and rewards[1] == 0


def test_in_a_partly_free_group_a_header_changes_the_advantage_of_free_rollouts_alone(rng: np.random.Generator) -> None:
    """All answers are equal but for one broken header: the routed ones neither gain nor lose by it."""
    answers = [random_rollout(rng, reward=0.5) for _ in range(6)]
    terms = [{"selection": float(n != 1)} if n < 3 else {} for n in range(6)]
    answers = [
        r.model_copy(update={"language": "en", "score": r.score.model_copy(update={"terms": t})})
        for r, t in zip(answers, terms, strict=True)
    ]
    group = Group(work=work(0, [POLICY_CHOOSES] * 3 + ["en"] * 3), actor="a", rollouts=answers)
    (rewarded,), _ = stages.stage_rewards([group], StageConfig(), {})
    samples, _ = group_samples([rewarded], load([]).learner)
    advantages = [sample.advantage for sample in samples]
    assert advantages[3:] == pytest.approx([0, 0, 0], abs=1e-6) and advantages[1] < 0 < advantages[0] == advantages[2]


# -- metrics of the choices -----------------------------------------------------------------------------------------


def test_metrics_and_propensities_count_what_was_chosen(rng: np.random.Generator) -> None:
    batch = random_choices(rng, 0.7, 0.5, ("de", "en", "zh", ""))
    free = [
        (group, rollout)
        for group in batch
        for asked, rollout in zip(group.work.languages, group.rollouts, strict=True)
        if asked == ""
    ]
    metrics = choice_metrics(batch)
    if not free:
        assert metrics == {}
        return
    named = Counter(rollout.language for _, rollout in free if rollout.language)
    entropy = -sum(n / named.total() * math.log(n / named.total()) for n in named.values())
    assert metrics["choice_entropy"] == pytest.approx(entropy)
    surprise = [-sum(float(x) for x in rollout.logprobs[: rollout.header]) for _, rollout in free if rollout.header]
    if surprise:
        assert metrics["header_entropy"] == pytest.approx(sum(surprise) / len(surprise), rel=1e-5)
    else:
        assert "header_entropy" not in metrics
    right = [rollout.score.terms["exact"] >= 0.5 and rollout.score.compliant for _, rollout in free]
    assert metrics["accuracy_kept"] == pytest.approx(sum(right) / len(right))
    for code, count in named.items():
        assert metrics[f"share General Knowledge/{code}"] == pytest.approx(count / len(free))
    for group in batch:
        answered = work_as_answered(group)
        assert answered.languages == [rollout.language for rollout in group.rollouts]
        for asked, rollout, p in zip(group.work.languages, group.rollouts, answered.propensities, strict=True):
            header = np.exp(rollout.logprobs[: rollout.header].astype(np.float64))
            written = float(np.prod(header)) if rollout.header else math.nan
            assert p == pytest.approx(written if asked == "" else 1.0, rel=1e-5, nan_ok=True)


def test_an_answer_without_a_header_is_no_certain_choice(rng: np.random.Generator, tmp_path: Path) -> None:
    """The policy was to choose a language and did not: no probability, and nothing to the entropy of headers."""
    answers = [judged(random_rollout(rng), "en" if header else "", 1.0, {}) for header in (1, 0, 0)]
    for one, header in zip(answers, (1, 0, 0), strict=True):
        one.header = header
    group = Group(work=work(0, [POLICY_CHOOSES] * 2 + ["de"]), actor="a", rollouts=answers)
    surprise = -float(answers[0].logprobs[0])
    assert choice_metrics([group])["header_entropy"] == pytest.approx(surprise)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    ledger.enter(0, 0, "trained", 1, "", work_as_answered(group))
    ledger.flush()
    (line,) = (tmp_path / "ledger.jsonl").read_text().splitlines()
    assert json.loads(line)["propensities"] == [pytest.approx(np.exp(-surprise)), None, 1.0]
    without = group.model_copy(update={"rollouts": answers[1:], "work": work(0, [POLICY_CHOOSES, "de"])})
    assert "header_entropy" not in choice_metrics([without])


# -- routing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("free", "mode"), [(0, "learned"), (8, "policy")])
def test_a_hybrid_at_its_ends_is_learned_or_policy(free: int, mode: Any, seed: int) -> None:

    def play(**settings: Any) -> list[Any]:
        bandit, rng = (
            Router(configuration.RouterConfig(interval=1, **settings), ["de", "en", "zh"], 7, 50),
            np.random.default_rng(seed),
        )
        seen: list[Any] = []
        for _ in range(20):
            draw = bandit.draw("de", ["Chat"], ["Europe"])
            languages = tuple(one or str(rng.choice(["de", "en", "zh"])) for one in draw.languages)
            rewards = tuple(rng.random(len(languages)).tolist())
            context = Context.of("de", ["Chat"], ["Europe"])
            bandit.observe([Observation(context, languages, rewards, (True,) * len(languages))])
            seen.append((draw, bandit.drawn(["Chat"]), bandit.log()["probs"]))
        return seen

    hybrid, pure = play(mode="hybrid", free_rollouts=free), play(mode=mode)
    assert [one[:2] for one in hybrid] == [one[:2] for one in pure]
    assert mode == "policy" or hybrid == pure


def test_the_router_learns_from_gated_quality_whatever_the_stage_rewards(rng: np.random.Generator) -> None:
    batch = random_choices(rng, 0.5, 0.5, ("de", "en", "zh", ""))
    rewarded, _ = stages.stage_rewards(batch, StageConfig(diversity=3.0), {})
    for group, learned in zip(batch, router_observations(rewarded, ["de", "en"], gated=True), strict=True):
        expected = [r for r in group.rollouts if r.language in ("de", "en")]
        assert learned.languages == tuple(r.language for r in expected)
        assert learned.rewards == tuple(r.score.quality if r.score.compliant else 0.0 for r in expected)


def test_without_the_gate_the_router_learns_from_quality_in_whatever_language(rng: np.random.Generator) -> None:
    batch = [group for _ in range(20) for group in random_choices(rng, 0.5, 0.5, ("de", "en"))]
    assert any(not r.score.compliant and r.score.quality for group in batch for r in group.rollouts)
    for group, learned in zip(batch, router_observations(batch, ["de", "en"], gated=False), strict=True):
        assert learned.rewards == tuple(r.score.quality for r in group.rollouts)
        assert all(learned.compliant), "else the router would multiply by compliance"


# -- the reference ---------------------------------------------------------------------------------------------------

_STAGES = "[{until = 0.5, kl = 0.05}, {kl = 0.05, reset_anchor = true}]"


def staged(out: Path, model: Path, checkpoints: Path, begin: int, end: int, steps: int = 4, told: bool = True) -> None:
    """Some steps of a run in two stages; one that does not begin with the first starts from a checkpoint.

    Args:
        steps: of the run, half of them in each stage.
        told: whether the checkpoint says of which stage the reference is; those of before did not.
    """
    flags = ["--learner.stages", _STAGES, "--learner.steps", str(steps)]
    trainer, kept = Trainer(train_configuration(model, *flags)), Checkpoints(checkpoints, kept=2)
    if (latest := kept.latest()) is not None:
        found = kept.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
        trainer.reference.resume(found, latest.state["step"])
    kls = [trainer.step(random_batch(number), number).means["kl"] for number in range(begin, end)]
    reference = trainer.reference.saved
    stage = trainer.reference.state.stage if told else None
    kept.save(trainer.policy, trainer.optimizer, end, {"step": end}, (), reference, reference_stage=stage)
    kept.wait()
    torch.save({"kl": kls, "weights": {name: whole.clone() for name, whole in full_weights(trainer.policy)}}, out)


def test_the_reference_moves_with_the_stage_and_survives_a_resume(tiny_policy: Path, tmp_path: Path) -> None:
    assert run_ranks(1, staged, tmp_path / "whole", tiny_policy, tmp_path / "a", 0, 4) == [0]
    for begin, end in ((0, 3), (3, 4)):
        assert run_ranks(1, staged, tmp_path / f"from-{begin}", tiny_policy, tmp_path / "b", begin, end) == [0]
    whole, resumed = torch.load(tmp_path / "whole"), torch.load(tmp_path / "from-3")
    first, second, third, fourth = whole["kl"]
    assert first == third == pytest.approx(0, abs=1e-9) and second > 1e-6 and fourth > 1e-6
    assert resumed["kl"] == pytest.approx([fourth], rel=1e-6)
    for name, value in whole["weights"].items():
        torch.testing.assert_close(resumed["weights"][name], value)


@pytest.mark.parametrize("told", [True, False])
def test_the_reference_moves_though_a_resume_with_fewer_steps_begins_within_the_stage(
    tiny_policy: Path, tmp_path: Path, told: bool
) -> None:
    """Of eight steps the second stage would begin with the fifth; with four steps it has begun before the resume."""
    common = tiny_policy, tmp_path / "checkpoints"
    assert run_ranks(1, staged, tmp_path / "first", *common, 0, 3, 8, told) == [0]
    assert run_ranks(1, staged, tmp_path / "second", *common, 3, 4, 4, told) == [0]
    assert torch.load(tmp_path / "first")["kl"][2] > 1e-6
    assert torch.load(tmp_path / "second")["kl"] == pytest.approx([0], abs=1e-9)


def test_the_reference_moves_again_where_a_resume_with_more_steps_is_before_the_stage(
    tiny_policy: Path, tmp_path: Path
) -> None:
    common = tiny_policy, tmp_path / "checkpoints"
    assert run_ranks(1, staged, tmp_path / "first", *common, 0, 3, 4) == [0]
    assert run_ranks(1, staged, tmp_path / "second", *common, 3, 6, 8) == [0]
    assert torch.load(tmp_path / "first")["kl"][2] == pytest.approx(0, abs=1e-9)
    fourth, fifth, sixth = torch.load(tmp_path / "second")["kl"]
    assert fourth > 1e-6 and fifth == pytest.approx(0, abs=1e-9) and sixth > 1e-6


def resume_with_other_penalties(out: Path, model: Path, adapters: bool) -> None:
    """A run in two stages, the second of which sets the reference, goes on without a KL, and then with one."""
    told, kept = [], Checkpoints(out.parent / "checkpoints", kept=3)
    staged, without = ["--learner.stages", _STAGES], ["--learner.kl", "0"]
    always = ["--learner.steps", "4", *(["--lora.rank", "2"] if adapters else [])]
    for end, flags in ((3, staged), (4, without), (5, without), (6, staged), (7, [])):
        latest = kept.latest()
        moves = latest is not None and latest.has_reference_adapters
        trainer = Trainer(train_configuration(model, *always, *flags), reference_moves=moves)
        begin = 0 if latest is None else latest.state["step"]
        try:
            if latest is not None:
                found = kept.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
                trainer.reference.resume(found, begin)
        except FatalError as error:
            told.append(str(error))
            continue
        for number in range(begin, end):
            trainer.step(random_batch(number), number)
        reference = trainer.reference.saved
        stage = trainer.reference.state.stage
        kept.save(trainer.policy, trainer.optimizer, end, {"step": end}, (), reference, reference_stage=stage)
        kept.wait()
        told.append("")
    out.write_text(json.dumps(told))


def test_a_reference_that_was_dropped_is_not_taken_for_the_model_of_the_beginning(
    tiny_policy: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "told"
    assert run_ranks(1, resume_with_other_penalties, out, tiny_policy, False, output=log) == [0], log.read_text()
    begun, dropped, again, *refused = json.loads((tmp_path / "told").read_text())
    assert begun == dropped == again == ""
    for message in refused:
        assert message.startswith("cannot resume with a KL penalty: stage 2 of the run so far had set its reference")
    assert len(refused) == 2 and log.read_text().count("the reference policy that stage 2 had set is not kept") == 2


def test_adapters_of_a_reference_stay_whatever_penalty_a_run_goes_on_with(tiny_policy: Path, tmp_path: Path) -> None:
    log, out = tmp_path / "log", tmp_path / "told"
    assert run_ranks(1, resume_with_other_penalties, out, tiny_policy, True, output=log) == [0], log.read_text()
    assert json.loads(out.read_text()) == [""] * 5 and "is not kept" not in log.read_text()


_LATER = "[{until = 0.4, kl = 0.05}, {kl = 0.05, reset_anchor = true}]"


def change_stages(out: Path, model: Path, adapters: bool, first: list[str]) -> None:
    """A run without stages gets some in the midst of the second, which sets the reference, and then has none again.

    Until the first checkpoint it has what ``first`` says.

    Writes the KL of every step. The last step is trained twice: with the stages, and after a resume without.
    """
    kls, kept = [], Checkpoints(out.parent / "checkpoints", kept=9)
    always = ["--learner.steps", "10", *(["--lora.rank", "2"] if adapters else [])]
    for begin, end, flags in ((0, 2, first), (2, 6, []), (6, 9, ["--learner.stages", _LATER]), (8, 9, [])):
        latest = kept.latest()
        moves = latest is not None and latest.has_reference_adapters
        trainer = Trainer(train_configuration(model, *always, *flags), reference_moves=moves)
        if latest is not None:
            assert latest.state["step"] == begin
            found = kept.load(latest.path, trainer.policy, trainer.optimizer, trainer.reference.copy)
            trainer.reference.resume(found, begin)
        for number in range(begin, end):
            kls.append(trainer.step(random_batch(number), number).means["kl"])
            if number + 1 in (2, 6, 8):
                reference = trainer.reference.saved
                stage = trainer.reference.state.stage
                state = {"step": number + 1}
                kept.save(trainer.policy, trainer.optimizer, number + 1, state, (), reference, reference_stage=stage)
                kept.wait()
    out.write_text(json.dumps(kls))


@pytest.mark.parametrize(("adapters", "first"), [(False, []), (True, []), (True, ["--learner.stages", _LATER])])
def test_stages_may_come_and_go_at_a_resume_and_the_reference_stays(
    adapters: bool, first: list[str], tiny_policy: Path, tmp_path: Path
) -> None:
    log, out = tmp_path / "log", tmp_path / "kl"
    assert run_ranks(1, change_stages, out, tiny_policy, adapters, first, output=log) == [0], log.read_text()
    *before, seventh, eighth, ninth, again = json.loads((tmp_path / "kl").read_text())
    assert before[-1] > 1e-7 and seventh == pytest.approx(0, abs=1e-9), "the stage has begun, and sets the reference"
    assert eighth > 1e-9 and ninth > 1e-9 and again == ninth, "the reference is that of the stage"


# -- a step, from the batch to the dashboard -------------------------------------------------------------------------


def stepped(directory: Path, model: Path, seed: int) -> None:
    """Does what a run does with a batch, some of whose answers name no language."""
    rng = np.random.default_rng(seed)
    flags = ["--learner.stages", "[{diversity = 0.2, success = 0.3}]", "--learner.steps", "2", "--learner.kl", "0"]
    flags += ["--reward.terms.default.exact", "1"]
    config = train_configuration(model, *flags, "--run.dir", str(directory))
    trainer, ledger = Trainer(config), Ledger(directory / "ledger.jsonl")
    bandit, report = Router(config.router, LANGUAGES, 0, 2), Report(config, 2, 0)
    shares: Any = {}
    report.begin({})
    for number in range(2):
        batch = [group for _ in range(4) for group in random_choices(rng, 0.7, 0.5, (*LANGUAGES, "", ""))]
        batch, shares = stages.stage_rewards(batch, config.learner.stage(number), shares)
        result = trainer.step(batch, number)
        for group in batch:
            ledger.enter(number, 0, group_outcome(group, config.learner), number, "", work_as_answered(group))
        bandit.observe(router_observations(batch, LANGUAGES, gated=True))
        report.step(number + 1, batch, result, random_step(rng, number + 1)["context"])
        assert not result.problem
    bandit.update()
    report.close()
    ledger.flush()


def test_a_batch_with_answers_in_no_language_goes_all_the_way(tiny_policy: Path, tmp_path: Path, seed: int) -> None:
    output = tmp_path / "output"
    assert run_ranks(1, stepped, tmp_path, tiny_policy, seed, output=output) == [0], output.read_text()
    found = set[str]()
    for sub in LINE_RUNS:
        events = EventAccumulator(str(tmp_path / "tensorboard" / sub))
        events.Reload()
        found |= set(events.Tags()["scalars"])
    assert {"selection/header_entropy", "terms/diversity", "languages/share/none"} <= found
