"""A server for checks: started on a free port with a database of its own, and ended in order."""

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
START_SECONDS = 60
STOP_SECONDS = 40


@contextlib.contextmanager
def server(binary, **settings):
    """Runs `binary serve` from the repository and yields its URL; `settings` are GRANARY_ variables without that prefix.

    At the end it gets SIGTERM and must exit with 0: a server that does not stop in order fails the check.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "GRANARY_GRAINS__DATABASE_URL": f"sqlite:{folder}/granary.db",
            **{f"GRANARY_{name}": value for name, value in settings.items()},
        }
        log = Path(folder) / "log"
        with log.open("w") as output:
            command = [str(binary), "serve", "--port", str(port)]
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=output, stdin=subprocess.DEVNULL)
        url = f"http://127.0.0.1:{port}"
        try:
            wait_until_ready(process, url, log)
            yield url
        except BaseException:
            process.kill()
            process.wait()
            print(f"--- the server's last lines ---\n{''.join(log.open().readlines()[-15:])}")
            raise
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=STOP_SECONDS)
        if status != 0:
            raise SystemExit(f"the server ended with exit status {status}: {log.read_text()[-2000:]}")


def wait_until_ready(process, url, log):
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            if urllib.request.urlopen(f"{url}/health/ready", timeout=5).status == 200:
                return
        time.sleep(0.05)
    raise SystemExit(f"the server was not ready after {START_SECONDS} s")
