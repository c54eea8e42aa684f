"""Clients of `mmrl serve` that no library would make: many at once, slow, rude; and one that watches meanwhile."""
