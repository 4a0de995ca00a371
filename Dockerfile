# One image for all scripts; the command names the script:
#   docker build -t employee-cdc .
#   docker run --rm employee-cdc admin.py --help
# It needs no capability, and to write no more than a number in /tmp:
#   docker run --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges employee-cdc producer.py
# To build on exactly one base, add the digest that your registry shows: FROM python:3.12.14-slim@sha256:…
FROM python:3.12.14-slim

LABEL org.opencontainers.image.title="Employee CDC" \
      org.opencontainers.image.description="Change data capture for one table: PostgreSQL to Kafka to PostgreSQL" \
      org.opencontainers.image.version="1.0.0" \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.base.name="docker.io/library/python:3.12.14-slim"

# An index or a folder of wheels of your own, by --build-arg. Not given: pip's usual index.
ARG PIP_INDEX_URL
ARG PIP_FIND_LINKS
ARG PIP_NO_INDEX
ARG PIP_TRUSTED_HOST

WORKDIR /app
COPY requirements.txt .
# wheels only: there is no compiler here, and none is needed
RUN pip install --no-cache-dir --disable-pip-version-check --root-user-action=ignore --only-binary=:all: \
        --require-hashes -r requirements.txt \
    && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin cdc
COPY . .
RUN chmod -R a+rX .

USER cdc
ENV PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1

# The script is its first process, so it gets the signal itself: finishes its batch, prints its totals, exits 0.
STOPSIGNAL SIGTERM
ENTRYPOINT ["python"]
CMD ["producer.py", "--help"]

# Healthy: the script's loop has turned since the last check (its main thread has gone to sleep and woken up), and it is
# connected (a TCP connection in state 01, established). It costs milliseconds and asks no server.
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s --retries=3 CMD \
    turns=$(grep ^voluntary_ctxt_switches /proc/1/task/1/status) \
    && [ "$turns" != "$(cat /tmp/turns 2>&1)" ] && echo "$turns" >/tmp/turns \
    && cat /proc/net/tcp /proc/net/tcp6 | grep -q '^ *[0-9]*: [0-9A-F:]* [0-9A-F:]* 01 '
