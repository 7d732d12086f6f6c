"""`from csr_ray import run, load_run`: a run's folder as objects and tables, on runs of the real loop with fakes."""

from __future__ import annotations

import ast
import json
import os
import runpy
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from checked_runs import CheckedDriver, finished_run
from fakes import FakeGenerators, tiny_config
from s3_server import Door, Trouble, s3_door
from test_gate import Driver as GatedDriver
from test_gate import by_dose
from test_loop import SUITE, merged_model
from url_runs import UrlDriver, fake_model

import csr_ray
from csr_ray import load_run
from csr_ray.config.load import load_config, to_plain
from csr_ray.errors import ConfigError, DamageError
from csr_ray.records import Cycle
from csr_ray.store.journal import Journal
from csr_ray.store.lock import lock_folder
from csr_ray.store.run_folder import RunFolder
from csr_ray.store.tables import CANDIDATES, PAIRS

__all__ = ["fake_model", "merged_model"]  # fixtures

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "docs" / "examples" / "first_look.py"
NUM_LARGE = 50_000
MOST_GROWTH_BYTES = 112 * 2**20


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `datasets` keeps, it keeps where the test ends."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path_factory.mktemp("datasets"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> CheckedDriver:
    """Two rounds of five prompts, one of which was set aside."""
    return finished_run(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: CheckedDriver) -> csr_ray.Run:
    return load_run(finished.folder.root)


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    """Every file with its bytes and time."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


# ---- the front door ----


def test_importing_the_package_imports_nothing_else_of_it() -> None:
    code = "import sys; before = set(sys.modules); import csr_ray; print(sorted(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    found = ast.literal_eval(done.stdout)
    assert [name for name in found if name.split(".")[0] not in sys.stdlib_module_names] == ["csr_ray"], found
    assert len(found) < 20


def test_opening_a_run_loads_neither_torch_nor_ray(finished: CheckedDriver) -> None:
    heavy = ("torch", "ray", "vllm", "transformers", "pandas", "datasets")
    code = (
        "import sys; from csr_ray import load_run; run = load_run(sys.argv[1]); list(run.rounds[0].trees());"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    argv = [sys.executable, "-c", code, str(finished.folder.root)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done


def test_every_offered_name_is_there_and_is_what_type_checkers_see() -> None:
    for name in csr_ray.__all__:
        assert getattr(csr_ray, name).__doc__ or name == "__version__"
    assert set(dir(csr_ray)) == set(csr_ray.__all__)
    with pytest.raises(AttributeError, match="no attribute 'walk'"):
        csr_ray.walk  # noqa: B018
    tree = ast.parse((ROOT / "csr_ray" / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {(str(node.module), alias.name) for node in block.body for alias in node.names}  # type: ignore[attr-defined]
    assert seen == {(module, name) for module, names in csr_ray._OFFERED.items() for name in names}
    assert {name for _, name in seen} == set(csr_ray.__all__) - {"__version__"}


# ---- what a run has ----


def test_a_finished_run_says_of_itself_what_its_summary_says(run: csr_ray.Run, finished: CheckedDriver) -> None:
    kept = json.loads(finished.folder.summary.read_text())
    assert json.loads(json.dumps(run.summary)) == kept
    assert [json.loads(json.dumps(one.figures)) for one in run.rounds] == kept["rounds"]
    assert run.is_finished and [one.number for one in run.rounds] == [1, 2]
    assert run.config == load_config(finished.folder.config)
    assert [one.policy_version for one in run.rounds] == [1, 2]
    assert run.rounds[0].phases == ("main",) and run.rounds[0].method == "csr"
    assert [one.adapters for one in run.rounds] == [
        (str(finished.folder.adapter(Cycle(round_index=index))),) for index in (0, 1)
    ]
    assert run.model == str(finished.folder.model) and Path(run.model).is_dir()
    assert run.path == str(finished.folder.root)


def test_what_was_set_aside_is_there_with_its_reason(run: csr_ray.Run, finished: CheckedDriver) -> None:
    lines = [json.loads(line) for line in finished.folder.quarantine.read_text().splitlines()]
    assert [(one.id, one.reason, one.fault) for one in run.quarantine] == [
        (line["id"], line["reason"], line["fault"]) for line in lines
    ]
    assert len(run.quarantine) == len(lines) > 0
    assert run.quarantine.by_reason() == Counter(line["reason"] for line in lines)
    assert run.quarantine.to_pandas()["id"].tolist() == ["p1"] * len(lines)
    assert run.quarantine.to_datasets()[0] == lines[0]
    assert next(iter(run.quarantine.to_datasets(streaming=True))) == lines[0]


def test_a_line_of_the_quarantine_that_cannot_be_read_is_one_and_half_a_line_is_none(
    finished: CheckedDriver, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    with (tmp_path / "run" / "quarantine.jsonl").open("a") as file:
        file.write('[1]\n{"id": "p7", "sou')
    *whole, odd = load_run(tmp_path / "run").quarantine
    assert [one.id for one in whole] == ["p1"] * len(whole)
    assert (odd.source, odd.reason) == (f"quarantine.jsonl:{len(whole) + 1}", "its line cannot be read")


def test_the_verdicts_of_the_gate_are_those_of_the_journal(tmp_path: Path) -> None:
    driver = GatedDriver(tmp_path / "run")
    driver.folder.config.write_text(yaml.safe_dump(to_plain(driver.config)))
    driver.health = by_dose(0.5)
    driver.run()
    first, second = load_run(tmp_path / "run").rounds
    assert [(one.attempt, one.accepted) for one in first.verdicts] == [(1, False), (2, True)]
    assert [one.accepted for one in second.verdicts] == [True]
    refused, accepted = first.verdicts
    assert refused.faults and not accepted.faults and refused.phase == "main"
    assert {"name", "before", "after", "difference", "fault"} <= set(refused.findings[0])


def test_a_tree_knows_its_nodes_and_the_pair_is_its_best_against_its_worst(run: csr_ray.Run) -> None:
    trees = list(run.rounds[0].trees())
    assert [tree.id for tree in trees] == ["p0", "p2", "p3", "p4"] and len(run.rounds[0].trees()) == 4
    for tree in trees:
        assert tree.question == "Describe." and tree.image.endswith(".png") and tree.policy_version == 0
        assert [node.index for node in tree.nodes] == list(range(len(tree)))
        for node in tree.nodes:
            assert all(child.parent is node for child in node.children)
            assert node.path[-1] is node and node.path[0].parent is None and len(node.path) == node.depth
            assert node.parent is None or node in node.parent.children
        assert all(node in tree.roots for node in tree.nodes if node.parent is None)
        assert {answer.nodes[-1] for answer in tree.answers} == {node for node in tree.nodes if node.final}
        assert str(tree).count("\n") == len(tree) and str(tree).startswith(f"{tree.id}: Describe.")
    by_id = {tree.id: tree for tree in trees}
    pairs = list(run.rounds[0].pairs())
    assert len(pairs) == len(run.rounds[0].pairs()) == 4
    for pair in pairs:
        best, worst = by_id[pair.id].best, by_id[pair.id].worst
        assert best is not None and worst is not None
        assert (best.text, best.reward, best.token_ids) == (
            pair.chosen.text, pair.chosen.reward, pair.chosen.token_ids,
        )  # fmt: skip
        assert (worst.text, worst.reward, worst.logp) == (
            pair.rejected.text, pair.rejected.reward, pair.rejected.logp,
        )  # fmt: skip
    assert repr(run.rounds[1].tree("p3")) == repr(list(run.rounds[1].trees())[2])
    with pytest.raises(KeyError, match="no rollout of prompt 'p1'"):
        run.rounds[0].tree("p1")


def test_answers_of_evaluations_come_with_their_marks(tmp_path: Path) -> None:
    driver = CheckedDriver(tmp_path / "run")
    driver.suite = SUITE
    driver.run()
    run = load_run(tmp_path / "run")
    base, after = list(run.answers(0)), list(run.rounds[0].answers())
    assert [answer.id for answer in base] == [answer.id for answer in after] == ["q1"]
    assert "pope_acc" in base[0].mark.counts
    assert run.answers(0).to_datasets()[0]["counts"][0]["name"] in base[0].mark.counts
    assert len(run.answers(7)) == 0 and list(run.answers(7)) == []


# ---- as tables ----


@pytest.mark.parametrize("what", ["pairs", "trees"])
def test_every_form_of_a_table_has_the_same_rows(run: csr_ray.Run, finished: CheckedDriver, what: str) -> None:
    rows = getattr(run, what)()
    folder = finished.folder.root
    paths = sorted(folder.glob("round_*/pairs.parquet" if what == "pairs" else "round_*/candidates/*.parquet"))
    count = sum(pq.read_metadata(path).num_rows for path in paths)
    assert sorted(rows.files) == paths and rows.num_rows == count
    table = rows.to_arrow().read_all()
    assert table.schema == rows.schema == (PAIRS if what == "pairs" else CANDIDATES) and len(table) == count
    plain = table.select(["id", "policy_version"]).to_pylist()
    assert rows.to_pandas(columns=["id", "policy_version"]).to_dict("records") == plain
    frames = list(rows.iterate_pandas(columns=["id", "policy_version"], rows=3))
    assert [row for frame in frames for row in frame.to_dict("records")] == plain
    assert max(map(len, frames)) <= 3 < count
    for streaming in (False, True):
        found = rows.to_datasets(columns=["id", "policy_version"], streaming=streaming)
        assert [dict(row) for row in found] == plain
    with pytest.raises(ValueError, match="no column 'colour'; there are id, "):
        rows.to_arrow(columns=["colour"])


def test_a_data_set_of_a_run_that_was_started_anew_has_the_new_rows(finished: CheckedDriver, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "a [run] of * kinds")
    shutil.copytree(finished.folder.root, folder.root)
    assert load_run(folder.root).pairs().to_datasets().num_rows == 8
    pq.write_table(pq.read_table(folder.pairs(Cycle(round_index=0))).slice(0, 1), folder.pairs(Cycle(round_index=0)))
    assert load_run(folder.root).pairs().to_datasets().num_rows == 5


def test_tables_of_an_earlier_version_have_nulls_and_lists_in_the_places_of_what_is_new(
    finished: CheckedDriver, tmp_path: Path
) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    for path in (tmp_path / "run").glob("round_*/candidates/*.parquet"):
        table = pq.read_table(path)
        named = [[("cut", 1.0), ("fair", None)]] + [None] * (len(table) - 1)
        scores = pa.array(named, pa.map_(pa.string(), pa.float64()))
        at = table.schema.get_field_index("scores")
        pq.write_table(table.set_column(at, "scores", scores).drop_columns(["truth"]), path)
    trees = load_run(tmp_path / "run").trees()
    rows = trees.to_arrow().read_all()
    assert rows.schema == CANDIDATES and rows["truth"].null_count == len(rows)
    assert rows["scores"][0].as_py() == [{"name": "cut", "value": 1.0}, {"name": "fair", "value": None}]
    assert next(iter(trees.to_datasets(streaming=True)))["scores"][0] == {"name": "cut", "value": 1.0}
    with pytest.raises(DamageError, match="csr-ray check"):  # objects need the column
        next(iter(trees))


def large_run(root: Path) -> None:
    """One round of pairs with 4 KB of text each, in the layout of the run's own file."""
    folder = RunFolder(root)
    root.mkdir()
    folder.config.write_text(yaml.safe_dump(to_plain(tiny_config(root, run={"rounds": 1}))))
    cycle = Cycle(round_index=0)
    folder.pairs(cycle).parent.mkdir()
    with pq.ParquetWriter(folder.pairs(cycle), PAIRS, compression="snappy") as writer:
        for begin in range(0, NUM_LARGE, 2000):
            said = [[{"role": "assistant", "content": os.urandom(1024).hex()}] for _ in range(2000)]
            rows = [
                {
                    "id": f"p{begin + at}",
                    "image": {"bytes": None, "path": f"{begin + at}.png"},
                    "prompt": [{"role": "user", "content": "Describe."}],
                    "chosen": said[at],
                    "rejected": said[-1 - at],
                    "chosen_ids": [1, 2],
                    "rejected_ids": [1, 3],
                    "chosen_nodes": [0],
                    "rejected_nodes": [1],
                    "policy_version": 0,
                    "method": "csr",
                    "seed": 0,
                }
                for at in range(2000)
            ]
            writer.write_table(pa.Table.from_pylist(rows, schema=PAIRS))
    Journal(folder.journal).commit("examples", **cycle.key, made=NUM_LARGE, dropped={})


_MEASURE = """
import sys
from csr_ray import load_run

def peak_bytes():
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(status["VmHWM"].split()[0]) * 1024

pairs = load_run(sys.argv[1]).rounds[0].pairs()
# Once before, because `datasets` imports torch.
next(iter(pairs)), next(iter(pairs.to_datasets(streaming=True, columns=["id"])))
for read in sys.argv[2:]:
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what is held now
    before = peak_bytes()
    print(eval(read), peak_bytes() - before)
"""


def test_a_large_run_is_read_in_little_memory(tmp_path: Path) -> None:
    large_run(tmp_path / "run")
    reads = [
        "sum(1 for pair in pairs if pair.chosen.text)",
        "sum(batch.num_rows for batch in pairs.to_arrow())",
        "sum(map(len, pairs.iterate_pandas()))",
        "sum(1 for row in pairs.to_datasets(columns=['id', 'chosen', 'rejected'], streaming=True))",
        "pairs.to_datasets(columns=['id', 'chosen', 'rejected']).num_rows",  # its rows are mapped, not held
        "len(pairs.to_arrow().read_all())",
    ]
    environment = {**os.environ, "HF_DATASETS_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    argv = [sys.executable, "-c", _MEASURE, str(tmp_path / "run"), *reads]
    done = subprocess.run(argv, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = [tuple(map(int, line.split())) for line in done.stdout.splitlines()]
    assert [num for num, _ in found] == [NUM_LARGE] * len(reads)
    *by_batch, whole = [num_bytes for _, num_bytes in found]
    assert max(by_batch) < MOST_GROWTH_BYTES, dict(zip(reads, by_batch, strict=False))
    assert whole > 1.5 * MOST_GROWTH_BYTES, "what holds everything would be seen"


# ---- runs that are at work, damaged, elsewhere, or none ----


def test_reading_changes_nothing_and_waits_for_no_lock(finished: CheckedDriver, tmp_path: Path) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    lock = lock_folder(RunFolder(tmp_path / "run"), say=print)
    try:
        before = contents(tmp_path / "run")
        run = load_run(tmp_path / "run")
        assert [len(list(rows)) for rows in (run.trees(), run.pairs(), run.examples(), run.quarantine)][:3] == [8] * 3
        assert contents(tmp_path / "run") == before
    finally:
        lock.release()


def test_of_a_run_that_goes_on_there_is_what_it_has_committed(tmp_path: Path) -> None:
    driver = CheckedDriver(tmp_path / "run", num_prompts=5, rounds=2)
    with pytest.raises(KeyboardInterrupt):
        driver.run(stop_after=7)  # rollouts: in the second round, where one unit of two is committed
    whole = RunFolder(tmp_path / "run").round(1) / "candidates"
    shutil.copy(next(whole.iterdir()), whole / "unit_of_nobody.parquet")
    with (tmp_path / "run" / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "rollo')  # being written
    run = load_run(tmp_path / "run")
    first, second = run.rounds
    assert not run.is_finished and run.model is None
    assert first.is_finished and not second.is_finished
    assert len(list(first.trees())) == 5 and len(list(first.pairs())) == 5
    assert 0 < len(second.trees()) == len(list(second.trees())) < 5
    assert list(second.pairs()) == [] and len(second.pairs()) == 0
    assert second.pairs().to_pandas().empty and second.pairs().to_datasets().num_rows == 0
    assert list(second.pairs().to_datasets(streaming=True)) == []
    assert second.figures["rollout"]["prompts"] == len(second.trees()) and second.figures["train"]["steps"] is None
    assert [one["round"] for one in run.summary["rounds"]] == [0]


def test_a_damaged_file_is_named_with_the_remedy(finished: CheckedDriver, tmp_path: Path) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    pairs = tmp_path / "run" / "round_000" / "pairs.parquet"
    pairs.write_bytes(pairs.read_bytes()[:-20])
    rows = load_run(tmp_path / "run").rounds[0].pairs()
    for read in (list, len, lambda rows: rows.to_pandas(), lambda rows: rows.to_datasets()):
        with pytest.raises(DamageError, match=r"round_000/pairs\.parquet cannot be read: .*csr-ray check"):
            read(rows)
    pairs.unlink()
    with pytest.raises(DamageError, match=r"pairs\.parquet is not there"):
        list(rows)


@pytest.mark.parametrize("name", ["nothing", "empty"])
def test_where_no_run_is_the_error_says_what_to_name(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"run_dir = '.*{name}': .*name the run.dir of a run"):
        load_run(tmp_path / name)


def test_a_phase_that_there_is_not_is_an_error(run: csr_ray.Run) -> None:
    assert len(run.rounds[0].pairs(phase="main")) == 4
    with pytest.raises(ValueError, match="phase = 'second': round 1 has main"):
        run.rounds[0].trees(phase="second")


@pytest.fixture(scope="module")
def door() -> Iterator[Door]:
    with s3_door() as one:
        yield one


def test_of_a_run_at_a_url_only_what_is_asked_for_is_fetched(
    door: Door, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(FakeGenerators, "in_order", True)
    driver = UrlDriver(f"s3://bucket/{tmp_path.name}/run", place=tmp_path)
    driver.run_here(fail_ids=frozenset({"p1"}))
    asked: list[str] = []
    door.trouble = Trouble(watch=lambda method, path: asked.append(path) if method == "GET" else None)
    with load_run(driver.url) as run:
        assert (run.path, len(run.rounds)) == (driver.url, 2)
        assert run.rounds[0].adapters == (f"{driver.url}/round_000/adapter",) and run.model == f"{driver.url}/model"
        assert [one.id for one in run.quarantine][:1] == ["p1"]
        assert not [path for path in asked if path.endswith((".parquet", ".safetensors"))]
        assert len(list(run.rounds[0].pairs())) == 4
        assert next(path for path in asked if path.endswith(".parquet")).endswith("/round_000/pairs.parquet")
        assert [tree.id for tree in run.rounds[1].trees()] == ["p0", "p2", "p3", "p4"]
        here = run.rounds[0].pairs().files[0]
        assert here.is_file()
        assert not [path for path in asked if path.endswith(".safetensors")]
    assert not here.exists()
    door.trouble = Trouble()
    with pytest.raises(ConfigError, match="no run is there"):
        load_run(f"s3://bucket/{tmp_path.name}/nothing")


# ---- run ----


def test_run_takes_a_path_sections_or_a_config_and_gives_the_run(
    finished: CheckedDriver, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(finished.folder.root, tmp_path / "run")
    config = load_run(tmp_path / "run").config
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(to_plain(config)))
    here = {"run.dir": tmp_path / "run"}
    for given in (tmp_path / "config.yaml", str(tmp_path / "config.yaml"), to_plain(config), config):
        found = csr_ray.run(given, **here)
        assert (found.path, found.is_finished) == (str(tmp_path / "run"), True)
        assert "page: " in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"of another config .*reward\.weight: 0\.5 != 0\.7"):
        csr_ray.run(config, run={"dir": str(tmp_path / "run")}, reward={"weight": 0.7})
    with pytest.raises(ConfigError, match=r"run\.rounds = 0"):
        csr_ray.run(config, **here, **{"run.rounds": 0})
    assert to_plain(config) == to_plain(load_run(tmp_path / "run").config), "a config that is given stays as it is"


def test_overrides_by_mapping_are_those_of_the_command_line() -> None:
    base = to_plain(tiny_config())
    strings = load_config(base, overrides=["run.rounds=3", "search.width=5", "method=[sima, {csr: 2}]"])
    for mapping in (
        {"run.rounds": 3, "search.width": 5, "method": ["sima", {"csr": 2}]},
        {"run": {"rounds": 3}, "search": {"width": 5}, "method": ("sima", {"csr": 2})},
    ):
        assert load_config(base, overrides=mapping) == strings
    assert load_config(base).run.rounds == 2
    with pytest.raises(ConfigError, match=r"override 'method.a=1': method is a value, not a section"):
        load_config(base, overrides={"method.a": 1})


def test_the_notebook_in_the_docs_runs_on_a_run(
    finished: CheckedDriver, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RUN_DIR", str(finished.folder.root))
    runpy.run_path(str(EXAMPLE))
    said = capsys.readouterr().out
    assert "round 1, training 1: kept" in said and "<Answer " in said and "survived pruning" in said
    assert EXAMPLE.read_text().count("# %%") > 10
