"""Chats are written in a process of their own, and what a template does there harms nobody else."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batcher.errors import EngineError
from batcher.types import ErrorCode, RowError, SamplingParams
from tests.support.fake_model import FakeVocabulary
from tests.support.waiting import PATIENCE_S, wait_for
from workers.engines.base import SequenceRequest
from workers.engines.llama import chat_writer
from workers.engines.llama.chat_frames import Chat, ChatTemplateError, Source
from workers.engines.llama.chat_writer import ChatWriter
from workers.engines.llama.prompts import Prompts

#: Seconds of computing, less than the product's so that the tests are quick.
SHORT_S = 0.4

LOOPS = "".join(f"{{% for {name} in range(99999) %}}" for name in "abc") + "{% endfor %}" * 3
GROWING = "{% set n = namespace(x=['a']) %}{% for i in range(40) %}{% set n.x = n.x + n.x %}{% endfor %}"


def chat(content: str) -> Chat:
    messages = json.dumps([{"role": "user", "content": content}])
    return Chat(messages, adds_generation_prompt=True, continues_final=False, variables="")


def make(source: str) -> ChatWriter:
    return ChatWriter(Source(source, bos_token="<bos>", eos_token="<eos>"), max_seconds=SHORT_S)


def processes() -> list[int]:
    """Those that write chats for this process."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        for pid in map(int, (task / "children").read_text().split()):
            if b"chat_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


@pytest.fixture(autouse=True)
def _nothing_left() -> Iterator[None]:
    yield
    assert processes() == []


def test_chats_are_written_one_after_the_other_by_one_process() -> None:
    writer = make("{{ bos_token }}{{ messages[0].content }}")

    # Half of a surrogate pair, which JSON can name, and more than what a socket holds.
    for content in ("hello", "é\ud83d", "x" * 1_000_000, ""):
        assert writer.write(chat(content)) == f"<bos>{content}"

    assert len(processes()) == 1
    writer.close()


@pytest.mark.parametrize(
    ("bomb", "reason"),
    [
        (LOOPS, r"takes longer than 0\.4 s to write these messages"),
        ("{{ range(99999) | map('string') | list | sum(start=messages) }}", "refuses these messages"),
        ("{% set x = 10 ** 9 %}{{ 10 ** x }}", r"takes longer than 0\.4 s"),
        ("{{ messages[0].content * 10 ** 9 }}", "needs more memory than it may have"),
        (GROWING, "needs more memory than it may have"),
        ("{{ messages[0].content | center(100000000) }}", "needs more memory than it may have"),
        ("{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}", "refuses these messages: maximum rec"),
        ("{{ raise_exception('x' * 10000000) }}", "refuses these messages: x{900}"),
    ],
)
def test_chat_that_takes_too_much_is_refused_and_the_next_is_written(bomb: str, reason: str) -> None:
    writer = make("{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}fine")

    with pytest.raises(ChatTemplateError, match=reason) as caught:
        writer.write(chat("bomb"))

    assert len(str(caught.value)) < 2000
    assert writer.write(chat("hello")) == "fine"
    writer.close()


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "can't be read: Expected an expression"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "can't be read: "),
        ("{{ 'a' * 3000000000 }}", "needs more memory"),
        ("{{ 10 ** (10 ** 9) }}", r"can't be read: it takes longer than 0\.4 s"),
    ],
)
def test_template_that_can_not_be_compiled_refuses_all_chats(source: str, reason: str) -> None:
    writer = make(source)

    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=reason):
            writer.write(chat("hello"))

    writer.close()


def test_chats_that_take_too_long_one_after_the_other_get_less_and_less_time() -> None:
    writer = make("{% if messages[0].content == 'bomb' %}" + LOOPS + "{% endif %}fine")

    for seconds in ("0.4", "0.2", "0.1", "0.1"):
        with pytest.raises(ChatTemplateError, match=f"takes longer than {seconds} s"):
            writer.write(chat("bomb"))
    assert writer.write(chat("hello")) == "fine"
    with pytest.raises(ChatTemplateError, match=r"takes longer than 0\.4 s"):
        writer.write(chat("bomb"))

    writer.close()


def test_process_that_was_killed_while_it_was_idle_is_replaced() -> None:
    writer = make("fine")
    writer.write(chat("hello"))
    [pid] = processes()

    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", what="it is dead")

    assert writer.write(chat("hello")) == "fine"
    writer.close()


def test_close_ends_a_chat_that_is_being_written() -> None:
    writer = ChatWriter(Source(LOOPS, bos_token="", eos_token=""), max_seconds=PATIENCE_S)
    failures: list[Exception] = []

    def write() -> None:
        try:
            writer.write(chat("hello"))
        except EngineError as exc:
            failures.append(exc)

    thread = threading.Thread(target=write)
    thread.start()
    wait_for(lambda: processes(), what="it is being written")

    writer.close()

    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert len(failures) == 1
    with pytest.raises(EngineError):
        writer.write(chat("hello"))


def test_process_that_can_not_be_started_is_nobodys_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    prompts = Prompts(FakeVocabulary(200), chat_template="fine", limit=200)  # type: ignore[arg-type]
    request = SequenceRequest((0, 0), chat("hello").messages, SamplingParams(), is_chat=True)

    for command in (("/nowhere/python",), ("sh", "-c", "exit 1")):
        with monkeypatch.context() as patch:
            patch.setattr(chat_writer, "COMMAND", command)
            error = prompts.tokenize(request)
        assert isinstance(error, RowError)
        assert error.code is ErrorCode.ENGINE_ERROR

    assert not isinstance(prompts.tokenize(request), RowError)
    prompts.close()
