"""What `csr-ray methods` prints: every method, its source, what it needs, and the configs that run it."""

from __future__ import annotations

import difflib
import importlib
import inspect
from pathlib import Path
from typing import Any

import yaml
from rich import box
from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from csr_ray.config.load import YAML_ERRORS, method_names, method_section, names_of_methods, print_key_rows
from csr_ray.errors import ConfigError
from csr_ray.methods.base import About, about_of

# Configs are no part of the package: a checkout has them, and an installed package names none.
_ROOT = Path(__file__).resolve().parents[2]
_CONFIGS = Path("configs") / "methods"
# In less the table has a word a line; then each method has lines of its own.
_TABLE_WIDTH = 100


def methods_as_plain(name: str | None = None) -> list[dict[str, Any]]:
    """Every method, or the one of this name, as plain values: what it says of itself, its keys and its configs.

    Raises:
        ConfigError: there is no such method.
    """
    names = method_names()
    if name is not None and name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        raise ConfigError(f"method = {name!r}: unknown; {hint}allowed: {', '.join(map(repr, names))}")
    configs = configs_by_method()
    return [_plain(one, configs=configs.get(one, [])) for one in ([name] if name else names)]


def configs_by_method(root: Path = _ROOT) -> dict[str, list[str]]:
    """The configs of `configs/methods` by the methods that they name, as paths from the project's folder.

    One that names several methods is a config of each. A file that is no config names no method, and whoever runs it
    is told why.
    """
    found: dict[str, list[str]] = {}
    for path in sorted((root / _CONFIGS).glob("*.yaml")):
        try:
            tree = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, *YAML_ERRORS):
            continue
        for method in names_of_methods(tree.get("method", "csr")) if isinstance(tree, dict) else ():
            found.setdefault(method, []).append(path.relative_to(root).as_posix())
    return found


def print_methods(*, console: Console) -> None:
    """A table with a row a method."""
    console.print(
        "csr-ray run CONFIG runs a method, csr-ray methods NAME says more of one (docs/methods.md)\n",
        markup=False,
        soft_wrap=True,
    )
    methods = methods_as_plain()
    if console.width < _TABLE_WIDTH:
        for method in methods:
            console.print(method["name"], style="bold", markup=False)
            for line in _lines(method):
                console.print(Padding(Text(line), (0, 0, 0, 2)))
        return
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for heading in ("method", "source", "needs", "rollouts a prompt", "objective", "config"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "config")
    for method in methods:
        cells = (
            method["name"],
            _source(method, between="\n"),
            ", ".join(method["needs"]) or "nothing",
            method["rollouts"],
            method["objective"],
            "\n".join(method["configs"]) or "-",
        )
        table.add_row(*map(Text, cells))
    console.print(table)


def print_method(name: str, *, console: Console) -> None:
    """What one method is, its keys with their defaults, and its configs.

    Raises:
        ConfigError: there is no such method.
    """
    (method,) = methods_as_plain(name)
    console.print(method["summary"], markup=False)
    for line in ("", *_lines(method), ""):
        console.print(line, markup=False, soft_wrap=True)
    if not method["keys"]:
        console.print("no keys of its own; csr-ray config lists those that all methods share", markup=False)
        return
    rows = [
        (
            f"{name}.{key}",
            "required" if entry["required"] else yaml.safe_dump(entry["default"]).split("\n")[0],
            entry["description"],
        )
        for key, entry in method["keys"].items()
    ]
    print_key_rows(rows, title=None, console=console)


def _lines(method: dict[str, Any]) -> list[str]:
    return [
        f"source     {_source(method)}",
        f"needs      {', '.join(method['needs']) or 'nothing but prompts and a policy'}",
        f"rollouts   {method['rollouts']}" + (", of each prompt" if method["rollouts"] != "none" else ""),
        f"objective  {method['objective']}",
        *(f"config     {path}" for path in method["configs"]),
    ]


def _plain(name: str, *, configs: list[str]) -> dict[str, Any]:
    about = about_of(name) or About(title=name, source="-", rollouts="-", objective="-")
    return {
        "name": name,
        "title": about.title,
        "summary": _summary(name),
        "source": about.source,
        "arxiv": about.arxiv,
        "needs": list(about.needs),
        "rollouts": about.rollouts,
        "objective": about.objective,
        "configs": configs,
        "keys": {
            key: {
                "required": field.is_required(),
                "default": None if field.is_required() else _as_yaml(field.get_default(call_default_factory=True)),
                "description": field.description or "",
            }
            for key, field in method_section(name).model_fields.items()
        },
    }


def _summary(name: str) -> str:
    """The heading of the method's docstring, and the first paragraph behind it."""
    text = inspect.getdoc(importlib.import_module(f"csr_ray.methods.{name}")) or ""
    return " ".join(" ".join(text.split("\n\n")[:2]).split())


def _as_yaml(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _source(method: dict[str, Any], *, between: str = ", ") -> str:
    return method["source"] + (f"{between}arXiv {method['arxiv']}" if method["arxiv"] else "")
