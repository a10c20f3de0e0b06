"""The adapter learner on a tiny language model made on the spot. Skipped without the extra `adapter` (torch)."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from learners import artifact
from learners.adapter.base import load_base, render, split_row, tokenize
from learners.adapter.training import AdapterOptions, train_adapter
from learners.errors import ArtifactError, DatasetError, MissingExtra, TrainingError
from learners.model import load_model

HAS_TORCH = importlib.util.find_spec("trl") is not None
needs_torch = pytest.mark.skipif(not HAS_TORCH, reason="needs the extra `adapter`")
pytestmark = [pytest.mark.filterwarnings("ignore::FutureWarning"), pytest.mark.filterwarnings("ignore::UserWarning")]

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
WORDS = ["river", "stone", "cloud", "paper", "green", "quiet", "seven", "table"]
RIGHT = {True: "<action>RESPOND</action>", False: "<action>IGNORE</action>"}


def make_base(folder: Path, template: str = TEMPLATE, architecture: str = "llama") -> Path:
    """A causal language model of 60,000 parameters with a word tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    torch.set_num_threads(1)  # threads that wait for each other on busy cores take ten times as long
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*RIGHT.values(), " ".join(WORDS), "user assistant system Nova"] * 20, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = template
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.3,  # a network that was never trained says nothing loudly enough to be turned round
        eos_token_id=fast.eos_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


def write_rows(path: Path, count: int, seed: int) -> Path:
    """RESPOND is right when Nova is named."""
    draw = random.Random(seed)
    lines = []
    for _ in range(count):
        named = draw.random() < 0.5
        text = ("Nova, " if named else "") + " ".join(draw.sample(WORDS, 3))
        messages = [{"role": "user", "content": text}, {"role": "assistant", "content": RIGHT[named]}]
        lines.append(json.dumps({"messages": messages}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def ask(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    options = AdapterOptions(str(base), epochs=8, rank=16, learning_rate=5e-3, max_tokens=64)
    rows = write_rows(folder / "train.jsonl", 240, 1), write_rows(folder / "validation.jsonl", 60, 2)
    train_adapter(*rows, folder / "model", options)
    return folder / "model"


@pytest.mark.skipif(HAS_TORCH, reason="the extra `adapter` is installed")
def test_without_the_extra_the_error_names_the_line_that_installs_it(tmp_path: Path) -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'custom-reasoning\[adapter\]'"):
        train_adapter(write_rows(tmp_path / "t.jsonl", 3, 1), None, tmp_path / "model", AdapterOptions("somewhere"))
    assert not (tmp_path / "model").exists()


def test_every_file_of_an_artifact_is_checked(tmp_path: Path) -> None:
    (tmp_path / "weights").write_bytes(b"right")
    artifact.save(tmp_path, artifact.Parts(), {}, files=("weights",))
    artifact.load(tmp_path)
    (tmp_path / "weights").write_bytes(b"wrong")
    with pytest.raises(ArtifactError, match=r"weights is damaged"):
        artifact.load(tmp_path)


def test_an_artifact_cannot_name_a_file_outside_of_its_folder(tmp_path: Path) -> None:
    artifact.save(tmp_path / "model", artifact.Parts(), {})
    path = tmp_path / "model" / artifact.ABOUT
    about = json.loads(path.read_text())
    about["sha256"]["../secret"] = "0"
    path.write_text(json.dumps(about))
    with pytest.raises(ArtifactError, match=r"outside of the folder: '\.\./secret'"):
        artifact.load(tmp_path / "model")


@needs_torch
def test_an_adapter_learns_and_is_calibrated(trained: Path) -> None:
    model = load_model(trained)
    answers = [model.complete(ask(text)) for text in ("Nova, river stone cloud", "paper green quiet")]
    assert [answer.text for answer in answers] == [RIGHT[True], RIGHT[False]]
    assert all(0.5 < np.exp(sum(answer.token_logprobs)) <= 1 for answer in answers)
    assert "".join(answers[0].tokens) == answers[0].text
    about = artifact.describe(trained)
    assert about["metrics"]["eval_accuracy"] > 0.95
    assert about["base"]["licence"].startswith("unknown")


@needs_torch
def test_scores_of_answers_equal_those_of_one_plain_pass(trained: Path) -> None:
    import torch

    model = load_model(trained)
    messages = ask("Nova, table seven")
    prompt = tokenize(model.base, render(model.base, messages))
    for score, answer in zip(model.scores(messages), model.answers, strict=True):
        ids = [*tokenize(model.base, answer.text), model.base.tokenizer.eos_token_id]
        with torch.inference_mode():
            log_p = torch.log_softmax(model.model(torch.tensor([[*prompt, *ids]])).logits[0].float(), dim=-1)
        plain = sum(float(log_p[len(prompt) - 1 + i, token]) for i, token in enumerate(ids))
        assert score == pytest.approx(plain, abs=1e-4)


@needs_torch
def test_a_template_that_renders_serving_differently_is_refused(tmp_path: Path) -> None:
    odd = TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>{% endif %}")
    with pytest.raises(DatasetError, match=r"what is trained would not be what is served"):
        split_row(load_base(str(make_base(tmp_path, odd))), ask("hi"), RIGHT[True])


@needs_torch
def test_a_base_without_a_chat_template_is_refused(base: Path, tmp_path: Path) -> None:
    make_base(tmp_path, template="")
    (tmp_path / "chat_template.jinja").unlink(missing_ok=True)
    with pytest.raises(ArtifactError, match=r"has no chat template"):
        load_base(str(tmp_path))


@needs_torch
def test_time_that_is_over_leaves_no_model(base: Path, tmp_path: Path) -> None:
    options = AdapterOptions(str(base), epochs=50, seconds=0.5)
    with pytest.raises(TrainingError, match=r"not finished within 0.5 s"):
        train_adapter(write_rows(tmp_path / "t.jsonl", 200, 1), None, tmp_path / "model", options)
    with pytest.raises(ArtifactError):
        load_model(tmp_path / "model")


@needs_torch
def test_an_adapter_does_not_load_on_another_base(trained: Path, tmp_path: Path) -> None:
    other = make_base(tmp_path / "other", TEMPLATE + " ")
    from learners.adapter.model import load_adapter

    with pytest.raises(ArtifactError, match=r"trained on another base model"):
        load_adapter(trained, base=str(other))


@needs_torch
def test_a_killed_training_goes_on_from_its_last_epoch(base: Path, tmp_path: Path) -> None:
    rows = write_rows(tmp_path / "t.jsonl", 60, 1)
    options = AdapterOptions(str(base), epochs=3, max_tokens=64)

    def stop(fraction: float, _: dict[str, float]) -> None:
        if fraction > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_adapter(rows, None, tmp_path / "model", options, progress=stop)
    seen: list[float] = []
    train_adapter(rows, None, tmp_path / "model", options, progress=lambda fraction, _: seen.append(fraction))
    assert seen[1] > 0.3  # the first epoch's steps were not done again
    assert not (tmp_path / "model" / "checkpoints").exists()


@needs_torch
def test_gguf_holds_every_matrix_of_the_adapter(trained: Path, tmp_path: Path) -> None:
    import gguf
    from safetensors.numpy import load_file

    from learners.adapter.export import export_gguf

    export_gguf(trained, tmp_path / "adapter.gguf")
    reader = gguf.GGUFReader(tmp_path / "adapter.gguf")
    weights = load_file(trained / "adapter_model.safetensors")
    assert len(reader.tensors) == len(weights)
    assert {tensor.name for tensor in reader.tensors} >= {"blk.0.attn_q.weight.lora_a", "blk.1.ffn_down.weight.lora_b"}
    down = next(tensor for tensor in reader.tensors if tensor.name == "blk.1.ffn_down.weight.lora_b")
    expected = weights["base_model.model.model.layers.1.mlp.down_proj.lora_B.weight"]
    np.testing.assert_allclose(np.asarray(down.data).reshape(expected.shape), expected, atol=1e-3)
