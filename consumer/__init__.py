"""Online: frames on a Kafka topic become verdicts on another."""
