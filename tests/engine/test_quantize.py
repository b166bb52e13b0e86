"""int8: what is quantized, how, and when it is refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from engine.choice import open_for
from engine.errors import BundleError, GraphError, ParityError
from engine.heads import Calibration, stack
from engine.quantize import FULL_PRECISION_UNTIL, quantized
from tests.bundles import graph, pictures, small_bundle, small_head

CALM = Calibration(0.2, 0.0, 0.0)


@pytest.fixture(scope="module")
def int8() -> onnx.ModelProto:
    return onnx.load_from_string(quantized(graph(), pictures(4), FULL_PRECISION_UNTIL[1]))


def test_convolutions_are_int8_with_zero_points_of_zero_and_the_first_blocks_are_not(int8: onnx.ModelProto) -> None:
    made_by = {output: node for node in int8.graph.node for output in node.output}
    values = {value.name: onnx.numpy_helper.to_array(value) for value in int8.graph.initializer}
    convolutions = [node for node in int8.graph.node if node.op_type == "Conv"]
    from_int8 = [node for node in convolutions if node.input[1] in made_by]  # the others' weights are constants
    kept = [node for node in convolutions if node not in from_int8]
    assert {node.name.split("_")[0] for node in kept} == {"stem", "block0", "block1"}
    assert len(from_int8) > 20
    for node in int8.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"}:
            zero_point = values[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
    # Weights have a scale for each output channel, and no bias is quantized: TensorRT refuses the other forms.
    for node in from_int8:
        assert values[made_by[node.input[1]].input[1]].size == values[made_by[node.input[1]].input[0]].shape[0]
        assert values[node.input[2]].dtype == np.float32


def test_int8_stays_near_the_reference_and_is_opened_through_its_bundle() -> None:
    head = replace(small_head(), calibration=CALM)
    plain = small_bundle(head=head)
    backend = open_for(plain, "openvino-int8")
    reference = plain.reference
    assert reference is not None
    assert (backend.name, backend.precision) == ("openvino", "int8")
    evidence = backend.infer(reference.images, *stack([head])).evidence[:, 0]
    backend.close()
    assert 0 < np.abs(evidence - reference.evidence).max() < 0.5


def test_int8_is_not_offered_where_it_would_decide_otherwise() -> None:
    reference = small_bundle().reference
    assert reference is not None
    edge = -5000.0 * float(reference.evidence[2])
    steep = small_bundle(head=replace(small_head(), calibration=Calibration(5000.0, 0.0, edge)))
    with pytest.raises(ParityError, match=r"int8 is not offered for bundle 'parts': .* take --backend auto"):
        open_for(steep, "openvino-int8")


def test_int8_needs_pictures_to_calibrate_on() -> None:
    with pytest.raises(BundleError, match="brings no reference images"):
        open_for(small_bundle(with_reference=False), "openvino-int8")


def test_what_is_no_graph_or_has_nothing_to_quantize_is_refused() -> None:
    with pytest.raises(GraphError, match="cannot be quantized"):
        quantized(b"not a graph", pictures(1), ("stem_",))
    with pytest.raises(GraphError, match="nothing in the graph is left to quantize"):
        quantized(graph(), pictures(1), ("stem_", "block"))
