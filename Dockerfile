# docker build -t isdt-policy .    docs/machines.md says how to run it
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# torch.compile wants a compiler.
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
WORKDIR /src
COPY pyproject.toml setup.py README.md LICENSE constraints.txt ./
COPY isdt_policy isdt_policy
COPY configs configs
COPY datasets datasets
COPY envs envs
COPY eval eval
RUN pip install --no-cache-dir --extra-index-url "$TORCH_INDEX" --constraint constraints.txt ".[all]"
WORKDIR /work
ENTRYPOINT ["isdt"]
CMD ["--help"]
