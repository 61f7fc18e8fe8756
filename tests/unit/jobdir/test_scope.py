"""The scope of a jobs folder: made once, read by all, whatever the path by which they come."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from batcher.errors import InputError, JobError
from batcher.ids import ID_PATTERN
from batcher.jobdir.root import list_jobs
from batcher.jobdir.scope import SCOPE_NAME, SCOPE_VARIABLE, scope_of
from tests.support.memory_store import MemoryStore


@pytest.fixture(autouse=True)
def no_scope_of_this_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SCOPE_VARIABLE, raising=False)


def test_folder_keeps_its_scope_wherever_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "jobs"
    (tmp_path / "link").symlink_to(folder)
    scope = scope_of(folder)

    assert ID_PATTERN.match(scope)
    assert scope_of(tmp_path / "link") == scope
    assert scope_of(folder.rename(tmp_path / "elsewhere")) == scope
    assert scope_of(tmp_path / "other") != scope
    assert list(list_jobs(tmp_path / "elsewhere")) == []


def test_all_who_come_first_at_a_time_get_one_scope(tmp_path: Path) -> None:
    with ThreadPoolExecutor(16) as pool:
        found = list(pool.map(lambda _: scope_of(tmp_path / "jobs"), range(64)))

    assert len(set(found)) == 1


def test_scope_lives_in_any_store() -> None:
    store, root = MemoryStore(), Path("bucket/jobs")

    assert scope_of(root, store=store) == scope_of(root, store=store)
    assert store.read(root / SCOPE_NAME).decode() == scope_of(root, store=store)


@pytest.mark.parametrize("content", [b"", b"\n", b"\xff\xfe", b"a b", b"a" * 200, b"../x"])
def test_damaged_scope_is_named_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / SCOPE_NAME
    path.write_bytes(content)

    with pytest.raises(JobError, match=r"\.scope: damaged; delete it"):
        scope_of(tmp_path)

    path.unlink()
    assert scope_of(tmp_path)


def test_new_folder_gets_the_scope_that_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCOPE_VARIABLE, "prod-batcher")

    assert scope_of(tmp_path) == "prod-batcher"

    monkeypatch.delenv(SCOPE_VARIABLE)
    assert scope_of(tmp_path) == "prod-batcher"


def test_folder_of_another_scope_than_is_asked_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scope = scope_of(tmp_path)
    monkeypatch.setenv(SCOPE_VARIABLE, "prod")

    with pytest.raises(InputError, match=f"has the scope '{scope}', and BATCHER_SCOPE is 'prod'; leave that out"):
        scope_of(tmp_path)


def test_scope_that_cannot_stand_in_a_key_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SCOPE_VARIABLE, "a:b c")

    with pytest.raises(InputError, match="BATCHER_SCOPE 'a:b c' is not usable"):
        scope_of(tmp_path)

    assert list(tmp_path.iterdir()) == []
