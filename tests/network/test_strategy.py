"""The combination itself: block by block, in place, with the bits of the plain sum in order."""

import pytest
import torch

from raydist.network import combination, strategy

WEIGHTS = [0.1, 0.2, 0.4, 0.3]
SIZE = 2 * combination.BLOCK + 3


def vectors():
    generator = torch.Generator().manual_seed(5)
    return list(torch.randn(len(WEIGHTS), SIZE, generator=generator))


def plain(messages):
    total = messages[0] * WEIGHTS[0]
    for weight, message in zip(WEIGHTS[1:], messages[1:], strict=True):
        total = torch.add(total, message, alpha=weight)
    return total


def test_blocks_sum_in_the_order_given():
    messages = vectors()
    assert torch.equal(combination.combine(WEIGHTS, messages, torch.empty(SIZE)), plain(messages))


@pytest.mark.parametrize("place", range(len(WEIGHTS)))
def test_the_result_may_take_the_place_of_a_message(place):
    messages, expected = vectors(), plain(vectors())
    assert torch.equal(combination.combine(WEIGHTS, messages, messages[place]), expected)
    messages = vectors()
    combination.update(WEIGHTS, messages, messages[place], None)
    assert torch.equal(messages[place], expected)


def test_what_was_not_sent_is_added_behind_the_sum():
    messages, phi = vectors(), torch.linspace(-1, 1, SIZE)
    sent, expected = messages[1], plain(messages) + (phi - messages[1])
    combination.update(WEIGHTS, messages, phi, sent)
    assert torch.equal(phi, expected)


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("centralized", [[0.25] * 4] * 4),
        ("local", [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]),
        *[
            (name, [[0.5, 0.5, 0, 0], [0.5, 0.5, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
            for name in ("consensus", "diffusion")
        ],
    ],
)
def test_what_a_strategy_combines_with(name, rows):
    pairs = torch.block_diag(torch.full((2, 2), 0.5), torch.eye(2)).double().numpy()
    assert strategy.find(name).matrix(pairs).tolist() == rows


def test_what_is_sent():
    table = {"centralized": "gradient", "consensus": "w", "diffusion": "phi", "local": "phi"}
    assert {name: rule.sends for name, rule in strategy.STRATEGIES.items()} == table
