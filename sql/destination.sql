-- The destination: `employees` exactly as on the source, and the gate.
-- Run by db_setup.py, or by hand: psql -f sql/destination.sql. Safe to run again at any time.

BEGIN;
SET LOCAL lock_timeout = '5s';
SET LOCAL client_min_messages = warning;

CREATE TABLE IF NOT EXISTS employees (
    emp_id     SERIAL PRIMARY KEY,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT
);

-- The gate: a change passes only if its cdc_id is higher. A deleted employee keeps its row, so that an old INSERT
-- cannot bring it back.
CREATE TABLE IF NOT EXISTS cdc_applied (
    emp_id INT PRIMARY KEY,
    cdc_id BIGINT NOT NULL
);

COMMENT ON TABLE  cdc_applied        IS 'The newest change of each employee that consumer.py has applied';
COMMENT ON COLUMN cdc_applied.cdc_id IS 'emp_cdc.cdc_id on the source';
COMMIT;
