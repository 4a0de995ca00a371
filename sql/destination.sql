-- The destination: `employees` exactly as on the source, and the gate.
--
-- Run by db_setup.py, or by hand: psql -f sql/destination.sql. Safe to run again at any time.
-- It is written for the schema public. db_setup.py writes CDC_SCHEMA in place of `public.`; by hand, sed does.

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;
SET LOCAL lock_timeout = '5s';
SET LOCAL client_min_messages = warning;

CREATE TABLE IF NOT EXISTS public.employees (
    emp_id     SERIAL PRIMARY KEY,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT
) WITH (fillfactor = 85);  -- room for an update beside the old row: it needs no new entry in the index then

-- The gate: a change passes only if its cdc_id is higher. A deleted employee keeps its row, so that an old INSERT
-- cannot bring it back.
CREATE TABLE IF NOT EXISTS public.cdc_applied (
    emp_id INT PRIMARY KEY,
    cdc_id BIGINT NOT NULL
) WITH (fillfactor = 85);

CREATE TABLE IF NOT EXISTS public.cdc_verified (
    only_row    BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row),
    compared    BIGINT NOT NULL,
    verified_at TIMESTAMPTZ NOT NULL DEFAULT now()
);

COMMENT ON TABLE  public.cdc_applied        IS
    'The newest change of each employee that consumer.py has applied; schema version 1';  -- cdc/schema.py's
COMMENT ON COLUMN public.cdc_applied.cdc_id IS 'emp_cdc.cdc_id on the source';
COMMENT ON TABLE  public.cdc_verified          IS 'When verify.py last found both tables equal';
COMMENT ON COLUMN public.cdc_verified.compared IS 'Rows that it had compared';
COMMIT;
