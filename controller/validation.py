"""Checks a body against its type and says what is wrong in our words: object, field, numbers, way out."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from controller.schema import API_VERSION, KINDS
from controller.schema_base import Resource
from solvers.errors import InvalidInput

Json = Mapping[str, Any]
SpecT = TypeVar("SpecT", bound=Resource)


def subject_of(body: Json) -> str:
    """Name an object as ``Kind/namespace/name`` or ``Kind/name``."""
    metadata = body.get("metadata") or {}
    parts = (body.get("kind"), metadata.get("namespace"), metadata.get("name") or "(unnamed)")
    return "/".join(str(part) for part in parts if part)


def validate_spec(body: Json, spec_type: type[SpecT]) -> SpecT:
    """Read ``body.spec`` as its type.

    Raises
    ------
    InvalidInput
        For the first violation, naming object and field.
    """
    try:
        return spec_type.model_validate_json(json.dumps(body.get("spec", {}), default=str))
    except ValidationError as error:
        raise explain(error, subject_of(body))[0] from None


def find_violations(body: Json) -> tuple[InvalidInput, ...]:
    """List everything that is wrong with an object of one of the six kinds, empty when nothing is."""
    kind = KINDS[body["kind"]]
    subject = subject_of(body)
    found = [*_metadata_violations(body, subject)]
    try:
        kind.spec.model_validate_json(json.dumps(body.get("spec", {}), default=str))
    except ValidationError as error:
        found.extend(explain(error, subject))
    return tuple(found)


def _metadata_violations(body: Json, subject: str) -> list[InvalidInput]:
    kind, metadata = KINDS[body["kind"]], body.get("metadata") or {}
    name = metadata.get("name")
    found = []
    if body.get("apiVersion") != API_VERSION:
        found.append(InvalidInput(subject, "apiVersion", f"is {body.get('apiVersion')!r}", f"write {API_VERSION}"))
    if not isinstance(name, str) or not name:
        found.append(InvalidInput(subject, "metadata.name", "is required", "give the object a name"))
    elif not isinstance(metadata.get("namespace", ""), str):
        problem = _shown(metadata["namespace"])
        found.append(InvalidInput(subject, "metadata.namespace", problem, "write a name, in quotes if need be"))
    elif kind.name == "FleetPolicy" and name != "default":
        remedy = "call it default, or remove it where there is one already"
        found.append(InvalidInput(subject, "metadata.name", kind.rules[0].message, remedy))
    elif kind.name in ("ServedModel", "GpuClass") and len(name) > 63:
        found.append(InvalidInput(subject, "metadata.name", f"has {len(name)} characters", "use at most 63"))
    return found


def explain(error: ValidationError, subject: str, root: str = "spec") -> tuple[InvalidInput, ...]:
    """Turn pydantic's errors into ours, in the order of the fields."""
    details = error.errors(include_url=False)
    return tuple(_explain_one(detail, subject, root) for detail in details if not _is_echo(detail, details))


def _is_echo(detail: ErrorDetails, details: Sequence[ErrorDetails]) -> bool:
    """Tell whether a list is called too short only because its bad items were passed over."""
    size = len(detail["loc"])
    return detail["type"] == "too_short" and any(
        len(other["loc"]) > size and other["loc"][:size] == detail["loc"] for other in details
    )


def _explain_one(detail: ErrorDetails, subject: str, root: str) -> InvalidInput:
    context = detail.get("ctx", {})
    path = field_path((root, *detail["loc"]))
    if detail["type"] == "rule":
        place = context["field"]
        blamed = path + place if place.startswith("[") else ".".join(part for part in (path, place) if part)
        return InvalidInput(subject, blamed, *_broken(context["message"], place, detail["input"]))
    say = _PHRASES.get(detail["type"])
    problem, remedy = say(detail["input"], context) if say else (f"{_shown(detail['input'])}: {detail['msg']}", "")
    return InvalidInput(subject, path, problem, remedy)


def _broken(message: str, place: str, value: Any) -> tuple[str, str]:
    """Say problem and remedy of a broken rule, with the blamed value where it is one word or number."""
    for name in place.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    words, _, remedy = message.partition("; ")
    if not words.startswith(f"{name} must "):
        return words, remedy
    claim = words.removeprefix(name).strip()
    return (f"{_shown(value)}, {claim}" if isinstance(value, str | int) else claim), remedy


def field_path(places: Sequence[str | int]) -> str:
    """Join keys and indices as ``spec.slos[0].percentile``."""
    path = ""
    for place in places:
        path += f"[{place}]" if isinstance(place, int) else f".{place}"
    return path.lstrip(".")


def _shown(value: object) -> str:
    """Show a value in at most 60 characters."""
    text = json.dumps(value, default=str)
    return f"is {text if len(text) <= 60 else text[:57] + '...'}"


Phrase = Callable[[Any, Mapping[str, Any]], tuple[str, str]]


def _bounded(words: str, key: str) -> Phrase:
    return lambda value, context: (_shown(value), f"use {words} {context[key]:.12g}")


def _sized(words: str, key: str, unit: str) -> Phrase:
    return lambda value, context: (f"has {len(value)} {unit}", f"use {words} {context[key]}")


def _choice(value: Any, context: Mapping[str, Any]) -> tuple[str, str]:
    hints = {False: '; quote "Off": YAML reads Off as false', True: '; quote "On": YAML reads On as true'}
    hint = hints[value] if isinstance(value, bool) else ""
    return _shown(value), f"use one of {context['expected']}{hint}"


def _text_wanted(value: Any, _: Mapping[str, Any]) -> tuple[str, str]:
    return _shown(value), "quote it: text is wanted"


_PHRASES: dict[str, Phrase] = {
    "missing": lambda _, __: ("is required", "add it"),
    "enum": _choice,
    "literal_error": _choice,
    "string_type": _text_wanted,
    "int_type": lambda value, _: (_shown(value), "give a whole number"),
    "int_from_float": lambda value, _: (_shown(value), "give a whole number"),
    "int_parsing": lambda value, _: (_shown(value), "give a whole number"),
    "float_type": lambda value, _: (_shown(value), "give a number"),
    "bool_type": lambda value, _: (_shown(value), "write true or false"),
    "tuple_type": lambda value, _: (_shown(value), "give a list"),
    "dict_type": lambda value, _: (_shown(value), "give keys with values"),
    "model_type": lambda value, _: (_shown(value), "give keys with values"),
    "greater_than_equal": _bounded("at least", "ge"),
    "less_than_equal": _bounded("at most", "le"),
    "string_too_long": _sized("at most", "max_length", "characters"),
    "string_too_short": _sized("at least", "min_length", "characters"),
    "too_long": _sized("at most", "max_length", "items"),
    "too_short": _sized("at least", "min_length", "items"),
    "string_pattern_mismatch": lambda value, context: (_shown(value), f"write it like {context['pattern']}"),
}
