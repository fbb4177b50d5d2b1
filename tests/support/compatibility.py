"""docs/compatibility.md: with which tools the package was run. Every row names the tests that show it.

python tests/support/compatibility.py                         writes the page
pytest $(python tests/support/compatibility.py --tests)       runs what it claims
"""

from __future__ import annotations

import ast
import functools
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "compatibility.md"
VERSIONS = "torch 2.14, torchvision 0.29, timm 1.0.31, accelerate 1.15, fvcore 0.1.5 and torchinfo 1.8"


@dataclass(frozen=True)
class Row:
    """A tool; "works" or "refused" or what lies between; how; and tests, "file::name" below tests/."""

    tool: str
    result: str
    how: str
    tests: tuple[str, ...]


def row(tool: str, result: str, how: str, *tests: str) -> Row:
    return Row(tool, result, how, tests)


ROWS = (
    # ---- compilers and tracers
    row(
        "`torch.compile`, layers and networks",
        "works",
        "one graph, any batch size",
        "ops/test_torch_library.py::test_compile",
        "ops/test_torch_library.py::test_compile_once_for_every_size",
        "models/test_zoo.py::test_compile_whole",
    ),
    row(
        "`torch.compile` of `AdderSGD.step`",
        "works",
        "finding the filters stays outside the graph",
        "optim/test_recognition.py::test_compiled_step",
    ),
    row(
        "`torch.onnx.export`, ONNX Runtime",
        "works",
        "`export_onnx`, or `dynamo=True` with `onnx_translation_table()`; runs in an unmodified ONNX Runtime",
        "export/test_onnx.py::test_network_of_the_zoo",
        "export/test_onnx.py::test_table_of_torchs_exporter_with_any_size_of_image",
    ),
    row(
        "`torch.export`",
        "works",
        "any batch size; a saved program comes back",
        "ops/test_torch_library.py::test_export_round_trip",
        "models/test_zoo.py::test_export_with_any_batch",
    ),
    row(
        "`torch.fx.symbolic_trace`",
        "works",
        "a layer's call is one node",
        "layers/test_tracing.py::test_symbolic_trace",
    ),
    row(
        "`torch.jit.trace`, TensorBoard's `add_graph`",
        "works",
        "with gradients on as well",
        "layers/test_tracing.py::test_jit_trace_with_gradients_on",
        "layers/test_tracing.py::test_graph_in_tensorboard",
    ),
    row(
        "`torch.jit.script`",
        "refused",
        "with torch's own error; it is deprecated, use `torch.export`",
        "models/test_other_tools.py::test_scripting_is_refused",
    ),
    row(
        "`opcheck`, fake tensors, meta device",
        "works",
        "`to_empty` too",
        "ops/test_torch_library.py::test_opcheck",
        "ops/test_torch_library.py::test_fake_tensors_have_the_real_strides",
        "optim/test_recognition.py::test_from_the_meta_device",
    ),
    # ---- gradients
    row(
        "`torch.func`: `grad`, `vjp`, `vmap`, `jacrev`, ensembles, gradients of each sample",
        "works",
        "one call of the kernel for all samples",
        "ops/test_torch_func.py::test_vmap",
        "ops/test_torch_func.py::test_grad_vjp_and_jacrev",
        "ops/test_torch_func.py::test_gradients_of_each_sample",
        "ops/test_torch_func.py::test_ensemble_of_models",
    ),
    row(
        "`torch.func.jvp`, forward mode; second derivatives",
        "refused",
        "the gradients are surrogates and have no derivative",
        "ops/test_torch_func.py::test_forward_mode_is_refused",
        "ops/test_torch_func.py::test_second_derivative_is_refused",
    ),
    row(
        "`torch.autocast`, `GradScaler`",
        "works",
        "sums stay in float32, layers feed one another half precision",
        "ops/test_torch_library.py::test_autocast_changes_no_bit",
        "layers/test_half_precision.py::test_autocast_feeds_adder_layers_half_precision",
        "ops/test_torch_library.py::test_grad_scaler",
        "optim/test_optim.py::test_loss_scale_gives_the_same_update",
        "optim/test_recognition.py::test_loss_scale_is_gone_before_a_fused_step",
    ),
    row(
        "`half()`, `bfloat16()`, `to(dtype)`, timm's `dtype=`",
        "works",
        "normalisation stays in float32; statistics in half precision are refused",
        "layers/test_half_precision.py::test_networks_of_the_zoo",
        "layers/test_half_precision.py::test_networks_of_timm",
        "layers/test_half_precision.py::test_statistics_that_are_lost_are_refused",
    ),
    # ---- filters that are computed or changed
    row(
        "`nn.utils.prune`, `parametrize`, `weight_norm`, `spectral_norm`, `orthogonal`",
        "works",
        "`AdderSGD` scales what the filter is computed from; they compile; `fuse` leaves such layers as they are",
        "optim/test_recognition.py::test_filters_that_are_computed",
        "models/test_other_tools.py::test_network_with_computed_filters",
    ),
    row(
        "`weight.data` changed in any way, momentum teachers, shared memory",
        "works",
        "every call answers with the weights of now",
        "ops/test_weights_of_now.py::test_answers_with_the_weights_of_now",
        "ops/test_weights_of_now.py::test_momentum_teacher",
    ),
    row(
        "`deepcopy`, pickle, `torch.save`; parameters swapped or replaced",
        "works",
        "also of network and optimizer together",
        "layers/test_layers.py::test_copies_are_recognised_as_adder_layers",
        "optim/test_recognition.py::test_copies_of_network_and_optimizer",
        "optim/test_recognition.py::test_parameters_that_are_swapped",
    ),
    row(
        "`fuse_conv_bn_eval` and others that fold batch norm into filters; timm's `reparameterize_model`",
        "refused",
        "a distance is not linear in its filters; `adder_zoo.fuse` does it",
        "layers/test_layers.py::test_batch_norm_cannot_be_folded",
        "layers/test_convert.py::test_fusion_is_refused_and_nothing_changes",
    ),
    row(
        "`prepare_fx` and other quantisation of torch's",
        "leaves out",
        "adder layers stay as they are, the others are quantised",
        "layers/test_tracing.py::test_quantisation_leaves_adder_layers_as_they_are",
    ),
    # ---- processes
    row(
        "`DistributedDataParallel`, `SyncBatchNorm`",
        "works",
        "two processes give one process's update",
        "optim/test_optim.py::test_two_processes_give_the_same_update",
        "models/test_other_tools.py::test_batch_norm_over_processes",
    ),
    row(
        "FSDP 2 (`fully_shard`)",
        "works",
        "`AdderSGD` takes the norm of the whole filter",
        "optim/test_optim.py::test_filters_in_parts_know_the_norm_of_the_whole",
        "training/test_launch.py::test_accelerate_launches_its_files",
    ),
    row(
        "FSDP 1 (`FullyShardedDataParallel`)",
        "refused",
        "by `AdderSGD`: a layer's norm cannot be taken of a flat parameter",
        "optim/test_optim.py::test_filters_in_parts_know_the_norm_of_the_whole",
    ),
    row(
        "`ZeroRedundancyOptimizer`, optimizers in the backward pass, `torch.distributed.checkpoint`",
        "works",
        "with `AdderSGD` as with `SGD`",
        "models/test_other_tools.py::test_zero_redundancy_optimizer",
        "models/test_other_tools.py::test_optimizer_in_the_backward_pass",
        "models/test_other_tools.py::test_distributed_checkpoint",
    ),
    row(
        "`swa_utils.AveragedModel`, `update_bn`",
        "works",
        "",
        "models/test_other_tools.py::test_averaged_model_and_its_batch_norm",
    ),
    row(
        "`accelerate launch`, `torchrun`",
        "works",
        "the recipes; files for accelerate are in `recipes/accelerate/`",
        "training/test_launch.py::test_two_processes_share_the_work",
        "training/test_launch.py::test_accelerate_reads_its_files",
        "training/test_launch.py::test_processes_that_do_not_know_each_other_are_refused",
    ),
    # ---- timm
    row(
        "`timm.create_model` and its options, `features_only` by each wrapper, `reset_classifier`, checkpointing",
        "works",
        "what timm's networks of the kind do not know is a `TypeError`, as there",
        "models/test_zoo.py::test_what_timm_passes_around_a_network",
        "models/test_zoo.py::test_what_timm_does_not_know_either_is_a_type_error",
        "models/test_zoo.py::test_features_by_each_of_timms_wrappers",
        "models/test_zoo.py::test_features_head_and_another_classifier",
        "models/test_zoo.py::test_gradient_checkpointing_changes_nothing",
        "models/test_imagenet.py::test_features_are_those_of_the_parent",
    ),
    row(
        "timm's `train.py`: optimizer, layer decay, clipping, average of the weights, schedule, resuming",
        "works",
        "`--device-modules adder_zoo --opt addersgd`; `adder_sgd` is understood, too",
        "models/test_other_tools.py::test_optimizer_options_of_timms_train",
        "models/test_other_tools.py::test_loop_of_timms_train",
        "optim/test_recognition.py::test_timm_builds_it_by_either_name",
        "checkpoints/test_imported.py::test_timms_training_checkpoints",
    ),
    row(
        "timm's networks in `convert_to_adder`",
        "most",
        "913 of 988 with convolutions, see [coverage](coverage.md); the others are refused with a reason",
        "layers/test_convert.py::test_first_convolution_and_classifier_stay",
        "layers/test_convert.py::test_what_has_no_adder_form_is_refused_by_name_and_nothing_changes",
    ),
    # ---- torchvision
    row(
        "torchvision's networks for classification",
        "works",
        "gates and classifiers stay; layers without batch norm are named in a warning",
        "layers/test_convert.py::test_torchvision_classification",
    ),
    row(
        "torchvision's segmentation and detection (FCN, DeepLab, LR-ASPP, SSD, RetinaNet, FCOS, R-CNN)",
        "works",
        "heads without batch norm stay convolutions; feature pyramids without, and frozen batch norm, give a warning",
        "layers/test_convert.py::test_torchvision_segmentation_and_detection",
        "layers/test_convert.py::test_frozen_batch_norm_is_no_batch_norm",
    ),
    row(
        "torchvision's `create_feature_extractor`",
        "works",
        "",
        "layers/test_tracing.py::test_features_by_torchvision",
    ),
    # ---- counters
    row(
        "torch's `FlopCounterMode`",
        "works",
        "two for a tap, as for a convolution",
        "models/test_report.py::test_flop_counter_knows_forward_and_backward",
    ),
    row(
        "fvcore's `FlopCountAnalysis`",
        "with handles",
        "`set_op_handle(**adder_zoo.fvcore.HANDLES)`; without them it passes over adder layers",
        "models/test_counters.py::test_fvcore_counts_a_network_like_its_twin",
        "models/test_counters.py::test_handle_counts_taps",
    ),
    row(
        "torchinfo",
        "parameters only",
        'its "mult-adds" have each filter once; use `adder_zoo.report`',
        "models/test_counters.py::test_torchinfo_counts_each_filter_once_and_not_for_each_place",
    ),
    # ---- files
    row(
        "Hugging Face Hub, timm's `hf-hub:` and `local-dir:`",
        "works",
        "against a stand-in for the Hub; converted networks come back as what they are, fused ones are refused",
        "hub/test_hub.py::test_ways_to_pull",
        "hub/test_save.py::test_converted_network_comes_back",
        "hub/test_save.py::test_fused_network_is_not_saved",
    ),
    row(
        "Hugging Face's `kernels`",
        "works",
        "the build is read by the library, its layer compiles, and it passes the tests of the installed kernels",
        "hub/test_kernel_project.py::test_metadata_is_read_by_kernels",
        "hub/test_kernel_project.py::test_kernels_from_elsewhere_pass_the_tests_of_the_installed_ones",
    ),
    row(
        "checkpoints of the authors' code and its copies",
        "works",
        "`adder-zoo import`; no code in a file is run",
        "checkpoints/test_checkpoints.py::test_copies_of_the_authors_format",
        "checkpoints/test_checkpoints.py::test_code_in_a_pickle_is_not_run",
    ),
)

HEAD = f"""# What it was run with

One table of other people's tools: what works with adder layers, what is refused, and which tests show it. "Refused" is
an error, never a wrong answer. Run with {VERSIONS}.

The quick tests were also run with two other versions of torch. With 2.15 and its Triton 3.9 one of 4,426 fails: a
library writes its own message into a training's output. With torch 2.10, the oldest that the package takes, networks
that `fuse` and `quantize` return do not pickle (an error of `torch.fx`), parameters that `fuse` no longer needs may
stay in a network, Gloo writes its own message into the output of several processes, and the interpreter of its Triton
does not run with today's numpy.

The page is rendered by `python tests/support/compatibility.py`, and
`pytest $(python tests/support/compatibility.py --tests)` runs all that it claims. Tests lie in `tests/`.

| tool | | how | tests |
|---|---|---|---|
"""

TAIL = """
**Not run**: torchao, DeepSpeed, Lightning, transformers' `Trainer`, and whatever needs a GPU (tests for
one are written: `make gpu`).
"""


def render() -> str:
    """The page."""
    lines = [f"| {r.tool} | **{r.result}** | {r.how} | {', '.join(f'`{test}`' for test in r.tests)} |\n" for r in ROWS]
    return HEAD + "".join(lines) + TAIL


def tests() -> list[str]:
    """The tests of all rows as pytest takes them, each once."""
    return list(dict.fromkeys(f"tests/{test}" for r in ROWS for test in r.tests))


@functools.cache
def functions(file: str) -> frozenset[str]:
    """The names of the tests in a file, without importing it."""
    nodes = ast.walk(ast.parse((ROOT / file).read_text()))
    return frozenset(node.name for node in nodes if isinstance(node, ast.FunctionDef))


def missing() -> list[str]:
    """Tests that rows name and no file has."""
    named = (test.split("::") for test in tests())
    return [f"{file}::{name}" for file, name in named if not (ROOT / file).is_file() or name not in functions(file)]


if __name__ == "__main__":
    if sys.argv[1:] == ["--tests"]:
        print(*tests())
    else:
        PAGE.write_text(render())
