"""What the doctor finds at servers that compute: one that is well, and each that is not, with the remedy."""

from pathlib import Path

from batcher.cli import doctor
from batcher.cli.doctor import Check, Level
from batcher.cli.doctor import servers as server_checks
from batcher.types import EngineConfig, RemoteServers
from tests.support.openai_server import OpenAIServer, Reply, refusal
from tests.unit.cli.test_doctor import by_name


def check_servers(server: OpenAIServer, *specs: str) -> dict[str, Check]:
    return by_name(server_checks.check_servers(RemoteServers((server.url,)), specs))


def test_server_that_completes_a_prompt_is_well() -> None:
    server = OpenAIServer()
    with server.running():
        found = check_servers(server, "mine=tiny")

    assert [check.level for check in found.values()] == [Level.OK, Level.OK]
    assert found[f"engine {server.url}"].message == "a server of the OpenAI API, 1 model"
    assert found["model mine"].message.startswith("tiny completes a prompt, in ")


def test_server_that_is_away_denies_us_or_lacks_the_model_is_found_with_the_remedy() -> None:
    server = OpenAIServer()
    with server.running():
        pass
    [away] = check_servers(server).values()
    with server.running():
        lacking = check_servers(server, "other")[f"model at {server.url}"]
        server.listed = Reply({"error": "no key"}, 401)
        [denying] = check_servers(server).values()

    assert [check.level for check in (away, lacking, denying)] == [Level.FAIL] * 3
    assert away.message.startswith("does not answer: ")
    assert "it serves tiny" in f"{lacking.message} {lacking.remedy}"
    assert "BATCHER_ENGINE_KEY" in denying.remedy


def test_server_that_completes_nothing_is_found() -> None:
    server = OpenAIServer(lambda asked: refusal("the model is not for texts"))
    with server.running():
        found = check_servers(server, "tiny")["model tiny"]

    assert found.level is Level.FAIL
    assert "the model is not for texts" in found.message


def test_doctor_asks_servers_in_the_place_of_models_and_llama_cpp(tmp_path: Path) -> None:
    server = OpenAIServer()
    with server.running():
        wishes = EngineConfig(servers=RemoteServers((server.url,)))
        found = by_name(
            doctor.run_checks(
                jobs_dir=tmp_path, broker="redis://127.0.0.1:1/0", models=[], wishes=wishes, is_one_worker=True
            )
        )

    assert "model tiny" in found
    assert not {"llama.cpp", "kernels", "models", "llama-cpp-python"} & set(found)
