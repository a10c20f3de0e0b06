from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
import pytest

from reasoning.client import Answer, DecisionClient
from reasoning.config import Config, load_config
from reasoning.errors import CallFailed, RecordError, StreamInterrupted, UnknownDecisionType
from reasoning.io.transport import Transport
from reasoning.serving.routes import Arm
from tests.reasoning.conftest import (
    CONTEXT,
    Hangup,
    ModelServer,
    Request,
    completion,
    events,
    http,
    rows,
    says,
    sends,
    streams,
)

REDIRECT = b"HTTP/1.1 302 X\r\nLocation: http://evil.example\r\nContent-Length: 0\r\n\r\n"


def rule(context: Any) -> str:
    return "RESPOND"


def rows_by_source(data: Path) -> dict[str, dict[str, Any]]:
    return {row["source"]: row for row in rows(data)}


class TestTheServedAnswer:
    def test_without_routes_the_original_is_served_and_logged(self, data: Path) -> None:
        with DecisionClient(data, agent_id="a1") as client:
            answer = client.decide_should_respond(
                CONTEXT, rule, episode_id="e1", room_id="r1", subject_ids=["u1"], tags={"k": "v"}
            )
        assert answer.decision == {"action": "RESPOND"} and answer.source == "original"
        assert answer.fallback_reason == "no_route"
        (row,) = rows(data)
        assert row["decision_id"] == str(answer.decision_id) and row["request_id"] == str(answer.request_id)
        assert row["completion"] == "<response><action>RESPOND</action></response>"
        assert row["decision"] == '{"action":"RESPOND"}' and row["tags"] == '{"k":"v"}'
        assert (row["agent_id"], row["episode_id"], row["room_id"], row["subject_ids"]) == ("a1", "e1", "r1", ["u1"])
        assert row["served"] and row["valid"] and row["model"] is None and row["confidence"] is None
        assert [m["role"] for m in row["messages"]] == ["system", "user"]

    def test_a_models_answer_is_served_with_its_cost_and_confidence(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        route(
            Arm("new", "custom", 3.0, model="acme/small", base_url=server.url, config_hash="c1",
                input_usd_per_mtok="2", output_usd_per_mtok="10"),
            Arm("original", "original", 1.0),
            salt="x",
        )  # fmt: skip
        tokens, logprobs = ["<response><action>", "IGN", "ORE", "</action></response>"], [-0.5, -0.1, -0.2, -0.0]
        server.answer = says("".join(tokens), tokens, logprobs)
        with DecisionClient(data) as client:
            answers = [client.decide_should_respond(CONTEXT, rule, episode_id=f"e{i}") for i in range(40)]
        sources = [answer.source for answer in answers]
        assert 20 <= sources.count("custom") <= 39 and all(a.fallback_reason is None for a in answers)
        custom = next(answer for answer in answers if answer.source == "custom")
        assert custom.decision == {"action": "IGNORE"} and custom.model == "acme/small"
        assert custom.confidence == pytest.approx(2.718281828 ** (-0.1 - 0.2 - 0.0))
        by_id = {row["decision_id"]: row for row in rows(data)}
        assert len(by_id) == 40
        row = by_id[str(custom.decision_id)]
        assert (row["arm"], row["arm_probability"], row["experiment"], row["config_hash"]) == ("new", 0.75, "try", "c1")
        assert (row["input_tokens"], row["output_tokens"]) == (1000, 10)
        assert row["cost_usd"] == pytest.approx(0.0021)
        request = server.requests[0]
        assert request.path == "/v1/chat/completions" and request.headers["authorization"] == "Bearer local"
        assert request.json["messages"] == row["messages"] and request.json["logprobs"] == 1
        assert (request.json["max_tokens"], request.json["temperature"]) == (512, 0.1)
        assert server.connections == 1  # kept alive

    def test_one_episode_stays_with_its_arm(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        custom = Arm("custom", "custom", 1.0, model="m", base_url=server.url)
        route(custom, Arm("original", "original", 1.0))
        with DecisionClient(data) as client:
            for episode in "abcdef":
                assert (
                    len({client.decide_should_respond(CONTEXT, rule, episode_id=episode).source for _ in range(5)}) == 1
                )

    def test_ids_may_be_in_the_context_and_people_default_to_the_speakers(self, data: Path) -> None:
        with DecisionClient(data) as client:
            client.decide_should_respond({**CONTEXT, "episode_id": 7, "room_id": "r"}, rule)
        (row,) = rows(data)
        assert (row["episode_id"], row["room_id"], row["subject_ids"]) == ("7", "r", ["Ann", "Bob"])

    def test_the_clock_dates_every_record(self, data: Path) -> None:
        with DecisionClient(data, clock=lambda: 1_500_000_000.5) as client:
            answer = client.decide_should_respond(CONTEXT, rule)
            client.feedback("good", True, decision_id=answer.decision_id)
        assert {row["ts"] for row in rows(data)} == {"2017-07-14T02:40:00.500000Z"}

    def test_the_other_decision_types(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route()
        server.answer = says("<response><actions>go</actions></response>")
        with DecisionClient(data) as client:
            plan = client.decide_planning({**CONTEXT, "actions": [{"name": "GO"}]}, lambda _: {"actions": []})
            assert plan.decision["actions"] == ["GO"]
            server.answer = says("Look:\n```py\nx\n```")
            code = client.decide_coding({"prompt": "p"}, lambda _: {"code": "y"})
            assert code.decision == {"code": "x", "explanation": "Look:", "language": "py"}


class TestTheNet:
    """Whatever goes wrong, the original is served and the reason is recorded."""

    @pytest.mark.parametrize(
        ("answer", "reason", "error"),
        [
            (says("I would say RESPOND"), "unparseable", "neither a complete <response>"),
            (says("<response><action>MAYBE</action></response>"), "unparseable", "is none of RESPOND"),
            (sends(http(b'{"error": {"message": "boom"}}', 500)), "provider_error", "HTTP 500 boom"),
            (sends(http(b"", 429)), "provider_error", "HTTP 429"),
            (sends(http(b'{"error": "no money"}', 402)), "over_budget", "HTTP 402 no money"),
            (sends(http(b"", 504)), "timeout", "HTTP 504"),
            (sends(http(b"<html>")), "provider_error", "not a chat completion"),
            (sends(http(b'{"choices": []}')), "provider_error", "not a chat completion"),
            (sends(http(b'{"choices": [{"message": {"content": null}}]}')), "unparseable", "neither"),
            (sends(b"NONSENSE\r\n\r\n"), "provider_error", "RemoteProtocolError"),
            (sends(REDIRECT), "provider_error", "HTTP 302"),
        ],
    )  # fmt: skip
    def test_a_bad_answer(
        self, data: Path, server: ModelServer, route: Callable[..., Any], answer: Any, reason: str, error: str
    ) -> None:
        route()
        server.answer = answer
        with DecisionClient(data) as client:
            got = client.decide_should_respond(CONTEXT, rule)
        assert (got.source, got.fallback_reason, got.decision) == ("original", reason, {"action": "RESPOND"})
        found = rows_by_source(data)
        custom, original = found["custom"], found["original"]
        assert custom["request_id"] == original["request_id"] and custom["decision_id"] != original["decision_id"]
        assert (custom["served"], original["served"]) == (False, True)
        assert custom["fallback_reason"] == original["fallback_reason"] == reason
        assert custom["arm"] == original["arm"] == "custom" and custom["valid"] is False
        assert error in custom["error"] and original["error"] is None
        assert client.stats()["fallbacks"] == {reason: 1}

    @pytest.mark.parametrize("where", ["before the head", "in the head", "in the body", "drop by drop"])
    def test_the_deadline_covers_the_last_byte(
        self, data: Path, server: ModelServer, route: Callable[..., Any], where: str
    ) -> None:
        whole = http(completion("<response><action>IGNORE</action></response>"))

        def slow(request: Request, connection: socket.socket) -> None:
            if where == "drop by drop":  # each byte comes soon; all of them never
                for byte in whole:
                    connection.sendall(bytes([byte]))
                    if server.released.wait(0.02):
                        raise Hangup
            connection.sendall(whole[: {"before the head": 0, "in the head": 20}.get(where, len(whole) - 5)])
            server.hang(request, connection)

        server.answer = slow
        route(deadline_ms=150)
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "timeout"
            server.released.set()
        assert "no complete answer within 150 ms" in rows_by_source(data)["custom"]["error"]

    def test_no_server(self, data: Path, route: Callable[..., Any]) -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
            route(Arm("c", "custom", 1.0, model="m", base_url=f"http://127.0.0.1:{port}"))
            with DecisionClient(data) as client:
                assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "provider_error"

    def test_a_name_that_does_not_exist(self, data: Path, route: Callable[..., Any]) -> None:
        route(Arm("c", "custom", 1.0, model="m", base_url="http://no-such-host.invalid"))
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason in ("provider_error", "timeout")

    def test_a_look_up_that_hangs_is_covered_by_the_deadline(self, monkeypatch: pytest.MonkeyPatch) -> None:
        release = threading.Event()
        monkeypatch.setattr(socket, "getaddrinfo", lambda *a, **k: release.wait(30) and [])
        with pytest.raises(CallFailed) as caught:
            Transport().post("http://slow.example/", (), b"{}", 0.05)
        release.set()
        assert caught.value.reason == "timeout"

    def test_low_confidence(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route(min_confidence=0.9)
        tokens = ["<response><action>", "IGNORE", "</action></response>"]
        with DecisionClient(data) as client:
            server.answer = says("".join(tokens), tokens, [0.0, -0.05, 0.0])
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"
            server.answer = says("".join(tokens), tokens, [0.0, -0.5, 0.0])
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "low_confidence"
            server.answer = says("".join(tokens))
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "low_confidence"
        low = [row for row in rows(data) if row["source"] == "custom" and not row["served"]]
        assert [row["valid"] for row in low] == [True, True]

    def test_the_lease_and_the_switch(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route(now=datetime.now(UTC) - timedelta(hours=2))
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "lease_expired"
            route()
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"
            (data / "routes.json").write_bytes(b"\xff{")
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "no_route"
            assert "not JSON" in client.stats()["routes_error"]
        route()
        config = load_config(data, env={"REASONING_ENABLED": "no"})
        with DecisionClient(config=config) as client:
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "disabled"
        assert len(server.requests) == 1

    def test_the_breaker(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route()
        config = Config(data, breaker_failures=3, breaker_seconds=0.0)
        server.answer = sends(http(b"", 500))
        with DecisionClient(config=config) as client:
            asked = [client.decide_should_respond(CONTEXT, rule).fallback_reason for _ in range(3)]
            assert asked == ["provider_error"] * 3
            ((breaker, _),) = client._core.calls._servers.values()
            breaker._retry_at = time.monotonic() + 3600
            assert client.decide_should_respond(CONTEXT, rule).fallback_reason == "circuit_open"
            assert len(server.requests) == 3 and client.stats()["breakers"] == {f"acme/small at {server.url}": "open"}
            breaker._retry_at = 0.0
            server.answer = says("<response><action>IGNORE</action></response>")
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"
            assert breaker.state == "closed"

    def test_a_context_that_no_prompt_can_show(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        route()

        class Evil(dict[str, Any]):
            def get(self, *_: Any) -> Any:
                raise RuntimeError("no")

        with DecisionClient(data) as client:
            for context in ({}, None, {"agent_name": "B", "messages": [{"speaker": "A"}]}, Evil()):
                answer = client.decide_should_respond(context, rule)  # type: ignore[arg-type]
                assert answer.decision == {"action": "RESPOND"} and answer.fallback_reason == "no_route"
        assert not server.requests and all("InvalidContext" in r["error"] for r in rows(data)[:3])

    @pytest.mark.parametrize("kind", ["a file in the way", "no disk"])
    def test_a_spool_that_cannot_be_written(self, tmp_path: Path, kind: str) -> None:
        (tmp_path / "f").touch()
        with DecisionClient(tmp_path / "f" / "x" if kind == "a file in the way" else Path("/proc/none")) as client:
            assert client.decide_should_respond(CONTEXT, rule).decision == {"action": "RESPOND"}
            assert client.feedback("m", 1, episode_id="e") is False
            assert sum(client.stats()["records"]["dropped"].values()) == 2

    def test_lone_surrogates_reach_model_and_log_escaped(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        route()
        context = {"agent_name": "B", "messages": [{"speaker": "\udc00A", "text": "x\ud83d\x00\U0001f600"}]}
        with DecisionClient(data) as client:
            assert client.decide_should_respond(context, rule).source == "custom"
        (row,) = rows(data)
        assert row["messages"] == server.requests[0].json["messages"]
        assert "\\udc00A: x\\ud83d\x00\U0001f600" in row["messages"][1]["content"]


class TestTheOriginal:
    def test_what_it_raises_passes_and_is_recorded(self, data: Path) -> None:
        class Mine(Exception):
            pass

        def broken(_: Any) -> str:
            raise Mine("password=hunter2 and Bearer abc.def")

        with DecisionClient(data) as client, pytest.raises(Mine, match="hunter2"):
            client.decide_should_respond(CONTEXT, broken)
        (row,) = rows(data)
        assert row["valid"] is False and row["served"] is False and row["decision"] is None
        assert row["error"] == "Mine: password=*** and Bearer ***"

    @pytest.mark.parametrize("given", ["MAYBE", {"action": 3}, None, 7, ["RESPOND"]])
    def test_what_is_no_decision_passes_as_it_is(self, data: Path, given: Any) -> None:
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, lambda _: given).decision == given
        (row,) = rows(data)
        assert row["valid"] is False and row["decision"] is None and "UnparseableAnswer" in row["error"]

    @pytest.mark.parametrize(
        ("decision_type", "context", "text", "decision"),
        [
            ("should_respond", CONTEXT, "<response><action>stop</action></response>", {"action": "STOP"}),
            (
                "planning",
                {**CONTEXT, "actions": [{"name": "REPLY"}]},
                "Well. <response><actions>REPLY</actions></response>",
                {"thought": "", "actions": ["REPLY"], "providers": [], "text": ""},
            ),
            (
                "coding",
                {"prompt": "x"},
                "So:\n```py\nx = 1\n```",
                {"code": "x = 1", "explanation": "So:", "language": "py"},
            ),
        ],
    )
    def test_text_as_models_write_it_is_a_decision(
        self, data: Path, decision_type: str, context: Any, text: str, decision: Any
    ) -> None:
        with DecisionClient(data) as client:
            assert client.decide(decision_type, context, lambda _: text).decision == decision
        (row,) = rows(data)
        assert row["valid"] and orjson.loads(row["decision"]) == decision

    def test_an_async_one_is_told_where_it_belongs(self, data: Path, caplog: Any) -> None:
        async def choose(_: Any) -> str:
            return "STOP"

        with DecisionClient(data) as client:
            found = client.decide_should_respond(CONTEXT, choose).decision
            found.close()
        assert "use AsyncDecisionClient" in rows(data)[0]["error"]
        assert "use AsyncDecisionClient" in caplog.text

    def test_its_own_object_is_handed_on(self, data: Path) -> None:
        mine = {"action": "respond", "extra": object()}
        with DecisionClient(data) as client:
            assert client.decide_should_respond(CONTEXT, lambda _: mine).decision is mine
        assert rows(data)[0]["decision"] == '{"action":"RESPOND"}'

    def test_an_unknown_type_is_an_error_of_the_caller(self, data: Path) -> None:
        with DecisionClient(data) as client, pytest.raises(UnknownDecisionType, match="'vote'"):
            client.decide("vote", CONTEXT, rule)


class TestShadows:
    def test_they_answer_in_the_background_and_are_not_served(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        live = Arm("live", "custom", 1.0, model="a", base_url=server.url)
        other = Arm("next", "custom", 0.0, "shadow", model="b", base_url=server.url)
        route(live, other, Arm("original", "original", 0.0, "shadow"))
        with DecisionClient(data) as client:
            answer = client.decide_should_respond(CONTEXT, rule)
        assert answer.model == "a" and answer.fallback_reason is None
        found = {row["arm"]: row for row in rows(data)}
        assert {name: (row["served"], row["source"]) for name, row in found.items()} == {
            "live": (True, "custom"),
            "next": (False, "custom"),
            "original": (False, "original"),
        }
        assert len({row["request_id"] for row in found.values()}) == 1
        assert found["next"]["arm_probability"] is None and found["original"]["fallback_reason"] is None

    def test_they_never_delay_and_are_dropped_when_there_are_too_many(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        server.answer = server.hang
        shadow = Arm("next", "custom", 0.0, "shadow", model="b", base_url=server.url)
        route(Arm("original", "original", 1.0), shadow, deadline_ms=30_000)
        client = DecisionClient(config=Config(data, shadow_workers=1, shadow_queue=2))
        for _ in range(20):  # would hang here if the answer waited for its shadow
            assert client.decide_should_respond(CONTEXT, rule).source == "original"
        shadows = client.stats()["shadows"]
        assert shadows["taken"] in (2, 3) and shadows["taken"] + shadows["dropped"] == 20
        client.close(seconds=0)
        server.released.set()
        assert len([row for row in rows(data) if row["served"]]) == 20

    def test_the_original_answers_once_when_it_is_needed(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        server.answer = sends(http(b"", 500))
        route(Arm("live", "custom", 1.0, model="a", base_url=server.url), Arm("o", "original", 0.0, "shadow"))
        calls = []
        with DecisionClient(data) as client:
            client.decide_should_respond(CONTEXT, lambda c: calls.append(c) or "STOP")
        assert len(calls) == 1 and len(rows(data)) == 2

    def test_they_see_the_context_as_it_was(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route(Arm("live", "custom", 1.0, model="a", base_url=server.url), Arm("o", "original", 0.0, "shadow"))
        context = {"agent_name": "Bot", "messages": [{"speaker": "Ann", "text": "x"}]}
        go, seen = threading.Event(), []

        def original(given: Any) -> str:
            go.wait(30)
            seen.append(len(given["messages"]))
            return "STOP"

        with DecisionClient(data) as client:
            client.decide_should_respond(context, original)
            context["messages"].append({"speaker": "Ann", "text": "y"})  # type: ignore[attr-defined]
            go.set()
        assert seen == [1]


class TestFeedback:
    @pytest.mark.parametrize(
        "wrong",
        [{"action": "NOPE"}, {"axtion": "STOP"}, {}, None, "NOPE", ["STOP"], 3, {"actions": 3}, {"code": ""}],
    )
    def test_a_demonstration_that_is_no_answer_is_refused(self, data: Path, wrong: Any) -> None:
        with DecisionClient(data) as client:
            known = client.decide_should_respond(CONTEXT, lambda _: "STOP").decision_id
            for target in (known, uuid4()):
                with pytest.raises(RecordError, match="RESPOND"):
                    client.demonstrate(target, wrong)
            with pytest.raises(RecordError, match="Allowed: should_respond"):  # of another type than the decision's
                client.demonstrate(known, {"actions": ["A"]})
            for value in ("STOP", '{"action": "NOPE"}', 3, {"action": "NOPE"}):
                with pytest.raises(RecordError):
                    client.feedback("demonstration", value, decision_id=known, kind="demonstration")
            with pytest.raises(RecordError, match="not of an episode"):
                client.feedback("demonstration", {"action": "STOP"}, episode_id="e", kind="demonstration")
            with pytest.raises(RecordError, match="only a demonstration"):
                client.feedback("good", {"action": "STOP"}, decision_id=known)
            assert client.demonstrate(known, {"action": "ignore"})
        assert sum(row["record"] == "feedback" for row in rows(data)) == 1

    def test_a_demonstrated_plan_has_the_actions_of_its_context(self, data: Path) -> None:
        context = CONTEXT | {"actions": [{"name": "REPLY"}]}
        with DecisionClient(data) as client:
            known = client.decide_planning(context, lambda _: {"actions": ["REPLY"]}).decision_id
            with pytest.raises(RecordError, match="'FLY' is not among"):
                client.demonstrate(known, {"actions": ["FLY"]})
            assert client.demonstrate(known, {"actions": ["reply"]})
            flown = client.decide_planning(context, lambda _: {"actions": ["FLY"]})
        assert flown.decision == {"actions": ["FLY"]}  # the agent's own logic passes as it is
        assert [row["valid"] for row in rows(data) if row["record"] == "decision"] == [True, False]

    def test_it_is_recorded_for_a_decision_or_an_episode(self, data: Path) -> None:
        target = uuid4()
        with DecisionClient(data) as client:
            assert client.feedback("good", True, decision_id=str(target))
            assert client.feedback("note", "hm", episode_id="e", kind="comment", author="ann")
            assert client.demonstrate(target, "RESPOND")
            assert client.demonstrate(target, {"actions": ["A"]}, author="me")
        found = rows(data)
        assert [(r["metric"], r["kind"], r["value"]) for r in found[:2]] == [
            ("good", "metric", "true"),
            ("note", "comment", '"hm"'),
        ]
        shown = [orjson.loads(orjson.loads(r["value"])) for r in found[2:]]
        assert shown == [{"action": "RESPOND"}, {"actions": ["A"]}]
        assert {r["metric"] for r in found[2:]} == {r["kind"] for r in found[2:]} == {"demonstration"}

    @pytest.mark.parametrize(
        ("value", "ids"),
        [
            (1, {}),
            (1, {"decision_id": uuid4(), "episode_id": "e"}),
            (1, {"decision_id": "not-a-uuid"}),
            (float("nan"), {"episode_id": "e"}),
            ([1], {"episode_id": "e"}),
            (1, {"episode_id": "e", "kind": "vote"}),
        ],
    )
    def test_what_is_none_is_an_error_of_the_caller(self, data: Path, value: Any, ids: dict[str, Any]) -> None:
        with DecisionClient(data) as client, pytest.raises(RecordError):
            client.feedback("m", value, **ids)


class TestProcesses:
    def test_a_forked_child_goes_on(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route()
        client = DecisionClient(data)
        assert client.decide_should_respond(CONTEXT, rule).source == "custom"
        children = []
        for _ in range(3):
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    ok = client.decide_should_respond(CONTEXT, rule).source == "custom"
                    ok = ok and client.stats()["served"] == {"custom": 1}
                    client.close()
                    code = 0 if ok else 2
                finally:
                    os._exit(code)
            children.append(pid)
        for _ in range(10):
            assert client.decide_should_respond(CONTEXT, rule).source == "custom"
        assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0]
        client.close()
        assert len(rows(data)) == 14

    def test_a_forked_child_closes_the_stream_that_its_parent_began(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        route()
        server.answer = streams("Here:\n", "```py\nx\n", "```")
        with DecisionClient(data) as client:
            stream = client.decide_coding({"prompt": "x"}, lambda _: "y", stream=True)
            next(iter(stream))
            pid = os.fork()
            if pid == 0:
                code = 1
                try:
                    stream.close()
                    code = 0
                finally:
                    os._exit(code)
            assert os.waitpid(pid, 0)[1] == 0
            stream.close()

    def test_threads_share_a_client(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route()
        with DecisionClient(data) as client:
            answers: list[Answer] = []
            work = lambda: answers.extend(client.decide_should_respond(CONTEXT, rule) for _ in range(20))  # noqa: E731
            threads = [threading.Thread(target=work) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert client.stats()["served"] == {"custom": 160}
        assert len({row["decision_id"] for row in rows(data)}) == 160

    def test_it_works_after_close(self, data: Path) -> None:
        client = DecisionClient(data)
        for _ in range(3):
            client.decide_should_respond(CONTEXT, rule)
            client.close()
        assert len(rows(data)) == 3


class TestStreams:
    PROMPT: dict[str, Any] = {"prompt": "say x"}  # noqa: RUF012

    @staticmethod
    def original(_: Any) -> dict[str, str]:
        return {"code": "y", "language": "py"}

    def test_pieces_come_as_the_model_writes_them(
        self, data: Path, server: ModelServer, route: Callable[..., Any]
    ) -> None:
        route()
        more = threading.Event()

        def answer(request: Request, connection: socket.socket) -> None:
            first, rest = streams_bytes("Here é:\n", "```py\nx\n", "```")
            connection.sendall(first)
            assert more.wait(30)
            for byte in rest:  # torn in the middle of lines and of characters
                connection.sendall(bytes([byte]))
            raise Hangup

        server.answer = answer
        with DecisionClient(data) as client:
            stream = client.decide_coding(self.PROMPT, self.original, stream=True)
            pieces = iter(stream)
            assert next(pieces) == "Here é:\n"
            with pytest.raises(RuntimeError):
                _ = stream.answer
            more.set()
            assert "".join(pieces) == "```py\nx\n```"
            assert stream.answer.decision == {"code": "x", "explanation": "Here é:", "language": "py"}
        (row,) = rows(data)
        assert row["served"] and row["decision_id"] == str(stream.answer.decision_id)
        assert server.requests[0].json["stream"] is True

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (sends(http(b'{"error": {"message": "x"}}', 503)), "provider_error"),
            (streams(end=b""), "provider_error"),
            (streams(), "unparseable"),
            (streams(end=b'data: {"error": "x"}\n\n'), "provider_error"),
        ],
    )
    def test_before_the_first_piece_the_original_answers(
        self, data: Path, server: ModelServer, route: Callable[..., Any], answer: Any, reason: str
    ) -> None:
        route()
        server.answer = answer
        with DecisionClient(data) as client:
            stream = client.decide_coding(self.PROMPT, self.original, stream=True)
            assert list(stream) == ["```py\ny\n```"]
            assert (stream.answer.source, stream.answer.fallback_reason) == ("original", reason)
        assert {row["source"]: row["served"] for row in rows(data)} == {"custom": False, "original": True}

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [(streams("Here", end=b""), "provider_error"), (streams("no code at all"), "unparseable")],
    )
    def test_after_the_first_piece_there_is_no_way_back(
        self, data: Path, server: ModelServer, route: Callable[..., Any], answer: Any, reason: str
    ) -> None:
        route()
        server.answer = answer
        got = []
        with DecisionClient(data) as client, pytest.raises(StreamInterrupted):
            for piece in client.decide_coding(self.PROMPT, self.original, stream=True):
                got.append(piece)
        (row,) = rows(data)
        assert row["completion"] == "".join(got) != "" and row["served"] and not row["valid"]
        assert row["fallback_reason"] == reason

    def test_the_deadline_holds_for_a_stream(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route(deadline_ms=150)

        def slow(request: Request, connection: socket.socket) -> None:
            connection.sendall(streams_bytes("a")[0])
            server.hang(request, connection)

        server.answer = slow
        with DecisionClient(data) as client, pytest.raises(StreamInterrupted, match="within 150 ms"):
            list(client.decide_coding(self.PROMPT, self.original, stream=True))
        assert rows(data)[0]["fallback_reason"] == "timeout"

    def test_an_agent_may_stop_reading(self, data: Path, server: ModelServer, route: Callable[..., Any]) -> None:
        route()
        server.answer = streams("a", "b", "c")
        with DecisionClient(data) as client:
            stream = client.decide_coding(self.PROMPT, self.original, stream=True)
            next(iter(stream))
            stream.close()
            assert client.stats()["streams"] == {"abandoned": 1}
        (row,) = rows(data)
        assert row["error"] == "abandoned: the agent read no further" and row["fallback_reason"] is None

    def test_a_stream_closed_unread_gives_its_call_back(self, data: Path, route: Callable[..., Any]) -> None:
        route()
        with DecisionClient(data) as client:
            stream = client.decide_coding(self.PROMPT, self.original, stream=True)
            (server,) = client._core.calls._servers.values()
            assert len(server.under_way) == 1
            stream.close()
            stream.close()
            assert server.under_way == []

    def test_an_original_may_stream_too(self, data: Path) -> None:
        def pieces(_: Any) -> Any:
            yield "```py\n"
            yield "z\n```"

        with DecisionClient(data) as client:
            stream = client.decide_coding(self.PROMPT, pieces, stream=True)
            assert list(stream) == ["```py\n", "z\n```"]
            assert stream.answer.decision["code"] == "z"
        assert rows(data)[0]["valid"]


def streams_bytes(*texts: str) -> tuple[bytes, bytes]:
    """The head with the first event, and all the rest, of a chunkless stream."""
    whole = events(*texts)
    cut = whole.index(b"\n\n") + 2
    return whole[:cut], whole[cut:]
