"""What any store must do. A module that has a store runs these tests on it: a class of its own that makes one.

class TestMyStore(StoreContract):
    def make_store(self) -> Store: ...
    def make_home(self, tmp_path: Path) -> Path: ...
"""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from batcher.jobdir.store import Store


class GoneError(Exception):
    """What the file belongs to is gone."""


def refuse() -> None:
    raise GoneError


class StoreContract:
    """The tests. `home` is an address under which the store has nothing yet."""

    def make_store(self) -> Store:
        raise NotImplementedError

    def make_home(self, tmp_path: Path) -> Path:
        """Where in the store, or beside it, the tests may write."""
        return tmp_path / "home"

    @pytest.fixture
    def store(self) -> Store:
        return self.make_store()

    @pytest.fixture
    def home(self, store: Store, tmp_path: Path) -> Path:
        home = self.make_home(tmp_path)
        store.make_folder(home)
        return home

    # -- creating -----------------------------------------------------------------------------------------------

    def test_first_creator_wins_and_the_second_changes_nothing(self, store: Store, home: Path) -> None:
        assert store.create(home / "a" / "b" / "file", b"first")
        assert not store.create(home / "a" / "b" / "file", b"second")
        assert store.read(home / "a" / "b" / "file") == b"first"

    def test_of_many_creators_at_once_one_wins(self, store: Store, home: Path) -> None:
        won = race(8, lambda number: store.create(home / "file", str(number).encode() * 1000))

        assert len(won) == 1
        assert store.read(home / "file") == str(won[0]).encode() * 1000

    def test_guard_keeps_a_file_from_being_made_or_replaced(self, store: Store, home: Path) -> None:
        for write in (store.create, store.replace):
            with pytest.raises(GoneError):
                write(home / "file", b"data", guard=refuse)
        incoming = store.begin(home / "file")
        with pytest.raises(GoneError):
            incoming.commit(guard=refuse)

        assert store.head(home / "file") is None
        assert store.names(home) == []

    def test_file_that_comes_in_pieces_is_there_when_it_is_whole(self, store: Store, home: Path) -> None:
        incoming = store.begin(home / "folder" / "file")
        for piece in (b"one ", memoryview(b"two "), b"three"):
            assert incoming.write(piece) == len(piece)
        assert store.head(home / "folder" / "file") is None
        assert store.list(home) == []

        assert incoming.commit()
        late = store.begin(home / "folder" / "file")
        late.write(b"late")
        assert not late.commit()

        with store.open(home / "folder" / "file") as file:
            assert (file.read(4), file.read()) == (b"one ", b"two three")

    def test_nothing_is_left_of_what_was_discarded(self, store: Store, home: Path) -> None:
        incoming = store.begin(home / "file")
        incoming.write(b"data")
        incoming.discard()

        assert store.head(home / "file") is None
        assert store.names(home) == []
        assert store.leftovers(home) in ([], ())

    # -- replacing ----------------------------------------------------------------------------------------------

    @pytest.mark.parametrize("is_durable", [True, False])
    def test_replaced_file_is_whole_and_of_another_version(self, store: Store, home: Path, is_durable: bool) -> None:
        versions = []
        for content in (b"one", b"two", b"six"):
            store.replace(home / "file", content, is_durable=is_durable)
            assert store.read(home / "file") == content
            versions.append(version(store, home / "file"))

        assert len(set(versions)) == 3
        assert version(store, home / "file") == versions[-1]

    def test_file_is_replaced_only_in_the_version_that_is_known(self, store: Store, home: Path) -> None:
        assert not store.replace_if(home / "file", b"none", version="")
        store.create(home / "file", b"one")
        known = version(store, home / "file")

        assert store.replace_if(home / "file", b"two", version=known)
        assert not store.replace_if(home / "file", b"six", version=known)
        assert store.read(home / "file") == b"two"

    def test_of_many_who_replace_one_version_one_wins(self, store: Store, home: Path) -> None:
        store.create(home / "file", b"none")
        known = version(store, home / "file")

        won = race(8, lambda number: store.replace_if(home / "file", str(number).encode(), version=known))

        assert len(won) == 1
        assert store.read(home / "file") == str(won[0]).encode()

    def test_moved_file_has_only_its_new_name(self, store: Store, home: Path) -> None:
        store.create(home / "a", b"data")
        store.move(home / "a", home / "sub" / "b")

        assert store.read(home / "sub" / "b") == b"data"
        assert [entry.path for entry in store.list(home)] == [home / "sub" / "b"]
        with pytest.raises(FileNotFoundError):
            store.move(home / "a", home / "sub" / "b")

    def test_log_has_each_line_whole_in_the_order_of_its_writer(self, store: Store, home: Path) -> None:
        store.make_folder(home / "folder")
        log = store.log(home / "folder" / "log")

        def write(number: int) -> bool:
            for line in range(50):
                log.append(f"{number} {line}\n".encode())
            return True

        assert len(race(4, write)) == 4
        log.close()

        lines = store.read(home / "folder" / "log").decode().splitlines()
        for number in range(4):
            own = [line.split()[1] for line in lines if line.split()[0] == str(number)]
            assert own == [str(line) for line in range(50)]

    # -- reading and looking ------------------------------------------------------------------------------------

    def test_what_is_not_there_is_said(self, store: Store, home: Path) -> None:
        store.create(home / "file", b"data")
        reads: list[Callable[[Path], object]] = [store.read, store.open, lambda path: store.tail(path, 4)]

        for path in (home / "nothing", home / "nowhere" / "file", home / "file" / "below"):
            assert store.head(path) is None
            for read in reads:
                with pytest.raises(FileNotFoundError, match=path.name):
                    read(path)
        assert not store.list(home / "nowhere")
        assert not store.names(home / "nowhere")

    def test_tail_is_what_a_file_ends_with(self, store: Store, home: Path) -> None:
        store.create(home / "file", b"0123456789")

        assert store.tail(home / "file", 4) == (10, b"6789")
        assert store.tail(home / "file", 99) == (10, b"0123456789")

    def test_head_says_size_and_time_by_the_clock_of_the_store(self, store: Store, home: Path) -> None:
        before = store.now_s(home)
        store.create(home / "file", b"data")
        head = store.head(home / "file")

        assert head is not None
        assert head.size == 4
        assert before <= head.modified_s <= store.now_s(home)
        assert [entry.head() for entry in store.list(home)] == [head]
        assert store.head(home) is None, "a folder is no file"

    def test_listing_has_all_files_below_in_order_of_the_parts_of_their_paths(self, store: Store, home: Path) -> None:
        paths = [home / name for name in ("b/x", "b.x", "a/2", "a/10", "a/1/z", "c", "B")]
        for path in paths:
            store.create(path, b"")
        store.create(home.parent / f"{home.name}er" / "other", b"")

        listed = store.list(home)
        assert [entry.path for entry in listed] == sorted(paths, key=lambda path: path.parts)
        assert [home.joinpath(*entry.parts) for entry in listed] == [entry.path for entry in listed]
        assert list(store.names(home)) == ["B", "a", "b", "b.x", "c"]
        assert [entry.path for entry in store.list(home / "a" / "1")] == [home / "a" / "1" / "z"]

    def test_listing_may_leave_out_what_is_not_wanted_and_nothing_else(self, store: Store, home: Path) -> None:
        wanted, unwanted = {home / "a" / "1", home / "c" / "d" / "2"}, {home / "b" / "3", home / "c" / "e" / "4"}
        for path in wanted | unwanted:
            store.create(path, b"")

        found = {entry.path for entry in store.list(home, wants=lambda parts: parts[-1] not in ("b", "e"))}

        assert wanted <= found <= wanted | unwanted

    # -- removing -----------------------------------------------------------------------------------------------

    def test_file_already_gone_is_deleted(self, store: Store, home: Path) -> None:
        for name in ("a", "b", "c", "d"):
            store.create(home / name, b"")

        for delete in (store.delete_many, store.discard):
            delete([home / "a", home / "nothing", home / "nowhere" / "x"])
            delete(path for path in (home / "b",))
        assert list(store.names(home)) == ["c", "d"]
        store.discard([home / "c"])
        assert list(store.names(home)) == ["d"]

    def test_tree_is_deleted_with_all_below_and_nothing_beside(self, store: Store, home: Path) -> None:
        for name in ("a/1", "a/b/2", "ab/3", "file"):
            store.create(home / name, b"")

        assert store.delete_tree(home / "a")
        assert store.delete_tree(home / "file")
        assert store.delete_tree(home / "nothing")

        assert [entry.path for entry in store.list(home)] == [home / "ab" / "3"]

    def test_folder_that_is_not_empty_is_not_dropped(self, store: Store, home: Path) -> None:
        store.create(home / "a" / "1", b"")
        assert not store.drop_folder(home / "a")

        store.delete_many([home / "a" / "1"])
        assert store.drop_folder(home / "a")
        assert store.drop_folder(home / "a")
        assert list(store.names(home)) == []

    # -- holding ------------------------------------------------------------------------------------------------

    def test_one_holds_a_folder_until_it_is_released(self, store: Store, home: Path) -> None:
        store.create(home / "a" / "file", b"")
        hold = store.hold(home / "a")
        assert hold is not None
        assert hold.is_certain
        assert store.hold(home / "a") is None
        store.replace(home / "a" / "file", b"held folders can be written")

        hold.release()
        again = store.hold(home / "a")
        assert again is not None
        again.release()


def version(store: Store, path: Path) -> str:
    head = store.head(path)
    assert head is not None
    return head.version


def race(num_threads: int, act: Callable[[int], bool]) -> list[int]:
    """Have threads act at once. Returns the numbers of those that were told that they won."""
    barrier = threading.Barrier(num_threads)
    won: list[int] = []

    def run(number: int) -> None:
        barrier.wait(30)
        if act(number):
            won.append(number)

    threads = [threading.Thread(target=run, args=(number,)) for number in range(num_threads)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    return won
