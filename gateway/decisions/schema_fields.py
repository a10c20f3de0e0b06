"""Which fields of a JSON schema decide: enumerations, booleans and constants, as typed questions.

The rules. A schema is an object with `properties`. `$ref` to the schema itself is resolved; objects within objects are
read by the same rules, their fields named by their path (`result.action`). Only required fields count; where a schema
says nothing of what is required, all of them are. A field decides where it is

* an `enum`, or an `anyOf`/`oneOf` of constants: a choice (text, whole numbers, true, false, null);
* a `boolean`: yes or no;
* one of these or null: a choice with the option `null`.

A `const`, and an `enum` of one value, are fixed. Every other field is free: text, numbers and lists are nothing that
a typed question answers. A free field that is not required is left out of our answers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from reasoning.questions import TypedQuestion, boolean, choice

_MAX_FIELDS = 200
_MAX_DEPTH = 16
_MAX_OPTIONS = 255
Path = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class DecidingField:
    """A field that a question decides. `values` has the JSON value of every option by the option's key."""

    path: Path
    question: TypedQuestion
    values: Mapping[str, Any]
    keys: Mapping[bytes, str]
    """The keys by the JSON of their values."""

    @property
    def name(self) -> str:
        """The name of its question."""
        return ".".join(self.path)


@dataclass(slots=True)
class SchemaFields:
    """The fields of a schema, by what has to be done about them. `free` has the required ones only."""

    deciding: list[DecidingField] = field(default_factory=list)
    fixed: list[tuple[Path, Any]] = field(default_factory=list)
    free: list[Path] = field(default_factory=list)


class _Unreadable(Exception):
    """The schema is not one that these rules read."""


def read_schema(schema: Mapping[str, Any]) -> SchemaFields | None:
    """The fields of a schema; None where it is not an object that can be read, or nothing in it decides."""
    found = SchemaFields()
    try:
        for path, node in _leaves(schema, schema, (), [0]):
            _sort(found, path, node, schema)
    except _Unreadable:
        return None
    names = [each.name for each in found.deciding]
    return found if found.deciding and len(set(names)) == len(names) else None


def _leaves(root: Mapping[str, Any], node: Any, path: Path, seen: list[int]) -> Iterator[tuple[Path, Any]]:
    node = _resolve(root, node)
    properties = node.get("properties")
    if not isinstance(properties, dict) or len(path) > _MAX_DEPTH or node.get("patternProperties"):
        raise _Unreadable
    required = node.get("required")
    if not isinstance(required, list | None):
        raise _Unreadable
    for name, child in properties.items():
        if required is not None and name not in required:
            continue
        seen[0] += 1
        if seen[0] > _MAX_FIELDS:
            raise _Unreadable
        child = _resolve(root, child)
        if isinstance(child.get("properties"), dict) and child["properties"]:
            yield from _leaves(root, child, (*path, name), seen)
        else:
            yield (*path, name), child


def _resolve(root: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    """A node without `$ref`, and without a list of one alternative."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, dict):
            raise _Unreadable
        alternatives = node.get("allOf") or node.get("anyOf") or node.get("oneOf")
        if isinstance(reference := node.get("$ref"), str):
            target: Any = root
            if not reference.startswith("#"):
                raise _Unreadable
            for part in reference[1:].strip("/").split("/"):
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            words = {"description": node["description"]} if "description" in node else {}
            node = {**target, **words} if isinstance(target, dict) else target
        elif isinstance(alternatives, list) and len(alternatives) == 1 and isinstance(alternatives[0], dict):
            own = {key: value for key, value in node.items() if key not in ("allOf", "anyOf", "oneOf")}
            node = {**alternatives[0], **own}
        else:
            return node
    raise _Unreadable


def _sort(found: SchemaFields, path: Path, node: Any, root: Mapping[str, Any]) -> None:
    options = _options(root, node)
    if options is None:
        found.free.append(path)
        return
    if len(options) == 1:
        found.fixed.append((path, options[0][0]))
        return
    words = node.get("description") or node.get("title") or ""
    words = words if isinstance(words, str) else ""
    values = {_key(value): value for value, _ in options}
    if len(values) != len(options):
        raise _Unreadable
    if set(values) == {"true", "false"} and all(isinstance(value, bool) for value in values.values()):
        question = boolean(words)
    else:
        question = choice({_key(value): description for value, description in options}, words)
    keys = {orjson.dumps(value): key for key, value in values.items()}
    found.deciding.append(DecidingField(path, question, values, keys))


def _options(root: Mapping[str, Any], node: Any) -> list[tuple[Any, str | None]] | None:
    """The values that a field may have, with descriptions; None where they are not listed."""
    node = _resolve(root, node)
    if "const" in node:
        listed = [(node["const"], _words(node))]
    elif isinstance(values := node.get("enum"), list):
        listed = [(value, None) for value in values]
    elif node.get("type") == "boolean":
        listed = [(True, None), (False, None)]
    elif node.get("type") == "null":
        listed = [(None, None)]
    elif isinstance(kinds := node.get("type"), list) and set(map(str, kinds)) == {"boolean", "null"}:
        listed = [(True, None), (False, None), (None, None)]
    elif isinstance(alternatives := node.get("anyOf") or node.get("oneOf"), list):
        listed = []
        for alternative in alternatives:
            if (options := _options(root, alternative)) is None:
                return None
            listed += options
    else:
        return None
    scalars = all(value is None or isinstance(value, str | bool | int) for value, _ in listed)
    return listed if 1 <= len(listed) <= _MAX_OPTIONS and scalars else None


def _words(node: Mapping[str, Any]) -> str | None:
    words = node.get("description") or node.get("title")
    return words if isinstance(words, str) else None


def _key(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
