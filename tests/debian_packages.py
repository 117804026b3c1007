"""The packages of Debian as documents: a real corpus that any Debian or Ubuntu machine can make.

`apt-cache dumpavail` tells names and short descriptions; the long ones are in the Translation
lists, which container images leave out: where missing they are fetched into a folder of ours.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

APT_LISTS = Path("/var/lib/apt/lists")
_UPDATE_S = 300


def write_packages(file: Path, folder: Path) -> int:
    """One JSON object a line: id, section, version and the long description; how many there are.

    Args:
        file: To write.
        folder: Where lists go that this machine does not have.
    """
    lists = _lists(folder)
    descriptions = _descriptions(lists)
    count = 0
    with file.open("w") as out:
        for package in _records(_apt(lists, "apt-cache", "dumpavail")):
            long = descriptions.get(package.get("Description-md5", ""), "")
            document = {
                "id": package["Package"],
                "title": package["Package"],
                "content": f"{package['Package']}: {long or package['Description']}",
                "version": package["Version"],
                "section": package.get("Section", ""),
            }
            out.write(json.dumps(document, ensure_ascii=False) + "\n")
            count += 1
    return count


def _lists(folder: Path) -> Path:
    if any(APT_LISTS.glob("*_Translation-en*")):
        return APT_LISTS
    lists = folder / "lists"
    (lists / "partial").mkdir(parents=True, exist_ok=True)
    if not any(lists.glob("*_Translation-en*")):
        for _ in _apt(lists, "apt-get", "-qq", "update", "-o", "Acquire::Languages=en"):
            pass
    return lists


def _descriptions(lists: Path) -> dict[str, str]:
    """Long descriptions by the hash of the English one."""
    found = {}
    for file in sorted(lists.glob("*_Translation-en*")):
        for record in _records(_apt(lists, "/usr/lib/apt/apt-helper", "cat-file", file)):
            found[record["Description-md5"]] = record["Description-en"]
    return found


def _apt(lists: Path, *command: object) -> Iterator[str]:
    """Lines of its answer; a long one is never whole in memory."""
    options = [f"-oDir::State::Lists={lists}", f"-oDir::Cache={lists.parent / 'apt-cache'}"]
    argv = [str(command[0]), *options, *map(str, command[1:])]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as apt:
        yield from apt.stdout
        assert apt.wait(timeout=_UPDATE_S) == 0, argv


def _records(lines: Iterator[str]) -> Iterator[dict[str, str]]:
    """Fields of each paragraph; a line that goes on an earlier one begins with a space."""
    record: dict[str, str] = {}
    name = ""
    for line in lines:
        text = line.rstrip("\n")
        if not text:
            if record:
                yield record
            record = {}
        elif text[0] == " ":
            more = text[1:]
            record[name] += "\n" + ("" if more == "." else more)
        else:
            name, _, value = text.partition(":")
            record[name] = value.strip()
    if record:
        yield record
