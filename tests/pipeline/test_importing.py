"""Sessions and exports of other systems become decisions: once, redacted, and judged."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import cli.imports
import storage
from pipeline.errors import ImportRefused
from pipeline.importing.items import Skipped, answer_of, parse_time, read_messages
from pipeline.importing.run import READERS, ImportReport, derived_id, import_decisions
from pipeline.importing.sessions import CONTEXT_CHARACTERS
from quality.dataset.export import export_dataset
from quality.errors import InsufficientData
from reasoning.ids import uuid7_time
from storage.layout import Layout
from tests.cli.test_commands import failure, reasoning
from tests.packages import ROOT

NOW = datetime.now(UTC).replace(microsecond=0)
SECRET = "sk-ant-api03-" + "a1B2" * 12


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("reasoning.toml").write_text(
        '[decision_types.tone]\nlabels = ["friendly", "formal"]\nquestion = "Which?"\ninstruction = "Decide."\n'
    )
    return Layout(tmp_path / "data").create().data


def stamp(minutes: float) -> str:
    return (NOW - timedelta(days=1) + timedelta(minutes=minutes)).isoformat().replace("+00:00", "Z")


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def add(data: Path, source: Any, path: Path, **options: Any) -> ImportReport:
    return import_decisions(data, source, path, **options)


def logged(data: Path, columns: str = "*") -> list[dict[str, Any]]:
    found = storage.sql(data, f"SELECT {columns} FROM decisions ORDER BY ts, decision_id")
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def claude_code(path: Path, turns: int = 3) -> Path:
    """A session: each answer stands on two lines of one message id, as Claude Code writes it."""
    rows: list[dict[str, Any]] = [{"type": "summary", "summary": "x"}]
    for turn in range(turns):
        content: Any = f"Fix bug {turn}, the key is {SECRET}, mail ann@example.com"
        if turn:
            content = [
                {"type": "tool_result", "tool_use_id": f"t{turn - 1}", "content": [{"type": "text", "text": "ok"}]}
            ]
        rows.append(
            {
                "type": "user",
                "sessionId": "s1",
                "uuid": f"u{turn}",
                "timestamp": stamp(turn),
                "message": {"role": "user", "content": content},
            }
        )
        usage = {"input_tokens": 10, "cache_read_input_tokens": 1_000, "output_tokens": 20}
        message = {"role": "assistant", "id": f"msg_{turn}", "model": "claude-sonnet-4-5", "usage": usage}
        blocks: list[dict[str, Any]] = [
            {"type": "text", "text": "I look."},
            {"type": "tool_use", "id": f"t{turn}", "name": "Read", "input": {"path": f"{turn}.py"}},
        ]
        for at, block in enumerate(blocks):
            rows.append(
                {
                    "type": "assistant",
                    "sessionId": "s1",
                    "uuid": f"a{turn}{at}",
                    "timestamp": stamp(turn + 0.1),
                    "message": message | {"content": [block]},
                }
            )
    return lines(path, *rows)


def test_claude_code_sessions_are_answers_with_their_calls_cost_and_no_secret(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "projects" / "p"
    folder.mkdir(parents=True)
    claude_code(folder / "s1.jsonl")
    report = add(data, "claude-code", tmp_path / "projects")
    assert (report.read, report.added, report.known) == (3, 3, 0)
    rows = logged(data)
    assert all(row["decision_type"] == "coding" and row["agent_id"] == "claude-code" for row in rows)
    assert json.loads(rows[0]["decision"]) == {
        "text": "I look.",
        "tool_calls": [{"name": "Read", "arguments": {"path": "0.py"}}],
    }
    assert (rows[0]["input_tokens"], rows[0]["cache_read_tokens"], rows[0]["output_tokens"]) == (1_010, 1_000, 20)
    assert rows[0]["cost_usd"] > 0 and rows[0]["latency_ms"] == 6_000 and rows[0]["episode_id"] == "s1"
    text = str(rows)
    assert SECRET not in text and "ann@example.com" not in text and "[EMAIL_1]" in text
    assert "<tool_response>\nok" in rows[1]["messages"][-1]["content"]
    assert report.worth[0]["decision_type"] == "coding"
    with pytest.raises(InsufficientData, match="untranslated 3"):  # it lacks what the model was asked with
        export_dataset(data, "coding")


def test_a_long_session_grows_in_proportion_to_its_length(tmp_path: Path) -> None:
    items = list(READERS["claude-code"](claude_code(tmp_path / "s.jsonl", turns=600), Skipped()))
    assert len(items) == 600
    assert max(sum(len(m["content"]) for m in item.messages) for item in items) <= CONTEXT_CHARACTERS


def test_codex_sessions(data: Path, tmp_path: Path) -> None:
    def item(minutes: float, kind: str = "response_item", **payload: Any) -> dict[str, Any]:
        return {"timestamp": stamp(minutes), "type": kind, "payload": payload}

    usage = {"input_tokens": 50, "cached_input_tokens": 40, "output_tokens": 5}
    path = lines(
        tmp_path / "rollout-1.jsonl",
        item(0, "session_meta", id="c1"),
        item(0, "turn_context", model="gpt-5"),
        item(0, type="message", role="user", content=[{"type": "input_text", "text": "List files"}]),
        item(1, type="reasoning", summary=[]),
        item(1, type="function_call", name="shell", arguments='{"command": ["ls"]}', call_id="x"),
        item(1, "event_msg", type="token_count", info={"last_token_usage": usage}),
        item(2, type="function_call_output", call_id="x", output="a.py"),
        item(3, type="message", role="assistant", content=[{"type": "output_text", "text": "There is a.py"}]),
    )  # fmt: skip
    assert add(data, "codex", path).added == 2
    first, second = logged(data)
    assert json.loads(first["decision"])["tool_calls"] == [{"name": "shell", "arguments": {"command": ["ls"]}}]
    assert (first["input_tokens"], first["cache_read_tokens"], first["fallback_model"]) == (50, 40, "gpt-5")
    assert (
        json.loads(second["decision"]) == {"text": "There is a.py", "tool_calls": []}
        or second["completion"] == "There is a.py"
    )


def attribute(key: str, value: Any) -> dict[str, Any]:
    return {"key": key, "value": {"intValue": str(value)} if isinstance(value, int) else {"stringValue": value}}


def span(number: int, name: str, answer: str, *, style: str = "new") -> dict[str, Any]:
    start = int((NOW - timedelta(days=1) + timedelta(minutes=number)).timestamp() * 1e9)
    question = f"mail ann{number}@example.com about {number}?"
    attributes = [
        attribute("gen_ai.request.model", "gpt-4o-mini"),
        attribute("gen_ai.usage.input_tokens", 300),
        attribute("gen_ai.usage.output_tokens", 5),
    ]
    events = []
    if style == "new":
        parts = [{"type": "text", "content": question}]
        attributes.append(attribute("gen_ai.input.messages", json.dumps([{"role": "user", "parts": parts}])))
        said = [{"role": "assistant", "parts": [{"type": "text", "content": answer}]}]
        attributes.append(attribute("gen_ai.output.messages", json.dumps(said)))
        attributes.append(
            attribute("gen_ai.system_instructions", json.dumps([{"type": "text", "content": "You are Ada."}]))
        )
    elif style == "indexed":
        attributes += [attribute("gen_ai.prompt.0.role", "user"), attribute("gen_ai.prompt.0.content", question)]
        attributes.append(attribute("gen_ai.completion.0.content", answer))
    elif style == "openinference":
        attributes.append(attribute("llm.input_messages.0.message.role", "user"))
        attributes.append(attribute("llm.input_messages.0.message.content", question))
        attributes.append(attribute("llm.output_messages.0.message.content", answer))
    else:
        events.append({"name": "gen_ai.user.message", "attributes": [attribute("content", question)]})
        events.append(
            {
                "name": "gen_ai.choice",
                "attributes": [attribute("message", json.dumps({"role": "assistant", "content": answer}))],
            }
        )
    one = {
        "traceId": f"{number // 3:032x}",
        "spanId": f"{number:016x}",
        "name": name,
        "startTimeUnixNano": str(start),
        "endTimeUnixNano": str(start + 800_000_000),
        "attributes": attributes,
        "events": events,
    }
    return {
        "resourceSpans": [
            {"resource": {"attributes": [attribute("service.name", "mailer")]}, "scopeSpans": [{"spans": [one]}]}
        ]
    }


def test_spans_of_every_convention_twice_add_nothing_and_undeclared_ones_are_told(data: Path, tmp_path: Path) -> None:
    styles = ("new", "indexed", "openinference", "events")
    rows = [span(n, "should_respond", "RESPOND" if n % 2 else "IGNORE", style=styles[n % 4]) for n in range(40)]
    rows += [span(100 + n, "triage", ("bug", "question")[n % 2]) for n in range(20)]
    rows += [span(200 + n, "chat", f"a long answer number {n} " * 3) for n in range(5)]
    path = lines(tmp_path / "spans.jsonl", *rows)
    report = add(data, "otel", path)
    assert (report.read, report.added) == (65, 40)
    assert report.redacted["email"] >= 40 and report.learn[0]["labelled"] == 40
    found = logged(data)
    assert {json.loads(row["decision"])["action"] for row in found} == {"RESPOND", "IGNORE"}
    assert all(row["valid"] and row["cost_usd"] > 0 and row["latency_ms"] == 800 for row in found)
    assert all("ann" not in str(row["messages"]) for row in found)
    triage, chat = report.candidates
    assert (triage.name, triage.items, sorted(triage.labels)) == ("triage", 20, ["bug", "question"])
    assert "--type triage=" in triage.declare and (chat.name, chat.labels, chat.declare) == ("chat", [], "")
    again = add(data, "otel", path)
    assert (again.added, again.known) == (0, 40) and len(logged(data)) == 40


def test_langfuse_generations_have_their_cost_and_people(data: Path, tmp_path: Path) -> None:
    one = {
        "id": "g1", "traceId": "t1", "type": "GENERATION", "name": "tone", "startTime": stamp(0), "endTime": stamp(1),
        "input": [{"role": "user", "content": "Dear Sir"}], "output": {"role": "assistant", "content": "formal"},
        "model": "some-model", "usage": {"input": 9, "output": 1}, "calculatedTotalCost": 0.25, "userId": "eve",
    }  # fmt: skip
    path = tmp_path / "export.json"
    path.write_text(json.dumps([one, one | {"id": "g2", "type": "SPAN"}], indent=2))
    report = add(data, "langfuse", path)
    assert report.added == 1 and list(report.skipped.values()) == [1]
    (row,) = logged(data)
    assert (row["cost_usd"], row["price_source"], row["subject_ids"]) == (0.25, "reported", ["eve"])
    assert json.loads(row["decision"]) == {"action": "formal"}


def test_fine_tuning_rows_and_labelled_csv_are_demonstrations(data: Path, tmp_path: Path) -> None:
    right = {"role": "assistant", "content": "formal"}
    rows = [{"messages": [{"role": "user", "content": f"q{n}"}, right]} for n in range(3)]
    path = lines(tmp_path / "train.jsonl", *rows, rows[0])
    report = add(data, "openai-jsonl", path, decision_type="tone")
    assert (report.added, report.known, report.labels) == (3, 1, 3)
    table = tmp_path / "old.csv"
    table.write_text("id,Prompt,output,label\n1,hi there,friendly,friendly\n2,good day,friendly,formal\n3,,x,\n")
    report = add(data, "csv", table, decision_type="tone")
    assert (report.added, report.labels, report.skipped) == (2, 2, {"row without a question or an answer": 1})
    table.touch()  # a copy has another time, and is the same
    assert add(data, "csv", table, decision_type="tone").added == 0
    found = storage.sql(data, "SELECT label_source, count(*) FROM labelled_decisions GROUP BY 1").rows
    assert found == [("demonstration", 5)]


def test_stored_completions_with_calls_of_tools(tmp_path: Path) -> None:
    call = {"function": {"name": "look", "arguments": '{"a": 1}'}}
    choice = {"message": {"role": "assistant", "content": None, "tool_calls": [call]}}
    row = {
        "id": "c1",
        "created": int(NOW.timestamp()),
        "model": "m",
        "messages": [{"role": "user", "content": "q"}],
        "choices": [choice],
    }
    (item,) = READERS["openai-jsonl"](lines(tmp_path / "c.jsonl", row), Skipped())
    assert item.key == "c1" and item.ts == NOW and item.right is None
    assert item.answer == '<tool_call>\n{"name":"look","arguments":{"a":1}}\n</tool_call>'


def test_what_is_no_export_is_refused_and_broken_lines_are_counted(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ImportRefused, match="no column for the question"):
        add(data, "csv", path)
    with pytest.raises(ImportRefused, match="no such file"):
        add(data, "otel", tmp_path / "nowhere")
    with pytest.raises(ImportRefused, match=r"holds no \.csv"):
        add(data, "csv", tmp_path / "data")
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"type":"user"}\n{"type":\n7\n')
    assert add(data, "claude-code", broken).skipped == {"not JSON": 1, "not an object": 1}
    assert "unknown decision type 'tones' (did you mean tone?)" in failure(
        reasoning("import", "csv", path, "--decision-type", "tones", "--data", data)
    )


def test_what_is_too_old_to_land_is_skipped_not_quarantined(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REASONING_MAX_DAYS_BEHIND", raising=False)  # the tests' own logs are old
    table = tmp_path / "old.csv"
    table.write_text("question,answer,ts\nhi,friendly,2019-01-01T00:00:00Z\n")
    report = add(data, "csv", table, decision_type="tone")
    assert report.quarantined == {} and "older than 366 days (max_days_behind)" in report.skipped


def test_the_command_tells_what_could_be_learned_and_how_to_declare_the_rest(data: Path, tmp_path: Path) -> None:
    path = lines(tmp_path / "spans.jsonl", *(span(n, "triage", ("bug", "question")[n % 2]) for n in range(4)))
    told = reasoning("import", "otel", path, "--data", data).stdout
    assert "reasoning init --type triage=" in told and "--decision-type triage" in told
    told = reasoning("import", "otel", path, "--decision-type", "tone", "--agent", "bot", "--data", data).stdout
    assert "Would it pay? tone" in told and logged(data, "agent_id")[0]["agent_id"] == "bot"


def test_a_command_to_paste_runs_nothing_that_the_source_wrote(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = tmp_path / "ran"
    answers = [f"x'; touch {marker.name}; '", f"$(touch {marker.name})"]
    names = ["triage", f"a'$(touch {marker.name})"]
    path = lines(tmp_path / "spans.jsonl", *(span(n, names[n % 2], answers[n // 2 % 2]) for n in range(8)))
    report = add(data, "otel", path)
    assert len(report.candidates) == 2 and all(each.declare for each in report.candidates)
    cli.imports._tell_candidates(report.candidates, "otel", path)
    commands = [line for line in capsys.readouterr().out.splitlines() if line.startswith("  reasoning")]
    assert len(commands) == 2
    for command in commands:  # as a shell reads it; the command itself does nothing here
        subprocess.run(["sh", "-c", f"reasoning() {{ :; }}\n{command}"], cwd=tmp_path, check=True)
    assert not marker.exists()


def test_answers_that_no_option_can_hold_are_declared_by_hand(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = lines(tmp_path / "spans.jsonl", *(span(n, "triage", ("a,b", "\x1b[2Jc")[n % 2]) for n in range(4)))
    report = add(data, "otel", path)
    assert [each.declare for each in report.candidates] == [""]
    cli.imports._tell_candidates(report.candidates, "otel", path)
    told = capsys.readouterr().out
    assert "by hand" in told and "\x1b" not in told


MALFORMED: dict[str, tuple[Any, ...]] = {
    "otel": (
        {"resourceSpans": [1]},
        {"resourceSpans": 5},
        {"spanId": "a", "attributes": [{"key": [1], "value": 1}]},
        {"spanId": "a", "events": [3]},
    ),
    "langfuse": (
        {"id": "1", "input": "q", "output": "a", "usage": "[1]"},
        {"id": "2", "input": "q", "output": {"tool_calls": 5}},
    ),
    "openai-jsonl": ({"messages": [{"role": "user", "content": "q"}], "choices": [{"message": {"tool_calls": 3}}]},),
}


@pytest.mark.parametrize("source", MALFORMED)
def test_a_malformed_row_is_skipped_by_itself(source: str, tmp_path: Path) -> None:
    good = {
        "otel": span(1, "triage", "bug"),
        "langfuse": {"id": "9", "input": "q", "output": "a"},
        "openai-jsonl": {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    }[source]
    path = lines(tmp_path / "rows.jsonl", *MALFORMED[source], good)
    assert len(list(READERS[source](path, Skipped()))) == 1


def test_a_table_that_is_no_csv_is_refused_with_its_line(data: Path, tmp_path: Path) -> None:
    path = tmp_path / "long.csv"
    path.write_bytes(b'question,answer\nq,a\n"' + b"x" * (17 << 20) + b'",b\n')
    with pytest.raises(ImportRefused, match="after line 2: not CSV"):
        add(data, "csv", path)


def test_every_reader_is_a_source_of_the_command_and_in_the_guide() -> None:
    assert {source.value for source in cli.imports.Source} == set(READERS)
    guide = (ROOT / "docs" / "guides" / "import.md").read_text()
    assert all(f"| `{name}` |" in guide for name in READERS)


def test_ids_and_small_readers() -> None:
    moment = datetime(2026, 11, 22, 23, 59, 59, 999_999, tzinfo=UTC)
    first = derived_id(moment, b"x", 0)
    assert first == derived_id(moment, b"x", 0) != derived_id(moment, b"x", 1)
    assert first.version == 7 and uuid7_time(first).date() == moment.date()
    for value in ("2026-11-22T00:00:00Z", 1795305600, 1795305600000, "1795305600000000000"):
        assert parse_time(value) == datetime(2026, 11, 22, tzinfo=UTC)
    assert parse_time("soon") is parse_time(None) is parse_time(-1) is None
    assert read_messages('{"messages": [{"role": "human", "content": "a"}, 7]}') == [{"role": "user", "content": "a"}]
    assert answer_of({"choices": [{"message": {"content": [{"type": "text", "text": "b"}]}}]}) == "b"
