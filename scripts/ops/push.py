"""Uploads the trained policy of a finished run to the Hugging Face Hub, with a model card made of its summary.

    python -m scripts.ops.push RUN_DIR OWNER/NAME [--private]
    python -m scripts.ops.push RUN_DIR OWNER/NAME --to DIR      # offline: writes what would be uploaded

The upload needs an account: ``hf auth login``, or the environment variable HF_TOKEN. The repository is made if there
is none. Only the model and the card are uploaded; the card shows no paths or addresses of this machine.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer
from huggingface_hub import HfApi, ModelCard, ModelCardData
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined] # its documentation lists it

from common.config import Config
from common.hub import may_be_of_hub
from common.process import FatalError
from scripts.ops.command_line import command

_CARD = "README.md"
_PAPER = "2605.25360"
_USE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("{repo}")
tokenizer = AutoTokenizer.from_pretrained("{repo}")
```"""
# Settings that name files, hosts, processes or addresses of whoever trained, with a slash in them or without.
_PLACES = frozenset({
    "run.dir", "run.rendezvous", "data.train", "data.heldout", "model.path", "actor.name", "actor.engine_url",
    "actor.engine_port", "reward.addresses", "reward.replica", "reward.function", "reward.judges",
    "reward.language_model", "reward.calibration", "learner.address", "learner.torchrun", "learner.record",
    "learner.step_reward", "sync.host", "sync.port", "sync.directory",
})  # fmt: skip
# Further flags of an engine that do so; what they are called is the engine's affair.
_PLACE_FLAG = re.compile(r"addr|host|url|port|path|dir|file|log|name|key|token|endpoint|proxy", re.IGNORECASE)
_PROMPTS = {
    "tag": "A question is asked with the language's tag in front of it, as in training.",
    "system": "The language of the answer is asked for by an instruction in the system prompt, as in training.",
    "select": "The answer begins with a header that names its language, as in training.",
    "plain": "Questions are asked as they are, as in training: nothing asks for a language.",
}


def model_card(summary: Mapping[str, Any], repo: str) -> ModelCard:
    """The card of a run's policy.

    Args:
        summary: as ``summary.json`` has it.
        repo: ``OWNER/NAME`` on the hub.
    """
    settings = summary["config"]
    base = settings["model"]["path"]
    data = ModelCardData(
        language=list(settings["run"]["languages"]),
        library_name="transformers",
        pipeline_tag="text-generation",
        base_model=base if _is_hub_name(base) else None,
        tags=["lrpo", "grpo", "multilingual", f"arxiv:{_PAPER}"],
    )
    origin = f"`{base}`" if _is_hub_name(base) else "a local model"
    lines = [
        f"# {repo.rpartition('/')[2]}",
        "",
        f"Trained from {origin} with lrpo, reinforcement learning across languages: GRPO in which a bandit picks the "
        f"languages of the answers ([arXiv {_PAPER}](https://arxiv.org/abs/{_PAPER})).",
        "",
        "## Results",
        "",
        *_table(["", "before", "after"], _results(summary)),
        "",
        "Rewards are those of greedy answers in the question's own language, as the run's reward function gives them; "
        "they compare policies of one run and are not a benchmark.",
    ]
    by_language = summary.get("reward_by_language") or {}
    if by_language:
        rows = [[language, f"{value:.3f}"] for language, value in sorted(by_language.items())]
        lines += ["", *_table(["language", "reward after training"], rows)]
    lines += [
        "",
        "## Use",
        "",
        _USE.format(repo=repo),
        "",
        _PROMPTS[settings["model"]["prompt_style"]],
        "",
        "## Training",
        "",
        f"{summary['steps']} steps, {summary['groups_trained']} groups of answers trained; staleness at most "
        f"{summary['staleness_max']} policy updates (bound {summary['staleness_bound']}).",
        "",
        "Settings that differ from the defaults:",
        "",
        *_table(["setting", "value"], [[f"`{key}`", f"`{value}`"] for key, value in _changed_settings(settings)]),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n".join(lines) + "\n")


def stage(run_dir: Path, repo: str, out: Path) -> None:
    """Writes the model and its card into ``out``, which is empty or does not exist.

    Raises:
        FatalError: the run has not ended, or ``out`` holds files.
    """
    try:
        summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise FatalError(f"{run_dir} holds no finished run ({error}); a run writes summary.json when it ends") from None
    if not (run_dir / "model" / "config.json").is_file():
        raise FatalError(f"{run_dir / 'model'} holds no exported model; a run exports its policy when it ends")
    if out.is_dir() and any(out.iterdir()):
        raise FatalError(f"{out} is not empty; give --to a new directory")
    shutil.copytree(run_dir / "model", out, dirs_exist_ok=True)
    model_card(summary, repo).save(out / _CARD)


def upload(run_dir: Path, repo: str, private: bool) -> str:
    """Makes the repository if there is none, and uploads the model and its card in one commit.

    Returns:
        The address of the repository.

    Raises:
        FatalError: the run has not ended, or the hub refuses or cannot be reached.
    """
    with tempfile.TemporaryDirectory(dir=run_dir) as directory:
        stage(run_dir, repo, Path(directory))
        api = HfApi()
        try:
            url = api.create_repo(repo, private=private, exist_ok=True)
            api.upload_folder(repo_id=repo, folder_path=directory, commit_message="Model trained with lrpo")
        except OfflineModeIsEnabled:
            raise FatalError(
                "HF_HUB_OFFLINE=1 keeps this process from the hub: set HF_HUB_OFFLINE=0 to upload, or write a "
                "directory with --to DIR"
            ) from None
        except LocalTokenNotFoundError:
            raise FatalError("no account for the hub; run `hf auth login` or set HF_TOKEN") from None
        except (HfHubHTTPError, httpx.HTTPError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise FatalError(
                f"cannot upload to {repo}: {reason}; check the name, the network, and the token (`hf auth whoami`)"
            ) from None
    return str(url)


def _results(summary: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for label, name in (
        ("reward, trained questions", "reward"),
        ("reward, held-out questions", "heldout"),
        ("answers in the right language", "compliance"),
    ):
        figures = [summary.get(f"{name}_{when}") for when in ("before", "after")]
        if any(figure is not None for figure in figures):
            rows.append([label, *("not measured" if figure is None else f"{figure:.3f}" for figure in figures)])
    return rows


def _table(header: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def _changed_settings(settings: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Settings that are not the defaults, by their full name, without those that name places."""
    defaults = Config().model_dump(mode="json")
    for section, values in settings.items():
        for key, value in values.items():
            name = f"{section}.{key}"
            if name == "actor.engine_args":
                value = {flag: one for flag, one in value.items() if not _PLACE_FLAG.search(flag)}
            if value != defaults.get(section, {}).get(key) and name not in _PLACES and not _looks_like_a_place(value):
                yield name, json.dumps(value, ensure_ascii=False)


def _looks_like_a_place(value: Any) -> bool:
    return "/" in json.dumps(value)


def _is_hub_name(path: str) -> bool:
    """Whether a model's path is a name on the hub with its owner, like ``Qwen/Qwen3-0.6B``, and no directory."""
    return "/" in path and may_be_of_hub(path)


@command()
def main(
    run_dir: Annotated[Path, typer.Argument(help="Directory of a finished run.")],
    repo: Annotated[str, typer.Argument(help="OWNER/NAME on the hub.")],
    *,
    to: Annotated[Path | None, typer.Option(help="Write what would be uploaded into this directory.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a new repository private.")] = False,
) -> None:
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise FatalError(f"{repo!r} is no name of a repository: {error}") from None
    if to is not None:
        stage(run_dir, repo, to)
        print(f"wrote the model and its card to {to}")
    else:
        print(f"uploaded to {upload(run_dir, repo, private)}")


if __name__ == "__main__":
    main()
