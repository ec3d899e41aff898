"""A server for the tests that are scripts, and what it needs to be one with TLS and keys."""
import pathlib
import re
import signal
import subprocess
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parent.parent


class Server:
    """`quantd serve` on the demo model, on ports of its own, ready. As a context it has to end with 0 at SIGTERM."""

    def __init__(self, quantd, settings=(), threads=1):
        command = [quantd, "serve", "--model", str(ROOT / "demo/model"), "--profile", "nf4-dq", "--threads", str(threads),
                   "--listen", "127.0.0.1:0", "--http", "127.0.0.1:0"]
        for setting in settings:
            command += ["--set", setting]
        self.log = tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=self.log)
        try:
            self.address = self._logged(r"listening on (\S+) \(grpc\)")
            self.http = self._logged(r"(\S+) \(http\)")
            self._logged(r"(ready after)")
        except AssertionError:
            self.stop(signal.SIGKILL)
            raise

    def _logged(self, pattern):
        for _ in range(600):
            self.log.seek(0)
            text = self.log.read()
            if found := re.search(pattern, text):
                return found.group(1)
            assert self.process.poll() is None, text
            time.sleep(0.05)
        raise AssertionError(f"no {pattern} in:\n{text}")

    def generated(self):
        """Tokens so far, from /metrics."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            return float(re.search(r"^quantd_generation_tokens_total\S* (\S+)$", answer.read().decode(), re.M).group(1))

    def __enter__(self):
        return self

    def __exit__(self, failure, *_):
        code = self.stop()
        assert failure or code == 0, f"exit code {code} after SIGTERM"

    def stop(self, how=signal.SIGTERM):
        if self.process.poll() is None:
            self.process.send_signal(how)
        code = self.process.wait(60)
        self.log.close()
        return code


def self_signed(folder):
    """Writes FOLDER/tls.crt for 127.0.0.1 and its key, FOLDER/tls.key."""
    subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
                    "-subj", "/CN=quantd", "-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/tls.key",
                    "-out", f"{folder}/tls.crt"], check=True, capture_output=True)


def new_key(quantd, name, folder, more=""):
    """Writes FOLDER/keys.yaml with one new key, whose entry ends with `more`, and returns the key."""
    made = subprocess.run([quantd, "keys", "new", name], check=True, capture_output=True, text=True)
    pathlib.Path(folder, "keys.yaml").write_text("keys:\n" + made.stdout + more)
    return re.search(r"qd_\S+", made.stderr).group()
