"""A target, and a head where there is one, from the Hugging Face hub, pinned to a commit.

`revisions.lock` has one line per repository, `REPOSITORY COMMIT`: the commit that `main` was at the first fetch. Later
fetches use that commit; to move to another one, edit or remove the line.
"""

import os
import shutil
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError

from eagle.checkpoints.known import Hub
from eagle.digests import sha256_of_file
from eagle.files import write_json, write_whole

WANTED = ("*.json", "*.safetensors", "*.bin", "*.jinja", "*.txt", "*.model")
UNWANTED = ("original/*", "onnx/*", "runs/*", "pytorch_model.bin", "consolidated*")
UNREACHABLE = (HfHubHTTPError, LocalEntryNotFoundError, OSError)


def locked_revision(repository: str, lock_file: Path) -> str:
    """The commit in the lock file, or that of `main` now, which is added to the file."""
    text = lock_file.read_text(encoding="utf-8") if lock_file.is_file() else ""
    pinned = dict(line.split() for line in text.splitlines() if line.strip())
    if repository not in pinned:
        commit = str(HfApi().model_info(repository).sha)
        write_whole(lock_file, text + f"{repository} {commit}\n")
        return commit
    return pinned[repository]


def check_sums(repository: str, commit: str, directory: Path) -> None:
    """Compare the large files with the SHA-256 that the hub states. Raises ValueError naming the file."""
    for entry in HfApi().model_info(repository, revision=commit, files_metadata=True).siblings or []:
        place = directory / entry.rfilename
        if entry.lfs is not None and place.is_file() and sha256_of_file(place) != entry.lfs.sha256:
            place.unlink()
            raise ValueError(
                f"{repository}, {entry.rfilename}: SHA-256 differs from the hub's {entry.lfs.sha256}; the file was "
                "removed, run the command again"
            )


def fetch_repository(repository: str, place: Path, downloads: Path, lock_file: Path) -> None:
    """`repository` at its locked commit, in the directory `place`, which appears when it is complete."""
    commit = locked_revision(repository, lock_file)
    staging = downloads / f"{place.name}-{commit}"
    ignore = [pattern for pattern in UNWANTED if place.name == "target" or pattern != "pytorch_model.bin"]
    snapshot_download(
        repository, revision=commit, local_dir=staging, allow_patterns=list(WANTED), ignore_patterns=ignore
    )
    check_sums(repository, commit, staging)
    shutil.rmtree(staging / ".cache", ignore_errors=True)
    write_json(staging / "origin.json", {"source": "hub", "model": repository, "commit": commit})
    os.rename(staging, place)


def fetch_repositories(hub: Hub, directory: Path, lock_file: Path) -> None:
    """The target at directory/target and the head, if the hub has it, at directory/eagle3.

    Raises ValueError where the hub cannot be reached or does not let this user in.
    """
    wanted = {"target": hub.target} | ({"eagle3": hub.head} if hub.head else {})
    for part, repository in wanted.items():
        if (directory / part).is_dir():
            continue
        try:
            fetch_repository(repository, directory / part, directory / "downloads", lock_file)
        except GatedRepoError as error:
            raise ValueError(
                f"{repository} is gated; accept its licence on the hub, then `hf auth login` and run this again"
            ) from error
        except UNREACHABLE as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise ValueError(f"{repository}: the hub cannot be reached ({reason}); check the network") from error
