"""What is broken, one function a fault. Each is a generator: it breaks, yields while it waits, mends, and tells when.

A fault yields until it is over, and returns the moment from which recovery counts, in monotonic seconds: where
something died, was moved or was changed, the moment of that; where the network was broken, the moment it was healed,
for before it nothing could flow.
"""

from __future__ import annotations

import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import KafkaError

from tests.faults.plant import PARTITIONS

if TYPE_CHECKING:
    import random
    from collections.abc import Callable, Generator

    from tests.faults.plant import Plant, Worker

    Fault = Generator[None, None, float]

NODES = (1, 2, 3)
BROKER_AWAY_S = (1.0, 6.0)
CUT_S = (1.0, 9.0)
STALLED_S = (1.0, 12.0)
DELAY_S = (0.05, 0.4)
DELAYED_S = (3.0, 8.0)
DEAD_LETTERS_REFUSED_S = (3.0, 8.0)
PATIENCE_S = 60.0
LOSS_S = 15.0
HALVES = 3


def sleep(seconds: float) -> Generator[None, None, None]:
    """Yield for so long."""
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        yield


def until(condition: Callable[[], bool], patience_s: float = PATIENCE_S) -> Generator[None, None, bool]:
    """Yield until something holds; False where it does not in time."""
    end_s = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > end_s:
            return False
        yield
    return True


def kill(worker: Worker, drawn: random.Random) -> Fault:
    """`kill -9`; back a moment later under the same name."""
    began_s = time.monotonic()
    worker.kill()
    yield from sleep(drawn.uniform(0.0, 2.0))
    worker.start()
    return began_s


def terminate(worker: Worker) -> Fault:
    """SIGTERM in the middle of whatever it does; it answers what it has in hand, ends well, and comes back."""
    began_s = time.monotonic()
    worker.terminate()
    yield from until(lambda: worker.process.poll() is not None)
    require_good_end(worker)
    worker.start()
    return began_s


def require_good_end(worker: Worker) -> None:
    """A consumer that was asked to end has done so with 0."""
    if worker.process.poll() != 0:
        worker.ending = False  # noted as one that ended by itself, with its last words


def join(plant: Plant, name: str) -> Fault:
    """A further consumer comes."""
    began_s = time.monotonic()
    worker = plant.add_worker(name)
    yield from until(lambda: worker.up or worker.process.poll() is not None)
    return began_s


def leave(plant: Plant, worker: Worker) -> Fault:
    """A consumer goes for good, in order."""
    began_s = time.monotonic()
    worker.terminate()
    yield from until(lambda: worker.process.poll() is not None)
    require_good_end(worker)
    if worker.ending:
        plant.workers.remove(worker)
    return began_s


def broker(plant: Plant, drawn: random.Random) -> Fault:
    """A broker is killed, and comes back."""
    yield from until(plant.in_sync)
    node = drawn.choice(NODES)
    began_s = time.monotonic()
    plant.cluster.kill_broker(node)
    yield from sleep(drawn.uniform(*BROKER_AWAY_S))
    plant.cluster.launch_broker(node)
    yield from until(plant.in_sync)
    return began_s


def leader(plant: Plant, drawn: random.Random) -> Fault:
    """Partitions of every kind of topic get another leader."""
    yield from until(plant.in_sync)
    began_s = time.monotonic()
    with suppress(KafkaError), plant.admin() as admin:
        internal = (("__consumer_offsets", 5), ("__transaction_state", 5))
        moved: dict[str, list[int]] = {}
        for topic, count in (("frames", PARTITIONS), ("verdicts", PARTITIONS), *internal):
            moved[topic] = sorted(drawn.sample(range(count), 2))
        replicas = {
            TopicPartition(topic, number): drawn.sample(NODES, 3)
            for topic, numbers in moved.items()
            for number in numbers
        }
        admin.alter_partition_reassignments(replicas)
        admin.elect_leaders(0, moved, raise_errors=False)
    return began_s


def cut(plant: Plant, drawn: random.Random) -> Fault:
    """A broker's network is cut and healed."""
    proxy = plant.network[drawn.choice(NODES)]
    proxy.cut()
    yield from sleep(drawn.uniform(*CUT_S))
    proxy.heal()
    return time.monotonic()


def stall(plant: Plant, drawn: random.Random) -> Fault:
    """Nothing reaches a broker or comes from it, and nobody is told; longer than a session at times."""
    proxy = plant.network[drawn.choice(NODES)]
    proxy.stall()
    yield from sleep(drawn.uniform(*STALLED_S))
    proxy.heal()
    return time.monotonic()


def delay(plant: Plant, drawn: random.Random) -> Fault:
    """Every message to and from a broker is late."""
    proxy = plant.network[drawn.choice(NODES)]
    proxy.delay_s = drawn.uniform(*DELAY_S)
    yield from sleep(drawn.uniform(*DELAYED_S))
    proxy.heal()
    return time.monotonic()


def halve(plant: Plant) -> Fault:
    """Answers of every broker break off in their middle."""
    proxies = list(plant.network.proxies.values())
    before = sum(proxy.halved for proxy in proxies)
    for proxy in proxies:
        proxy.halve(HALVES)
    yield from until(lambda: sum(proxy.halved for proxy in proxies) > before, LOSS_S)
    yield from sleep(1.0)
    for proxy in proxies:
        proxy.heal()
    return time.monotonic()


def lost_commit(plant: Plant) -> Fault:
    """A transaction is committed, and its producer does not hear of it."""
    proxies = list(plant.network.proxies.values())
    before = sum(proxy.lost_commits for proxy in proxies)
    for proxy in proxies:
        proxy.lose_commits()
    yield from until(lambda: sum(proxy.lost_commits for proxy in proxies) > before, LOSS_S)
    for proxy in proxies:
        proxy.lose_commits(0)
    return time.monotonic()


def dead_letters(plant: Plant, drawn: random.Random) -> Fault:
    """The topic of dead letters refuses everything, and later takes it again."""
    began_s = time.monotonic()
    _limit_dead_letters(plant, "1")
    yield from sleep(drawn.uniform(*DEAD_LETTERS_REFUSED_S))
    _limit_dead_letters(plant, "1048588")
    return began_s


def _limit_dead_letters(plant: Plant, largest_bytes: str) -> None:
    with suppress(KafkaError), plant.admin() as admin:
        wanted = {"max.message.bytes": largest_bytes}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, "frames.dead", wanted)])


def clock(worker: Worker) -> Fault:
    """A consumer's time of day jumps."""
    yield from until(lambda: worker.up)
    began_s = time.monotonic()
    if worker.up:
        worker.process.send_signal(signal.SIGUSR1)
    return began_s
