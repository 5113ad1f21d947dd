"""The question files: where each one comes from, its checksum, and how to get it.

    python -m eval.questions.downloads                      list the files, say which are here
    python -m eval.questions.downloads gsm8k/test.jsonl     download one (or several), checked against its checksum

A file is looked for in `$HSD_DATA`, then in the download folder (`~/.cache/hsd-data`, or `$HSD_CACHE`). Every file is
compared with the checksum written here before it is used: a changed question is a changed benchmark.
"""

import argparse
import os
import urllib.request
from pathlib import Path
from typing import NamedTuple

from eagle import command
from eagle.digests import sha256
from eagle.files import write_whole

GITHUB = "https://raw.githubusercontent.com"


class DataFile(NamedTuple):
    """One known file: its path below the data directory, its origin, its SHA-256, its license."""

    path: str
    url: str
    sha256: str
    license: str


KNOWN = {
    item.path: item
    for item in (
        DataFile(
            "gsm8k/test.jsonl",
            f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data/test.jsonl",
            "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14",
            "MIT",
        ),
        DataFile(
            "gsm8k/train.jsonl",
            f"{GITHUB}/openai/grade-school-math/master/grade_school_math/data/train.jsonl",
            "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465",
            "MIT",
        ),
        DataFile(
            "gsm8k/prompt_original.txt",
            f"{GITHUB}/FranxYao/chain-of-thought-hub/main/gsm8k/lib_prompt/prompt_original.txt",
            "db8c84b10707a16cc2f61e192e1e55452393510470a3d5790db86188a42ae4e0",
            "MIT",
        ),
        DataFile(
            "mt_bench/question.jsonl",
            f"{GITHUB}/lm-sys/FastChat/main/fastchat/llm_judge/data/mt_bench/question.jsonl",
            "119565adbab82227089cefdb44c8d7e2cf04dc0a0ec233634c82e7d4e2a944f7",
            "Apache-2.0",
        ),
        DataFile(
            "eagle80/gsm8k.jsonl",
            f"{GITHUB}/SafeAILab/EAGLE/main/eagle/data/gsm8k/question.jsonl",
            "a55920b2f2aac724241124c59e5b8e8168dbbeb2ab0fdbee17d5b0ab6db5ff27",
            "Apache-2.0",
        ),
        DataFile(
            "eagle80/humaneval.jsonl",
            f"{GITHUB}/SafeAILab/EAGLE/main/eagle/data/humaneval/question.jsonl",
            "ce0244e2b228339e9a11afc63a151719beede1e389fdaec7cd9751d33902180e",
            "Apache-2.0",
        ),
        DataFile(  # Stanford Alpaca's own data: CC-BY-NC-4.0
            "eagle80/alpaca.jsonl",
            f"{GITHUB}/SafeAILab/EAGLE/main/eagle/data/alpaca/question.jsonl",
            "8ad3e5a7fc61b88d8e25edb81a52a2ce00a04494d5694c122cb11a5cc26a00df",
            "Apache-2.0",
        ),
        DataFile(
            "humaneval/HumanEval.jsonl.gz",
            f"{GITHUB}/openai/human-eval/master/data/HumanEval.jsonl.gz",
            "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef",
            "MIT",
        ),
    )
}


class MissingDataError(ValueError):
    """A question file is neither in $HSD_DATA nor downloaded; the message says which command gets it."""


def folders() -> list[Path]:
    """Where question files are looked for, in order."""
    given = os.environ.get("HSD_DATA")
    cache = Path(os.environ.get("HSD_CACHE") or Path.home() / ".cache" / "hsd-data")
    return [Path(given), cache] if given else [cache]


def known(path: str) -> DataFile:
    """The entry of a known file. Raises ValueError listing them."""
    if path not in KNOWN:
        raise ValueError(f"question file {path!r} is not known; expected one of {', '.join(KNOWN)}")
    return KNOWN[path]


def check(content: bytes, item: DataFile, where: str) -> bytes:
    """The content, once its checksum has been compared."""
    found = sha256(content)
    if found != item.sha256:
        raise ValueError(
            f"{where}: SHA-256 {found[:12]}..., expected {item.sha256[:12]}... for {item.path}; the file differs from "
            f"the original. Delete it and run `python -m eval.questions.downloads {item.path}`, or pass it as "
            "--question-file to use it under its own name"
        )
    return content


def find(path: str) -> Path | None:
    """The first copy of a known file, or None."""
    return next((folder / path for folder in folders() if (folder / path).is_file()), None)


def read(path: str) -> bytes:
    """Content of a known file, checked. Raises MissingDataError when it is nowhere."""
    item, place = known(path), find(path)
    if place is None:
        looked = ", ".join(str(folder) for folder in folders())
        raise MissingDataError(
            f"question file {path!r} not found (looked in {looked}); run `python -m eval.questions.downloads {path}`, "
            "or set HSD_DATA to a directory that holds it"
        )
    return check(place.read_bytes(), item, str(place))


def offline() -> bool:
    """Whether the environment forbids the network (HF_HUB_OFFLINE)."""
    return os.environ.get("HF_HUB_OFFLINE", "0").upper() in {"1", "TRUE", "YES", "ON"}


def download(path: str, timeout: float = 30.0) -> Path:
    """Fetch a known file into the download folder. Raises MissingDataError when it cannot be reached."""
    item = known(path)
    try:
        with urllib.request.urlopen(item.url, timeout=timeout) as answer:
            content = answer.read()
    except OSError as error:
        raise MissingDataError(
            f"{path!r} could not be downloaded from {item.url} ({error}); connect to the network, or put the file "
            f"below a directory and set HSD_DATA to it"
        ) from error
    target = folders()[-1] / path
    target.parent.mkdir(parents=True, exist_ok=True)
    write_whole(target, check(content, item, item.url))
    return target


def read_or_download(path: str) -> bytes:
    """Content of a known file; downloaded first if it is missing and the network may be used."""
    if find(path) is None and not offline():
        download(path)
    return read(path)


def list_files() -> None:
    """Print the known files and where they are."""
    for item in KNOWN.values():
        print(f"{item.path:32} {item.license:11} {find(item.path) or 'missing'}\n    {item.url}")


def main(argv: list[str] | None = None) -> int:
    """The command; returns the exit code."""
    parser = command.parser("eval.questions.downloads", __doc__)
    parser.add_argument("paths", nargs="*", help="files to download, named as in the list; nothing: list them")

    def work(options: argparse.Namespace) -> None:
        for path in options.paths:
            print(f"{path} -> {download(path)}")
        if not options.paths:
            list_files()

    return command.start(parser, work, argv, lambda _: "Files that were printed are complete.")


if __name__ == "__main__":
    raise SystemExit(main())
