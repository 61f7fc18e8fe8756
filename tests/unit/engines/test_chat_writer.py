"""Chats are written in a process of their own, and what a template does there harms nobody else."""

import contextlib
import json
import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
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


Make = Callable[..., ChatWriter]


#: Those of tests before, whose engines still live.
_others: set[int] = set()


@pytest.fixture(autouse=True)
def _forget_others() -> None:
    _others.clear()
    _others.update(processes())


def processes() -> list[int]:
    """Those that write chats for the test."""
    found = []
    for task in Path("/proc/self/task").iterdir():
        # A thread or a child may end while it is looked at.
        with contextlib.suppress(OSError):
            children = [int(pid) for pid in (task / "children").read_text().split()]
            for pid in children:
                with contextlib.suppress(OSError):
                    if b"chat_process" in Path(f"/proc/{pid}/cmdline").read_bytes():
                        found.append(pid)
    return [pid for pid in found if pid not in _others]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes the writer of a template. All are closed in the end, and leave nothing behind."""
    writers: list[ChatWriter] = []

    def make(source: str, *, max_seconds: float = SHORT_S) -> ChatWriter:
        writers.append(ChatWriter(Source(source, bos_token="<bos>", eos_token="<eos>"), max_seconds=max_seconds))
        return writers[-1]

    yield make
    for writer in writers:
        writer.close()
    assert processes() == []


def test_chats_are_written_one_after_the_other_by_one_process(make: Make) -> None:
    writer = make("{{ bos_token }}{{ messages[0].content }}")

    # Half of a surrogate pair, which JSON can name, and more than what a socket holds.
    for content in ("hello", "é\ud83d", "x" * 1_000_000, ""):
        assert writer.write(chat(content)) == f"<bos>{content}"

    assert len(processes()) == 1


def test_many_chats_are_written_at_a_time_and_each_has_its_own_answer(make: Make) -> None:
    writer = make(
        "{% set said = messages[0].content %}{% if said == 'bomb' %}" + LOOPS + "{% endif %}"
        "{% if said == 'no' %}{{ raise_exception('never') }}{% endif %}{{ said }}"
    )
    # More than a socket holds, in both directions.
    contents = ["a", "no", "b" * 300_000, *map(str, range(50))]

    assert writer.write_all([chat("x" * 300_000)] * 2) == ["x" * 300_000] * 2
    for bombs in ([], ["bomb"], ["bomb", "bomb"]):
        said = [*contents, *bombs, "last"]
        answers = writer.write_all([chat(content) for content in said])
        found = [answer if isinstance(answer, str) else str(answer).rpartition(":")[2] for answer in answers]
        late = [f"the model's chat template takes longer than {s} s to write these messages" for s in ("0.4", "0.2")]
        assert found == [
            *(" never" if content == "no" else content for content in contents),
            *late[: len(bombs)],
            "last",
        ]


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
def test_chat_that_takes_too_much_is_refused_and_the_next_is_written(make: Make, bomb: str, reason: str) -> None:
    # To fill the memory takes time, too.
    max_seconds = PATIENCE_S if "memory" in reason else SHORT_S
    writer = make("{% if messages[0].content == 'bomb' %}" + bomb + "{% endif %}fine", max_seconds=max_seconds)

    with pytest.raises(ChatTemplateError, match=reason) as caught:
        writer.write(chat("bomb"))

    assert len(str(caught.value)) < 2000
    assert writer.write(chat("hello")) == "fine"


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("{% if %}", "can't be read: Expected an expression"),
        ("{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}", "can't be read: "),
        ("{{ 'a' * 3000000000 }}", "needs more memory"),
        ("{{ 10 ** (10 ** 9) }}", r"can't be read: it takes longer than 0\.4 s"),
    ],
)
def test_template_that_can_not_be_compiled_refuses_all_chats(make: Make, source: str, reason: str) -> None:
    writer = make(source)

    for _ in range(2):
        with pytest.raises(ChatTemplateError, match=reason):
            writer.write(chat("hello"))


@pytest.mark.parametrize(
    ("source", "written"),
    [
        ("{{ strftime_now('%Y') }}", time.strftime("%Y")),
        ("{{ lipsum(n=1, min=3, max=4) | length > 9 }}", "True"),
        ("{{ '<é>' | e }}{{ '&lt;p&gt;' | striptags }}", "&lt;é&gt;<p>"),
        ("{{ messages | pprint }}", "[{'content': 'hello', 'role': 'user'}]"),
    ],
)
def test_templates_may_use_what_is_loaded_late(make: Make, source: str, written: str) -> None:
    writer = make(source)
    assert writer.write(chat("hello")) == written


def test_process_of_templates_opens_no_files_and_starts_no_processes(make: Make) -> None:
    writer = make("fine")
    writer.write(chat("hello"))
    [pid] = processes()
    limits = Path(f"/proc/{pid}/limits").read_text()
    assert re.search(r"Max open files +0 +0 ", limits)
    assert re.search(r"Max processes +0 +0 ", limits)
    assert Path(f"/proc/{pid}/oom_score_adj").read_text() == "1000\n"


def test_chats_that_take_too_long_one_after_the_other_get_less_and_less_time(make: Make) -> None:
    writer = make("{% if messages[0].content == 'bomb' %}" + LOOPS + "{% endif %}fine")

    for seconds in ("0.4", "0.2", "0.1", "0.1"):
        with pytest.raises(ChatTemplateError, match=f"takes longer than {seconds} s"):
            writer.write(chat("bomb"))
    assert writer.write(chat("hello")) == "fine"
    with pytest.raises(ChatTemplateError, match=r"takes longer than 0\.4 s"):
        writer.write(chat("bomb"))


def test_process_that_was_killed_while_it_was_idle_is_replaced(make: Make) -> None:
    writer = make("fine")
    writer.write(chat("hello"))
    [pid] = processes()

    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z", what="it is dead")

    assert writer.write(chat("hello")) == "fine"


def test_close_ends_a_chat_that_is_being_written(make: Make) -> None:
    writer = make(LOOPS, max_seconds=PATIENCE_S)
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


def test_chat_with_long_documents_holds_up_no_short_one() -> None:
    source = "{% if documents %}{{ documents * 10 ** 9 }}{% endif %}fine"
    prompts = Prompts(FakeVocabulary(200), chat_template=source, limit=200)  # type: ignore[arg-type]
    short = SequenceRequest((0, 0), chat("hello").messages, SamplingParams(), is_chat=True)
    variables = json.dumps({"documents": "x" * 100_000})
    long = replace(short, params=SamplingParams(chat_template_kwargs=variables))
    assert not isinstance(prompts.tokenize(short), RowError)
    [short_process] = processes()

    assert isinstance(prompts.tokenize(long), RowError)

    assert short_process in processes()
    prompts.close()


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
