"""The files of `cluster/`: right as they stand, wrong with any key misspelt, and of the versions that are tested."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from flops_fit_ray import __version__
from tests.hangs import HANG_SECONDS

CLUSTER = Path(__file__).parent.parent / "cluster"
YAML = sorted(CLUSTER.glob("*.yaml"))
FREE = {"gpu"}  # a kind of node, and its owner's to name
BASH = shutil.which("bash") or "bash"


def test_all_of_them_are_looked_at() -> None:
    assert {path.name for path in CLUSTER.iterdir()} == {
        *("aws.yaml", "gcp.yaml", "rayjob.yaml", "raycluster.yaml"),
        *("slurm.sh", "Dockerfile", "README.md"),
    }


@pytest.mark.parametrize("path", YAML, ids=lambda path: str(path.name))
def test_it_is_right_and_any_misspelt_key_is_refused(path: Path) -> None:
    from tests.cluster_schemas import check_yaml, misspelt  # takes seconds, which only the worker with this file pays

    text = path.read_text()
    check_yaml(text)
    accepted = []
    for key, wrong in misspelt(text):
        try:
            check_yaml(wrong)
        except Exception:  # noqa: BLE001, S112 - whichever validator it was
            continue
        accepted.append(key)
    assert set(accepted) <= FREE, accepted


def test_options_of_commands_are_those_of_the_commands() -> None:
    from tests.cluster_schemas import check_yaml

    text = (CLUSTER / "aws.yaml").read_text()
    with pytest.raises(AssertionError, match="--dashbord-host"):
        check_yaml(text.replace("--dashboard-host", "--dashbord-host"))
    text = (CLUSTER / "rayjob.yaml").read_text()
    with pytest.raises(AssertionError, match="--slot"):
        check_yaml(text.replace("--slots 8", "--slot 8"))


def test_versions_are_those_that_are_tested() -> None:
    pins = (Path(__file__).parent.parent / "constraints.txt").read_text()
    texts = {path.name: path.read_text() for path in CLUSTER.iterdir()}
    ray, torch = (re.search(rf"^{name}==(.+)$", pins, re.M) for name in ("ray", "torch"))
    assert ray and torch and version("ray") == ray[1]
    assert f"FROM rayproject/ray:{ray[1]}-py311\n" in texts["Dockerfile"]  # requires-python's floor
    assert f"torch=={torch[1]} " in texts["Dockerfile"]
    for name, text in texts.items():
        assert set(re.findall(r"flops-fit-ray:([\d.]+\d)", text)) <= {__version__}, name
        assert set(re.findall(r'rayVersion: "(.+)"', text)) <= {ray[1]}, name
    assert all(f"flops-fit-ray:{__version__}" in texts[path.name] for path in YAML)


def test_nobody_enters_without_a_token_and_dashboards_are_not_public() -> None:
    for path in [*YAML, CLUSTER / "slurm.sh"]:
        text = path.read_text()
        assert "mode: token" in text or "RAY_AUTH_MODE=token" in text, path.name
        assert "--dashboard-host=127.0.0.1" in text or "serviceType: ClusterIP" in text, path.name
        assert "0.0.0.0" not in text, path.name  # noqa: S104 - it is looked for, not bound to
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "Dockerfile").read_text()


def instructions() -> list[list[str]]:
    text = re.sub(r"\\\n", " ", (CLUSTER / "Dockerfile").read_text())
    return [line.split() for line in text.splitlines() if line.strip() and not line.startswith("#")]


def test_the_image_is_made_by_instructions_that_there_are() -> None:
    assert list(dict.fromkeys(words[0] for words in instructions())) == ["FROM", "COPY", "RUN", "ENV"]


def test_the_image_has_what_a_wheel_is_built_from_and_nothing_else(tmp_path: Path) -> None:
    """The context that .dockerignore leaves is the files that are copied, and a wheel can be built from a copy."""
    root = CLUSTER.parent
    first, *rules = [r for r in (root / ".dockerignore").read_text().splitlines() if not r.startswith("#")]
    kept = {rule[1:] for rule in rules if rule.startswith("!")}
    copies = [words[2:] for words in instructions() if words[0] == "COPY"]  # behind --chown
    assert first == "*" and kept == {source for *sources, _ in copies for source in sources}
    assert {"**/__pycache__", "**/runs"} == set(rules) - {f"!{name}" for name in kept}
    leave = shutil.ignore_patterns("__pycache__", "runs")
    for *sources, target in copies:
        place = tmp_path / target.removeprefix("/home/ray/flops_fit_ray").strip("/")
        for source in sources:
            if (root / source).is_dir():
                shutil.copytree(root / source, place, ignore=leave)
            else:
                shutil.copy(root / source, place)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(build, cwd=tmp_path, check=True, capture_output=True, text=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"flops_fit_ray/cli/__init__.py", "flops_fit_ray/py.typed", "flops_fit_ray/demo/sweep.yaml"} <= names


def lint(script: Path) -> list[str]:
    commands = [
        [BASH, "-n", str(script)],
        [str(Path(sys.executable).parent / "shellcheck"), "-f", "gcc", str(script)],
    ]
    done = [subprocess.run(command, capture_output=True, text=True, check=False) for command in commands]
    return [line for d in done for line in (d.stdout + d.stderr).splitlines()]


def test_the_slurm_script_is_clean_and_a_misspelt_variable_is_refused(tmp_path: Path) -> None:
    from tests.cluster_schemas import check_commands

    script = CLUSTER / "slurm.sh"
    assert lint(script) == []
    directives = [line for line in script.read_text().splitlines() if "SBATCH" in line]
    assert len(directives) >= 3 and all(line.startswith("#SBATCH --") for line in directives)
    with pytest.raises(AssertionError, match="--min-node"):
        check_commands(script.read_text().replace("--min-nodes", "--min-node"))
    check_commands(script.read_text())
    wrong = tmp_path / "slurm.sh"
    wrong.write_text(script.read_text().replace('wait "$step"', 'wait "$stpe"'))
    assert any("stpe" in line for line in lint(wrong))


RAY = """#!/usr/bin/env bash
while [ "$1" != "--" ]; do shift; done
shift
exec "$@"
"""
PYTHON = f"""#!/usr/bin/env bash
case "$*" in *flops_fit_ray.run*) exec {sys.executable} "$DRIVER" "$@";; *) exec {sys.executable} "$@";; esac
"""
DRIVER = """
import signal, sys, time, pathlib
signal.signal(signal.SIGTERM, lambda *_: sys.exit(4))
pathlib.Path(sys.argv[-1]).write_text(" ".join(sys.argv[1:]))
time.sleep(600 if "--stay" in sys.argv else 0)
sys.exit(0)
"""


@pytest.mark.parametrize(("stay", "code"), [(True, 4), (False, 0)])
def test_the_slurm_script_stops_the_driver_in_time_and_requeues(stay: bool, code: int, tmp_path: Path) -> None:
    """The script itself, with stand-ins for Slurm's and Ray's commands, and a driver that ends as ours does."""
    for name, text in {
        "srun": '#!/usr/bin/env bash\nexec "$@"\n',
        "scontrol": '#!/usr/bin/env bash\nif [ "$1" = show ]; then echo node1; else echo "scontrol $*"; fi\n',
        "ray": RAY,
        "python": PYTHON,
    }.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "driver.py").write_text(DRIVER)
    begun = tmp_path / "begun"
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "DRIVER": str(tmp_path / "driver.py"),
        **{"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"},
    }
    words = ["spec.yaml", "/shared/out", *(["--stay"] if stay else []), str(begun)]
    script = subprocess.Popen(
        [BASH, str(CLUSTER / "slurm.sh"), *words], env=environment, stdout=subprocess.PIPE, text=True
    )
    until = time.monotonic() + 300
    while not begun.exists() and time.monotonic() < until:
        time.sleep(0.05)
    if stay:
        script.send_signal(signal.SIGUSR1)
    said, _ = script.communicate(timeout=HANG_SECONDS)
    assert script.returncode == code
    assert ("scontrol requeue 7" in said) == stay
    assert "-m flops_fit_ray.run spec.yaml --output /shared/out --address node1:6379" in begun.read_text()


def test_the_slurm_script_says_what_it_needs() -> None:
    done = subprocess.run([BASH, str(CLUSTER / "slurm.sh")], capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "usage: sbatch slurm.sh SPEC OUTPUT" in done.stderr
