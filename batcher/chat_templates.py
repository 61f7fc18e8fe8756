"""Chat templates by name, for models whose file has none or a wrong one: where one comes from, and a few in use.

`llama-server` has such names, too; the templates here are ours, by the formats that the models' makers document.
"""

import re
from collections.abc import Mapping
from pathlib import Path

from batcher.errors import InputError
from batcher.gguf import read_header
from batcher.paths import expand_home

#: Larger files are no templates; the longest in use has some tens of KB.
_MAX_BYTES = 1 << 20
_NAMED = "tokenizer.chat_template."
_JINJA = re.compile(r"\{[{%]")

#: One system message at most, in front: as a message of its own, or put before the user's first.
_WITH_SYSTEM_IN_USER = (
    "{% set system = messages[0].content if messages[0].role == 'system' else '' %}"
    "{% for message in (messages[1:] if system else messages) %}"
    "{% set content = (system + '\n\n' if system and loop.first else '') + message.content | trim %}"
)
BUILT_IN: Mapping[str, str] = {
    # Qwen, SmolLM, Hermes and many others.
    "chatml": (
        "{% for message in messages %}{{ '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>\n' }}"
        "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    ),
    "llama3": (
        "{{ bos_token }}{% for message in messages %}"
        "{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\n\n' + message.content | trim + '<|eot_id|>' }}"
        "{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
    ),
    # Gemma 1 to 3.
    "gemma": (
        "{{ bos_token }}"
        + _WITH_SYSTEM_IN_USER
        + "{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\n' + content }}"
        "{{ '<end_of_turn>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
    ),
    "mistral": (
        "{{ bos_token }}" + _WITH_SYSTEM_IN_USER + "{% if message.role == 'assistant' %}{{ ' ' + content + eos_token }}"
        "{% else %}{{ '[INST] ' + content + ' [/INST]' }}{% endif %}{% endfor %}"
    ),
    "phi3": (
        "{% for message in messages %}{{ '<|' + message.role + '|>\n' + message.content + '<|end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
    ),
}


def find_template(spec: str, model: Path) -> str:
    """The Jinja source that `--chat-template` gives for a model: in a file, by a name that its GGUF has, or built in.

    A text with Jinja's braces is the source itself. Raises InputError.
    """
    if _JINJA.search(spec):
        return spec
    path = Path(expand_home(spec))
    try:
        if path.is_file():
            return _read(path)
    except OSError as exc:
        raise InputError(f"--chat-template {spec}: cannot read the file: {exc.strerror or exc}") from exc
    except ValueError as exc:
        raise InputError(f"--chat-template {spec}: {exc}; give a file with a template in Jinja") from exc
    named = _named_templates(model)
    found = named.get(spec) or BUILT_IN.get(spec)
    if found is None:
        own = f"{model.name} names {', '.join(sorted(named))}; " if named else ""
        raise InputError(
            f"--chat-template {spec}: no such file, and no template of that name; {own}built in are "
            f"{', '.join(BUILT_IN)}"
        )
    return found


def _read(path: Path) -> str:
    with path.open("rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"longer than {_MAX_BYTES >> 20} MB")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise ValueError(f"not UTF-8 at byte {exc.start}") from exc


def _named_templates(model: Path) -> dict[str, str]:
    header = read_header(model)
    values = header.values if header is not None else {}
    return {
        key.removeprefix(_NAMED): value
        for key, value in values.items()
        if key.startswith(_NAMED) and isinstance(value, str)
    }
