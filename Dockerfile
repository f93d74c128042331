# docker build -t statefield .
# docker run --rm -v "$PWD:/data" statefield medical predict --run runs/mine scans/ --output labels/
# docker run --rm --gpus all --shm-size 8g -v "$PWD:/data" statefield medical train --config recipe.yaml
# docker run --rm --network host -v "$PWD:/data" statefield app --medical runs/mine
#
# One image for CPU and GPU: torch brings its CUDA libraries. It works in /data, as the user that owns what is written
# there: --user "$(id -u):$(id -g)" where that is not 1000. docs/packaging.md has the rest.
ARG BASE=python:3.12-slim

# The wheel is built apart, so that no compiler comes into the image. A wheel made on its own machine needs no auditwheel.
FROM ${BASE} AS build
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /source
COPY . .
RUN python3 -m venv /build && /build/bin/pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM ${BASE}
ARG EXTRAS=app,demo,events,export,scale
COPY --from=build /wheels /wheels
RUN python3 -m venv /opt/statefield \
 && /opt/statefield/bin/pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]" \
 && rm -r /wheels \
 && useradd --create-home --uid 1000 statefield \
 && install --directory --mode 1777 /data
ENV PATH=/opt/statefield/bin:$PATH
# What libraries keep for later goes where any user may write.
ENV HOME=/tmp MPLCONFIGDIR=/tmp/matplotlib TRITON_CACHE_DIR=/tmp/triton
USER statefield
WORKDIR /data
# The kernels, and why they are the ones: an image that has lost them fails here and not at its user's.
RUN statefield doctor --brief
ENTRYPOINT ["statefield"]
CMD ["--help"]
