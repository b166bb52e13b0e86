"""A reject gate in Python: a part per line on standard input as it is triggered, what to do with it on standard output.

It acts on one station's verdicts alone. Needs kafka-python 3. Run: python gate.py kafka-1:9092 verdicts press-1 0.5
"""

import json
import sys
import threading
import time

from kafka import KafkaConsumer, TopicPartition

servers, topic, station, deadline_s = sys.argv[1], sys.argv[2], sys.argv[3], float(sys.argv[4])
ACTIONS = {"pass": "open", "review": "inspect"}  # whatever else a verdict says: reject
waiting = {}  # part -> when it has to be decided, monotonic seconds


def act(part: str, action: str, why: str) -> None:
    if waiting.pop(part, None) is not None:  # for a verdict that is repeated or late, no part waits any more
        print(part, action, why, flush=True)


def triggers() -> None:
    for line in sys.stdin:
        waiting[line.strip()] = time.monotonic() + deadline_s


consumer = KafkaConsumer(bootstrap_servers=servers, group_id=None, isolation_level="read_committed")
partitions = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic)]
consumer.assign(partitions)
consumer.seek_to_end(*partitions)
positions = [consumer.position(partition) for partition in partitions]  # known from here on: nothing is missed
threading.Thread(target=triggers, daemon=True).start()
print("ready", file=sys.stderr, flush=True)
while True:
    records = [record for batch in consumer.poll(timeout_ms=20).values() for record in batch]
    for part, by in list(waiting.items()):  # first, so that a verdict that came too late opens nothing
        if time.monotonic() >= by:
            act(part, "reject", "deadline")
    for record in records:
        try:
            verdict = json.loads(record.value)
            if verdict["schema"] == 1 and verdict["station"] == station:  # another station's pass is not ours
                act(verdict["part_id"], ACTIONS.get(verdict["decision"], "reject"), verdict["decision"])
        except (ValueError, KeyError, TypeError):
            continue  # unreadable: its part is rejected at the deadline
