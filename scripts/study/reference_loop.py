"""Synchronous LRPO in one file, to be read from top to bottom before the rest of the repository.

    python -m scripts.study.reference_loop configs/demo.toml --learner.steps 10 [--out DIR]
    python -m scripts.study.reference_loop --recorded DIR

The first form generates with transformers on this machine, one group after another. The second trains on the groups
that a run of the system kept with ``learner.record``, from the weights that the run began with. Settings are those of
the system, so the same files and flags describe a run here and there. There are no queues, sockets or ranks, and one
batch is generated, scored and trained on before the next: what the system does with ``learner.staleness`` = 0. The
router, the prompts and the reward are the product's. Everything else is written again here, without learner.train; a
test compares the losses and weights of the two.

How LRPO (arXiv 2605.25360) departs from plain GRPO (DeepSeekMath, arXiv 2402.03300, section 4.1), in the order of the
code below:

 1. Routing. GRPO answers a question K times in one language. LRPO answers it ``own_language`` times in the language of
    the question, and the other times each in a language drawn from (1 − ε) p + ε / L, where the router's p depends on
    the topic and region of the question. Questions on the topic Translation are not routed.
 2. Prompts. The language is asked for by a tag, which a warm start has taught, or by a system prompt ("Zero").
 3. Reward. r = quality · 1[the answer is in the language asked for]. The quality is the similarity of answer and
    reference answer, calibrated for the pair of their languages.
 4. Router update. The router learns p from the rewards of every answer that could be scored, every ``interval`` steps.
 5. Advantages are normalised within the group of K answers, over all its languages, as (r − mean) / (std + 1e-6),
    where std is the deviation of a sample (÷ K − 1), as in verl.
 6. Loss. The mean is over all response tokens of the batch (DAPO, arXiv 2503.14476, section 3.3), where GRPO takes the
    mean of each answer first. The clipping, with the dual clip of arXiv 1912.09729, has no effect, because every batch
    is one optimizer step: the ratio is 1. The KL to the initial policy is the k3 estimate, as in GRPO.

The other losses of ``learner.loss``, ``advantage`` and ``aggregation`` are here as well, each in the few lines in which
it differs, and ``minibatches`` and ``passes``, with which the ratio is no longer 1. docs/losses.md explains them.

The main departures from the paper are these three, and configs/recipes/lrpo-paper.toml goes without them;
docs/papers.md lists all. A group in which all rewards are equal is left out of the mean (``drop_zero_variance``). A
token's loss is weighted by min(π_learner / π_engine, cap) (truncated importance sampling, ``learner.importance``),
because engine and learner round differently. The router's default credit is a posterior with Thompson sampling;
``router.credit`` = ``reference`` selects the logits of the paper.

Shape suffixes: B answers of a micro-batch, T tokens of the longest, padded at the right. A tensor [B, T − 1] has a
value for every token but the first, each of which is predicted at the position before it.
"""

from __future__ import annotations

import copy
import math
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from common.config import Config, LearnerConfig, load
from common.process import FatalError
from common.prompts import PROMPT_STYLES, ChatTemplate
from common.tokenizer import load_tokenizer
from common.wire import Question, Score, ScoreRequest
from learner import recording
from learner.work.questions import read_questions
from reward.scored import UnscoredError
from reward.scorer import Scorer
from router import Context, Observation, Router
from scripts.ops.command_line import command


@dataclass(frozen=True)
class Answer:
    """One answer to a question, scored."""

    language: str  # the one asked for
    prompt: list[int]  # token ids
    response: list[int]  # token ids, the stop token included
    behaviour_logp: list[float]  # nats, of each response token, at the temperature of sampling
    scored: bool  # otherwise its reward is unknown, and nothing is learned from it
    reward: float
    compliant: bool  # in the language asked for
    parts: dict[str, float]  # what the reward is made of, and "reward", "quality" and "compliance"


Group = list[Answer]  # the K answers to one question


@dataclass(frozen=True)
class Step:
    """A step that was trained: its loss, its gradient norm before clipping, and the answers it had."""

    loss: float
    grad_norm: float
    answers: list[Answer]


# -- where groups come from --------------------------------------------------------------------------------------------


def generated(config: Config, model: PreTrainedModel) -> Iterator[list[Group]]:
    """The groups of each step, generated by ``model`` as it is when the step begins, and scored."""
    tokenizer = load_tokenizer(config.model.path)
    prompt_of = PROMPT_STYLES[config.model.prompt_style](tokenizer, config)
    languages = list(config.run.languages)
    questions = read_questions(config, tokenizer).train
    config = config.with_questions(len(questions))
    router = Router(config.router, languages, config.run.seed, config.learner.steps)
    order, shuffle = list[Question](), random.Random(config.run.seed)
    torch.manual_seed(config.run.seed)
    with closing(Scorer(config.reward, languages, header=config.model.header)) as scorer:
        for step in range(config.learner.steps):
            batch, observations = list[Group](), list[Observation]()
            for place in range(step * config.learner.groups_per_step, (step + 1) * config.learner.groups_per_step):
                order = order or shuffle.sample(questions, len(questions))  # epoch after epoch, each in a new order
                question = order.pop()
                draw = router.draw(question.language, question.topics, question.regions, place)
                prompts = [prompt_of(question, language) for language in draw.languages]
                samples = generate(config, model, tokenizer, prompts)
                texts = [str(tokenizer.decode(ids, skip_special_tokens=True)) for ids, _, _ in samples]
                scores = score(config, scorer, question, draw.languages, samples, texts, prompt_of.opens_thought)
                batch.append([
                    Answer(language, prompt, ids, logp, one.scored, one.reward, one.compliant, parts_of(one))
                    for language, prompt, (ids, logp, _), one in zip(
                        draw.languages, prompts, samples, scores, strict=True
                    )
                ])  # fmt: skip
                observations.append(observation(config, question, draw.languages, scores))
            yield batch
            router.observe(observations)  # and learn, every router.interval steps


def score(
    config: Config, scorer: Scorer, question: Question, languages: list[str],
    samples: list[tuple[list[int], list[float], bool]], texts: list[str], opens_thought: bool,
) -> list[Score]:  # fmt: skip
    """The scores of the answers to a question, from all that the system's actors tell the reward process."""
    request = ScoreRequest(
        id=0, row=question.index, reference=question.reference, reference_language=question.language,
        topics=question.topics, accepted=question.accepted, messages=question.messages, extra=question.extra,
        languages=languages, answers=texts, truncated=[truncated for _, _, truncated in samples],
        tokens=[len(ids) for ids, _, _ in samples], thinking_opened=opens_thought,
        deadline_s=config.reward.request_timeout_s,
    )  # fmt: skip
    try:
        return scorer.score([request])[0]
    except (ValueError, UnscoredError, TimeoutError) as error:
        raise FatalError(
            f"the answers to question {question.index} of {config.data.train} cannot be scored: "
            f"{error or 'they took longer than reward.request_timeout_s'}"
        ) from None


def observation(config: Config, question: Question, asked: list[str], scores: list[Score]) -> Observation:
    """What the router learns from a question: its scored answers in the languages of the run, and what each earns.
    Without the gate an answer in another language earns as much as any.
    """
    gated = config.reward.is_gated
    known = [
        (code, one, one.compliant or not gated)
        for code, one in zip(asked, scores, strict=True)
        if one.scored and code in config.run.languages
    ]
    return Observation(
        Context.of(question.language, question.topics, question.regions),
        tuple(language for language, _, _ in known),
        tuple(one.quality * earns for _, one, earns in known),
        tuple(earns for _, _, earns in known),
    )


@torch.no_grad()
def generate(
    config: Config, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]]
) -> list[tuple[list[int], list[float], bool]]:
    """Samples a response to each prompt: its token ids, their log-probabilities, and whether it was truncated."""
    stops = ChatTemplate(tokenizer, config.model).stop_ids  # as the engines have them
    if not stops:
        raise FatalError(
            f"{config.model.path}: neither its chat template nor its tokenizer has a token that ends an answer: use "
            "the instruction-tuned version of the model, or set its eos_token"
        )
    # Replaces the model's own settings, whose top-k and penalties would change the distribution that is sampled from.
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=config.sampling.temperature, top_k=0, top_p=1.0,
        max_new_tokens=config.sampling.max_new_tokens, eos_token_id=stops, pad_token_id=stops[0],
    )  # fmt: skip
    longest = max(map(len, prompts))
    ids_B_T = torch.tensor([[stops[0]] * (longest - len(prompt)) + prompt for prompt in prompts], device=model.device)
    mask_B_T = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    found: Any = model.generate(  # type: ignore[operator]
        ids_B_T, attention_mask=mask_B_T, return_dict_in_generate=True, output_scores=True
    )
    logp_B_T = torch.stack(
        [
            torch.log_softmax(scores.float(), -1).gather(1, token[:, None])[:, 0]  # the temperature is in the scores
            for scores, token in zip(found.scores, found.sequences[:, longest:].T, strict=True)
        ],
        1,
    )
    samples = []
    for response, logp in zip(found.sequences[:, longest:].tolist(), logp_B_T.tolist(), strict=True):
        ends = [place for place, token in enumerate(response) if token in stops]
        length = ends[0] + 1 if ends else len(response)
        samples.append((response[:length], logp[:length], not ends))
    return samples


def recorded(directory: Path) -> Iterator[list[Group]]:
    """The groups of each step of a run that was recorded with ``learner.record``."""
    for step in recording.read(directory)[1]:
        yield [
            [
                Answer(
                    one.language, one.prompt_ids.tolist(), one.response_ids.tolist(), one.logprobs.tolist(),
                    one.score.scored, one.score.reward, one.score.compliant, parts_of(one.score),
                )
                for one in group.rollouts
            ]
            for group in step.groups
        ]  # fmt: skip


def parts_of(score: Score) -> dict[str, float]:
    """The parts of a reward that ``learner.decoupled_parts`` may name."""
    return {**score.terms, "reward": score.reward, "quality": score.quality, "compliance": float(score.compliant)}


# -- the loss ----------------------------------------------------------------------------------------------------------


def normalised(rewards: list[float], learner: LearnerConfig, eps: float) -> list[float]:
    """(r − mean) / (std + eps) of each of some answers to a question; all zero if all rewards are equal.

    std is √(Σ(r − mean)² / (K − std_ddof)). Dr. GRPO does not divide by it.
    """
    if len(set(rewards)) < 2:
        return [0.0] * len(rewards)
    mean = sum(rewards) / len(rewards)
    std = (sum((reward - mean) ** 2 for reward in rewards) / (len(rewards) - learner.std_ddof)) ** 0.5
    return [(reward - mean) / (std + eps if learner.advantage_std else 1) for reward in rewards]


def advantages(batch: list[Group], learner: LearnerConfig) -> list[list[float]]:
    """The advantages of the answers of each group: GRPO's, those of "split", or GDPO's with "decoupled".

    GDPO (arXiv 2601.05242) normalises every part of the reward alone, and divides the sums by their deviation in the
    batch.
    """
    found = [group_advantages(group, learner) for group in batch]
    if learner.advantage != "decoupled":
        return found
    scored = [answer.scored for group in batch for answer in group]
    values = [value for group in found for value in group]  # their mean is 0, as it is in every group
    deviation = (sum(value**2 for value in values) / max(sum(scored) - 1, 1)) ** 0.5
    return [[value / (deviation + 1e-4) for value in group] for group in found]


def group_advantages(group: Group, learner: LearnerConfig, *, penalised: bool = True) -> list[float]:
    """Of each answer. One that could not be scored takes no part in mean and deviation, and has 0."""
    form = {"gated": gated, "split": split, "decoupled": decoupled}[learner.advantage]
    values = iter(form([answer for answer in group if answer.scored], learner, penalised))
    return [next(values) if answer.scored else 0.0 for answer in group]


def gated(answers: list[Answer], learner: LearnerConfig, penalised: bool) -> list[float]:
    """The reward as it is, which is 0 for an answer that left its language."""
    return normalised([worth(answer, learner, penalised) for answer in answers], learner, 1e-6)


def decoupled(answers: list[Answer], learner: LearnerConfig, penalised: bool) -> list[float]:
    """The weighted sum of the normalised parts; an answer without a part gets nothing for it.

    The penalty for long answers is one of them, and its size is the part's weight.
    """
    sums = [0.0] * len(answers)
    for name, weight in learner.decoupled_parts.items():
        add_part(sums, weight, [answer.parts.get(name) for answer in answers], learner)
    if penalised:
        add_part(sums, learner.overlong_penalty, [-too_long(answer, learner) for answer in answers], learner)
    return sums


def add_part(sums: list[float], weight: float, values: Sequence[float | None], learner: LearnerConfig) -> None:
    """Adds the normalised values of a part of the reward to the sums of the answers that have it."""
    having = [place for place, value in enumerate(values) if value is not None]
    for place, value in zip(having, normalised([v for v in values if v is not None], learner, 1e-4), strict=True):
        sums[place] += weight * value


def split(answers: list[Answer], learner: LearnerConfig, penalised: bool) -> list[float]:
    """Quality compared among the answers that kept to their language, and compliance apart."""
    kept = [worth(answer, learner, penalised) for answer in answers if answer.compliant]
    share = len(kept) / max(len(answers), 1)
    found = [learner.compliance_weight * (answer.compliant - share) for answer in answers]
    if len(set(kept)) < 2:
        return found
    worst, centre = min(kept), sum(kept) / len(kept)
    std = (sum((quality - centre) ** 2 for quality in kept) / (len(kept) - learner.std_ddof)) ** 0.5
    values = [worth(answer, learner, penalised) if answer.compliant else worst for answer in answers]
    mean = sum(values) / len(values)
    divisor = std + 1e-6 if learner.advantage_std else 1
    return [one + (value - mean) / divisor for one, value in zip(found, values, strict=True)]


def trains(group: Group, learner: LearnerConfig) -> bool:
    """Whether an answer could be scored, and they are not all worth the same, apart from the penalty for length."""
    differs = any(group_advantages(group, learner, penalised=False))
    return any(answer.scored for answer in group) and (differs or not learner.drop_zero_variance)


def worth(answer: Answer, learner: LearnerConfig, penalised: bool) -> float:
    """The reward, from which DAPO takes the penalty for length before all else."""
    return answer.reward - learner.overlong_penalty * too_long(answer, learner) * penalised


def too_long(answer: Answer, learner: LearnerConfig) -> float:
    """How much of its penalty for long answers DAPO takes, from 0 to 1 (arXiv 2503.14476, equation 13)."""
    if not learner.overlong_limit:
        return 0.0
    begin = learner.overlong_limit - learner.overlong_buffer
    return min(max((len(answer.response) - begin) / learner.overlong_buffer, 0.0), 1.0)


def log_probabilities(
    model: PreTrainedModel, ids_B_T: Tensor, mask_B_T: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """Log-probability of every token but the first given those before it, and the entropy there, each [B, T − 1]."""
    logits = model(ids_B_T, attention_mask=mask_B_T, use_cache=False).logits[:, :-1].float() / temperature
    table = torch.log_softmax(logits, -1)
    return table.gather(2, ids_B_T[:, 1:, None])[..., 0], -(table.exp() * table).sum(-1)


@dataclass
class Used:
    """An answer that is trained on."""

    answer: Answer
    advantage: float
    weight: float = 0.0  # of each of its tokens in the loss of its mini-batch
    old_logp: list[float] | None = None  # of its tokens, under the policy at the beginning of the step


def surrogate(learner: LearnerConfig, logp: Tensor, old_logp: Tensor, of_response: Tensor, advantage: Tensor) -> Tensor:
    """The loss of each token by its ratio to the old policy: PPO's, GSPO's or CISPO's. All are [B, T − 1]."""
    low, high = 1 - learner.clip_low, 1 + learner.clip_high
    if learner.loss == "cispo":  # arXiv 2506.13585: the clipped ratio is the weight of a gradient, and has none
        return -torch.exp(logp - old_logp).clamp(low, high).detach() * advantage * logp
    ratio = torch.exp(logp - old_logp)
    if learner.loss == "gspo":  # arXiv 2507.18071: one ratio for the answer, with the gradient of each token
        mean = ((logp - old_logp) * of_response).sum(1, keepdim=True) / of_response.sum(1, keepdim=True)
        ratio = torch.exp(mean.detach() + logp - logp.detach())
    objective = torch.minimum(advantage * ratio, advantage * ratio.clamp(low, high))
    if learner.loss == "ppo" and learner.dual_clip:
        objective = torch.where(advantage < 0, torch.maximum(objective, learner.dual_clip * advantage), objective)
    return -objective


def importance_weight(learner: LearnerConfig, old_logp: Tensor, behaviour_logp: Tensor) -> Tensor:
    """π_old / μ of each token as ``learner.importance`` limits it, [B, T − 1]; 1 where nothing is weighted."""
    if learner.importance == "none" or learner.proximal == "behaviour":
        return torch.ones_like(old_logp)
    ratio = torch.exp(old_logp - behaviour_logp)
    if learner.importance == "truncate":
        return ratio.clamp(max=learner.importance_cap)
    return torch.where((ratio >= learner.importance_floor) & (ratio <= learner.importance_cap), ratio, 0.0)


def batch_loss(config: Config, model: PreTrainedModel, reference: PreTrainedModel | None, some: list[Used]) -> Tensor:
    """The part of some answers in the loss of their mini-batch. Keeps their log-probabilities where it has none."""
    learner, temperature = config.learner, config.sampling.temperature
    answers = [one.answer for one in some]
    longest = max(len(answer.prompt + answer.response) for answer in answers)

    def padded(rows: list[list[Any]]) -> Tensor:
        return torch.tensor([row + [0] * (longest - len(row)) for row in rows], device=model.device)

    def of_tokens(rows: list[list[float]]) -> Tensor:
        return padded([[0.0] * len(a.prompt) + row for a, row in zip(answers, rows, strict=True)])[:, 1:]

    ids_B_T = padded([answer.prompt + answer.response for answer in answers])
    mask_B_T = padded([[1] * len(answer.prompt + answer.response) for answer in answers])
    of_response = of_tokens([[1.0] * len(answer.response) for answer in answers])
    behaviour_logp = of_tokens([answer.behaviour_logp for answer in answers])
    advantage = torch.tensor([[one.advantage] for one in some], device=model.device)

    logp, entropy = log_probabilities(model, ids_B_T, mask_B_T, temperature)
    for one, row in zip(some, logp.detach(), strict=True):
        begin = len(one.answer.prompt) - 1
        one.old_logp = one.old_logp or row[begin : begin + len(one.answer.response)].tolist()
    old_logp = of_tokens([one.old_logp or [] for one in some])
    proximal_logp = old_logp if learner.proximal == "step" else behaviour_logp
    loss = surrogate(learner, logp, proximal_logp, of_response, advantage)
    importance = importance_weight(learner, old_logp, behaviour_logp)
    loss = importance * loss
    if reference is not None:
        with torch.no_grad():
            reference_logp = log_probabilities(reference, ids_B_T, mask_B_T, temperature)[0]
        d = reference_logp - logp
        kl = {"k1": -d, "k2": d**2 / 2, "k3": torch.exp(d) - d - 1}[learner.kl_form]
        loss = loss + learner.kl * kl * (torch.exp(logp - proximal_logp) * importance if learner.kl_importance else 1)
    loss = loss - learner.entropy_bonus * entropy
    return (loss * of_response * torch.tensor([[one.weight] for one in some], device=model.device)).sum()


def set_weights(minibatch: list[Used], learner: LearnerConfig) -> None:
    """The weight of each token in the loss.

    The loss is a mean over tokens, over answers, over the tokens of each language, which weighs as much as it has
    answers ("fertility"), or it divides by a constant length (Dr. GRPO).
    """
    tokens = sum(len(one.answer.response) for one in minibatch)
    for one in minibatch:
        alike = [len(other.answer.response) for other in minibatch if other.answer.language == one.answer.language]
        one.weight = {
            "token": 1 / tokens,
            "sequence": 1 / len(minibatch) / len(one.answer.response),
            "fertility": len(alike) / len(minibatch) / sum(alike),
            "constant": 1 / len(minibatch) / max(learner.aggregation_length, 1),
        }[learner.aggregation]


# -- the loop ----------------------------------------------------------------------------------------------------------


def train(config: Config, model: PreTrainedModel, batches: Iterator[list[Group]], micro_batch: int) -> Iterator[Step]:
    """LRPO: one optimizer step for each batch of groups, or ``minibatches`` · ``passes``.

    Args:
        model: float32; trained in place.
        batches: generated as they are asked for, so by the policy of the step before.
        micro_batch: answers in a forward pass.
    """
    learner = config.learner
    reference = copy.deepcopy(model).requires_grad_(False) if learner.kl else None
    decays = {False: 0.0 if learner.weight_decay_on == "matrices" else learner.weight_decay, True: learner.weight_decay}
    optimizer = torch.optim.AdamW(
        [
            {"params": [one for one in model.parameters() if (one.dim() > 1) is matrices], "weight_decay": decay}
            for matrices, decay in decays.items()  # the gains of norms and biases are vectors
        ],
        lr=learner.lr, betas=learner.betas,
    )  # fmt: skip
    for number, batch in enumerate(batches):
        answers = [answer for group in batch for answer in group]
        kept = [group for group in batch if trains(group, learner)]
        groups = [
            [Used(answer, value) for answer, value in zip(group, values, strict=True) if answer.scored]
            for group, values in zip(kept, advantages(kept, learner), strict=True)
        ]
        if not groups:  # in every group all rewards are equal, or unknown, and these are dropped
            yield Step(0.0, 0.0, answers)
            continue
        for some in optimizer.param_groups:
            some["lr"] = learning_rate(number, learner)
        losses, norms = list[float](), list[float]()
        minibatches = [
            [some[n : n + micro_batch] for n in range(0, len(some), micro_batch)] for some in divided(groups, learner)
        ]
        if len(minibatches) > 1 and learner.proximal == "step":
            with torch.no_grad():  # for the log-probabilities at the beginning of the step
                for part in chain.from_iterable(minibatches):
                    batch_loss(config, model, reference, part)
        for minibatch in minibatches * learner.passes:
            total = 0.0
            for part in minibatch:
                loss = batch_loss(config, model, reference, part)
                loss.backward()
                total += float(loss.detach())
            losses.append(total)
            norms.append(float(torch.nn.utils.clip_grad_norm_(model.parameters(), learner.max_grad_norm)))
            optimizer.step()
            optimizer.zero_grad()
        yield Step(sum(losses) / len(losses), sum(norms) / len(norms), answers)


def divided(groups: list[list[Used]], learner: LearnerConfig) -> list[list[Used]]:
    """The answers of each mini-batch, which has whole groups, with the weights of their tokens.

    The first mini-batches have a group more where it does not come out even; with few groups there are fewer of them.
    """
    count = min(learner.minibatches, len(groups))
    sizes = [len(groups) // count + (part < len(groups) % count) for part in range(count)]
    waiting = iter(groups)
    minibatches = [[one for _ in range(size) for one in next(waiting)] for size in sizes]
    for minibatch in minibatches:
        set_weights(minibatch, learner)
    return minibatches


def learning_rate(number: int, learner: LearnerConfig) -> float:
    """Of step ``number``, from 0: it rises to ``lr``, and then stays, or falls to ``min_lr`` at the end of the run."""
    if number < learner.warmup_steps:
        return learner.lr * (number + 1) / learner.warmup_steps
    done = (number - learner.warmup_steps) / (learner.steps - learner.warmup_steps)
    left = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}[learner.lr_schedule]
    return learner.min_lr + (learner.lr - learner.min_lr) * left


def check(config: Config) -> None:
    """Refuses settings under which the system does what is not written here."""
    learner = config.learner
    for name, known in {
        "mask_truncated": (False,), "stages": ((),), "step_reward": ("",), "refill": (0,),
    }.items():  # fmt: skip
        if (value := getattr(learner, name)) not in known:
            raise FatalError(f"the reference loop implements learner.{name} = {known} only, not {value!r}")
    if config.data.curriculum < 1:
        raise FatalError(f"the reference loop implements data.curriculum = 1 only, not {config.data.curriculum}")
    if config.lora.rank:
        raise FatalError(f"the reference loop trains all weights: lora.rank = {config.lora.rank}")
    if config.router.mode in ("policy", "hybrid"):
        raise FatalError(f"the reference loop does not let the policy choose: router.mode = {config.router.mode!r}")


@command(passes_flags_on=True)
def main(
    context: typer.Context,
    *,
    record: Annotated[Path | None, typer.Option("--recorded", help="Groups of a run with learner.record.")] = None,
    out: Annotated[Path | None, typer.Option(help="Directory of the trained model.")] = None,
    micro_batch: Annotated[int, typer.Option(min=1, help="Answers in a forward pass.")] = 8,
) -> None:
    config = load(context.args) if record is None else recording.read(record)[0]
    if record is not None and (later := recording.later_configurations(record)):
        raise FatalError(
            f"{record} is of a run that resumed with another configuration from step {min(later)} on, and the "
            "reference loop trains with one: move the files of the steps from there on elsewhere"
        )
    check(config)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        model = AutoModelForCausalLM.from_pretrained(config.model.path, dtype=torch.float32)
    except (OSError, ValueError) as error:
        raise FatalError(f"cannot load model.path = {config.model.path!r}: {error}") from None
    model.to(device)  # type: ignore[arg-type]  # the wrapper that transformers puts around it has no types
    batches = generated(config, model) if record is None else recorded(record)
    for number, step in enumerate(train(config, model, batches, micro_batch), start=1):
        scored = [answer for answer in step.answers if answer.scored]
        reward = sum(answer.reward for answer in scored) / max(len(scored), 1)
        compliance = sum(answer.compliant for answer in step.answers) / len(step.answers)
        languages = Counter(answer.language for answer in step.answers)
        print(
            f"step {number}: loss {step.loss:.6f}, gradient norm {step.grad_norm:.4f}, reward {reward:.3f}, "
            f"compliance {compliance:.2f}, answers {dict(languages.most_common())}"
        )
    if out is not None:
        model.save_pretrained(out)


if __name__ == "__main__":
    main()
