"""Every query of the Grafana dashboard asks for a metric of the catalogue, by its labels and as its kind wants it."""

from __future__ import annotations

import json

import pytest
from dashboard import DASHBOARD, functions, panels, queries, selectors

from csr_ray.metrics import CATALOGUE, Metric

PAGE = DASHBOARD.parents[1] / "docs" / "observability.md"
ROWS = ["Overview", "Rollout", "Scoring", "Training", "Publish", "Actors and deaths", "Data", "Cost"]
EXPORTED: dict[str, Metric] = {name: metric for metric in CATALOGUE.values() for name in metric.exported}
# What nobody looks at on the dashboard, and why it is exported all the same.
NOT_SHOWN = {
    "csr_ray_rollouts_total": "csr_ray_prompts_total says the same of what is committed",
    "csr_ray_candidates_total": "csr_ray_nodes_total likewise",
    "csr_ray_tokens_total": "csr_ray_engine_tokens_total is by actor",
    "csr_ray_engine_steps_total": "the gauges of occupancy and queue are made of it",
    "csr_ray_engine_running_total": "likewise",
    "csr_ray_engine_slots_total": "likewise",
    "csr_ray_engine_waiting_total": "likewise",
    "csr_ray_prefix_queries_total": "csr_ray_prefix_hit_ratio is made of it",
    "csr_ray_prefix_hits_total": "likewise",
    "csr_ray_groups_redone_total": "a detail of one way to expand",
    "csr_ray_scorer_image_encodes_total": "a detail of the scorer's caches",
    "csr_ray_scorer_text_encodes_total": "likewise",
    "csr_ray_rollout_seconds_total": "csr_ray_stage_seconds_total has all stages",
    "csr_ray_build_seconds_total": "a small part of the rollout's time",
    "csr_ray_eval_seconds_total": "csr_ray_stage_seconds_total has all stages",
    "csr_ray_train_examples_total": "csr_ray_examples_made_total",
    "csr_ray_round_seconds_total": "csr_ray_stage_seconds_total says what of",
}


@pytest.mark.parametrize("query", queries())
def test_a_query_asks_for_what_is_exported_by_labels_that_it_has(query: str) -> None:
    found = list(selectors(query))
    assert found, "it asks for nothing"
    for name, labels in found:
        assert name in EXPORTED, f"nobody exports {name}"
        metric = EXPORTED[name]
        known = {*metric.tag_keys, *(["le"] if name.endswith("_bucket") else [])}
        assert labels <= known, f"{name} has the labels {sorted(known)}, not {sorted(labels - known)}"
        assert "run" in labels, f"{name} is asked for of all runs at once"
        over_time = functions(query)[name] & {"rate", "increase"}
        assert not over_time or metric.kind != "gauge", f"{name} is a gauge, and has no rate"


def test_queries_that_are_wrong_are_found() -> None:
    for wrong, why in (
        ('sum(ray_csr_ray_nothing_total{run="r"})', "nobody exports"),
        ('ray_csr_ray_prompts{run="r"}', "nobody exports"),
        ('sum by (actor) (ray_csr_ray_prompts_total{run="r"})', "has the labels"),
        ('rate(ray_csr_ray_replicas{run="r"}[1m])', "has no rate"),
        ("sum(ray_csr_ray_prompts_total)", "all runs at once"),
    ):
        with pytest.raises(AssertionError, match=why):
            test_a_query_asks_for_what_is_exported_by_labels_that_it_has(wrong)
    with pytest.raises(ValueError, match=r"pars|invalid|unexpected|unclosed"):
        list(selectors('sum(ray_csr_ray_prompts_total{run="r"}'))


def test_what_is_exported_is_shown_or_said_not_to_be() -> None:
    shown = {EXPORTED[name].name for query in queries() for name, _ in selectors(query)}
    assert CATALOGUE.keys() - shown == NOT_SHOWN.keys()


def test_the_page_lists_the_catalogue() -> None:
    rows = [line for line in PAGE.read_text().splitlines() if line.startswith("| `csr_ray_")]
    expected = []
    for metric in CATALOGUE.values():
        when = f" Appears with {metric.provoked_by}." if metric.provoked_by else ""
        tags = ", ".join(metric.tags) or "–"
        expected.append(f"| `{metric.name}` | {metric.kind} | {tags} | {metric.help}{when} |")
    assert rows == expected


def test_panels_have_units_and_words_and_do_not_overlap() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    assert [panel["title"] for panel in dashboard["panels"] if panel["type"] == "row"] == ROWS
    assert dashboard["id"] is None and dashboard["schemaVersion"] >= 38, "Grafana 10 imports it as a new one"
    datasource, run = dashboard["templating"]["list"]
    assert (datasource["type"], run["query"]["query"]) == (
        "datasource",
        "label_values(ray_csr_ray_journal_lines_total, run)",
    )
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert place["x"] + place["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)
    for panel in panels():
        assert panel["description"].endswith(".") and panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
        assert all(target["legendFormat"] for target in panel["targets"])
