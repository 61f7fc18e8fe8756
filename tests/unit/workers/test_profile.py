"""Profiles of `batcher tune`: written and read again, and what is not theirs to say."""

import json
import logging
import shutil
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from batcher.errors import StorageError
from workers.engines import profile
from workers.engines.llama.settings import EngineValues, TunedValues
from workers.engines.profile import MachineKey, Profile, ProfileError

VALUES = EngineValues(num_slots=64, num_threads=3, max_batch_tokens=512, max_micro_batch_tokens=256)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "profiles"
    monkeypatch.setenv("BATCHER_PROFILES_DIR", str(folder))
    return folder


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(range(256)) * 8192)
    return path


def make_profile(model: Path, *, machine: MachineKey | None = None) -> Profile:
    return Profile(
        model_name="tiny",
        model=profile.model_key(model),
        machine=machine or profile.machine_key(uses_gpu=False),
        measured_at=datetime(2026, 11, 24, 12, tzinfo=UTC),
        workload="32 built-in prompts",
        values=VALUES,
        tokens_per_s=500.0,
        default_tokens_per_s=400.0,
        reason="1.25 times the default's speed, side by side",
    )


def load(model: Path) -> Profile | None:
    return profile.load_profile(profile.model_key(model), profile.machine_key(uses_gpu=False))


def test_profile_is_found_again_by_whatever_name_the_model_has(folder: Path, model: Path) -> None:
    assert load(model) is None
    saved = make_profile(model)

    path = profile.save_profile(saved)

    assert path.parent == folder
    assert [entry.name for entry in folder.iterdir()] == [path.name]
    renamed = model.rename(model.with_name("other.gguf"))
    assert load(renamed) == saved
    assert profile.find_tuned(renamed, uses_gpu=False) == TunedValues(VALUES, "measured by batcher tune on 2026-11-24")


def test_later_profile_replaces_the_earlier(folder: Path, model: Path) -> None:
    profile.save_profile(make_profile(model))
    later = replace(make_profile(model), values=replace(VALUES, num_slots=16))

    profile.save_profile(later)

    assert load(model) == later


def test_another_model_has_no_profile(folder: Path, model: Path, caplog: pytest.LogCaptureFixture) -> None:
    profile.save_profile(make_profile(model))
    other = model.with_name("other.gguf")
    other.write_bytes(model.read_bytes() + b"x")

    assert profile.find_tuned(other, uses_gpu=False) is None
    assert caplog.text == ""


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"num_cores": 96}, "cores instead of 96"),
        ({"processor": "Z80"}, "instead of Z80"),
        ({"uses_gpu": True}, "no GPU instead of one"),
        ({"llama_cpp_python": "0.0.1"}, "instead of 0.0.1"),
    ],
)
def test_profile_of_another_machine_is_not_used_and_one_line_says_so(
    folder: Path, model: Path, caplog: pytest.LogCaptureFixture, change: dict[str, object], said: str
) -> None:
    there = replace(profile.machine_key(uses_gpu=False), **change)  # type: ignore[arg-type]
    path = profile.save_profile(make_profile(model, machine=there))

    with caplog.at_level(logging.WARNING):
        assert profile.find_tuned(model, uses_gpu=False) is None

    (record,) = caplog.records
    assert str(path) in record.message
    assert said in record.message
    assert "`batcher tune`" in record.message
    # Once measured here, it is no matter that others have one too.
    profile.save_profile(make_profile(model))
    assert load(model) is not None


def test_profile_that_was_copied_to_another_name_is_not_used(folder: Path, model: Path) -> None:
    there = replace(profile.machine_key(uses_gpu=False), num_cores=96)
    path = profile.save_profile(make_profile(model, machine=there))
    here = profile.profile_path(profile.model_key(model), profile.machine_key(uses_gpu=False))
    shutil.copy(path, here)

    with pytest.raises(ProfileError, match="of another machine"):
        load(model)


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text[: len(text) // 2],
        lambda text: "[]",
        lambda text: json.dumps({**json.loads(text), "version": 2}),
        lambda text: text.replace('"num_slots": 64', '"num_slots": 100000'),
        lambda text: text.replace('"num_threads": 3', '"num_threads": "many"'),
        lambda text: text.replace('"num_threads": 3', '"num_threads": 0'),
        lambda text: "\x00" * len(text),
    ],
)
def test_damaged_profile_is_not_used_and_one_line_names_file_and_remedy(
    folder: Path, model: Path, caplog: pytest.LogCaptureFixture, damage: object
) -> None:
    path = profile.save_profile(make_profile(model))
    assert callable(damage)
    path.write_text(damage(path.read_text()))

    assert profile.find_tuned(model, uses_gpu=False) is None

    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert str(path) in record.message
    assert "\n" not in record.message
    assert "delete it with `batcher tune --forget`" in record.message


def test_forgetting_deletes_the_profiles_of_the_model_on_all_machines(folder: Path, model: Path) -> None:
    other = model.with_name("other.gguf")
    other.write_bytes(b"GGUF")
    kept = profile.save_profile(make_profile(other))
    there = replace(profile.machine_key(uses_gpu=False), num_cores=96)
    paths = {profile.save_profile(make_profile(model, machine=machine)) for machine in (None, there)}

    assert set(profile.forget_profiles(profile.model_key(model))) == paths

    assert list(folder.iterdir()) == [kept]
    assert profile.forget_profiles(profile.model_key(model)) == []


def test_folder_that_can_not_be_written_is_named(folder: Path, model: Path) -> None:
    folder.write_text("a file")

    with pytest.raises(StorageError, match=str(folder)):
        profile.save_profile(make_profile(model))


def test_profiles_are_in_the_cache_folder_unless_told_otherwise(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("BATCHER_PROFILES_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert profile.profiles_dir() == tmp_path / "batcher" / "profiles"

    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert profile.profiles_dir() == tmp_path / ".cache" / "batcher" / "profiles"
