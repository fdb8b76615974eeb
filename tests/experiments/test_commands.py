import os
import subprocess
import sys
from pathlib import Path

import pytest

import nfnets_jax
from experiments import commands

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the packages that a wheel has."""
    folder = tmp_path_factory.mktemp("site-packages")
    build = ["setup.py", "-q", "build", f"--build-base={folder}.build", f"--build-lib={folder}"]
    subprocess.run([sys.executable, *build], cwd=REPOSITORY, check=True, capture_output=True)
    return folder


def python(program: str, *arguments: str, installed: Path, cwd: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_an_installed_library_has_the_commands(installed: Path, tmp_path: Path) -> None:
    assert (installed / "nfnets_jax" / "experiments" / "studies" / "grid.py").exists()
    assert not (installed / "experiments").exists()
    main = "from nfnets_jax.experiments import commands; commands.main()"
    shown = python(
        main, "train", "--config=nfnet_cifar10", "--show", installed=installed, cwd=tmp_path
    )
    assert "name=nf_convnet" in shown
    assert "imports = ('experiments.cifar10.training',)" in shown


def test_names_of_a_checkout_are_found_where_the_package_is(
    installed: Path, tmp_path: Path
) -> None:
    """And a project of the user's that has the same name stays reachable."""
    (tmp_path / "experiments").mkdir()
    (tmp_path / "experiments" / "mine.py").write_text("print('mine')")
    program = """
import sys
from nfnets_jax.experiments.projects import import_projects
import_projects(["experiments.mine", "experiments.cifar10.augmentation"])
print(sorted(m for m in sys.modules if m.endswith((".mine", ".augmentation")) and "exp" in m))
"""
    assert python(program, installed=installed, cwd=tmp_path).split("\n")[:2] == [
        "mine",
        "['experiments.mine', 'nfnets_jax.experiments.cifar10.augmentation']",
    ]


def test_the_commands_are_listed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for arguments in ([], ["--help"]):
        monkeypatch.setattr(sys, "argv", ["nfnets", *arguments])
        commands.main()
        _, *lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == list(commands.COMMANDS)
        assert "Classifies images" in lines[1]
    monkeypatch.setattr(sys, "argv", ["nfnets", "--version"])
    commands.main()
    assert capsys.readouterr().out == f"{nfnets_jax.__version__}\n"


def test_an_unknown_command_names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["nfnets", "evalute", "x"])
    with pytest.raises(SystemExit, match="^error: no command 'evalute'; nearest: evaluate"):
        commands.main()


@pytest.mark.parametrize(
    ("program", "said"),
    [
        (["/usr/bin/nfnets", "train"], "nfnets train --list; python -m experiments.cifar10.train"),
        (["-m", "x"], "python -m experiments.run --list; python -m experiments.cifar10.train"),
    ],
)
def test_a_command_is_said_as_it_was_called(
    program: list[str], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "orig_argv", ["python", *program])
    text = "python -m experiments.run --list; python -m experiments.cifar10.train"
    assert commands.as_called(text) == said
