"""The README's example is run as it is printed, only shorter."""

import re
from pathlib import Path

from lockstep.cli import main
from lockstep.observe.recorder import read_metrics

README = Path(__file__).parent.parent / "README.md"


def test_the_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)
    (tmp_path / "shop.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    short = ["--num-steps", "2", "--sft.num-steps", "3", "--evaluation.num-tasks", "8", "--threads", "1"]
    assert main(["train", "shop.py", *short]) == 0
    assert [line["phase"] for line in read_metrics(tmp_path / "runs" / "shop")] == ["sft"] * 3 + [
        "eval",
        "rl",
        "rl",
        "eval",
    ]
