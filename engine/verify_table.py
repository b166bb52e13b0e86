"""The result of `framegate verify` as lines for people."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def lines(result: Mapping[str, Any]) -> Iterator[str]:
    """What `engine.verify.verify` found; of the batch sizes the powers of two and the largest."""
    reference, golden, memory = result["reference"], result["golden"], result["memory"]
    yield f"backend    {result['backend']} {result['precision']} on {result['device']}"
    yield f"reference  {reference['images']} images of the bundle: {reference['told']}"
    yield (
        f"golden     {golden['images']} pictures against ONNX Runtime: smallest cosine "
        f"{_number(golden['pooled_cosine_min'], 6)}, largest difference of the evidence "
        f"{_number(golden['evidence_difference_share'], 5)} of its deviation"
    )
    batches = result["batches"]
    same = sum(batch["same"] for batch in batches)
    of = f"{len(batches)} sizes, {batches[0]['size']} to {batches[-1]['size']}"
    yield f"batches    in {same} of {of}, every image has the numbers that it has alone"
    yield ""
    yield "     size  warm-up ms  images/s    p50 ms    p99 ms"
    for batch in batches:
        if batch["size"] & (batch["size"] - 1) == 0 or batch is batches[-1]:
            yield (
                f"{batch['size']:9}  {batch['warm_up_ms']:10.1f}  {batch['images_per_s']:8.0f}  {batch['p50_ms']:8.2f}"
                f"  {batch['p99_ms']:8.2f}"
            )
    yield ""
    device = memory["device_growth_mib"]
    yield (
        f"memory     {_number(memory['growth_mib'], 1)} MiB grown over {memory['batches']} batches of {memory['size']}"
        + ("" if device is None else f", on the device {_number(device, 1)} MiB")
    )
    yield f"speed      {_number(result['images_per_s'], 0)} images/s over the reference images"
    for fault in result["faults"]:
        yield f"FAULT      {fault}"
    yield f"agrees     {'yes' if result['agrees'] else 'NO'}"


def _number(value: float | None, decimals: int) -> str:
    return "not a number" if value is None else f"{round(value, decimals) or 0.0:.{decimals}f}"  # never -0.0
