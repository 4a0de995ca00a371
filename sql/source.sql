-- The source: `employees`, its log `emp_cdc`, and the triggers that fill the log.
-- Run by db_setup.py, or by hand: psql -f sql/source.sql. Safe to run again at any time; it also upgrades a log that
-- has only the columns up to `action`. Waits at most 5 s for a lock, so that writers never queue up behind it for long.

BEGIN;
SET LOCAL lock_timeout = '5s';
SET LOCAL client_min_messages = warning;  -- "already exists, skipping" is no news

DO $$ BEGIN PERFORM pg_advisory_xact_lock(6513763, 0); END $$;  -- one set-up at a time; the number is explained below

CREATE TABLE IF NOT EXISTS employees (
    emp_id     SERIAL PRIMARY KEY,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT
);

-- A domain, as PostgreSQL prepares its check once for a session; a table's own CHECK it prepares anew for each
-- statement, which is each row here.
DO $$
BEGIN
    IF to_regtype('cdc_action') IS NULL THEN
        CREATE DOMAIN cdc_action AS VARCHAR(100) CHECK (VALUE IN ('INSERT', 'UPDATE', 'DELETE'));
    END IF;
END
$$;

-- One row per change of one employee, in the order of the changes of that employee.
CREATE TABLE IF NOT EXISTS emp_cdc (
    cdc_id     BIGSERIAL PRIMARY KEY,  -- BIG: a SERIAL log ends after 2^31 changes
    emp_id     INT,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT,
    action     cdc_action
);

-- Where the producer stands: one row.
CREATE TABLE IF NOT EXISTS cdc_position (
    only_row          BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row),
    last_offset       BIGINT NOT NULL,
    snapshot          pg_snapshot NOT NULL,
    system_identifier BIGINT NOT NULL,
    saved_at          TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp()
) WITH (fillfactor = 10);  -- one row, updated for every page: keep the updates inside its one block

-- Everything the log needs beyond the specified columns. In a block of its own so that ALTER TABLE, which locks
-- writers out, runs only where something is missing. Then employees is locked first: writers lock in that order too.
DO $$
BEGIN
    IF (SELECT count(*) FROM pg_trigger
        WHERE tgrelid = 'employees'::regclass AND tgenabled = 'A'
          AND tgname IN ('employee_cdc_trigger', 'employee_cdc_truncate_trigger')) < 2 THEN
        LOCK TABLE employees IN SHARE ROW EXCLUSIVE MODE;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute
                   WHERE attrelid = 'emp_cdc'::regclass AND attname = 'cdc_id' AND atttypid = 'bigint'::regtype) THEN
        ALTER TABLE emp_cdc ALTER cdc_id TYPE BIGINT;
        EXECUTE format('ALTER SEQUENCE %s AS BIGINT', pg_get_serial_sequence('emp_cdc', 'cdc_id'));
    END IF;
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'emp_cdc'::regclass AND attname = 'txid') THEN
        ALTER TABLE emp_cdc
            ADD txid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
            ADD changed_at timestamptz NOT NULL DEFAULT clock_timestamp();
        CREATE INDEX emp_cdc_txid_idx ON emp_cdc (txid);
    END IF;
    IF EXISTS (SELECT FROM pg_attribute
               WHERE attrelid = 'emp_cdc'::regclass AND attname = 'action' AND atttypid <> 'cdc_action'::regtype)
       AND NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'emp_cdc'::regclass AND conname = 'emp_cdc_action') THEN
        -- NOT VALID: rows of an older log stay as they are, the consumer judges them
        ALTER TABLE emp_cdc ADD CONSTRAINT emp_cdc_action CHECK (action IN ('INSERT', 'UPDATE', 'DELETE')) NOT VALID;
    END IF;
    IF NOT EXISTS (SELECT FROM pg_constraint WHERE conrelid = 'emp_cdc'::regclass AND contype = 'p') THEN
        ALTER TABLE emp_cdc ADD PRIMARY KEY (cdc_id);
    END IF;
END
$$;

COMMENT ON TABLE  emp_cdc            IS 'Log of the changes of employees; written by triggers, read by producer.py';
COMMENT ON COLUMN emp_cdc.cdc_id     IS 'Offset of the change. Drawn before commit: a lower one can become visible later';
COMMENT ON COLUMN emp_cdc.action     IS 'INSERT and UPDATE carry the row as it became, DELETE as it was';
COMMENT ON COLUMN emp_cdc.txid       IS 'Transaction of the change: tells the late rows behind the producer''s offset';
COMMENT ON COLUMN emp_cdc.changed_at IS 'When the change was made, by the server''s clock; age for status and pruning';
COMMENT ON TABLE  cdc_position IS
    'Every row of emp_cdc with cdc_id <= last_offset that is visible in snapshot has been published';
COMMENT ON COLUMN cdc_position.system_identifier IS 'The server whose transactions snapshot counts';

-- Wakes the producer; called only where it was found asleep. `SET cdc.notify = off`, for a transaction that is to be
-- prepared (PREPARE TRANSACTION refuses one that notifies), leaves it to POLL_INTERVAL.
CREATE OR REPLACE FUNCTION emp_cdc_wake() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('cdc.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('emp_cdc', '');
    END IF;
END
$$;

-- Writes emp_cdc. Owner's rights: who may change employees needs no right on the log.
-- SECURITY: every name has its schema, so that nobody's table, function or operator can stand in for ours. A SET
-- search_path would do the same, but be done and undone for each row.
--
-- The lock (6513763 is 'cdc' in ASCII, 2 is the producer's sleep; producer.py holds the same two numbers) is taken
-- shared until commit where that is possible: the producer is awake, and sees before it sleeps that someone has yet to
-- commit. Where it is not, the producer holds it, and sleeps.
CREATE OR REPLACE FUNCTION employee_cdc_trigger_func() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(6513763, 2) THEN
        PERFORM public.emp_cdc_wake();
    END IF;
    IF NEW.emp_id IS NULL OR NEW.emp_id OPERATOR(pg_catalog.<>) OLD.emp_id THEN  -- a DELETE, or another key
        INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, 'DELETE');
    END IF;
    IF NEW.emp_id IS NOT NULL THEN
        INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP);
    END IF;
    RETURN NULL;
END
$$;

-- Writes emp_cdc. One DELETE per row: three actions stay enough, and partitions need no order among each other.
CREATE OR REPLACE FUNCTION employee_cdc_truncate_func() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    -- TRUNCATE removes rows that an older snapshot does not show; those would never be logged
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE 'TRUNCATE employees is captured in READ COMMITTED only'
            USING HINT = 'Truncate in a transaction of its own, or use DELETE.';
    END IF;
    IF NOT pg_try_advisory_xact_lock_shared(6513763, 2) THEN
        PERFORM public.emp_cdc_wake();
    END IF;
    INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
    SELECT emp_id, first_name, last_name, dob, city, salary, 'DELETE' FROM public.employees ORDER BY emp_id;
    RETURN NULL;
END
$$;

DO $$
DECLARE
    logged BIGINT;
    captured CONSTANT INT := (
        SELECT count(*) FROM pg_trigger
        WHERE tgrelid = 'employees'::regclass AND tgenabled = 'A'
          AND tgname IN ('employee_cdc_trigger', 'employee_cdc_truncate_trigger'));
BEGIN
    IF captured < 2 OR NOT EXISTS (SELECT FROM cdc_position) THEN
        -- no writer between the triggers and the rows from before: employees is locked, see above
        LOCK TABLE employees IN SHARE ROW EXCLUSIVE MODE;
        DROP TRIGGER IF EXISTS employee_cdc_trigger ON employees;
        CREATE TRIGGER employee_cdc_trigger AFTER INSERT OR UPDATE OR DELETE ON employees
            FOR EACH ROW EXECUTE FUNCTION employee_cdc_trigger_func();
        DROP TRIGGER IF EXISTS employee_cdc_truncate_trigger ON employees;
        CREATE TRIGGER employee_cdc_truncate_trigger BEFORE TRUNCATE ON employees
            FOR EACH STATEMENT EXECUTE FUNCTION employee_cdc_truncate_func();
        -- ALWAYS: a restore or a replication that sets session_replication_role = replica is captured too
        ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_trigger;
        ALTER TABLE employees ENABLE ALWAYS TRIGGER employee_cdc_truncate_trigger;

        INSERT INTO emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        SELECT emp_id, first_name, last_name, dob, city, salary, 'INSERT' FROM employees ORDER BY emp_id;
        GET DIAGNOSTICS logged = ROW_COUNT;
        RAISE WARNING '% rows from before the triggers logged as INSERT', logged;
    END IF;

    -- The first position: nothing published, nothing visible.
    INSERT INTO cdc_position (last_offset, snapshot, system_identifier)
    SELECT 0, '1:1:', system_identifier FROM pg_control_system()
    ON CONFLICT DO NOTHING;
END
$$;
COMMIT;
