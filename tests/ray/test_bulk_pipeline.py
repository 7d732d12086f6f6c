"""The pipeline of bulk work, with workers that need no model: who dies is replaced, but not for ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from deadly_squares import SCHEMA, Squares

from actors.cluster.room import wait_for_place
from actors.data.bulk import Workers, do_work
from csr_ray.errors import ActorFailure, ConfigError
from csr_ray.machine.placement import ActorOptions, Demand
from csr_ray.store.parts import Work


def squares(folder: Path, *, num: int = 12, deadly: dict[int, int], **options: Any) -> list[tuple[int, int]]:
    folder.mkdir(exist_ok=True)
    arguments = {"folder": str(folder), "deadly": deadly, "refuses": options.pop("refuses", False)}
    workers = Workers(
        make=Squares,
        arguments=arguments,
        schema=SCHEMA,
        num=2,
        options=ActorOptions(num_cpus=1, num_gpus=0),
        **options,
    )
    done = do_work([Work(position, 1, position) for position in range(num)], workers=workers)
    return sorted((position, table["value"][0].as_py()) for position, table in done)


@pytest.mark.parametrize("calls_at_once", [1, 3])
def test_who_dies_is_replaced_and_its_work_done_again(
    tmp_path: Path, ray_session: None, calls_at_once: int, recwarn: pytest.WarningsRecorder
) -> None:
    done = squares(tmp_path / "deaths", deadly={3: 1, 7: 2}, calls_at_once=calls_at_once, retries=8)
    assert done == [(number, number**2) for number in range(12)], "each once, whatever died"
    assert {path.name: path.read_text() for path in (tmp_path / "deaths").iterdir()} == {"3": ".", "7": ".."}
    assert not [one for one in recwarn if "ray_remote_args" in str(one.message)], "it would be on the user's screen"


def test_a_piece_that_kills_every_actor_ends_the_work_in_one_line(tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(ActorFailure, match=r"^actors died 3 times at one piece, .*part_000000003") as caught:
        squares(tmp_path / "deaths", deadly={3: 1000}, retries=2)
    assert "\n" not in str(caught.value) and "\x1b" not in str(caught.value)
    assert len((tmp_path / "deaths" / "3").read_text()) <= 3


def test_an_actor_that_cannot_be_made_says_so_in_its_own_words(tmp_path: Path, ray_session: None) -> None:
    with pytest.raises(ActorFailure, match=r"^an engine could not start: no memory\nlast .*log:\nout of it$"):
        squares(tmp_path / "deaths", deadly={}, refuses=True)


def test_what_finds_no_place_is_waited_for_so_long_and_the_flag_is_named(ray_session: None) -> None:
    demand, said = Demand(role="generator", num=1, cpus=64, gpus=0), []
    with pytest.raises(ConfigError, match=r"^--wait = 1: a generator has no place .*\(1 node.*or raise --wait$"):
        wait_for_place(demand, wait_s=1, key="--wait", what_is_pending=lambda: "1 node", say=said.append)
    small = Demand(role="scorer", num=9, cpus=1, gpus=0)
    wait_for_place(small, wait_s=30, key="--wait", what_is_pending=str, say=said.append)
    assert said == []
