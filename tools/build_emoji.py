"""The emoji world is built here: pinned npm packages in, deterministic tar shards of captioned pictures out.

    python tools/build_emoji.py --size 64 --cache ~/.cache/emoji

Needs the npm client, Pillow and resvg-py. Every tarball is checked against its pinned sha256 before it is
opened. Nothing is written to the output folder unless everything succeeded. The same package pins and the
same Pillow (libwebp) and resvg versions give the same bytes.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

SCHEMA = 1
SIZES = range(8, 257)  # the 3-D pictures are 256 wide
VARIATION = 0xFE0F  # "show as a picture"; some sources write it, some do not
HOME = Path(__file__).resolve().parent.parent / "src" / "sfumato" / "bundled" / "worlds"

# Components are not pictures; the 261 flags of places are in two of the four styles only, and cost 2 MB.
LEFT_OUT = frozenset({"skin-tone", "hair-style", "country-flag", "subdivision-flag"})


class BuildError(Exception):
    """Something a person has to put right; the message is one line."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Package:
    """One npm package, pinned."""

    name: str
    version: str
    sha256: str
    licence: str
    owner: str

    @property
    def filename(self) -> str:
        """What `npm pack` calls the tarball."""
        return f"{self.name.removeprefix('@').replace('/', '-')}-{self.version}.tgz"


STYLES: dict[str, Package] = {
    "3d": Package(
        name="@lobehub/fluent-emoji-3d",
        version="1.1.0",
        sha256="c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        licence="MIT",
        owner="Microsoft Corporation",
    ),
    "flat": Package(
        name="@iconify-json/fluent-emoji-flat",
        version="1.2.6",
        sha256="7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175",
        licence="MIT",
        owner="Microsoft Corporation",
    ),
    "noto": Package(
        name="@iconify-json/noto",
        version="1.2.9",
        sha256="3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad",
        licence="Apache-2.0",
        owner="Google Inc",
    ),
    "twemoji": Package(
        name="@iconify-json/twemoji",
        version="1.2.5",
        sha256="19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7",
        licence="CC-BY-4.0",
        owner="Twitter, Inc and other contributors; jdecked and other contributors",
    ),
}
NAMES = Package(
    name="emojibase-data",
    version="17.0.0",
    sha256="d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    licence="MIT",
    owner="Miles Johnson",
)


# Packages -------------------------------------------------------------------------------------------------
def fetch(package: Package, cache: Path) -> Path:
    """The tarball of a package, from the cache or from the npm client, with its hash checked."""
    path = cache / package.filename
    if not path.exists():
        npm = shutil.which("npm")
        if npm is None:
            raise BuildError(f"{package.filename} is not in {cache} and there is no npm client to get it with")
        command = [
            npm,
            "pack",
            f"{package.name}@{package.version}",
            "--silent",
            "--pack-destination",
            str(cache),
        ]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0 or not path.exists():
            why = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[0]
            raise BuildError(f"npm could not get {package.name}@{package.version}: {why}")
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != package.sha256:
        raise BuildError(f"{path} has sha256 {found}, but {package.sha256} is pinned; delete it and run again")
    return path


def members(tarball: Path) -> Iterator[tuple[str, bytes]]:
    """The plain files of a tarball, read in memory; names that would leave the folder are an error."""
    with tarfile.open(tarball) as tar:
        for member in tar:
            parts = Path(member.name).parts
            if member.name.startswith("/") or ".." in parts:
                raise BuildError(f"{tarball.name} holds {member.name!r}, which leaves its folder")
            stream = tar.extractfile(member) if member.isfile() else None
            if stream is not None:
                yield "/".join(parts[1:]), stream.read()


# Captions -------------------------------------------------------------------------------------------------
def key(codes: str) -> str:
    """Code points as everyone else may write them -> lower-case hex, joined by '-', FE0F stripped."""
    points = [int(code, 16) for code in codes.split("-")]
    return "-".join(f"{point:04x}" for point in points if point != VARIATION)


def names(tarball: Path) -> dict[str, dict[str, Any]]:
    """id -> {name, tags, group, subgroup}, for the base emoji without `LEFT_OUT`: no skin-tone variants."""
    wanted = {"en/data.json", "meta/groups.json"}
    found = {name: json.loads(data) for name, data in members(tarball) if name in wanted}
    groups: dict[str, str] = found["meta/groups.json"]["groups"]
    subgroups: dict[str, str] = found["meta/groups.json"]["subgroups"]
    rows = (row for row in found["en/data.json"] if "group" in row)
    return {
        key(row["hexcode"]): {
            "name": row["label"].lower(),
            "tags": sorted({tag.lower() for tag in row.get("tags", [])}),
            "group": groups[str(row["group"])],
            "subgroup": subgroups[str(row["subgroup"])],
        }
        for row in rows
        if subgroups[str(row["subgroup"])] not in LEFT_OUT
    }


# Pictures -------------------------------------------------------------------------------------------------
def rasters(tarball: Path, wanted: Mapping[str, Any], size: int) -> Iterator[tuple[str, Image.Image]]:
    """The webp files of the 3-D set, scaled down."""
    for name, data in members(tarball):
        path = Path(name)
        if path.suffix == ".webp" and key(path.stem) in wanted:
            with Image.open(io.BytesIO(data)) as picture:
                small = picture.convert("RGBA").resize((size, size), Image.Resampling.LANCZOS)
            yield key(path.stem), small


def vectors(tarball: Path, wanted: Mapping[str, Any], size: int) -> Iterator[tuple[str, Image.Image]]:
    """The SVG bodies of an Iconify set, rendered."""
    import resvg_py  # noqa: PLC0415  only this function needs it

    found = {name: json.loads(data) for name, data in members(tarball) if name in {"chars.json", "icons.json"}}
    for codes, slug in found["chars.json"].items():
        if key(codes) in wanted:
            svg = document(icon(found["icons.json"], slug), size)
            png = resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True)
            with Image.open(io.BytesIO(bytes(png))) as picture:
                yield key(codes), picture.convert("RGBA")


def icon(icons: Mapping[str, Any], slug: str) -> dict[str, Any]:
    """An icon with its defaults filled in and its chain of aliases followed; transformations add up."""
    chain: list[Mapping[str, Any]] = []
    seen: set[str] = set()
    while slug not in icons["icons"]:
        row = icons.get("aliases", {}).get(slug)
        if row is None or slug in seen:
            raise BuildError(f"icon {slug!r} of set {icons['prefix']!r} has no body")
        seen.add(slug)
        chain.append(row)
        slug = row["parent"]
    chain.append(icons["icons"][slug])
    top = {"left": 0, "top": 0, "width": icons.get("width", 16), "height": icons.get("height", 16)}
    result: dict[str, Any] = {name: icons.get(name, value) for name, value in top.items()}
    for row in reversed(chain):  # the nearest alias has the last word
        result |= {name: row[name] for name in (*top, "body") if name in row}
    result["rotate"] = sum(row.get("rotate", 0) for row in chain) % 4
    result["hFlip"] = sum(bool(row.get("hFlip")) for row in chain) % 2
    result["vFlip"] = sum(bool(row.get("vFlip")) for row in chain) % 2
    return result


def document(shape: Mapping[str, Any], size: int) -> str:
    """A whole SVG, `size` x `size`; a box that is not square is centred."""
    left, top, width, height = (shape[name] for name in ("left", "top", "width", "height"))
    x, y = left + width / 2, top + height / 2
    if shape["rotate"] % 2:
        width, height = height, width
        left, top = x - width / 2, y - height / 2
    flip = f"scale({-1 if shape['hFlip'] else 1} {-1 if shape['vFlip'] else 1})"
    turn = f"translate({x} {y}) rotate({90 * shape['rotate']}) {flip} translate({-x} {-y})"
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{size}" height="{size}" viewBox="{left} {top} {width} {height}">'
        f'<g transform="{turn}">{shape["body"]}</g></svg>'
    )


def webp(picture: Image.Image) -> bytes:
    """Lossless RGBA; colours under zero alpha are not kept (they cost bytes and nobody sees them)."""
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=True, exact=False, quality=90, method=6)
    return buffer.getvalue()


# Shards ---------------------------------------------------------------------------------------------------
def shard(path: Path, files: Mapping[str, bytes]) -> None:
    """A tar whose bytes depend on nothing but the names and contents."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(files):
            info = tarfile.TarInfo(name)
            info.size, info.mtime, info.mode = len(files[name]), 0, 0o644
            tar.addfile(info, io.BytesIO(files[name]))


def style_files(style: str, tarball: Path, facts: Mapping[str, dict[str, Any]], size: int) -> dict[str, bytes]:
    """File name -> bytes, of one style: a picture and its facts per emoji."""
    source = rasters if style == "3d" else vectors
    files: dict[str, bytes] = {}
    for ident, picture in source(tarball, facts, size):
        meta = {"id": ident, "style": style, **facts[ident]}
        files[f"{ident}_{style}.webp"] = webp(picture)
        files[f"{ident}_{style}.json"] = json.dumps(meta, ensure_ascii=False, separators=(",", ":")).encode()
    return files


def build(out: Path, cache: Path, size: int) -> dict[str, Any]:
    """Writes the whole world into the empty folder `out`; returns what world.json says."""
    tarballs = {style: fetch(package, cache) for style, package in STYLES.items()}
    name_source = fetch(NAMES, cache)
    facts = names(name_source)
    styles: dict[str, Any] = {}
    for style, package in STYLES.items():
        files = style_files(style, tarballs[style], facts, size)
        path = out / f"{style}.tar"
        shard(path, files)
        styles[style] = {
            **pinned(package),
            "count": len(files) // 2,
            "shard": path.name,
            "shard_bytes": path.stat().st_size,
            "shard_sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
    licences(out / "LICENSES", name_source)
    world = {"schema": SCHEMA, "size": size, "styles": styles, "captions": pinned(NAMES)}
    (out / "world.json").write_text(json.dumps(world, indent=2) + "\n", encoding="utf-8")
    return world


def pinned(package: Package) -> dict[str, str]:
    """Where something came from, as world.json says it."""
    return {
        "package": package.name,
        "version": package.version,
        "sha256": package.sha256,
        "licence": package.licence,
        "owner": package.owner,
    }


# Licences -------------------------------------------------------------------------------------------------
MIT = """MIT License

Copyright (c) {owner}

Permission is hereby granted, free of charge, to any person obtaining a copy
of this software and associated documentation files (the "Software"), to deal
in the Software without restriction, including without limitation the rights
to use, copy, modify, merge, publish, distribute, sublicense, and/or sell
copies of the Software, and to permit persons to whom the Software is
furnished to do so, subject to the following conditions:

The above copyright notice and this permission notice shall be included in all
copies or substantial portions of the Software.

THE SOFTWARE IS PROVIDED "AS IS", WITHOUT WARRANTY OF ANY KIND, EXPRESS OR
IMPLIED, INCLUDING BUT NOT LIMITED TO THE WARRANTIES OF MERCHANTABILITY,
FITNESS FOR A PARTICULAR PURPOSE AND NONINFRINGEMENT. IN NO EVENT SHALL THE
AUTHORS OR COPYRIGHT HOLDERS BE LIABLE FOR ANY CLAIM, DAMAGES OR OTHER
LIABILITY, WHETHER IN AN ACTION OF CONTRACT, TORT OR OTHERWISE, ARISING FROM,
OUT OF OR IN CONNECTION WITH THE SOFTWARE OR THE USE OR OTHER DEALINGS IN THE
SOFTWARE.
"""

CC_BY = """Twemoji artwork, as packaged in {name} {version}.

Copyright (c) {owner}

The graphics are licensed under the Creative Commons Attribution 4.0
International licence (CC-BY-4.0). Its text: https://creativecommons.org/licenses/by/4.0/legalcode
Where the graphics come from: https://github.com/jdecked/twemoji

Changes made: the SVG drawings were rendered to pixels of one size and stored as
lossless WebP in a tar archive. The graphics come without warranty of any kind;
their authors do not endorse this project or what is made with it.
"""

NOTICE = """Pictures and words of the emoji world, and whom they are from.

{rows}

The pictures were scaled or rendered to one size and stored as lossless WebP.
`world.json`, beside the shards, has versions and hashes.
"""


def licences(folder: Path, name_source: Path) -> None:
    """One text per source, from the package where it carries one, and a notice that says which is whose."""
    folder.mkdir()
    texts = {
        "3d-MIT.txt": MIT.format(owner="Microsoft Corporation")
        + "\nRepackaged as webp by LobeHub under the same licence.\n",
        "flat-MIT.txt": MIT.format(owner="Microsoft Corporation"),
        "noto-Apache-2.0.txt": (Path(__file__).parent / "licences" / "Apache-2.0.txt").read_text(encoding="utf-8"),
        "twemoji-CC-BY-4.0.txt": CC_BY.format(
            name=STYLES["twemoji"].name, version=STYLES["twemoji"].version, owner=STYLES["twemoji"].owner
        ),
        "captions-MIT.txt": dict(members(name_source))["LICENSE"].decode(),
    }
    sources = {**STYLES, "captions": NAMES}
    rows = [f"{use}: {row.name} {row.version}, (c) {row.owner}, {row.licence}" for use, row in sources.items()]
    texts["NOTICE.txt"] = NOTICE.format(rows="\n".join(rows))
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Exit status: 0 built, 2 something a person has to put right."""
    parser = argparse.ArgumentParser(description="Builds the bundled emoji world from pinned npm packages.")
    parser.add_argument("--size", type=int, default=64, help="edge of the pictures in pixels, 8 to 256")
    parser.add_argument("--cache", type=Path, help="folder with tarballs to use, and to keep new ones in")
    parser.add_argument("--out", type=Path, help="folder to write (default: src/sfumato/bundled/worlds/emoji-SIZE)")
    asked = parser.parse_args(argv)
    if asked.size not in SIZES:
        parser.error(f"--size must be between {SIZES[0]} and {SIZES[-1]}")
    out: Path = asked.out or HOME / f"emoji-{asked.size}"
    if out.exists() and not (out / "world.json").is_file():
        parser.error(f"{out} is there and is not an emoji world; it would be replaced, so name another folder")
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=".building-") as folder:
        scratch = Path(folder)
        cache: Path = asked.cache or scratch / "cache"
        cache.mkdir(parents=True, exist_ok=True)
        fresh = scratch / "world"
        fresh.mkdir()
        try:
            world = build(fresh, cache, asked.size)
        except (BuildError, OSError, KeyError, ValueError, tarfile.TarError) as error:
            print(f"error: {error}".splitlines()[0], file=sys.stderr)
            return 2
        if out.exists():
            out.rename(scratch / "old")
        fresh.rename(out)
    for style, row in world["styles"].items():
        print(f"{style:8} {row['count']:5} pictures {row['shard_bytes'] / 1e6:6.2f} MB  {row['licence']}")
    print(f"{out}: {sum(path.stat().st_size for path in out.rglob('*') if path.is_file()) / 1e6:.2f} MB")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
