"""Hooks of mkdocs: the order of the pages, the pages of the API reference, and links to files of the repository."""

from __future__ import annotations

import logging
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
log = logging.getLogger("mkdocs.hooks.site")

_ORDER = {  # section -> title -> page in docs/; those that do not exist are left out, and those not named come last
    "Begin": {"Home": "index", "Quick start": "quickstart", "The demo": "demo", "The demo of thoughts": "reasoning"},
    "Your own": {"Model": "models", "Data": "data", "Rewards": "rewards", "Languages": "languages"},
    "Run": {"GPUs": "gpus", "LoRA": "lora", "Cluster": "cluster", "Tuning": "tuning", "Performance": "performance"},
    "Understand": {
        "Metrics": "metrics",
        "Benchmarks": "benchmarks",
        "Losses": "losses",
        "Router": "router",
        "Staleness": "staleness",
        "How weights reach the engines": "weight-sync",
        "What happens when something fails": "failures",
        "The policy chooses its language": "explang",
        "Papers": "papers",
        "Does learned routing help?": "study",
        "Where the code is": "code",
        "Log of experiments": "log",
    },
    "Help": {"Questions and troubleshooting": "troubleshooting"},
}
_MORE = "More"
_API = {  # title -> modules whose docstrings are shown
    "Router": [
        "router.router",
        "router.modes",
        "router.posterior",
        "router.regression",
        "router.ease",
        "router.logits",
        "router.schedule",
        "router.show",
    ],
    "Rewards": [
        "reward.scorer",
        "reward.gate",
        "reward.foreign_letters",
        "reward.worth",
        "common.answer",
        "reward.terms.registry",
        "reward.calibration.formulas",
    ],
    "Actor": [
        "actor.groups",
        "actor.session",
        "actor.proof",
        "common.prompts",
        "actor.concurrency",
        "actor.engine.client",
        "actor.engine.labels",
        "actor.engine.server",
    ],
    "Training": [
        "learner.train.advantages",
        "learner.train.surrogates",
        "learner.train.objective",
        "learner.train.aggregation",
        "learner.train.schedules",
        "learner.train.lora",
        "learner.train.packing",
        "learner.train.samples",
        "learner.train.stages",
        "learner.train.fidelity",
    ],
    "Rewards of your own": ["reward.terms.custom", "reward.terms.tools", "learner.train.step_reward"],
    "Work": ["learner.groups", "learner.work.scheduler", "learner.work.actors", "learner.work.admission"],
    "Weights": ["learner.weights.publisher", "learner.weights.buckets", "learner.weights.transports"],
    "Diagnostics": [
        "common.diagnostics",
        "reward.detectors",
        "scripts.study.benchmarks.scoring",
        "scripts.study.benchmarks.published",
        "scripts.study.benchmarks.rows",
    ],
    "Reports": ["learner.report.report", "learner.report.trackers.tracker", "learner.report.bottleneck"],
    "Messages": ["common.wire.groups", "common.wire.session", "common.wire.scoring", "common.wire.weights"],
}
# Files of common/config; their comments explain the settings.
_SETTINGS = ("run", "actor", "router", "reward", "learner", "lora", "sync", "resume")
_SETTINGS_PAGE = "api/settings.md"
_LINK = re.compile(r"(?<!!)\[(?P<text>[^\]]*)\]\((?P<target>[^)#\s]+)(?P<anchor>#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds a page with all settings, and a page for each part of the API."""
    text = "# Settings\n\nEvery setting with its default. The comments give units and explain what it does.\n"
    for name in _SETTINGS:
        source = _source(f"common.config.{name}").read_text(encoding="utf-8")
        text += f"\n## {name}\n\n```python\n{source[source.index('class ') :]}```\n"
    files.append(File.generated(config, _SETTINGS_PAGE, content=text))
    for title, modules in _API.items():
        existing = [module for module in modules if _source(module).exists()]
        for module in set(modules) - set(existing):
            log.warning("the API page %r names %s, which does not exist", title, module)
        text = f"# {title}\n\n" + "\n".join(f"## `{module}`\n\n::: {module}\n" for module in existing)
        files.append(File.generated(config, _api_page(title), content=text))
    return files


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Puts the pages into order. A page that nobody has named stands under "More"."""
    existing = {path.stem for path in Path(config.docs_dir).glob("*.md")}
    nav: list[Any] = []
    for section, pages in _ORDER.items():
        if shown := [{title: f"{page}.md"} for title, page in pages.items() if page in existing]:
            nav.append({section: shown})
    if unnamed := existing - {page for pages in _ORDER.values() for page in pages.values()}:
        nav.append({_MORE: [f"{page}.md" for page in sorted(unnamed)]})
    nav.append({"Reference": [{"Settings": _SETTINGS_PAGE}, *({title: _api_page(title)} for title in _API)]})
    config.nav = nav
    return config


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turns links to files of the repository outside docs/ into links to ``repo_url``, or without one into their text.

    A link to a file that does not exist is a warning, which a strict build takes for an error.
    """
    here = posixpath.dirname(page.file.src_uri)

    def replaced(link: re.Match[str]) -> str:
        target = link["target"]
        if "://" in target or not (path := posixpath.normpath(posixpath.join("docs", here, target))) or _in_docs(path):
            return link[0]
        if not (ROOT / path).exists():
            log.warning("%s links to %s, which does not exist", page.file.src_uri, target)
            return link["text"]
        return f"[{link['text']}]({config.repo_url}/blob/main/{path})" if config.repo_url else link["text"]

    return _LINK.sub(replaced, markdown)


def _in_docs(path: str) -> bool:
    return path.startswith("docs/")


def _source(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _api_page(title: str) -> str:
    return f"api/{title.lower()}.md"
