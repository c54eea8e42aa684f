import math

import pytest

from mmrl_core.errors import UserError


@pytest.mark.parametrize("hours", [0, -1, math.nan, math.inf, 1e300, 8761])
def test_hours_that_no_stage_can_be_given_are_refused(hours):
    from flows.orchestration.adapt import stage_seconds

    with pytest.raises(UserError, match="^stage_hours is .*; give hours, more than 0 and at most 8760$"):
        stage_seconds(hours)
    assert stage_seconds(0.5) == 1800
