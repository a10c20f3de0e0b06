"""The order of the packages: imports run downwards, the emulator stands alone, nothing imports a flow."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.packages import PACKAGES, ROOT

# What each package may import of ours, besides itself (docs/concepts/architecture.md, Packages).
MAY_IMPORT: dict[str, set[str]] = {
    "reasoning": set(),
    "prices": {"reasoning"},
    "storage": {"reasoning"},
    "quality": {"storage", "reasoning"},
    "provider": {"learners", "storage", "reasoning"},
    "pipeline": {"quality", "provider", "storage", "prices", "reasoning"},
    "tasks": {"pipeline", "quality", "provider", "storage", "reasoning"},
    "flows": {"tasks", "pipeline", "quality", "provider", "storage", "reasoning"},
    "gateway": {"storage", "prices", "reasoning"},
    "console": {"pipeline", "quality", "provider", "storage", "prices", "reasoning"},
    "emulator": {"learners"},
    "learners": {"reasoning"},
    "demo": {"tasks", "pipeline", "quality", "provider", "storage", "reasoning"},
    "cli": {"demo", "tasks", "pipeline", "gateway", "quality", "provider", "storage", "prices", "reasoning"},
}

# What an agent installs besides Python. Here names of distributions are names of modules.
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WHEEL_DEPENDENCIES = {re.split(r"[^\w-]", requirement)[0] for requirement in PROJECT["dependencies"]}

# Modules of the extra `redact`, whose distributions have other names.
FRAMEWORKS = {
    "integrations/langchain.py": {"langchain", "langgraph"},
    "integrations/openai_agents.py": {"agents"},
}
REDACTION_DEPENDENCIES = {"phonenumbers", "re2", "mnemonic", "stdnum"}


def imported_modules(source: str) -> Iterator[tuple[str, int]]:
    """Every module that an import (or `import_module("...")`) in `source` names, wherever it stands, with its line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            if node.level == 0 and node.module:
                yield node.module, node.lineno
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node.lineno
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in {"import_module", "__import__"} and isinstance(node.args[0].value, str):
                yield node.args[0].value, node.lineno


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def trespasses(package: str) -> list[str]:
    found = set()
    for path in sources(package):
        place = path.relative_to(ROOT).as_posix()
        for module, line in imported_modules(path.read_text()):
            other = module.split(".")[0]
            if other in MAY_IMPORT and other != package and other not in MAY_IMPORT[package]:
                found.add(f"{place}:{line}: {package} must not import {other}")
    return sorted(found)


# Who may import the adapter of a provider, besides the adapter itself: the registry opens it by its name.
REGISTRY = "provider/providers.py"
ADAPTERS = {"provider.together", "provider.local"}
SDKS = {"together": "provider/together/"}


def test_only_an_adapter_knows_its_sdk_and_only_the_registry_an_adapter():
    """All above speaks `provider.port`: another provider has another SDK, other states and other versions."""
    found = []
    for package in MAY_IMPORT:
        for path in sources(package):
            place = path.relative_to(ROOT).as_posix()
            for module, line in imported_modules(path.read_text()):
                sdk = SDKS.get(module.split(".")[0])
                if sdk is not None and not place.startswith(sdk):
                    found.append(f"{place}:{line}: {module}")
                for adapter in ADAPTERS:
                    inside = place.startswith(adapter.replace(".", "/") + "/")
                    if (module == adapter or module.startswith(f"{adapter}.")) and not inside and place != REGISTRY:
                        found.append(f"{place}:{line}: {module}")
    assert found == []


def test_every_package_is_named_here():
    assert set(PACKAGES) == set(MAY_IMPORT)


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_run_downwards(package: str):
    assert sources(package), f"no sources in {package}/"
    assert trespasses(package) == []


# Imports that close a circle and are being removed: (importer, imported).
KNOWN_CIRCLES: set[tuple[str, str]] = set()


def import_graph() -> dict[str, set[str]]:
    """The modules of ours that each module imports, wherever the import stands and under `TYPE_CHECKING` too."""
    modules = {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
        for package in MAY_IMPORT
        for path in sources(package)
    }
    graph: dict[str, set[str]] = {}
    for module, path in modules.items():
        named = {name for name, _ in imported_modules(path.read_text())} & modules.keys()
        # `from package import module` names both; what is imported is the module.
        graph[module] = {n for n in named if not any(other.startswith(f"{n}.") for other in named)} - {module}
    return graph


def find_circle(graph: dict[str, set[str]]) -> list[str]:
    """The modules of one circle of imports, the first one again at the end. Empty where there is none."""
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        circle: list[str] = error.args[1]
        return circle
    return []


def test_no_modules_import_each_other_in_a_circle():
    graph = import_graph()
    for importer, imported in KNOWN_CIRCLES:
        graph.get(importer, set()).discard(imported)
    assert find_circle(graph) == []


def test_a_circle_is_found_wherever_its_imports_stand():
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"a"}}) != []
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from reasoning.records import Message"
    assert "reasoning.records" in {name for name, _ in imported_modules(source)}


# The only modules that may touch `os.environ`. Everything else asks these.
READS_ENVIRONMENT = {
    **dict.fromkeys(("reasoning/config.py", "gateway/settings.py", "cli/environment.py"), "configuration"),
    "storage/layout.py": "configuration: the ledger's URL",
    "storage/ledger/database.py": "names the variable in an error",
    "provider/settings.py": "configuration of the provider",
    "pipeline/alerts.py": "configuration: the channels, which are secrets",
    "cli/serve.py": "puts together what child processes get",
    "emulator/world/scheduler.py": "puts together what a training process gets",
    "tasks/entrypoints.py": "sets what Prefect and Great Expectations read when imported",
    "quality/checks/gate.py": "sets what Great Expectations reads when imported",
}


def environment_uses(source: str) -> list[int]:
    """Lines that touch `os.environ`, `os.getenv` or `os.putenv`, however they are imported."""
    names = {"environ", "environb", "getenv", "getenvb", "putenv", "unsetenv"}
    return [
        node.lineno
        for node in ast.walk(ast.parse(source))
        if (isinstance(node, ast.Attribute) and node.attr in names and ast.unparse(node.value) == "os")
        or (isinstance(node, ast.ImportFrom) and node.module == "os" and names & {alias.name for alias in node.names})
    ]


def test_only_configuration_reads_the_environment():
    found = {
        path.relative_to(ROOT).as_posix()
        for package in MAY_IMPORT
        for path in sources(package)
        if environment_uses(path.read_text())
    }
    assert found == READS_ENVIRONMENT.keys()  # one too many here is a module that was mended: take it out


def test_a_use_of_the_environment_is_found_however_it_is_written():
    for source in ("import os\nos.environ['A']", "from os import environ", "import os\nos.getenv('A')"):
        assert environment_uses(source), source
    assert environment_uses("import os\nos.path.join('a')") == []


# Of `tasks`, what needs Prefect. The rest are the verbs, plain functions on a data folder.
NEEDS_PREFECT = {"entrypoints", "log_tasks", "model_tasks", "money_tasks", "parameters", "progress", "runs"}


def test_the_verbs_know_nothing_of_prefect():
    """Nor of what needs it: a verb runs from the command line, or from any other scheduler, without it."""
    forbidden = {"prefect", "pydantic"} | {f"tasks.{name}" for name in NEEDS_PREFECT}
    found = {
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in [*sources("tasks"), *sources("pipeline")]
        if path.parent.name != "tasks" or path.stem not in NEEDS_PREFECT
        for module, line in imported_modules(path.read_text())
        if module in forbidden or module.split(".")[0] in {"prefect", "pydantic"}
    }
    assert found == set()


def test_nothing_imports_a_flow():
    """Flows are loaded by the entrypoints of prefect.yaml, not even by one another."""
    importers = [
        f"{path.relative_to(ROOT)}:{line}"
        for package in MAY_IMPORT
        for path in sources(package)
        for module, line in imported_modules(path.read_text())
        if module.split(".")[0] == "flows"
    ]
    assert importers == []


def test_no_flow_file_is_named_like_a_package():
    """Run as a script from flows/, `quality.py` would shadow the package `quality`."""
    assert {path.stem for path in sources("flows")} & set(MAY_IMPORT) == set()


def test_the_wheel_imports_its_declared_dependencies_alone():
    """`reasoning.redaction` may import what the extra `redact` installs as well, an adapter its framework."""
    foreign = {
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sources("reasoning")
        for module, line in imported_modules(path.read_text())
        if module.split(".")[0] not in sys.stdlib_module_names | WHEEL_DEPENDENCIES | {"reasoning", "cli"}
        and not (path.parent.name == "redaction" and module.split(".")[0] in REDACTION_DEPENDENCIES)
        and module.split(".")[0] not in FRAMEWORKS.get(str(path.relative_to(ROOT / "reasoning")), ())
    }
    assert foreign == set()


def test_the_wheel_imports_the_rules_of_redaction_only_when_they_are_used():
    importers = {
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("reasoning")
        if path.parent.name != "redaction"
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ImportFrom)
        and (node.module or "").startswith("reasoning.redaction")
        and node.module != "reasoning.redaction.placeholders"
    }
    assert importers == set()


@pytest.mark.parametrize(
    ("source", "module"),
    [
        ("import flows.fine_tune", "flows.fine_tune"),
        ("def f():\n    from flows import fine_tune", "flows.fine_tune"),
        ("import importlib\nimportlib.import_module('flows.fine_tune')", "flows.fine_tune"),
        ("if True:\n    import quality.checks.log as q", "quality.checks.log"),
    ],
)
def test_the_walk_sees_imports_wherever_they_stand(source: str, module: str):
    assert module in {name for name, _ in imported_modules(source)}


# Packages that keep states as text: storage in its tables, the emulator on Together's wire.
KEEPS_STATES_AS_TEXT = ("storage/", "emulator/", "provider/together/")


def states_as_text(source: str) -> Iterator[int]:
    """Lines that compare a `.state` with text, or hand text over as `state=`."""

    def is_text(node: ast.expr) -> bool:
        nodes = node.elts if isinstance(node, ast.Tuple | ast.List | ast.Set) else [node]
        return any(isinstance(each, ast.Constant) and isinstance(each.value, str) for each in nodes)

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(isinstance(side, ast.Attribute) and side.attr == "state" for side in sides):
                yield from (side.lineno for side in sides if is_text(side))
        elif isinstance(node, ast.keyword) and node.arg == "state" and is_text(node.value):
            yield node.value.lineno


def test_states_are_enumerated_outside_of_storage() -> None:
    found = [
        f"{place}:{line}"
        for package in MAY_IMPORT
        for path in sources(package)
        if not (place := path.relative_to(ROOT).as_posix()).startswith(KEEPS_STATES_AS_TEXT)
        for line in states_as_text(path.read_text())
    ]
    assert found == []


@pytest.mark.parametrize(
    "source", ["row.state == 'ready'", "row.state not in ('a', 'b')", "find(Model, state='trained')"]
)
def test_a_state_as_text_is_found(source: str) -> None:
    assert list(states_as_text(source)) == [1]
