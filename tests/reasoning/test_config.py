from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from reasoning.client import DecisionClient
from reasoning.config import Config, api_key_for, load_config
from reasoning.decision_types import DECISION_TYPES
from reasoning.errors import ConfigError
from reasoning.serving.completion import request_body
from reasoning.serving.routes import Arm

KEY = "tgp_v1_0123456789abcdef"


def test_nothing_has_to_be_configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load_config(env={})
    assert config.data == tmp_path / "reasoning-data"
    assert config.enabled and config.api_key is None and config.agent_id is None
    assert [p.name for p in tmp_path.iterdir()] == []


def test_argument_before_environment_before_file(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('data = "from-file"\nagent_id = "file"\nenabled = false\nprovider_url = "https://p.example/v1"\n')
    config = load_config(env={"REASONING_CONFIG": str(file)})
    assert (config.data, config.agent_id, config.enabled) == (tmp_path / "from-file", "file", False)
    assert config.provider_url == "https://p.example"
    env = {"REASONING_CONFIG": str(file), "REASONING_DATA": "/e", "REASONING_AGENT_ID": "env", "REASONING_ENABLED": "1"}
    config = load_config(env=env)
    assert (str(config.data), config.agent_id, config.enabled) == ("/e", "env", True)
    assert str(load_config("/a", env=env).data) == "/a"


@pytest.mark.parametrize(
    ("toml", "message"),
    [
        ("data = [", "not TOML"),
        ("dat = 'x'", "did you mean data?"),
        ("data = 3", "data: text is needed"),
        ("[decision_type.x]", r"did you mean \[decision_types\]"),
        ("api_key = 'x'", "set TOGETHER_API_KEY"),
        ("enabled = 'maybe'", "neither true nor false"),
        ("provider_url = 'ftp://x'", "provider_url: 'ftp://x' is not an http"),
        ("provider_url = 'https://u:p@x'", "must not hold a user name"),
        ("client = 3", r"a table is needed: \[client\]"),
        ("[client]\nshadow_worker = 2", "did you mean shadow_workers?"),
        ("[client]\nshadow_workers = 0", r"shadow_workers: 0 is not a whole number within 1\.\.256"),
        ("[client]\nbreaker_failures = true", "breaker_failures: True is not"),
        ("[decision_types.bad-name]\nlabels=[]", "a name is letters"),
        ("[decision_types.x]\nlabels=['A','B']", "instruction is missing"),
        ("[decision_types.x]\nlabels=['A','a']\ninstruction='i'\nquestion='q'", "labels: at least two"),
        ("[decision_types.x]\nlabels=['A','<b>']\ninstruction='i'\nquestion='q'", "labels: a list of words"),
        ("[decision_types.x]\nlabels=['A','B']\ninstruction='i'\nquestion=\"q\\nr\"", "question: one line"),
        ("[decision_types.planning]\nlabels=['A']", "labels is not known"),
        ("[decision_types.planning]\ntier='huge'", "tier: 'huge' is none of"),
        ("[decision_types.planning]\nthinking='perhaps'", "thinking: 'perhaps' is neither true nor false"),
        ("[decision_types.planning]\nstop='x'", "stop: a list of at most 4 texts"),
        ("[decision_types.planning]\nstop=['']", "stop: a list of at most 4 texts"),
        ("[decision_types.planning]\nstop=['a','b','c','d','e']", "stop: a list of at most 4 texts"),
        ("[decision_types.planning]\nstop=['</response>']", r"\[decision_types.planning\] stop: '</response>' is part"),
        ("[decision_types.coding]\nstop=['```']", "stop: '```' is part of every answer of coding"),
        ("[tiers.small]\nstop=['<action>RESPOND']", r"\[tiers.small\] stop: '<action>RESPOND' is part of every answer"),
        ("[tiers.tiny]\nthinking=false", r"\[tiers.tiny\] is not known"),
        ("[tiers.small]\nthink=false", "did you mean thinking?"),
        ("tiers = 3", r"a table is needed: \[tiers\]"),
        ("[decision_types.planning]\ntemperature=9", "temperature: 9 is not a number within 0"),
    ],
)
def test_a_broken_file_is_refused_at_construction(tmp_path: Path, toml: str, message: str) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(toml)
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(path=file, env={})
    assert str(file) in str(caught.value)


def test_a_broken_environment_is_refused_without_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="REASONING_ENABLED: 'perhaps'"):
        load_config(env={"REASONING_ENABLED": "perhaps"})
    with pytest.raises(ConfigError, match="unset REASONING_CONFIG"):
        load_config(env={"REASONING_CONFIG": "/does/not/exist.toml"})
    with pytest.raises(ConfigError, match="TOGETHER_API_KEY") as caught:
        load_config(env={"TOGETHER_API_KEY": KEY + "\nX-Injected: 1"})
    assert KEY not in str(caught.value)
    monkeypatch.setenv("REASONING_PROVIDER_URL", "nonsense")
    with pytest.raises(ConfigError, match="REASONING_PROVIDER_URL"):
        DecisionClient()


def test_tables_of_other_rooms_pass(tmp_path: Path) -> None:
    (tmp_path / "reasoning.toml").write_text("[budget]\nday = 5\n")
    assert load_config(path=tmp_path / "reasoning.toml", env={}).enabled


@pytest.mark.parametrize(
    ("url", "key"),
    [
        ("http://127.0.0.1:9", "local"),
        ("http://localhost:9", "local"),
        ("http://[::1]:9", "local"),
        ("https://api.together.ai", KEY),
        ("https://api-inference.together.ai", KEY),
        ("https://api.together.xyz", KEY),
        ("http://api.together.ai", None),
        ("https://together.ai.evil.example", None),
        ("https://eviltogether.ai", None),
        ("https://gate.example:8443", KEY),
        ("https://gate.example", None),
        ("http://gate.example:8443", None),
        ("https://elsewhere.example", None),
        ("https://127.0.0.1.evil.example", None),
    ],
)
def test_the_key_goes_only_where_it_belongs(url: str, key: str | None) -> None:
    config = Config(Path("/x"), api_key=KEY, provider_url="https://gate.example:8443")
    assert api_key_for(config, url) == key


def test_thinking_and_stops_are_the_types_own_else_its_tiers_else_built_in(tmp_path: Path) -> None:
    file = tmp_path / "reasoning.toml"
    file.write_text(
        "[tiers.small]\nstop = ['<|end|>']\n[tiers.large]\nthinking = false\n[tiers.medium]\nthinking = 'model'\n"
        "[decision_types.planning]\ntier = 'large'\nstop = ['###']\n"
        "[decision_types.mood]\nlabels = ['GOOD', 'BAD']\ninstruction = 'i'\nquestion = 'q'\nthinking = true\n"
        "[decision_types.plain]\ntier = 'medium'\nlabels = ['A', 'B']\ninstruction = 'i'\nquestion = 'q'\n"
    )
    types = load_config(path=file, env={}).decision_types
    found = {name: (kind.thinking, kind.stop) for name, kind in types.items()}
    assert found == {
        "should_respond": (False, ("<|end|>",)),
        "planning": (False, ("###",)),
        "coding": (False, ()),
        "mood": (True, ("<|end|>",)),
        "plain": (None, ()),
    }
    assert load_config(env={}).decision_types == DECISION_TYPES


@pytest.mark.parametrize(
    ("thinking", "stop", "fields"),
    [
        (None, (), {}),
        (False, (), {"reasoning": {"enabled": False}, "chat_template_kwargs": {"enable_thinking": False}}),
        (True, (), {"reasoning": {"enabled": True}, "chat_template_kwargs": {"enable_thinking": True}}),
        (None, ("a", "b"), {"stop": ["a", "b"]}),
    ],
)
def test_a_request_says_whether_to_think_and_where_to_stop(
    thinking: bool | None, stop: tuple[str, ...], fields: dict[str, object]
) -> None:
    kind = replace(DECISION_TYPES["should_respond"], thinking=thinking, stop=stop)
    arm = Arm("custom", "custom", 1.0, model="m", base_url="http://127.0.0.1:1")
    sent = orjson.loads(request_body(arm, kind, [{"role": "user", "content": "hi"}]))
    known = {"model", "messages", "max_tokens", "temperature", "logprobs"}
    assert {key: value for key, value in sent.items() if key not in known} == fields == kind.request_fields


def test_the_key_is_not_shown() -> None:
    assert KEY not in repr(load_config("/x", env={"TOGETHER_API_KEY": KEY}))
