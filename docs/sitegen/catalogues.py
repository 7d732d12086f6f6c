"""Reference pages of what the code keeps a list of: methods, benchmarks, metrics, and the shipped configs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from csr_ray import metrics
from csr_ray.app.benchmarks import IN_RUNS
from csr_ray.app.methods import methods_as_plain
from csr_ray.config.load import method_names
from csr_ray.evaluation.benchmarks import NAMES, benchmark_of
from csr_ray.metrics import Metric
from sitegen.config_keys import FOLDER as KEYS
from sitegen.markdown_text import block, code, plain, prose, sentence, table

METHODS, BENCHMARKS, METRICS, CONFIGS = (
    f"reference/{name}.md" for name in ("methods", "benchmarks", "metrics", "configs")
)
# The page that says more of a method, where it does not bear the method's name.
_PAGES = {
    "clip_filter": "self_training.md",
    "csr": "methods.md",
    "illume": "self_training.md",
    "people": "annotate.md",
    "post_hoc": "vdd.md",
    "sft": "annotated.md",
}
_NEEDS = {
    "truth": "a reference answer with each prompt (the column `truth`)",
    "judge": "somebody who judges in words ([judges](../judges.md))",
    "scorer": "CLIP (the section [`scorer`](config/scorer.md))",
    "people": "a file of what people have decided ([people as judges](../annotate.md))",
}
_UNITS = {"seconds": "seconds", "bytes": "bytes", "ratio": "a share", "nats": "nats", "usd": "US dollars"}
_METHODS_INTRO = """\
# Methods

`method: NAME` in a config picks one, and `csr-ray methods NAME` prints what this page says of it.
[Methods](../methods.md) compares all of them on one world and one budget, and says how to add one;
[choose a method](../howto/choose-a-method.md) goes by what you have.
"""
_BENCHMARKS_INTRO = """\
# Benchmarks

A benchmark is asked of a model with [`csr-ray eval`](commands/eval.md), and answers that exist already are marked
with [`csr-ray score-answers`](commands/score-answers.md). [Benchmarks](../benchmarks.md) says of each which files it
wants and what of the official figures was checked; [evaluation](../evaluation.md) has intervals and tests.
"""
_METRICS_INTRO = """\
# Metrics

Every process of a run exports these through Ray to Prometheus, which finds each under the name here with `ray_` in
front of it. All of them have the labels `run` (the last part of `run.dir`) and `role` (generator, scorer,
train_worker, registry or driver) and those that the table names. [Watching a run](../observability.md) says where
they are served and what to know when you read them. What a benchmark measures is in [evaluation](../evaluation.md),
and what `summary.json` holds in [file formats](file-formats.md#summaryjson).
"""
_CONFIGS_INTRO = """\
# Configs

These files come with the repository, in the folder `configs`, and with a wheel, in the folder `share/csr_ray/configs`
of the environment that it is installed in. What every key means is in [config keys](config/index.md).
"""


def pages(root: Path) -> dict[str, str]:
    """Every page by its place on the site.

    Args:
        root: the repository, of whose configs there is a page.
    """
    return {METHODS: _methods(), BENCHMARKS: _benchmarks(), METRICS: _metrics(), CONFIGS: _configs(root)}


def sources(root: Path) -> dict[str, str]:
    """By the path of a file that these pages show, page and anchor."""
    configs = [path.relative_to(root).as_posix() for path in (root / "configs").rglob("*.yaml")]
    methods = "csr_ray/methods"
    return {
        "configs": CONFIGS,
        **{path: f"{CONFIGS}#{_anchor_of_config(path)}" for path in configs},
        f"{methods}/__init__.py": METHODS,
        **{f"{methods}/{name}.py": f"{METHODS}#{name}" for name in method_names()},
        "csr_ray/evaluation/benchmarks/__init__.py": BENCHMARKS,
        "csr_ray/metrics.py": METRICS,
    }


def _anchor_of_config(path: str) -> str:
    return path.removeprefix("configs/").removesuffix(".yaml").replace("/", "-")


def _methods() -> str:
    parts = [_METHODS_INTRO]
    for method in methods_as_plain():
        parts += [f"## `{method['name']}` {{ #{method['name']} }}", prose(method["summary"])]
        parts.append("\n".join(f"- **{name}:** {value}" for name, value in _facts_of_method(method)))
    return "\n\n".join(parts) + "\n"


def _facts_of_method(method: dict[str, Any]) -> list[tuple[str, str]]:
    name, arxiv = method["name"], method["arxiv"]
    source = plain(method["source"]) + (f", [arXiv {arxiv}](https://arxiv.org/abs/{arxiv})" if arxiv else "")
    facts = [
        ("source", source),
        ("needs", "; ".join(_NEEDS[need] for need in method["needs"]) or "nothing but prompts and a policy"),
        ("generates for a prompt", plain(method["rollouts"])),
        ("minimises", plain(method["objective"])),
        ("configs", ", ".join(_config_link(path) for path in method["configs"]) or "–"),
    ]
    if method["keys"]:
        facts.append(("keys", f"[section `{name}`]({KEYS.removeprefix('reference/')}/{name}.md)"))
    facts.append(("more", f"[{_PAGES.get(name, name + '.md')}](../{_PAGES.get(name, name + '.md')})"))
    return facts


def _config_link(path: str) -> str:
    return f"[`{path}`](configs.md#{_anchor_of_config(path)})"


def _benchmarks() -> str:
    rows = [
        (code(name), plain(title), plain(data), "in a run, too (`eval.benchmarks`)") for name, title, data in IN_RUNS
    ]
    for name in NAMES:
        found = benchmark_of(name)
        judged = " Needs a [judge](../judges.md)." if found.needs_judge else ""
        rows.append((code(name), plain(sentence(found.title)) + judged, plain(found.data), plain(found.metrics_are)))
    sources = [(code(name), plain(benchmark_of(name).source)) for name in NAMES]
    return "\n\n".join(
        [
            _BENCHMARKS_INTRO,
            table(("name", "what it is", "reads", "figures"), rows),
            "## Sources",
            table(("name", "described in; marked as by"), sources),
            "Further official suites are measured by lmms-eval: `csr-ray eval --suite lmms-eval` "
            "([evaluation](../evaluation.md#official-suites-lmms-eval)).",
        ]
    )


def _metrics() -> str:
    rows = [_row_of_metric(metric) for metric in metrics.CATALOGUE.values()]
    return "\n\n".join([_METRICS_INTRO, table(("name", "kind", "meaning"), rows)]) + "\n"


def _row_of_metric(metric: Metric) -> tuple[str, ...]:
    meaning = prose(metric.help)
    if metric.boundaries:
        meaning += f" Buckets: {', '.join(f'{bound:g}' for bound in metric.boundaries)}."
    if metric.provoked_by:
        meaning += f" Appears with {prose(metric.provoked_by)}."
    if metric.tags:
        meaning += f" Labels: {', '.join(code(tag) for tag in metric.tags)}."
    kind = metric.kind + (f" of {_UNITS[metric.unit]}" if metric.unit else "")
    return (f"`{metric.name}`", kind, meaning)


def _configs(root: Path) -> str:
    parts = [_CONFIGS_INTRO]
    for path in sorted((root / "configs").rglob("*.yaml"), key=lambda path: (len(path.parts), path)):
        name, text = path.relative_to(root).as_posix(), path.read_text(encoding="utf-8")
        yaml.safe_load(text)
        parts += [f"## `{name}` {{ #{_anchor_of_config(name)} }}", block(text, language="yaml")]
    return "\n\n".join(parts) + "\n"
