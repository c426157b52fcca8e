"""What is uploaded of a run: its model, and a card with the figures of its summary and no paths of this machine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config import Config, load
from scripts.ops import push


def finished_run(directory: Path, policy: Path, rng: np.random.Generator, base: str) -> dict[str, Any]:
    directory.mkdir()
    (directory / "model").symlink_to(policy)
    flags = ["--run.dir", str(directory), "--data.train", str(directory / "secret.parquet"), "--model.path", base]
    flags += ["--run.languages", '["de", "sw"]', "--learner.lr", "0.00025", "--learner.address", "tcp://10.1.2.3:5700"]
    flags += [
        "--learner.torchrun",
        "gpu-node17.corp:29400",
        "--sync.host",
        "gpu-node17",
        "--actor.name",
        "gpu-node17-0",
    ]
    flags += ["--learner.step_reward", "secret.py:mine", "--run.rendezvous", "secret", "--actor.engine_args.tp", "2"]
    flags += ["--actor.engine_args.dist_init_addr", "gpu-node17:5000", "--reward.judges", '["m@http://gpu-node17:1"]']
    summary = {
        "config": load(flags).model_dump(mode="json"), "steps": int(rng.integers(2, 900)), "groups_trained": 77,
        "staleness_max": 1, "staleness_bound": 2, "reward_by_language": {"sw": float(rng.random()), "de": 0.5},
    }  # fmt: skip
    names = ("reward", "heldout", "compliance")
    summary |= {f"{name}_{when}": float(rng.random()) for name in names for when in ("before", "after")}
    summary["heldout_before"] = None
    (directory / "summary.json").write_text(json.dumps(summary))
    return summary


def test_the_directory_holds_the_model_and_a_card_of_the_summary(
    tmp_path: Path, tiny_policy: Path, rng: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir, out = tmp_path / "run", tmp_path / "out"
    summary = finished_run(run_dir, tiny_policy, rng, "Qwen/Qwen3-0.6B")
    push.main([str(run_dir), "someone/swahili-policy", "--to", str(out)])
    assert str(out) in capsys.readouterr().out
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert model.config.vocab_size >= len(tokenizer)
    card = ModelCard.load(out / "README.md")
    assert (card.data.language, card.data.base_model) == (["de", "sw"], "Qwen/Qwen3-0.6B")
    assert 'from_pretrained("someone/swahili-policy")' in card.text and "# swahili-policy" in card.text
    after, before = summary["reward_after"], summary["reward_before"]
    assert f"| reward, trained questions | {before:.3f} | {after:.3f} |" in card.text
    assert f"| reward, held-out questions | not measured | {summary['heldout_after']:.3f} |" in card.text
    assert f"| sw | {summary['reward_by_language']['sw']:.3f} |" in card.text
    assert f"{summary['steps']} steps" in card.text and "| `learner.lr` | `0.00025` |" in card.text
    whole = (out / "README.md").read_text(encoding="utf-8")
    assert not any(word in whole for word in (str(tmp_path), "secret", "10.1.2.3", "gpu-node17")), whole
    assert '| `actor.engine_args` | `{"tp": 2}` |' in card.text


# Settings that may hold a text and name no place: they may be shown.
_NO_PLACES = {
    "run.languages", "run.other_languages", "data.columns", "data.language", "model.header", "model.template_args",
    "model.instructions", "router.fixed_language", "router.region_topics", "router.initial", "actor.engine_args",
    "reward.terms", "reward.parts", "reward.pivot", "reward.pivot_language", "reward.judge_prompt",
    "reward.judge_sampling", "reward.near_languages", "reward.embedder", "reward.device", "learner.decoupled_parts",
    "learner.evaluate_unseen", "lora.targets", "resume.accept",
}  # fmt: skip


def test_of_every_setting_it_is_decided_whether_the_card_may_show_it() -> None:
    """One that may hold any text, not only a few words of ours, may hold a host or a directory."""
    texts = {
        f"{section}.{key}"
        for section, model in Config.model_fields.items()
        for key, field in getattr(model.annotation, "model_fields", {}).items()
        if re.search(r"\bstr\b|Path|Any", str(field.annotation))
    }
    assert texts - push._PLACES == _NO_PLACES, "decide whether push._PLACES is to name it"
    known = {f"{section}.{key}" for section, values in Config().model_dump().items() for key in values}
    assert known >= push._PLACES, "these settings exist"


def test_an_upload_is_one_commit_of_the_same_files(
    tmp_path: Path, tiny_policy: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_dir = tmp_path / "run"
    finished_run(run_dir, tiny_policy, rng, str(tiny_policy))
    seen: dict[str, Any] = {}

    class Hub:
        def create_repo(self, repo: str, private: bool, exist_ok: bool) -> str:
            seen["made"] = (repo, private, exist_ok)
            return f"https://huggingface.co/{repo}"

        def upload_folder(self, repo_id: str, folder_path: str, commit_message: str) -> None:
            seen["files"] = {path.name for path in Path(folder_path).iterdir()}
            seen["card"] = ModelCard.load(Path(folder_path) / "README.md").data.to_dict()

    monkeypatch.setattr(push, "HfApi", Hub)
    push.main([str(run_dir), "someone/policy", "--private"])
    assert seen["made"] == ("someone/policy", True, True)
    assert seen["files"] == {*(path.name for path in tiny_policy.iterdir()), "README.md"}
    assert "base_model" not in seen["card"], "a local directory means nothing to others"
    assert {path.name for path in run_dir.iterdir()} == {"model", "summary.json"}, "nothing is left in the run"


def test_errors_say_what_to_do(
    tmp_path: Path, tiny_policy: Path, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    def message(*arguments: object) -> str:
        with pytest.raises(SystemExit) as error:
            push.main([str(argument) for argument in arguments])
        return str(error.value.code)

    run_dir = tmp_path / "run"
    assert "holds no finished run" in message(tmp_path, "a/b")
    finished_run(run_dir, tiny_policy, rng, "Qwen/Qwen3-0.6B")
    assert "'a b' is no name of a repository" in message(run_dir, "a b")
    assert "is not empty" in message(run_dir, "a/b", "--to", run_dir)
    (run_dir / "model").unlink()
    assert "holds no exported model" in message(run_dir, "a/b")
    (run_dir / "model").symlink_to(tiny_policy)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert "set HF_HUB_OFFLINE=0 to upload" in message(run_dir, "a/b")
