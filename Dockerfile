# The application in an image of its own:
#
#   docker build --target cpu --tag framegate:cpu .
#   docker run --rm framegate:cpu --help
#
# Not run yet: the build itself, for want of a container engine where this was written. What stands in the RUN lines was
# run by hand on a Debian 12 with its Python 3.11. The base image is named by tag; pin it by digest where you build.
# There is no GPU stage yet.

ARG BASE=python:3.11-slim-bookworm

# --- builder: the wheel and the environment; nothing of it but /opt/framegate goes on ---
FROM ${BASE} AS builder
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /src
COPY requirements requirements
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/build.txt
RUN python -m venv /opt/framegate \
    && /opt/framegate/bin/python -m pip install --require-hashes --only-binary :all: -r requirements/base.txt
COPY LICENSE README.md pyproject.toml framegate.py ./
COPY consumer consumer
COPY engine engine
COPY trainer trainer
RUN /opt/build/bin/hatchling build -t wheel -d /tmp/wheel \
    && /opt/framegate/bin/python -m pip install --no-deps --no-index /tmp/wheel/*.whl \
    && /opt/framegate/bin/python -m compileall -q /opt/framegate/lib

# --- cpu: ONNX Runtime on the processor ---
FROM ${BASE} AS cpu
COPY --from=builder /opt/framegate /opt/framegate
RUN useradd --uid 10001 --create-home --home-dir /var/lib/framegate framegate
USER 10001
WORKDIR /var/lib/framegate
ENV PATH=/opt/framegate/bin:$PATH PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
# SIGTERM makes the consumer drain, commit and leave its group: give it time, for example `docker stop --time 30`.
STOPSIGNAL SIGTERM
ENTRYPOINT ["framegate"]
CMD ["--help"]
