"""`make bench-check`: which rows are worse than their baseline, what a benchmark that fails is, what is written."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))  # scripts, not a package

import check  # noqa: E402
from short_forms import SHORT_FORMS, Limit, ShortForm  # noqa: E402


@pytest.mark.parametrize(
    ("limit", "before", "now", "is_worse"),
    [
        (Limit(row="r", better="higher", share=0.2), 3.0, 2.41, False),
        (Limit(row="r", better="higher", share=0.2), 3.0, 2.39, True),
        (Limit(row="r", better="higher", share=0.2), 3.0, 9.0, False),
        (Limit(row="r", better="lower", slack=0.04), 0.0, 0.04, False),
        (Limit(row="r", better="lower", slack=0.04), 0.0, 0.05, True),
        (Limit(row="r", better="lower", share=0.1), 1.0, 0.1, False),
        (Limit(row="r", better="same"), 1.0, 1.0, False),
        (Limit(row="r", better="same"), 1.0, 1.01, True),
        (Limit(row="r", better="same"), 1.0, None, True),
        (Limit(row="r", better="same"), None, 1.0, True),
    ],
)
def test_a_row_is_worse_beyond_its_limit_alone(
    limit: Limit, before: float | None, now: float | None, is_worse: bool
) -> None:
    form = ShortForm(name="n", script="-", arguments=(), limits=(limit,))
    (found,) = check.verdicts(
        form, before={} if before is None else {"r": before}, now={} if now is None else {"r": now}
    )
    assert found.is_worse is is_worse


SCRIPT = """
import json, sys
value = float(sys.argv[1])
open(sys.argv[sys.argv.index("--json") + 1], "w").write(json.dumps({"rows": [{"name": "r", "value": value}]}))
sys.exit(value > 5)
"""


@pytest.mark.parametrize(("value", "code"), [("3.0", 0), ("2.0", 1), ("6.0", 1)])
def test_it_ends_with_1_and_a_line_if_a_row_is_worse_or_a_benchmark_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], value: str, code: int
) -> None:
    (tmp_path / "bench_r.py").write_text(SCRIPT)
    form = ShortForm(
        name="r", script="bench_r.py", arguments=("3.0",), limits=(Limit(row="r", better="higher", share=0.1),)
    )
    monkeypatch.setattr(check, "HERE", tmp_path)
    monkeypatch.setattr(check, "BASELINES", tmp_path / "baselines")
    monkeypatch.setattr(check, "SHORT_FORMS", (form,))
    monkeypatch.setattr(sys, "argv", ["check.py", "--logs", str(tmp_path), "--update"])
    check.main()
    assert json.loads((tmp_path / "baselines" / "r.json").read_text())["rows"] == [{"name": "r", "value": 3.0}]
    again = ShortForm(name="r", script="bench_r.py", arguments=(value,), limits=form.limits)
    monkeypatch.setattr(check, "SHORT_FORMS", (again,))
    monkeypatch.setattr(sys, "argv", ["check.py", "--logs", str(tmp_path)])
    if code:
        with pytest.raises(SystemExit) as ended:
            check.main()
        assert ended.value.code == 1
        assert "1 of 1 rows are worse than their baselines" in capsys.readouterr().out
    else:
        check.main()
        assert "ok" in capsys.readouterr().out


def test_every_short_form_names_a_benchmark_that_is_there_and_rows_once() -> None:
    assert len({form.name for form in SHORT_FORMS}) == len(SHORT_FORMS)
    for form in SHORT_FORMS:
        assert (ROOT / "benchmarks" / form.script).is_file()
        rows = [limit.row for limit in form.limits]
        assert rows and len(set(rows)) == len(rows)
