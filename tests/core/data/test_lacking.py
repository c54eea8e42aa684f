"""What is asked of a few-shot set that was prepared before the protocol became another; test_check.py has the rest."""

import pytest

from mmrl_core.data.lacking import check_trained
from mmrl_core.data.shards import write_few_shot
from mmrl_core.errors import UserError


def test_a_class_to_be_trained_on_needs_an_image_in_the_set_and_another_class_beside_it(pets, tmp_path):
    pets.splits["train"] = [row for row in pets.splits["train"] if row[2] != "newt"]
    pets.save()
    manifest = write_few_shot(pets.open(), 4, 1, tmp_path)
    check_trained(manifest, ["base"])
    with pytest.raises(UserError, match=r"oxford_pets: 1 classes to be trained on have no training image \(newt\)"):
        check_trained(manifest, ["base", "novel"])
    with pytest.raises(UserError, match="oxford_pets: newt is the one class to be trained on, where 2 are the least"):
        check_trained(manifest, ["novel"])
