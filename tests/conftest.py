"""What several tests need: seeds, a tiny policy with its own tokenizer, and the offline world.

Further options of pytest: ``--seed N`` replays what tests drew, ``--costs`` prints what they cost.
"""

from __future__ import annotations

import os
import random
import resource
import secrets
import sys
import zlib
from collections import defaultdict
from collections.abc import Generator, Iterator
from copy import copy
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import core, settings

from common import languages
from common.languages import tag
from tests.support import processes
from tests.support.groups import LANGUAGES

ROOT = Path(__file__).parents[1]
_SEED = "LRPO_TEST_SEED"
# The files that take longest, longest first: begun last they would keep one core busy while the others wait. The
# engine's contract is third, because SGLang starts there too, and two of its starts at a time want the same cores.
# ``--costs`` prints the figures to bring this up to date.
_LONGEST = (
    "tests/system/test_end_to_end.py",
    "tests/system/test_interrupted_starts.py",
    "tests/actor/test_engine_contract.py",
    "tests/system/test_chaos.py",
    "tests/learner/train/test_distributed.py",
    "tests/system/test_early_ends.py",
    "tests/scripts/test_compare.py",
    "tests/scripts/test_predicted.py",
    "tests/learner/weights/test_publisher.py",
    "tests/scripts/test_launchers.py",
    "tests/actor/engine/test_fleet.py",
    "tests/scripts/test_sft.py",
    "tests/reward/test_custom.py",
    "tests/scripts/test_pass_rate.py",
    "tests/reward/test_service.py",
    "tests/learner/test_replay.py",
    "tests/learner/train/test_stages.py",
)
os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported; two threads on a busy machine are slower
_LONG_S = 30.0  # a test that takes longer is named after every run: fixed waits are cheap and keep everybody waiting


@dataclass
class Cost:
    """What a test or a file takes, with its fixtures."""

    wall_s: float = 0.0
    cpu_s: float = 0.0  # of processes that it waited for, too

    def add(self, wall_s: float, cpu_s: float) -> None:
        self.wall_s, self.cpu_s = self.wall_s + wall_s, self.cpu_s + cpu_s


_costs: defaultdict[str, Cost] = defaultdict(Cost)  # by test

# A busy machine is no counterexample. Examples are of our seed, under CI too; a failure tells how to repeat its own.
settings.register_profile("ours", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("ours")
_REPEAT = (
    "comes again with --seed {seed}; examples of hypothesis do if the same tests are chosen, as it draws constants of "
    "the modules that are loaded, too"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="of what tests draw; drawn if not given, 0 where CI is set")
    parser.addoption("--costs", type=int, default=0, metavar="N", help="print what the N longest tests and files take")


def pytest_configure(config: pytest.Config) -> None:
    given = config.getoption("--seed")
    if given is None and _SEED not in os.environ:
        given = 0 if "CI" in os.environ else secrets.randbelow(10**6)
    if given is not None:
        os.environ[_SEED] = str(given)  # workers inherit it
    if config.getoption("--hypothesis-seed") is None:
        core.global_force_seed = int(os.environ[_SEED])  # type: ignore[assignment] # which is None at first


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first. ``--dist loadfile`` gives a worker whole files, so that fixtures are made once."""
    place = {name: number for number, name in enumerate(_LONGEST)}
    items.sort(key=lambda item: place.get(item.nodeid.partition("::")[0], len(place)))


def _cpu_seconds() -> float:
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used) + processes.cpu_seconds


_counted = _cpu_seconds()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Each part of a test is told with its CPU seconds, and a failed one with the seed."""
    global _counted
    report = yield
    now = _cpu_seconds()
    report.cpu_s, _counted = now - _counted, now
    if report.failed:
        report.sections.append(("what the test drew", _REPEAT.format(seed=os.environ[_SEED])))
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _costs[report.nodeid].add(report.duration, getattr(report, "cpu_s", 0.0))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    terminalreporter.write_line(f"seed {os.environ[_SEED]}")
    shown, files, total = config.getoption("--costs"), defaultdict[str, Cost](Cost), Cost()
    for name, cost in _costs.items():
        for sum_ in (files[name.partition("::")[0]], total):
            sum_.add(cost.wall_s, cost.cpu_s)
    long = sum(cost.wall_s > _LONG_S for cost in _costs.values())
    if shown or long:
        of = f"{total.wall_s:.0f} and {total.cpu_s:.0f} in all; here the longest, and all above {_LONG_S:.0f} s"
        terminalreporter.write_line(f"seconds, and seconds of a core: {of}")
    for table, count in ((_costs, max(shown, long)), (files, shown)):
        for name, cost in sorted(table.items(), key=lambda one: -one[1].wall_s)[:count]:
            terminalreporter.write_line(f"{cost.wall_s:8.1f} {cost.cpu_s:8.1f} {name}")


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """Of whatever the test draws: another one for each test and each run, the same again with ``--seed``."""
    item = request.node
    name = f"{os.environ[_SEED]} {item.path.relative_to(ROOT)} {item.name}"
    return zlib.crc32(name.encode())


@pytest.fixture(scope="module")
def module_seed(request: pytest.FixtureRequest) -> int:
    """As ``seed``, for fixtures that all tests of a file share."""
    return zlib.crc32(f"{os.environ[_SEED]} {request.path.relative_to(ROOT)}".encode())


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.fixture(autouse=True)
def _seeded_globals(seed: int) -> None:
    """For what draws without a generator of its own, and for ``tests.support.groups.seeded_generator``."""
    random.seed(seed)
    if "torch" in sys.modules:  # imported by the tests that use it: who only hands tests out does without
        sys.modules["torch"].manual_seed(seed)


@pytest.fixture(autouse=True)
def _declared_languages_are_forgotten() -> Generator[None]:
    """What a configuration of one test has in ``run.other_languages`` is unknown to the next one."""
    yield
    if languages._declared is not languages._NOTHING:
        languages._declared = languages._NOTHING
        for cached in (languages.code_of, languages.native_name):
            cached.cache_clear()


@pytest.fixture(scope="session", autouse=True)
def _read_each_language_model_once() -> Iterator[None]:
    """Every gate gets a copy with words of its own of what was read for the first one: to read it takes a fifth of a
    second, and the tests make hundreds. By now the modules of all tests of this process have been imported."""
    if "reward.gate" not in sys.modules:
        yield
        return
    gate: Any = sys.modules["reward.gate"]
    read = cache(gate.LanguageModel)

    def model(file: Path) -> Any:
        own = copy(read(file))
        own._forget_words()
        return own

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gate, "LanguageModel", model)
        yield


@pytest.fixture(scope="session")
def tiny_policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face directory: Qwen3 architecture, random weights, byte-level tokenizer with language tags."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    path = tmp_path_factory.mktemp("policy")
    special = ["<|pad|>", "<|im_start|>", "<|im_end|>", *map(tag, LANGUAGES)]
    pieces = [*special, *sorted(pre_tokenizers.ByteLevel.alphabet())]
    tokenizer = Tokenizer(models.BPE(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|pad|>",
        eos_token="<|im_end|>",
        extra_special_tokens=["<|im_start|>", *map(tag, LANGUAGES)],
    )
    fast.chat_template = (
        "{% for m in messages %}<|im_start|>{{m['role']}}\n{{m['content']}}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    fast.save_pretrained(path)
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.2,  # so that log-probabilities differ visibly between tokens and between weights
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    Qwen3ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The offline world of seed 0."""
    from scripts.world import build as world

    out = tmp_path_factory.mktemp("world")
    world.main(["--out", str(out)])
    return out
