# One image for every process of a mesh: broker, master, gateway, node, meshctl.
FROM python:3.11-slim AS build
WORKDIR /src
COPY requirements.lock ./
# Every wheel is checked against the lock file's hashes; what is installed below comes from here alone.
RUN pip wheel --no-cache-dir --no-deps --require-hashes --requirement requirements.lock --wheel-dir /wheels
COPY . .
RUN pip install --no-cache-dir --no-index --find-links /wheels hatchling \
    && pip wheel --no-deps --no-build-isolation --wheel-dir /own . \
    && python -m venv /opt/nodemesh \
    && /opt/nodemesh/bin/pip install --no-cache-dir --no-index --find-links /wheels /own/*.whl

FROM python:3.11-slim
# A named volume mounted on the folder takes over its owner and mode.
RUN useradd --system --uid 10001 --home-dir /var/lib/nodemesh --shell /usr/sbin/nologin nodemesh \
    && install --directory --owner=nodemesh --group=nodemesh --mode=0700 /var/lib/nodemesh
COPY --from=build /opt/nodemesh /opt/nodemesh
ENV PATH=/opt/nodemesh/bin:$PATH PYTHONUNBUFFERED=1 MESH_STATE_DIR=/var/lib/nodemesh
USER nodemesh
WORKDIR /var/lib/nodemesh
CMD ["mesh-agent", "--help"]
