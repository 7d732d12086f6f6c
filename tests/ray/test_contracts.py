"""One contract, two keepers: what the loop relies on holds for the fakes of the unit tests and for the real classes.

A fake that is kinder than the real thing hides a bug: publishing a version twice went well on the fake for months.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import FakeGenerators, tiny_config
from test_publish import _adapter, _trained, start  # noqa: F401

from csr_ray.errors import ActorFailure
from csr_ray.ports import Generators

Make = Callable[[list[str]], Generators]


@pytest.fixture(params=["fakes", "real"])
def generators(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    """Starts generators that serve base plus these adapters."""
    if request.param == "fakes":
        return lambda adapters: FakeGenerators(tiny_config(tmp_path), version=len(adapters))
    pool = request.getfixturevalue("start")
    return lambda adapters: pool(None, None, adapters=tuple(adapters))


@pytest.fixture
def adapters(tmp_path: Path) -> list[str]:
    return [_adapter(tmp_path, value=float(value)) for value in (1, 2, 3)]


def test_versions_are_handed_over_one_after_the_other(generators: Make, adapters: list[str]) -> None:
    served: Any = generators([])
    for version, adapter in enumerate(adapters, start=1):
        receipt = served.publish(_trained(adapter, version=version))
        assert (receipt.version, served.version) == (version, version)


def test_a_version_that_is_served_already_is_proved_again(generators: Make, adapters: list[str]) -> None:
    """A driver that died before it wrote the line starts its generators with the version that it then publishes."""
    served: Any = generators(adapters[:1])
    for version in (1, 1, 2, 2):
        receipt = served.publish(_trained(adapters[version - 1], version=version))
        assert (receipt.version, served.version) == (version, version)


@pytest.mark.parametrize("version", [1, 4])
def test_a_version_that_is_not_the_next_is_refused(generators: Make, adapters: list[str], version: int) -> None:
    served: Any = generators(adapters[:2])
    with pytest.raises(ActorFailure, match=f"version {version} behind version 2"):
        served.publish(_trained(adapters[2], version=version))
    assert served.version == 2


def test_a_version_is_taken_back_and_its_number_goes_to_another_adapter(
    generators: Make, adapters: list[str]
) -> None:
    served: Any = generators([])
    first, refused, better = adapters
    served.publish(_trained(first, version=1))
    for _ in range(2):
        served.publish(_trained(refused, version=2))
        assert served.withdraw(2) is None
        assert served.version == 1
    receipt = served.publish(_trained(better, version=2))
    assert (receipt.version, served.version) == (2, 2)


def test_versions_are_taken_back_down_to_the_base(generators: Make, adapters: list[str]) -> None:
    """Also those that a driver has started its generators with."""
    served: Any = generators(adapters[:1])
    served.publish(_trained(adapters[1], version=2))
    for version in (2, 1):
        served.withdraw(version)
        assert served.version == version - 1
    assert served.publish(_trained(adapters[2], version=1)).version == 1


@pytest.mark.parametrize("version", [0, 1, 3])
def test_no_version_is_taken_back_but_the_newest(generators: Make, adapters: list[str], version: int) -> None:
    served: Any = generators(adapters[:2])
    with pytest.raises(ActorFailure, match=f"take back version {version} behind version 2"):
        served.withdraw(version)
    assert served.version == 2


def test_what_is_taken_back_cannot_be_taken_back_again(generators: Make, adapters: list[str]) -> None:
    served: Any = generators(adapters[:1])
    served.withdraw(1)
    for version in (1, 0):
        with pytest.raises(ActorFailure, match=f"take back version {version} behind version 0"):
            served.withdraw(version)
