# The Makefile's steps, in an image: `docker build -t leanresnet .`, then `docker run --gpus all leanresnet check`.
# CUDA comes with the torch wheel; the host needs its driver and the NVIDIA container toolkit alone.
FROM python:3.11-slim

# g++ is what torch.compile builds its kernels with; without it training goes on uncompiled.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ git make \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --create-home --uid 1000 leanresnet \
    && install --directory --owner leanresnet /app /app/.dvc /app/.dvc/cache /app/.work /app/models /app/results
USER leanresnet
WORKDIR /app

# The locked packages are a layer of their own, so that an edit of the code does not fetch them again.
COPY --chown=leanresnet Makefile requirements.lock ./
RUN make .venv/.locked PYTHON=python3.11 && rm -rf ~/.cache

COPY --chown=leanresnet . .
RUN make setup

ENV PATH=/app/.venv/bin:$PATH PYTHONUNBUFFERED=1 DVC_NO_ANALYTICS=1
ENTRYPOINT ["leanresnet"]
CMD ["--help"]
