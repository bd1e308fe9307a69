"""
Check the pinned packages, and what is installed, against the package index: `make audit`.

pip itself asks the index, with the configuration that it installs with, so nothing else has to be reachable. An index
knows which releases exist, which were withdrawn ("yanked") and which Python they need. It knows no vulnerabilities:
docs/compatibility.md says how to look for those.
"""

import json
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.utils import canonicalize_name


ROOT = Path(__file__).parents[1]
# Part of every virtual environment, or this package itself
UNPINNED = {"pip", "setuptools", "rlmec-trl"}
# Messages of pip when the index does not answer, as opposed to when it has no such release
NO_ANSWER = ("Retrying (Retry(", "timed out")


class NoAnswerError(Exception):
    """The package index does not answer, which says nothing about the pins."""


def pip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", "pip", *arguments], capture_output=True, text=True)


def read_pins(path: Path) -> dict[str, str]:
    """Normalized names and versions in a file of constraints."""
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = [line.split("==") for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in pairs}


def ask_index(constraints: Path) -> list[dict[str, Any]]:
    """
    What pip would install for the pins alone: an item of its installation report for each, `metadata` and `is_yanked`.

    Raises:
        `NoAnswerError`: If the index does not answer.
        `SystemExit`: If the index has no such release for this Python, with pip's message.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        flags = ("--dry-run", "--ignore-installed", "--no-deps", "--report", str(report))
        result = pip("install", *flags, "-r", str(constraints))
        if result.returncode == 0:
            return json.loads(report.read_text(encoding="utf-8"))["install"]
    if any(sign in result.stderr for sign in NO_ANSWER):
        raise NoAnswerError(result.stderr.strip().splitlines()[-1])
    sys.exit(f"The package index does not have every pin of {constraints.name}:\n{result.stderr.strip()}")


def find_problems(report: list[dict[str, Any]], pins: dict[str, str], installed: set[str]) -> list[str]:
    """
    One line for each pin that was withdrawn, and for each package without a pin.

    Args:
        report (`list[dict]`):
            Items of pip's installation report, as of [`ask_index`].
        pins (`dict[str, str]`):
            Normalized names and versions of the pins.
        installed (`set[str]`):
            Normalized names of the installed packages.
    """
    problems = []
    for item in report:
        name, version = item["metadata"]["name"], item["metadata"]["version"]
        if item["is_yanked"]:
            problems.append(f"{name} {version} was withdrawn from the package index. Pin another release.")
    for name in sorted(installed - pins.keys() - UNPINNED):
        problems.append(f"{name} is installed without a pin. Add it to constraints.txt.")
    return problems


def main() -> None:
    constraints = ROOT / "constraints.txt"
    pins = read_pins(constraints)
    installed = {canonicalize_name(distribution.metadata["name"]) for distribution in metadata.distributions()}
    check = pip("check")
    problems = check.stdout.splitlines() if check.returncode else []
    try:
        report = ask_index(constraints)
    except NoAnswerError as error:
        # A slow network is no reason to stop a change; the next run asks again.
        print(f"The package index does not answer, so it was not asked about the {len(pins)} pins. pip: {error}")
        report = []
    problems += find_problems(report, pins, installed)
    if problems:
        sys.exit("\n".join(problems))
    print(
        f"{len(report)} of {len(pins)} pins exist and were not withdrawn; what is installed is "
        "pinned and fits together. Vulnerabilities were not looked for (docs/compatibility.md)."
    )


if __name__ == "__main__":
    main()
