"""The result files of quantd_gpu, for stages written in Python: same shape, same rules (result_file.h)."""
import concurrent.futures
import hashlib
import json
import pathlib
import re
import sys
import time


def file_name_of(device):
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-") or "unnamed"


def build_of_script(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()[:16]


class ResultFile:
    def __init__(self, folder, device, stage, build, fresh=False):
        """build: which code makes the results; those of another are forgotten."""
        folder = pathlib.Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / (file_name_of(device) + ".json")
        self.root = json.loads(self.path.read_text()) if self.path.exists() else {}
        self.root["device"] = device
        stages = self.root.setdefault("stages", {})
        if fresh or stages.get(stage, {}).get("program") != build:
            stages[stage] = {"program": build, "quick": False, "items": {}}
        self.items = stages[stage]["items"]
        self.save()

    def save(self):
        part = self.path.with_suffix(".json.part")
        part.write_text(json.dumps(self.root, indent=0, sort_keys=True) + "\n")
        part.rename(self.path)


def run_items(results, items, seconds, jobs=1):
    """items: [(name, function giving a dict)], so many at once. Returns the exit code: 0, 1 failed, 3 out of time."""
    deadline = time.monotonic() + seconds
    pending = [(name, function) for name, function in items
               if name not in results.items or "error" in results.items[name]]
    failed = left = 0

    def value_of(function):
        if time.monotonic() > deadline:
            return None
        try:
            return function()
        except Exception as error:  # an item that fails is a result, and the next one is tried
            return {"error": f"{type(error).__name__}: {error}"[:3000]}

    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(value_of, function): name for name, function in pending}
        for future in concurrent.futures.as_completed(futures):
            name, value = futures[future], future.result()
            if value is None:
                left += 1
                continue
            failed += "error" in value
            print(("FAILED " if "error" in value else "") + name, json.dumps(value), flush=True)
            results.items[name] = value
            results.save()
    print(f"{len(items)} items, {failed} failed, {left} not begun; results in {results.path}")
    if failed:
        return 1
    if left:
        print("out of time: run the stage again to go on")
    return 3 if left else 0


def selftest():
    import tempfile
    with tempfile.TemporaryDirectory() as folder:
        results = ResultFile(folder, "A B (c)", "peers", "a")
        assert results.path.name == "a-b-c.json"
        calls = []

        def fails():
            calls.append("fails")
            raise ValueError("no")

        items = [("one", lambda: calls.append("one") or {"x": 1}), ("two", fails)]
        assert run_items(results, items, 60) == 1 and calls == ["one", "fails"]
        again = ResultFile(folder, "A B (c)", "peers", "a")
        assert again.items["one"] == {"x": 1} and "no" in again.items["two"]["error"]
        assert run_items(again, items, 60) == 1 and calls == ["one", "fails", "fails"]
        assert run_items(again, [("three", lambda: {})], -1) == 3
        assert run_items(again, [(str(i), lambda i=i: {"x": i}) for i in range(9)], 60, jobs=3) == 0
        assert again.items["8"] == {"x": 8}
        assert ResultFile(folder, "A B (c)", "peers", "a", fresh=True).items == {}
        again.save()
        assert ResultFile(folder, "A B (c)", "peers", "b").items == {}
        assert build_of_script(__file__) == build_of_script(__file__)


if __name__ == "__main__":
    selftest()
    print("results.py: as described")
    sys.exit(0)
