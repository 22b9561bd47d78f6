# ccdiff in a container: on CPU as it stands, on CUDA with PyPI's PyTorch, which brings its CUDA libraries (the host needs the driver and NVIDIA's container toolkit).
#
#   docker build -t ccdiff .
#   docker build -t ccdiff:cuda --build-arg TORCH_INDEX=https://pypi.org/simple .
#   docker run --rm -v "$PWD:/data" ccdiff demo --out runs/demo
#   docker run --rm --gpus all --ipc host -v "$PWD:/data" ccdiff:cuda train --recipe tiny --data runs/vhr10 --out runs/generator
#
# No network is needed to run it: `docker run --network none ...` is how data from people that you do not trust are best prepared.
ARG PYTHON=3.12
FROM python:${PYTHON}-slim

# where PyTorch comes from: its CPU wheels, far smaller than PyPI's, which bring CUDA
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=cpu-detector,evaluate,raster
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1

# apart from the program, so that a change of ours does not fetch PyTorch again; of one version in both places pip takes the one marked +cpu
COPY constraints.txt /tmp/build/
RUN pip install --constraint /tmp/build/constraints.txt --index-url "${TORCH_INDEX}" --extra-index-url https://pypi.org/simple torch torchvision

COPY pyproject.toml README.md LICENSE /tmp/build/
COPY recipes /tmp/build/recipes
COPY ccdiff_cli /tmp/build/ccdiff_cli
RUN pip install --constraint /tmp/build/constraints.txt "/tmp/build[${EXTRAS}]" && rm -rf /tmp/build \
    && useradd --create-home --uid 1000 ccdiff && install -d -o ccdiff /data

# results belong to the host's user with `--user "$(id -u):$(id -g)"`; caches then go to /tmp
USER 1000
ENV CCDIFF_CACHE=/tmp/ccdiff-cache
WORKDIR /data
ENTRYPOINT ["ccdiff"]
CMD ["--help"]
