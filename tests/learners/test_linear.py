from __future__ import annotations

import functools
import hashlib
import json
import math
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners import training
from learners.errors import ArtifactError, DatasetError
from learners.model import TrainedModel
from learners.training import TrainingResult, load_model
from reasoning.decision_types import get_decision_type

train = functools.partial(training.train, learner="linear")
WORDS = ["river", "stone", "cloud", "paper", "green", "quiet", "seven", "table", "winter", "music", "garden", "letter"]
FUNCTIONS = {
    "open_file": ("open", "Opens a file."),
    "close_file": ("close", "Closes a file."),
    "send_mail": ("mail", "Sends a mail."),
    "log_in": ("password", "Signs a user in."),
    "REPLY": ("hm", "Answers in words."),
}


def write_rows(path: Path, rows: list[tuple[list[dict[str, Any]], str]]) -> Path:
    lines = [{"messages": [*prompt, {"role": "assistant", "content": answer}]} for prompt, answer in rows]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return path


def fit(
    folder: Path, rows: list[tuple[list[dict[str, Any]], str]], validation: Any = None
) -> tuple[TrainingResult, TrainedModel]:
    held_out = write_rows(folder / "validation.jsonl", validation) if validation else None
    result = train(write_rows(folder / "train.jsonl", rows), held_out, folder / "model")
    return result, load_model(folder / "model")


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def respond_rows(count: int, seed: int, noise: float = 0.0) -> list[tuple[list[dict[str, Any]], str]]:
    """The right action is RESPOND when the agent is named; a share of the labels is turned round."""
    draw = random.Random(seed)
    kind = get_decision_type("should_respond")
    rows = []
    for _ in range(count):
        named = draw.random() < 0.4
        talk = [
            {"speaker": draw.choice(["Ann", "Bo", "Cy", "Nova"]), "text": " ".join(draw.sample(WORDS, 4))}
            for _ in range(6)
        ]
        last = {"speaker": "Ann", "text": f"{'Nova, ' if named else ''}{' '.join(draw.sample(WORDS, 3))}?"}
        right = named != (draw.random() < noise)
        prompt = kind.render({"agent_name": "Nova", "messages": [*talk, last]})
        rows.append(([dict(m) for m in prompt], kind.format_answer({"action": "RESPOND" if right else "IGNORE"})))
    return rows


def plan_rows(tasks: int, seed: int) -> list[tuple[list[dict[str, Any]], str]]:
    """Each line names what is to be done by one word; to log in comes before to mail, and goes with it."""
    draw = random.Random(seed)
    kind = get_decision_type("planning")
    actions = [{"name": name, "description": description} for name, (_, description) in FUNCTIONS.items()]
    rows = []
    for _ in range(tasks):
        said = []
        for _ in range(2):
            name = draw.choice(["open_file", "close_file", "send_mail", "REPLY"])
            said.append({"speaker": "User", "text": f"{FUNCTIONS[name][0]} the {' '.join(draw.sample(WORDS, 3))}"})
            plan = ["log_in", "send_mail"] if name == "send_mail" else [name]
            prompt = kind.render({"agent_name": "Nova", "messages": said, "actions": actions})
            answer = kind.format_answer({"thought": name, "actions": plan, "providers": [], "text": f"{name}!"})
            rows.append(([dict(m) for m in prompt], answer))
    return rows


@pytest.fixture(scope="module")
def chooser(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, TrainedModel]:
    return fit(tmp_path_factory.mktemp("choice"), respond_rows(300, 1), respond_rows(60, 2))


@pytest.fixture(scope="module")
def planner(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingResult, TrainedModel]:
    return fit(tmp_path_factory.mktemp("plan"), plan_rows(80, 1), plan_rows(10, 2))


def test_learns_a_label_from_the_transcript(chooser: tuple[TrainingResult, TrainedModel]) -> None:
    result, model = chooser
    assert (result.task, result.classes, result.rows, result.validation_rows) == (
        "choice",
        ["IGNORE", "RESPOND"],
        300,
        60,
    )
    later = respond_rows(200, 3)
    right = sum(model.complete(prompt).text == answer for prompt, answer in later)
    assert right >= 190


def test_confidence_is_the_share_of_right_answers(tmp_path: Path) -> None:
    _, model = fit(tmp_path, respond_rows(1500, 4, noise=0.2))
    later = respond_rows(1000, 5, noise=0.2)
    answers = [model.complete(prompt) for prompt, _ in later]
    right = sum(answer.text == label for answer, (_, label) in zip(answers, later, strict=True)) / len(later)
    confidence = sum(math.exp(math.fsum(answer.token_logprobs)) for answer in answers) / len(later)
    assert right == pytest.approx(0.8, abs=0.04)
    assert confidence == pytest.approx(right, abs=0.05)


def test_learns_actions_their_order_and_their_words(planner: tuple[TrainingResult, TrainedModel]) -> None:
    result, model = planner
    assert result.task == "plan"
    later = plan_rows(60, 3)
    completions = [model.complete(prompt) for prompt, _ in later]
    right = sum(completion.text == answer for completion, (_, answer) in zip(completions, later, strict=True))
    assert right >= 0.9 * len(later)
    assert all("".join(completion.tokens) == completion.text for completion in completions)
    assert all(sum(completion.token_logprobs) < 0 for completion in completions)


def test_plans_only_what_is_on_offer_even_what_it_never_saw(planner: tuple[TrainingResult, TrainedModel]) -> None:
    kind = get_decision_type("planning")
    context = {
        "agent_name": "Nova",
        "messages": [{"speaker": "User", "text": "please mail and then rotate the silver window image"}],
        "actions": [{"name": "rotate_image", "description": "Rotates an image."}, {"name": "noop", "description": "-"}],
    }
    decision = kind.parse(planner[1].complete([dict(m) for m in kind.render(context)]).text, context)
    assert decision["actions"] == ["rotate_image"]


def test_same_data_same_answers(tmp_path: Path, planner: tuple[TrainingResult, TrainedModel]) -> None:
    _, again = fit(tmp_path, plan_rows(80, 1), plan_rows(10, 2))
    for prompt, _ in plan_rows(10, 6):
        assert again.complete(prompt) == planner[1].complete(prompt)
        assert again.complete(prompt, temperature=1.0) == again.complete(prompt, temperature=0.0)


def test_threads_may_share_a_model(
    chooser: tuple[TrainingResult, TrainedModel], planner: tuple[TrainingResult, TrainedModel]
) -> None:
    for (_, model), rows in ((chooser, respond_rows(40, 7)), (planner, plan_rows(20, 7))):
        prompts = [prompt for prompt, _ in rows]
        alone = [model.complete(prompt) for prompt in prompts]
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(model.complete, prompts)) == alone


def test_few_distinct_answers_are_chosen_among(tmp_path: Path) -> None:
    rows = [
        (ask(f"is a {word} wet? {'rain' if i % 2 else 'sun'}"), "yes" if i % 2 else "no")
        for i, word in enumerate(WORDS * 4)
    ]
    result, model = fit(tmp_path, rows)
    assert (result.task, result.classes) == ("choice", ["no", "yes"])
    assert model.complete(ask("is a river wet? rain")).text == "yes"


def test_open_text_gets_the_nearest_logged_answer(tmp_path: Path) -> None:
    rows = [
        (ask(f"tell me of the {word}"), f"Once there was a {word}, and it was {i}.") for i, word in enumerate(WORDS)
    ]
    result, model = fit(tmp_path, rows)
    assert result.task == "text"
    assert model.complete(ask("what of the garden?")).text == rows[WORDS.index("garden")][1]


def test_max_tokens_cuts_the_answer(chooser: tuple[TrainingResult, TrainedModel]) -> None:
    prompt, _ = respond_rows(1, 8)[0]
    whole, cut = chooser[1].complete(prompt), chooser[1].complete(prompt, max_tokens=3)
    assert (whole.finish_reason, cut.finish_reason) == ("stop", "length")
    assert cut.tokens == whole.tokens[:3] and cut.text == "".join(cut.tokens)
    assert chooser[1].complete(prompt, logprobs=False).token_logprobs == []


CALL = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "ls", "arguments": "{}"}}]}


@pytest.mark.parametrize(
    "rows",
    [
        [(ask("one"), "<response><action>IGNORE</action></response>")] * 40,
        [(ask("a"), "x"), (ask("b"), "y"), (ask("c"), "z")],
        [(ask("a: b"), "<actions>ls</actions>")],
        [
            (ask("list"), "<actions>ls</actions>"),
            (ask("go"), "<actions></actions>"),
            (ask(""), "<actions>cd</actions>"),
        ],
        [(ask("\U0001f600: مرحبا\n你好: ?"), "<action>好</action>"), (ask("…"), "<action>é</action>")] * 30,
        [(ask(""), ""), (ask(" "), "")],
        [([*ask("x"), CALL, {"role": "tool", "content": "out"}], f"answer {i % 9}") for i in range(20)],
        [([{"role": "system", "content": "You are Z."}], "hello")] * 3,
    ],
    ids=["one class", "three rows", "one row", "empty plan", "unicode", "empty", "tool calls", "no user"],
)
def test_learns_from_the_little_there_is(tmp_path: Path, rows: list[tuple[list[dict[str, Any]], str]]) -> None:
    _, model = fit(tmp_path, rows)
    for prompt in (rows[0][0], ask(""), ask("Zoë: " + "ä? " * 500_000), [], [CALL]):
        completion = model.complete(prompt)
        assert "".join(completion.tokens) == completion.text
        assert completion.text in {answer for _, answer in rows}
        assert len(completion.token_logprobs) == len(completion.tokens)
        assert math.fsum(completion.token_logprobs) <= 1e-9


def test_rows_of_another_form_are_counted_not_learned(tmp_path: Path) -> None:
    result, _ = fit(tmp_path, [*respond_rows(95, 1), *[(ask("?"), "I do not know")] * 5])
    assert (result.rows, result.unused_rows) == (95, 5)


def test_progress_never_goes_back_and_ends_at_one(tmp_path: Path) -> None:
    seen: list[tuple[float, dict[str, float]]] = []
    path = write_rows(tmp_path / "train.jsonl", plan_rows(30, 1))
    train(path, None, tmp_path / "model", progress=lambda fraction, metrics: seen.append((fraction, dict(metrics))))
    fractions = [fraction for fraction, _ in seen]
    assert fractions == sorted(fractions) and fractions[-1] == 1.0
    assert {"train_loss", "eval_loss"} <= set(seen[-1][1])


@pytest.mark.parametrize(
    "line", ["{", "[]", '{"messages": []}', '{"messages": [{"role": "user", "content": "a"}]}', '{"text": "a"}', "5"]
)
def test_a_broken_row_is_named(tmp_path: Path, line: str) -> None:
    path = write_rows(tmp_path / "train.jsonl", respond_rows(2, 1))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(DatasetError, match=r"train\.jsonl, line 3"):
        train(path, None, tmp_path / "model")
    assert not (tmp_path / "model").exists()


def test_no_rows_at_all(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("\n")
    with pytest.raises(DatasetError, match="no examples"):
        train(tmp_path / "train.jsonl", None, tmp_path / "model")


def test_an_unfinished_or_foreign_model_is_refused(tmp_path: Path) -> None:
    fit(tmp_path, respond_rows(20, 1))
    about, numbers = tmp_path / "model" / "model.json", tmp_path / "model" / "model.npz"
    written, whole = json.loads(about.read_text()), numbers.read_bytes()
    about.write_text(json.dumps(written | {"format": 1}))
    with pytest.raises(ArtifactError, match="has the format 1, not 2"):
        load_model(tmp_path / "model")
    about.write_text(json.dumps(written | {"values": {}}))
    with pytest.raises(ArtifactError, match="no usable model"):
        load_model(tmp_path / "model")
    about.write_text(json.dumps(written))
    numbers.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ArtifactError, match="damaged"):
        load_model(tmp_path / "model")
    numbers.write_bytes(whole)
    load_model(tmp_path / "model")
    about.unlink()
    with pytest.raises(ArtifactError, match="no usable model"):
        load_model(tmp_path / "model")


class Bomb:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.write_text, (self.path, "executed")


def test_pickled_objects_in_an_artifact_are_never_loaded(tmp_path: Path) -> None:
    fit(tmp_path, respond_rows(20, 1))
    about, numbers = tmp_path / "model" / "model.json", tmp_path / "model" / "model.npz"
    np.savez(numbers, **{"core.centre": np.array([Bomb(tmp_path / "sign")], dtype=object)})
    written = json.loads(about.read_text())
    written["sha256"]["model.npz"] = hashlib.sha256(numbers.read_bytes()).hexdigest()
    about.write_text(json.dumps(written))
    with pytest.raises(ArtifactError, match="no usable model"):
        load_model(tmp_path / "model")
    assert not (tmp_path / "sign").exists()


@pytest.mark.parametrize(
    "rows", [respond_rows(60, 5), plan_rows(40, 5), [(ask(f"what is {i}?"), f"It is {i}.") for i in range(60)]]
)
def test_a_loaded_model_answers_as_the_trained_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: Any) -> None:
    kept: list[Any] = []
    real = training._fit
    monkeypatch.setattr(training, "_fit", lambda *args: kept.append(real(*args)) or kept[0])
    result, loaded = fit(tmp_path, rows)
    trained = TrainedModel(result.task, kept[0].core, kept[0].answers)
    for prompt, _ in rows:
        a, b = trained.complete(prompt), loaded.complete(prompt)
        assert (a.text, a.tokens) == (b.text, b.tokens)
        assert a.token_logprobs == pytest.approx(b.token_logprobs)
