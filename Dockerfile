# What the jobs need, for `snakemake --software-deployment-method apptainer` and for clusters of
# containers: docs/clusters.md. It has the versions of requirements.txt, by hash, and this checkout.
FROM python:3.11-slim-bookworm

WORKDIR /opt/higgs-pipe
ENV VIRTUAL_ENV=/opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY requirements.txt requirements-bootstrap.txt ./
RUN python3 -m venv /opt/venv \
    && python3 -m pip install --no-cache-dir --require-hashes -r requirements-bootstrap.txt \
    && uv pip sync --no-cache --require-hashes requirements-bootstrap.txt requirements.txt
COPY Snakefile config.yaml ./
COPY workflow workflow
COPY profiles profiles
COPY envs envs
COPY examples examples
COPY higgs_pipe higgs_pipe
RUN python3 -c "import pathlib, site; pathlib.Path(site.getsitepackages()[0], 'higgs_pipe.pth').write_text('/opt/higgs-pipe')"
