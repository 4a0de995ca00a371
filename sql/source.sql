-- The source: `employees`, its log `emp_cdc`, and the triggers that fill the log.
--
-- Run by db_setup.py, or by hand: psql -f sql/source.sql. Safe to run again at any time.
-- It is written for the schema public. db_setup.py writes CDC_SCHEMA in place of `public.`; by hand, sed does.
-- It waits at most 5 s for a lock, so that writers never wait for it for long.
--
--   1. Tables    2. Upgrade    3. Capture    4. First run    5. A write on trial
--
-- Advisory locks of this database (6513763 is 'cdc' in ASCII); producer.py uses the same numbers:
--   (6513763, 0)  set-up: one at a time
--   (6513763, 1)  active: held by the producer that publishes
--   (6513763, 2)  asleep: held by the producer while it sleeps, shared by writers until they commit

BEGIN;
SET LOCAL search_path = pg_catalog, pg_temp;  -- nobody's function, operator or table can stand in for one named here
SET LOCAL lock_timeout = '5s';
SET LOCAL row_security = off;                 -- an error where a policy would hide rows from the first run
SET LOCAL client_min_messages = warning;      -- "already exists, skipping" is no news

DO $$ BEGIN PERFORM pg_advisory_xact_lock(6513763, 0); END $$;


-- 1. Tables ------------------------------------------------------------------------------------------------------------

CREATE TABLE IF NOT EXISTS public.employees (
    emp_id     SERIAL PRIMARY KEY,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT
);

-- Whether both triggers are as part 4 makes them: AFTER each row that is inserted, updated or deleted (29), BEFORE
-- TRUNCATE (34), ALWAYS, and no condition. If not, part 2 or 4 changes employees, and locks it first: writers lock
-- employees before emp_cdc, too.
DO $$
DECLARE
    captured CONSTANT BOOLEAN := (
        SELECT count(*) = 2 FROM pg_trigger
        WHERE tgrelid = 'public.employees'::regclass AND tgenabled = 'A' AND tgqual IS NULL AND tgattr::text = ''
          AND (tgname, tgtype, tgfoid::oid) IN (
              ('employee_cdc_trigger', 29, to_regproc('public.employee_cdc_trigger_func')::oid),
              ('employee_cdc_truncate_trigger', 34, to_regproc('public.employee_cdc_truncate_func')::oid)));
BEGIN
    PERFORM set_config('cdc.captured', captured::text, true);
    IF NOT captured THEN
        LOCK TABLE public.employees IN SHARE ROW EXCLUSIVE MODE;
    END IF;
END
$$;

-- A log that has only the specified columns (an INT cdc_id, no txid) makes room for a new one. To change it would
-- rewrite it, and writers would wait for as long as that takes. Part 2 copies its rights; db_setup.py moves its rows.
DO $$
DECLARE
    current_form CONSTANT BOOLEAN := (
        SELECT count(*) = 3 FROM pg_attribute
        WHERE attrelid = to_regclass('public.emp_cdc') AND NOT attisdropped
          AND (attname, atttypid) IN (
              ('cdc_id', 'bigint'::regtype), ('txid', 'xid8'::regtype), ('changed_at', 'timestamptz'::regtype)))
        AND EXISTS (SELECT FROM pg_index WHERE indrelid = to_regclass('public.emp_cdc') AND indisprimary);
BEGIN
    IF to_regclass('public.emp_cdc') IS NOT NULL AND NOT current_form THEN
        LOCK TABLE public.employees IN SHARE ROW EXCLUSIVE MODE;
        ALTER TABLE public.emp_cdc RENAME TO emp_cdc_old;
        ALTER INDEX IF EXISTS public.emp_cdc_pkey RENAME TO emp_cdc_old_pkey;
        ALTER INDEX IF EXISTS public.emp_cdc_txid_idx RENAME TO emp_cdc_old_txid_idx;
        ALTER SEQUENCE IF EXISTS public.emp_cdc_cdc_id_seq RENAME TO emp_cdc_old_cdc_id_seq;
    END IF;
END
$$;

-- A domain, because PostgreSQL prepares its check once for a session. It prepares the CHECK of a table again for each
-- statement, and here each row is a statement.
DO $$
BEGIN
    IF to_regtype('public.cdc_action') IS NULL THEN
        CREATE DOMAIN public.cdc_action AS VARCHAR(100) CHECK (VALUE IN ('INSERT', 'UPDATE', 'DELETE'));
    END IF;
END
$$;

-- One row per change of one employee, in the order of the changes of that employee. The triggers always give emp_id;
-- it may be NULL so that a row put here by hand becomes a dead letter instead of an error.
CREATE TABLE IF NOT EXISTS public.emp_cdc (
    cdc_id     BIGSERIAL PRIMARY KEY,  -- BIG: a SERIAL log ends after 2^31 changes
    emp_id     INT,
    first_name VARCHAR(100),
    last_name  VARCHAR(100),
    dob        DATE,
    city       VARCHAR(100),
    salary     INT,
    action     public.cdc_action,
    txid       xid8        NOT NULL DEFAULT pg_current_xact_id(),
    changed_at timestamptz NOT NULL DEFAULT clock_timestamp()
);
DO $$
BEGIN
    IF to_regclass('public.emp_cdc_txid_idx') IS NULL THEN  -- IF NOT EXISTS would keep writers out to find out
        CREATE INDEX emp_cdc_txid_idx ON public.emp_cdc (txid);
    END IF;
END
$$;

-- Where the producer stands: one row.
CREATE TABLE IF NOT EXISTS public.cdc_position (
    only_row          BOOLEAN PRIMARY KEY DEFAULT true CHECK (only_row),
    last_offset       BIGINT NOT NULL,
    snapshot          pg_snapshot NOT NULL,
    system_identifier BIGINT NOT NULL,
    saved_at          TIMESTAMPTZ NOT NULL DEFAULT clock_timestamp(),
    database          TEXT,
    removed           BIGINT
) WITH (fillfactor = 10);  -- one row, updated for every page: keep the updates inside its one block
DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.cdc_position'::regclass AND attname = 'removed') THEN
        ALTER TABLE public.cdc_position ADD COLUMN IF NOT EXISTS database TEXT, ADD COLUMN removed BIGINT;
    END IF;
END
$$;

COMMENT ON TABLE  public.emp_cdc            IS
    'Log of the changes of employees; written by triggers, read by producer.py; schema version 1';  -- cdc/schema.py's
COMMENT ON COLUMN public.emp_cdc.cdc_id     IS 'Offset of the change. Drawn before commit: a lower one can become visible later';
COMMENT ON COLUMN public.emp_cdc.action     IS 'INSERT and UPDATE carry the row as it became, DELETE as it was';
COMMENT ON COLUMN public.emp_cdc.txid       IS 'Transaction of the change: tells the late rows, at or below the producer''s offset';
COMMENT ON COLUMN public.emp_cdc.changed_at IS 'When the change was made, by the server''s clock; age for status and pruning';
COMMENT ON TABLE  public.cdc_position IS
    'Every row of emp_cdc with cdc_id <= last_offset that is visible in snapshot has been published';
COMMENT ON COLUMN public.cdc_position.system_identifier IS 'The server whose transactions snapshot counts';
COMMENT ON COLUMN public.cdc_position.database IS
    'Server and database (oid) whose log was published; in a copy of the database they are those of the original';
COMMENT ON COLUMN public.cdc_position.removed IS
    'The highest cdc_id that somebody removed from emp_cdc before it was published; the producer reports it';


-- 2. Upgrade -----------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    granted RECORD;
    newest  BIGINT;
BEGIN
    -- The new log goes on after the old one, and whoever had a right on the old one has it on the new one.
    IF to_regclass('public.emp_cdc_old') IS NOT NULL AND NOT EXISTS (SELECT FROM public.emp_cdc) THEN
        SELECT max(cdc_id) INTO newest FROM public.emp_cdc_old;
        IF to_regclass('public.emp_cdc_old_cdc_id_seq') IS NOT NULL THEN
            SELECT greatest(newest, last_value - (NOT is_called)::int) INTO newest FROM public.emp_cdc_old_cdc_id_seq;
        END IF;
        IF newest > 0 THEN
            PERFORM setval('public.emp_cdc_cdc_id_seq', newest);
        END IF;
        FOR granted IN
            SELECT privilege_type, CASE grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(grantee)) END AS role
            FROM pg_class, aclexplode(relacl) WHERE oid = 'public.emp_cdc_old'::regclass AND grantee <> relowner
        LOOP
            EXECUTE format('GRANT %s ON public.emp_cdc TO %s', granted.privilege_type, granted.role);
        END LOOP;
    END IF;
    -- A log of an early version checks its actions by a constraint. NOT VALID: what is in it the consumer judges.
    IF EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'public.emp_cdc'::regclass AND attname = 'action'
               AND atttypid <> 'public.cdc_action'::regtype)
       AND NOT EXISTS (SELECT FROM pg_constraint
                       WHERE conrelid = 'public.emp_cdc'::regclass AND conname = 'emp_cdc_action') THEN
        ALTER TABLE public.emp_cdc
            ADD CONSTRAINT emp_cdc_action CHECK (action IN ('INSERT', 'UPDATE', 'DELETE')) NOT VALID;
    END IF;
END
$$;


-- 3. Capture -----------------------------------------------------------------------------------------------------------

-- Wakes the producer. Called only where the producer was found asleep. `SET cdc.notify = off` leaves the waking to
-- POLL_INTERVAL; a transaction that is to be prepared needs it, as PREPARE TRANSACTION refuses one that notified.
CREATE OR REPLACE FUNCTION public.emp_cdc_wake() RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF current_setting('cdc.notify', true) IS DISTINCT FROM 'off' THEN
        PERFORM pg_notify('emp_cdc', '');
    END IF;
END
$$;

-- Writes emp_cdc. It has its owner's rights: who may change employees needs no right on the log.
--
-- SECURITY. Every name has its schema, so that nobody's table, function or operator can stand in for ours. SET
-- search_path would do the same, but would be done and undone for each row. The table is checked before anything of
-- its row is touched: a column of another table could be of a type whose cast runs its author's code with our rights.
--
-- The lock ASLEEP is shared until commit where that is possible: the producer is awake, and before it sleeps it sees
-- that someone has yet to commit. Where it is not possible, the producer holds it, and sleeps.
--
-- NESTED CHANGES. A trigger or a function of the user's that changes employees inside a statement on employees is logged
-- before that statement, whose rows are then the older ones. So only what still stands is logged. A row version that has
-- been changed since is left out: its successor is logged by itself. A DELETE is left out if the employee is there again;
-- to look costs as much as to log, so it is done only after a trigger has changed employees in this transaction.
CREATE OR REPLACE FUNCTION public.employee_cdc_trigger_func() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
    IF TG_RELID OPERATOR(pg_catalog.<>) 'public.employees'::pg_catalog.regclass THEN
        RAISE 'employee_cdc_trigger_func() is for public.employees only'
            USING HINT = 'Drop the trigger on this table.', ERRCODE = 'insufficient_privilege';
    END IF;
    IF NOT pg_catalog.pg_try_advisory_xact_lock_shared(6513763, 2) THEN
        PERFORM public.emp_cdc_wake();
    END IF;
    IF NEW.emp_id IS NULL OR NEW.emp_id OPERATOR(pg_catalog.<>) OLD.emp_id THEN  -- a DELETE, or another key
        IF pg_catalog.current_setting('cdc.nested', true) OPERATOR(pg_catalog.=) 'on' THEN
            INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
            SELECT OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, 'DELETE'
            WHERE NOT EXISTS (SELECT FROM public.employees WHERE emp_id OPERATOR(pg_catalog.=) OLD.emp_id);
        ELSE
            INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
            VALUES (OLD.emp_id, OLD.first_name, OLD.last_name, OLD.dob, OLD.city, OLD.salary, 'DELETE');
        END IF;
    END IF;
    IF NEW.emp_id IS NOT NULL THEN
        IF pg_catalog.pg_trigger_depth() OPERATOR(pg_catalog.>) 1 THEN
            PERFORM pg_catalog.set_config('cdc.nested', 'on', true);
        END IF;
        IF NEW.xmax OPERATOR(pg_catalog.<>) '0'::pg_catalog.xid THEN  -- changed since, or only locked
            INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
            SELECT NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP
            FROM public.employees WHERE ctid OPERATOR(pg_catalog.=) NEW.ctid;
            IF FOUND OR NOT pg_catalog.row_security_active('public.employees'::pg_catalog.regclass) THEN
                RETURN NULL;
            END IF;
        END IF;
        INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
        VALUES (NEW.emp_id, NEW.first_name, NEW.last_name, NEW.dob, NEW.city, NEW.salary, TG_OP);
    END IF;
    RETURN NULL;
END
$$;

-- Writes emp_cdc. One DELETE per row: three actions stay enough, and partitions need no order among each other.
CREATE OR REPLACE FUNCTION public.employee_cdc_truncate_func() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET row_security = off AS $$
BEGIN
    IF TG_RELID <> 'public.employees'::regclass THEN
        RAISE 'employee_cdc_truncate_func() is for public.employees only'
            USING HINT = 'Drop the trigger on this table.', ERRCODE = 'insufficient_privilege';
    END IF;
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

-- Nothing in the log tells later that a row was removed: a transaction that was rolled back leaves the same hole. So
-- DELETE and TRUNCATE note it, in the transaction that removes. Pruning removes nothing that the position does not cover.
CREATE OR REPLACE FUNCTION public.emp_cdc_note_removed() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    newest BIGINT;
BEGIN
    IF TG_OP = 'TRUNCATE' THEN
        SELECT max(cdc_id) INTO newest FROM public.emp_cdc, public.cdc_position
        WHERE cdc_id > last_offset OR txid >= pg_snapshot_xmax(snapshot)
           OR txid = ANY (ARRAY (SELECT pg_snapshot_xip(snapshot)));
    ELSE
        SELECT max(cdc_id) INTO newest FROM gone, public.cdc_position
        WHERE cdc_id > last_offset OR NOT pg_visible_in_snapshot(txid, snapshot);
    END IF;
    UPDATE public.cdc_position SET removed = greatest(removed, newest) WHERE newest IS NOT NULL;
    RETURN NULL;
END
$$;

-- Nobody else may make a trigger of them.
REVOKE ALL ON FUNCTION public.emp_cdc_wake(), public.employee_cdc_trigger_func(), public.employee_cdc_truncate_func(),
    public.emp_cdc_note_removed() FROM PUBLIC;

-- They belong to a role that can do no more than they do: nobody can log in as it, and it may only read employees and
-- write the log. BYPASSRLS lets TRUNCATE log all rows of a table with row-level security; only a superuser can give it.
DO $$
DECLARE
    superuser CONSTANT BOOLEAN := (SELECT rolsuper FROM pg_roles WHERE rolname = current_user);
    function TEXT;
BEGIN
    IF to_regrole('cdc_capture') IS NULL THEN
        BEGIN
            EXECUTE 'CREATE ROLE cdc_capture NOLOGIN' || CASE WHEN superuser THEN ' BYPASSRLS' ELSE '' END;
            IF NOT superuser THEN
                GRANT cdc_capture TO CURRENT_USER;
            END IF;
        EXCEPTION
            WHEN duplicate_object OR unique_violation THEN NULL;  -- made by the set-up of another database just now
        END;
    END IF;
    GRANT USAGE  ON SCHEMA   public                    TO cdc_capture;
    GRANT SELECT ON TABLE    public.employees          TO cdc_capture;
    GRANT INSERT ON TABLE    public.emp_cdc            TO cdc_capture;
    GRANT USAGE  ON SEQUENCE public.emp_cdc_cdc_id_seq TO cdc_capture;
    FOR function IN
        SELECT oid::regprocedure FROM pg_proc
        WHERE oid IN ('public.emp_cdc_wake'::regproc, 'public.employee_cdc_trigger_func'::regproc,
                      'public.employee_cdc_truncate_func'::regproc, 'public.emp_cdc_note_removed'::regproc)
          AND proowner <> 'cdc_capture'::regrole
    LOOP
        GRANT CREATE ON SCHEMA public TO cdc_capture;  -- an owner needs it at this moment
        EXECUTE format('ALTER FUNCTION %s OWNER TO cdc_capture', function);
        REVOKE CREATE ON SCHEMA public FROM cdc_capture;
    END LOOP;
EXCEPTION
    WHEN insufficient_privilege THEN
        RAISE WARNING 'the capture functions belong to %, not to cdc_capture, a role without other rights, as %: see Rights in docs/operations.md',
            current_user, SQLERRM;
END
$$;


DO $$
BEGIN
    IF NOT EXISTS (SELECT FROM pg_trigger
                   WHERE tgrelid = 'public.emp_cdc'::regclass AND tgname = 'emp_cdc_truncate_trigger') THEN
        CREATE TRIGGER emp_cdc_delete_trigger AFTER DELETE ON public.emp_cdc REFERENCING OLD TABLE AS gone
            FOR EACH STATEMENT EXECUTE FUNCTION public.emp_cdc_note_removed();
        CREATE TRIGGER emp_cdc_truncate_trigger BEFORE TRUNCATE ON public.emp_cdc
            FOR EACH STATEMENT EXECUTE FUNCTION public.emp_cdc_note_removed();
        ALTER TABLE public.emp_cdc ENABLE ALWAYS TRIGGER emp_cdc_delete_trigger;
        ALTER TABLE public.emp_cdc ENABLE ALWAYS TRIGGER emp_cdc_truncate_trigger;
    END IF;
END
$$;


-- 4. First run ---------------------------------------------------------------------------------------------------------

DO $$
DECLARE
    first_run CONSTANT BOOLEAN := NOT EXISTS (SELECT FROM public.cdc_position);
    logged BIGINT := 0;
    place  BIGINT;
    last   BIGINT;
    step   BIGINT;
    total  BIGINT;
    chunk  BIGINT;
BEGIN
    IF first_run OR NOT current_setting('cdc.captured')::boolean THEN
        -- no writer between the triggers and the rows from before
        LOCK TABLE public.employees IN SHARE ROW EXCLUSIVE MODE;
        DROP TRIGGER IF EXISTS employee_cdc_trigger ON public.employees;
        CREATE TRIGGER employee_cdc_trigger AFTER INSERT OR UPDATE OR DELETE ON public.employees
            FOR EACH ROW EXECUTE FUNCTION public.employee_cdc_trigger_func();
        DROP TRIGGER IF EXISTS employee_cdc_truncate_trigger ON public.employees;
        CREATE TRIGGER employee_cdc_truncate_trigger BEFORE TRUNCATE ON public.employees
            FOR EACH STATEMENT EXECUTE FUNCTION public.employee_cdc_truncate_func();
        -- ALWAYS: a restore or a replication that sets session_replication_role = replica is captured too
        ALTER TABLE public.employees ENABLE ALWAYS TRIGGER employee_cdc_trigger;
        ALTER TABLE public.employees ENABLE ALWAYS TRIGGER employee_cdc_truncate_trigger;

        -- Many rows in 50 slices of the keys: db_setup.py shows how far it is, and asks to be told by cdc.progress.
        SELECT min(emp_id), max(emp_id), count(*) INTO place, last, total FROM public.employees;
        step := CASE WHEN total > 100000 THEN (last - place) / 50 + 1 ELSE last - place + 1 END;
        WHILE place <= last LOOP
            INSERT INTO public.emp_cdc (emp_id, first_name, last_name, dob, city, salary, action)
            SELECT emp_id, first_name, last_name, dob, city, salary, 'INSERT' FROM public.employees
            WHERE emp_id >= place AND emp_id < place + step ORDER BY emp_id;
            GET DIAGNOSTICS chunk = ROW_COUNT;
            logged := logged + chunk;
            place := place + step;
            IF current_setting('cdc.progress', true) = 'on' THEN
                RAISE WARNING 'cdc.progress % of %', logged, total;
            END IF;
        END LOOP;
        IF NOT first_run THEN
            RAISE WARNING 'the triggers were off: % rows logged again; run python verify.py --repair for employees that were deleted meanwhile', logged;
        ELSIF logged > 0 THEN
            RAISE WARNING '% rows from before the triggers logged as INSERT', logged;
        END IF;
    END IF;

    -- The first position: nothing published, nothing visible.
    INSERT INTO public.cdc_position (last_offset, snapshot, system_identifier, database)
    SELECT 0, '1:1:', system_identifier, system_identifier || '/' || oid
    FROM pg_control_system(), pg_database WHERE datname = current_database()
    ON CONFLICT DO NOTHING;
END
$$;


-- 5. A write on trial --------------------------------------------------------------------------------------------------

-- Through the trigger and taken back. Where the trigger fails, all of the set-up is taken back here, instead of every
-- write of the applications failing from now on. What the table itself refuses in this row is not our concern.
DO $$
DECLARE
    place  TEXT;
    drawn  BIGINT;
    called BOOLEAN;
BEGIN
    SELECT last_value, is_called INTO drawn, called FROM public.emp_cdc_cdc_id_seq;
    BEGIN
        INSERT INTO public.employees (emp_id) OVERRIDING SYSTEM VALUE
        SELECT coalesce(min(emp_id), 0) - 1 FROM public.employees;
        RAISE SQLSTATE 'CDC00';
    EXCEPTION
        WHEN SQLSTATE 'CDC00' THEN NULL;
        WHEN OTHERS THEN
            GET STACKED DIAGNOSTICS place = PG_EXCEPTION_CONTEXT;
            IF place LIKE '%employee_cdc_trigger_func()%' THEN
                RAISE 'writes of employees would fail in the trigger: %', SQLERRM USING ERRCODE = SQLSTATE;
            END IF;
    END;
    IF NOT current_setting('cdc.captured')::boolean THEN  -- employees is locked: nobody else has drawn an offset
        PERFORM setval('public.emp_cdc_cdc_id_seq', drawn, called);
    END IF;
END
$$;
COMMIT;
