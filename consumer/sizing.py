"""How many partitions, workers, pods and GPUs so many stations need. Pure: from a demand and rates to a plan.

Rates are arguments. Those of a processor's core stand here as Framegate's own benchmark (tests/bench) measured them, on
one kind of machine, with one kind of frame. Of a GPU none was measured, and none stands here: a plan says from which
rate on it holds, which a measurement on the GPU itself can confirm or refute.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from consumer.errors import SettingsError

MEASURED_PX = 640 * 480
"""Pixels of the frames that the benchmark sends, about 70 KiB each."""

MEASURED_KIB = 70.0

EXACTLY_ONCE = 0.833
"""Verdicts a second exactly once, of those at least once; Apache Kafka on the same two cores."""


@dataclass(frozen=True, slots=True)
class CoreRate:
    """What one worker on one core does.

    Attributes:
        frames_per_s: of the benchmark's frames.
        growing_us: of a frame's time, decoding and fetching, which grow with its pixels; processor microseconds.
    """

    frames_per_s: float
    growing_us: float

    def of(self, frame_px: float) -> float:
        """Frames of so many pixels a second."""
        return 1 / (1 / self.frames_per_s + self.growing_us / 1e6 * (frame_px / MEASURED_PX - 1))


ALL_ON_A_CORE = CoreRate(607.6 / 2 * EXACTLY_ONCE, 934 + 148)
"""Inference too: OpenVINO in bfloat16, 160 x 160 for the network."""

BESIDE_A_GPU = CoreRate(871 / 2 * EXACTLY_ONCE, 884 + 165)
"""All but inference, for the engine of a GPU."""

WORKER_CORES = 2 * 403 / 524
"""Cores that one worker can use where the others of its pod leave them: it decodes on two threads. One worker on two
cores, against two."""

PARTITIONS = (12, 24, 48, 96, 192, 384, 768)
"""Numbers that 2, 3, 4, 6 and more workers share evenly."""

SURE = 0.95
"""How likely it is that no pod and no worker has more stations than a plan says, wherever their keys put them."""


@dataclass(frozen=True, slots=True)
class Demand:
    """What comes.

    Attributes:
        stations: cameras.
        rate_per_s: frames a second of each, at its busiest.
        frame_kib: KiB of one encoded frame.
    """

    stations: int
    rate_per_s: float
    frame_kib: float = MEASURED_KIB

    @property
    def frames_per_s(self) -> float:
        """Of all stations."""
        return self.stations * self.rate_per_s


@dataclass(frozen=True, slots=True)
class Host:
    """What there is to do it.

    Attributes:
        frames_per_s_core: what one worker on one core does, as measured.
        gpu_images_per_s: what one GPU computes; None: the processor infers.
        load: share of these to plan with. What is left is for bursts and for catching up: after a pause of s seconds
            it takes load / (1 - load) * s to be level again.
        cores_per_pod: most workers in a pod.
        spare: pods beyond what the load needs.
        growth: partitions for so many times as many workers.
    """

    frames_per_s_core: float
    gpu_images_per_s: float | None = None
    load: float = 0.6
    cores_per_pod: int = 8
    spare: int = 0
    growth: int = 3


@dataclass(frozen=True, slots=True)
class Size:
    """What to write into the chart's values, and how tight it is.

    Attributes:
        partitions: of the frames' topic; for good.
        replicas: pods, the spare ones with them; on a GPU one for each.
        workers: in each pod.
        gpus: all in all.
        gpus_computing: that the images alone would need; fewer than `gpus` where the cores decide.
        busiest_stations: of one pod, at most, without the spare ones; see `SURE`.
        busiest_load: what the cores of that pod do, of what they could.
        gpu_load: what its GPU computes, of what it could; None without one.
        holds_from_images_per_s: the same plan comes out as long as a GPU computes so much; None without one.
        frames_per_s_replica: what KEDA divides by: as many pods as are needed without spare ones.
        kafka_mib_per_s: what the cameras send.
        catch_up: seconds until it is level again, for each second that it stood still.
    """

    partitions: int
    replicas: int
    workers: int
    gpus: int
    gpus_computing: int
    busiest_stations: int
    busiest_load: float
    gpu_load: float | None
    holds_from_images_per_s: float | None
    frames_per_s_replica: float
    kafka_mib_per_s: float
    catch_up: float


def size(demand: Demand, host: Host) -> Size:
    """What this demand needs of such hosts.

    A key's hash puts each station into a partition, and the group shares the partitions evenly. So stations fall to
    workers, and to pods, as balls into bins, and what must not be too much is what falls to the busiest. The workers of
    a pod share its cores.

    Raises:
        SettingsError: one station alone is too much for a worker, or all are for the largest number of partitions.
    """
    _check(demand, host)
    share_per_s = host.load * host.frames_per_s_core
    worker_per_s = WORKER_CORES * share_per_s
    if demand.rate_per_s > worker_per_s:
        msg = (
            f"{demand.rate_per_s:g} frames/s of one station are more than one worker is to carry "
            f"({worker_per_s:.0f}/s, at a load of {host.load:g}), and a station's frames all go to one: expected fewer"
        )
        raise SettingsError(msg)
    gpu_s = math.inf if host.gpu_images_per_s is None else host.gpu_images_per_s
    computing = math.ceil(demand.frames_per_s / (host.load * gpu_s))
    fewest = max(1, computing, math.ceil(demand.frames_per_s / (share_per_s * host.cores_per_pod)))
    for pods in range(fewest, PARTITIONS[-1] + 1):
        for each in range(1, host.cores_per_pod + 1):
            partitions = next((number for number in PARTITIONS if number >= host.growth * pods * each), PARTITIONS[-1])
            if (pods + host.spare) * each > partitions:
                break
            if pods * each * share_per_s < demand.frames_per_s:
                continue
            of_pod = demand.rate_per_s * busiest_stations(demand.stations, pods, partitions)
            of_worker = demand.rate_per_s * busiest_stations(demand.stations, pods * each, partitions)
            if of_pod <= min(each * share_per_s, host.load * gpu_s) and of_worker <= worker_per_s:
                return _told(demand, host, pods, each, partitions, of_pod, computing)
    msg = (
        f"{demand.stations} stations at {demand.rate_per_s:g} frames/s need more workers than the {PARTITIONS[-1]} "
        "partitions of the largest topic: expected fewer; give parts of the plant topics and a group of their own"
    )
    raise SettingsError(msg)


def _told(
    demand: Demand, host: Host, pods: int, workers: int, partitions: int, busiest_per_s: float, computing: int
) -> Size:
    """The plan with so many pods, of which the busiest gets so many frames a second."""
    gpu_s = host.gpu_images_per_s
    replicas = pods + host.spare
    return Size(
        partitions=partitions,
        replicas=replicas,
        workers=workers,
        gpus=0 if gpu_s is None else replicas,
        gpus_computing=0 if gpu_s is None else computing,
        busiest_stations=round(busiest_per_s / demand.rate_per_s),
        busiest_load=busiest_per_s / (workers * host.frames_per_s_core),
        gpu_load=None if gpu_s is None else busiest_per_s / gpu_s,
        holds_from_images_per_s=None if gpu_s is None else busiest_per_s / host.load,
        frames_per_s_replica=demand.frames_per_s / pods,
        kafka_mib_per_s=demand.frames_per_s * demand.frame_kib / 1024,
        catch_up=host.load / (1 - host.load),
    )


def busiest_stations(stations: int, bins: int, partitions: int) -> int:
    """Stations of the busiest of so many workers or pods, at most, with a likelihood of `SURE`, whatever their names.

    A station falls to the one with most partitions as often as those are of all; that any of them has more than a
    number is bounded by the sum of their chances (Boole).
    """
    chance = math.ceil(partitions / bins) / partitions
    if chance >= 1:
        return stations
    over = 0.0
    for count in range(stations, 0, -1):
        over += _binomial(count, stations, chance)
        if bins * over > 1 - SURE:
            return count
    return 1


def _binomial(count: int, of: int, chance: float) -> float:
    """The likelihood of exactly so many."""
    ways = math.lgamma(of + 1) - math.lgamma(count + 1) - math.lgamma(of - count + 1)
    return math.exp(ways + count * math.log(chance) + (of - count) * math.log1p(-chance))


def _check(demand: Demand, host: Host) -> None:
    """Refuse what is no demand and no host."""
    for name, value, good in (
        ("stations", demand.stations, demand.stations >= 1),
        ("rate", demand.rate_per_s, demand.rate_per_s > 0),
        ("frame-kib", demand.frame_kib, demand.frame_kib > 0),
        ("frames-per-s-core", host.frames_per_s_core, host.frames_per_s_core > 0),
        ("images-per-s", host.gpu_images_per_s, host.gpu_images_per_s is None or host.gpu_images_per_s > 0),
        ("cores-per-pod", host.cores_per_pod, host.cores_per_pod >= 1),
        ("growth", host.growth, host.growth >= 1),
    ):
        if not good:
            msg = f"--{name} {value:g} is too small: expected more" if value is not None else f"--{name} is missing"
            raise SettingsError(msg)
    if not 0 < host.load < 1:
        msg = f"--load {host.load:g} is no share: expected more than 0 and less than 1"
        raise SettingsError(msg)
    if host.spare < 0:
        msg = f"--spare {host.spare} is too small: expected 0 or more"
        raise SettingsError(msg)
