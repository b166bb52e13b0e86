// A reject gate in Node: a part per line on standard input as it is triggered, what to do with it on standard output.
// It acts on one station's verdicts alone. Needs kafkajs, or @confluentinc/kafka-javascript (see the page).
// Run: node gate.js kafka-1:9092 verdicts press-1 0.5
const { Kafka, logLevel } = require("kafkajs");
const { randomUUID } = require("crypto");

const [servers, topic, station, deadlineS] = process.argv.slice(2);
const ACTIONS = { pass: "open", review: "inspect" }; // whatever else a verdict says: reject
const waiting = new Map(); // part -> when it has to be decided, monotonic milliseconds

function act(part, action, why) {
  if (waiting.delete(part)) console.log(part, action, why); // for a repeated or late verdict no part waits any more
}

function expire() {
  for (const [part, by] of waiting) if (performance.now() >= by) act(part, "reject", "deadline");
}

const kafka = new Kafka({ brokers: servers.split(","), logLevel: logLevel.NOTHING });
const consumer = kafka.consumer({ groupId: `gate-${randomUUID()}`, readUncommitted: false });

async function onVerdict({ message }) {
  expire(); // first, so that a verdict that came too late opens nothing
  try {
    const verdict = JSON.parse(message.value.toString());
    if (verdict.schema !== 1 || verdict.station !== station) return; // another station's pass is not ours
    act(verdict.part_id, ACTIONS[verdict.decision] ?? "reject", verdict.decision);
  } catch {
    // unreadable: its part is rejected at the deadline
  }
}

async function main() {
  setInterval(expire, 20);
  const listen = () => require("readline").createInterface({ input: process.stdin })
    .on("line", (line) => waiting.set(line.trim(), performance.now() + 1000 * Number(deadlineS)));
  consumer.on(consumer.events.CRASH, ({ payload }) => payload.restart || fail(payload.error));
  const off = consumer.on(consumer.events.FETCH, () => { off(); listen(); console.error("ready"); }); // positions are known
  await consumer.connect();
  await consumer.subscribe({ topics: [topic], fromBeginning: false });
  await consumer.run({ autoCommit: false, eachMessage: onVerdict });
}

function fail(error) {
  console.error(error.message);
  process.exit(1); // no part passes until it is back
}

main().catch(fail);
