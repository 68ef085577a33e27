"""What `scripts/setup` and `scripts/setup-test` share: the git-ignored `.granary/` folder, and pip.

The folder holds only what can be made again. A step makes its output in a staging folder, renames it into place and then
records it with a stamp, so that a run killed at any point leaves either the old output, the new one, or none, and the next
run repairs it. One run at a time writes: the others wait at a lock.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent
REPOSITORY = SCRIPTS.parent
REQUIREMENTS = SCRIPTS / "requirements-setup.txt"
# Emptied by each run: a name that nobody else has in a folder that is not for set-up alone, such as a home.
STAGING = ".setup"


class Failure(Exception):
    """Why set-up cannot go on and what to do about it, in one sentence."""


def key_of(*parts):
    """A hash over files (Path) and other values: an output made under another key is made again."""
    digest = hashlib.sha256()
    for part in parts:
        content = part.read_bytes() if isinstance(part, Path) else repr(part).encode()
        digest.update(b"%d:" % len(content) + content)
    return digest.hexdigest()


def sha256_of(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def megabytes(*paths):
    """The size of files and folders in words; links count nothing."""
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("*"))]
    size = sum(file.stat().st_size for file in files if file.is_file() and not file.is_symlink())
    return f"{size / 1e6:.1f} MB" if size >= 1e5 else f"{size / 1e3:.0f} kB"


class DataFolder:
    """`.granary/` at the repository root, or the folder that GRANARY_MODELS__DATA_DIR names."""

    def __init__(self):
        self.root = Path(os.environ.get("GRANARY_MODELS__DATA_DIR") or REPOSITORY / ".granary").absolute()

    def __truediv__(self, path):
        return self.root / path

    @contextlib.contextmanager
    def lock(self):
        """Held while anything is written; another run waits here and then mostly finds its work done."""
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            self.refuse_to_run_the_owners_code()
            # Nothing of it is written, nor a link followed: the folder may be another user's, and this one root.
            lock = os.fdopen(os.open(self.root / ".lock", os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW, 0o666), "w")
        except OSError as error:
            raise Failure(f"{self.root} cannot be written ({error.strerror}); GRANARY_MODELS__DATA_DIR names another folder.") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say("another set-up is running in this folder; waiting for it ...")
                fcntl.flock(lock, fcntl.LOCK_EX)
            with contextlib.suppress(FileExistsError), open(self.root / ".gitignore", "x") as ignored:
                ignored.write("*\n")
            shutil.rmtree(self.root / STAGING, ignore_errors=True)  # what killed runs left
            yield

    def refuse_to_run_the_owners_code(self):
        """Root imports the packages in this folder, and believes its stamps: whoever has the folder would be root. So would
        whoever has these scripts, which root runs already."""
        owner = self.root.stat().st_uid
        if os.geteuid() == 0 and owner not in (0, Path(__file__).stat().st_uid):
            raise Failure(
                f"{self.root} belongs to the user {owner}, and root would run what they have put there: run it as that user "
                f"(sudo -u '#{owner}' ...), or name a folder of root's with GRANARY_MODELS__DATA_DIR."
            )

    @contextlib.contextmanager
    def staging(self):
        """A new folder on the same file system, removed at the end: what is ready has been published by then."""
        (self.root / STAGING).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=self.root / STAGING) as folder:
            yield Path(folder)

    def publish(self, staged, target):
        """Moves a finished folder to `target`, in place of what is there. Who has the old files open keeps them."""
        target = self.root / target
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.staging() as trash:
            try:
                if target.exists():
                    target.rename(trash / "old")
                staged.rename(target)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                raise Failure(
                    f"{target.parent} is on another file system than {self.root / STAGING}, from where finished folders "
                    "are moved into it: put both on one, or name another folder with GRANARY_MODELS__DATA_DIR."
                ) from error

    def link(self, target, name):
        """Makes the relative symbolic link `name` point at `target`, at once."""
        with self.staging() as staged:
            (staged / "link").symlink_to(target)
            os.replace(staged / "link", self.root / name)

    def fresh(self, step, key):
        """Whether `step` was recorded under `key` and all its files are still there, whole by their sizes."""
        try:
            stamp = json.loads((self.root / "stamps" / f"{step}.json").read_text())
            return stamp["key"] == key and all((self.root / p).stat().st_size == size for p, size in stamp["files"].items())
        except (OSError, ValueError, KeyError):
            return False

    def record(self, step, key, *outputs):
        """Remembers the files below `outputs` as what `step` made under `key`."""
        paths = [path for output in outputs for path in [self.root / output, *(self.root / output).rglob("*")]]
        files = {str(path.relative_to(self.root)): path.stat().st_size for path in sorted(paths) if path.is_file()}
        with self.staging() as staged:
            (staged / "stamp").write_text(json.dumps({"key": key, "files": files}, indent=1))
            (self.root / "stamps").mkdir(exist_ok=True)
            os.replace(staged / "stamp", self.root / "stamps" / f"{step}.json")


# --- pip -----------------------------------------------------------------------------------------------------------------


def download(folder, requirement, sha256, for_cpython=None):
    """Fetches one wheel with this SHA-256 into `folder` and returns its path.

    `for_cpython` (`311`, say) asks for the wheel of that CPython and this machine's processor, whichever Python runs: what
    is wanted of it is native code. Without it, the wheel must fit any Python.
    """
    pins = folder / "requirements.txt"
    pins.write_text(f"{requirement} --hash=sha256:{sha256}\n")
    tags = []
    if for_cpython:
        tags = ["--implementation=cp", f"--python-version={for_cpython}", f"--abi=cp{for_cpython}"]
        tags += [f"--platform=manylinux_2_28_{platform.machine()}"]
    pip("download", "--no-deps", "--require-hashes", *tags, "--dest", str(folder), "--requirement", str(pins))
    (wheel,) = folder.glob("*.whl")
    return wheel


def ensure_writer(data):
    """Installs what write_onnx.py imports, once, below the data folder. The lock is held."""
    key = key_of(REQUIREMENTS, sys.version_info[:2], platform.machine())
    if not data.fresh("python", key):
        with data.staging() as staged:
            options = ["--no-deps", "--require-hashes", "--no-compile", "--target", str(staged / "python")]
            pip("install", *options, "--requirement", str(REQUIREMENTS))
            data.publish(staged / "python", "python")
        data.record("python", key, "python")
        say(f"installed the ONNX writer's Python packages: {megabytes(data / 'python')}")


def write_onnx(data, *arguments):
    """Has scripts/write_onnx.py write a model folder, which is its first argument."""
    run_writer(data, "write_onnx.py", *arguments)


def run_writer(data, script, *arguments):
    """Runs a script of this folder with the packages of `ensure_writer`."""
    environment = {**os.environ, "PYTHONPATH": str(data / "python"), "PYTHONDONTWRITEBYTECODE": "1"}
    # NumPy's threads wait for each other by spinning: on a busy machine two take several times as long as one.
    environment["OPENBLAS_NUM_THREADS"] = "1"
    command = [sys.executable, "-s", str(SCRIPTS / script), *map(str, arguments)]
    finished = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        lines = finished.stderr.strip().splitlines() or [f"exit status {finished.returncode}"]
        raise Failure(f"scripts/{script} failed on {arguments[0]}: {lines[-1]}")


def pip(verb, *arguments):
    """Runs pip quietly, wheels only. Its own settings (an index, a folder of wheels, a proxy) are in force."""
    command = [sys.executable, "-m", "pip", verb, "--quiet", "--disable-pip-version-check", "--no-input"]
    # A configured `user = true` contradicts --target, and a folder of its own is as good as a virtual environment.
    environment = {**os.environ, "PIP_USER": "0", "PIP_REQUIRE_VIRTUALENV": "0", "PIP_ROOT_USER_ACTION": "ignore"}
    command += ["--retries=2", "--only-binary=:all:", *arguments]
    finished = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if finished.returncode:
        raise Failure(explain(finished.stderr))


NO_NETWORK_SIGNS = (
    "NewConnectionError", "ConnectTimeout", "ReadTimeout", "ProxyError", "NameResolutionError", "Failed to establish",
)  # fmt: skip
NO_TRUST_SIGNS = ("CERTIFICATE_VERIFY_FAILED", "SSLCertVerificationError")


def explain(stderr):
    """What pip's error output comes down to."""
    if "No module named pip" in stderr:
        return f"{sys.executable} has no pip: install it (Debian: apt-get install python3-pip) or put another python3 first."
    if "DO NOT MATCH THE HASHES" in stderr:
        names = [line.split(" from ")[0].strip() for line in stderr.splitlines() if " from " in line]
        return f"the package index served a file whose SHA-256 is not the pinned one ({', '.join(names)}): it is not used."
    if any(sign in stderr for sign in NO_TRUST_SIGNS):
        return (
            "the certificate of the package index is not trusted: where a proxy on the way puts its own in place of it, "
            "PIP_CERT names the file of the proxy's certificate authority."
        )
    if any(sign in stderr for sign in NO_NETWORK_SIGNS):
        return (
            "no Python package index could be reached: set-up needs the network once "
            "(pip's own settings, PIP_INDEX_URL and PIP_FIND_LINKS among them, are honoured)."
        )
    lines = stderr.strip().splitlines() or ["no message"]
    if "(from versions: none)" in stderr:
        # pip says the same when the index refuses or fails, and keeps what it answered to itself.
        names = [line.split(" requirement ")[-1].split(" ")[0] for line in lines if "(from versions: none)" in line]
        warnings = [line.removeprefix("WARNING: ") for line in lines if line.startswith("WARNING: ")]
        return (
            f"the package index lists no wheel of {names[-1]} for this machine, or answers with an error: "
            f"{warnings[-1] if warnings else f'`python3 -m pip download --no-deps --verbose {names[-1]}` shows which'}."
        )
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    # Of what pip does not expect it prints a traceback.
    return f"pip failed: {lines[-1] if not errors or errors[-1] == 'Exception:' else errors[-1]}"


# --- the terminal --------------------------------------------------------------------------------------------------------


def say(sentence):
    print(f"{Path(sys.argv[0]).name}: {sentence}", flush=True)


def run(main):
    """Calls `main`; a Failure, or Ctrl-C, ends the program with one line on standard error."""
    name = Path(sys.argv[0]).name
    try:
        check_machine()
        main()
    except Failure as failure:
        sys.exit(f"{name}: {failure}")
    except KeyboardInterrupt:
        sys.exit(f"{name}: stopped; the next run goes on from here.")
    except subprocess.SubprocessError as error:
        sys.exit(f"{name}: {ending(error)}; the next run goes on from here.")
    except OSError as error:
        sys.exit(f"{name}: {error}; the next run goes on from here.")


def ending(error):
    """How a program ended, or did not, that was to succeed; without its arguments, which may be whole scripts."""
    program = Path(error.cmd[0]).name
    if isinstance(error, subprocess.TimeoutExpired):
        return f"{program} was stopped after {error.timeout:.0f} s"
    return f"{program} failed with exit status {error.returncode}"


def check_machine():
    """Refuses what no pinned wheel fits, before anything is fetched."""
    if sys.version_info < (3, 11):
        raise Failure(f"Python 3.11 or later is needed; {sys.executable} is {platform.python_version()}.")
    libc, version = platform.libc_ver()
    old = libc != "glibc" or tuple(map(int, version.split(".")[:2])) < (2, 28)
    if sys.platform != "linux" or platform.machine() not in ("x86_64", "aarch64") or old:
        raise Failure(
            f"the pinned runtime libraries are for Linux on x86_64 or aarch64 with glibc 2.28 or later, and this is "
            f"{platform.system()} on {platform.machine()} with {libc or 'an unknown C library'} {version}; "
            "set ORT_DYLIB_PATH to an ONNX Runtime of your own, 1.24 or later."
        )
