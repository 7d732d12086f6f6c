"""The queries of cluster/grafana.json, taken apart by a parser of PromQL."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import promql_parser as promql

DASHBOARD = Path(__file__).resolve().parents[1] / "cluster" / "grafana.json"


def panels() -> list[dict[str, Any]]:
    """All panels but the rows' titles, in their order."""
    found = []
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        found += [panel, *panel.get("panels", [])]
    return [panel for panel in found if panel["type"] != "row"]


def queries() -> list[str]:
    """Every `expr`, with the intervals that Grafana would put in."""
    return [target["expr"].replace("$__rate_interval", "1m") for panel in panels() for target in panel["targets"]]


def selectors(query: str) -> Iterator[tuple[str, set[str]]]:
    """Each metric that a query asks for, and the labels that it or any aggregation around it names.

    Raises:
        ValueError: it is no PromQL.
    """
    yield from _selectors(promql.parse(query), set())


def functions(query: str) -> dict[str, set[str]]:
    """By metric, the functions that it is directly in (`rate`)."""
    found: dict[str, set[str]] = {}
    _functions(promql.parse(query), None, found)
    return found


def _functions(node: Any, inside: str | None, found: dict[str, set[str]]) -> None:
    if isinstance(node, promql.VectorSelector):
        found.setdefault(node.name, set()).add(inside or "")
    elif isinstance(node, promql.MatrixSelector):
        _functions(node.vector_selector, inside, found)
    elif isinstance(node, promql.Call):
        for part in node.args:
            _functions(part, node.func.name, found)
    else:
        for part in _parts(node):
            _functions(part, None, found)


def _selectors(node: Any, labels: set[str]) -> Iterator[tuple[str, set[str]]]:
    if isinstance(node, promql.MatrixSelector):
        node = node.vector_selector
    if isinstance(node, promql.VectorSelector):
        yield node.name, labels | {matcher.name for matcher in node.matchers.matchers}
        return
    if isinstance(node, promql.AggregateExpr) and node.modifier is not None:
        labels = labels | set(node.modifier.labels)
    for part in _parts(node):
        yield from _selectors(part, labels)


def _parts(node: Any) -> list[Any]:
    if isinstance(node, promql.BinaryExpr):
        return [node.lhs, node.rhs]
    if isinstance(node, promql.Call):
        return list(node.args)
    if isinstance(node, promql.AggregateExpr | promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        return [node.expr]
    assert isinstance(node, promql.NumberLiteral | promql.StringLiteral), type(node)
    return []
