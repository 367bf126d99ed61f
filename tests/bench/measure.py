"""Runs the ways to publish an image side by side and prints what each took. `tests/measure` starts it."""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from inputs import COMPOSE, MIB, Inputs, nonzero, sha256

ROOT = Path(__file__).resolve().parent.parent.parent
TOOL = ROOT / "target/release/examples/measure"
PROGRAM = ROOT / "target/release/cloud-image-uploader"
RUNNER = ROOT / "tests/bench/runner.py"
RELEASE_DATA = ROOT / "tests/fixtures/release-data"
BUFFER_MEMORY_MIB = 512


@dataclass
class Run:
    """What one process and its children took: seconds, seconds, and MiB. The peak is that of the largest of them."""

    wall: float
    cpu: float
    peak: float
    written: float
    sent: float = 0.0


class World:
    """Where things are read from and sent to."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.server = subprocess.Popen([TOOL, "serve", folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.files, self.sink = self.server.stdout.readline().split()

    def run(self, command: list, folder: Path, variables: dict | None = None) -> Run:
        """Runs a command with all its temporary files in a folder of its own."""
        self.sent()
        environment = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        environment |= {"TMPDIR": str(folder), "PATH": environment["PATH"] + ":/usr/sbin:/sbin"}
        environment |= variables or {}
        log = folder / "log"
        words = [str(word) for word in (sys.executable, "-IS", RUNNER, log, *command)]
        answer = subprocess.run(words, env=environment, stdout=subprocess.PIPE, check=True)
        status, *figures = json.loads(answer.stdout)
        if status != 0:
            sys.exit(f"{' '.join(words)} failed:\n{log.read_text(errors='replace')[-4000:]}")
        return Run(*figures, self.sent())

    def sent(self) -> float:
        return sent(self.sink)

    def close(self):
        self.server.stdin.close()
        self.server.wait()


def sent(sink: str) -> float:
    with urllib.request.urlopen(f"{sink}/counts") as answer:
        return json.load(answer)["bytes"] / MIB


@contextmanager
def azure():
    """A gallery and a sink for page blobs with nothing in them."""
    server = subprocess.Popen([TOOL, "azure"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield json.loads(server.stdout.readline())
    finally:
        server.stdin.close()
        server.wait()


@contextmanager
def scratch(folder: Path):
    with tempfile.TemporaryDirectory(dir=folder) as path:
        yield Path(path)


@contextmanager
def registry(folder: Path):
    """docker-registry with nothing in it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = {
        "version": "0.1",
        "log": {"level": "error", "accesslog": {"disabled": True}},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}", "secret": "measure"},
    }
    (folder / "config.yml").write_text(json.dumps(config))
    with (folder / "registry.log").open("wb") as log:
        server = subprocess.Popen(["docker-registry", "serve", folder / "config.yml"], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port)).close()
                break
            except ConnectionRefusedError:
                if time.monotonic() > deadline or server.poll() is not None:
                    sys.exit("docker-registry does not start")
                time.sleep(0.02)
        yield f"localhost:{port}"
    finally:
        server.terminate()
        server.wait()


def program(world: World, inputs: Inputs, image: Path, kind: str, folder: Path, provider: str) -> list:
    """The program itself on a compose with this image as one of a kind."""
    config = folder / "config.toml"
    config.write_text(
        f'[consumer_config]\nrelease_metadata_url = "{RELEASE_DATA}/release.json"\nbodhi_url = "{RELEASE_DATA}"\n{provider}'
    )
    compose = f"{world.files}/{inputs.compose(image, kind)}"
    return [PROGRAM, "--conf", config, "reconsume", "--compose", compose]


def disk_ways(world: World, inputs: Inputs, image: Path) -> dict:
    size, digest = image.stat().st_size, sha256(image)
    url = f"{world.files}/{image.name}"

    def python():
        with scratch(inputs.folder) as folder:
            way = Path(__file__).with_name("python_way.py")
            return world.run([sys.executable, way, url, digest, folder, world.sink], folder)

    def command(*words):
        with scratch(inputs.folder) as folder:
            return world.run(words, folder)

    def tool(shape, location):
        return lambda: command(TOOL, "run", shape, world.sink, location, size, digest)

    def local():
        with scratch(inputs.folder) as folder:
            provider = f'[consumer_config.local]\ndirectory = "{folder}/images"\n'
            run = world.run(program(world, inputs, image, "raw-xz", folder, provider), folder)
            disk = folder / "images" / COMPOSE / "x86_64" / image.name.removesuffix(".xz")
            kept = disk.stat()
            if kept.st_size != image.with_suffix("").stat().st_size:
                sys.exit(f"{disk} has {kept.st_size} bytes")
            run.sent = kept.st_blocks * 512 / MIB
            run.written = max(0.0, run.written - run.sent)
            return run

    def gallery():
        with scratch(inputs.folder) as folder, azure() as cloud:
            command = program(world, inputs, image, "vhd-compressed", folder, cloud["section"])
            run = world.run(command, folder, cloud["environment"])
            run.sent = sent(cloud["sink"])
            return run

    return {
        "Python": python,
        "xz -dc -T2": lambda: command("sh", "-c", 'exec xz -dc -T2 "$0" > /dev/null', image),
        "decode alone": tool("nothing", image),
        "dense (S3 parts)": tool("dense", url),
        "sparse (EBS blocks)": tool("ebs", url),
        "sparse (page blob)": tool("pages", url),
        "sparse (local file)": local,
        "sparse (Azure)": gallery,
    }


def container_ways(world: World, inputs: Inputs, image: Path) -> dict:
    def push(make):
        with scratch(inputs.folder) as data, registry(data) as host, scratch(inputs.folder) as folder:
            run = world.run(make(host, folder), folder)
            run.sent = sum(path.stat().st_size for path in (data / "data").rglob("*") if path.is_file()) / MIB
            return run

    def skopeo(threads):
        script = (
            f'xz -dc {threads} "$0" > "$1" && '
            'skopeo --insecure-policy copy --dest-tls-verify=false "oci-archive:$1" "docker://$2"'
        )
        return lambda host, folder: ["sh", "-c", script, image, folder / "plain.oci.tar", f"{host}/team/fedora:43"]

    def ours(host, folder):
        provider = (
            "[consumer_config.container]\npublish_amqp_messages = false\n"
            '[consumer_config.container.repos]\nContainer_Base = "fedora"\n'
            f'[[consumer_config.container.registries]]\nurl = "{host}/team"\ninsecure = true\n'
        )
        return program(world, inputs, image, "container", folder, provider)

    ways = {
        "xz -d, skopeo copy": lambda: push(skopeo("")),
        "xz -d -T2, skopeo copy": lambda: push(skopeo("-T2")),
        "this program": lambda: push(ours),
    }
    return {name: way for name, way in ways.items() if name == "this program" or "large" not in image.name}


def alternate(ways: dict, runs: int) -> dict[str, Run]:
    """Every way once, then every way again; the median of each figure, and the highest peak."""
    results = {name: [] for name in ways}
    for number in range(runs):
        for name, way in ways.items():
            results[name].append(way())
            print(f"  {number + 1}/{runs} {name}: {results[name][-1].wall:.1f} s", file=sys.stderr, flush=True)
    return {name: median(found) for name, found in results.items()}


def median(runs: list[Run]) -> Run:
    def middle(field):
        return statistics.median(getattr(run, field) for run in runs)

    return Run(middle("wall"), middle("cpu"), max(run.peak for run in runs), middle("written"), middle("sent"))


def table(title: str, results: dict[str, Run], first: str):
    decode = results.get("decode alone")
    head = ["way", "wall s", "CPU s", "peak MiB", "temporary disk MiB", "sent MiB"]
    head += [f"times faster than {first}"] * (first in results) + ["wall / decode alone"] * (decode is not None)
    print(f"\n### {title}\n")
    print(f"| {' | '.join(head)} |\n| --- |{' ---: |' * (len(head) - 1)}")
    for name, run in results.items():
        cells = [name, f"{run.wall:.2f}", f"{run.cpu:.2f}", f"{run.peak:.0f}", f"{run.written:.0f}", f"{run.sent:.0f}"]
        cells += [f"{results[first].wall / run.wall:.2f}"] if first in results else []
        cells += [f"{run.wall / decode.wall:.2f}"] if decode else []
        print(f"| {' | '.join(cells)} |")
    sys.stdout.flush()


class Targets:
    """What was promised, and whether it is so."""

    def __init__(self):
        self.rows = []

    def at_least(self, name: str, value: float, bound: float):
        self.rows.append((name, f"{value:.2f}", f"at least {bound:g}", value >= bound))

    def at_most(self, name: str, value: float, bound: float):
        self.rows.append((name, f"{value:.2f}", f"at most {bound:g}", value <= bound))

    def print(self):
        print("\n### Targets\n\n| measure | found | target | |\n| --- | ---: | ---: | --- |")
        for name, value, bound, met in self.rows:
            print(f"| {name} | {value} | {bound} | {'met' if met else '**missed**'} |")


def measure_disk(world: World, inputs: Inputs, name: str, runs: int, targets: Targets):
    image = inputs.make(name)
    plain = image.with_suffix("")
    results = alternate(disk_ways(world, inputs, image), runs)
    packed, unpacked = image.stat().st_size / MIB, plain.stat().st_size / MIB
    table(f"{name}: {packed:.0f} MiB of xz, {unpacked:.0f} MiB of disk", results, "Python")
    python, decode = results["Python"], results["decode alone"]
    ours = [run for way, run in results.items() if way not in ("Python", "xz -dc -T2")]
    targets.at_most(f"{name}: highest peak, MiB", max(run.peak for run in ours), 256)
    targets.at_most(f"{name}: temporary disk, MiB", max(run.written for run in ours), 1)
    blocks = {"sparse (EBS blocks)": 512 << 10, "sparse (page blob)": 4 << 20, "sparse (Azure)": 4 << 20}
    for way, block in blocks.items():
        least = nonzero(plain, block) / MIB
        targets.at_most(f"{name}, {way}: sent / non-zero blocks", results[way].sent / least, 1.05)
    if name != "sparse":
        return
    targets.at_least("dense (S3 parts): times faster than Python", python.wall / results["dense (S3 parts)"].wall, 2.5)
    for way in [way for way in results if way.startswith("sparse")]:
        targets.at_least(f"{way}: times faster than Python", python.wall / results[way].wall, 5)
        targets.at_most(f"{way}: wall / decode alone", results[way].wall / decode.wall, 1.15)
    targets.at_least("decode alone: times faster than xz -dc -T2", results["xz -dc -T2"].wall / decode.wall, 1.6)
    four = []
    for other in ("sparse", "single", "extents", "second"):
        path = inputs.make(other)
        four += [f"{world.files}/{path.name}", path.stat().st_size, sha256(path)]
    with scratch(inputs.folder) as folder:
        run = world.run([TOOL, "run", "ebs", world.sink, *four], folder)
    table("four images at once", {"sparse (EBS blocks)": run}, "Python")
    targets.at_most("four images in flight: peak, MiB", run.peak, BUFFER_MEMORY_MIB + 128)


def measure_container(world: World, inputs: Inputs, name: str, runs: int, targets: Targets):
    image = inputs.make(name)
    results = alternate(container_ways(world, inputs, image), 1 if name == "large" else runs)
    table(f"{name}: {image.stat().st_size / MIB:.0f} MiB archive into docker-registry", results, "xz -d, skopeo copy")
    ours = results["this program"]
    targets.at_most(f"{name}: highest peak, MiB", ours.peak, 256)
    targets.at_most(f"{name}: temporary disk, MiB", ours.written, 1)
    if name == "container":
        faster = results["xz -d, skopeo copy"].wall / ours.wall
        targets.at_least("container: times faster than xz -d and skopeo copy", faster, 2)


def main():
    parser = argparse.ArgumentParser(prog="tests/measure")
    parser.add_argument("--small", action="store_true", help="an eighth of everything; for a try")
    parser.add_argument("--runs", type=int, default=3, help="runs of each way (3)")
    parser.add_argument("--only", default="", help="inputs whose name holds this")
    parser.add_argument("folder", nargs="?", type=Path, help="where inputs are made and kept")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve() if arguments.folder else Path(tempfile.mkdtemp(prefix="measure-"))
    inputs = Inputs(folder, arguments.small, TOOL)
    measures = {
        "sparse": measure_disk,
        "single": measure_disk,
        "extents": measure_disk,
        "container": measure_container,
        "large": measure_container,
    }
    chosen = [name for name in measures if arguments.only in name]
    for name in chosen:
        inputs.make(name)
    world = World(inputs.folder)
    targets = Targets()
    print(f"{os.cpu_count()} processors; load average at the start {os.getloadavg()[0]:.1f}")
    try:
        for name in chosen:
            measures[name](world, inputs, name, arguments.runs, targets)
    finally:
        world.close()
        if not arguments.folder:
            shutil.rmtree(folder)
    targets.print()
    print(f"\nload average at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
