"""The driver quantd_gpu without a device: usage, a missing GPU, resuming, running out of time.

    python3 tests/bench/cuda/driver_test.py build/release/quantd_gpu

Runs on the backend `ref` and on `cuda` of a machine without a GPU; what needs neither is in results.py.
"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
import results as result_files  # noqa: E402

PROGRAM = pathlib.Path(sys.argv[1]).resolve() if len(sys.argv) > 1 else None
NO_DEVICE = not pathlib.Path("/dev/nvidia0").exists()


def run(*arguments):
    done = subprocess.run([str(PROGRAM), *arguments], capture_output=True, text=True, timeout=300)
    return done.returncode, done.stdout + done.stderr


class DriverTest(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)

    def stage(self, name, *more):
        return run(name, "--backend", "ref", "--quick", "--out", self.folder.name, *more)

    def stored(self, stage):
        (path,) = pathlib.Path(self.folder.name).glob("*.json")
        return json.loads(path.read_text())["stages"][stage]

    def test_wrong_usage_is_2(self):
        for arguments in ([], ["nonsense"], ["bench", "--no-such-flag", "1"], ["bench", "--out"],
                          ["bench", "--seconds", "soon"], ["bench", "--backend", "tpu"], ["tests"]):
            code, output = run(*arguments)
            self.assertEqual(code, 2, (arguments, output))

    @unittest.skipUnless(NO_DEVICE, "there is a GPU here")
    def test_without_a_gpu_every_stage_says_so_and_fails(self):
        for stage in ("facts", "conformance", "bench", "e2e"):
            code, output = run(stage, "--out", self.folder.name)
            self.assertEqual(code, 1, output)
            self.assertIn("no GPU", output)
        self.assertEqual(list(pathlib.Path(self.folder.name).iterdir()), [])

    def test_items_are_kept_and_not_run_again(self):
        code, output = self.stage("bench", "--only", "rms_norm")
        self.assertEqual(code, 0, output)
        first = self.stored("bench")
        self.assertEqual(sorted(first["items"]), ["add_rms_norm/m:3", "rms_norm/m:3"])
        code, output = self.stage("bench", "--only", "norm")
        self.assertEqual(code, 0, output)
        self.assertIn("2 items from an earlier run", output)
        self.assertEqual(self.stored("bench")["items"], first["items"])
        code, output = self.stage("bench", "--only", "rms_norm", "--fresh")
        self.assertNotIn("from an earlier run", output)

    def test_out_of_time_is_3_and_another_run_goes_on(self):
        code, output = self.stage("bench", "--seconds", "0", "--only", "gated")
        self.assertEqual(code, 3, output)
        self.assertEqual(self.stored("bench")["items"], {})
        code, output = self.stage("bench", "--only", "gated")
        self.assertEqual(code, 0, output)

    def test_results_of_another_program_are_forgotten(self):
        self.stage("bench", "--only", "gated")
        (path,) = pathlib.Path(self.folder.name).glob("*.json")
        root = json.loads(path.read_text())
        root["stages"]["bench"]["program"] = "another"
        root["stages"]["e2e"] = {"program": "another", "items": {"kept": {}}}
        path.write_text(json.dumps(root))
        self.stage("bench", "--only", "rms_norm")
        self.assertNotIn("gated_silu/m:3", self.stored("bench")["items"])
        self.assertIn("kept", self.stored("e2e")["items"])

    def test_a_result_file_that_is_not_json_is_refused(self):
        self.stage("bench", "--only", "gated")
        (path,) = pathlib.Path(self.folder.name).glob("*.json")
        path.write_text("{ half")
        code, output = self.stage("bench", "--only", "gated")
        self.assertEqual(code, 1, output)
        self.assertIn("not a JSON object", output)

    def test_a_test_that_fails_fails_the_stage(self):
        # ref under ref passes; a test that does not exist ran no test, which is a failure.
        code, output = self.stage("conformance", "--only", "GatherCopiesRows")
        self.assertEqual(code, 0, output)
        code, output = self.stage("conformance", "--only", "NoSuchTest")
        self.assertEqual(code, 2, output)

    def test_e2e_measures_a_tiny_model(self):
        code, output = self.stage("e2e", "--models", self.folder.name + "/models")
        self.assertEqual(code, 0, output)
        items = self.stored("e2e")["items"]
        self.assertEqual(sorted(items), ["tiny/nf4-dq", "tiny/nf4-dq/batch_invariant"])
        for item in items.values():
            self.assertGreater(item["decode_tokens_per_s"]["2"], 0)
            self.assertGreater(item["prefill_tokens_per_s"]["24"], 0)

    def test_results_are_of_the_build_that_the_program_names(self):
        code, output = run("build")
        self.assertEqual(code, 0, output)
        self.stage("bench", "--only", "gated")
        self.assertEqual(self.stored("bench")["program"], output.strip())

    def test_python_stages_store_alike(self):
        result_files.selftest()


if __name__ == "__main__":
    unittest.main(argv=sys.argv[:1])
