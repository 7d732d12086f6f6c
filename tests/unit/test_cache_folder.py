"""The one cache folder: where the variable says, else where users' caches are; the same for builder and doctor."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from csr_ray.app import doctor
from csr_ray.store.cache import cache_folder


def test_the_variable_comes_first_and_may_be_relative_or_of_the_home_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    for given, folder in (("/big/disk", "/big/disk"), ("~/c", f"{tmp_path}/home/c"), ("here", f"{tmp_path}/here")):
        monkeypatch.setenv("CSR_RAY_CACHE", given)
        assert str(cache_folder()) == folder


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other places")
def test_without_it_worlds_stay_where_they_were_built_so_far(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", "")  # set but empty is not set
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "csr_ray"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "csr_ray"


def test_the_doctor_looks_at_the_folder_that_worlds_are_built_in(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CSR_RAY_CACHE", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(doctor, "_probe", lambda *arguments, timeout_s: (None, "not asked"))
    checks, _ = doctor.diagnose()
    (cache,) = [check for check in checks if check.name == "cache"]
    assert cache.fact.startswith(f"{tmp_path / 'elsewhere'}: ")
