"""The libraries of templates: what they keep, what they refuse, and which of them is encoded."""

import pytest
import torch

from statefield.errors import ConfigError
from statefield.tasks.tracking.nets import TemplateMemory
from statefield.tasks.tracking.nets.template_memory import similarity


def encode(templates):
    """Features of the last template: its own pixels, 4 tokens of 9 channels."""
    return templates[:, -1].flatten(1).unflatten(1, (4, 9))


def crop(seed):
    return torch.randn(1, 6, 6, generator=torch.Generator().manual_seed(seed))


def test_equal_features_have_the_number_of_tokens_less_one():
    feature = torch.randn(64, 8)
    assert similarity(feature, feature) == pytest.approx(63, abs=1e-4)
    assert similarity(feature, -feature) == pytest.approx(-63, abs=1e-4)
    assert similarity(feature, 3 * feature + 1) == pytest.approx(63, abs=1e-4)


def test_the_short_library_holds_the_last_crops():
    memory = TemplateMemory(encode, short_capacity=3, long_capacity=2)
    memory.start(crop(0))
    for number in range(1, 5):
        memory.observe(crop(number), number)
    assert memory.short.frames == [2, 3, 4]
    assert all(torch.equal(one, crop(number)) for one, number in zip(memory.short.crops, (2, 3, 4), strict=True))


def test_every_frame_that_updates_is_answered_by_the_short_library():
    memory = TemplateMemory(encode, short_capacity=2, long_capacity=2)
    memory.start(crop(0))
    assert torch.equal(memory.observe(crop(1), 1), encode(crop(1)[None, None]))
    assert memory.chosen == "short"


def test_between_updates_the_library_with_the_nearest_crop_answers():
    memory = TemplateMemory(encode, short_capacity=2, long_capacity=3, interval=10)
    first = crop(0)
    memory.start(first)
    memory.observe(0.9 * first + 0.3 * crop(1), 10)
    memory.observe(0.9 * first + 0.3 * crop(2), 20)  # the first crop has left the short library
    memory.observe(first, 21)
    assert memory.chosen == "long"
    memory.observe(0.9 * first + 0.3 * crop(2), 22)
    assert memory.chosen == "short"


def test_what_is_unlike_the_first_crop_stays_out_of_the_long_library():
    memory = TemplateMemory(encode, short_capacity=2, long_capacity=3)
    memory.start(crop(0))
    memory.long.offer(-crop(0), encode(-crop(0)[None, None])[0], 1, likeness=1.0)
    assert memory.long.filled == 1
    memory.long.offer(-crop(0), encode(-crop(0)[None, None])[0], 1, likeness=0.0)
    assert memory.long.filled == 1  # the bound falls to 0, and its opposite has a similarity below it


def test_the_first_crop_is_never_replaced():
    memory = TemplateMemory(encode, short_capacity=2, long_capacity=3, lower_bound=0.0)
    memory.start(crop(0))
    for number in range(1, 30):
        memory.observe(crop(number), number)
    assert memory.long.frames[0] == 0
    assert torch.equal(memory.long.crops[0], crop(0))


def test_a_memory_of_less_than_two_templates_is_refused():
    with pytest.raises(ConfigError, match="two templates each"):
        TemplateMemory(encode, short_capacity=1)
