"""A server for checks: started on a free port with a database of its own, and ended in order."""

import contextlib
import os
import re
import signal
import subprocess
import tempfile
import time
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
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            "GRANARY_GRAINS__DATABASE_URL": f"sqlite:{folder}/granary.db",
            "GRANARY_TELEMETRY__LOG_FILTER": "info,ort=warn",  # the log says which port it is
            **{f"GRANARY_{name}": value for name, value in settings.items()},
        }
        log = Path(folder) / "log"
        with log.open("w") as output:
            command = [str(binary), "serve", "--port", "0"]
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=output, stdin=subprocess.DEVNULL)
        try:
            yield wait_until_ready(process, log)
        except BaseException:
            process.kill()
            process.wait()
            print(f"--- the server's last lines ---\n{''.join(log.open().readlines()[-15:])}")
            raise
        process.send_signal(signal.SIGTERM)
        status = process.wait(timeout=STOP_SECONDS)
        if status != 0:
            raise SystemExit(f"the server ended with exit status {status}: {log.read_text()[-2000:]}")


def wait_until_ready(process, log):
    """Returns the server's URL."""
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise SystemExit(f"the server did not start: {log.read_text()[-2000:]}")
        said = re.search(r'serving on http://[^\s"]*:(\d+)[\s"]', log.read_text())
        url = said and f"http://127.0.0.1:{said[1]}"
        with contextlib.suppress(OSError):  # a server that is connected to and silent raises no URLError
            if url and urllib.request.urlopen(f"{url}/health/ready", timeout=5).status == 200:
                return url
        time.sleep(0.05)
    raise SystemExit(f"the server was not ready after {START_SECONDS} s")
