"""Order of a mixture of text-to-image rows and edits, at a stated share of the steps."""

import math
from dataclasses import replace
from fractions import Fraction

from pipelines.train.sample_order import RowGroup, SampleLocation, SampleOrder


class MixedOrder:
    """Mixes text-to-image rows and edits, each in an order of its own, at a share of the steps.

    Of the first n steps, floor(n * share) have edits, spread evenly. A batch holds rows of one kind, so that none needs
    padding for reference images it does not have.
    """

    def __init__(self, groups: list[RowGroup], seed: int, window: int, share: float):
        """Prepare the two orders.

        Args:
            groups: row groups of both kinds.
            seed: seed of all shuffles.
            window: row groups that are shuffled together.
            share: share of the steps that have edits, in [0, 1].

        Raises:
            ValueError: there are no rows of a kind that is needed.
        """
        self.seed, exact = seed, Fraction(str(share))
        self.shares = {False: 1 - exact, True: exact}
        """Share of the steps, by whether they have edits"""
        self.orders = {
            edits: SampleOrder([group for group in groups if bool(group.references) == edits], seed, window)
            for edits, part in self.shares.items()
            if part
        }

    def steps_per_epoch(self, batch: int) -> int:
        """Return the number of steps after which every row of both kinds has been used."""
        return max(math.ceil(order.steps_per_epoch(batch) / self.shares[edits]) for edits, order in self.orders.items())

    def batch_at(self, step: int, batch: int) -> list[SampleLocation]:
        """Return the locations of a batch: at most `batch`, all of one bucket."""
        before, until = (math.floor(n * self.shares[True]) for n in (step, step + 1))
        edits = until > before
        locations = self.orders[edits].batch_at(before if edits else step - before, batch)
        return [replace(location, number=2 * location.number + edits) for location in locations]


Order = SampleOrder | MixedOrder


def make_order(groups: list[RowGroup], seed: int, window: int, edit_share: float | None) -> Order:
    """Return the order of all rows in epochs, or with an `edit_share` that of a mixture; see the two classes."""
    if edit_share is None:
        return SampleOrder(groups, seed, window)
    return MixedOrder(groups, seed, window, edit_share)
