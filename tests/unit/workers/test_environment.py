"""What a computing process finds in its environment."""

import pytest

from workers.process.environment import engine_environment


def test_engine_asks_for_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    monkeypatch.setenv("OTHER", "stays")
    environment = engine_environment()
    assert environment["GLIBC_TUNABLES"] == "glibc.malloc.hugetlb=1"
    assert environment["OTHER"] == "stays"


def test_what_the_user_has_set_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.arena_max=2")
    assert engine_environment()["GLIBC_TUNABLES"] == "glibc.malloc.arena_max=2"
