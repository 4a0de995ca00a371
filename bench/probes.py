"""Single-row commits on the source that note at the destination when they arrive."""

from __future__ import annotations

import math
import time
from concurrent.futures import ThreadPoolExecutor

from bench import systems
from bench.figures import percentile
from tests.pipeline import Pipeline, query, wait_until

PER_BACKEND = 500  # commits per second that one backend is asked for
BURST = 50_000
MARKED = 500  # every such row of the burst notes its arrival
BURST_RATE, BURST_SECONDS = 50, 3  # of the single commits beside the burst
FIRST_OF_BURST, FIRST_BESIDE, BEYOND = 700_000_000, 800_000_000, 900_000_000  # ids

# Even gaps would fall in step with whatever else has a rhythm, so the gaps are random (a Poisson process).
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
# Without search_path: PostgreSQL's own replication applies with an empty one.
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
    """Commit single rows from the id first on at this rate; returns how many when all of them have arrived."""
    backends = math.ceil(rate / PER_BACKEND)
    connections = [pipeline.source() for _ in range(backends)]

    def one(number: int) -> int:
        values = (first + number * 1_000_000, rate / backends, seconds)
        return int(query(connections[number], "CALL commits(%s, %s, %s, 0)", values)[0][0])

    with ThreadPoolExecutor(backends) as pool:
        sent = sum(pool.map(one, range(backends)))
    wait_for_arrivals(pipeline, first, first + backends * 1_000_000, sent)
    return sent


def wait_for_arrivals(pipeline: Pipeline, first: int, beyond: int, count: int) -> None:
    destination = pipeline.destination()
    arrived = "SELECT count(*) FROM arrivals WHERE emp_id >= %s AND emp_id < %s"

    def all_there() -> bool:
        time.sleep(0.05)
        dead = systems.ended(pipeline.scripts)
        assert not dead, dead
        return bool(query(destination, arrived, (first, beyond))[0][0] == count)

    wait_until(all_there, 60, f"{count} commits arrived")


def delays(pipeline: Pipeline, first: int, beyond: int) -> list[float]:
    return [delay for (delay,) in query(pipeline.destination(), DELAYS, {"first": first, "beyond": beyond})]


def burst(pipeline: Pipeline) -> dict[str, float]:
    """Commit many rows at once while single commits go on; returns milliseconds."""
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
    single = delays(pipeline, FIRST_BESIDE, BEYOND)
    return {
        "last_row_after": (visible - committed) * 1000,
        "longest_delay_of_others": max(single),
        "p50_of_others": percentile(single, 0.5),
    }
