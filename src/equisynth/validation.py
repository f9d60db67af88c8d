"""Parameters -> typed settings, and the first complaint as one line that names the key and who set it."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from equisynth.errors import UserError

FILE = "params.yaml"
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
        expected = first["msg"].removeprefix("Value error, ")
        if first["type"] == "extra_forbidden":
            expected = f"no such key here; known: {', '.join(_known(model, path))}"
        elif first["type"] == "missing":
            expected = "missing; add it"
        raise UserError(f"{where}: {found}{expected}") from None


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


def _known(model: type[BaseModel], path: list[Any]) -> list[str]:
    for part in path[:-1]:
        field = model.model_fields.get(str(part))
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        inner = next((c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)), None)
        if inner is None:
            break
        model = inner
    return [field.alias or name for name, field in model.model_fields.items()]
