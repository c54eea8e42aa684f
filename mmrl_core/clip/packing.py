"""How the differing ends of many prompts lie in memory: packed without padding, and in groups where they attend.

C classes, T tokens of all their suffixes together, S tokens of the longest one, G classes a group, Q = G S slots; with
several runs C counts the classes of all, one run's after another's, and no group has classes of two.
Linear layers see the T packed tokens and no padding. For attention the suffixes of G classes form one sequence, in
which each sees itself up to the token at hand, and the prefix that all classes share: that prefix is then copied once
a group, not once a class. All index work, no parameter.
"""

from typing import NamedTuple

import torch
from torch import Tensor

GROUP_SLOTS = 32  # Q at most, unless one suffix alone is longer; 4 to 8 classes a group were fastest on a CPU


class Packing(NamedTuple):
    n_tokens: int  # T
    slots: Tensor | None  # (C / G * Q,) packed token in every slot, 0 in empty ones; None: there are no empty ones
    places: Tensor | None  # (T,) slot of every packed token, counted over all groups
    own: Tensor  # (Q, Q) booleans: which slots of its group a slot sees
    ends: Tensor  # (C,) packed token that ends a class's prompt
    ends_own: Tensor  # (C / G, G, Q) booleans: what the ends see
    runs: int = 1

    def group(self, x: Tensor) -> Tensor:
        """(T, n) packed -> (C / G, Q, n)."""
        x = x if self.slots is None else x.index_select(0, self.slots)
        return x.view(-1, len(self.own), x.shape[-1])

    def ungroup(self, x: Tensor) -> Tensor:
        """(C / G, Q, n) -> (T, n) packed."""
        x = x.flatten(0, 1)
        return x if self.places is None else x.index_select(0, self.places)

    def group_ends(self, x: Tensor) -> Tensor:
        """(C, n), a row a class -> (C / G, G, n)."""
        groups, size = self.ends_own.shape[:2]
        x = x.view(self.runs, -1, x.shape[-1])
        missing = groups * size // self.runs - x.shape[1]
        return torch.nn.functional.pad(x, (0, 0, 0, missing)).view(groups, size, -1)

    def ungroup_ends(self, x: Tensor) -> Tensor:
        """(C / G, G, n) -> (C, n)."""
        return x.flatten(0, 1).unflatten(0, (self.runs, -1))[:, : len(self.ends) // self.runs].flatten(0, 1)

    def mask(self, prefix_length: int) -> Tensor:
        """(Q, Lp + Q): every slot sees the prefix and its own."""
        return _after_prefix(self.own, prefix_length)

    def ends_mask(self, prefix_length: int) -> Tensor:
        """(C / G, 1, G, Lp + Q)."""
        return _after_prefix(self.ends_own, prefix_length)[:, None]


def _after_prefix(own: Tensor, prefix_length: int) -> Tensor:
    return torch.cat([own.new_ones(*own.shape[:-1], prefix_length), own], dim=-1)


def pack(lengths: list[int], device: torch.device, runs: int = 1) -> Packing:
    """The packing of suffixes of these lengths, in tokens, each at least 1, one after another in this order.

    Of several runs, each has as many classes as the others.
    """
    longest, each = max(lengths), len(lengths) // runs
    size = min(each, max(1, GROUP_SLOTS // longest))
    groups, n_slots = runs * -(-each // size), size * longest
    length = torch.tensor(lengths)
    start = length.cumsum(0) - length  # packed position of every class's first token
    place = (torch.arange(runs)[:, None] * (groups // runs * size) + torch.arange(each)).flatten()  # among all groups
    slot = place * longest  # of every class's first token; groups lie one after another
    offset = torch.arange(longest)
    real = offset < length[:, None]  # (C, S)
    places = (slot[:, None] + offset)[real]
    slots = torch.zeros(groups * n_slots, dtype=torch.long)
    slots[places] = (start[:, None] + offset)[real]
    dense = len(places) == len(slots)
    own = torch.block_diag(*[torch.ones(longest, longest).tril()] * size).bool()
    end_slots = torch.zeros(groups * size, dtype=torch.long)
    end_slots[place] = (slot + length - 1) % n_slots
    return Packing(
        n_tokens=len(places),
        slots=None if dense else slots.to(device),
        places=None if dense else places.to(device),
        own=own.to(device),
        ends=(start + length - 1).to(device),
        ends_own=own[end_slots].view(groups, size, n_slots).to(device),
        runs=runs,
    )
