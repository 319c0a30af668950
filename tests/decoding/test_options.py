"""Options that are out of range are refused by name and value."""

import pytest

from baselines.prompt_lookup import PromptLookupDrafter
from baselines.union import UnionDrafter
from decoding.options import at_least


def test_what_is_as_great_as_the_least_is_taken() -> None:
    at_least(1, num_nodes=1, max_ngram=4)
    at_least(0, row_cost=0.0)
    at_least(0)


@pytest.mark.parametrize(("least", "name", "value"), [(1, "num_nodes", 0), (0, "row_cost", -0.5), (2, "ngram", 1)])
def test_what_is_less_is_refused_by_name_and_value(least: int, name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be {least} or more, not {value}$"):
        at_least(least, **{"first": 3, name: value})


def test_a_number_that_is_none_is_refused() -> None:
    # `.nan` in a profile: it is neither below nor above anything, and no candidate would ever pay.
    with pytest.raises(ValueError, match=r"^row_cost must be 0 or more, not nan$"):
        UnionDrafter({"prompt_lookup": PromptLookupDrafter()}, row_cost=float("nan"))
