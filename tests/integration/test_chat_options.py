"""Chat templates and their variables as options of a job."""

from pathlib import Path

import pytest

import batcher
from batcher.errors import InputError
from tests.support.tiny_gguf import write_tiny_gguf

ENGINE = {"threads": 1, "slots": 2, "ctx": 256}
TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}[{{ flag }}]{% endfor %}<assistant>"


def test_template_of_a_file_or_name_is_used_in_place_of_the_models(tmp_path: Path) -> None:
    model = write_tiny_gguf(tmp_path / "m.gguf", chat_template=None)
    file = tmp_path / "t.jinja"
    file.write_text(TEMPLATE)
    rows = [{"prompt": "hi"}, {"prompt": "hi", "chat_template_kwargs": {"flag": "XYZXYZ"}}]

    def num_tokens(name: str, **options: object) -> list[int | None]:
        usual = {"model": str(model), "chat": True, "fields": ["chat_template_kwargs"], "max_tokens": 1} | ENGINE
        job = batcher.run(rows, tmp_path / name, **usual, **options)  # type: ignore[arg-type]
        return [row["prompt_tokens"] for row in job.results()]

    assert num_tokens("none") == [None, None]
    plain, of_row = num_tokens("file", chat_template=str(file))
    assert plain is not None
    assert of_row == plain + len("XYZXYZ")
    # What a row says itself goes before what the job says.
    assert num_tokens("job", chat_template=f"m={file}", chat_template_kwargs={"flag": "job"}) == [plain + 3, of_row]
    assert num_tokens("name", chat_template="chatml") != [plain, plain]


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        ({"chat_template": "nope"}, "--chat-template nope: no such file, and no template of that name; built in are"),
        ({"chat_template": "{% if %}"}, "can't be read: Expected an expression"),
        ({"chat_template_kwargs": {"tools": []}}, "chat_template_kwargs.tools is"),
    ],
)
def test_what_is_no_template_is_refused_before_anything_is_loaded(
    tmp_path: Path, model: Path, options: dict[str, object], problem: str
) -> None:
    with pytest.raises(InputError, match=problem):
        batcher.run([{"prompt": "x"}], tmp_path / "out", model=str(model), **options)  # type: ignore[arg-type]
    assert not (tmp_path / "out").exists()
