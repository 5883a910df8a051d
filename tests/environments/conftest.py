"""Where the real data is."""

import os
from pathlib import Path

import pytest

SHARED = Path(__file__).parents[3] / "shared" / "data"


@pytest.fixture(scope="session")
def gsm8k_folder() -> Path:
    """GSM8K's folder: gsm8k/ in the folder LOCKSTEP_DATA, or else in ../shared/data beside the repository."""
    folder = Path(os.environ.get("LOCKSTEP_DATA", SHARED)) / "gsm8k"
    if not folder.is_dir():
        pytest.skip(
            f"no GSM8K at {folder}: set LOCKSTEP_DATA to the folder that holds gsm8k/train.jsonl and test.jsonl"
        )
    return folder


@pytest.fixture(scope="session")
def math_folders() -> Path:
    """The folder that holds math500/, math_train/ and aime/: LOCKSTEP_DATA, or else ../shared/data."""
    folder = Path(os.environ.get("LOCKSTEP_DATA", SHARED))
    if not (folder / "math500").is_dir():
        pytest.skip(f"no MATH-500 at {folder}/math500: set LOCKSTEP_DATA to the folder that holds it")
    return folder
