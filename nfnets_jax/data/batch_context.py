"""The images of a training batch: where they come from, and their random numbers."""

import enum

import numpy as np


class Stream(enum.IntEnum):
    """The independent streams of random numbers that the library draws for an image."""

    CROP = 0
    MOVE = 1
    MIX = 2
    RANDAUGMENT = 3


class BatchContext:
    """Positions and random numbers of consecutive training images.

    The random numbers of an image depend on the seed, its index and the stream alone.

    Attributes:
      seed: seed of the run.
      indices: ``[B]``, positions in the endless order of training.
      epochs: ``[B]``, from 0, of the records.
      records: ``[B]``, positions in the source.
      num_records: length of the source.
      uniform: ``[B, 4]`` random numbers in [0, 1), cheaper than those of ``rng``.
    """

    def __init__(
        self,
        seed: int,
        indices: np.ndarray,
        records: np.ndarray,
        num_records: int,
        epochs: np.ndarray | None = None,
    ):
        """Takes the attributes from which the others follow; epochs follow unless images repeat."""
        self.seed, self.indices, self.records = seed, indices, records
        self.epochs = indices // num_records if epochs is None else epochs
        self.num_records = num_records
        self._bits = np.random.Philox(key=np.array([seed, 0], np.uint64))
        self._state = self._bits.state
        self._generator = np.random.Generator(self._bits)
        self.uniform = self._seek(int(indices[0]), Stream.MOVE, 0).random((len(indices), 4))

    def rng(self, position: int, stream: int) -> np.random.Generator:
        """Returns the generator of one image, at the start of a stream.

        Args:
          position: the image's position in the batch.
          stream: one of ``Stream``, or another number.

        Returns:
          A generator that is valid until the next call.
        """
        return self._seek(0, stream, self.indices[position])

    def _seek(self, *counter: int) -> np.random.Generator:
        # Setting the state of one generator takes a tenth of the time of creating another.
        self._state["state"]["counter"][:3] = counter
        self._bits.state = self._state
        return self._generator
