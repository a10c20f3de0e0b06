"""README and docs: links lead somewhere, code blocks run or parse, and the reference is what the code says."""

from __future__ import annotations

import json
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from cli.main import app
from gateway.settings import load_settings
from reasoning.config import load_config
from storage.log.land import land_decisions
from tests.storage.logs import make_days, write_segment

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402

PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"), *ROOT.glob("integrations/*.md")})
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


BLOCKS = [
    pytest.param(page, language, body, id=f"{name_of(page)}:{page.read_text()[: found.start()].count(chr(10)) + 1}")
    for page in PAGES
    for found in FENCE.finditer(page.read_text())
    for language, body in [found.groups()]
    if language not in ("", "text", "sql", "duckdb", "mermaid")  # SQL is run by tests/storage/test_sql_page.py
]
UNCHECKED = {
    ("docs/concepts/architecture.md", "json"): "shows the form of routes.json with `…` for values",
}
COMMANDS_NOT_OURS = {
    "make": "targets are checked below",
    "rsync": "needs another host",
    "flock": "run by tests/storage/test_backup.py",
    "python": "the query of README runs in tests/demo/test_demo.py; .venv/bin/python elsewhere",
    "python3": "sets up a virtual environment",
    "pip": "installs packages",
    "uv": "installs packages",
    "export": "sets variables of a shell",
    "vllm": "a server of models, which is not ours",
    "llama-server": "a server of models, which is not ours",
    "git": "needs a clone",
    "claude": "Claude Code, which is not ours; tests/clients runs it",
}


def _anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in re.findall(r"\[[^\]]*\]\(([^)\s]+)\)", FENCE.sub("", page.read_text())):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in _anchors(target), link


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (ROOT / "docs" / "README.md").read_text()
    missing = {str(page.relative_to(ROOT / "docs")) for page in ROOT.glob("docs/*/*.md")}
    missing -= set(re.findall(r"\]\(([^)\s]+)\)", contents))
    assert missing == set(), "add it to docs/README.md"


def test_the_example_of_an_env_file_is_generated():
    assert (ROOT / ".env.example").read_text() == generate.env_example(), "the code has changed: run `make docs`"


@pytest.mark.parametrize("name", sorted(generate.pages()))
def test_the_reference_is_what_the_code_says(name: str) -> None:
    assert (generate.REFERENCE / name).read_text() == generate.pages()[name], "the code has changed: run `make docs`"


def test_every_variable_that_the_code_reads_is_in_the_reference() -> None:
    assert generate.used_variables() <= generate.VARIABLES.keys(), "describe it in VARIABLES of docs/generate.py"


@pytest.mark.parametrize("page, language, body", BLOCKS)
def test_a_code_block_holds(
    page: Path, language: str, body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if (name_of(page), language) in UNCHECKED:
        return
    checks = {"python": _run_python, "toml": _load_toml, "json": _parse_json, "sh": _parse_commands}
    assert language in checks, f"no check for {language}: add one, or an exception with its reason"
    monkeypatch.chdir(tmp_path)
    checks[language](page, body)


def _run_python(page: Path, body: str) -> None:
    """Run the page's blocks up to this one: they build on each other."""
    write_segment(Path("reasoning-data"), make_days(1, 2))
    land_decisions(Path("reasoning-data"))
    names: dict[str, Any] = {"__name__": "example"}
    for language, each in FENCE.findall(page.read_text()):
        if language == "python":
            exec(compile(each, name_of(page), "exec", dont_inherit=True), names)
            if each == body:
                break
    if client := names.get("client"):
        client.close()


def _load_toml(page: Path, body: str) -> None:
    file = Path("reasoning.toml")
    file.write_text(body)
    raw = tomllib.loads(body)
    variables = re.findall(r'_env = "(\w+)"', body)
    env = {"REASONING_CONFIG": str(file), **{name: f"a-secret-of-{name}" for name in variables}}
    load_config(Path("data"), path=file, env=env)
    if "gateway" in raw:
        Path("data").mkdir()
        load_settings(Path("data"), file, env)


def _parse_json(page: Path, body: str) -> None:
    json.loads(body)


def _parse_commands(page: Path, body: str) -> None:
    """Commands of ours are parsed as the command line does; the others are named in `COMMANDS_NOT_OURS`."""
    for line in body.replace("\\\n", "").splitlines():
        words = shlex.split(line, comments=True)
        if not words:
            continue
        program = Path(words[0]).name
        if program == "make":
            targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert {word for word in words[1:] if "=" not in word} <= set(targets), line
        elif program == "reasoning":
            _parse(get_command(app), words[1:], None)
        else:
            assert program in COMMANDS_NOT_OURS, f"{line}: not checked; name it in COMMANDS_NOT_OURS with the reason"


def _parse(command: Any, words: list[str], parent: Any) -> None:
    context = command.make_context(command.name or "reasoning", list(words), parent=parent)
    if hasattr(command, "commands"):
        _, sub, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        _parse(sub, rest, context)


def test_a_command_that_does_not_exist_is_noticed() -> None:
    with pytest.raises(Exception, match="retrain"):
        _parse_commands(ROOT / "README.md", "reasoning retrain")
    with pytest.raises(Exception, match="--no-such"):
        _parse_commands(ROOT / "README.md", "reasoning land --no-such 1")
