"""The changes that the benchmarks make, in SQL."""

from __future__ import annotations

from bench import marks

TRANSACTION = 1_000  # changes
HOT = 10_000  # rows that are on both sides before the hot load
SCATTER = 7_368_787  # a prime: k * SCATTER modulo n meets each number below n before it repeats one

# Transaction t of the mixed load inserts 600 rows, updates 300 of any earlier
# transaction, and deletes 100 that transaction t/2 inserted. No random numbers: every
# system carries the same changes.
LOADS = f"""
CREATE PROCEDURE mixed(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        INSERT INTO employees
        SELECT t * 1000 + n, 'First ' || n, 'Last ' || t, DATE '1970-01-01' + n, 'City ' || n % 100, n
        FROM generate_series(0, 599) AS n;
        UPDATE employees SET salary = salary + t, city = 'Moved in ' || t WHERE emp_id = ANY (ARRAY (
            SELECT 1000 * (1 + (hashint4(t * 300 + n) & 2147483647) % t) + 100 + n FROM generate_series(0, 299) AS n));
        DELETE FROM employees WHERE emp_id BETWEEN (t + 1) / 2 * 1000 + 400 + t % 2 * 100
                                               AND (t + 1) / 2 * 1000 + 499 + t % 2 * 100;
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
    COMMIT;
END
$$;
CREATE PROCEDURE hot(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        UPDATE employees SET salary = t, city = 'Moved in ' || t WHERE emp_id = ANY (ARRAY (
            SELECT 1 + (t * 3571 + n * 7) % {HOT} FROM generate_series(1, 900) AS n));
        INSERT INTO employees
        SELECT {HOT} + t * 100 + n, 'First ' || n, 'Last ' || t, DATE '1970-01-01' + n, 'City ' || n, n
        FROM generate_series(0, 99) AS n;
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
    COMMIT;
END
$$;
"""
ROWS_PER_TRANSACTION = {"mixed": 500, "hot": 100}  # that are left at the end of a load
COUNT = "SELECT count(*) FROM employees"
HOT_ROWS = f"""
INSERT INTO employees SELECT n, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n, n
FROM generate_series(1, {HOT}) AS n
"""
LOG_ROWS = f"""
CREATE PROCEDURE log_rows(transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    FOR t IN 1..transactions LOOP
        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        SELECT t, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n, 'City ' || n, n, 'UPDATE'
        FROM generate_series(1, {TRANSACTION}) AS n;
        COMMIT;
    END LOOP;
END
$$;
SET synchronous_commit = off
"""
ALL_PUBLISHED = """
UPDATE cdc_position
SET last_offset = (SELECT max(cdc_id) FROM emp_cdc), snapshot = pg_current_snapshot()
RETURNING last_offset, snapshot::text
"""

# Ids at even distances over the whole range: each has free neighbours.
EXISTING = """
INSERT INTO employees SELECT n * {gap}, 'First ' || n, 'Last ' || n, DATE '1970-01-01' + n % 9999, 'City ' || n, n
FROM generate_series(0, {rows} - 1) AS n
"""
# Each transaction: a row that counts it, 499 inserts and 500 updates. k goes on from
# round to round.
SCATTERED = f"""
CREATE PROCEDURE scattered(first_k BIGINT, size INT, gap INT, transactions INT) LANGUAGE plpgsql AS $$
BEGIN
    {marks.FIRST_MARKS};
    COMMIT;
    FOR t IN 1..transactions LOOP
        INSERT INTO employees (emp_id) VALUES (-2000 - t);
        INSERT INTO employees
        SELECT k * {SCATTER} % size * gap + 1 + k / size, 'First ' || k, 'Last ' || t, DATE '1970-01-01', 'City', t
        FROM generate_series(first_k + t * 500, first_k + t * 500 + 498) AS k;
        UPDATE employees SET salary = t, city = 'Moved in ' || t WHERE emp_id = ANY (ARRAY (
            SELECT (k * {SCATTER} % size * gap)::int
            FROM generate_series(first_k + t * 500, first_k + t * 500 + 499) AS k));
        COMMIT;
    END LOOP;
    {marks.LAST_MARKS};
    COMMIT;
END
$$
"""
TRANSACTIONS_SEEN = "SELECT count(*) FROM employees WHERE emp_id < -2000"
