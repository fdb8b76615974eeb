import fnmatch
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import nfnets_jax
from experiments import opening, pull, push
from nfnets_jax.errors import InputError
from nfnets_jax.training import workdir
from nfnets_jax.training.checkpoints import Checkpoints
from nfnets_jax.training.recipes import small_images
from nfnets_jax.training.step import TrainState
from nfnets_jax.weights import files, hub
from nfnets_jax.weights.published import Tree
from nfnets_jax.weights.run import read_model_state, read_run

NAME = "rose/petals"
STATE = {"bn": {"average": np.arange(3, dtype=np.float32), "counter": np.array(7, np.int32)}}
CLASSES = tuple("abcdefghij")


class FakeHub:
    """A stand-in for the package, and for its HfApi: repositories are folders."""

    def __init__(self, root: Path):
        self.root, self.token, self.private = root, "secret", dict[str, bool]()

    def HfApi(self) -> "FakeHub":  # noqa: N802, it is called so there
        return self

    def get_token(self) -> str | None:
        return self.token

    def create_repo(self, *, repo_id: str, private: bool, exist_ok: bool) -> str:
        assert exist_ok
        self.private.setdefault(repo_id, private)
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)
        return f"https://huggingface.co/{repo_id}"

    def file_exists(self, *, repo_id: str, filename: str) -> bool:
        return (self.root / repo_id / filename).exists()

    def upload_folder(
        self, *, repo_id: str, folder_path: str, allow_patterns: list[str], commit_message: str
    ) -> None:
        assert repo_id in self.private
        assert commit_message
        self._copy(Path(folder_path), self.root / repo_id, allow_patterns)

    def snapshot_download(
        self,
        *,
        repo_id: str,
        revision: str | None,
        local_dir: str | None,
        allow_patterns: list[str],
    ) -> str:
        if not (self.root / repo_id).is_dir() or revision not in (None, "main"):
            raise OSError(f"404 Client Error.\n\nRepository Not Found for {repo_id}")
        folder = Path(local_dir or self.root / "cache" / repo_id)
        (folder / ".cache" / "huggingface").mkdir(parents=True, exist_ok=True)
        self._copy(self.root / repo_id, folder, allow_patterns)
        return str(folder)

    @staticmethod
    def _copy(source: Path, target: Path, patterns: list[str]) -> None:
        for file in source.iterdir():
            if any(fnmatch.fnmatch(file.name, pattern) for pattern in patterns):
                shutil.copyfile(file, target / file.name)


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    package = FakeHub(tmp_path / "hub")
    monkeypatch.setitem(sys.modules, "huggingface_hub", package)
    monkeypatch.chdir(tmp_path)
    return package


@pytest.fixture(scope="module")
def params() -> Tree:
    model = nfnets_jax.create_model("nfnet_micro", 10)
    initial, _ = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    return jax.tree.map(np.asarray, initial)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, params: Tree) -> Path:
    """Returns a run whose average is ``params``, with figures and a picture."""
    folder = tmp_path_factory.mktemp("runs") / "petals"
    config = small_images("nfnet_micro", "digits", size=8)
    config.data.dir, config.init.weights = "/home/rose/data", "/home/rose/start.npz"
    workdir.claim_workdir(folder, config)
    workdir.write_class_names(folder, CLASSES)
    last = jax.tree.map(lambda array: array + np.float32(1), params)
    scalar = np.zeros((), np.int32)
    checkpoints = Checkpoints(folder / "checkpoints", keep=1)
    checkpoints.save(3, TrainState(scalar, scalar, last, STATE, {}, params), {})
    checkpoints.close()
    (folder / "curves.png").write_bytes(b"\x89PNG")
    rows = [
        {"step": 2, "split": "test", "loss": 2.0, "top1": 0.25, "ema_top1": 0.5},
        {"step": 3, "split": "train", "loss": 1.0, "top1": 0.75},
        {"step": 3, "split": "test", "loss": 1.5, "top1": 0.5, "ema_top1": 0.625},
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def call(monkeypatch: pytest.MonkeyPatch, program: Any, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["program", *map(str, arguments)])
    program.main()


def assert_equal(actual: Any, expected: Any) -> None:
    jax.tree.map(np.testing.assert_array_equal, actual, expected)


def test_a_pushed_run_is_pulled_as_a_run(
    fake: FakeHub,
    run: Path,
    params: Tree,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    call(monkeypatch, push, run, NAME)
    said = capsys.readouterr().out.splitlines()
    there = fake.root / NAME
    assert {file.name for file in there.iterdir()} == set(hub.FILES)
    assert fake.private == {NAME: True}
    size = (there / "model.safetensors").stat().st_size
    assert said[0] == f"uploading to {NAME}: nfnet_micro"
    assert said[1].split() == ["model.safetensors", f"{size / 1e6:.3f}", "MB"]
    assert said[-1] == f"https://huggingface.co/{NAME}"
    assert "/home/rose" not in "".join((there / f).read_text() for f in ("config.json", hub.CARD))

    (there / "evil.py").write_text("raise SystemExit")
    call(monkeypatch, pull, NAME, "--out=here")
    pulled = Path("here")
    assert not (pulled / "evil.py").exists()
    config, classes = read_run(pulled)
    assert (config["model"], classes) == (read_run(run).config["model"], CLASSES)
    assert_equal(read_model_state(pulled, average=True), STATE)
    for source in (pulled, f"hf://{NAME}", f"hf://{NAME}@main"):
        assert_equal(nfnets_jax.load_pretrained("nfnet_micro", source), params)
    assert opening.find_model(None, hub.local(f"hf://{NAME}"))["name"] == "nfnet_micro"
    call(monkeypatch, pull, NAME, "--out=here")  # Again, into the same folder.
    with pytest.raises(InputError, match="one set of parameters"):
        nfnets_jax.load_pretrained("nfnet_micro", pulled, average=False)


def test_the_card_says_what_the_run_did(
    fake: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call(monkeypatch, push, run, NAME, "--dry_run=written")
    assert not fake.root.exists()  # Nothing was uploaded.
    card = Path("written", hub.CARD).read_text()
    _, head, body = card.split("---\n", 2)
    fields = dict(line.split(": ") for line in head.splitlines() if ": " in line[:20])
    assert fields["library_name"] == "nfnets_jax"
    assert fields["pipeline_tag"] == "image-classification"
    assert "license" not in fields  # A comment says where it goes.
    assert "# license: " in head
    assert '- "nfnet_micro"' in head
    assert body.startswith("\n# petals\n")
    assert "| test | 3 | 1.5000 | 0.5000 | 0.6250 |" in body  # The newest row.
    assert "| train | 3 | 1.0000 | 0.7500 |  |" in body
    assert "| optimizer.clipping | `0.01` |" in body
    assert "`digits`, 10 classes" in body
    assert "](curves.png)" in body
    assert f"nfnets predict PHOTO --weights=hf://{NAME}" in body


def test_a_file_is_pushed_with_what_the_command_line_says_of_it(
    fake: FakeHub, params: Tree, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nfnets_jax.save_pretrained("mine.safetensors", params)
    Path("names.txt").write_text("\n".join(CLASSES))
    arguments = ("mine.safetensors", NAME, "--model=nfnet_micro", "--classes=names.txt", "--public")
    call(monkeypatch, push, *arguments)
    assert fake.private == {NAME: False}
    config, classes = read_run(fake.root / NAME)
    assert (config["model"], classes) == ({"name": "nfnet_micro"}, CLASSES)
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", f"hf://{NAME}"), params)

    (fake.root / NAME / hub.CARD).write_text("written by hand")
    call(monkeypatch, push, *arguments)
    assert (fake.root / NAME / hub.CARD).read_text() == "written by hand"
    assert f"{NAME} has a README.md, which stays as it is" in capsys.readouterr().out


def test_parameters_of_other_libraries_are_read_too(fake: FakeHub, params: Tree) -> None:
    """A config.json that is not of this library does not make a run."""
    (fake.root / NAME).mkdir(parents=True)
    (fake.root / NAME / "config.json").write_text('{"architecture": "dm_nfnet_f0"}')
    files.write_safetensors(fake.root / NAME / "model.safetensors", files.flatten(params))
    assert Path(hub.local(f"hf://{NAME}")).name == "model.safetensors"
    assert_equal(nfnets_jax.load_pretrained("nfnet_micro", f"hf://{NAME}"), params)


@pytest.mark.parametrize(
    ("program", "arguments", "message"),
    [
        (push, ["nowhere", NAME], "no such weights: nowhere"),
        (push, ["RUN", "petals"], "'petals' is no repository .* takes OWNER/NAME"),
        (push, ["RUN", "a/../b"], "'a/../b' is no repository"),
        (push, ["RUN", f"{NAME}@main"], "makes a new revision"),
        (push, ["FILE", NAME], "no model is named"),
        (push, ["FILE", NAME, "--model=nfnet_micro", "--classes=two"], "has 2 class names for 10"),
        (push, ["RUN", NAME, "--dry_run=full"], "full is not empty"),
        (pull, [NAME], f"{NAME} on the Hugging Face hub: 404 .* Not Found"),
        (pull, ["empty/petals"], "empty/petals on the Hugging Face hub has no model.safetensors"),
        (pull, ["empty/petals", "--out=full"], "full holds something else"),
    ],
)
def test_bad_input_ends_with_one_line(
    program: Any,
    arguments: list[str],
    message: str,
    fake: FakeHub,
    run: Path,
    params: Tree,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nfnets_jax.save_pretrained("mine.safetensors", params)
    (fake.root / "empty" / "petals").mkdir(parents=True)
    Path("two").write_text("a\nb\n")
    Path("full").mkdir()
    Path("full", "thesis.tex").touch()
    named = {"RUN": str(run), "FILE": "mine.safetensors"}
    with pytest.raises(SystemExit, match=f"^error: .*{message}") as end:
        call(monkeypatch, program, *(named.get(each, each) for each in arguments))
    assert "\n" not in str(end.value)
    assert fake.private == {}
    assert [file.name for file in Path("full").iterdir()] == ["thesis.tex"]


def test_without_a_token_or_the_package_nothing_is_done(
    fake: FakeHub, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake.token = ""
    with pytest.raises(SystemExit, match=r"no token for .*: run hf auth login, or set HF_TOKEN$"):
        call(monkeypatch, push, run, NAME)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)  # As if it were not installed.
    for program, arguments in ((push, (run, NAME)), (pull, (NAME,))):
        with pytest.raises(SystemExit, match=r"pip install 'nfnets_jax\[hub\]'$"):
            call(monkeypatch, program, *arguments)
    with pytest.raises(InputError, match="sha256 goes with a URL"):
        nfnets_jax.load_pretrained("nfnet_micro", f"hf://{NAME}", sha256="00")
