"""Builds an image by the very steps of deploy/docker/Dockerfile, without a container engine, and lives in it.

    sudo python3 tests/deploy/image_in_chroot.py --target cpu --work build/image

Debian's mmdebstrap stands for the base image; RUN, COPY, ENV, WORKDIR and the rest are carried out in chroots, in
the file's order. Then the image's ENTRYPOINT runs its CMD as its USER, process 1 of its own pid, mount and network
namespaces, with a read-only root, no capabilities and no new privileges, demo/model at /model: the HEALTHCHECK must
come to succeed, a generation must answer, STOPSIGNAL must end it with exit code 0. As root; needs mmdebstrap and
iproute2. A stage that is there already in --work is taken as it is. What an engine adds (layers, registries,
cgroups, its own parser) is not tried.
"""
import argparse
import fnmatch
import json
import os
import pathlib
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.parse

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
DOCKERFILE = ROOT / "deploy/docker/Dockerfile"
BASES = {"debian:12-slim": "bookworm"}
SLIM = ["/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*"]


def instructions(text):
    """(line number, instruction, arguments) of a Dockerfile."""
    logical, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if line.lstrip().startswith("#") or (not line.strip() and not logical):
            continue
        start = start if logical else number
        logical += line.rstrip().removesuffix("\\") + ("\n" if line.rstrip().endswith("\\") else "")
        if line.rstrip().endswith("\\"):
            continue
        name, _, arguments = logical.strip().partition(" ")
        yield start, name.upper(), re.sub(r"\s*\n\s*", " ", arguments.strip())
        logical = ""


class Stage:
    def __init__(self, name, base):
        self.name, self.base, self.steps = name, base, []


def stages(text):
    found = {}
    for number, name, arguments in instructions(text):
        if name == "FROM":
            base, _, alias = arguments.split()
            current = found[alias] = Stage(alias, base)
        else:
            current.steps.append((number, name, arguments))
    return found


def ignored(path, patterns):
    """Whether .dockerignore keeps `path` from the builder; the last pattern that matches it or a parent decides."""
    parents = [path, *(p.as_posix() for p in pathlib.PurePosixPath(path).parents)]
    result = False
    for pattern in patterns:
        if any(fnmatch.fnmatchcase(p, pattern.lstrip("!")) for p in parents):
            result = not pattern.startswith("!")
    return result


def context():
    """What the builder is sent: files of the repository that .dockerignore lets through."""
    patterns = [line for line in (DOCKERFILE.parent / "Dockerfile.dockerignore").read_text().splitlines()
                if line and not line.startswith("#")]
    files = subprocess.run(["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=ROOT, check=True,
                           capture_output=True, text=True).stdout.splitlines()
    return [f for f in files if not ignored(f, patterns) and (ROOT / f).is_file()]


class Builder:
    def __init__(self, work, binds, environment):
        self.work, self.binds, self.given = work, binds, environment
        self.stages, self.images, self.context = stages(DOCKERFILE.read_text()), {}, context()

    def build(self, name):
        """The configuration of a stage; its files are in work/NAME."""
        if name in self.images:
            return self.images[name]
        root = self.path(name)
        kept = self.work / f"{name}.json"
        if kept.exists():
            print(f"{name}: as it is in {root}")
            self.images[name] = json.loads(kept.read_text())
            return self.images[name]
        stage = self.stages.get(name)
        shutil.rmtree(root, ignore_errors=True)
        began = time.monotonic()
        if stage is None:
            config = self.bootstrap(name, root)
        else:
            config = json.loads(json.dumps(self.build(stage.base)))
            subprocess.run(["cp", "-a", "--reflink=auto", self.path(stage.base), root], check=True)
            for number, instruction, arguments in stage.steps:
                print(f"{name}: line {number}: {instruction} {arguments[:90]}", flush=True)
                getattr(self, instruction.lower())(config, root, arguments)
        size = subprocess.run(["du", "-sm", root], check=True, capture_output=True, text=True).stdout.split()[0]
        print(f"{name}: {time.monotonic() - began:.0f} s, {size} MiB", flush=True)
        kept.write_text(json.dumps(config))
        self.images[name] = config
        return config

    def path(self, name):
        return self.work / name.replace(":", "-")

    def bootstrap(self, name, root):
        options = [f"--dpkgopt=path-exclude={p}" for p in SLIM]
        subprocess.run(["mmdebstrap", "--quiet", "--variant=minbase", *options, BASES[name], self.path(name)], check=True)
        return {"env": {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}, "workdir": "/"}

    def run(self, config, root, arguments):
        command = json.loads(arguments) if arguments.startswith("[") else ["/bin/sh", "-c", arguments]
        mounts = ["mount -t proc proc proc", "mount --rbind /dev dev"]
        for source, target in [("/etc/resolv.conf", "etc/resolv.conf"), *self.binds]:
            target = target.lstrip("/")
            mounts.append(f"mkdir -p {os.path.dirname(target)} && touch {target} && mount --bind {source} {target}")
        variables = {**config["env"], **config.get("arg", {}), **self.given, "HOME": "/root"}
        # The last `cd` is the chroot's own: --skip-chdir would leave it outside.
        inside = ["env", "-i", *(f"{k}={v}" for k, v in variables.items()), "sh", "-c", 'cd "$0" && exec "$@"',
                  config["workdir"], *command]
        subprocess.run(["unshare", "--mount", "--pid", "--fork", "sh", "-ec",
                        "\n".join(mounts) + '\nexec chroot . "$@"', "sh", *inside], cwd=root, check=True)

    def copy(self, config, root, arguments):
        *sources, target = arguments.split()
        origin = None
        if sources[0].startswith("--from="):
            origin = sources.pop(0).removeprefix("--from=")
            self.build(origin)
        into = root / os.path.join(config["workdir"], target).lstrip("/")
        for source in sources:
            if origin:
                into.parent.mkdir(parents=True, exist_ok=True)
                subprocess.run(["cp", "-aHT", self.path(origin) / source.lstrip("/"), into], check=True)
                continue
            files = [f for f in self.context if f == source or f.startswith(source + "/")]
            if not files:
                sys.exit(f"COPY {source}: nothing of it is sent to the builder")
            for file in files:
                inner = os.path.relpath(file, source) if file != source else ""
                path = into / inner if inner else (into / file if target.endswith("/") else into)
                path.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(ROOT / file, path)

    def workdir(self, config, root, arguments):
        config["workdir"] = arguments
        (root / arguments.lstrip("/")).mkdir(parents=True, exist_ok=True)

    def env(self, config, root, arguments):
        config["env"].update(word.split("=", 1) for word in shlex.split(arguments))

    def arg(self, config, root, arguments):
        config.setdefault("arg", {}).update(word.split("=", 1) for word in shlex.split(arguments))

    def user(self, config, root, arguments):
        config["user"] = arguments

    def stopsignal(self, config, root, arguments):
        config["stopsignal"] = arguments

    def entrypoint(self, config, root, arguments):
        config["entrypoint"] = json.loads(arguments)

    def cmd(self, config, root, arguments):
        config["cmd"] = json.loads(arguments)

    def healthcheck(self, config, root, arguments):
        config["healthcheck"] = json.loads(arguments[arguments.index("["):])

    def expose(self, config, root, arguments):
        config["ports"] = [int(port) for port in arguments.split()]


def live(config, root, model):
    """Starts the image's command on `model`, probes it, generates, stops it."""
    user, group = config["user"].split(":")
    setup = ["mount --bind . .", "cd $PWD", "mkdir -p model tmp proc dev", f"mount --bind -o ro {model} model",
             "mount -t proc proc proc", "mount --rbind /dev dev", "mount -t tmpfs tmpfs tmp",
             "mount -o remount,bind,ro .", "ip link set lo up"]
    variables = [f"{k}={v}" for k, v in config["env"].items()]
    server = subprocess.Popen(
        ["unshare", "--mount", "--pid", "--net", "--ipc", "--fork", "sh", "-ec", "\n".join(setup)
         + f'\nexec setpriv --no-new-privs chroot --userspec={user}:{group} --groups={group} . "$@"', "sh",
         "/usr/bin/env", "-i", *variables, *config["entrypoint"], *config["cmd"]], cwd=root)
    began = time.monotonic()

    def first_process():
        children = pathlib.Path(f"/proc/{server.pid}/task/{server.pid}/children")
        return (children.read_text().split() or [""])[0] if server.poll() is None else sys.exit("it ended at once")

    def inside(*command, as_user=True, **options):
        enter = ["nsenter", "--target", first_process(), "--mount", "--pid", "--net", "--ipc", "--root", "--wd"]
        enter += ["--setuid", user, "--setgid", group] if as_user else []
        return subprocess.run([*enter, "env", "-i", *variables, *command], capture_output=True, text=True, **options)

    try:
        while inside(*config["healthcheck"]).returncode != 0:
            if time.monotonic() - began > 120:
                sys.exit("the HEALTHCHECK never succeeded")
            time.sleep(0.2)
        print(f"healthy after {time.monotonic() - began:.1f} s")
        process = first_process()
        status = pathlib.Path(f"/proc/{process}/status").read_text()
        wanted = {"Uid": f"{user}\t" * 3 + user, "NoNewPrivs": "1", "CapEff": "0" * 16, "NSpid": f"{process}\t1"}
        for key, value in wanted.items():
            assert f"{key}:\t{value}\n" in status, (key, value, status)
        written = inside("touch", "/etc/quantd/new", as_user=False)
        assert "Read-only file system" in written.stderr, written
        target = config["healthcheck"][-1]
        text = inside(*config["entrypoint"], "generate", "--target", target, "--prompt", "It was a cold evening, and",
                      "--max-tokens", "24", "--temperature", "0", check=True).stdout
        assert len(text.split()) > 8, text
        print("generated:", " ".join(text.split()))
        fetch = ["nsenter", "--target", process, "--net", sys.executable, "-c",
                 "import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read().decode())"]
        for page, phrase in (("/readyz", ""), ("/metrics", "quantd_generation_tokens_total")):
            got = subprocess.run([*fetch, urllib.parse.urljoin(f"http://127.0.0.1:{config['ports'][1]}", page)],
                                 capture_output=True, text=True, check=True).stdout
            assert phrase in got, got
        os.kill(int(process), getattr(signal, config["stopsignal"]))
        code = server.wait(timeout=60)
        assert code == 0, f"{config['stopsignal']}: exit code {code}"
        print(f"process 1 as {user}, root read-only, no capability; {config['stopsignal']}: exit code 0")
    finally:
        if server.poll() is None:
            os.kill(int(first_process()), signal.SIGKILL)
            server.wait()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", default="cpu")
    parser.add_argument("--work", default=ROOT / "build/image", type=pathlib.Path)
    parser.add_argument("--model", default=ROOT / "demo/model", type=pathlib.Path)
    parser.add_argument("--bind", action="append", default=[], metavar="HOST:IMAGE", help="a file RUN steps see")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="a variable RUN steps see")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    builder = Builder(args.work.resolve(), [b.split(":") for b in args.bind], dict(e.split("=", 1) for e in args.env))
    live(builder.build(args.target), builder.path(args.target), args.model.resolve())


if __name__ == "__main__":
    main()
