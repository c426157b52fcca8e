"""Configuration: files and flags compose, and every mistake is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.config import Config, ConfigError, load, usage
from common.config.former import FORMER

ROOT = Path(__file__).parents[2]


def test_later_files_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[learner]\nlr = 1e-5\nsteps = 7\n[run]\nlanguages = ["en", "Chinese"]\n')
    (tmp_path / "b.toml").write_text("[learner]\nlr = 2e-5\n")
    config = load([str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "--learner.kl=0", "--run.dir", "runs/x"])
    assert (config.learner.lr, config.learner.steps, config.learner.kl) == (2e-5, 7, 0.0)
    assert config.run.languages == ("en", "zh") and config.run.dir == Path("runs/x")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--learner.staleness_bound", "2"], "unknown key 'learner.staleness_bound'; did you mean 'learner.staleness'"),
        (["--reward.gate_piece", "80"], "reward.gate_piece is gone: the language gate has no pieces"),
        (["--reward.gate_piece", "80"], "as in reward.gate_share = 0.12"),
        (["--router.indifference", "0.1"], "router.indifference is gone: it is now router.diversity"),
        (["--lerner.lr", "1"], "unknown key 'lerner'; did you mean 'learner'"),
        (["--learner.lr", "fast"], "learner.lr = 'fast'"),
        (["--learner.lr", "-1"], "learner.lr = -1"),
        (["--learner.lr"], "--learner.lr needs a value"),
        (["--run.languages", '["klingon"]'], "unknown language 'klingon'"),
        (["--run.languages", '["en", "de", "English"]'], "languages: 'en' stands there twice"),
        (["--run.languages", '["no", "de", "nynorsk"]'], "languages: 'no' and 'nn' count as one language"),
        (["--run.languages", "en,zh"], "run.languages = 'en,zh': a list is meant"),
        (["--router.own_language", "9"], "own_language = 9 exceeds rollouts = 8"),
        (["--reward.replica", "1"], "there are 1 addresses"),
        (["--learner.lr", "inf"], "learner.lr = inf: Input should be a finite number"),
        (["--reward.similarity_range", "[nan, 1.0]"], "reward.similarity_range.0 = nan"),
        (["--learner.betas", "[0.9, 1.0]"], "learner.betas.1 = 1.0"),
        (["--run.seed", "-1"], "run.seed = -1"),
        (["--sync.port", "70000"], "sync.port = 70000"),
        (["--learner.lease_timeout_s", "2"], "learner.lease_timeout_s = 2"),
        (["nowhere.toml"], "cannot read configuration nowhere.toml"),
        (["--learner.lr", "1", "stray"], "unexpected argument 'stray'"),
    ],
)
def test_mistakes_are_named(arguments: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(arguments)


def test_what_has_taken_the_place_of_a_former_setting_is_one() -> None:
    known = {line.split()[0].removeprefix("--") for line in usage().splitlines() if line.startswith("  --")}
    for former, told in FORMER.items():
        assert former not in known
        given = re.findall(r"as in (\S+) = (\S+)$", told)
        assert len(given) == 1 and load([f"--{given[0][0]}", given[0][1]])


def test_the_help_has_every_setting_as_it_may_be_given() -> None:
    told = [line.split(maxsplit=1) for line in usage().splitlines() if line.startswith("  --")]
    assert {flag.split(".")[0] for flag, _ in told} == {f"--{section}" for section in Config.model_fields}
    assert load([word for pair in told if pair[1] != "null" for word in pair]) == Config()


@pytest.mark.parametrize("content", [b"[learner\n", b'[run]\ndir = "\xff"\n'])
def test_broken_toml_names_the_file(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "broken.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"broken\.toml is not valid TOML"):
        load([str(tmp_path / "broken.toml")])


CONFIGS = ROOT / "configs"
MODELS = sorted((CONFIGS / "models").glob("*.toml"))


@pytest.mark.parametrize(
    "path", sorted({*CONFIGS.rglob("*.toml")} - {*CONFIGS.glob("pools/*")}), ids=lambda path: path.name
)
def test_shipped_configurations_load(path: Path) -> None:
    load([str(path)])


@pytest.mark.parametrize("model", MODELS, ids=lambda path: path.stem)
@pytest.mark.parametrize("base", ["lrpo.toml", "recipes/lrpo-paper.toml"])
def test_a_models_file_says_what_is_special_to_it(base: str, model: Path) -> None:
    before, after = (load([str(CONFIGS / base), *more]).model_dump() for more in ([], [str(model)]))
    changed = {f"{s}.{key}" for s, section in after.items() for key in section if section[key] != before[s][key]}
    assert changed <= {"run.dir", "model.path", "actor.groups_in_flight"} and "model.path" in changed
    for gpus in (1, 4, 8):
        load([str(CONFIGS / base), str(model), str(CONFIGS / f"gpus-{gpus}.toml")])
