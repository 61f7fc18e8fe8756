"""The stores that there are do what any store must."""

from pathlib import Path

from batcher.jobdir.local_store import LocalStore
from batcher.jobdir.store import Store
from tests.support.memory_store import MemoryStore
from tests.unit.jobdir.store_contract import StoreContract


class TestLocalStore(StoreContract):
    """Files in folders."""

    def make_store(self) -> Store:
        return LocalStore()


class TestMemoryStore(StoreContract):
    """Objects in memory, the double by which tests show that nothing leans on a file system."""

    def make_store(self) -> Store:
        return MemoryStore()

    def make_home(self, tmp_path: Path) -> Path:
        return Path("/nowhere/on/this/machine")
