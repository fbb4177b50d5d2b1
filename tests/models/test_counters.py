"""What counters of other libraries say of adder layers: fvcore with its handles, torchinfo, torch itself."""

import pytest
import timm
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import adder_zoo
from adder_zoo.fvcore import HANDLES


def taps_by_handle(model, x):
    """What fvcore does: it traces the network and gives each node of a known kind to its handle."""
    graph, _ = torch.jit._get_trace_graph(model, x)
    return {
        kind: sum(HANDLES[kind](list(n.inputs()), list(n.outputs())) for n in graph.nodes() if n.kind() == kind)
        for kind in {n.kind() for n in graph.nodes()} & set(HANDLES)
    }


CASES = {  # layer, shape of x, taps: outputs times terms of each
    "groups and stride": (adder_zoo.Adder2d(4, 6, 3, stride=2, groups=2), (3, 4, 9, 9), 3 * 6 * 4 * 4 * 2 * 9),
    "linear": (adder_zoo.AdderLinear(5, 7), (2, 3, 5), 2 * 3 * 7 * 5),
}


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_handle_counts_taps(case, grad):
    layer, shape, taps = CASES[case]
    with torch.set_grad_enabled(grad):
        assert taps_by_handle(layer, torch.randn(shape)) == {"adder_zoo::adder2d": taps}


def test_handle_of_the_fused_operator():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), adder_zoo.Adder2d(4, 5, 3, bias=False), nn.BatchNorm2d(5)).eval()
    assert taps_by_handle(adder_zoo.fuse(model), torch.randn(2, 3, 8, 8)) == {
        "adder_zoo::adder2d_fused": 2 * 5 * 16 * 36
    }


def test_handles_name_operators_that_exist():
    import adder_zoo.ops.int8.library  # noqa: F401

    for name in HANDLES:
        assert getattr(torch.ops.adder_zoo, name.removeprefix("adder_zoo::")).default is not None


@pytest.mark.filterwarnings("ignore")
def test_fvcore_counts_a_network_like_its_twin():
    fvcore = pytest.importorskip("fvcore.nn")
    x, totals = torch.randn(1, 1, 32, 32), {}
    for similarity in ("adder", "conv"):
        model = timm.create_model("adder_lenet5_bn", similarity=similarity).eval()
        analysis = fvcore.FlopCountAnalysis(model, x).unsupported_ops_warnings(False)
        analysis.total()
        if similarity == "adder":
            assert analysis.unsupported_ops()["adder_zoo::adder2d"] == 5  # passed over without the handles
        analysis.set_op_handle(**HANDLES).total()
        assert "adder_zoo::adder2d" not in analysis.unsupported_ops()
        totals[similarity] = sum(count for name, count in analysis.by_operator().items() if "norm" not in name)
    with FlopCounterMode(display=False) as counter:
        timm.create_model("adder_lenet5_bn").eval()(x)
    assert totals["adder"] == totals["conv"] == counter.get_total_flops() // 2


@pytest.mark.filterwarnings("ignore")
def test_torchinfo_counts_each_filter_once_and_not_for_each_place():
    """It cannot be extended by other packages' layers; docs/guides/use.md says so."""
    torchinfo = pytest.importorskip("torchinfo")
    layer = adder_zoo.Adder2d(3, 4, 3, bias=False)
    summary = torchinfo.summary(layer, (1, 3, 10, 10), verbose=0)
    assert (summary.total_params, summary.total_mult_adds) == (108, 108)
    assert adder_zoo.report(nn.Sequential(layer), (3, 10, 10)).total.taps == 108 * 64
