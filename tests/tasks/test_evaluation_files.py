"""What becomes of files in `evaluations/` that cannot be read."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.errors import MissingStep
from tasks.evaluation_files import last_verdict


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"about": {"model_id": "m1"}}'])
def test_a_file_that_is_no_evaluation_is_named_with_the_mend(tmp_path: Path, content: str) -> None:
    (tmp_path / "evaluations").mkdir()
    (tmp_path / "evaluations" / "e1.json").write_text(content)
    with pytest.raises(MissingStep, match=r"e1\.json.*`reasoning evaluate MODEL` again"):
        last_verdict(tmp_path, "m1")
