"""Sources of labelled images: the embedded digits, TFDS, folders of images, synthetic patterns."""

from nfnets_jax.data.sources.dataset import Dataset, open_dataset, open_split, register_dataset
from nfnets_jax.data.sources.folder import IMAGE_SUFFIXES
from nfnets_jax.data.sources.parquet import parquet_splits, read_parquet
from nfnets_jax.data.sources.source import ArraySource, Record, Source, fetch
from nfnets_jax.data.sources.tfds import imagenet_classes

__all__ = [
    "IMAGE_SUFFIXES",
    "ArraySource",
    "Dataset",
    "Record",
    "Source",
    "fetch",
    "imagenet_classes",
    "open_dataset",
    "open_split",
    "parquet_splits",
    "read_parquet",
    "register_dataset",
]
