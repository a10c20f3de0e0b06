"""Which fields of a JSON schema decide: enumerations, booleans and constants, as typed questions.

The rules. A schema is an object with `properties`. `$ref` to the schema itself is resolved; objects within objects are
read by the same rules, their fields named by their path (`result.action`). Only required fields count; where a schema
says nothing of what is required, all of them are. A field decides where it is

* an `enum`, or an `anyOf`/`oneOf` of constants: a choice (text, whole numbers, true, false, null);
* a `boolean`: yes or no;
* one of these or null: a choice with the option `null`.

A `const`, and an `enum` of one value, are fixed. Every other field is free: text, numbers and lists are nothing that
a typed question answers. So is a required field that the schema does not describe. Fields that are not required are
optional: only a template says whether an answer of ours may lack them.

An object with a condition on its fields (`if`, `oneOf`, `dependentRequired`, …) is not read: these rules could not
promise an answer that the schema admits.
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
_MAX_KEYWORDS = 64
_COMBINING = ("allOf", "anyOf", "oneOf")
_CONDITIONS = frozenset(("allOf", "not", "if", "dependentRequired", "dependentSchemas", "dependencies"))
_OBJECT_CONDITIONS = _CONDITIONS | frozenset(
    ("anyOf", "oneOf", "patternProperties", "propertyNames", "minProperties", "maxProperties")
)
_VALUES = frozenset(("const", "enum", "anyOf", "oneOf"))
_ANNOTATIONS = frozenset(
    (
        *("title", "description", "default", "examples", "deprecated", "readOnly", "writeOnly", "nullable"),
        *("$schema", "$id", "$comment", "$defs", "definitions"),
    )
)
_TYPES: Mapping[str, tuple[type, ...]] = {"string": (str,), "boolean": (bool,), "integer": (int,), "number": (int,)}
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
    """The fields of a schema, by what has to be done about them. `free` has the required ones only, `optional` all
    that are not required."""

    deciding: list[DecidingField] = field(default_factory=list)
    fixed: list[tuple[Path, Any]] = field(default_factory=list)
    free: list[Path] = field(default_factory=list)
    optional: list[Path] = field(default_factory=list)


class _Unreadable(Exception):
    """The schema is not one that these rules read."""


def read_schema(schema: Mapping[str, Any]) -> SchemaFields | None:
    """The fields of a schema; None where it is not an object that can be read, or nothing in it decides."""
    found = SchemaFields()
    try:
        for path, node in _leaves(found, schema, schema, (), [0]):
            _sort(found, path, node, schema)
    except (_Unreadable, RecursionError):  # alternatives may refer to one another
        return None
    names = [each.name for each in found.deciding]
    return found if found.deciding and len(set(names)) == len(names) else None


def _leaves(
    found: SchemaFields, root: Mapping[str, Any], node: Any, path: Path, seen: list[int]
) -> Iterator[tuple[Path, Any]]:
    node = _resolve(root, node)
    properties = node.get("properties")
    if not isinstance(properties, dict) or len(path) > _MAX_DEPTH or node.keys() & _OBJECT_CONDITIONS:
        raise _Unreadable
    listed = node.get("required")
    if not isinstance(listed, list | None) or not all(isinstance(name, str) for name in listed or ()):
        raise _Unreadable
    required = properties.keys() if listed is None else set(listed)
    found.free += [(*path, name) for name in sorted(required - properties.keys())]
    for name, child in properties.items():
        if name not in required:
            found.optional.append((*path, name))
            continue
        seen[0] += 1
        if seen[0] > _MAX_FIELDS:
            raise _Unreadable
        child = _resolve(root, child)
        if isinstance(child.get("properties"), dict) and child["properties"]:
            yield from _leaves(found, root, child, (*path, name), seen)
        else:
            yield (*path, name), child


def _resolve(root: Mapping[str, Any], node: Any) -> Mapping[str, Any]:
    """A node without `$ref`, and without a list of one alternative. What stands beside them may only add to them."""
    for _ in range(_MAX_DEPTH):
        if not isinstance(node, dict) or len(node) > _MAX_KEYWORDS:
            raise _Unreadable
        combining = next((key for key in _COMBINING if node.get(key)), None)
        if isinstance(reference := node.get("$ref"), str):
            target: Any = root
            if not reference.startswith("#"):
                raise _Unreadable
            for part in reference[1:].strip("/").split("/"):
                target = target.get(part.replace("~1", "/").replace("~0", "~")) if isinstance(target, dict) else None
            node = _joined({key: value for key, value in node.items() if key != "$ref"}, target)
        elif combining and isinstance(alternatives := node[combining], list) and len(alternatives) == 1:
            node = _joined({key: value for key, value in node.items() if key != combining}, alternatives[0])
        else:
            return node
    raise _Unreadable


def _joined(own: Mapping[str, Any], target: Any) -> dict[str, Any]:
    """Both at once. Raises `_Unreadable` where they say different things of the same."""
    if not isinstance(target, dict) or len(target) > _MAX_KEYWORDS:
        raise _Unreadable
    if any(key in target and target[key] != own[key] for key in own.keys() - _ANNOTATIONS):
        raise _Unreadable
    return {**target, **own}


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
    told = node.keys() & _VALUES
    if node.keys() & _CONDITIONS or (len(told) > 1 and told != {"const", "enum"}):
        return None
    if "const" in node:
        listed = [(node["const"], _words(node))]
    elif isinstance(values := node.get("enum"), list):
        listed = [(value, None) for value in values]
    elif node.get("type") == "boolean" and not node.keys() & _VALUES:
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
    listed = [row for row in listed if _is_typed(row[0], node.get("type"))]
    scalars = all(value is None or isinstance(value, str | bool | int) for value, _ in listed)
    return listed if 1 <= len(listed) <= _MAX_OPTIONS and scalars else None


def _is_typed(value: Any, kinds: Any) -> bool:
    """Is a value of one of the `kinds` of its schema? What no schema may have passes."""
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or (value is None and kind == "null"):
            return True
        if isinstance(value, _TYPES.get(kind, ())) and isinstance(value, bool) == (kind == "boolean"):
            return True
    return False


def _words(node: Mapping[str, Any]) -> str | None:
    words = node.get("description") or node.get("title")
    return words if isinstance(words, str) else None


def _key(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()
