"""Batches in an order that the seed alone decides, with a position that can be saved."""

from typing import Any, TypedDict

import grain
import numpy as np
from absl import flags

from nfnets_jax.data.sources import Source
from nfnets_jax.data.transforms import EvalTransform, TrainTransform, decode


class Batch(TypedDict):
    """One host's part of a batch: ``image`` ``[B, H, W, C]`` uint8, ``label`` ``[B]`` int32.

    ``mask`` ``[B]`` float32 is 0 for examples that only fill up the last batch of an evaluation.
    """

    image: np.ndarray
    label: np.ndarray
    mask: np.ndarray


def train_batches(
    source: Source,
    transform: TrainTransform,
    batch_size: int,
    seed: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """An endless dataset of batches; every epoch holds each record once, in another order.

    Batch ``i`` over all processes is the same whatever their number.

    Args:
      source: what to read.
      transform: applied to each record with random numbers of its own.
      batch_size: over all processes, a multiple of their number.
      seed: of the order and of the transforms.
      process_index, process_count: which part of each batch is this process's.

    Returns:
      This process's parts, ``Batch`` without ``mask``, by position.
    """
    examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat().random_map(transform)
    batches = examples.batch(batch_size // process_count, drop_remainder=True)
    return batches[process_index::process_count]


def eval_batches(
    source: Source,
    transform: EvalTransform,
    batch_size: int,
    process_index: int = 0,
    process_count: int = 1,
) -> grain.MapDataset:
    """Every record once, in order, the last batch filled up with examples whose mask is 0.

    Arguments and result are those of ``train_batches``. All processes get the same number of
    batches.
    """
    padded = -(-len(source) // batch_size) * batch_size

    def example(index: int) -> dict[str, Any]:
        real = index < len(source)
        transformed = transform.map(source[index if real else 0])
        return {**transformed, "mask": np.float32(real)}

    batches = grain.MapDataset.range(padded).map(example).batch(batch_size // process_count)
    return batches[process_index::process_count]


def check_readable(source: Source, samples: int = 16) -> None:
    """Decodes a few records from all over the source, so that bad data show before work begins.

    Raises:
      InputError: one of them cannot be decoded.
    """
    for index in np.unique(np.linspace(0, len(source) - 1, samples, dtype=int)):
        decode(source[int(index)])


def read_ahead(batches: grain.MapDataset, num_workers: int = 0) -> grain.DatasetIterator:
    """Iterates with a few batches read in advance, by as many processes or, for 0, by threads.

    The iterator's ``get_state`` and ``set_state`` save and restore the position of what has been
    taken from it, ``close`` ends the reading.
    """
    ahead = batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4))
    if num_workers:
        if not flags.FLAGS.is_parsed():  # Grain reads flags of its own, in any program.
            flags.FLAGS.mark_as_parsed()
        ahead = ahead.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return iter(ahead)
