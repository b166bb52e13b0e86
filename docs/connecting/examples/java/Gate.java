import com.fasterxml.jackson.databind.*;
import java.io.*;
import java.time.Duration;
import java.util.*;
import java.util.concurrent.ConcurrentHashMap;
import org.apache.kafka.clients.consumer.*;
import org.apache.kafka.common.TopicPartition;
import org.apache.kafka.common.serialization.ByteArrayDeserializer;

/** A reject gate in Java: a part per line on standard input as it is triggered, what to do with it on standard output. */
// It acts on one station's verdicts alone. Arguments: kafka-1:9092 verdicts press-1 0.5
class Gate {
    static final Map<String, String> ACTIONS = Map.of("pass", "open", "review", "inspect"); // whatever else: reject
    static final Map<String, Long> waiting = new ConcurrentHashMap<>(); // part -> when to decide, monotonic nanoseconds

    static void act(String part, String action, String why) {
        if (waiting.remove(part) != null) { // for a verdict that is repeated or late, no part waits any more
            System.out.println(part + " " + action + " " + why);
        }
    }

    public static void main(String[] arguments) throws Exception {
        String station = arguments[2];
        long deadlineNs = (long) (Double.parseDouble(arguments[3]) * 1e9);
        var settings = new Properties();
        settings.put("bootstrap.servers", arguments[0]);
        settings.put("isolation.level", "read_committed");
        var consumer = new KafkaConsumer<>(settings, new ByteArrayDeserializer(), new ByteArrayDeserializer());
        var partitions = consumer.partitionsFor(arguments[1]).stream()
            .map(one -> new TopicPartition(one.topic(), one.partition())).toList();
        consumer.assign(partitions);
        consumer.seekToEnd(partitions);
        partitions.forEach(consumer::position); // known from here on: nothing is missed
        var triggers = new Thread(() -> new BufferedReader(new InputStreamReader(System.in)).lines()
            .forEach(line -> waiting.put(line.trim(), System.nanoTime() + deadlineNs)));
        triggers.setDaemon(true);
        triggers.start();
        System.err.println("ready");
        var json = new ObjectMapper();
        while (true) {
            var records = consumer.poll(Duration.ofMillis(20));
            waiting.forEach((part, by) -> { // first, so that a verdict that came too late opens nothing
                if (System.nanoTime() - by >= 0) act(part, "reject", "deadline");
            });
            for (var record : records) {
                try {
                    var verdict = json.readTree(record.value());
                    String part = verdict.required("part_id").textValue(), said = verdict.required("decision").textValue();
                    var ours = station.equals(verdict.path("station").textValue()); // another station's pass is not
                    if (verdict.path("schema").asInt() == 1 && ours) act(part, ACTIONS.getOrDefault(said, "reject"), said);
                } catch (IOException | RuntimeException unreadable) {
                    continue; // its part is rejected at the deadline
                }
            }
        }
    }
}
