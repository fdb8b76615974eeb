"""The package and what each use of it needs."""

from pathlib import Path

from setuptools import find_packages, setup

LIBRARY = [
    "jax>=0.8",
    "dm-haiku>=0.0.14",
    "optax>=0.2.5",
    "chex>=0.1.88",
    "numpy>=1.26",
]
TRAINING = [
    "absl-py>=2.1",
    "cloudpickle>=3",
    "flatbuffers>=24.3",
    "matplotlib>=3.8",
    "ml-collections>=1.0",
    "opencv-python-headless>=4.11",
    "orbax-checkpoint>=0.11.20",
    "pillow>=11.3",
    "pyarrow>=15",
    "rich>=13.7",
    "safetensors>=0.4.3",
    "scikit-learn>=1.4",
    "scipy>=1.15",
    "simplejpeg>=1.8",
    "tensorboardX>=2.6.2",
    "tensorflow-datasets>=4.9.7",
]
TESTING = [
    "pytest>=8.2",
    "pytest-xdist>=3.6",
    "setuptools>=77",
]
# Average precision, and masks in the format of COCO.
DETECTION = ["pycocotools>=2.0.8"]
DEVELOPMENT = [
    *TESTING,
    *DETECTION,
    "equinox>=0.13",
    "flax>=0.12",
    "hypothesis>=6.100",
    "ipykernel>=6.29",
    "mypy>=1.11",
    "nbclient>=0.10",
    "nbformat>=5.10",
    "ruff>=0.6",
]
DOCUMENTATION = [
    "mkdocs>=1.6",
    "mkdocs-material>=9.6",
    "mkdocstrings-python>=2.0",
]
# Compilers for accelerators, for machines that have them and for experiments.plan.
CUDA = ["jax[cuda12]>=0.8"]
TPU = ["jax[tpu]>=0.8"]
WANDB = ["wandb>=0.18"]
HUB = ["huggingface_hub>=1.0", "safetensors>=0.4.3"]
# It wants an Orbax before 0.11.37, older than that of constraints.txt.
ONNX = ["jax2onnx>=0.17"]

setup(
    name="nfnets_jax",
    version="0.1.0",
    description="Normalizer-free networks and adaptive gradient clipping in JAX",
    long_description=Path(__file__).with_name("README.md").read_text("utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    packages=[
        *find_packages(include=["nfnets_jax*"]),
        # A checkout has the commands beside the library, an installed library has them inside.
        *(f"nfnets_jax.{package}" for package in find_packages(include=["experiments*"])),
    ],
    package_dir={"nfnets_jax.experiments": "experiments"},
    package_data={"nfnets_jax": ["py.typed"]},
    entry_points={"console_scripts": ["nfnets = nfnets_jax.experiments.commands:main"]},
    install_requires=LIBRARY,
    extras_require={
        "train": TRAINING,
        "dev": TRAINING + DEVELOPMENT,
        "docs": DOCUMENTATION,
        "onnx": ONNX,
        "detection": DETECTION,
        "wandb": WANDB,
        "hub": HUB,
        "cuda": CUDA,
        "tpu": TPU,
        # For make plan-test.
        "plan": TRAINING + TESTING + CUDA + TPU,
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Typing :: Typed",
    ],
)
