"""What `--model` means, for all commands and for Python: one place, so that a name means the same everywhere."""

import difflib
import re
from pathlib import Path

from batcher.errors import InputError, ModelError
from batcher.ids import check_model_name, is_model_name
from batcher.model_files import Adapter, ModelRef, check_gguf, safe_name
from batcher.model_kinds import check_adapter
from batcher.models.folder import MODELS_DIR_VARIABLE, ModelsFolder, check_models_dir
from batcher.models.hub import KEY as HUB
from batcher.models.hub import parse_hub_name
from batcher.models.registry import OUR_SOURCES, all_models, find_model, source_of
from batcher.models.source import Fetching, FoundModel, Source, Tell
from batcher.models.weights import label_of
from batcher.paths import expand_home

#: Names that are told where one is not known.
_NUM_NEAR = 5
_WITH_ADAPTER = re.compile(r"(?P<base>.+?)\+(?P<adapter>[^+]+\.gguf)(?::(?P<scale>-?\d+(?:\.\d+)?))?")
_PATH_BEGINNINGS = ("/", "./", "../", "~")


def parse_model(spec: str, *, fetch: bool = True, tell: Tell | None = None) -> ModelRef:
    """The model that `--model` names.

    NAME=PATH, NAME=SOURCE:NAME, or NAME=BASE+ADAPTER.gguf[:SCALE] of a base model with a LoRA adapter; a name of the
    models folder, PATH (named after the file), SOURCE:NAME, or a name that some source of this machine has. Its file
    must exist and begin like a GGUF file. `hf:OWNER/REPO...` that is not here is fetched, unless `fetch` is False; see
    `Fetching.fetch`. Raises ModelError with the remedy.
    """
    ours = next((model for source in OUR_SOURCES if (model := source.find(spec)) is not None), None)
    if ours is not None:
        return _usable(ours)
    name, rest = _split_spec(spec)
    if name is not None:
        try:
            check_model_name(name)
        except InputError as exc:
            raise ModelError(f"--model {spec}: {exc}; write NAME=PATH") from exc
        if (adapted := _split_adapter(rest)) is not None:
            base, adapter = adapted
            return ModelRef(name, parse_model(base, fetch=fetch, tell=tell).path, adapter)
        source = _source_in(rest)
        path = _of_source(source, rest, fetch, tell).path if source else check_gguf(Path(expand_home(rest)))
        return ModelRef(name, path)
    path = Path(expand_home(spec))
    if _split_adapter(spec) is not None:
        raise ModelError(f"--model {spec}: a model with an adapter needs a name of its own; write NAME={spec}")
    if _exists(path):
        return ModelRef(safe_name(path), check_gguf(path))
    source = _source_in(spec)
    if source is not None:
        return _of_source(source, spec, fetch, tell)
    found = find_model(spec)
    if found is not None:
        return _usable(found)
    if is_bare_name(spec):
        check_models_dir()
        raise ModelError(f"model {spec!r}: no such file, and not a known name; {_remedy(spec)}")
    return ModelRef(safe_name(path), check_gguf(path))


def pull(spec: str, *, tell: Tell | None = None) -> ModelRef:
    """Fetch the model of the hub that SOURCE:NAME names, and check what is here of it. Raises as `Fetching.fetch`."""
    source = _source_in(spec)
    if not isinstance(source, Fetching):
        remedy = f"write {HUB}:OWNER/REPO:QUANT"
        raise ModelError(f"{spec}: models are fetched from the hub only, by names that begin with {HUB}: ; {remedy}")
    return _usable(source.fetch(spec.partition(":")[2], tell=tell))


def look_up(spec: str) -> FoundModel:
    """The model of this machine that NAME or SOURCE:NAME means, whether it can be used or not. Raises ModelError."""
    source = _source_in(spec)
    found = source.find(spec.partition(":")[2]) if source else find_model(spec)
    if found is None:
        raise ModelError(f"{spec}: no such model on this machine; {_remedy(spec)}")
    return found


def model_named(name: str) -> ModelRef | None:
    """The model of this machine that a name means, which is never taken for a path; None where there is none.

    Raises ModelError where it is there and can't be used.
    """
    found = find_model(name)
    return None if found is None else _usable(found)


def spec_for(name: str) -> str:
    """What to give as `--model` for a model that rows call so: its name if it is here, or what gets it."""
    if find_model(name) is not None:
        return name
    try:
        wanted = parse_hub_name(name)
    except ModelError:
        return f"{name}=PATH"
    is_of_hub = wanted.file is not None or (wanted.label is not None and label_of(wanted.label) == wanted.label)
    return f"{HUB}:{name}" if is_of_hub else f"{name}=PATH"


def served_name(spec: str) -> str:
    """The name under which a `--model` is served, where that follows from the words alone: for those who submit to
    workers elsewhere. Raises InputError."""
    source = _source_in(spec)
    if source is None:
        return check_model_name(spec)
    name = spec.partition(":")[2]
    if source.key != HUB:
        return check_model_name(name)
    wanted = parse_hub_name(name)
    if not wanted.is_exact:
        raise InputError(f"--model {spec}: of which quantization do the workers have it? Write {spec}:QUANT")
    return check_model_name(str(wanted))


def is_bare_name(spec: str) -> bool:
    """Whether a `--model` can only mean a name: of a model that is known, or that workers elsewhere serve."""
    is_path = spec.startswith(_PATH_BEGINNINGS) or spec.endswith(".gguf")
    return is_model_name(spec) and "=" not in spec and (not is_path or _source_in(spec) is not None)


def our_models() -> list[ModelRef]:
    """The models that were put here for Batcher and can be used, by name: of the models folder, which come first, and
    of the wheel."""
    found: dict[str, ModelRef] = {}
    for source in OUR_SOURCES:
        for model in source.models():
            if model.problem is None:
                found.setdefault(model.name, ModelRef(model.name, model.path))
    return [found[name] for name in sorted(found)]


def our_problems() -> list[FoundModel]:
    """Of the models that were put here for Batcher those that can't be used."""
    return [model for source in OUR_SOURCES for model in source.models() if model.problem is not None]


def _split_spec(spec: str) -> tuple[str | None, str]:
    """NAME=REST as name and rest, else None and all. Either may hold a `=`: the first is meant behind which, or before
    which, there is a file, or behind which a source is named."""
    ends = [position for position, char in enumerate(spec) if char == "="]
    if not ends or _exists(Path(expand_home(spec))):
        return None, spec
    splits = [(spec[:end], spec[end + 1 :]) for end in ends]
    first = splits[0] if not spec.startswith(_PATH_BEGINNINGS) else (None, spec)
    return next((split for split in splits if _source_in(split[1]) or _exists(Path(expand_home(split[1])))), first)


def _split_adapter(spec: str) -> tuple[str, Adapter] | None:
    """BASE+ADAPTER.gguf[:SCALE] as the base's own spec and the adapter; None for what is none, or a file so called.

    Raises ModelError where the adapter can't be one.
    """
    match = _WITH_ADAPTER.fullmatch(spec)
    if match is None or _exists(Path(expand_home(spec))):
        return None
    path = check_gguf(Path(expand_home(match["adapter"])), check_kind=check_adapter)
    return match["base"], Adapter(path, float(match["scale"] or 1))


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:
        # A name may be longer than any file's.
        return False


def _source_in(spec: str) -> Source | None:
    """The source that SOURCE:NAME names."""
    key, colon, name = spec.partition(":")
    return source_of(key) if colon and name else None


def _of_source(source: Source, spec: str, fetch: bool, tell: Tell | None) -> ModelRef:
    name = spec.partition(":")[2]
    found = source.find(name)
    if (found is None or found.problem is not None) and isinstance(source, Fetching):
        if not fetch:
            raise ModelError(f"model {spec}: not on this machine; `batcher models pull {spec}` gets it")
        found = source.fetch(name, tell=tell)
    if found is None:
        known = ", ".join(model.name for model in source.models()) or "none on this machine"
        raise ModelError(f"model {spec}: {source.key} has no such model here (it has {known}); {_remedy(name)}")
    return _usable(found)


def _usable(model: FoundModel) -> ModelRef:
    if model.problem is not None:
        # Of the folder the problem names the file.
        whose = "" if model.source == ModelsFolder().key else f"model {model.name} of {model.source}: "
        raise ModelError(f"{whose}{model.problem}")
    return ModelRef(model.name, check_gguf(model.path))


def _remedy(name: str) -> str:
    """What to do about a name that is nowhere: names that are near it, and the line that gets a model."""
    known = [model.name for model in all_models()]
    folded = {each.lower(): each for each in reversed(known)}
    close = difflib.get_close_matches(name.lower(), folded, n=_NUM_NEAR, cutoff=0.5)
    within = [each for each in folded if name.lower() in each]
    near = list(dict.fromkeys(folded[each] for each in (*close, *within)))[:_NUM_NEAR]
    listed = (
        f"near it: {', '.join(near)}" if near else f"known: {', '.join(known[:_NUM_NEAR])}" if known else "none known"
    )
    if len(known) > _NUM_NEAR and not near:
        listed += ", ..."
    hub_name = name if name.count("/") == 1 else "OWNER/REPO:QUANT"
    return (
        f"{listed}. `batcher models` lists all; `batcher models pull {HUB}:{hub_name}` gets one from the hub; a GGUF "
        f"file is given as NAME=PATH, or lies in the folder that {MODELS_DIR_VARIABLE} names"
    )
