"""Parameters -> typed settings, and the first complaint as one line that names the key and who set it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from equisynth.errors import UserError, one_of

FILE = "params.yaml"
SHOULD_BE = "Input should be "
KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "list": "a list",
    "tuple": "a list",
    "dictionary": "a mapping of keys to values",
}
Model = TypeVar("Model", bound=BaseModel)


def validate(
    model: type[Model], fields: dict[str, Any], what: str, layers: list[tuple[str, Any]] | None = None
) -> Model:
    """Builds a pydantic model and turns its first complaint into one line that names key and origin."""
    try:
        return model.model_validate(fields)
    except ValidationError as error:
        found_errors = error.errors(include_url=False)
        # A misspelt key is unknown and missed elsewhere: the unknown one is what the user wrote.
        first = next((e for e in found_errors if e["type"] == "extra_forbidden"), found_errors[0])
        path = _keys_of(first["loc"], fields, first["type"] == "missing")
        place = ".".join([what, *map(str, path)]) if layers is None else f"{what}: {origin(path, layers)}"
        where = f"{FILE}: {place.removesuffix(': ')}"
        found = "" if first["type"] == "missing" or not path else f"found {first['input']!r}, "
        expected = in_words(first["msg"])
        if first["type"] == "extra_forbidden":
            expected = _other_key(_fields(model, path), str(path[-1]))
        elif first["type"] == "missing":
            expected = "missing; add it"
        raise UserError(f"{where}: {found}{expected}") from None


def in_words(message: str) -> str:
    """Pydantic's complaint without its names of types."""
    text = message.removeprefix("Value error, ").split(", unable to")[0].split(", got a number")[0]
    if not text.startswith(SHOULD_BE):
        return text
    wanted = text.removeprefix(SHOULD_BE)
    kind = next((words for name, words in KINDS.items() if wanted.startswith(f"a valid {name}")), None)
    return f"expected {kind or wanted}"


def origin(path: list[Any], layers: list[tuple[str, Any]]) -> str:
    """The key with the name of the last layer that sets it (or its closest parent)."""
    dotted = ".".join(str(part) for part in path)
    for length in range(len(path), 0, -1):
        for where, layer in reversed(layers):
            node: Any = layer
            for part in path[:length]:
                node = node.get(part, layer) if isinstance(node, dict) and part in node else layer
                if node is layer:
                    break
            if node is not layer:
                return f"{where}.{dotted}"
    return dotted


def _keys_of(place: tuple[int | str, ...], fields: Any, missing: bool) -> list[int | str]:
    """Pydantic's place of a complaint without what is no key of the file: names of types that it tried."""
    path: list[int | str] = []
    for part in place:
        in_list = isinstance(fields, list | tuple) and isinstance(part, int)
        if in_list or (isinstance(fields, dict) and part in fields):
            path.append(part)
            fields = fields[part]
    return [*path, place[-1]] if missing else path


def _other_key(fields: dict[str, FieldInfo], found: str) -> str:
    """What should stand there instead: the name here of a published one, or what is known."""
    ours = next((name for name, field in fields.items() if field.serialization_alias == found), None)
    if ours is not None:
        return f"this is its published name; here it is called {ours}"
    return f"no such key here; known: {one_of(found, (field.alias or name for name, field in fields.items()))}"


def _fields(model: type[BaseModel], path: list[Any]) -> dict[str, FieldInfo]:
    """The fields of the (inner) model that a path of keys leads to."""
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            break
        model = inner
    return dict(model.model_fields)
