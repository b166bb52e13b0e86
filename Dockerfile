# Framegate in images of its own, one for each kind of machine:
#
#   docker build --target cpu     --tag framegate:cpu .        the consumer on a processor
#   docker build --target gpu     --tag framegate:gpu .        the consumer on an NVIDIA GPU, over TensorRT
#   docker build --target trainer --tag framegate:trainer .    training, also from object stores and on Apache Spark
#
# All three run as user 10001 on a read-only root: writable are /tmp, which should be a tmpfs, and the volume
# /var/cache/framegate, which holds TensorRT's plans, bundles fetched from URLs, features and matplotlib's font list.
#
#   docker run --rm --read-only --tmpfs /tmp --volume framegate-cache:/var/cache/framegate \
#       --volume /srv/bundles/parts-1:/bundle:ro framegate:cpu run --bundle /bundle --bootstrap-servers kafka-1:9092
#
# What has been proved, and what not, for want of a container engine where this was written: `tests/deploy` lets
# BuildKit's own front end read this file and plan each image, and runs the planned RUN lines on a Debian, word for word
# and at these very paths, in a mount namespace. Not run: the lines with apt-get; anything on NVIDIA's image, of which
# the `gpu` stage expects Python 3.12 and TensorRT 11.2 for it, and says so where it finds something else.
#
# Images are named by exact version. Pin them by digest where you build: --build-arg PYTHON=python:…@sha256:…

ARG PYTHON=python:3.11.15-slim-bookworm
ARG TENSORRT=nvcr.io/nvidia/tensorrt:26.08-py3
# The Python of NVIDIA's image, on an older system than that one: what is built here runs there.
ARG GPU_PYTHON=python:3.12.13-slim-bookworm

# --- the wheel, and what checks an environment that it was put into ---
FROM ${PYTHON} AS wheel
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/build.txt requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/build.txt
COPY LICENSE README.md pyproject.toml framegate.py ./
COPY consumer consumer
COPY engine engine
COPY trainer trainer
RUN /opt/build/bin/hatchling build -t wheel -d /wheel
COPY <<'PYTHON' /wheel/own_names.py
"""Ends with 1 where an import name of Framegate belongs to somebody else too: the names are too general to share."""

import sys
import sysconfig
from importlib.metadata import packages_distributions
from importlib.util import find_spec
from pathlib import Path

owners = packages_distributions()
here = Path(sysconfig.get_path("purelib")).resolve()
for name in ("framegate", "consumer", "engine", "trainer"):
    spec = find_spec(name)
    if spec is None:
        sys.exit(f"{name} is not installed for Python {sys.version}: build it for this one, see GPU_PYTHON")
    found = Path(spec.origin).resolve()
    if set(owners[name]) != {"framegate"} or here not in found.parents:
        sys.exit(f"the name {name} is not Framegate's alone: it belongs to {owners[name]} and is found at {found}")
PYTHON

# --- an environment without pip, for the processor ---
FROM ${PYTHON} AS cpu-builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/base.txt requirements/
RUN python -m venv --without-pip /opt/framegate \
    && python -m pip --python /opt/framegate/bin/python install --require-hashes --only-binary :all: \
        -r requirements/base.txt
COPY --from=wheel /wheel /wheel
RUN python -m pip --python /opt/framegate/bin/python install --no-deps --no-index /wheel/*.whl \
    && /opt/framegate/bin/python -I /wheel/own_names.py

# --- the same with what the trainer reads from elsewhere ---
FROM ${PYTHON} AS trainer-builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements/build.txt requirements/trainer.txt requirements/
# pyspark comes as a source distribution alone: Python and jars, packed by what requirements/build.txt pins.
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/build.txt \
    && /opt/build/bin/python -m pip wheel --require-hashes --only-binary :all: --no-binary pyspark \
        --no-build-isolation -w /wheels -r requirements/trainer.txt
COPY --from=wheel /wheel /wheel
RUN python -m venv --without-pip /opt/framegate \
    && python -m pip --python /opt/framegate/bin/python install --no-deps --no-index /wheels/*.whl /wheel/*.whl \
    && /opt/framegate/bin/python -I /wheel/own_names.py

# --- the same with pycuda, built against CUDA's headers and an empty driver: the real one comes from the host ---
FROM ${GPU_PYTHON} AS gpu-builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
COPY requirements/gpu-build.txt requirements/gpu.txt requirements/
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/gpu-build.txt
# No random numbers are drawn on the GPU, and their library is not needed to build.
RUN mkdir /opt/stub \
    && gcc -shared -o /opt/stub/libcuda.so -Wl,-soname,libcuda.so.1 -x c /dev/null \
    && echo 'CUDA_ENABLE_CURAND = False' > /etc/aksetup-defaults.py
RUN CPLUS_INCLUDE_PATH="$(echo /opt/build/lib/python3*/site-packages/nvidia/cu13/include)" \
    LIBRARY_PATH=/opt/stub LDFLAGS=-Wl,--no-as-needed \
    /opt/build/bin/python -m pip wheel --require-hashes --only-binary :all: --no-binary pycuda \
        --no-build-isolation -w /wheels -r requirements/gpu.txt
COPY --from=wheel /wheel /wheel
RUN python -m venv --without-pip /opt/framegate \
    && python -m pip --python /opt/framegate/bin/python install --no-deps --no-index /wheels/*.whl /wheel/*.whl \
    && /opt/framegate/bin/python -I /wheel/own_names.py

# --- trainer ---
FROM ${PYTHON} AS trainer
# Spark's driver runs here, in Java. (Its package once stumbled over the folder of manual pages, which slim images lack.)
RUN mkdir -p /usr/share/man/man1 \
    && apt-get update \
    && apt-get install --yes --no-install-recommends openjdk-17-jre-headless \
    && rm -rf /var/lib/apt/lists/*
COPY --from=trainer-builder /opt/framegate /opt/framegate
RUN groupadd --gid 10001 framegate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/framegate framegate \
    && install --directory --owner 10001 --group 10001 /var/cache/framegate /data
USER 10001:10001
WORKDIR /var/lib/framegate
ENV PATH=/opt/framegate/bin:$PATH HOME=/var/lib/framegate XDG_CACHE_HOME=/var/cache \
    MPLCONFIGDIR=/var/cache/framegate/matplotlib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /var/cache/framegate
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title="Framegate, trainer" \
    org.opencontainers.image.description="Makes a model bundle from images of good and bad parts" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# A training serves nothing that could be asked.
HEALTHCHECK NONE
ENTRYPOINT ["framegate"]
CMD ["train", "--help"]

# --- gpu: TensorRT and its bindings for the image's Python are NVIDIA's, all else is ours ---
FROM ${TENSORRT} AS gpu
COPY --from=gpu-builder /opt/framegate/lib /opt/framegate/lib
COPY --from=gpu-builder /opt/framegate/bin/framegate /opt/framegate/bin/framegate
# Our environment first, then the image's own packages, for `tensorrt`. pycuda is not loaded: the driver is the host's.
RUN --mount=type=bind,from=wheel,source=/wheel,target=/wheel \
    python3 -m venv --without-pip --system-site-packages /opt/framegate \
    && /opt/framegate/bin/python -I /wheel/own_names.py \
    && /opt/framegate/bin/python -I -c "import cv2, numpy, onnx, tensorrt; assert tensorrt.__version__ >= '11', tensorrt" \
    && groupadd --gid 10001 framegate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/framegate framegate \
    && install --directory --owner 10001 --group 10001 /var/cache/framegate /data
USER 10001:10001
WORKDIR /var/lib/framegate
ENV PATH=/opt/framegate/bin:$PATH HOME=/var/lib/framegate XDG_CACHE_HOME=/var/cache \
    MPLCONFIGDIR=/var/cache/framegate/matplotlib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /var/cache/framegate
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title="Framegate, GPU" \
    org.opencontainers.image.description="Judges frames from Kafka on an NVIDIA GPU, one verdict per frame" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# SIGTERM makes the consumer drain, commit and leave its group: give it time, for example `docker stop --time 45`.
STOPSIGNAL SIGTERM
# Building a plan on a new GPU takes minutes; nothing is served before.
HEALTHCHECK --interval=15s --timeout=5s --start-period=600s --retries=4 CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('FRAMEGATE_HTTP_PORT', '9108')}/live\", timeout=4)"]
ENTRYPOINT ["framegate"]
CMD ["run", "--help"]

# --- cpu, last: what a build without --target makes ---
FROM ${PYTHON} AS cpu
COPY --from=cpu-builder /opt/framegate /opt/framegate
RUN groupadd --gid 10001 framegate \
    && useradd --uid 10001 --gid 10001 --no-log-init --create-home --home-dir /var/lib/framegate framegate \
    && install --directory --owner 10001 --group 10001 /var/cache/framegate /data
USER 10001:10001
WORKDIR /var/lib/framegate
ENV PATH=/opt/framegate/bin:$PATH HOME=/var/lib/framegate XDG_CACHE_HOME=/var/cache \
    MPLCONFIGDIR=/var/cache/framegate/matplotlib PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
VOLUME /var/cache/framegate
ARG VERSION=unknown REVISION=unknown
LABEL org.opencontainers.image.title="Framegate" \
    org.opencontainers.image.description="Judges frames from Kafka on a processor, one verdict per frame" \
    org.opencontainers.image.licenses="Apache-2.0" \
    org.opencontainers.image.version="${VERSION}" \
    org.opencontainers.image.revision="${REVISION}"
# SIGTERM makes the consumer drain, commit and leave its group: give it time, for example `docker stop --time 45`.
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=15s --timeout=5s --start-period=120s --retries=4 CMD ["python", "-c", "import os, urllib.request; urllib.request.urlopen(f\"http://127.0.0.1:{os.environ.get('FRAMEGATE_HTTP_PORT', '9108')}/live\", timeout=4)"]
ENTRYPOINT ["framegate"]
CMD ["run", "--help"]
