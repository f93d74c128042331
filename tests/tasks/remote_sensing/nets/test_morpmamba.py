"""MorpMamba: the released graph, step by step."""

import pytest
import torch

from statefield.errors import ConfigError, ShapeError
from statefield.tasks.remote_sensing.nets import MorpMamba
from statefield.tasks.remote_sensing.nets.morpmamba import CentreGates, DenseRecurrence, MorphologicalTokens


def parameters_of(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def test_parameters_are_as_many_as_the_notebook_prints():
    net = MorpMamba(15, 15)
    parts = [net.tokens, net.gates, net.attention, net.recurrence, net.hidden, net.head]
    assert [parameters_of(part) for part in parts] == [2934, 8320, 12480, 24832, 16512, 1935]
    assert parameters_of(net) == 67_013
    assert parameters_of(MorpMamba(15, 9)) == 67_013 - 6 * 129


@pytest.mark.parametrize("bands, window", [(15, 4), (103, 5), (3, 7), (1, 2)])
def test_takes_any_bands_and_windows_and_every_parameter_learns(bands, window):
    net = MorpMamba(bands, 6, window=window, channels=8, heads=2, d_state=8, hidden=8).eval()
    logits = net(torch.randn(64, bands, window, window, generator=torch.Generator().manual_seed(0)))
    assert logits.shape == (64, 6)
    logits.square().sum().backward()
    silent = [name for name, one in net.named_parameters() if one.grad is None or not one.grad.abs().max() > 1e-9]
    assert set(silent) <= {"attention.key.bias"}  # which moves all scores of a query alike


def test_erosion_and_dilation_begin_as_minus_and_plus_the_sum_around():
    tokens = MorphologicalTokens(2, 4, 4)
    x = torch.zeros(1, 2, 4, 4)
    x[0, 1, 0, 3] = 1.0
    captured = []
    tokens.conv.register_forward_hook(lambda _m, given, _o: captured.append(given[0]))
    tokens(x)
    spatial, spectral = captured
    around = torch.zeros(4, 4)
    around[:3, 1:] = 1  # within two pixels of the corner
    for map_, sign in ((spatial[0, 1], -1), (spatial[0, 3], 1)):
        torch.testing.assert_close(map_, sign * around)
    assert spatial[0, 0].abs().max() == 0
    # spectral: within two bands and two rows, of its own column alone
    column = torch.zeros(4, 4)
    column[:3, 3] = 1
    for band in range(2):
        torch.testing.assert_close(spectral[0, band], -column)
        torch.testing.assert_close(spectral[0, 2 + band], column)


def test_the_gate_of_a_column_of_the_centre_row_weighs_a_row():
    gates = CentreGates(4, 2)
    with torch.no_grad():
        for gate in (gates.spatial_gate, gates.spectral_gate):
            gate.weight.copy_(torch.eye(2))
            gate.bias.zero_()
    spatial = torch.zeros(1, 4, 4, 2)
    spatial[0, 2, :, 0] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # the centre row of four is the third
    _, spectral = gates(spatial, torch.ones(1, 4, 4, 2))
    expected = torch.tensor([1.0, 2.0, 3.0, 4.0]).sigmoid()
    for column in range(4):
        torch.testing.assert_close(spectral[0, :, column, 0], expected)
    torch.testing.assert_close(spectral[0, ..., 1], torch.full((4, 4), 0.5))


def test_the_recurrence_gives_the_last_state_and_adds_both_biases_at_every_token():
    recurrence = DenseRecurrence(1, 1)
    with torch.no_grad():
        for layer, weight, bias in ((recurrence.transition, 0.5, 1.0), (recurrence.update, 2.0, 3.0)):
            layer.weight.fill_(weight)
            layer.bias.fill_(bias)
    # 0.5 * 0 + 1 + 2 * 1 + 3 = 6, then 0.5 * 6 + 1 + 2 * 2 + 3 = 11
    assert recurrence(torch.tensor([[[1.0], [2.0]]])).item() == 11.0


def test_attention_is_dropped_out_in_training_only():
    torch.manual_seed(0)
    net, x = MorpMamba(5, 3), torch.randn(2, 5, 4, 4)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_the_penalty_is_of_the_hidden_layer():
    net = MorpMamba(5, 3, d_state=4, hidden=2)
    with torch.no_grad():
        net.hidden.weight.fill_(2.0)
    assert net.penalty().item() == pytest.approx(0.01 * 8 * 4.0)


def test_refuses_what_it_cannot_do():
    with pytest.raises(ConfigError, match="6 channels and 4 heads"):
        MorpMamba(channels=6)
    with pytest.raises(ShapeError, match=r"needs \[B, 15, 4, 4\]"):
        MorpMamba()(torch.zeros(1, 15, 5, 4))
