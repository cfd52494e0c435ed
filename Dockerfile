# Build the image with `docker build -t leanresnet .`, and try it with `docker run --rm leanresnet --help`; compose.yaml
# defines the services. CUDA is included in torch's wheel; the host needs a driver and NVIDIA's container toolkit.
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
# torch.compile needs g++ and Python's headers to build its kernels; without them, training runs uncompiled.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ python3-dev \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 leanresnet \
    && install --directory --owner leanresnet /work
# The packages are in a separate layer, so a change of the code does not rebuild them.
COPY --from=packages /app/.venv /app/.venv
COPY . /app

# Only /work, the workspace, and /tmp are written to, so the root can be read-only and both can be volumes.
USER leanresnet
WORKDIR /work
ENV PATH=/app/.venv/bin:$PATH HOME=/tmp PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 DVC_NO_ANALYTICS=1 GIT_PYTHON_REFRESH=quiet
HEALTHCHECK --interval=60s --start-period=30s CMD ["leanresnet", "--version"]
ENTRYPOINT ["leanresnet"]
CMD ["--help"]
