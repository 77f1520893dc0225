"""Where the drawings come from: six open sets of emoji and a dictionary of their names, fetched once from npm.

    artist              drawn by                 licence
    noto                Google                   Apache 2.0
    twemoji             Twitter                  CC BY 4.0
    openmoji            the OpenMoji project     CC BY-SA 4.0
    fluent-emoji        Microsoft                MIT
    fluent-emoji-flat   Microsoft                MIT
    emojione            Emoji One (EmojiTwo)     CC BY 4.0

The Iconify project packs each set as one JSON file of SVG drawings (``@iconify-json/...``), and ``emojibase-data``
(MIT) has names, keywords and groups, which people wrote. ``packages`` fetches them at pinned versions by the npm
client, and compares each with its SHA-512.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from otclib.data.cache import cache_dir


@dataclass(frozen=True)
class Package:
    """A package of the npm registry, at one version; ``sha512`` is of its tar, in base 64 as npm gives it."""

    name: str
    version: str
    sha512: str
    by: str
    licence: str

    @property
    def file(self) -> str:
        """The name of the tar that ``npm pack`` writes."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


ARTISTS = {
    "noto": Package(
        "@iconify-json/noto",
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Google",
        "Apache 2.0",
    ),
    "twemoji": Package(
        "@iconify-json/twemoji",
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "Twitter",
        "CC BY 4.0",
    ),
    "openmoji": Package(
        "@iconify-json/openmoji",
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "OpenMoji",
        "CC BY-SA 4.0",
    ),
    "fluent-emoji": Package(
        "@iconify-json/fluent-emoji",
        "1.2.7",
        "D8G6bKAyIsyxP1rzZtIWr/gg/fO4Rg1+DyCWlfqKK4h8W+4Em/Y0P6QYgJUQTlUcagzJvSyg+9OBv4hz4Hc/QA==",
        "Microsoft",
        "MIT",
    ),
    "fluent-emoji-flat": Package(
        "@iconify-json/fluent-emoji-flat",
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "Microsoft",
        "MIT",
    ),
    "emojione": Package(
        "@iconify-json/emojione",
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "Emoji One",
        "CC BY 4.0",
    ),
}
WORDS = Package(
    "emojibase-data",
    "17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
    "Emojibase",
    "MIT",
)
HELD_OUT = "emojione"  # the artist of the test split


def check_artist(name: str) -> None:
    """Refuse an artist whom we do not know."""
    if name not in ARTISTS:
        raise ValueError(f"unknown artist {name!r}: choose one of {', '.join(ARTISTS)}")


def attribution() -> str:
    """Return the line that belongs beside every picture with drawings of these sets."""
    drawn = ", ".join(f"{name} ({package.by}, {package.licence})" for name, package in ARTISTS.items())
    return f"Drawings: {drawn}. Names and keywords: {WORDS.name} ({WORDS.licence})."


def content(package: Package, member: str, root: str | Path | None = None) -> Any:
    """Return a JSON file of a package; ``root`` as for ``packages``."""
    with tarfile.open(packages(root) / package.file, "r:gz") as tar:
        file = tar.extractfile(f"package/{member}")
        assert file is not None, f"{package.file} has no {member}"  # its checksum is that of the version we know
        return json.loads(file.read())


@functools.cache
def packages(root: str | Path | None = None) -> Path:
    """Return the folder with the tars of all packages, after a comparison with their checksums.

    ``root`` : a folder that has them already. Default: the cache, into which npm fetches those that are missing.

    Raises
    ------
    FileNotFoundError : a package is missing in ``root``, or npm is missing or cannot fetch it.
    ValueError : a file has another checksum.
    """
    wanted = [*ARTISTS.values(), WORDS]
    folder = Path(root).expanduser().absolute() if root else cache_dir() / "npm"
    if missing := [package for package in wanted if not (folder / package.file).is_file()]:
        if root:
            raise FileNotFoundError(f"root={str(root)!r} lacks {', '.join(p.file for p in missing)}. {_by_hand()}")
        _fetch(missing, folder)
    for package in wanted:
        _verify(folder / package.file, package)
    return folder


def _fetch(missing: list[Package], folder: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        raise FileNotFoundError(f"the drawings are fetched by npm, which is not installed. {_by_hand()}")
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as part:
        for package in missing:
            command = [npm, "pack", f"{package.name}@{package.version}", "--silent", "--pack-destination", part]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=600)
            if done.returncode or not (Path(part) / package.file).is_file():
                said = (done.stderr.strip() or done.stdout.strip() or "no reason given")[-500:]
                raise FileNotFoundError(f"npm could not fetch {package.name}@{package.version}: {said}. {_by_hand()}")
            _verify(Path(part) / package.file, package)
            (Path(part) / package.file).replace(folder / package.file)


def _verify(file: Path, package: Package) -> None:
    found = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    if found != package.sha512:
        raise ValueError(
            f"{file} is not {package.name}@{package.version}: its SHA-512 is {found}, not {package.sha512}"
        )


def _by_hand() -> str:
    names = " ".join(f"{p.name}@{p.version}" for p in [*ARTISTS.values(), WORDS])
    return f"Install Node.js, or run `npm pack {names}` elsewhere and give the folder of these files as root"
