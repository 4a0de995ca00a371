"""Commits of single rows on the source, whose arrival is noted at the destination."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

from bench.figures import percentile
from bench.systems import check_running
from harness.database import query
from harness.pipeline import Pipeline
from harness.waiting import wait_until

PER_BACKEND = 500  # commits per second of one backend
BURST = 50_000
MARKED = 500  # every such row of the burst notes its arrival
BURST_RATE, BURST_SECONDS = 50, 3  # of the single commits beside the burst
FIRST_OF_BURST, FIRST_BESIDE, BEYOND = 700_000_000, 800_000_000, 900_000_000  # ids

# The gaps are random (a Poisson process): even ones would fall in step with whatever
# else has a rhythm.
COMMITS = """
CREATE PROCEDURE commits(base INT, rate FLOAT, seconds FLOAT, INOUT sent INT) LANGUAGE plpgsql AS $$
DECLARE
    due TIMESTAMPTZ := clock_timestamp();
    finish CONSTANT TIMESTAMPTZ := due + make_interval(secs => seconds);
BEGIN
    LOOP
        due := due - make_interval(secs => ln(1 - random()) / rate);
        EXIT WHEN due > finish;
        PERFORM pg_sleep(extract(epoch FROM due - clock_timestamp()));
        INSERT INTO employees (emp_id, first_name, city) VALUES (base + sent, 'probe', clock_timestamp());
        COMMIT;
        sent := sent + 1;
    END LOOP;
END
$$
"""
# With its schema: native replication applies with an empty search_path.
ARRIVALS = """
CREATE UNLOGGED TABLE arrivals (emp_id INT, made TIMESTAMPTZ, seen TIMESTAMPTZ);
CREATE FUNCTION arrived() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    INSERT INTO public.arrivals VALUES (NEW.emp_id, NEW.city::timestamptz, clock_timestamp());
    RETURN NULL;
END
$$;
CREATE CONSTRAINT TRIGGER arrived AFTER INSERT ON employees DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW WHEN (NEW.first_name = 'probe') EXECUTE FUNCTION arrived();
ALTER TABLE employees ENABLE ALWAYS TRIGGER arrived
"""
DELAYS = """
SELECT 1000 * extract(epoch FROM seen - made)::float FROM arrivals
WHERE emp_id >= %(first)s AND emp_id < %(beyond)s
"""
BURST_ROWS = f"""
INSERT INTO employees (emp_id, first_name, last_name, dob, city, salary)
SELECT %(first)s + n, CASE n %% {MARKED} WHEN 0 THEN 'probe' ELSE 'First ' || n END, 'Last ' || n,
    DATE '1970-01-01' + n %% 9999, clock_timestamp(), n
FROM generate_series(1, {BURST}) AS n
"""


def commits(pipeline: Pipeline, first: int, rate: float, seconds: float) -> int:
    """Commit single rows at this rate; return how many, when all have arrived.

    Their ids begin at `first`.
    """
    backends = math.ceil(rate / PER_BACKEND)
    connections = [pipeline.source() for _ in range(backends)]

    def commit_from(number: int) -> int:
        values = (first + number * 1_000_000, rate / backends, seconds)
        return int(query(connections[number], "CALL commits(%s, %s, %s, 0)", values)[0][0])

    with ThreadPoolExecutor(backends) as pool:
        sent = sum(pool.map(commit_from, range(backends)))
    wait_for_arrivals(pipeline, first, first + backends * 1_000_000, sent)
    return sent


def wait_for_arrivals(pipeline: Pipeline, first: int, beyond: int, count: int) -> None:
    destination = pipeline.destination()
    arrivals = "SELECT count(*) FROM arrivals WHERE emp_id >= %s AND emp_id < %s"

    def all_arrived() -> bool:
        time.sleep(0.05)
        check_running(pipeline.scripts)
        return bool(query(destination, arrivals, (first, beyond))[0][0] == count)

    wait_until(all_arrived, 60, f"{count} commits arrived")


def delays(pipeline: Pipeline, first: int, beyond: int) -> list[float]:
    """Return the milliseconds from commit to visible, of the ids from first on."""
    return [delay for (delay,) in query(pipeline.destination(), DELAYS, {"first": first, "beyond": beyond})]


def burst(pipeline: Pipeline) -> dict[str, float]:
    """Commit many rows at once while single commits go on; return milliseconds."""
    source = pipeline.source()
    query(source, "BEGIN")
    query(source, BURST_ROWS, {"first": FIRST_OF_BURST})
    with ThreadPoolExecutor(1) as pool:
        beside = pool.submit(commits, pipeline, FIRST_BESIDE, BURST_RATE, BURST_SECONDS)
        time.sleep(BURST_SECONDS / 4)
        query(source, "COMMIT")
        committed = time.time()
        beside.result()
    wait_for_arrivals(pipeline, FIRST_OF_BURST, FIRST_BESIDE, BURST // MARKED)
    last = "SELECT extract(epoch FROM max(seen))::float FROM arrivals WHERE emp_id >= %s AND emp_id < %s"
    ((visible,),) = query(pipeline.destination(), last, (FIRST_OF_BURST, FIRST_BESIDE))
    others = delays(pipeline, FIRST_BESIDE, BEYOND)
    return {
        "last_row_after": (visible - committed) * 1000,
        "longest_delay_of_others": max(others),
        "p50_of_others": percentile(others, 0.5),
    }
