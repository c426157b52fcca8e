"""Configuration: files and flags compose, and every mistake is named."""

from __future__ import annotations

import re
from contextlib import nullcontext
from pathlib import Path

import pytest

from common.config import Config, ConfigError, load, usage
from common.config.former import FORMER
from common.config.other_names import ABSENT, OTHER_NAMES

ROOT = Path(__file__).parents[2]


def test_later_files_and_flags_win(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text('[learner]\nlr = 1e-5\nsteps = 7\n[run]\nlanguages = ["en", "Chinese"]\n')
    (tmp_path / "b.toml").write_text("[learner]\nlr = 2e-5\n")
    config = load([str(tmp_path / "a.toml"), str(tmp_path / "b.toml"), "--learner.kl=0", "--run.dir", "runs/x"])
    assert (config.learner.lr, config.learner.steps, config.learner.kl) == (2e-5, 7, 0.0)
    assert config.run.languages == ("en", "zh") and config.run.dir == Path("runs/x")


_OWN_KEYS = {
    "reward.terms": ("{default = {math = 1.0}}", "{default = {similarity = 1.0}}"),
    "reward.near_languages": ('{hr = ["sr"]}', '{id = ["ms"]}'),
    "reward.judge_sampling": ("{seed = 1}", "{top_p = 0.5}"),
    "reward.parts": ("{acc = 1.0}", "{lc = 1.0}"),
    "learner.decoupled_parts": ("{quality = 1.0}", "{compliance = 1.0}"),
    "router.initial": ('{"topic:Chat" = {en = 0.1}}', '{"topic:Reasoning" = {de = 0.1}}'),
    "data.columns": ('{question = "a"}', '{answer = "b"}'),
    "model.template_args": ("{enable_thinking = true}", '{date_string = "today"}'),
    "model.instructions": ('{de = "Auf Deutsch!"}', '{default = "Answer in {language}."}'),
    "actor.engine_args": ("{tp = 2}", "{max_running_requests = 4}"),
}
_NEEDS = {
    "reward.parts": ("--reward.function", "mine.py:score"),
    "model.instructions": ("--model.prompt_style", "system"),
    "learner.decoupled_parts": ("--learner.advantage", "decoupled"),
}
_ADDED_UP = {"data.columns", "model.template_args", "actor.engine_args"}


@pytest.mark.parametrize("key", _OWN_KEYS)
def test_a_whole_table_takes_the_place_of_the_one_before(tmp_path: Path, key: str) -> None:
    """A flag always; a later file but for the tables of which every file says its part. A longer key adds."""
    (section, _, name), (first, second) = key.partition("."), _OWN_KEYS[key]

    def loaded(*arguments: str) -> dict[str, object]:
        found = getattr(
            getattr(load([*arguments, "--run.languages", '["en", "de"]', *_NEEDS.get(key, ())]), section), name
        )
        return dict(found)

    for file, value in (("a.toml", first), ("b.toml", second)):
        (tmp_path / file).write_text(f"[{section}]\n{name} = {value}\n")
    one, other = loaded(f"--{key}", first), loaded(f"--{key}", second)
    assert one != other
    assert loaded(str(tmp_path / "a.toml"), f"--{key}", second) == other
    assert loaded(f"--{key}", first, f"--{section}", f"{{{name} = {second}}}") == other
    assert loaded(str(tmp_path / "a.toml"), str(tmp_path / "b.toml")) == (one | other if key in _ADDED_UP else other)


def test_a_longer_key_adds_to_a_table_or_changes_a_value_of_it(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[reward.terms.default]\nmath = 1.0\n[actor.engine_args]\ntp = 2\n")
    flags = [
        "--reward.terms.default.choice",
        "0.5",
        "--reward.terms.Chat.judge",
        "1",
        "--reward.judges",
        '["m@http://j"]',
    ]
    config = load([str(tmp_path / "a.toml"), *flags, "--actor.engine_args.tp", "4"])
    assert config.reward.terms == {"default": {"math": 1.0, "choice": 0.5}, "Chat": {"judge": 1.0}}
    assert config.actor.engine_args == {"tp": 4}
    assert load([str(tmp_path / "a.toml"), "--reward.terms.default", "{exact = 1.0}"]).reward.terms == {
        "default": {"exact": 1.0}
    }


def test_what_is_no_table_in_place_of_a_section_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text("[learner]\nlr = 1e-5\n")
    (tmp_path / "b.toml").write_text("learner = 3\n")
    with pytest.raises(ConfigError, match="learner = 3"):
        load([str(tmp_path / "a.toml"), str(tmp_path / "b.toml")])


def test_a_recipes_reward_is_replaced_and_its_columns_are_kept(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text('[reward.terms.default]\nsimilarity = 1.0\n[data.columns]\nquestion = "prompt"\n')
    recipes = ROOT / "configs" / "recipes"
    assert load([str(recipes / "dapo.toml"), str(mine)]).reward.terms == {"default": {"similarity": 1.0}}
    flag = ["--reward.terms", "{default={similarity=1.0}}"]
    assert load([str(recipes / "dapo.toml"), *flag]).reward.terms == {"default": {"similarity": 1.0}}
    mine.write_text('[data.columns]\nquestion = "prompt"\n')
    columns = load([str(recipes / "m-thinker.toml"), str(mine)]).data.columns
    assert columns["question"] == "prompt" and {"english_question", "english_thought"} <= columns.keys()


_CSC = str(ROOT / "configs" / "recipes" / "csc.toml")
_NO_FUNCTION = '[reward]\nfunction = ""\nparts = {}\n'


@pytest.mark.parametrize(
    ("text", "flags", "overruled"),
    [
        ("[reward.terms.default]\njudge = 1.0\n", [], "reward.terms"),
        ('[reward]\njudge_prompt = "{answer}?"\n', [], "reward.judge_prompt"),
        ("", ["--reward.terms.default.exact", "1.0"], "reward.terms"),
        ("", ["--reward", "{terms = {default = {exact = 1.0}}, judge_scale = [0, 5]}"],
         "reward.terms and reward.judge_scale"),
        (_NO_FUNCTION, ["--reward.terms.default.exact", "1.0"], ""),
        (_NO_FUNCTION + "[reward.terms.default]\nexact = 1.0\n", [], ""),
        ("", ["--reward.judge_calls", "3"], ""),
    ],
)  # fmt: skip
def test_terms_that_a_function_would_overrule_are_refused(
    text: str, flags: list[str], overruled: str, tmp_path: Path
) -> None:
    (tmp_path / "mine.toml").write_text(text)
    command = [_CSC, str(tmp_path / "mine.toml"), *flags]
    if not overruled:
        load(command)
        return
    complaint = f"{overruled} has no effect with reward.function = 'configs/recipes/csc.py:score'"
    with pytest.raises(ConfigError, match=re.escape(complaint)) as refused:
        load(command)
    assert 'set reward.function = "" and reward.parts = {} to score by terms' in str(refused.value)


def test_a_function_takes_the_place_of_terms_that_were_given_before(tmp_path: Path) -> None:
    """And not of those beside it."""
    (tmp_path / "terms.toml").write_text("[reward.terms.default]\nexact = 1.0\n")
    function = ["--reward.function", "mine.py:score", "--reward.parts", "{acc = 1.0}"]
    assert load([str(tmp_path / "terms.toml"), _CSC]).reward.function
    assert load([str(tmp_path / "terms.toml"), *function]).reward.function == "mine.py:score"
    with pytest.raises(ConfigError, match=r"reward\.terms has no effect"):
        load(["--reward.terms.default.exact", "1.0", *function])
    both = tmp_path / "both.toml"
    both.write_text('[reward]\nfunction = "f.py:f"\nparts = {a = 1.0}\n[reward.terms.default]\nexact = 1.0\n')
    with pytest.raises(ConfigError, match=r"reward\.terms has no effect"):
        load([str(both)])


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--reward.judges", '["judge-7b"]'], "reward.judges: 'judge-7b' names no endpoint: it takes the form MODEL@"),
        (["--reward.judges", '["m@http://h:1/v1", "m@localhost:8000"]'], "reward.judges: 'm@localhost:8000' names no"),
        (["--reward.judges", '["@http://h:1/v1"]'], "reward.judges: '@http://h:1/v1' names no endpoint"),
        (["--learner.staleness_bound", "2"], "unknown key 'learner.staleness_bound'; did you mean 'learner.staleness'"),
        (["--reward.gate_piece", "80"], "reward.gate_piece is gone: the language gate has no pieces"),
        (["--reward.gate_piece", "80"], "as in reward.gate_share = 0.12"),
        (["--learner.batch_timeout_s", "9"], "learner.batch_timeout_s is gone: it is now learner.group_timeout_s"),
        (["--router.indifference", "0.1"], "router.indifference is gone: it is now router.diversity"),
        (["--lerner.lr", "1"], "unknown key 'lerner'; did you mean 'learner'"),
        (["--learner.learning_rate", "1"], "unknown key 'learner.learning_rate'; did you mean 'learner.lr'?"),
        (["--data.train_batch_size", "1"], "did you mean 'learner.groups_per_step'?"),
        (["--router.K", "4"], "unknown key 'router.K'; did you mean 'router.rollouts'?"),
        (["--learner.temperature", "1"], "did you mean 'router.temperature' or 'sampling.temperature'?"),
        (["--model.name", "m"], "unknown key 'model.name'; did you mean 'model.path'?"),
        (["--learner.rank", "4"], "did you mean 'learner.ranks' or 'lora.rank'?"),
        (["--lr", "1"], "unknown key 'lr'; did you mean 'learner.lr'?"),
        (["--sampling.top_p", "0.9"], "unknown key 'sampling.top_p': answers are drawn from the whole distribution"),
        (["--sampling.best_of", "2"], "unknown key 'sampling.best_of'; sampling has temperature, max_new_tokens"),
        (["--shape", "x.json"], "unknown key 'shape'; there are run, data, model, router, sampling, actor, reward"),
        (
            ["--learner.stages", "[{corectness = 1}]"],
            "unknown key 'learner.stages.0.corectness'; did you mean 'learner.stages.correctness'?",
        ),
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


def test_languages_that_the_detector_lacks_are_declared_for_all_settings(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text(
        '[data]\nlanguage = "Tigrinya"\n[run]\nlanguages = ["ti", "en"]\nother_languages = {tir = "Tigrinya"}\n'
        '[reward]\nunchecked = "pass"\nnear_languages = {tir_Ethi = ["am"]}\n'
    )
    config = load([str(tmp_path / "mine.toml"), "--router.initial", '{"shared:" = {tir = 0.5}}'])
    assert config.run.languages == ("tir", "en") and config.data.language == "tir"
    assert config.router.initial == {"shared:": {"tir": 0.5}} and config.reward.near_languages == {"tir": ("am",)}
    again = Config.model_validate_json(config.model_dump_json())
    assert again == config, "as a run writes it, and its ranks read it"


@pytest.mark.parametrize(
    ("flags", "refused"),
    [
        ([], True),
        (["--reward.unchecked", "pass"], False),
        (["--reward.gated", "false"], False),
        (["--reward.near_languages", '{tir = ["am"]}'], False),
        (["--reward.near_languages", '{tir = ["xyz"]}'], True),  # none of lid.176's
        (["--reward.language_model", "mine.ftz"], False),  # the reward process looks what it knows
        (["--reward.function", "f.py:f", "--reward.parts", "{a = 1.0}"], False),
        (["--reward.function", "f.py:f", "--reward.parts", "{a = 1.0}", "--reward.gated", "true"], True),
        (["--run.languages", '["am", "en"]'], True),  # a question of its own is asked in it, too
        (["--run.languages", '["am", "en"]', "--router.own_language", "0"], True),  # where its topic is Translation
    ],
)  # fmt: skip
def test_a_gate_that_does_not_know_a_language_is_the_users_choice(flags: list[str], refused: bool) -> None:
    words = ["--run.other_languages", '{tir = "Tigrinya"}', "--run.languages", '["tir", "en"]', *flags]
    with pytest.raises(ConfigError, match="does not know tir \\(Tigrinya\\)") if refused else nullcontext():
        load(words)


def test_a_language_that_another_configuration_declared_is_not_known(tmp_path: Path) -> None:
    """As of two arms of a comparison that are read in one process, and are runs of their own."""
    load(["--run.other_languages", '{tir = "Tigrinya"}', "--reward.unchecked", "pass"])
    for flags in (["--run.languages", '["tir", "en"]'], ["--learner.evaluate_unseen", '["tir"]']):
        with pytest.raises(ConfigError, match=r"has 'tir', which lid\.176 lacks: declare it with run\.other_languages"):
            load([*flags, "--reward.unchecked", "pass"])


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ('{de = "Saxon"}', "run.other_languages: 'de' is German, which is known as 'de': leave it out"),
        ('["tir"]', "run.other_languages = ['tir']"),
    ],
)
def test_what_cannot_be_declared_is_named(given: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(complaint)):
        load(["--run.other_languages", given])


@pytest.mark.parametrize(
    ("theirs", "said"),
    [
        ("learner.beta", "did you mean 'learner.kl'?"),
        ("learner.scale_rewards", "did you mean 'learner.advantage_std'?"),
        ("learner.epsilon", "did you mean 'learner.clip_low'?"),
        ("router.epsilon", "did you mean 'router.exploration'?"),
        ("learner.epsilon_high", "did you mean 'learner.clip_high'?"),
        ("learner.num_train_epochs", "did you mean 'learner.epochs'?"),
        ("learner.num_iterations", "did you mean 'learner.passes'?"),
        ("reward.reward_funcs", "did you mean 'reward.function'?"),
        ("data.prompt_key", "did you mean 'data.columns.question'?"),
        ("data.val", "did you mean 'data.heldout'?"),
        ("data.eval", "did you mean 'data.heldout'?"),
        ("lora.r", "did you mean 'lora.rank'?"),
        ("sampling.repetition_penalty", "answers are drawn from the whole distribution"),
        ("learner.per_device_train_batch_size", "a step has learner.groups_per_step questions"),
        ("learner.gradient_accumulation_steps", "learner.microbatch_tokens says how many tokens"),
    ],
)  # fmt: skip
def test_names_of_other_trainers_lead_to_ours(theirs: str, said: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"unknown key {theirs!r}")) as error:
        load([f"--{theirs}", "1"])
    assert said in str(error.value)


def test_sections_of_verl_lead_to_ours_key_by_key() -> None:
    theirs = {
        "trainer.total_epochs": "did you mean 'learner.epochs'?",
        "trainer.n_gpus_per_node": "",
        "actor_rollout_ref.rollout.n": "did you mean 'router.rollouts'?",
        "actor_rollout_ref.rollout.top_p": "answers are drawn from the whole distribution",
        "actor_rollout_ref.actor.optim.lr": "did you mean 'learner.lr'?",
        "algorithm.kl_ctrl.kl_coef": "did you mean 'learner.kl'?",
    }
    with pytest.raises(ConfigError) as error:
        load([word for key in theirs for word in (f"--{key}", "1")])
    for key, said in theirs.items():
        (line,) = [line for line in str(error.value).splitlines() if f"unknown key {key!r}" in line]
        assert said in line
    assert str(error.value).count("lrpo from-verl SCRIPT translates a whole launch script") == 1
    with pytest.raises(ConfigError, match=r"unknown key 'optim\.lr'; did you mean 'learner\.lr'") as error:
        load(["--optim.lr", "1"])
    assert "from-verl" not in str(error.value)


def test_other_names_stand_for_settings_that_there_are() -> None:
    sections = {name: field.default.model_dump() for name, field in Config.model_fields.items()}
    known = {f"{section}.{key}" for section, keys in sections.items() for key in keys}
    assert {".".join(name.split(".")[:2]) for name in OTHER_NAMES.values()} <= known
    assert not {*OTHER_NAMES, *ABSENT} & {name.rpartition(".")[2] for name in known}


def test_the_help_has_every_setting_as_it_may_be_given() -> None:
    told = [line.split(maxsplit=1) for line in usage().splitlines() if line.startswith("  --")]
    assert {flag.split(".")[0] for flag, _ in told} == {f"--{section}" for section in Config.model_fields}
    assert load([word for pair in told for word in pair]) == Config()


OPTIONAL = {
    "run.rendezvous": "runs/meeting", "learner.record": "runs/record", "reward.calibration": "pairs.csv",
    "data.heldout": "heldout.jsonl", "data.language": "de", "data.pass_rate": "[0.1, 0.9]", "reward.gated": "false",
    "reward.bounded": "false", "router.fixed_language": "de",
}  # fmt: skip


@pytest.mark.parametrize("key", OPTIONAL)
@pytest.mark.parametrize("none", ["", '""', "null"])
def test_a_setting_that_may_have_no_value_is_switched_off_by_an_empty_one(key: str, none: str, tmp_path: Path) -> None:
    (section, _, name), value = key.partition("."), OPTIONAL[key]
    text = value if value[0] in "[f" else f'"{value}"'
    (tmp_path / "a.toml").write_text(f'run.languages = ["de"]\n{key} = {text}\n')
    if key != "router.fixed_language":
        assert getattr(getattr(load([str(tmp_path / "a.toml")]), section), name) is not None
    config = load([str(tmp_path / "a.toml"), f"--{key}", none])
    assert config == load(["--run.languages", '["de"]'])
    (tmp_path / "b.toml").write_text(f'{key} = ""\n')
    assert load([str(tmp_path / "a.toml"), str(tmp_path / "b.toml")]) == config
    assert {
        f"{s}.{key}"
        for s, section in Config().model_dump().items()
        for key, default in section.items()
        if default is None
    } == OPTIONAL.keys(), "a new one is to be tested here, too"


@pytest.mark.parametrize("key", ["run.dir", "sync.directory", "data.train"])
def test_an_empty_name_is_not_the_present_directory(key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}.*(it is empty: name a directory|at least 1 character)"):
        load([f"--{key}", ""])


def test_near_languages_are_looked_up_by_the_codes_of_any_names_they_are_given_by() -> None:
    def near(table: str) -> dict[str, tuple[str, ...]]:
        return load(["--reward.near_languages", table]).reward.near_languages

    assert near('{Norwegian = ["Danish"]}') == near('{no = ["da"]}') == {"no": ("da",)}
    assert near('{nb = ["da", "Swedish"], no = ["nynorsk", "da"]}') == {"no": ("da", "sv", "nn")}
    labels = ["su", "sh", "nap", "als", "wuu", "xx"]  # "xx" may be a label of another model
    assert near(f"{{it = {labels}}}") == {"it": tuple(labels)}
    for table in ('{Norwegish = ["da"]}', '{no = ["Dannish"]}', '{xx = ["da"]}'):
        with pytest.raises(ConfigError, match=r"reward\.near_languages: unknown language '(Norwegish|Dannish|xx)'"):
            near(table)
    written = Config().model_dump(mode="json")
    assert Config.model_validate(written).model_dump(mode="json") == written, "what a run has written stays as it is"


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
