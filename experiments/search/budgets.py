"""How large a search is."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from .cost import Limits
from .space import SPACE, STAGES, Space


class Budget(NamedTuple):
    """The size of a search.

    Attributes:
      size: side of the images in pixels.
      sizes: sides that scaled networks are trained at.
      limits: bounds of the parameters and multiply-adds of the first baseline.
      batch_size: images of a step.
      rates: learning rates of SGD to tune the anchor from, for a batch of 256.
      clippings: thresholds of AGC to tune the anchor from.
      baseline_rates: two learning rates of SGD for each baseline, for a batch of 256.
      rmsprop_rates: the same of RMSProp.
      correlated: random networks that are trained short and long.
      drawn, drawn_epochs: networks of the first round, and how long each is trained.
      narrowed, narrowed_epochs: the same of the second round.
      tuning_epochs: length of the runs that tune the anchor.
      finalists: networks that are compared with the baselines.
      final_epochs: length of these runs.
      seeds: runs of each network of the comparison on held-out images.
      test_seeds: runs of the two networks that are tested.
      scales: multiply-adds of the scaled networks, over those of the winner.
      timed: networks whose training step is measured.
      timed_steps: of each, alternating with the anchor.
      least_share: of the multiply-adds that the limits allow which a random network has.
      space, stages: what networks are drawn from.
      shallow: whether the baselines have only one stage of one block.
      stops: whether a proxy that is not accepted ends the search.
    """

    size: int
    sizes: tuple[int, ...]
    limits: Limits
    batch_size: int
    rates: tuple[float, ...]
    clippings: tuple[float, ...]
    baseline_rates: tuple[float, ...]
    rmsprop_rates: tuple[float, ...]
    correlated: int
    drawn: int
    drawn_epochs: float
    narrowed: int
    narrowed_epochs: float
    tuning_epochs: float
    finalists: int
    final_epochs: float
    seeds: int
    test_seeds: int
    scales: tuple[float, ...]
    timed: int
    timed_steps: int
    least_share: float = 0.8
    space: Space = SPACE
    stages: tuple[int, ...] = STAGES
    shallow: bool = False
    stops: bool = True

    @property
    def epochs(self) -> float:
        """Epochs of all runs, about; those of a scaled network count as often as its work."""
        tuned = 2 * len(self.rates) * len(self.clippings) * self.tuning_epochs
        rounds = self.drawn * self.drawn_epochs + self.narrowed * self.narrowed_epochs
        compared = self.finalists + 2 * len(self.baseline_rates) + len(self.rmsprop_rates) + 3
        # Two splits a size of twice the work, and the winner and EfficientNet at each scale.
        scaled = 2 * 2 * len(self.sizes) + 2 * sum(self.scales)
        runs = self.correlated + self.seeds * (compared + scaled) + 2 * self.test_seeds
        return tuned + rounds + runs * self.final_epochs


_GPU = Budget(
    size=32,
    sizes=(24, 32, 40),
    limits=Limits(450_000, 12_000_000),
    batch_size=256,
    rates=(0.1, 0.2, 0.4),
    clippings=(0.02, 0.04),
    baseline_rates=(0.1, 0.2),
    rmsprop_rates=(0.008, 0.016),
    correlated=12,
    drawn=64,
    drawn_epochs=1.5,
    narrowed=16,
    narrowed_epochs=5,
    tuning_epochs=5,
    finalists=4,
    final_epochs=15,
    seeds=3,
    test_seeds=5,
    scales=(2.0, 4.0),
    timed=24,
    timed_steps=20,
)
BUDGETS: Mapping[str, Budget] = MappingProxyType(
    {
        # Networks of one block, two drawn: compiling takes most of the time.
        "smoke": _GPU._replace(
            size=8,
            sizes=(8,),
            limits=Limits(60_000, 600_000),
            batch_size=128,
            rates=(0.2,),
            clippings=(0.04,),
            baseline_rates=(0.2,),
            rmsprop_rates=(0.016,),
            correlated=2,
            drawn=2,
            drawn_epochs=1,
            narrowed=2,
            narrowed_epochs=1,
            tuning_epochs=1,
            finalists=1,
            final_epochs=1,
            seeds=2,
            test_seeds=2,
            scales=(2.0,),
            timed=2,
            timed_steps=2,
            least_share=0.3,
            space={**SPACE, "depth": (1,), "slope": (1.0,), "ratio": (2.0,)},
            stages=(1,),
            shallow=True,
            stops=False,
        ),
        # A quarter of the pixels, and so of the multiply-adds.
        "cpu": _GPU._replace(size=16, sizes=(12, 16, 20), limits=Limits(450_000, 3_000_000)),
        "gpu": _GPU,
    }
)
