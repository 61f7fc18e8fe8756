"""Every engine fulfils the contract: llama.cpp on a tiny model and on one that computes nothing, one behind a URL, and
the tests' own."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.types import EngineConfig, RemoteServers, SamplingParams
from tests.support.engine_contract import EngineContract
from tests.support.fake_model import FakeModel
from tests.support.live_server import live_server
from tests.support.manual_engine import ManualEngine
from tests.support.scripted_engine import ScriptedEngine
from workers.engines.base import ALL_ABILITIES, Ability, Engine, SequenceRequest, find_missing
from workers.engines.llama.engine import LlamaEngine
from workers.engines.llama.kv_cache import KvCache
from workers.engines.llama.loader import load_engine
from workers.engines.remote.engine import RemoteEngine


class TestLlamaEngine(EngineContract):
    @pytest.fixture(autouse=True)
    def _model(self, model: Path) -> None:
        self.path = model

    def make(self) -> Engine:
        return load_engine("tiny", self.path, EngineConfig(num_slots=4, num_threads=1, context_length=512))


class TestLlamaEngineOnAModelThatComputesNothing(EngineContract):
    def make(self) -> Engine:
        cache = KvCache(num_slots=4, cells_per_sequence=512)
        return LlamaEngine("fake", FakeModel(num_slots=4), cache=cache, max_batch_tokens=64)  # type: ignore[arg-type]


class TestEngineBehindAUrl(EngineContract):
    """Our own API is the server, with a script in the place of a model."""

    @pytest.fixture(autouse=True)
    def _server(self) -> Iterator[None]:
        with live_server(ScriptedEngine("tiny")) as server:
            self.servers = RemoteServers((f"{server.url}/v1",))
            yield

    def make(self) -> Engine:
        return RemoteEngine("mine", "tiny", self.servers)


class TestManualEngine(EngineContract):
    def make(self) -> Engine:
        return ManualEngine()

    def hold(self, engine: Engine) -> None:
        assert isinstance(engine, ManualEngine)
        engine.allow(1)

    def release(self, engine: Engine) -> None:
        assert isinstance(engine, ManualEngine)
        engine.allow(1000)


class TestManualEngineOfNoAbilities(TestManualEngine):
    def make(self) -> Engine:
        return ManualEngine(abilities=Ability(0))


def test_engine_of_all_abilities_misses_nothing() -> None:
    everything = SequenceRequest(
        (0, 0), "[1]", SamplingParams(), is_token_ids=True, is_echoing=True, scores_prompt=True
    )

    assert find_missing(everything, ALL_ABILITIES) is None
