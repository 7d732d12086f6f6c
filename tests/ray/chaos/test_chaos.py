"""A short set of what `make chaos` does: the real program, struck at random instants, loses and doubles nothing."""

from __future__ import annotations

from pathlib import Path

from chaos import KILLS, play, table


def test_a_run_under_blows_ends_with_every_prompt_once(tmp_path: Path) -> None:
    # A new cluster for a new head takes a minute.
    roles = [role for role in KILLS if role != "head"]
    outcome = play(tmp_path / "run", seed=5, num_blows=2, roles=roles, pause_s=(1.0, 12.0))
    print("\n".join(outcome.said))
    print(table([outcome]))
    assert outcome.checked and (outcome.lost, outcome.doubled) == (0, 0), "\n".join(outcome.said)
    assert outcome.blows
    for blow in outcome.blows:
        assert blow.noticed_s is None or blow.noticed_s < 30, blow  # on a busy machine everything takes longer


def test_every_role_can_be_struck() -> None:
    assert set(KILLS) >= {
        "generator",
        "engine",
        "scorer",
        "registry",
        "mailbox",
        "train worker",
        "driver",
        "node",
        "head",
    }
