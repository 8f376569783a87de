"""How many examples Hypothesis takes where a test asks for other than the usual number."""

from hypothesis import settings

ALL = 50
"""The usual number, in the profile `ci`."""
FEWEST = 3


def examples(count: int) -> settings:
    """Takes `count` examples where others take `ALL`, and in the same measure more or fewer in other profiles."""
    return settings(max_examples=max(FEWEST, count * settings().max_examples // ALL))
