# Two images from one file:
#   docker build --target predict  -t equisynth:predict .    applies trained models: no DVC, Optuna, ITK or MLflow
#   docker build --target pipeline -t equisynth:pipeline .   the whole pipeline
# For a GPU add --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu130 (or another CUDA version that PyTorch's
# site names for the pinned torch); --build-arg EXTRAS=[registry] lets the first image pull models by name and serve
# them. Versions are those of requirements.lock. Sizes and how to run: docs/how-to/containers.md.
ARG BASE=python:3.11.13-slim-bookworm

# hadolint ignore=DL3006
FROM ${BASE} AS base
ENV PATH=/opt/equisynth/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 equisynth

# Dependencies come first, with an empty package in place of ours: editing the source does not install them again.
# Wheels of torch without CUDA carry a local version (+cpu), which pip prefers to the package index's.
FROM base AS dependencies
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ENV PIP_CONSTRAINT=/build/requirements.lock \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_EXTRA_INDEX_URL=${TORCH_INDEX} \
    PIP_NO_CACHE_DIR=1
WORKDIR /build
COPY pyproject.toml requirements.lock README.md LICENSE ./
RUN python -m venv /opt/equisynth && mkdir -p src/equisynth && touch src/equisynth/__init__.py

FROM dependencies AS predict-build
ARG EXTRAS=""
# PIP_CONSTRAINT pins every version.
# hadolint ignore=DL3013
RUN pip install ".${EXTRAS}" && pip uninstall --yes equisynth
COPY src src
RUN pip install --no-deps .

FROM dependencies AS pipeline-build
# hadolint ignore=DL3013
RUN pip install ".[pipeline]" && pip uninstall --yes equisynth
WORKDIR /home/equisynth/pipeline
COPY pyproject.toml README.md LICENSE ./
COPY src src
RUN pip install --no-deps --editable .

FROM base AS predict
COPY --from=predict-build /opt/equisynth /opt/equisynth
USER 1000
WORKDIR /home/equisynth
ENTRYPOINT ["equisynth"]
CMD ["--help"]

# The sources lie in the image where the editable install expects them; mount data/, models/ and the like to keep them.
FROM base AS pipeline
ENV GIT_PYTHON_REFRESH=quiet
COPY --from=pipeline-build /opt/equisynth /opt/equisynth
WORKDIR /home/equisynth/pipeline
RUN chown equisynth:equisynth .
USER 1000
COPY --chown=equisynth:equisynth . .
RUN dvc config core.no_scm true
CMD ["dvc", "repro"]
