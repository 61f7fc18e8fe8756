"""Models come from the hub whole and checked, or with the reason why not; huggingface_hub itself is the client."""

import threading
from pathlib import Path

import pytest

from batcher.errors import MissingPackageError, ModelError
from batcher.models.hub import HubCache
from batcher.models.resolver import parse_model, pull
from tests.support.hub_server import HubServer, Repository

#: Bytes that the client takes at a time.
CLIENTS_STEP = 10 * 1024 * 1024
#: More than twice as many, so that a part of it is kept.
LARGE = b"GGUF" + bytes(range(256)) * 100_000


def weights(text: str) -> bytes:
    return b"GGUF\x03\x00\x00\x00" + text.encode()


@pytest.fixture
def lines() -> list[str]:
    """What a user is told."""
    return []


def blobs(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob("blobs/*"))


def test_model_is_fetched_once_and_named_as_at_the_hub(hub: HubServer, lines: list[str]) -> None:
    hub.repositories["Org/Tiny-GGUF"] = Repository({"tiny-Q4_K_M.gguf": weights("4"), "tiny-Q8_0.gguf": weights("8")})

    found = parse_model("hf:Org/Tiny-GGUF:q4_k_m", tell=lines.append)
    again = parse_model("hf:Org/Tiny-GGUF:Q4_K_M")

    assert found.name == "Org/Tiny-GGUF:Q4_K_M"
    assert found.path.read_bytes() == weights("4")
    assert found.path.name == "tiny-Q4_K_M.gguf"
    assert again == found
    assert parse_model("Org/Tiny-GGUF:Q4_K_M") == found  # now the bare name is known
    assert hub.fetched("tiny-Q4_K_M.gguf") == [None]
    assert hub.fetched("tiny-Q8_0.gguf") == []
    assert [line.partition(" (")[0] for line in lines] == ["Fetching Org/Tiny-GGUF/tiny-Q4_K_M.gguf"]


def test_name_of_ones_own_can_be_given(hub: HubServer) -> None:
    hub.repositories["Org/Tiny-GGUF"] = Repository({"tiny-Q8_0.gguf": weights("8")})

    assert parse_model("mine=hf:Org/Tiny-GGUF:Q8_0").name == "mine"


def test_file_and_revision_can_be_named(hub: HubServer) -> None:
    old = {"tiny-Q8_0.gguf": weights("old")}
    hub.repositories["Org/Tiny"] = Repository({"tiny-Q8_0.gguf": weights("new")}, revisions={"v1": old})
    commit = hub.repositories["Org/Tiny"].at("v1")
    assert commit is not None

    for revision in ("v1", commit[0]):
        found = parse_model(f"hf:Org/Tiny/tiny-Q8_0.gguf@{revision}")
        assert found.name == f"Org/Tiny/tiny-Q8_0.gguf@{revision}"
        assert found.path.read_bytes() == weights("old")
    assert parse_model("hf:Org/Tiny/tiny-Q8_0.gguf").path.read_bytes() == weights("new")


def test_split_model_comes_with_all_its_files_side_by_side(hub: HubServer) -> None:
    parts = {f"Q8_0/big-Q8_0-0000{number}-of-00003.gguf": weights(str(number)) for number in (1, 2, 3)}
    hub.repositories["Org/Big-GGUF"] = Repository(parts)

    found = parse_model("hf:Org/Big-GGUF:Q8_0")

    assert found.path.name == "big-Q8_0-00001-of-00003.gguf"
    names = sorted(path.name for path in found.path.parent.iterdir())
    assert names == sorted(Path(name).name for name in parts)


def test_split_model_of_which_a_file_is_missing_is_completed(hub: HubServer) -> None:
    parts = {f"big-Q8_0-0000{number}-of-00002.gguf": weights(str(number)) for number in (1, 2)}
    hub.repositories["Org/Big-GGUF"] = Repository(parts)
    first = parse_model("hf:Org/Big-GGUF:Q8_0").path
    second = first.with_name("big-Q8_0-00002-of-00002.gguf")
    second.resolve().unlink()
    second.unlink()

    with pytest.raises(ModelError, match=r"1 of its 2 files are not here .*`batcher models pull hf:Org/Big-GGUF:Q8_0`"):
        parse_model("Org/Big-GGUF:Q8_0")
    parse_model("hf:Org/Big-GGUF:Q8_0")

    assert second.read_bytes() == weights("2")
    assert hub.fetched("big-Q8_0-00001-of-00002.gguf") == [None]


def test_download_that_breaks_off_goes_on_where_it_was(hub: HubServer) -> None:
    hub.repositories["Org/Large-GGUF"] = Repository({"large-Q8_0.gguf": LARGE})
    hub.faults.cut_after = [15_000_000, 5]

    found = parse_model("hf:Org/Large-GGUF:Q8_0")

    assert found.path.read_bytes() == LARGE
    assert hub.fetched("large-Q8_0.gguf") == [None, *[f"bytes={CLIENTS_STEP}-"] * 2]


def test_download_goes_on_in_another_process(hub: HubServer, home: Path, lines: list[str]) -> None:
    """As after a Ctrl-C: what lies there under the blob's name, of us or of huggingface_hub before its version 2."""
    repository = hub.repositories["Org/Large-GGUF"] = Repository({"large-Q8_0.gguf": LARGE})
    digest = parse_model("hf:Org/Large-GGUF:Q8_0").path.resolve().name
    blob = next(home.rglob(f"blobs/{digest}"))
    blob.with_name(f"{digest}.incomplete").write_bytes(LARGE[:12_345])
    for path in (blob, *home.rglob("large-Q8_0.gguf")):
        path.unlink()
    hub.requests.clear()

    found = parse_model("hf:Org/Large-GGUF:Q8_0", tell=lines.append)

    assert found.path.read_bytes() == LARGE == repository.files["large-Q8_0.gguf"]
    assert hub.fetched("large-Q8_0.gguf") == ["bytes=12345-"]
    assert "(25.6 MB, of which 12.3 kB are here)" in lines[0]
    assert blobs(home) == [digest]


def test_wrong_checksum_is_found_and_nothing_of_it_stays(hub: HubServer, home: Path) -> None:
    hub.repositories["Org/Tiny"] = Repository({"tiny-Q8_0.gguf": weights("8")})
    hub.faults.damaged.add("tiny-Q8_0.gguf")

    with pytest.raises(
        ModelError, match=r"came with the checksum [0-9a-f]{64}, and the hub has [0-9a-f]{64}; it was del"
    ):
        parse_model("hf:Org/Tiny:Q8_0")

    assert blobs(home) == []
    hub.faults.damaged.clear()
    assert parse_model("hf:Org/Tiny:Q8_0").path.read_bytes() == weights("8")


@pytest.mark.parametrize(
    "told",
    [
        {"rfilename": "../../../out-Q8_0.gguf"},
        {"rfilename": "/out-Q8_0.gguf"},
        {"lfs": {"sha256": "../../out", "size": 9, "pointerSize": 130}},
        {"lfs": None, "blobId": None},
    ],
)
def test_names_and_checksums_of_a_hub_lead_to_no_other_folder(
    hub: HubServer, home: Path, told: dict[str, object]
) -> None:
    hub.repositories["Org/Tiny"] = Repository({"tiny-Q8_0.gguf": weights("8")})
    hub.faults.told = told

    with pytest.raises(ModelError, match="which it can't have; check HF_ENDPOINT"):
        parse_model("hf:Org/Tiny:Q8_0")

    assert hub.fetched("tiny-Q8_0.gguf") == []
    assert list(home.rglob("*out*")) == []


def test_pull_finds_damage_in_what_other_programs_fetched(hub: HubServer, home: Path) -> None:
    hub.repositories["Org/Tiny"] = Repository({"tiny-Q8_0.gguf": weights("8")})
    path = pull("hf:Org/Tiny:Q8_0").path
    for record in home.rglob("batcher/*.json"):
        record.unlink()
    path.resolve().write_bytes(weights("9"))

    with pytest.raises(ModelError, match="came with the checksum"):
        pull("hf:Org/Tiny:Q8_0")

    assert pull("hf:Org/Tiny:Q8_0").path.read_bytes() == weights("8")


def test_two_processes_fetch_a_file_once(hub: HubServer, home: Path) -> None:
    hub.repositories["Org/Large-GGUF"] = Repository({"large-Q8_0.gguf": LARGE})
    found: list[bytes] = []
    threads = [
        threading.Thread(target=lambda: found.append(parse_model("hf:Org/Large-GGUF:Q8_0").path.read_bytes()))
        for _ in range(3)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert found == [LARGE] * 3
    assert hub.fetched("large-Q8_0.gguf") == [None]


def test_without_a_quantization_the_best_that_fits_is_taken_and_why_is_said(
    hub: HubServer, lines: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["Org/Tiny"] = Repository(
        {f"tiny-{label}.gguf": weights("x" * size) for label, size in (("Q2_K", 100), ("Q8_0", 400), ("F16", 700))}
        | {"mmproj-tiny-f16.gguf": weights("y"), "imatrix.gguf": weights("z")}
    )

    assert parse_model("hf:Org/Tiny", tell=lines.append).name == "Org/Tiny:Q8_0"
    assert lines[0].startswith("hf:Org/Tiny: takes Q8_0, the best up to 8 bits (408 bytes, and weights may take two ")
    # The only one that is here is meant from now on.
    assert parse_model("hf:Org/Tiny").name == "Org/Tiny:Q8_0"
    assert len(hub.fetched("Org/Tiny")) == 1


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:Org/Tiny:Q5_0", "the repository has no such model; it has Q4_0, Q8_0"),
        ("hf:Org/Tiny:Q8_0@v9", r"the repository has no revision v9; leave out @v9 for the main one"),
        ("hf:Org/Tiny/other.gguf", "the repository has no such model; it has Q4_0, Q8_0"),
        ("hf:Org/None:Q8_0", "there is no such repository at http.*check its name; one that is private takes HF_TOKEN"),
        ("hf:Org/Private:Q8_0", "there is no such repository at http.*or none that you may see"),
        ("hf:Org/Gated:Q8_0", "gated: accept its terms at http://.*/Org/Gated, then set HF_TOKEN"),
        ("hf:Org/Plain", "the repository has no GGUF files"),
        ("hf:Org/Double:Q8_0", "several files are Q8_0; give hf:Org/Double/FILE, one of a-Q8_0.gguf, b-Q8_0.gguf"),
        ("hf:Org/Double", "which model of the repository.*a-Q8_0.gguf, b-Q8_0.gguf"),
        ("hf:Org/Torn:Q8_0", "the repository lacks torn-Q8_0-00002-of-00002.gguf, a part of torn-Q8_0-00001"),
        ("hf:Org", "names no model of the hub; write hf:OWNER/REPO:QUANT"),
        ("hf:Org/../x:Q8_0", "names no model of the hub"),
    ],
)
def test_refusal_says_what_helps(hub: HubServer, spec: str, message: str) -> None:
    hub.repositories |= {
        "Org/Tiny": Repository({"a-Q4_0.gguf": weights("4"), "a-Q8_0.gguf": weights("8")}),
        "Org/Private": Repository({"a-Q8_0.gguf": weights("8")}, token="secret", is_private=True),
        "Org/Gated": Repository({"a-Q8_0.gguf": weights("8")}, token="secret"),
        "Org/Plain": Repository({"model.safetensors": b"x"}),
        "Org/Double": Repository({"a-Q8_0.gguf": weights("a"), "b-Q8_0.gguf": weights("b")}),
        "Org/Torn": Repository({"torn-Q8_0-00001-of-00002.gguf": weights("1")}),
    }

    with pytest.raises(ModelError, match=message):
        parse_model(spec)


def test_token_opens_what_is_gated_and_private(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories |= {
        "Org/Private": Repository({"a-Q8_0.gguf": weights("p")}, token="secret", is_private=True),
        "Org/Gated": Repository({"a-Q8_0.gguf": weights("g")}, token="secret"),
    }

    monkeypatch.setenv("HF_TOKEN", "of-another")
    with pytest.raises(ModelError, match="gated, and the account of HF_TOKEN has no access: accept its terms at http"):
        parse_model("hf:Org/Gated:Q8_0")
    monkeypatch.setenv("HF_TOKEN", "secret")

    assert parse_model("hf:Org/Private:Q8_0").path.read_bytes() == weights("p")
    assert parse_model("hf:Org/Gated:Q8_0").path.read_bytes() == weights("g")


@pytest.mark.parametrize(
    ("status", "message"), [(403, "refuses HF_TOKEN"), (429, "too many requests"), (503, "answers with 503; try again")]
)
def test_hub_that_fails_is_named_with_what_helps(
    hub: HubServer, status: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)  # the client waits before it asks again
    hub.faults.status = status

    with pytest.raises(ModelError, match=message):
        parse_model("hf:Org/Tiny:Q8_0")


def test_what_is_here_needs_no_hub(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": weights("8")})
    found = parse_model("hf:Org/Tiny:Q8_0")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")

    assert parse_model("hf:Org/Tiny:Q8_0") == found
    with pytest.raises(ModelError, match=r"cannot reach http://127.0.0.1:1: .*check the network and HF_ENDPOINT"):
        parse_model("hf:Org/Tiny:Q4_0")


def test_disk_without_room_is_said_before_anything_comes(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": weights("8")})
    monkeypatch.setattr("batcher.models.download._SPARE_BYTES", 1 << 62)

    with pytest.raises(
        ModelError, match=r"cannot store it: .* to come, and .* free: .*/blobs; free room, or set HF_HOME"
    ):
        parse_model("hf:Org/Tiny:Q8_0")

    assert hub.fetched("a-Q8_0.gguf") == []


def test_file_that_is_too_large_for_http_is_said_with_what_fetches_it(
    hub: HubServer, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": weights("8")})
    monkeypatch.setattr("huggingface_hub.constants.MAX_HTTP_DOWNLOAD_SIZE", 5)

    with pytest.raises(ModelError, match=r"has 9 bytes, .*: `hf download Org/Tiny a-Q8_0.gguf` puts it into the same"):
        parse_model("hf:Org/Tiny:Q8_0")

    assert blobs(home) == []


def test_who_has_no_client_of_the_hub_gets_the_line_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("batcher.installation").installation.MODULES, "hub", ("no_such_module",))

    with pytest.raises(MissingPackageError, match=r"hf:Org/Tiny:Q8_0 needs no_such_module, not installed here; run: "):
        parse_model("hf:Org/Tiny:Q8_0")


def test_nothing_is_fetched_where_only_looking_is_asked_for(hub: HubServer) -> None:
    with pytest.raises(ModelError, match="not on this machine; `batcher models pull hf:Org/Tiny:Q8_0` gets it"):
        parse_model("hf:Org/Tiny:Q8_0", fetch=False)

    assert hub.requests == []


def test_cache_that_huggingface_hub_filled_is_read(hub: HubServer, home: Path) -> None:
    from huggingface_hub import hf_hub_download

    hub.repositories["Org/Tiny"] = Repository({"sub/a-Q8_0.gguf": weights("8"), "README.md": b"hello"})
    for name in ("sub/a-Q8_0.gguf", "README.md"):
        hf_hub_download("Org/Tiny", name, cache_dir=home / "cache", endpoint=hub.url)

    (found,) = HubCache(home / "cache").models()

    assert (found.name, found.problem) == ("Org/Tiny:Q8_0", None)
    assert found.path.read_bytes() == weights("8")


def test_hubs_own_tools_take_the_cache_that_we_filled(hub: HubServer, home: Path) -> None:
    from huggingface_hub import scan_cache_dir

    hub.repositories["Org/Tiny"] = Repository({"a-Q8_0.gguf": weights("8")})
    parse_model("hf:Org/Tiny:Q8_0")

    found = scan_cache_dir(home / ".cache" / "huggingface" / "hub")

    assert found.warnings == []
    (repository,) = found.repos
    (revision,) = repository.revisions
    assert (repository.repo_id, revision.refs) == ("Org/Tiny", frozenset({"main"}))
    found.delete_revisions(revision.commit_hash).execute()
    assert list((home / ".cache" / "huggingface" / "hub").glob("models--*")) == []
