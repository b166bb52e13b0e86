"""Spark's errors in one line: what a user can do about them. Pure."""

from __future__ import annotations

import re

_LACKING = (
    "the executors have no whole Framegate: expected it, with the extra [spark] and its weights, in the Python that "
    "runs there; install the same environment on every machine and name its interpreter in PYSPARK_PYTHON"
)
_ANOTHER_PYTHON = (
    "the executors run another Python than this machine: expected the same minor version; name the interpreter of the "
    "same environment in PYSPARK_PYTHON"
)
_NO_PYTHON = (
    "the executors cannot start Python: expected the interpreter of Framegate's environment under the same path there; "
    "name it in PYSPARK_PYTHON"
)
_NO_JAVA = "Spark's JVM did not start: expected Java 17 or newer on the PATH or in JAVA_HOME"
_LOST = (
    "executors were lost again and again, most likely for want of memory: expected about 0.5 GiB beside the heap for "
    "each task that runs at a time; raise spark.executor.memoryOverhead with --spark-conf"
)
_CAUSES = (
    ("No module named '(trainer|engine|onnxruntime|cv2|pyarrow|pandas|numpy)", _LACKING),
    ("PYTHON_VERSION_MISMATCH|different minor version", _ANOTHER_PYTHON),
    ("Cannot run program", _NO_PYTHON),
    ("JAVA_GATEWAY_EXITED", _NO_JAVA),
    ("OutOfMemoryError|exit code 137|exitCode: 137|ExecutorLostFailure|Python worker exited unexpectedly", _LOST),
)
"""What stands in the text, and the line to make of it; the first that fits counts."""


def in_words(text: str) -> str:
    """One line for the text of an error of Spark. An error that Framegate raised in an executor keeps its own words."""
    own: list[str] = re.findall(r"^(?:trainer|engine)\.errors\.\w+: (.*)$", text, re.MULTILINE)
    if own:
        return own[-1]
    for pattern, line in _CAUSES:
        if re.search(pattern, text):
            return line
    first = next((line.strip() for line in text.splitlines() if line.strip()), "no reason given")
    return f"Spark failed ({first[:300]}): expected the job to end; see its log, then start again"
