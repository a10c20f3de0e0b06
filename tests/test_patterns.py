"""Every regular expression of the project takes time in proportion to its text, whatever the text.

The patterns are found, not listed: all modules are imported and searched, with what their containers, dataclasses,
closures and caches hold; and the sources are read for calls of `re` whose pattern is no module's. RE2's are linear by
construction.
"""

from __future__ import annotations

import ast
import functools
import importlib
import pkgutil
import re
import time
from collections.abc import Iterator
from pathlib import Path
from re import _constants as sre  # type: ignore[attr-defined]
from re import _parser as sre_parser  # type: ignore[attr-defined]
from typing import Any

import pytest

from tests.packages import PACKAGES, ROOT

ANCHORED = {"match", "fullmatch"}
ANYWHERE = {"search", "finditer", "findall", "sub", "subn", "split"}
# 4 KB: a pattern that grows with the square takes 30 ms or more, one that does not a millisecond.
SIZE, SUSPICIOUS = 4_096, 0.006
LONGEST_GROWTH = 3.0  # of the time, for twice the length: 2 is linear, 4 the square

# What `make integrations` installs; the modules have no pattern of their own.
NEEDS = {"reasoning.integrations.langchain": "langchain", "reasoning.integrations.openai_agents": "agents"}


def _modules() -> list[str]:
    names = []
    for package in PACKAGES:
        names.append(package)
        for module in pkgutil.walk_packages([str(ROOT / package)], f"{package}."):
            if not module.name.endswith(("__main__", "migrations.env")):  # which only their programs can import
                names.append(module.name)
    return names


def _patterns_in(value: Any, depth: int = 0) -> Iterator[re.Pattern[Any]]:
    if isinstance(value, re.Pattern):
        yield value
    elif depth > 5:
        return
    elif isinstance(value, dict):
        for item in (*value.keys(), *value.values()):
            yield from _patterns_in(item, depth + 1)
    elif isinstance(value, list | tuple | set | frozenset):
        for item in value:
            yield from _patterns_in(item, depth + 1)
    elif isinstance(value, functools.partial):
        yield from _patterns_in((value.func, value.args, value.keywords), depth + 1)
    elif hasattr(value, "__dataclass_fields__"):
        for name in value.__dataclass_fields__:
            yield from _patterns_in(getattr(value, name, None), depth + 1)
    elif callable(value) and (closure := getattr(value, "__closure__", None)):
        for cell in closure:
            try:
                yield from _patterns_in(cell.cell_contents, depth + 1)
            except ValueError:  # not filled yet
                continue


def _uses(source: str, name: str) -> set[str]:
    """How the pattern of a module's name is used there: nothing found is as good as everywhere."""
    found = set(re.findall(rf"\b{re.escape(name)}\.({'|'.join(ANCHORED | ANYWHERE)})\(", source))
    others = len(re.findall(rf"\b{re.escape(name)}\b", source)) - 1
    return found if found and len(re.findall(rf"\b{re.escape(name)}\.", source)) == others else ANCHORED | ANYWHERE


def _called_patterns(tree: ast.Module) -> Iterator[tuple[int, str, ast.expr, int]]:
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in {"compile", *ANCHORED, *ANYWHERE}
        ):
            flags = 0
            text = " ".join(ast.unparse(argument) for argument in (*node.args, *(k.value for k in node.keywords)))
            for flag in re.findall(r"\bre\.([A-Z]+)\b", text):
                flags |= int(getattr(re, flag))
            yield node.lineno, node.func.attr, node.args[0], flags


def _sample(tokens: Any) -> str:
    """A text that a part of a pattern matches, as short as can be: what it is tried with again and again."""
    text = ""
    for op, argument in tokens:
        if op is sre.LITERAL:
            text += chr(argument)
        elif op is sre.NOT_LITERAL:
            text += "a" if argument != ord("a") else "b"
        elif op is sre.ANY:
            text += "a"
        elif op is sre.IN:
            text += _member(argument)
        elif op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            text += _sample(argument[2]) * min(max(argument[0], 1), 40)
        elif op is sre.SUBPATTERN:
            text += _sample(argument[3])
        elif op is sre.ATOMIC_GROUP:
            text += _sample(argument)
        elif op is sre.BRANCH:
            text += _sample(argument[1][0])
    return text


def _member(members: Any) -> str:
    negated = any(op is sre.NEGATE for op, _ in members)
    if negated:
        excluded = re.compile("[" + "".join(re.escape(chr(a)) for op, a in members if op is sre.LITERAL) + "]" if any(
            op is sre.LITERAL for op, _ in members) else "(?!)")  # fmt: skip
        return next(c for c in "a0 <-_~\x01" if not excluded.match(c))
    for op, argument in members:
        if op is sre.LITERAL:
            return chr(argument)
        if op is sre.RANGE:
            return chr(argument[0])
        if op is sre.CATEGORY:
            return {sre.CATEGORY_DIGIT: "0", sre.CATEGORY_SPACE: " "}.get(argument, "a")
    return "a"


def _repeated(tokens: Any) -> Iterator[Any]:
    """The parts of a pattern that it may repeat, and the beginnings of the pattern up to them."""
    for number, (op, argument) in enumerate(tokens):
        if op in (sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT):
            yield argument[2]
            yield from _repeated(argument[2])
            yield list(tokens)[: number + 1]
        elif op is sre.SUBPATTERN:
            yield from _repeated(argument[3])
        elif op is sre.ATOMIC_GROUP:
            yield from _repeated(argument)
        elif op is sre.BRANCH:
            for branch in argument[1]:
                yield branch
                yield from _repeated(branch)


def _attacks(pattern: re.Pattern[Any]) -> set[tuple[str, str]]:
    """Pairs of a beginning and of what is repeated after it."""
    text = pattern.pattern if isinstance(pattern.pattern, str) else pattern.pattern.decode("latin-1")
    tokens = sre_parser.parse(text, pattern.flags & ~re.DEBUG if isinstance(pattern.pattern, str) else pattern.flags)
    pumps = {
        "a",
        "0",
        " ",
        "\n",
        "<",
        '"',
        "\\",
        "-",
        "a-",
        "a.",
        "a ",
        "\n ",
        "@",
        "/",
        "[",
        "{",
        "A0",
        "<a",
        "\t\n",
        "=",
        "`",
    }
    pumps |= {sample for part in _repeated(tokens) if 0 < len(sample := _sample(part)) < 200}
    first = {"", _sample(list(tokens)[:1])[:100]}
    whole = _sample(tokens)
    pumps |= {whole[:200], whole[: len(whole) // 2][:200], f"\n{whole[:100]}"} - {""}
    return {(begin, pump) for begin in first for pump in pumps if pump}


def _seconds(pattern: re.Pattern[Any], use: str, text: Any) -> float:
    best = 9.0
    for _ in range(2):
        begun = time.process_time()
        if use == "finditer":
            for _found in pattern.finditer(text):
                pass
        else:
            getattr(pattern, use)(text)
        best = min(best, time.process_time() - begun)
        if best < SUSPICIOUS:
            break
    return best


def _faults(pattern: re.Pattern[Any], uses: set[str]) -> Iterator[str]:
    ways = (["finditer"] if uses & ANYWHERE else []) + (["match"] if "match" in uses else [])
    ways += ["fullmatch"] if "fullmatch" in uses else []
    for begin, pump in sorted(_attacks(pattern)):
        for use in ways:
            texts: list[Any] = [begin + pump * (size // len(pump)) + "\x00" for size in (SIZE, 2 * SIZE)]
            if isinstance(pattern.pattern, bytes):
                texts = [text.encode("utf-8", "replace") for text in texts]
            short = _seconds(pattern, use, texts[0])
            if short >= SUSPICIOUS and (long := _seconds(pattern, use, texts[1])) > LONGEST_GROWTH * short:
                yield f"{pattern.pattern[:80]!r}.{use} of {begin[:20]!r} and {pump[:20]!r}: {short:.2f} s, {long:.2f} s"
                return


@pytest.mark.parametrize("name", _modules())
def test_no_pattern_grows_faster_than_its_text(name: str) -> None:
    if framework := NEEDS.get(name):
        pytest.importorskip(framework, reason="run `make integrations`")
    module = importlib.import_module(name)
    file = getattr(module, "__file__", None)
    source = Path(file).read_text(encoding="utf-8") if file else ""
    faults = []
    seen: set[tuple[Any, int]] = set()
    for attribute, value in list(vars(module).items()):
        for pattern in _patterns_in(value):
            if (pattern.pattern, pattern.flags) not in seen:
                seen.add((pattern.pattern, pattern.flags))
                faults += _faults(pattern, _uses(source, attribute))
    for line, use, argument, flags in _called_patterns(ast.parse(source)):
        if isinstance(argument, ast.Constant):
            pattern = re.compile(argument.value, flags)
            if (pattern.pattern, pattern.flags) not in seen and use != "compile":
                faults += [f"line {line}: {fault}" for fault in _faults(pattern, {use})]
    assert not faults, "\n".join(faults)


# Calls whose pattern is put together when they are made. Each quotes what it is given, or is its module's own text.
PUT_TOGETHER = {
    "reasoning/error_text.py": "its module's text, tested with it",
    "reasoning/formats/action_lists.py": "the name of a field",
    "reasoning/formats/questions.py": "quoted names and values",
    "gateway/decisions/prompts.py": "a person's own settings, and quoted names",
    "gateway/ops/pages.py": "names of our own tags",
    "gateway/coding/classify.py": "its module's own texts",
    "provider/lifecycle/reconcile.py": "a quoted prefix",
    "storage/erasure/datasets.py": "a quoted id",
    "learners/transcript.py": "quoted names, and its module's own texts",
    "demo/originals.py": "a quoted name",
    "reasoning/redaction/credentials.py": "its module's own texts",
}


def test_no_call_has_a_pattern_that_nobody_knows() -> None:
    unknown = []
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            at_top = {
                id(node) for top in tree.body if isinstance(top, ast.Assign | ast.AnnAssign) for node in ast.walk(top)
            }
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and node.module == "re":
                    unknown.append(f"{path.relative_to(ROOT)}:{node.lineno}: import `re`, not from it")
            for line, use, argument, _ in _called_patterns(tree):
                place = str(path.relative_to(ROOT))
                if isinstance(argument, ast.Constant) or id(argument) in at_top or place in PUT_TOGETHER:
                    continue
                unknown.append(f"{place}:{line}: re.{use}({ast.unparse(argument)[:60]})")
    assert not unknown, "\n".join(unknown)


@pytest.mark.parametrize("pattern", [r"\s+$", r"<a>.*?</a>", r"[\w-]*key", r"x[^:]*:"])
def test_the_test_finds_patterns_that_grow(pattern: str) -> None:
    assert list(_faults(re.compile(pattern, re.S), ANYWHERE))
