"""What is measured: disks and container archives, made from this machine's own files."""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

MIB = 1 << 20
SOURCES = ["/usr/lib", "/usr/bin", "/usr/share"]
COMPOSE = "Fedora-43-20260305.n.0"


class Inputs:
    """Everything below one folder; what is there already is taken as it is."""

    def __init__(self, folder: Path, small: bool, tool: Path):
        self.folder = folder / ("small" if small else "full")
        self.tool = tool
        self.disk_mib = 256 if small else 2048
        self.used_mib = 55 if small else 440
        self.single_mib = 64 if small else 512
        self.large_mib = 384 if small else 3072
        self.folder.mkdir(parents=True, exist_ok=True)

    def make(self, name: str) -> Path:
        """The input of this name, as a compose would carry it."""
        return {
            "sparse": lambda: self.packed("sparse.raw", self.disk, "-T0"),
            "single": lambda: self.packed("single.raw", self.head, "-T1"),
            "extents": lambda: self.packed("extents.raw", self.extents, "-T0"),
            "second": lambda: self.packed("second.raw", self.second, "-T0"),
            "container": lambda: self.packed("container.oci.tar", self.container, "-T0"),
            "large": lambda: self.once("large.oci.tar", self.large),
        }[name]()

    def once(self, name: str, write) -> Path:
        path = self.folder / name
        if not path.exists():
            partial = self.folder / f"{name}.partial"
            write(partial)
            partial.rename(path)
        return path

    def packed(self, name: str, write, threads: str) -> Path:
        plain = self.once(name, write)

        def pack(partial: Path):
            print(f"compressing {name}", flush=True)
            with partial.open("wb") as out:
                subprocess.run(["xz", threads, "-6", "-c", plain], stdout=out, check=True)

        return self.once(f"{name}.xz", pack)

    def files(self) -> Path:
        """A folder of programs, libraries, and texts, one tenth of it noise, as compressed files are."""
        folder = self.folder / "files"
        if folder.exists():
            return folder
        partial = self.folder / "files.partial"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        left = self.used_mib * MIB * 9 // 10
        for number, path in enumerate(candidates()):
            size = path.stat().st_size
            if size > left:
                continue
            shutil.copyfile(path, partial / f"{number}-{path.name}"[:200])
            left -= size
            if left < MIB:
                break
        (partial / "noise").write_bytes(os.urandom(self.used_mib * MIB // 10))
        partial.rename(folder)
        return folder

    def disk(self, path: Path):
        files = self.files()
        environment = {**os.environ, "PATH": os.environ["PATH"] + ":/usr/sbin:/sbin"}
        command = ["mke2fs", "-q", "-F", "-t", "ext4", "-d", files, path, f"{self.disk_mib}M"]
        subprocess.run(command, check=True, env=environment)
        sign(path)

    def head(self, path: Path):
        disk = self.once("sparse.raw", self.disk)
        with disk.open("rb") as source, path.open("wb") as out:
            out.write(source.read(self.single_mib * MIB))

    def second(self, path: Path):
        """The sparse disk's second half before its first."""
        disk = self.once("sparse.raw", self.disk)
        half = self.disk_mib * MIB // 2
        with disk.open("rb") as source, path.open("wb") as out:
            for start in (half, 0):
                source.seek(start)
                for _ in range(half // MIB):
                    piece = source.read(MIB)
                    if any(piece):
                        out.write(piece)
                    else:
                        out.seek(MIB, os.SEEK_CUR)
            out.truncate()
        sign(path)

    def extents(self, path: Path):
        disk = self.once("sparse.raw", self.disk)
        subprocess.run([self.tool, "extents", disk, path], check=True)
        sign(path)

    def large(self, path: Path):
        subprocess.run([self.tool, "big", path, str(self.large_mib * MIB)], check=True)

    def container(self, path: Path):
        """An OCI archive of two layers: the files, and noise."""
        layers = [self.once("layer1.tar.gz", self.layer), self.once("layer2.tar.gz", self.noise_layer)]
        with tarfile.open(path, "w") as archive:
            descriptors, ids = [], []
            for layer in layers:
                kind = "application/vnd.oci.image.layer.v1.tar+gzip"
                descriptors.append({"mediaType": kind, "digest": f"sha256:{sha256(layer)}", "size": layer.stat().st_size})
                with gzip.open(layer) as plain:
                    ids.append(f"sha256:{hashlib.file_digest(plain, 'sha256').hexdigest()}")
                archive.add(layer, f"blobs/sha256/{sha256(layer)}")
            config = blob(
                archive,
                "application/vnd.oci.image.config.v1+json",
                {"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}},
            )
            kind = "application/vnd.oci.image.manifest.v1+json"
            manifest = {"schemaVersion": 2, "mediaType": kind, "config": config, "layers": descriptors}
            index = {"schemaVersion": 2, "manifests": [blob(archive, kind, manifest)]}
            entry(archive, "index.json", json.dumps(index).encode())
            entry(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')

    def layer(self, path: Path):
        with tarfile.open(path, "w:gz", compresslevel=6) as layer:
            layer.add(self.files(), "usr")

    def noise_layer(self, path: Path):
        with tarfile.open(path, "w:gz", compresslevel=1) as layer:
            entry(layer, "noise", os.urandom(self.used_mib * MIB // 4))

    def compose(self, image: Path, kind: str) -> str:
        """Puts a compose with this one image into the folder; returns its path below it."""
        row = {
            "container": {"type": "container", "format": "tar.xz", "subvariant": "Container_Base"},
            "raw-xz": {"type": "raw-xz", "format": "raw.xz", "subvariant": "Cloud_Base"},
            "vhd-compressed": {"type": "vhd-compressed", "format": "vhd.xz", "subvariant": "Cloud_Base"},
        }[kind]
        folder = self.folder / f"compose-{kind}-{image.name}"
        (folder / "metadata").mkdir(parents=True, exist_ok=True)
        link = folder / image.name
        if not link.is_symlink():
            link.symlink_to(image)
        row |= {
            "arch": "x86_64",
            "checksums": {"sha256": sha256(image)},
            "path": image.name,
            "size": image.stat().st_size,
        }
        about = {"id": COMPOSE, "date": "20260305", "type": "nightly", "respin": 0}
        document = {
            "header": {"type": "productmd.images", "version": "1.2"},
            "payload": {"compose": about, "images": {"Cloud": {"x86_64": [row]}}},
        }
        (folder / "metadata/images.json").write_text(json.dumps(document))
        return folder.name


def candidates() -> list[Path]:
    """Files to take, in an order that mixes all kinds and is the same every time."""
    found = []
    for source in SOURCES:
        for folder, _, names in os.walk(source):
            found += [Path(folder, name) for name in names]
    found = [path for path in found if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK)]
    found = [path for path in found if 4096 <= path.stat().st_size <= 64 * MIB]
    return sorted(found, key=lambda path: hashlib.sha256(bytes(path)).digest())


def entry(archive: tarfile.TarFile, name: str, content: bytes):
    header = tarfile.TarInfo(name)
    header.size = len(content)
    archive.addfile(header, io.BytesIO(content))


def blob(archive: tarfile.TarFile, kind: str, document: dict) -> dict:
    content = json.dumps(document).encode()
    digest = hashlib.sha256(content).hexdigest()
    entry(archive, f"blobs/sha256/{digest}", content)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(content)}


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sign(disk: Path):
    """Puts the boot signature in, without which no disk is published."""
    with disk.open("r+b") as file:
        file.seek(510)
        file.write(b"\x55\xaa")


def nonzero(disk: Path, block: int) -> int:
    """Bytes in the blocks of this size that hold anything."""
    zeros, found = bytes(block), 0
    with disk.open("rb") as file:
        while piece := file.read(block):
            if piece != zeros[: len(piece)]:
                found += len(piece)
    return found
