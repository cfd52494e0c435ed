# `docker build -t leanresnet .`, then `docker run --rm leanresnet --help`; compose.yaml has the services.
# CUDA comes with torch's wheel; the host needs its driver and the NVIDIA container toolkit alone.
FROM debian:bookworm-slim@sha256:abd67ffcfa541b485a3dff59865ab629aa048a6c613e639d36e7456b0b229241 AS python
RUN apt-get update \
    && apt-get install --yes --no-install-recommends ca-certificates python3 \
    && rm -rf /var/lib/apt/lists/*

FROM python AS packages
RUN apt-get update && apt-get install --yes --no-install-recommends make python3-venv
WORKDIR /app
COPY Makefile requirements.lock ./
RUN make .venv/.locked PYTHON=python3
COPY . .
RUN make setup

FROM python
# g++ and Python's headers are what torch.compile builds its kernels with; without them training goes on uncompiled.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 leanresnet \
    && install --directory --owner leanresnet /work
# The packages are a layer of their own, which an edit of the code leaves alone.
COPY --from=packages /app/.venv /app/.venv
COPY . /app

# Nothing is written but in /work, the workspace, and in /tmp: the root may be read-only, and each a volume.
USER leanresnet
WORKDIR /work
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DVC_NO_ANALYTICS=1 GIT_PYTHON_REFRESH=quiet
HEALTHCHECK --interval=60s --start-period=30s CMD ["leanresnet", "--version"]
ENTRYPOINT ["leanresnet"]
CMD ["--help"]
